//! What was observed of credentials: uses, hops, findings, expiry and first use.

use super::{
    OTHER,
    family::{BoundedFamily, Redaction},
    registry::FoldedSeries,
};
use monitor_core::model::{Credential, Finding, Hop, Use, Verdict, Workload};
use std::{collections::HashMap, sync::Mutex};

#[derive(Debug)]
pub struct CredentialMetrics {
    uses: BoundedFamily,
    hops: BoundedFamily,
    findings: BoundedFamily,
    info: BoundedFamily,
    expiry: BoundedFamily,
    first_seen: BoundedFamily,
    last_used: BoundedFamily,
    folded: FoldedSeries,
    /// When credentials were first seen according to previous runs, by label.
    before: Mutex<HashMap<Box<str>, f64>>,
}

impl CredentialMetrics {
    pub fn new(folded: FoldedSeries) -> Self {
        Self {
            uses: BoundedFamily::counter(
                "keytrail_credential_uses_total",
                "Credentials picked up or presented.",
                &["namespace", "workload", "credential", "class", "source"],
            ),
            hops: BoundedFamily::counter(
                "keytrail_hops_total",
                "Credentials used at a destination.",
                &[
                    "namespace",
                    "workload",
                    "credential",
                    "destination",
                    "evidence",
                    "verdict",
                ],
            ),
            findings: BoundedFamily::counter(
                "keytrail_findings_total",
                "Uses and hops that violate an expectation or a rule.",
                &["rule", "severity", "namespace", "workload"],
            ),
            info: BoundedFamily::gauge(
                "keytrail_credential_info",
                "Always 1; the properties of a credential, by the label used in other families.",
                &["id", "credential", "class", "role", "lifetime", "owner"],
                Redaction::Omit,
            ),
            expiry: BoundedFamily::gauge(
                "keytrail_credential_expiry_timestamp_seconds",
                "When the credential expires, if known.",
                &["credential", "class"],
                Redaction::Min,
            ),
            first_seen: BoundedFamily::gauge(
                "keytrail_credential_first_seen_timestamp_seconds",
                "When the credential was first seen.",
                &["credential", "class"],
                Redaction::Min,
            ),
            last_used: BoundedFamily::gauge(
                "keytrail_credential_last_used_timestamp_seconds",
                "When the credential was last used.",
                &["credential", "class"],
                Redaction::Max,
            ),
            folded,
            before: Mutex::default(),
        }
    }

    pub fn count_use(&self, used: &Use) {
        let source = used.place.source.as_str();
        let class = &used.credential.class;
        let labels = [
            used.workload.namespace.as_deref().unwrap_or_default(),
            &used.workload.name,
            credential_label(&used.credential),
            class,
            source,
        ];
        let rest = [OTHER, OTHER, OTHER, class, source];
        self.folded
            .add(&self.uses, "uses", &labels, &rest, used.count);
        self.set_credential(&used.credential, used.time);
    }

    pub fn count_hop(&self, hop: &Hop, verdict: Verdict) {
        let destination = hop.destination.label();
        let (evidence, verdict) = (hop.evidence.as_str(), verdict.as_str());
        let labels = [
            hop.workload.namespace.as_deref().unwrap_or_default(),
            &hop.workload.name,
            credential_label(&hop.credential),
            &destination,
            evidence,
            verdict,
        ];
        let rest = [OTHER, OTHER, OTHER, OTHER, evidence, verdict];
        self.folded
            .add(&self.hops, "hops", &labels, &rest, hop.count);
        self.set_credential(&hop.credential, hop.time);
    }

    pub fn count_finding(&self, finding: &Finding) {
        let (rule, severity) = (finding.rule.as_str(), finding.severity.as_str());
        let labels = [
            rule,
            severity,
            finding.workload.namespace.as_deref().unwrap_or_default(),
            &finding.workload.name,
        ];
        let rest = [rule, severity, OTHER, OTHER];
        self.folded
            .add(&self.findings, "findings", &labels, &rest, 1);
    }

    /// Restores when a credential was first seen; exported once it is seen again.
    pub fn restore_first_seen(&self, credential: &Credential, first_seen: jiff::Timestamp) {
        let Ok(mut before) = self.before.lock() else {
            return;
        };
        let first_seen = seconds(first_seen);
        // The earliest of those that share a name.
        before
            .entry(credential_label(credential).into())
            .and_modify(|known| *known = known.min(first_seen))
            .or_insert(first_seen);
    }

    /// A workload was renamed: moves its counts to the new name.
    pub fn rename(&self, old: &Workload, new: &Workload) {
        let namespace = |workload: &Workload| workload.namespace.clone().unwrap_or_default();
        let (old_namespace, new_namespace) = (namespace(old), namespace(new));
        if (&old_namespace, &old.name) == (&new_namespace, &new.name) {
            return;
        }
        for family in [&self.uses, &self.hops, &self.findings] {
            family.rename(&[
                ("namespace", &old_namespace, &new_namespace),
                ("workload", &old.name, &new.name),
            ]);
        }
    }

    /// Families that may have many series.
    pub fn families(&self) -> [&BoundedFamily; 7] {
        [
            &self.uses,
            &self.hops,
            &self.findings,
            &self.info,
            &self.expiry,
            &self.first_seen,
            &self.last_used,
        ]
    }

    pub fn set_credential(&self, credential: &Credential, time: jiff::Timestamp) {
        let labels = [credential_label(credential), &credential.class];
        let seconds = seconds(time);
        let before = self.before.lock().ok();
        let first_seen = before
            .and_then(|before| before.get(labels[0]).copied())
            .unwrap_or(seconds);
        if !self.first_seen.set_first(&labels, first_seen) {
            self.folded.count("credentials");
            return;
        }
        self.last_used.set(&labels, seconds);
        self.update_credential_info(credential);
        if let Some(expiry) = credential.expires_at {
            self.expiry.set(&labels, expiry.as_second() as f64);
        }
    }

    /// One series per credential, by id: a change replaces the previous series.
    fn update_credential_info(&self, credential: &Credential) {
        let labels = [
            &credential.id.0,
            credential_label(credential),
            &credential.class,
            credential.role.as_str(),
            credential.lifetime.as_str(),
            credential.owner.as_deref().unwrap_or_default(),
        ];
        if !self.info.set_alone(&labels, 1.0) {
            self.folded.count("info");
        }
    }
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A credential's label: its policy name, or its id.
fn credential_label(credential: &Credential) -> &str {
    credential.name.as_deref().unwrap_or(&credential.id.0)
}
