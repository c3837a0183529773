//! Every workload.

#[cfg(test)]
use super::IndexCase;
use super::RowList;
use crate::ledger::reader::{LedgerReader, QueryError, from_json};
use monitor_core::{
    history::TimeRange,
    model::{Gap, Workload},
};
use rusqlite::params;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Workloads {
    pub workloads: Vec<Workload>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    pub fn workloads(&self) -> Result<Workloads, QueryError> {
        Ok(Workloads {
            workloads: self.rows("SELECT json FROM workload ORDER BY key", params![], |row| {
                from_json(row, 0)
            })?,
            gaps: self.gaps(TimeRange::default())?,
        })
    }
}

impl RowList for Workloads {
    type Row = Workload;

    fn rows(&mut self) -> &mut Vec<Workload> {
        &mut self.workloads
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| sample.reader.workloads().map(drop);
