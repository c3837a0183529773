//! Builds findings.

use super::rule_meta::RuleMeta;
use crate::model::{
    Credential, Destination, Evidence, Finding, Gap, Hop, Process, Severity, Use, Workload,
};
use jiff::Timestamp;
use monitor_common::fingerprint::{FingerprintKey, fingerprint};

/// A finding under construction. Its id is the hash of the rule, the credential (unless
/// [`any_credential`](Self::any_credential)) and the deduplication key, so that repetitions are the
/// same finding.
#[derive(Debug)]
pub struct FindingBuilder {
    finding: Finding,
    dedup_key: String,
    any_credential: bool,
}

impl FindingBuilder {
    pub fn new(rule: &RuleMeta, severity: Severity, time: Timestamp, workload: &Workload) -> Self {
        Self {
            finding: Finding {
                id: String::new(),
                time,
                rule: rule.name.to_owned(),
                severity,
                summary: String::new(),
                evidence: None,
                workload: workload.clone(),
                process: None,
                credential: None,
                destination: None,
                on_behalf_of: None,
                expected: Vec::new(),
                also: Vec::new(),
                references: rule.references.iter().map(ToString::to_string).collect(),
                count: 1,
                first_seen: time,
                last_seen: time,
                gaps: Vec::new(),
            },
            dedup_key: String::new(),
            any_credential: false,
        }
    }

    /// A finding about a use.
    pub fn about_use(rule: &RuleMeta, severity: Severity, used: &Use) -> Self {
        Self::new(rule, severity, used.time, &used.workload)
            .process(&used.process)
            .credential(&used.credential)
    }

    /// A finding about a hop: repeated for each workload and destination, counted unless the same
    /// use was reported before with other evidence.
    pub fn about_hop(rule: &RuleMeta, severity: Severity, hop: &Hop) -> Self {
        let mut builder = Self::new(rule, severity, hop.time, &hop.workload);
        builder.finding.on_behalf_of.clone_from(&hop.on_behalf_of);
        builder
            .process(&hop.process)
            .credential(&hop.credential)
            .evidence(hop.evidence)
            .destination(&hop.destination)
            .dedup_key(format!(
                "{} {}",
                hop.workload.key(),
                hop.destination.label()
            ))
            .count(if hop.again { 0 } else { hop.count })
    }

    pub fn process(mut self, process: &Process) -> Self {
        self.finding.process = Some(process.clone());
        self
    }

    pub fn credential(mut self, credential: &Credential) -> Self {
        self.finding.credential = Some(credential.clone());
        self
    }

    pub fn evidence(mut self, evidence: Evidence) -> Self {
        self.finding.evidence = Some(evidence);
        self
    }

    pub fn destination(mut self, destination: &Destination) -> Self {
        self.finding.destination = Some(destination.clone());
        self
    }

    pub fn summary(mut self, summary: String) -> Self {
        self.finding.summary = summary;
        self
    }

    pub fn expected(mut self, expected: Vec<String>) -> Self {
        self.finding.expected = expected;
        self
    }

    pub fn gap(mut self, gap: &Gap) -> Self {
        self.finding.gaps.push(gap.clone());
        self
    }

    pub fn count(mut self, count: u64) -> Self {
        self.finding.count = count;
        self
    }

    /// Identifies repetitions of the finding, together with rule and credential.
    pub fn dedup_key(mut self, key: String) -> Self {
        self.dedup_key = key;
        self
    }

    /// It is one finding, regardless of the credential.
    pub fn any_credential(mut self) -> Self {
        self.any_credential = true;
        self
    }

    pub fn build(mut self) -> Finding {
        let credential = self
            .finding
            .credential
            .as_ref()
            .filter(|_| !self.any_credential)
            .map_or("", |credential| &credential.id.0);
        let key = format!("{}\n{credential}\n{}", self.finding.rule, self.dedup_key);
        let id = fingerprint(FingerprintKey { k0: 0, k1: 0 }, key.as_bytes());
        self.finding.id = format!("kf-{id:016x}");
        self.finding
    }
}
