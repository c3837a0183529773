//! Chains: identity credential → authenticator → access credential → destination.

#[cfg(test)]
use super::IndexCase;
use crate::{
    ledger::{
        from_micros,
        reader::{LedgerReader, QueryError, from_json, hours_of, since, until},
    },
    output::{
        GraphAnswer, TableAnswer,
        dot::DotGraph,
        sections,
        table::{STRONG, clean, paint},
    },
};
use monitor_core::{
    history::{HopRow, MintLink, TimeRange},
    model::{Credential, CredentialId, Destination, Gap, Workload},
};
use rusqlite::{Row, ToSql};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use utoipa::ToSchema;

const LINKS: &str = "SELECT presented, d.json, minted, w.json, max(process), sum(count), min(first_seen), max(last_seen)
    FROM mint_hour JOIN workload w ON w.id = workload JOIN destination d ON d.id = destination";
const GROUPED: &str = "GROUP BY presented, minted, workload, destination";

/// Maximum credentials in a chain.
const CHAIN_MAX: usize = 1000;

/// Everything that a credential was minted from or used to mint, and where all of that went.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Chain {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub links: Vec<MintLink>,
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

impl LedgerReader {
    /// The chain of a credential, upstream and downstream.
    pub fn chain(&self, text: &str, range: TimeRange) -> Result<Chain, QueryError> {
        let ids = self.resolve(text)?;
        let mut links: Vec<MintLink> = Vec::new();
        let mut known: BTreeSet<CredentialId> = ids.iter().cloned().collect();
        // Excludes what else a common ancestor minted: follows links upstream only, then downstream
        // only.
        for upstream in [true, false] {
            let mut open: VecDeque<CredentialId> = ids.iter().cloned().collect();
            let mut seen: BTreeSet<CredentialId> = ids.iter().cloned().collect();
            while let Some(id) = open.pop_front() {
                for link in self.links(&id, upstream, range)? {
                    let next = if upstream {
                        &link.presented
                    } else {
                        &link.minted
                    };
                    if let Some(next) = next
                        && seen.len() < CHAIN_MAX
                        && seen.insert(next.clone())
                    {
                        open.push_back(next.clone());
                    }
                    links.push(link);
                }
            }
            known.extend(seen);
        }
        // A known response supersedes the bare fact that something was presented.
        let answered: Vec<(Option<CredentialId>, Workload, Destination)> = links
            .iter()
            .filter(|link| link.minted.is_some())
            .map(|link| {
                (
                    link.presented.clone(),
                    link.workload.clone(),
                    link.authenticator.clone(),
                )
            })
            .collect();
        links.retain(|link| {
            link.minted.is_some()
                || !answered.iter().any(|(presented, workload, authenticator)| {
                    *presented == link.presented
                        && *workload == link.workload
                        && authenticator.address == link.authenticator.address
                        && authenticator.port == link.authenticator.port
                })
        });
        links.sort_by_key(|link| link.first_seen);
        let known: Vec<CredentialId> = known.into_iter().collect();
        Ok(Chain {
            query: "chain",
            credentials: self.credentials(&known)?,
            links,
            hops: self.edges_of(&known, range)?,
            gaps: self.gaps(range)?,
        })
    }

    /// Every link of a range.
    pub(in crate::ledger) fn all_links(
        &self,
        range: TimeRange,
    ) -> Result<Vec<MintLink>, QueryError> {
        let (from, to) = hours_of(range);
        self.links_where("hour BETWEEN ?3 AND ?4", &[&from, &to], range)
    }

    /// What a workload obtained, or presented to obtain something.
    pub(in crate::ledger) fn links_by(
        &self,
        workload: i64,
        range: TimeRange,
    ) -> Result<Vec<MintLink>, QueryError> {
        self.links_where("workload = ?3", &[&workload], range)
    }

    /// Links that end or begin with a credential.
    fn links(
        &self,
        id: &CredentialId,
        upstream: bool,
        range: TimeRange,
    ) -> Result<Vec<MintLink>, QueryError> {
        let side = if upstream { "minted" } else { "presented" };
        self.links_where(&format!("{side} = ?3"), &[&id.0], range)
    }

    /// Links of a range that satisfy a condition on parameters from `?3` on.
    fn links_where(
        &self,
        condition: &str,
        parameters: &[&dyn ToSql],
        range: TimeRange,
    ) -> Result<Vec<MintLink>, QueryError> {
        let (since, until) = (since(range), until(range));
        let mut all: Vec<&dyn ToSql> = vec![&since, &until];
        all.extend(parameters);
        Ok(self.rows(
            &format!(
                "{LINKS} WHERE {condition} AND last_seen >= ?1 AND first_seen <= ?2 {GROUPED}"
            ),
            all.as_slice(),
            link_from_row,
        )?)
    }
}

fn link_from_row(row: &Row<'_>) -> rusqlite::Result<MintLink> {
    let side = |index| -> rusqlite::Result<Option<CredentialId>> {
        let id: String = row.get(index)?;
        Ok((!id.is_empty()).then_some(CredentialId(id)))
    };
    Ok(MintLink {
        presented: side(0)?,
        authenticator: from_json(row, 1)?,
        minted: side(2)?,
        workload: from_json(row, 3)?,
        process: from_json(row, 4)?,
        count: row.get::<_, i64>(5)?.max(0) as u64,
        first_seen: from_micros(row.get(6)?),
        last_seen: from_micros(row.get(7)?),
    })
}

impl TableAnswer for Chain {
    fn table(&self) -> String {
        let mut out = String::new();
        sections::credential_headings(&mut out, &self.credentials);
        out.push('\n');
        if self.links.is_empty() {
            out.push_str("Nothing was observed to be minted from it or with it.\n");
        }
        let class = |id: &Option<CredentialId>, otherwise: &str| match id {
            Some(id) => {
                let known = self
                    .credentials
                    .iter()
                    .find(|credential| credential.id == *id);
                let class = known.map_or("", |known| known.name.as_deref().unwrap_or(&known.class));
                format!("{} {}", paint(STRONG, &id.0), clean(class))
            }
            None => otherwise.to_owned(),
        };
        for link in &self.links {
            sections::link_lines(&mut out, link, class);
        }
        if !self.hops.is_empty() {
            out.push('\n');
            sections::hop_rows(&mut out, &self.hops);
        }
        sections::gaps(&mut out, &self.gaps);
        out
    }
}

impl GraphAnswer for Chain {
    fn graph(&self) -> String {
        let mut graph = DotGraph::default();
        for credential in &self.credentials {
            graph.credential(&credential.id, &self.credentials);
        }
        graph.links(&self.links, &self.credentials);
        graph.hops(&self.hops, &self.credentials);
        graph.gaps(&self.gaps);
        graph.show()
    }
}

/// Its row in the test that answers come from an index.
#[cfg(test)]
pub(super) const INDEX_CASE: IndexCase = |sample| {
    sample
        .reader
        .chain(sample.credential, sample.range)
        .map(drop)
};
