//! What was not observed.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use utoipa::ToSchema;

/// The kind of a gap that exists everywhere in this release.
pub const NOT_COVERED: &str = "not-covered";

/// An interval or a kind of traffic that was not observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// `agent-down`, `lost-events`, `started-before-agent`, `probe-missing`, …
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    pub detail: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Number of events known to be missing; 0 if unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u64,
    /// The agent is or was blind because of it: also a finding.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blind: bool,
}

/// A gap that ended at most this long before is attached to a finding.
const GAP_PROXIMITY: SignedDuration = SignedDuration::from_secs(60);

impl Gap {
    /// Whether the gap may affect what was observed between two times.
    pub fn touches(&self, from: Timestamp, to: Timestamp) -> bool {
        self.kind != NOT_COVERED
            && self.since <= to
            && self
                .until
                .is_none_or(|until| from.duration_since(until) <= GAP_PROXIMITY)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
