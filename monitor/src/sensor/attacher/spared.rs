//! Busy processes, as they are reported.

use jiff::Timestamp;
use std::collections::BTreeMap;

/// A busy process.
#[derive(Debug)]
pub(super) struct SparedProcess {
    pub program: String,
    pub since: Timestamp,
}

/// Busy processes by pid.
pub(super) type SparedProcesses = BTreeMap<u32, SparedProcess>;
