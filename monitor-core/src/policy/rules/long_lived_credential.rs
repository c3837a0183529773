//! `long-lived-credential`: a credential that is older than it should be.

use super::{Event, Rule, RuleMeta};
use crate::{
    model::{Finding, Lifetime, Severity, Use},
    policy::{
        context::Context,
        decision::Decision,
        finding::FindingBuilder,
        label::{credential_label, days},
    },
};

static META: RuleMeta = RuleMeta {
    name: "long-lived-credential",
    description: "A credential older than its maximum age, or static although its class has a short-lived form.",
    references: &["OWASP NHI7:2025 Long-Lived Secrets"],
    alert: None,
};

/// Raises credentials older than `max_age`, and static ones whose class has a short-lived form.
#[derive(Debug)]
pub struct LongLivedCredential;

fn judge_use(used: &Use, context: &Context) -> Option<Finding> {
    let credential = &used.credential;
    let label = credential_label(credential);
    let since = credential.issued_at.or(used.modified);
    let too_old = context
        .expectations
        .about(credential)
        .filter_map(|expectation| expectation.max_age)
        .min()
        .zip(since)
        .filter(|(max_age, since)| used.time.duration_since(*since) > *max_age);
    let has_short_form = || {
        credential.lifetime == Lifetime::Static
            && context
                .catalog
                .class(&credential.class)
                .is_some_and(|class| class.short_form)
    };
    let summary = if let Some((max_age, since)) = too_old {
        format!(
            "{label} is {} old; the maximum is {}",
            days(used.time.duration_since(since)),
            days(max_age)
        )
    } else if has_short_form() {
        let class = &credential.class;
        format!("{label} is static, although {class} has a short-lived form")
    } else {
        return None;
    };
    Some(
        FindingBuilder::about_use(&META, Severity::Low, used)
            .summary(summary)
            .count(used.count.max(1))
            .build(),
    )
}

impl Rule for LongLivedCredential {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => judge_use(used, context).into(),
            _ => Decision::Allowed,
        }
    }
}
