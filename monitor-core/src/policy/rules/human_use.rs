//! `human-use`: a machine's credential read from an interactive login.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Finding, Severity, Source, Use},
    policy::{
        context::Context, decision::Decision, finding::FindingBuilder, label::credential_label,
    },
};

static META: RuleMeta = RuleMeta {
    name: "human-use",
    description: "A machine's credential read from an interactive login.",
    references: &["OWASP NHI10:2025 Human Use of NHI", "ATT&CK T1078"],
    alert: Some(AlertMeta {
        summary: "A machine's credential was read from a terminal: {workload}",
        command: None,
    }),
};

/// Raises reads from a terminal of credentials outside the user's home directory.
#[derive(Debug)]
pub struct HumanUse;

fn judge_use(used: &Use, context: &Context) -> Option<Finding> {
    let login = used.login.as_ref()?;
    let usual = || {
        context
            .catalog
            .is_usual(&used.credential.class, &used.process.exe)
    };
    if used.place.source != Source::File || usual() {
        return None;
    }
    let personal = login
        .home
        .as_deref()
        .is_some_and(|home| used.place.place.starts_with(&format!("{home}/")));
    if personal {
        return None;
    }
    let written = context
        .expectations
        .about(&used.credential)
        .any(|expectation| !expectation.readers.is_empty());
    let severity = if written {
        Severity::Medium
    } else {
        Severity::Low
    };
    Some(
        FindingBuilder::about_use(&META, severity, used)
            .summary(format!(
                "{} at {} was read from a terminal by uid {}",
                credential_label(&used.credential),
                used.place.place,
                login.uid
            ))
            .dedup_key(login.uid.to_string())
            .count(used.count.max(1))
            .build(),
    )
}

impl Rule for HumanUse {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => judge_use(used, context).into(),
            _ => Decision::Allowed,
        }
    }
}
