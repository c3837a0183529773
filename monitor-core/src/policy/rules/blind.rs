//! `blind`: findings about the agent itself.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Severity, Workload},
    policy::{context::Context, decision::Decision, finding::FindingBuilder},
};

static META: RuleMeta = RuleMeta {
    name: "blind",
    description: "A probe that was lost, detached or overrun, or an agent that was tampered with.",
    references: &["ATT&CK T1562.001", "ATT&CK T1562.006"],
    alert: Some(AlertMeta {
        summary: "Keytrail was blinded on {instance}",
        command: Some("keytrail doctor"),
    }),
};

/// Raises gaps that make or made the agent blind.
#[derive(Debug)]
pub struct Blind;

impl Rule for Blind {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, _: &Context) -> Decision {
        let Event::Gap(gap) = event else {
            return Decision::Allowed;
        };
        if !gap.blind {
            return Decision::Allowed;
        }
        let probe = gap.probe.as_deref().unwrap_or_default();
        let time = gap.until.unwrap_or(gap.since);
        let agent = Workload::host("keytrail");
        Decision::Violation(
            FindingBuilder::new(&META, Severity::High, time, &agent)
                .summary(gap.detail.clone())
                .dedup_key(format!("{} {probe} {}", gap.kind, gap.detail))
                .gap(gap)
                .build(),
        )
    }
}
