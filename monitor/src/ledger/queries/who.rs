//! Which workloads used a credential, when, and how it is known.

#[cfg(test)]
use super::IndexCase;
use super::RowList;
use crate::{
    ledger::reader::{LedgerReader, QueryError},
    output::{GraphAnswer, TableAnswer, dot::DotGraph, sections},
};
use monitor_core::{
    history::{TimeRange, UseRow},
    model::{Credential, Gap},
};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WhoAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub uses: Vec<UseRow>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    pub fn who(&self, text: &str, range: TimeRange) -> Result<WhoAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhoAnswer {
            query: "who",
            credentials: self.credentials(&ids)?,
            uses: self.edges_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }
}

impl TableAnswer for WhoAnswer {
    fn table(&self) -> String {
        let mut out = String::new();
        sections::credential_headings(&mut out, &self.credentials);
        out.push('\n');
        sections::use_rows(&mut out, &self.uses);
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for WhoAnswer {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        graph.uses(&self.uses, &self.credentials);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

impl RowList for WhoAnswer {
    type Row = UseRow;

    fn rows(&mut self) -> &mut Vec<UseRow> {
        &mut self.uses
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase =
    |sample| sample.reader.who(sample.credential, sample.range).map(drop);
