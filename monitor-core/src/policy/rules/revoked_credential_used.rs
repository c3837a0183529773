//! `revoked-credential-used`: a credential used after it was revoked.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Credential, Severity},
    policy::{
        context::Context, decision::Decision, finding::FindingBuilder, label::credential_label,
    },
};
use jiff::Timestamp;

static META: RuleMeta = RuleMeta {
    name: "revoked-credential-used",
    description: "A credential used after it was revoked.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1078"],
    alert: Some(AlertMeta {
        summary: "{workload} used a credential that was revoked",
        command: Some("keytrail query timeline --workload {workload} --since 1h"),
    }),
};

/// Raises uses and hops after an expectation's `revoked_at`; each workload and each destination is a
/// separate finding.
#[derive(Debug)]
pub struct RevokedCredentialUsed;

/// When the credential was revoked, if that was before `time`.
fn revoked_before(
    credential: &Credential,
    time: Timestamp,
    context: &Context,
) -> Option<Timestamp> {
    context
        .expectations
        .about(credential)
        .filter_map(|expectation| expectation.revoked_at)
        .min()
        .filter(|revoked| time > *revoked)
}

impl Rule for RevokedCredentialUsed {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => {
                let Some(revoked) = revoked_before(&used.credential, used.time, context) else {
                    return Decision::Allowed;
                };
                let workload = used.workload.key();
                let label = credential_label(&used.credential);
                Decision::Violation(
                    FindingBuilder::about_use(&META, Severity::Critical, used)
                        .summary(format!(
                            "{workload} picked up {label}, which was revoked at {revoked}"
                        ))
                        .dedup_key(format!("{workload} "))
                        .count(used.count.max(1))
                        .build(),
                )
            }
            Event::Hop(assessed) if assessed.proven => {
                let hop = assessed.hop;
                let Some(revoked) = revoked_before(&hop.credential, hop.time, context) else {
                    return Decision::Allowed;
                };
                Decision::Violation(
                    FindingBuilder::about_hop(&META, Severity::Critical, hop)
                        .summary(format!(
                            "{} used {} with {}, although it was revoked at {revoked}",
                            hop.workload.key(),
                            credential_label(&hop.credential),
                            hop.destination.label()
                        ))
                        .build(),
                )
            }
            _ => Decision::Allowed,
        }
    }
}
