//! Recorded history, as input for testing and suggesting expectations.

use super::read::{LedgerReader, QueryError, QueryFilter};
use monitor_core::history::{History, TimeRange};
use std::collections::HashMap;

impl LedgerReader {
    pub fn history(&self, range: TimeRange) -> Result<History, QueryError> {
        let uses = self.uses(self.use_edges("?3", &1, range)?)?;
        let hops = self.hops_from(self.hop_edges("?3", &1, range)?)?;
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
