//! Which credentials a workload held, and where it presented them.

#[cfg(test)]
use super::IndexCase;
use crate::{
    ledger::{
        edges::EdgesOf,
        reader::{LedgerReader, QueryError},
    },
    output::{
        GraphAnswer, TableAnswer,
        dot::DotGraph,
        sections,
        table::{STRONG, clean, paint},
        times::relative_time,
    },
};
use monitor_core::{
    history::{HopRow, MintLink, TimeRange, UseRow},
    model::{Credential, CredentialId, Gap, Workload},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _};
use utoipa::ToSchema;

/// One credential within a workload's reach.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReachableCredential {
    pub credential: Credential,
    pub uses: Vec<UseRow>,
    pub hops: Vec<HopRow>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BlastRadius {
    pub query: &'static str,
    pub workloads: Vec<Workload>,
    pub credentials: Vec<ReachableCredential>,
    /// What these workloads obtained from authenticators, and with what.
    pub minted: Vec<MintLink>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    /// Everything that a workload picked up or presented, and where it went.
    pub fn blast_radius(&self, text: &str, range: TimeRange) -> Result<BlastRadius, QueryError> {
        let rows = self.workloads_by(text)?;
        let mut reach: BTreeMap<String, (Vec<UseRow>, Vec<HopRow>)> = BTreeMap::new();
        let (mut uses, mut hops) = (Vec::new(), Vec::new());
        for (row, _) in &rows {
            uses.extend(self.edges::<UseRow>(EdgesOf::Workload(*row), range)?);
            hops.extend(self.edges::<HopRow>(EdgesOf::Workload(*row), range)?);
        }
        for used in self.read_edges::<UseRow>(uses)? {
            let reach = reach.entry(used.credential.0.clone()).or_default();
            reach.0.push(used);
        }
        for hop in self.read_edges::<HopRow>(hops)? {
            let reach = reach.entry(hop.credential.0.clone()).or_default();
            reach.1.push(hop);
        }
        let mut credentials = Vec::new();
        for (id, (uses, hops)) in reach {
            if let Some(credential) = self.credential(&CredentialId(id))? {
                credentials.push(ReachableCredential {
                    credential,
                    uses,
                    hops,
                });
            }
        }
        let mut minted = Vec::new();
        for (row, _) in &rows {
            minted.extend(self.links_by(*row, range)?);
        }
        Ok(BlastRadius {
            minted,
            query: "blast-radius",
            workloads: rows.into_iter().map(|(_, workload)| workload).collect(),
            credentials,
            gaps: self.gaps(range)?,
        })
    }
}

impl TableAnswer for BlastRadius {
    fn table(&self) -> String {
        let mut out = String::new();
        for workload in &self.workloads {
            let _ = writeln!(
                out,
                "{} ({})",
                paint(STRONG, &clean(&workload.label())),
                workload.kind
            );
        }
        let _ = writeln!(
            out,
            "{} credentials within its reach\n",
            self.credentials.len()
        );
        for reach in &self.credentials {
            sections::credential_heading(&mut out, &reach.credential);
            for row in &reach.uses {
                let _ = writeln!(
                    out,
                    "  picked up from {} {} × {}, last {}",
                    row.source,
                    clean(&row.place),
                    row.count,
                    relative_time(row.last_seen)
                );
            }
            for row in sections::strongest_hops(&reach.hops) {
                let verdict = paint(sections::verdict_style(row.verdict), row.verdict.as_str());
                let _ = writeln!(
                    out,
                    "  → {} {verdict}, {} × {}, last {}",
                    clean(&row.destination.label()),
                    row.evidence,
                    row.count,
                    relative_time(row.last_seen)
                );
            }
            out.push('\n');
        }
        for link in &self.minted {
            sections::link_lines(&mut out, link, |id, otherwise| {
                id.as_ref()
                    .map_or_else(|| otherwise.to_owned(), |id| paint(STRONG, &id.0))
            });
        }
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for BlastRadius {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        let all: Vec<Credential> = self
            .credentials
            .iter()
            .map(|reach| reach.credential.clone())
            .collect();
        for reach in &self.credentials {
            graph.uses(&reach.uses, &all);
            graph.hops(&reach.hops, &all);
        }
        graph.links(&self.minted, &all);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    sample
        .reader
        .blast_radius(sample.workload, sample.range)
        .map(drop)
};
