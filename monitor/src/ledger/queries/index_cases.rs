//! What the test asks that checks whether answers come from an index.

use super::QueryFilter;
use crate::ledger::reader::{LedgerReader, QueryError};
use jiff::Timestamp;
use monitor_core::history::TimeRange;

/// A small ledger, and what to ask about it.
pub struct IndexSample<'a> {
    pub reader: &'a LedgerReader,
    pub credential: &'a str,
    pub workload: &'a str,
    pub destination: &'a str,
    pub range: TimeRange,
    pub now: Timestamp,
}

impl<'a> IndexSample<'a> {
    /// No filter, and each one alone.
    pub fn filters(&self) -> [QueryFilter<'a>; 3] {
        [
            QueryFilter::default(),
            QueryFilter {
                credential: Some(self.credential),
                ..QueryFilter::default()
            },
            QueryFilter {
                workload: Some(self.workload),
                ..QueryFilter::default()
            },
        ]
    }
}

/// Asks a question in every way that selects other rows.
pub type IndexCase = fn(&IndexSample<'_>) -> Result<(), QueryError>;

/// Every question. Their plans are checked by a test of the ledger.
pub const INDEX_CASES: [IndexCase; 11] = [
    super::blast_radius::INDEX_CASE,
    super::chain::INDEX_CASE,
    super::findings::INDEX_CASE,
    super::first_use::INDEX_CASE,
    super::history::INDEX_CASE,
    super::hops::INDEX_CASE,
    super::inventory::INDEX_CASE,
    super::timeline::INDEX_CASE,
    super::where_to::INDEX_CASE,
    super::who::INDEX_CASE,
    super::workloads::INDEX_CASE,
];
