//! How findings name credentials, workloads and times.

use crate::model::{Credential, IssuedTo, Workload};
use jiff::SignedDuration;

/// Appended if part of a workload's name is not known.
pub const NAME_INCOMPLETE: &str = " according to the known part of its name";

/// The credential in the text of a finding.
pub fn credential_label(credential: &Credential) -> String {
    match &credential.name {
        Some(name) => format!("{name} ({})", credential.id),
        None => format!("{} {}", credential.class, credential.id),
    }
}

/// The pod to which a token was issued, by all known names.
pub fn issued_to_names(issued: &IssuedTo) -> String {
    let IssuedTo {
        namespace,
        pod,
        service_account,
        ..
    } = issued;
    match (&issued.workload, issued.kind) {
        (Some(workload), Some(kind)) => {
            format!("{namespace}/{workload} ({kind}, pod {pod}, service account {service_account})")
        }
        _ => format!("{namespace}/{pod} (pod, service account {service_account})"),
    }
}

/// The owner of a credential used by another workload; empty if it is its own, or unknown.
pub fn issued_to_suffix(credential: &Credential, workload: &Workload) -> String {
    credential
        .issued_to
        .as_ref()
        .filter(|issued| {
            let pod = workload.pod.as_ref();
            let own = pod == Some(&issued.pod)
                && workload.namespace.as_ref() == Some(&issued.namespace)
                // The pod's name until it is resolved.
                || pod == Some(&issued.pod_uid);
            !own && (pod.is_some() || !workload.is_unnamed())
        })
        .map_or_else(String::new, |issued| {
            format!("; it was issued to {}", issued_to_names(issued))
        })
}

pub fn days(duration: SignedDuration) -> String {
    let hours = duration.as_hours();
    if hours < 48 {
        format!("{hours} h")
    } else {
        format!("{} d", hours / 24)
    }
}

/// A prefix for paths that exist only inside a container.
pub fn container_prefix(workload: &Workload) -> String {
    if !workload.is_contained() {
        return String::new();
    }
    let container = workload.container.as_deref().unwrap_or_default();
    format!("{} {container}:", workload.key())
}
