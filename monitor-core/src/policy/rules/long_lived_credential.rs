//! `long-lived-credential`: a credential that is older than it should be.

use super::{Event, Rule, RuleMeta};
use crate::{
    model::{CredentialId, Finding, Lifetime, Severity, Use},
    policy::{
        context::Context,
        decision::Decision,
        finding::FindingBuilder,
        label::{credential_label, days},
    },
};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use std::collections::BTreeMap;

static META: RuleMeta = RuleMeta {
    name: "long-lived-credential",
    description: "A credential older than its maximum age, or static although its class has a short-lived form.",
    references: &["OWASP NHI7:2025 Long-Lived Secrets"],
    alert: None,
};

/// Credentials of a day that its digest counts.
const COUNTED_MAX: usize = 1024;
/// Credentials that a digest names.
const NAMED_MAX: usize = 5;

/// Raises credentials older than `max_age`, and once a day all static ones whose class has a
/// short-lived form.
#[derive(Debug, Default)]
pub struct LongLivedCredential {
    /// The day of the digest, and the credentials in it, by what is shown of them.
    day: Option<Date>,
    counted: BTreeMap<CredentialId, String>,
}

/// The maximum age of a credential that is older, and since when it exists.
fn too_old(used: &Use, context: &Context) -> Option<(SignedDuration, Timestamp)> {
    let since = used.credential.issued_at.or(used.modified)?;
    let max_age = context
        .expectations
        .about(&used.credential)
        .filter_map(|expectation| expectation.max_age)
        .min()?;
    (used.time.duration_since(since) > max_age).then_some((max_age, since))
}

impl LongLivedCredential {
    fn judge_use(&mut self, used: &Use, context: &Context) -> Option<Finding> {
        let credential = &used.credential;
        let label = credential_label(credential);
        if let Some((max_age, since)) = too_old(used, context) {
            let summary = format!(
                "{label} is {} old; the maximum is {}",
                days(used.time.duration_since(since)),
                days(max_age)
            );
            return Some(
                FindingBuilder::about_use(&META, Severity::Low, used)
                    .summary(summary)
                    .count(used.count.max(1))
                    .build(),
            );
        }
        let has_short_form = credential.lifetime == Lifetime::Static
            && context
                .catalog
                .class(&credential.class)
                .is_some_and(|class| class.short_form);
        has_short_form.then(|| self.digest(used, label)).flatten()
    }

    /// One finding a day, which grows with each credential.
    fn digest(&mut self, used: &Use, label: String) -> Option<Finding> {
        let day = used.time.to_zoned(TimeZone::UTC).date();
        if self.day.replace(day) != Some(day) {
            self.counted.clear();
        }
        let id = &used.credential.id;
        if self.counted.contains_key(id) || self.counted.len() >= COUNTED_MAX {
            return None;
        }
        self.counted.insert(id.clone(), label);
        let named: Vec<&str> = self
            .counted
            .values()
            .take(NAMED_MAX)
            .map(String::as_str)
            .collect();
        let more = match self.counted.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(
            FindingBuilder::new(&META, Severity::Low, used.time, &used.workload)
                .summary(format!(
                    "static credentials in use on {day}, although their classes have a short-lived form: {}{more}",
                    named.join(", ")
                ))
                .dedup_key(day.to_string())
                .any_credential()
                .build(),
        )
    }
}

impl Rule for LongLivedCredential {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn can_judge_again(&self, recorded: &Finding) -> bool {
        // A digest is of one day.
        recorded.credential.is_some()
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => self.judge_use(used, context).into(),
            _ => Decision::Allowed,
        }
    }
}
