//! Hops, optionally of a credential, by a workload, or to a destination.

#[cfg(test)]
use super::IndexCase;
use super::{QueryFilter, RowList};
use crate::ledger::{
    edges::{EdgeRank, EdgesOf},
    reader::{LedgerReader, QueryError},
};
use monitor_core::{
    history::{HopRow, TimeRange},
    model::Gap,
};
use serde::Serialize;
use std::collections::BTreeSet;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Hops {
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    /// Hops, optionally of a credential, by a workload, or to a destination: by its label,
    /// `host:port`, host, or address.
    pub fn hops(
        &self,
        about: QueryFilter<'_>,
        destination: Option<&str>,
        range: TimeRange,
    ) -> Result<Hops, QueryError> {
        let mut edges: Option<Vec<EdgeRank>> = None;
        let mut narrow = |these: Vec<EdgeRank>| match &mut edges {
            None => edges = Some(these),
            Some(edges) => {
                let ids: BTreeSet<i64> = these.iter().map(|edge| edge.id).collect();
                edges.retain(|edge| ids.contains(&edge.id));
            }
        };
        if let Some(credential) = about.credential {
            let mut of = Vec::new();
            for id in self.resolve(credential)? {
                of.extend(self.edges::<HopRow>(EdgesOf::Credential(&id), range)?);
            }
            narrow(of);
        }
        if let Some(workload) = about.workload {
            let mut by = Vec::new();
            for (row, _) in self.workloads_by(workload)? {
                by.extend(self.edges::<HopRow>(EdgesOf::Workload(row), range)?);
            }
            narrow(by);
        }
        if let Some(destination) = destination {
            let mut to = Vec::new();
            for row in self.destinations_by(destination)? {
                to.extend(self.edges::<HopRow>(EdgesOf::Destination(row), range)?);
            }
            narrow(to);
        }
        let edges = match edges {
            Some(edges) => edges,
            None => self.edges::<HopRow>(EdgesOf::All, range)?,
        };
        Ok(Hops {
            hops: self.read_edges(edges)?,
            gaps: self.gaps(range)?,
        })
    }
}

impl RowList for Hops {
    type Row = HopRow;

    fn rows(&mut self) -> &mut Vec<HopRow> {
        &mut self.hops
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    for filter in sample.filters() {
        for destination in [None, Some(sample.destination)] {
            sample.reader.hops(filter, destination, sample.range)?;
        }
    }
    Ok(())
};
