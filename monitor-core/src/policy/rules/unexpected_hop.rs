//! `unexpected-hop`: a credential at a destination where it does not belong, or a decoy anywhere.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Evidence, Finding, Hop, Severity, Verdict},
    policy::{
        context::{AssessedHop, Context, Doubt},
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

/// Raises hops with the verdict `unexpected`, and with `unproven` where it is worth a look.
#[derive(Debug)]
pub struct UnexpectedHop;

fn finding(assessed: &AssessedHop<'_>, context: &Context) -> Finding {
    let hop = assessed.hop;
    let severity = severity(assessed);
    let verb = match hop.evidence {
        Evidence::Presented => "presented",
        _ => "held only",
    };
    let action = match hop.evidence {
        Evidence::Presented if !hop.others.is_empty() => "to one of several possible destinations,",
        Evidence::Presented => "to",
        _ => "and connected to",
    };
    let reason = match assessed.doubt {
        _ if assessed.decoy => "; it is a decoy, which nothing legitimate uses",
        Some(Doubt::Gateway) => {
            ", a gateway according to the environment of the workload's first process"
        }
        Some(Doubt::KeptHost) => ", although the request names another server",
        Some(Doubt::Unconfirmed) => {
            ", at an address to which no configured resolver resolved that name"
        }
        Some(Doubt::Reviewer) => ", which may have the cluster review it",
        Some(Doubt::Local) => " on this machine",
        None => "",
    };
    FindingBuilder::about_hop(&META, severity, hop)
        .summary(format!(
            "{} {verb} {} {action} {}{reason}{}",
            hop.workload.key(),
            credential_label(&hop.credential),
            hop.destination.label(),
            issued_to_suffix(&hop.credential, &hop.workload)
        ))
        .expected(context.expected(&hop.credential))
        .build()
}

fn severity(assessed: &AssessedHop<'_>) -> Severity {
    let hop = assessed.hop;
    if assessed.decoy {
        return Severity::Critical;
    }
    // A sidecar sends on what its own application sent, whose hop was judged.
    let is_sidecar = hop
        .on_behalf_of
        .as_ref()
        .is_some_and(|behalf| behalf.workload.key() == hop.workload.key());
    if assessed.doubt.is_some() || is_sidecar {
        return Severity::Low;
    }
    match hop.evidence {
        // Other services accept the same variables and headers.
        Evidence::Presented if hop.credential.unmarked && !assessed.written => Severity::Medium,
        Evidence::Presented => Severity::Critical,
        _ if assessed.written => Severity::Medium,
        _ => Severity::Low,
    }
}

/// A process with several credentials connected to where none of them belongs; once per workload,
/// because it may connect to many servers.
fn held_finding(hop: &Hop) -> Finding {
    FindingBuilder::about_hop(&META, Severity::Low, hop)
        .summary(format!(
            "{} held {} credentials and connected to {}, where none of them belongs",
            hop.workload.key(),
            hop.held_with.len() + 1,
            hop.destination.label()
        ))
        .dedup_key(hop.workload.key())
        .any_credential()
        .build()
}

/// Whether a hop is raised.
fn is_flagged(assessed: &AssessedHop<'_>, context: &Context) -> bool {
    if assessed.proven && assessed.decoy {
        return true;
    }
    let worth_a_look = assessed.doubt.is_some_and(|doubt| doubt != Doubt::Local);
    !context.expectations.is_learning()
        && (assessed.verdict == Verdict::Unexpected
            || (worth_a_look && assessed.hop.evidence == Evidence::Presented))
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
            Event::Hop(assessed) if is_flagged(assessed, context) => {
                Decision::Violation(finding(assessed, context))
            }
            Event::Hop(assessed)
                if assessed.hop.evidence == Evidence::Held
                    && !context.expectations.is_learning()
                    && context.none_may_go(assessed.hop) =>
            {
                Decision::Violation(held_finding(assessed.hop))
            }
            _ => Decision::Allowed,
        }
    }
}
