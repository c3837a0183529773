//! Findings.

use crate::model::{Credential, Destination, Evidence, Gap, Process, Severity, Workload};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use utoipa::ToSchema;

/// A use or hop that violates an expectation or a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    pub id: String,
    pub time: Timestamp,
    pub rule: String,
    pub severity: Severity,
    pub summary: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    pub workload: Workload,
    /// Absent if it concerns no single process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Absent if it concerns no single credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// Whose credential a broker presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Box<OnBehalfOf>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
    /// Other rules that the same event violates, less severely.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
}

/// Whose credential a broker presents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OnBehalfOf {
    pub workload: Workload,
}

impl Finding {
    /// One finding about one event: the most severe, or the first of those, carries the names of the
    /// others. A digest is about more than the event, and stays apart.
    pub fn merged(findings: Vec<Self>) -> Vec<Self> {
        let (mut merged, findings): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(Self::is_digest);
        let Some(worst) = findings.iter().map(|finding| finding.severity).max() else {
            return merged;
        };
        let (mut strongest, mut also) = (None, Vec::new());
        for finding in findings {
            if strongest.is_none() && finding.severity == worst {
                strongest = Some(finding);
            } else if !also.contains(&finding.rule) {
                also.push(finding.rule);
            }
        }
        if let Some(mut strongest) = strongest {
            also.retain(|rule| *rule != strongest.rule);
            strongest.also = also;
            merged.push(strongest);
        }
        merged
    }

    /// Whether it is about no single credential and no single process.
    fn is_digest(&self) -> bool {
        self.credential.is_none() && self.process.is_none()
    }

    /// Orders findings with the same id from mild to severe.
    pub fn rank(&self) -> (Severity, Option<Evidence>) {
        (self.severity, self.evidence)
    }
}
