//! Recorded history, as input for testing and suggesting expectations.

use super::{
    chain::MintLink,
    read::{HopRow, LedgerReader, QueryError, QueryFilter, TimeRange, UseRow},
};
use crate::model::{Credential, CredentialId, Finding, Gap};
use std::collections::HashMap;

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
