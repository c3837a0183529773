//! `expired-credential-used`: a credential used after its expiry.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Evidence, Severity},
    policy::{
        context::Context, decision::Decision, finding::FindingBuilder, label::credential_label,
    },
};

static META: RuleMeta = RuleMeta {
    name: "expired-credential-used",
    description: "A credential used after its expiry.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1550.001"],
    alert: Some(AlertMeta {
        summary: "{workload} presented a credential that has expired",
        command: None,
    }),
};

/// Raises uses of expired credentials.
#[derive(Debug)]
pub struct ExpiredCredentialUsed;

impl Rule for ExpiredCredentialUsed {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn judge(&mut self, event: &Event<'_>, _: &Context) -> Decision {
        let Event::Hop(assessed) = event else {
            return Decision::Allowed;
        };
        let hop = assessed.hop;
        let Some(expiry) = hop.credential.expires_at else {
            return Decision::Allowed;
        };
        if hop.time <= expiry || !assessed.proven {
            return Decision::Allowed;
        }
        let severity = match hop.evidence {
            Evidence::Presented => Severity::Medium,
            _ => Severity::Low,
        };
        Decision::Violation(
            FindingBuilder::about_hop(&META, severity, hop)
                .summary(format!(
                    "{} used {}, which expired at {expiry}, with {}",
                    hop.workload.key(),
                    credential_label(&hop.credential),
                    hop.destination.label()
                ))
                .build(),
        )
    }
}
