//! `unexpected-reader`: a credential read by a workload that should not read it.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{Finding, Severity, Source, Use},
    policy::{
        context::Context,
        decision::Decision,
        expectation::reader::{ReaderMatch, ReaderPattern},
        finding::FindingBuilder,
        label::{NAME_INCOMPLETE, credential_label, issued_to_names},
    },
};

static META: RuleMeta = RuleMeta {
    name: "unexpected-reader",
    description: "A workload outside the written readers, one pod reading another's credential, or any use of a decoy.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552.001"],
    alert: Some(AlertMeta {
        summary: "A credential was read by an unexpected workload: {workload}",
        command: Some("keytrail query blast-radius {workload}"),
    }),
};

/// Programs that manage the volumes of pods: kubelets, including those built into a distribution.
const VOLUME_KEEPERS: [&str; 14] = [
    "kubelet",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "k0s",
    "kubelite",
    "hyperkube",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "crun",
    "crio",
    "conmon",
    "dockerd",
];

/// Raises readers that the expectations do not list, and, without a list, readers of another pod's
/// credential.
#[derive(Debug)]
pub struct UnexpectedReader;

fn judge_use(used: &Use, context: &Context) -> Decision {
    let credential = &used.credential;
    let mut expected = Vec::new();
    let mut written = None;
    for expectation in context.expectations.about(credential) {
        let fit = expectation.allows_reader(&used.workload, &used.process.exe);
        if fit == Some(ReaderMatch::Matches) {
            return Decision::Allowed;
        }
        if fit.is_some() {
            expected.extend(expectation.readers.iter().map(ReaderPattern::text));
        }
        written = written.max(fit);
    }
    let reader = used.workload.key();
    let label = credential_label(credential);
    if context.is_decoy(credential) {
        return Decision::Violation(
            FindingBuilder::about_use(&META, Severity::Critical, used)
                .summary(format!(
                    "{reader} picked up {label} from {}; it is a decoy, which nothing legitimate uses",
                    used.place.place
                ))
                .dedup_key(reader)
                .count(used.count.max(1))
                .build(),
        );
    }
    if context.expectations.is_learning() {
        return Decision::Allowed;
    }
    let (severity, summary) = match written {
        Some(fit) => {
            let (severity, note) = match fit {
                ReaderMatch::Unknown => (Severity::Low, NAME_INCOMPLETE),
                _ => (Severity::High, ""),
            };
            let summary =
                format!("{reader} read {label}, whose expected readers do not include it{note}");
            (severity, summary)
        }
        None => match foreign_pod_owner(used) {
            Some(owner) if !is_volume_keeper(used) => {
                (Severity::High, format!("{reader} read {label} {owner}"))
            }
            _ => return Decision::Allowed,
        },
    };
    let finding = FindingBuilder::about_use(&META, severity, used)
        .summary(summary)
        .expected(expected)
        .dedup_key(reader)
        .count(used.count.max(1))
        .build();
    if written == Some(ReaderMatch::Unknown) {
        Decision::Pending(finding)
    } else {
        Decision::Violation(finding)
    }
}

/// Whether the reader is a host program that manages volumes. In a container any program can have
/// such a name.
fn is_volume_keeper(used: &Use) -> bool {
    let name = used.process.exe.rsplit('/').next().unwrap_or_default();
    used.pod_uid.is_none()
        && !used.workload.is_contained()
        && used.untrusted.is_none()
        && VOLUME_KEEPERS.contains(&name)
}

/// The owner of the pod that a credential belongs to, if the reader is in another pod: from the
/// file's volume, or from the token's claims. A credential that is only forwarded, as by a proxy,
/// is not picked up.
fn foreign_pod_owner(used: &Use) -> Option<String> {
    let issued = (used.place.source != Source::Presented)
        .then_some(used.credential.issued_to.as_ref())
        .flatten();
    let (uid, how) = match (&used.volume_of, issued) {
        (Some(uid), _) => (uid, "in a volume of"),
        (None, Some(issued)) => (&issued.pod_uid, "that was issued to"),
        (None, None) => return None,
    };
    // Whoever is not known is not another.
    if used.pod_uid.as_ref() == Some(uid) || used.workload.is_vanished() {
        return None;
    }
    // A path without a uid does not contradict the names.
    if used.pod_uid.is_none()
        && used.workload.is_contained()
        && let Some(issued) = issued
    {
        let workload = &used.workload;
        let own = workload.pod.as_ref() == Some(&issued.pod)
            && workload.namespace.as_ref() == Some(&issued.namespace);
        if own || workload.is_unnamed() {
            return None;
        }
    }
    let whose = match (&used.home, issued) {
        (Some(home), _) => {
            let pod = home.pod.as_deref().unwrap_or(uid);
            let account = issued
                .map(|issued| &issued.service_account)
                .or(home.service_account.as_ref())
                .map_or_else(String::new, |name| format!(", service account {name}"));
            format!("{} ({}, pod {pod}{account})", home.key(), home.kind)
        }
        (None, Some(issued)) => issued_to_names(issued),
        (None, None) => format!("pod {uid}"),
    };
    Some(format!("{how} {whose}"))
}

impl Rule for UnexpectedReader {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        false
    }

    fn can_judge_again(&self, recorded: &Finding) -> bool {
        // Without written readers it was about pods, whose ids are not stored.
        !(recorded.expected.is_empty() && recorded.workload.is_contained())
    }

    fn depends_on_name(&self, event: &Event<'_>) -> bool {
        matches!(event, Event::Use(_))
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        match event {
            Event::Use(used) => judge_use(used, context),
            _ => Decision::Allowed,
        }
    }
}
