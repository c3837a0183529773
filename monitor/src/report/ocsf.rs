//! Findings as OCSF 1.3 has them: Detection Finding, class 2004.

use crate::{
    model::{Evidence, Finding, Severity},
    policy::RULES,
};
use serde_json::{Value, json};

const VERSION: &str = "1.3.0";
/// An executable.
const REGULAR_FILE: u8 = 1;

/// The finding; what OCSF has no place for is in `unmapped`.
pub fn detection(finding: &Finding) -> Value {
    let (severity_id, severity) = match finding.severity {
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    // A finding that was told before goes on.
    let (activity_id, activity_name) = if finding.count > 1 {
        (2, "Update")
    } else {
        (1, "Create")
    };
    let about = RULES
        .iter()
        .find(|rule| rule.name == finding.rule)
        .map_or("", |rule| rule.about);
    let mut out = json!({
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "category_uid": 2,
        "category_name": "Findings",
        "activity_id": activity_id,
        "activity_name": activity_name,
        "type_uid": 200_400 + activity_id,
        "time": finding.time.as_millisecond(),
        "start_time": finding.first_seen.as_millisecond(),
        "end_time": finding.last_seen.as_millisecond(),
        "count": finding.count,
        "severity_id": severity_id,
        "severity": severity,
        "status_id": 1,
        "status": "New",
        "message": finding.summary,
        "metadata": {
            "version": VERSION,
            "product": {
                "name": "Keytrail",
                "vendor_name": "Keytrail",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "profiles": ["host", "container"],
        },
        "finding_info": {
            "uid": finding.id,
            "title": finding.rule,
            "desc": about,
            "types": [finding.rule],
            "analytic": { "name": finding.rule, "uid": finding.rule, "type_id": 1, "type": "Rule" },
            "first_seen_time": finding.first_seen.as_millisecond(),
            "last_seen_time": finding.last_seen.as_millisecond(),
            "attacks": attacks(finding),
        },
        "evidences": [evidence(finding)],
        "resources": resources(finding),
        "unmapped": {
            "workload": finding.workload,
            "expected": finding.expected,
            "references": finding.references,
            "gaps": finding.gaps,
        },
    });
    if let Some(sure) = finding.evidence {
        let (id, name) = match sure {
            Evidence::Presented => (3, "High"),
            Evidence::Sole => (2, "Medium"),
            Evidence::Held => (1, "Low"),
        };
        out["confidence_id"] = json!(id);
        out["confidence"] = json!(name);
        out["unmapped"]["evidence"] = json!(sure);
    }
    out
}

fn attacks(finding: &Finding) -> Vec<Value> {
    finding
        .references
        .iter()
        .filter_map(|reference| reference.strip_prefix("ATT&CK "))
        .map(|uid| json!({ "technique": { "uid": uid } }))
        .collect()
}

fn evidence(finding: &Finding) -> Value {
    let mut out = json!({});
    if let Some(process) = &finding.process {
        let name = process.exe.rsplit('/').next().unwrap_or_default();
        let mut user = json!({ "uid": process.uid.to_string() });
        if let Some(credential) = &finding.credential {
            user["credential_uid"] = json!(credential.id);
        }
        let inner = json!({
            "pid": process.pid,
            "name": process.comm,
            "created_time": process.start_time.as_millisecond(),
            "file": { "path": process.exe, "name": name, "type_id": REGULAR_FILE },
            "user": user,
            "lineage": process.ancestors.iter().map(|above| &above.exe).collect::<Vec<_>>(),
        });
        out["actor"] = json!({ "process": inner, "user": user });
        out["process"] = inner;
    }
    if let Some(destination) = &finding.destination {
        out["dst_endpoint"] = json!({
            "ip": destination.address,
            "port": destination.port,
            "hostname": destination.name,
        });
    }
    let workload = &finding.workload;
    if workload.container.is_some() || workload.pod.is_some() {
        out["container"] = json!({
            "name": workload.container,
            "image": { "name": workload.image },
            "orchestrator": workload.namespace.as_ref().map(|_| "kubernetes"),
            "pod_uuid": workload.pod,
        });
    }
    out
}

fn resources(finding: &Finding) -> Vec<Value> {
    finding
        .credential
        .iter()
        .map(|credential| {
            json!({
                "uid": credential.id,
                "name": credential.name.as_ref().unwrap_or(&credential.class),
                "type": "credential",
                "owner": credential.owner.as_ref().map(|owner| json!({ "name": owner })),
                "data": credential,
            })
        })
        .collect()
}
