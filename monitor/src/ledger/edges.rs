//! Uses and hops as stored: an edge for all of its time, and its hours. Both are read the same way.

use super::{
    LedgerError, from_micros, hour,
    reader::{LedgerReader, from_word, hours_of, since, until},
};
use jiff::Timestamp;
use monitor_core::{
    history::{HopRow, TimeRange, UseRow},
    model::{CredentialId, Evidence, Process, Verdict},
};
use rusqlite::{Row, ToSql, params};

/// Edges that may have been seen in a range.
const EDGES_IN_RANGE: &str = "e.last_seen >= ?1 AND e.first_seen <= ?2";

/// Which table an edge is read from.
#[derive(Clone, Copy, Debug)]
enum Table {
    /// Alias `e`: the edge, over all of its time.
    Edges,
    /// Alias `h`: one hour of it, beside its edge.
    Hours,
}

/// A kind of edge.
pub(super) trait Edge: Sized {
    const EDGES: &'static str;
    const HOURS: &'static str;
    /// The verdict and the evidence by which edges are ranked.
    const RANK: &'static str;
    /// The verdict of an hour.
    const HOUR_VERDICT: &'static str;
    /// Columns of its own, after the common ones; `{of}` is the alias of the verdict's table.
    const COLUMNS: &'static str;

    /// Reads a row: the common columns, and from index 7 its own.
    fn read(reader: &LedgerReader, common: CommonColumns, row: &Row<'_>) -> rusqlite::Result<Self>;
}

/// The columns that all kinds of edges have.
#[derive(Debug)]
pub(super) struct CommonColumns {
    edge: i64,
    credential: CredentialId,
    workload: i64,
    process: i64,
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Part of it may lie outside the range.
    partial: bool,
    /// Of the selected part, in place of the stored one.
    verdict: Option<Verdict>,
}

impl CommonColumns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            edge: row.get(0)?,
            credential: CredentialId(row.get(1)?),
            workload: row.get(2)?,
            process: row.get(3)?,
            count: row.get::<_, i64>(4)?.max(0) as u64,
            first_seen: from_micros(row.get(5)?),
            last_seen: from_micros(row.get(6)?),
            partial: false,
            verdict: None,
        })
    }

    /// Replaces what was seen by the selected part of it.
    fn select(self, edge: &EdgeRank) -> Self {
        let verdict = Some(edge.verdict);
        match &edge.part {
            None => Self { verdict, ..self },
            Some(part) => Self {
                verdict,
                process: part.process,
                count: part.count,
                first_seen: part.first_seen,
                last_seen: part.last_seen,
                partial: part.partial,
                ..self
            },
        }
    }
}

/// The list of columns that [`Edge::read`] reads.
fn columns<E: Edge>(table: Table) -> String {
    let (of, process) = match table {
        Table::Edges => ("e", "e.process"),
        // The process of a row is that of its first time.
        Table::Hours => ("h", "iif(h.first_process = 0, h.process, h.first_process)"),
    };
    format!(
        "e.id, e.credential, e.workload, {process}, {of}.count, {of}.first_seen, {of}.last_seen, {}",
        E::COLUMNS.replace("{of}", of)
    )
}

impl Edge for UseRow {
    const EDGES: &'static str = "use_edge";
    const HOURS: &'static str = "use_hour";
    const RANK: &'static str = "'expected', 'held'";
    const HOUR_VERDICT: &'static str = "NULL";
    const COLUMNS: &'static str = "e.source, e.place, e.modified";

    fn read(reader: &LedgerReader, common: CommonColumns, row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            edge: common.edge,
            credential: common.credential,
            workload: reader.workload(common.workload)?,
            process: reader.process(common.process)?,
            source: from_word(row, 7)?,
            place: row.get(8)?,
            count: common.count,
            first_seen: common.first_seen,
            last_seen: common.last_seen,
            partial: common.partial,
            modified: row.get::<_, Option<i64>>(9)?.map(from_micros),
        })
    }
}

impl Edge for HopRow {
    const EDGES: &'static str = "hop_edge";
    const HOURS: &'static str = "hop_hour";
    const RANK: &'static str = "e.verdict, e.evidence";
    const HOUR_VERDICT: &'static str = "verdict";
    const COLUMNS: &'static str = "e.destination, e.evidence, {of}.verdict";

