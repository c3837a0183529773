//! Findings about the agent itself: what it lost, and who read it.

use super::{BLIND, FindingDraft, Policy, finding};
use crate::model::{Finding, Gap, Severity, Workload};

impl Policy {
    /// A probe that was lost, detached or overrun, or an agent that was tampered with.
    pub fn judge_gap(&self, gap: &Gap) -> Option<Finding> {
        if !gap.blind {
            return None;
        }
        let probe = gap.probe.as_deref().unwrap_or_default();
        let agent = Workload::host("keytrail");
        let mut found = finding(
            gap.until.unwrap_or(gap.since),
            &agent,
            None,
            None,
            FindingDraft {
                rule: BLIND,
                severity: Severity::High,
                summary: gap.detail.clone(),
                evidence: None,
                destination: None,
                expected: Vec::new(),
                dedup_key: format!("{} {probe} {}", gap.kind, gap.detail),
                any_credential: false,
            },
        );
        found.gaps.push(gap.clone());
        Some(found)
    }
}
