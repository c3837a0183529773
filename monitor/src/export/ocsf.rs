//! Findings in OCSF 1.3: Detection Finding, class 2004.

use monitor_core::{
    model::{Evidence, Finding, Severity},
    policy::rules::metas,
};
use serde_json::{Value, json};

const VERSION: &str = "1.3.0";
/// The file type of an executable.
const REGULAR_FILE: u8 = 1;

/// The finding, and whether it was written before; attributes without an OCSF equivalent are in
/// `unmapped`, unknown ones are omitted.
pub fn detection(finding: &Finding, is_update: bool) -> Value {
    let (severity_id, severity) = match finding.severity {
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    // A finding that was written before is an update.
    let (activity_id, activity_name) = if is_update {
        (2, "Update")
    } else {
        (1, "Create")
    };
    let description = metas()
        .iter()
        .find(|rule| rule.name == finding.rule)
        .map_or("", |rule| rule.description);
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
            "desc": description,
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
    without_absent(&mut out);
    out
}

/// Removes absent values: the schema has no nulls, and no empty values in required attributes.
fn without_absent(value: &mut Value) {
    let absent = |value: &Value| match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(without_absent);
            fields.retain(|_, value| !absent(value));
        }
        Value::Array(items) => {
            items.iter_mut().for_each(without_absent);
            items.retain(|value| !absent(value));
        }
        _ => {}
    }
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
            "image": { "uid": workload.image, "name": workload.image },
            "orchestrator": workload.namespace.as_ref().map(|_| "kubernetes"),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every path with a value that the schema does not allow.
    fn absent(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Null => found.push(path.to_owned()),
            Value::Object(fields) if fields.is_empty() => found.push(path.to_owned()),
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, value)| absent(value, &format!("{path}.{name}"), found)),
            Value::Array(items) => items
                .iter()
                .for_each(|value| absent(value, &format!("{path}[]"), found)),
            _ => {}
        }
    }

    #[test]
    fn required_fields_are_present_and_absent_values_omitted() {
        let bare = json!({
            "id": "kf-1", "time": "2026-01-01T00:00:00Z", "rule": "blind", "severity": "high", "summary": "lost",
            "workload": { "kind": "host", "name": "keytrail" }, "count": 1,
            "first_seen": "2026-01-01T00:00:00Z", "last_seen": "2026-01-01T00:00:00Z",
        });
        let mut whole = bare.clone();
        whole["destination"] = json!({
            "address": "203.0.113.7", "port": 443, "name_source": "none", "transport": "tcp",
        });
        whole["workload"] = json!({ "kind": "container", "name": "c", "container": "c" });
        for (finding, evidences) in [(bare, 0), (whole, 1)] {
            let finding: Finding = serde_json::from_value(finding).expect("a finding");
            let out = detection(&finding, false);
            let mut found = Vec::new();
            absent(&out, "", &mut found);
            assert_eq!(found, Vec::<String>::new());
            for required in [
                "activity_id",
                "category_uid",
                "class_uid",
                "finding_info",
                "metadata",
                "severity_id",
                "time",
                "type_uid",
            ] {
                assert!(out.get(required).is_some(), "{required}");
            }
            assert_eq!(out["evidences"].as_array().map_or(0, Vec::len), evidences);
            assert_eq!(out["type_uid"], 200_401);
            assert_eq!(detection(&finding, true)["type_uid"], 200_402);
        }
    }
}
