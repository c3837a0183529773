//! `unexpected-hop`: a credential at a destination where it does not belong.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Evidence, Finding, Severity, Verdict},
    policy::{
        context::{AssessedHop, Context},
        decision::Decision,
        finding::FindingBuilder,
        label::{credential_label, issued_to_suffix},
    },
};

static META: RuleMeta = RuleMeta {
    name: "unexpected-hop",
    description: "A credential at a destination that neither its class's home nor an expectation allows.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1567",
        "ATT&CK T1528",
    ],
    alert: Some(AlertMeta {
        summary: "A credential went to an unexpected destination: {workload}",
        command: Some("keytrail query blast-radius {workload}"),
    }),
};

/// Raises hops with the verdict `unexpected`.
#[derive(Debug)]
pub struct UnexpectedHop;

fn finding(assessed: &AssessedHop<'_>, context: &Context) -> Finding {
    let hop = assessed.hop;
    let severity = match hop.evidence {
        Evidence::Presented => Severity::Critical,
        _ if assessed.written => Severity::Medium,
        _ => Severity::Low,
    };
    let verb = match hop.evidence {
        Evidence::Presented => "presented",
        _ => "held only",
    };
    let action = match hop.evidence {
        Evidence::Presented if !hop.others.is_empty() => "to one of several possible destinations,",
        Evidence::Presented => "to",
        _ => "and connected to",
    };
    FindingBuilder::about_hop(&META, severity, hop)
        .summary(format!(
            "{} {verb} {} {action} {}{}",
            hop.workload.key(),
            credential_label(&hop.credential),
            hop.destination.label(),
            issued_to_suffix(&hop.credential, &hop.workload)
        ))
        .expected(context.expected(&hop.credential))
        .build()
}

impl Rule for UnexpectedHop {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Hop(assessed)
                if assessed.verdict == Verdict::Unexpected
                    && !context.expectations.is_learning() =>
            {
                Decision::Violation(finding(assessed, context))
            }
            _ => Decision::Allowed,
        }
    }
}
