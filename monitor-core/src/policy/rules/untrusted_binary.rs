//! `untrusted-binary`: a credential read by an executable that was not installed.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Finding, Severity, Untrusted, Use},
    policy::{
        context::Context, decision::Decision, finding::FindingBuilder, label::credential_label,
    },
};

static META: RuleMeta = RuleMeta {
    name: "untrusted-binary",
    description: "A credential read by an executable that exists only in memory, was deleted, was added to a container after its image, was downloaded a moment ago, or is in a temporary directory.",
    references: &["ATT&CK T1620", "ATT&CK T1036", "ATT&CK T1552.001"],
    alert: Some(AlertMeta {
        summary: "A credential was read by a program that was not installed: {workload}",
        command: Some("keytrail query blast-radius {workload}"),
    }),
};

/// Raises uses by executables that cannot be trusted.
#[derive(Debug)]
pub struct UntrustedBinary;

fn judge_use(used: &Use) -> Option<Finding> {
    let (severity, reason) = match used.untrusted? {
        Untrusted::Memory => (Severity::High, "exists only in memory"),
        Untrusted::Deleted => (Severity::High, "was deleted"),
        Untrusted::Added => (Severity::High, "is not in its container's image"),
        // Other tools that were fetched a moment ago, such as an installer's, use what is theirs.
        Untrusted::Downloaded if used.given => return None,
        Untrusted::Downloaded => (Severity::Medium, "was downloaded a moment ago"),
        Untrusted::Temporary => (Severity::Low, "is in a temporary directory"),
    };
    let exe = &used.process.exe;
    let workload = used.workload.key();
    Some(
        FindingBuilder::about_use(&META, severity, used)
            .summary(format!(
                "{workload} picked up {} with {exe}, which {reason}",
                credential_label(&used.credential)
            ))
            .dedup_key(format!("{workload} {exe}"))
            .count(used.count.max(1))
            .build(),
    )
}

impl Rule for UntrustedBinary {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, _: &Context) -> Decision {
        match event {
            Event::Use(used) => judge_use(used).into(),
            _ => Decision::Allowed,
        }
    }
}