    fn read(reader: &LedgerReader, common: CommonColumns, row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            edge: common.edge,
            credential: common.credential,
            workload: reader.workload(common.workload)?,
            process: reader.process(common.process)?,
            destination: reader.destination(row.get(7)?)?,
            evidence: from_word(row, 8)?,
            verdict: common.verdict.map_or_else(|| from_word(row, 9), Ok)?,
            count: common.count,
            first_seen: common.first_seen,
            last_seen: common.last_seen,
            partial: common.partial,
        })
    }
}

/// What the hours of an edge say about a range.
#[derive(Debug)]
struct EdgePart {
    verdict: Option<Verdict>,
    process: i64,
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Part of it may lie outside the range.
    partial: bool,
}

/// The part of an edge needed for ranking; only the selected ones are read completely.
#[derive(Debug)]
pub(super) struct EdgeRank {
    pub id: i64,
    verdict: Verdict,
    evidence: Evidence,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Set if only part of the edge is in the range.
    part: Option<EdgePart>,
}

/// Which edges a question is about: a column and its value, or all.
#[derive(Clone, Copy)]
pub(super) enum EdgesOf<'a> {
    All,
    Credential(&'a CredentialId),
    Workload(i64),
    Destination(i64),
}

impl LedgerReader {
    /// Edges of a credential, workload or destination in a range.
    pub(super) fn edges<E: Edge>(
        &self,
        of: EdgesOf<'_>,
        range: TimeRange,
    ) -> Result<Vec<EdgeRank>, LedgerError> {
        let (condition, parameter): (_, &dyn ToSql) = match &of {
            EdgesOf::All => ("?3", &1),
            EdgesOf::Credential(id) => ("e.credential = ?3", &id.0),
            EdgesOf::Workload(row) => ("e.workload = ?3", row),
            EdgesOf::Destination(row) => ("e.destination = ?3", row),
        };
        let edges = self.rows(
            &format!(
                "SELECT e.id, e.first_seen, e.last_seen, {} FROM {} e WHERE {EDGES_IN_RANGE} AND {condition}",
                E::RANK,
                E::EDGES
            ),
            &[&since(range) as &dyn ToSql, &until(range), parameter][..],
            |row| {
                Ok(EdgeRank {
                    id: row.get(0)?,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    verdict: from_word(row, 3)?,
                    evidence: from_word(row, 4)?,
                    part: None,
                })
            },
        )?;
        self.narrow_to_range::<E>(edges, range)
    }

    /// Edges of credentials, read completely: uses the most recent first, hops the worst first.
    pub(super) fn edges_of<E: Edge>(
        &self,
        ids: &[CredentialId],
        range: TimeRange,
    ) -> Result<Vec<E>, LedgerError> {
        let mut edges = Vec::new();
        for id in ids {
            edges.extend(self.edges::<E>(EdgesOf::Credential(id), range)?);
        }
        self.read_edges(edges)
    }

    /// Reads the selected edges, in the order of [`Self::select_edges`].
    pub(super) fn read_edges<E: Edge>(&self, edges: Vec<EdgeRank>) -> Result<Vec<E>, LedgerError> {
        let sql = format!(
            "SELECT {} FROM {} e WHERE e.id = ?1",
            columns::<E>(Table::Edges),
            E::EDGES
        );
        let mut found = Vec::new();
        for edge in self.select_edges(edges) {
            found.extend(self.rows(&sql, [edge.id], |row| {
                E::read(self, CommonColumns::read(row)?.select(&edge), row)
            })?);
        }
        Ok(found)
    }

    /// Orders edges (unexpected before unproven before expected, strong evidence first, then the
    /// newest), selects as many as requested, and counts the others.
    fn select_edges(&self, mut edges: Vec<EdgeRank>) -> Vec<EdgeRank> {
        edges.sort_by_key(|edge| std::cmp::Reverse((edge.verdict, edge.evidence, edge.last_seen)));
        let all = edges.len();
        edges.drain(..self.skip.min(all));
        edges.truncate(self.most);
        self.omitted.set(self.omitted.get() + all - edges.len());
        edges
    }

    /// Reduces each edge to its part in a range, and drops those not seen in it.
    fn narrow_to_range<E: Edge>(
        &self,
        edges: Vec<EdgeRank>,
        range: TimeRange,
    ) -> Result<Vec<EdgeRank>, LedgerError> {
        let mut kept = Vec::with_capacity(edges.len());
        for mut edge in edges {
            if !range.contains(edge.first_seen, edge.last_seen) {
                let Some(part) = self.edge_part::<E>(edge.id, range)? else {
                    continue;
                };
                edge.last_seen = part.last_seen;
                edge.verdict = part.verdict.unwrap_or(edge.verdict);
                edge.part = Some(part);
            }
            kept.push(edge);
        }
        Ok(kept)
    }

