//! `unexpected-mint`: a credential obtained from an authenticator by a workload that should not.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Mint, Severity},
    policy::{
        context::Context,
        decision::Decision,
        expectation::reader::{ReaderMatch, ReaderPattern, allows},
        finding::FindingBuilder,
        label::{NAME_INCOMPLETE, credential_label},
    },
};

static META: RuleMeta = RuleMeta {
    name: "unexpected-mint",
    description: "A credential obtained from an authenticator by a workload that is not expected to obtain it.",
    references: &[
        "OWASP NHI5:2025 Overprivileged NHI",
        "ATT&CK T1552.005",
        "ATT&CK T1550.001",
    ],
    alert: Some(AlertMeta {
        summary: "{workload} obtained a credential from an authenticator, and is not expected to",
        command: Some("keytrail query blast-radius {workload}"),
    }),
};

/// Raises mints by workloads, or of roles, that the expectations do not allow.
#[derive(Debug)]
pub struct UnexpectedMint;

fn judge_mint(mint: &Mint, context: &Context) -> Decision {
    let Some(minted) = &mint.minted else {
        return Decision::Allowed;
    };
    if context.expectations.is_learning() {
        return Decision::Allowed;
    }
    let at = &mint.authenticator;
    let exe = &mint.process.exe;
    let here = context
        .expectations
        .authenticators
        .iter()
        .filter(|authenticator| authenticator.is_at(at));
    // Permitted workloads are written with the authenticator, or with the credential that it mints.
    let by_authenticator = here
        .clone()
        .filter_map(|known| allows(&known.readers, &mint.workload, exe))
        .max();
    let by_credential = context
        .expectations
        .about(minted)
        .filter_map(|expectation| expectation.allows_reader(&mint.workload, exe))
        .max();
    let wrong_role = here.clone().any(|known| !known.may_mint(minted.role));
    let fit = [by_authenticator, by_credential]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(ReaderMatch::Matches);
    if fit == ReaderMatch::Matches && !wrong_role {
        return Decision::Allowed;
    }
    let readers = here
        .flat_map(|known| &known.readers)
        .chain(
            context
                .expectations
                .about(minted)
                .flat_map(|expectation| &expectation.readers),
        )
        .map(ReaderPattern::text)
        .collect();
    let workload = mint.workload.key();
    let label = credential_label(minted);
    let name = context.authenticator(at).unwrap_or("an authenticator");
    let place = at.label();
    let mut summary = if wrong_role {
        let role = minted.role;
        format!(
            "{workload} obtained {label}, of role {role}, from {name} at {place}, which may not mint it"
        )
    } else {
        format!("{workload} obtained {label} from {name} at {place}, and is not expected to")
    };
    let pending = fit == ReaderMatch::Unknown && !wrong_role;
    if pending {
        summary.push_str(NAME_INCOMPLETE);
    }
    let severity = if pending {
        Severity::Low
    } else {
        Severity::High
    };
    let finding = FindingBuilder::new(&META, severity, mint.time, &mint.workload)
        .process(&mint.process)
        .credential(minted)
        .destination(at)
        .summary(summary)
        .expected(readers)
        .dedup_key(format!("{workload} {place}"))
        .build();
    if pending {
        Decision::Pending(finding)
    } else {
        Decision::Violation(finding)
    }
}

impl Rule for UnexpectedMint {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn depends_on_name(&self, event: &Event<'_>) -> bool {
        matches!(event, Event::Mint(_))
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Mint(mint) => judge_mint(mint, context),
            _ => Decision::Allowed,
        }
    }
}
