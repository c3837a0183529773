//! The sensor's own account: records sent, lost and not decoded.

use super::{SensorNotice, cost::ShedNotice, map_growth::EvictedEntries, observation::RecordOwner};
use crate::reader::ReadFailure;
use jiff::Timestamp;
use monitor_common::{
    map::{LIMITED_MAPS, LimitedMap},
    record::{COUNTERS, Probe, STAGES, Stage},
};

/// What the sensor did since it started, or since the last report.
#[derive(Debug, Default)]
pub struct SensorReport {
    /// Since the start.
    pub counters: ProbeCounters,
    /// Number of records that could not be decoded, since the start.
    pub undecoded: u64,
    /// Since the last report, by owner and probe.
    pub losses: Vec<RingLoss>,
    /// Since the last report.
    pub notices: Vec<SensorNotice>,
    /// Requests to readers without an answer, since the start.
    pub reader_failures: Vec<(ReadFailure, u64)>,
    /// Since the start.
    pub full_maps: FullMaps,
    /// What the kernel evicted from maps of the probes, since the start.
    pub evicted: EvictedEntries,
    /// Known secrets that are no longer recognised in names, since the start.
    pub forgotten_secrets: u64,
    /// Probes that fell silent since the last report, or are heard again.
    pub silences: Vec<ProbeSilence>,
    /// What the probes cost when it was last measured, as a share of the time of all processors.
    pub cost: Option<f64>,
    /// What was turned off since the last report to spare the node, or is on again.
    pub shed: Vec<ShedNotice>,
}

/// Entries that full maps refused or evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FullMaps([u64; LIMITED_MAPS]);

impl FullMaps {
    pub fn add(&mut self, map: LimitedMap, count: u64) {
        self.0[map as usize] += count;
    }

    pub fn get(&self, map: LimitedMap) -> u64 {
        self.0[map as usize]
    }

    /// Both together.
    pub fn plus(mut self, other: Self) -> Self {
        for map in LimitedMap::ALL {
            self.add(map, other.get(map));
        }
        self
    }
}

/// Why a probe is not known to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceReason {
    Silent,
    /// The canary could not do what it must report.
    Untested,
}

/// A probe that does not report what the canary does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSilence {
    pub probe: Probe,
    /// Its hooks, as `doctor` and the metrics name them.
    pub mechanisms: Vec<String>,
    pub reason: SilenceReason,
    /// When it was last heard.
    pub since: Timestamp,
    /// When it was heard again.
    pub until: Option<Timestamp>,
    /// Whether it was ever heard by this agent.
    pub was_heard: bool,
}

/// Records of one owner that found no room in a ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLoss {
    pub owner: RecordOwner,
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