    /// What the hours of an edge say about a range; `None` if it was not seen in it.
    fn edge_part<E: Edge>(
        &self,
        edge: i64,
        range: TimeRange,
    ) -> Result<Option<EdgePart>, LedgerError> {
        let (from, to) = hours_of(range);
        let rows = "edge = ?1 AND hour BETWEEN ?2 AND ?3 AND last_seen >= ?4 AND first_seen <= ?5";
        let parameters = params![edge, from, to, since(range), until(range)];
        let last = self.rows(
            &format!(
                "SELECT {}, process FROM {} WHERE {rows} ORDER BY hour DESC LIMIT 1",
                E::HOUR_VERDICT,
                E::HOURS
            ),
            parameters,
            |row| {
                let verdict = row.get::<_, Option<String>>(0)?;
                Ok((verdict.and_then(|text| text.parse().ok()), row.get(1)?))
            },
        )?;
        let Some((verdict, process)) = last.into_iter().next() else {
            return Ok(None);
        };
        let sums = self.rows(
            &format!(
                "SELECT sum(count), min(first_seen), max(last_seen) FROM {} WHERE {rows}",
                E::HOURS
            ),
            parameters,
            |row| {
                Ok(EdgePart {
                    verdict,
                    process,
                    count: row.get::<_, i64>(0)?.max(0) as u64,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    partial: false,
                })
            },
        )?;
        Ok(sums.into_iter().next().map(|part| EdgePart {
            partial: !range.contains(part.first_seen, part.last_seen),
            ..part
        }))
    }

    /// The first process of an edge, if its first hour is still stored.
    pub(super) fn first_process<E: Edge>(
        &self,
        edge: i64,
        first_seen: Timestamp,
    ) -> Result<Option<Process>, LedgerError> {
        let first = self.rows(
            &format!(
                "SELECT iif(first_process = 0, process, first_process) FROM {} WHERE edge = ?1 AND hour = ?2",
                E::HOURS
            ),
            [edge, hour(first_seen)],
            |row| self.process(row.get(0)?),
        )?;
        Ok(first.into_iter().next())
    }

    /// The newest hours of edges in a range, at most `most`: of some credentials, by some workloads.
    pub(super) fn newest_hours<E: Edge>(
        &self,
        credentials: Option<&[CredentialId]>,
        workloads: Option<&[i64]>,
        range: TimeRange,
        most: usize,
    ) -> Result<Vec<E>, LedgerError> {
        let (from, to) = hours_of(range);
        let mut parameters: Vec<Box<dyn ToSql>> = vec![
            Box::new(from),
            Box::new(to),
            Box::new(since(range)),
            Box::new(until(range)),
        ];
        let mut conditions = String::new();
        let mut among = |column: &str, values: Vec<Box<dyn ToSql>>| {
            let marks: Vec<String> = (1..=values.len())
                .map(|number| format!("?{}", parameters.len() + number))
                .collect();
            conditions.push_str(&format!(" AND {column} IN ({})", marks.join(", ")));
            parameters.extend(values);
        };
        if let Some(ids) = credentials {
            let ids = ids
                .iter()
                .map(|id| Box::new(id.0.clone()) as Box<dyn ToSql>);
            among("e.credential", ids.collect());
        }
        if let Some(rows) = workloads {
            let rows = rows.iter().map(|row| Box::new(*row) as Box<dyn ToSql>);
            among("e.workload", rows.collect());
        }
        let (hours, edges) = (E::HOURS, E::EDGES);
        // A CROSS JOIN fixes the join order: from the few matching edges to their hours, or from
        // the newest hours to their edges.
        let tables = if conditions.is_empty() {
            format!("{hours} h CROSS JOIN {edges} e ON e.id = h.edge")
        } else {
            format!("{edges} e CROSS JOIN {hours} h ON h.edge = e.id")
        };
        let sql = format!(
            "SELECT {} FROM {tables}
             WHERE h.hour BETWEEN ?1 AND ?2 AND h.last_seen >= ?3 AND h.first_seen <= ?4{conditions}
             ORDER BY h.hour DESC LIMIT {most}",
            columns::<E>(Table::Hours)
        );
        self.rows(&sql, rusqlite::params_from_iter(parameters), |row| {
            let common = CommonColumns::read(row)?;
            let partial = !range.contains(common.first_seen, common.last_seen);
            E::read(self, CommonColumns { partial, ..common }, row)
        })
    }
}
