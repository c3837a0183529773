//! Where a credential went.

#[cfg(test)]
use super::IndexCase;
use super::RowList;
use crate::{
    ledger::reader::{LedgerReader, QueryError},
    output::{GraphAnswer, TableAnswer, dot::DotGraph, sections},
};
use monitor_core::{
    history::{HopRow, TimeRange},
    model::{Credential, Gap},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WhereAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    pub fn where_to(&self, text: &str, range: TimeRange) -> Result<WhereAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhereAnswer {
            query: "where",
            credentials: self.credentials(&ids)?,
            hops: self.edges_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }
}

impl TableAnswer for WhereAnswer {
    fn table(&self) -> String {
        let mut out = String::new();
        sections::credential_headings(&mut out, &self.credentials);
        out.push('\n');
        if self.hops.is_empty() {
            out.push_str("No hops observed.\n");
        } else {
            sections::hop_rows(&mut out, &self.hops);
        }
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for WhereAnswer {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        graph.hops(&self.hops, &self.credentials);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

impl RowList for WhereAnswer {
    type Row = HopRow;

    fn rows(&mut self) -> &mut Vec<HopRow> {
        &mut self.hops
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    sample
        .reader
        .where_to(sample.credential, sample.range)
        .map(drop)
};
