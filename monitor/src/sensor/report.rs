//! The sensor's own account: records sent, lost and not decoded.

use super::SensorNotice;
use crate::reader::ReadFailure;
use monitor_common::record::{COUNTERS, Probe, STAGES, Stage};

/// What the sensor did since it started, or since the last report.
#[derive(Debug, Default)]
pub struct SensorReport {
    /// Since the start.
    pub counters: ProbeCounters,
    /// Number of records that could not be decoded, since the start.
    pub undecoded: u64,
    /// Since the last report, by cgroup.
    pub losses: Vec<RingLoss>,
    /// Since the last report.
    pub notices: Vec<SensorNotice>,
    /// Requests to readers without an answer, since the start.
    pub reader_failures: Vec<(ReadFailure, u64)>,
    /// The file probe has not reported the agent's own opens since then, which was detected since
    /// the last report.
    pub silent_since: Option<jiff::Timestamp>,
}

/// Records of one cgroup that did not fit into a ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLoss {
    pub cgroup: u64,
    pub probe: Probe,
    pub count: u64,
}

/// Counters of the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters(pub [u64; COUNTERS]);

impl ProbeCounters {
    pub fn get(&self, probe: Probe, stage: Stage) -> u64 {
        self.0[probe as usize * STAGES + stage as usize]
    }
}
