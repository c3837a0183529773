//! Recorded history, as input for testing and suggesting expectations.

#[cfg(test)]
use super::IndexCase;
use super::QueryFilter;
use crate::ledger::edges::EdgesOf;
use crate::ledger::reader::{LedgerReader, QueryError};
use monitor_core::history::{History, HopRow, TimeRange, UseRow};
use std::collections::HashMap;

impl LedgerReader {
    pub fn history(&self, range: TimeRange) -> Result<History, QueryError> {
        let uses = self.read_edges::<UseRow>(self.edges::<UseRow>(EdgesOf::All, range)?)?;
        let hops = self.read_edges::<HopRow>(self.edges::<HopRow>(EdgesOf::All, range)?)?;
        let mints = self.all_links(range)?;
        let mut credentials = HashMap::new();
        let ids = uses
            .iter()
            .map(|row| &row.credential)
            .chain(hops.iter().map(|row| &row.credential))
            .chain(
                mints
                    .iter()
                    .flat_map(|link| link.presented.iter().chain(&link.minted)),
            );
        for id in ids {
            if !credentials.contains_key(id)
                && let Some(known) = self.credential(id)?
            {
                credentials.insert(id.clone(), known);
            }
        }
        Ok(History {
            range,
            credentials,
            uses,
            hops,
            mints,
            findings: self
                .findings(QueryFilter::default(), None, None, range)?
                .findings,
            gaps: self.gaps(range)?,
        })
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| sample.reader.history(sample.range).map(drop);
