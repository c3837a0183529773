//! `cleartext-credential`: a credential presented outside TLS.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Destination, Severity},
    policy::{
        context::Context,
        decision::Decision,
        finding::FindingBuilder,
        label::{credential_label, issued_to_suffix},
    },
};

static META: RuleMeta = RuleMeta {
    name: "cleartext-credential",
    description: "A credential presented outside TLS, except on loopback.",
    references: &[
        "OWASP NHI4:2025 Insecure Authentication",
        "ATT&CK T1040",
        "ATT&CK T1552",
    ],
    alert: Some(AlertMeta {
        summary: "{workload} sent a credential in plaintext",
        command: None,
    }),
};

/// Whether a destination is a pod or a service of the cluster, by the cluster's own account.
fn is_in_cluster(destination: &Destination) -> bool {
    destination
        .object
        .as_deref()
        .is_some_and(|object| object.ends_with(".svc") || object.ends_with(".pod"))
}

/// Raises credentials in plaintext. A metadata service has no TLS, and is not flagged.
#[derive(Debug)]
pub struct CleartextCredential;

impl Rule for CleartextCredential {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        let Event::Hop(assessed) = event else {
            return Decision::Allowed;
        };
        let hop = assessed.hop;
        let destination = &hop.destination;
        if !hop.clear
            || destination.address.is_loopback()
            || context.catalog.is_metadata(destination.address)
            || context.may_be_in_clear(&hop.credential)
        {
            return Decision::Allowed;
        }
        // Few proxies are asked inside TLS.
        let severity = if is_in_cluster(destination) || hop.for_proxy {
            Severity::Low
        } else {
            Severity::High
        };
        Decision::Violation(
            FindingBuilder::about_hop(&META, severity, hop)
                .summary(format!(
                    "{} sent {} in plaintext to {}{}",
                    hop.workload.key(),
                    credential_label(&hop.credential),
                    destination.label(),
                    issued_to_suffix(&hop.credential, &hop.workload)
                ))
                // Only a presentation shows it: what was reported before was not this.
                .count(1)
                .build(),
        )
    }
}
