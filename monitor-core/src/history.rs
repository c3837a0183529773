//! Recorded history by edge: what the ledger stores of uses, hops and mints, and what expectations
//! are tested on.

use crate::model::{
    Credential, CredentialId, Destination, Evidence, Finding, Gap, Hop, Process, Source, Verdict,
    Workload,
};
use jiff::Timestamp;
use serde::Serialize;
use std::{collections::HashMap, fmt::Debug, sync::Arc};
use utoipa::ToSchema;

/// The time range of an answer; open-ended where not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeRange {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl TimeRange {
    /// Whether it ends before it begins.
    pub fn is_reversed(self) -> bool {
        self.since
            .zip(self.until)
            .is_some_and(|(since, until)| since > until)
    }

    /// The first of two times, or the last if only that is inside.
    pub fn first_inside(self, first: Timestamp, last: Timestamp) -> Timestamp {
        if !self.contains(first, first) && self.contains(last, last) {
            last
        } else {
            first
        }
    }

    /// Whether everything between two times is inside.
    pub fn contains(self, first: Timestamp, last: Timestamp) -> bool {
        self.since.is_none_or(|since| since <= first)
            && self.until.is_none_or(|until| last <= until)
    }
}

/// One use of a credential by a workload.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UseRow {
    /// Row of its edge.
    #[serde(skip)]
    pub edge: i64,
    pub credential: CredentialId,
    pub workload: Workload,
    pub process: Process,
    pub source: Source,
    pub place: String,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    /// Only part of this is in the range: hours at its boundary are known only as a whole, so the
    /// count is an upper bound, and a time may lie outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// When the file was last written.
    #[serde(skip)]
    pub modified: Option<Timestamp>,
}

/// One hop of a credential.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HopRow {
    /// Row of its edge.
    #[serde(skip)]
    pub edge: i64,
    pub credential: CredentialId,
    pub workload: Workload,
    pub destination: Destination,
    pub evidence: Evidence,
    pub verdict: Verdict,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    /// Only part of this is in the range: hours at its boundary are known only as a whole, so the
    /// count is an upper bound, and a time may lie outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    pub process: Process,
}

impl HopRow {
    /// The last of these hops, as far as it was recorded.
    pub fn to_hop(&self, credential: Arc<Credential>) -> Hop {
        Hop {
            time: self.last_seen,
            workload: self.workload.clone(),
            process: self.process.clone(),
            credential,
            destination: self.destination.clone(),
            others: Vec::new(),
            evidence: self.evidence,
            clear: false,
            again: false,
            held_with: Vec::new(),
            picked_up: false,
            on_behalf_of: None,
            for_proxy: false,
            count: 1,
        }
    }
}

/// A link: what was presented to an authenticator, and what it issued.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MintLink {
    /// Absent if nothing was presented, or nothing was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presented: Option<CredentialId>,
    pub authenticator: Destination,
    /// Absent if the response could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minted: Option<CredentialId>,
    pub workload: Workload,
    pub process: Process,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
}

/// Everything that was recorded in a range, by edge.
#[derive(Debug)]
pub struct History {
    pub range: TimeRange,
    pub credentials: HashMap<CredentialId, Credential>,
    pub uses: Vec<UseRow>,
    pub hops: Vec<HopRow>,
    pub mints: Vec<MintLink>,
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}
