//! Reading: the answers of the CLI and the API.

use super::{FILE_NAME, LedgerError, explain, from_micros, micros, schema};
use jiff::Timestamp;
use monitor_core::history::{HopRow, MintLink, TimeRange, UseRow};
use monitor_core::{
    catalog::glob::normalise,
    model::{
        Credential, CredentialId, Destination, Evidence, Finding, Gap, Place, Process, Severity,
        Verdict, Workload,
    },
};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Row, ToSql, params, types::FromSqlError,
};
use serde::Serialize;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use thiserror::Error;
use utoipa::ToSchema;

/// Why a query has no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "no credential matches `{0}`: give an id, a unique prefix of one, a policy name, a path, or env:NAME; `keytrail inventory` lists them"
    )]
    NoCredential(String),
    #[error("`{text}` is a prefix of {} ids: {}", .ids.len(), listed(.ids))]
    Ambiguous { text: String, ids: Vec<String> },
    #[error(
        "no workload matches `{0}`: give namespace/name, a unit, a container, or the path of an executable"
    )]
    NoWorkload(String),
}

/// The first few of many ids.
fn listed(ids: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = ids.iter().take(SHOWN).map(String::as_str);
    let more = (ids.len() > SHOWN).then_some("…");
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

pub(super) fn since(range: TimeRange) -> i64 {
    range.since.map_or(0, micros)
}

pub(super) fn until(range: TimeRange) -> i64 {
    range.until.map_or(i64::MAX, micros)
}

/// The hours that a range touches.
fn hours_of(range: TimeRange) -> (i64, i64) {
    (
        since(range).div_euclid(3_600_000_000),
        until(range).div_euclid(3_600_000_000),
    )
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WhoAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub uses: Vec<UseRow>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WhereAnswer {
    pub query: &'static str,
    pub credentials: Vec<Credential>,
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

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

/// An event of a timeline.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TimelineEvent {
    Use {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<UseRow>,
    },
    Hop {
        time: Timestamp,
        #[serde(flatten)]
        row: Box<HopRow>,
    },
    Finding {
        time: Timestamp,
        finding: Box<Finding>,
    },
    Gap {
        time: Timestamp,
        gap: Gap,
    },
}

impl TimelineEvent {
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Use { time, .. }
            | Self::Hop { time, .. }
            | Self::Finding { time, .. }
            | Self::Gap { time, .. } => *time,
        }
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Timeline {
    pub query: &'static str,
    pub events: Vec<TimelineEvent>,
    /// The range contains older events that are not shown: choose a smaller one.
    pub older: bool,
    pub gaps: Vec<Gap>,
}

/// Filter for findings or hops; without any field everything matches.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueryFilter<'a> {
    pub credential: Option<&'a str>,
    pub workload: Option<&'a str>,
}

/// Filter for a timeline; without any field everything matches.
struct TimelineFilter<'a> {
    credentials: Option<&'a [CredentialId]>,
    workloads: Option<Vec<i64>>,
}

/// A credential of the inventory.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct InventoryItem {
    #[serde(flatten)]
    pub credential: Credential,
    pub first_seen: Timestamp,
    pub last_used: Timestamp,
    /// Seconds since it was issued, or else first seen.
    pub age_seconds: i64,
    pub workloads: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Inventory {
    pub credentials: Vec<InventoryItem>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}

impl Findings {
    /// Adds to the first `most` findings the gaps that touch them; the most recent gaps if there
    /// are many.
    pub fn mark_gaps(&mut self, most: usize) {
        const SHOWN: usize = 16;
        for finding in self.findings.iter_mut().take(most) {
            if finding.gaps.is_empty() {
                let near = |gap: &&Gap| gap.touches(finding.first_seen, finding.last_seen);
                let gaps = self.gaps.iter().rev().filter(near).take(SHOWN);
                finding.gaps = gaps.cloned().collect();
                finding.gaps.reverse();
            }
        }
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Workloads {
    pub workloads: Vec<Workload>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Hops {
    pub hops: Vec<HopRow>,
    pub gaps: Vec<Gap>,
}

/// A ledger opened for reading.
#[derive(Debug)]
pub struct LedgerReader {
    connection: Connection,
    path: PathBuf,
    workloads: InternedRows<Workload>,
    destinations: InternedRows<Destination>,
    processes: InternedRows<Process>,
    /// Number of rows to skip in a list, the maximum to read, and the number omitted so far.
    skip: usize,
    most: usize,
    omitted: Cell<usize>,
    /// The statements executed, for tests of their query plans.
    #[cfg(test)]
    statements: RefCell<BTreeSet<String>>,
}

/// Values shared by many records, each read once.
#[derive(Debug)]
struct InternedRows<T> {
    sql: &'static str,
    known: RefCell<HashMap<i64, T>>,
}

impl<T: serde::de::DeserializeOwned + Clone> InternedRows<T> {
    fn new(sql: &'static str) -> Self {
        Self {
            sql,
            known: RefCell::default(),
        }
    }

    fn get(&self, connection: &Connection, id: i64) -> rusqlite::Result<T> {
        if let Some(known) = self.known.borrow().get(&id) {
            return Ok(known.clone());
        }
        let value: T = connection
            .prepare_cached(self.sql)?
            .query_row([id], |row| from_json(row, 0))?;
        self.known.borrow_mut().insert(id, value.clone());
        Ok(value)
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
    id: i64,
    verdict: Verdict,
    evidence: Evidence,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Set if only part of the edge is in the range.
    part: Option<EdgePart>,
}

/// Edges; details kept in [`InternedRows`] are read only once.
const USES: &str =
    "SELECT e.id, e.credential, e.workload, e.process, e.source, e.place, e.count, e.first_seen,
    e.last_seen, e.modified FROM use_edge e";
const HOPS: &str = "SELECT e.id, e.credential, e.workload, e.process, e.destination, e.evidence, e.verdict, e.count,
    e.first_seen, e.last_seen FROM hop_edge e";
/// Edges that may have been seen in a range.
const EDGES_IN_RANGE: &str = "e.last_seen >= ?1 AND e.first_seen <= ?2";

/// Maximum events of a timeline; the newest are kept.
const EVENTS_MAX: usize = 10_000;

impl LedgerReader {
    /// Opens the ledger of a state directory.
    pub fn open(directory: &Path) -> Result<Self, LedgerError> {
        let path = directory.join(FILE_NAME);
        // Without opening it: closing a descriptor of the file would drop every lock that SQLite
        // holds on it in this process.
        match std::fs::metadata(&path) {
            Ok(_) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(LedgerError::Absent(path));
            }
            Err(source) => return Err(LedgerError::Directory { path, source }),
        }
        let failed = |source| explain(&path, source);
        let mut connection =
            Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        if is_unused_wal(&connection, &path) {
            // For a file that nothing writes to and beside which nothing can be created: a copy for
            // forensics.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            connection = url::Url::from_file_path(std::path::absolute(&path).unwrap_or_default())
                .ok()
                .map(|url| Connection::open_with_flags(format!("{url}?immutable=1"), flags))
                .transpose()
                .map_err(failed)?
                .unwrap_or(connection);
        }
        connection
            .busy_timeout(Duration::from_secs(5))
            .map_err(failed)?;
        let version = schema::version(&connection, &path)?;
        if version != schema::CURRENT_VERSION {
            return Err(LedgerError::Older {
                path,
                found: version,
                known: schema::CURRENT_VERSION,
            });
        }
        // One read transaction: what is written meanwhile appears in the next answer.
        connection
            .execute_batch("PRAGMA temp_store = MEMORY; PRAGMA query_only = 1; BEGIN")
            .map_err(failed)?;
        Ok(Self {
            connection,
            path,
            workloads: InternedRows::new("SELECT json FROM workload WHERE id = ?1"),
            destinations: InternedRows::new("SELECT json FROM destination WHERE id = ?1"),
            processes: InternedRows::new("SELECT json FROM process WHERE id = ?1"),
            skip: 0,
            most: usize::MAX,
            omitted: Cell::new(0),
            #[cfg(test)]
            statements: RefCell::default(),
        })
    }

    /// Limits each list of uses or hops to `most` rows, after skipping some.
    pub fn limited(mut self, skip: usize, most: usize) -> Self {
        (self.skip, self.most) = (skip, most);
        self
    }

    /// Number of uses and hops omitted so far.
    pub fn omitted(&self) -> usize {
        self.omitted.get()
    }

    /// SQLite's query plans for the statements executed so far.
    #[cfg(test)]
    pub fn query_plans(&self) -> BTreeMap<String, Vec<String>> {
        let plan = |sql: &String| -> rusqlite::Result<Vec<String>> {
            let mut statement = self
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let unbound = vec![rusqlite::types::Null; statement.parameter_count()];
            statement
                .query_map(rusqlite::params_from_iter(unbound), |row| row.get(3))?
                .collect()
        };
        let statements = self.statements.borrow();
        statements
            .iter()
            .map(|sql| (sql.clone(), plan(sql).expect("explained")))
            .collect()
    }

    /// Writes a copy of the whole ledger to a file while the agent keeps writing.
    pub fn back_up(&self, to: &Path) -> Result<(), LedgerError> {
        let failed = |source| explain(&self.path, source);
        let unusable = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AlreadyExists => LedgerError::Exists(to.to_owned()),
            _ => LedgerError::Directory {
                path: to.to_owned(),
                source,
            },
        };
        // SQLite fills an empty file, which no other user can read meanwhile.
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(unusable)?;
        self.connection
            .execute_batch("COMMIT; PRAGMA query_only = 0")
            .map_err(failed)?;
        self.connection
            .execute("VACUUM INTO ?1", [to.to_string_lossy()])
            .map(drop)
            .map_err(|source| {
                // An incomplete copy is useless.
                drop(std::fs::remove_file(to));
                failed(source)
            })
    }

    /// Resolves a text to credential ids: one by id or prefix, several by name, path or variable.
    pub fn resolve(&self, text: &str) -> Result<Vec<CredentialId>, QueryError> {
        let exact: Option<String> = self
            .connection
            .query_row("SELECT id FROM credential WHERE id = ?1", [text], |row| {
                row.get(0)
            })
            .optional()
            .map_err(|source| explain(&self.path, source))?;
        if let Some(id) = exact {
            return Ok(vec![CredentialId(id)]);
        }
        for sql in [
            "SELECT id FROM credential WHERE name = ?1 ORDER BY id",
            "SELECT DISTINCT credential FROM source WHERE place = ?1 ORDER BY credential",
        ] {
            let place = if text.starts_with('/') {
                normalise(text)
            } else {
                text.to_owned()
            };
            let ids = self.query_strings(sql, &place)?;
            if !ids.is_empty() {
                return Ok(ids.into_iter().map(CredentialId).collect());
            }
        }
        // `kt-` and `loc-` may be omitted.
        let mut ids = BTreeSet::new();
        if !text.is_empty() {
            for prefix in ["", "kt-", "loc-"] {
                let begin = format!("{prefix}{text}");
                let end = format!("{begin}\u{10ffff}");
                let found: Result<Vec<String>, _> = self
                    .connection
                    .prepare("SELECT id FROM credential WHERE id >= ?1 AND id < ?2")
                    .and_then(|mut statement| {
                        statement
                            .query_map([&begin, &end], |row| row.get(0))?
                            .collect()
                    });
                ids.extend(found.map_err(|source| explain(&self.path, source))?);
            }
        }
        match ids.len() {
            0 => Err(QueryError::NoCredential(text.to_owned())),
            1 => Ok(ids.into_iter().map(CredentialId).collect()),
            _ => Err(QueryError::Ambiguous {
                text: text.to_owned(),
                ids: ids.into_iter().collect(),
            }),
        }
    }

    fn query_strings(&self, sql: &str, parameter: &str) -> Result<Vec<String>, LedgerError> {
        self.connection
            .prepare(sql)
            .and_then(|mut statement| {
                statement
                    .query_map([parameter], |row| row.get(0))?
                    .collect()
            })
            .map_err(|source| explain(&self.path, source))
    }

    /// The rows of the workloads that a text matches.
    fn workloads_by(&self, text: &str) -> Result<Vec<(i64, Workload)>, QueryError> {
        let rows: Vec<(i64, Workload)> = self.rows(
            "SELECT id, json FROM workload WHERE key = ?1
             UNION SELECT id, json FROM workload WHERE id IN (SELECT workload FROM program WHERE exe = ?1)",
            params![text],
            |row| Ok((row.get(0)?, from_json(row, 1)?)),
        )?;
        let whole_table = rows.is_empty();
        let all = if whole_table {
            self.rows("SELECT id, json FROM workload", params![], |row| {
                Ok((row.get(0)?, from_json::<Workload>(row, 1)?))
            })?
        } else {
            rows
        };
        // A container or pod by id, a program by name.
        let is = |workload: &Workload| {
            workload.key() == text
                || workload.unit.as_deref() == Some(text)
                || workload.pod.as_deref().is_some_and(|pod| {
                    let of = workload.namespace.as_deref();
                    pod == text || of.is_some_and(|of| text.split_once('/') == Some((of, pod)))
                })
                || workload
                    .container
                    .as_deref()
                    .is_some_and(|id| id == text || (text.len() >= 6 && id.starts_with(text)))
                || (!text.contains('/') && workload.name.rsplit('/').next() == Some(text))
        };
        // An executable's path names a host workload; in a unit or container it is one of its
        // programs, and then the whole unit is meant.
        let by_program = text.starts_with('/');
        let found: Vec<(i64, Workload)> = all
            .into_iter()
            .filter(|(_, workload)| (by_program && !whole_table) || is(workload))
            .collect();
        if found.is_empty() {
            return Err(QueryError::NoWorkload(text.to_owned()));
        }
        Ok(found)
    }

    pub(super) fn rows<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        #[cfg(test)]
        self.statements.borrow_mut().insert(sql.to_owned());
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(parameters, read)?.collect())
            .map_err(|source| explain(&self.path, source))
    }

    pub(super) fn credential(&self, id: &CredentialId) -> Result<Option<Credential>, LedgerError> {
        let mut found = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at, unmarked
             FROM credential WHERE id = ?1",
            [&id.0],
            credential_row,
        )?;
        let Some(mut credential) = found.pop() else {
            return Ok(None);
        };
        credential.sources = self.sources(id)?;
        Ok(Some(credential))
    }

    fn sources(&self, id: &CredentialId) -> Result<Vec<Place>, LedgerError> {
        self.rows(
            "SELECT source, place FROM source WHERE credential = ?1 ORDER BY source, place",
            [&id.0],
            |row| {
                Ok(Place {
                    source: from_word(row, 0)?,
                    place: row.get(1)?,
                })
            },
        )
    }

    pub(super) fn credentials(&self, ids: &[CredentialId]) -> Result<Vec<Credential>, LedgerError> {
        let mut found = Vec::new();
        for id in ids {
            found.extend(self.credential(id)?);
        }
        Ok(found)
    }

    /// Uses of credentials in a range, the most recent first.
    pub(super) fn uses_of(
        &self,
        ids: &[CredentialId],
        range: TimeRange,
    ) -> Result<Vec<UseRow>, LedgerError> {
        let mut edges = Vec::new();
        for id in ids {
            edges.extend(self.use_edges("e.credential = ?3", &id.0, range)?);
        }
        self.uses(edges)
    }

    /// Hops of credentials in a range, the worst first.
    pub(super) fn hops_of(
        &self,
        ids: &[CredentialId],
        range: TimeRange,
    ) -> Result<Vec<HopRow>, LedgerError> {
        let mut edges = Vec::new();
        for id in ids {
            edges.extend(self.hop_edges("e.credential = ?3", &id.0, range)?);
        }
        self.hops_from(edges)
    }

    /// Use edges in a range that satisfy a condition on `?3`.
    pub(super) fn use_edges(
        &self,
        condition: &str,
        parameter: &dyn ToSql,
        range: TimeRange,
    ) -> Result<Vec<EdgeRank>, LedgerError> {
        let edges = self.rows(
            &format!(
                "SELECT e.id, e.first_seen, e.last_seen FROM use_edge e WHERE {EDGES_IN_RANGE} AND {condition}"
            ),
            &[&since(range) as &dyn ToSql, &until(range), parameter][..],
            |row| {
                Ok(EdgeRank {
                    id: row.get(0)?,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    verdict: Verdict::Expected,
                    evidence: Evidence::Held,
                    part: None,
                })
            },
        )?;
        self.narrow_to_range(edges, "use_hour", range)
    }

    /// Hop edges in a range that satisfy a condition on `?3`.
    pub(super) fn hop_edges(
        &self,
        condition: &str,
        parameter: &dyn ToSql,
        range: TimeRange,
    ) -> Result<Vec<EdgeRank>, LedgerError> {
        let edges = self.rows(
            &format!(
                "SELECT e.id, e.first_seen, e.last_seen, e.verdict, e.evidence FROM hop_edge e
                 WHERE {EDGES_IN_RANGE} AND {condition}"
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
        self.narrow_to_range(edges, "hop_hour", range)
    }

    /// Reads the selected use edges, the most recent first.
    pub(super) fn uses(&self, edges: Vec<EdgeRank>) -> Result<Vec<UseRow>, LedgerError> {
        let mut found = Vec::new();
        for edge in self.select_edges(edges) {
            let read = self.rows(&format!("{USES} WHERE e.id = ?1"), [edge.id], |row| {
                self.use_row(row)
            })?;
            for mut row in read {
                if let Some(part) = &edge.part {
                    row.count = part.count;
                    (row.first_seen, row.last_seen) = (part.first_seen, part.last_seen);
                    row.partial = part.partial;
                    row.process = self.process(part.process)?;
                }
                found.push(row);
            }
        }
        Ok(found)
    }

    /// Reads the selected hop edges, the worst first.
    pub(super) fn hops_from(&self, edges: Vec<EdgeRank>) -> Result<Vec<HopRow>, LedgerError> {
        let mut found = Vec::new();
        for edge in self.select_edges(edges) {
            let read = self.rows(&format!("{HOPS} WHERE e.id = ?1"), [edge.id], |row| {
                self.hop_row(row)
            })?;
            for mut row in read {
                row.verdict = edge.verdict;
                if let Some(part) = &edge.part {
                    row.count = part.count;
                    (row.first_seen, row.last_seen) = (part.first_seen, part.last_seen);
                    row.partial = part.partial;
                    row.process = self.process(part.process)?;
                }
                found.push(row);
            }
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
    fn narrow_to_range(
        &self,
        edges: Vec<EdgeRank>,
        hours: &str,
        range: TimeRange,
    ) -> Result<Vec<EdgeRank>, LedgerError> {
        let mut kept = Vec::with_capacity(edges.len());
        for mut edge in edges {
            if !range.contains(edge.first_seen, edge.last_seen) {
                let Some(part) = self.edge_part(hours, edge.id, range)? else {
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
    fn edge_part(
        &self,
        hours: &str,
        edge: i64,
        range: TimeRange,
    ) -> Result<Option<EdgePart>, LedgerError> {
        let (from, to) = hours_of(range);
        let rows = "edge = ?1 AND hour BETWEEN ?2 AND ?3 AND last_seen >= ?4 AND first_seen <= ?5";
        let parameters = params![edge, from, to, since(range), until(range)];
        let verdict = if hours == "hop_hour" {
            "verdict"
        } else {
            "NULL"
        };
        let last = self.rows(
            &format!(
                "SELECT {verdict}, process FROM {hours} WHERE {rows} ORDER BY hour DESC LIMIT 1"
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
                "SELECT sum(count), min(first_seen), max(last_seen) FROM {hours} WHERE {rows}"
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
    pub(super) fn first_process(
        &self,
        hours: &str,
        edge: i64,
        first_seen: Timestamp,
    ) -> Result<Option<Process>, LedgerError> {
        let first = self.rows(
            &format!(
                "SELECT iif(first_process = 0, process, first_process) FROM {hours} WHERE edge = ?1 AND hour = ?2"
            ),
            [edge, super::hour(first_seen)],
            |row| row.get(0),
        )?;
        first.first().map(|id| self.process(*id)).transpose()
    }

    fn process(&self, id: i64) -> Result<Process, LedgerError> {
        self.processes
            .get(&self.connection, id)
            .map_err(|source| explain(&self.path, source))
    }

    fn finding_row(&self, row: &Row<'_>) -> rusqlite::Result<Finding> {
        let mut finding: Finding = from_json(row, 0)?;
        let process: i64 = row.get(1)?;
        if process != 0 {
            finding.process = Some(self.processes.get(&self.connection, process)?);
        }
        Ok(finding)
    }

    fn use_row(&self, row: &Row<'_>) -> rusqlite::Result<UseRow> {
        Ok(UseRow {
            edge: row.get(0)?,
            credential: CredentialId(row.get(1)?),
            workload: self.workloads.get(&self.connection, row.get(2)?)?,
            process: self.processes.get(&self.connection, row.get(3)?)?,
            source: from_word(row, 4)?,
            place: row.get(5)?,
            count: row.get::<_, i64>(6)?.max(0) as u64,
            first_seen: from_micros(row.get(7)?),
            last_seen: from_micros(row.get(8)?),
            partial: false,
            modified: row.get::<_, Option<i64>>(9)?.map(from_micros),
        })
    }

    fn hop_row(&self, row: &Row<'_>) -> rusqlite::Result<HopRow> {
        Ok(HopRow {
            edge: row.get(0)?,
            credential: CredentialId(row.get(1)?),
            workload: self.workloads.get(&self.connection, row.get(2)?)?,
            process: self.processes.get(&self.connection, row.get(3)?)?,
            destination: self.destinations.get(&self.connection, row.get(4)?)?,
            evidence: from_word(row, 5)?,
            verdict: from_word(row, 6)?,
            count: row.get::<_, i64>(7)?.max(0) as u64,
            first_seen: from_micros(row.get(8)?),
            last_seen: from_micros(row.get(9)?),
            partial: false,
        })
    }

    /// Gaps that touch a range.
    pub fn gaps(&self, range: TimeRange) -> Result<Vec<Gap>, LedgerError> {
        self.rows(
            "SELECT kind, probe, detail, since, until, count FROM gap
             WHERE since <= ?2 AND (until IS NULL OR until >= ?1) ORDER BY since",
            params![since(range), until(range)],
            |row| {
                Ok(Gap {
                    kind: row.get(0)?,
                    probe: row.get(1)?,
                    detail: row.get(2)?,
                    since: from_micros(row.get(3)?),
                    until: row.get::<_, Option<i64>>(4)?.map(from_micros),
                    count: row.get::<_, i64>(5)?.max(0) as u64,
                    blind: false,
                })
            },
        )
    }

    pub fn who(&self, text: &str, range: TimeRange) -> Result<WhoAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhoAnswer {
            query: "who",
            credentials: self.credentials(&ids)?,
            uses: self.uses_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }

    pub fn where_to(&self, text: &str, range: TimeRange) -> Result<WhereAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhereAnswer {
            query: "where",
            credentials: self.credentials(&ids)?,
            hops: self.hops_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }

    /// Everything that a workload picked up or presented, and where it went.
    pub fn blast_radius(&self, text: &str, range: TimeRange) -> Result<BlastRadius, QueryError> {
        let rows = self.workloads_by(text)?;
        let mut reach: BTreeMap<String, (Vec<UseRow>, Vec<HopRow>)> = BTreeMap::new();
        let (mut uses, mut hops) = (Vec::new(), Vec::new());
        for (row, _) in &rows {
            uses.extend(self.use_edges("e.workload = ?3", row, range)?);
            hops.extend(self.hop_edges("e.workload = ?3", row, range)?);
        }
        for used in self.uses(uses)? {
            let reach = reach.entry(used.credential.0.clone()).or_default();
            reach.0.push(used);
        }
        for hop in self.hops_from(hops)? {
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

    /// What happened, oldest first, with gaps in their place.
    pub fn timeline(
        &self,
        credential: Option<&str>,
        workload: Option<&str>,
        range: TimeRange,
    ) -> Result<Timeline, QueryError> {
        let ids = credential.map(|text| self.resolve(text)).transpose()?;
        let rows = workload.map(|text| self.workloads_by(text)).transpose()?;
        let keys: Option<BTreeSet<String>> = rows
            .as_ref()
            .map(|rows| rows.iter().map(|(_, workload)| workload.key()).collect());
        let wanted = TimelineFilter {
            credentials: ids.as_deref(),
            workloads: rows
                .as_ref()
                .map(|rows| rows.iter().map(|(row, _)| *row).collect()),
        };
        let mut events: Vec<TimelineEvent> = Vec::new();
        // By hour, as stored.
        let uses = self.hours(
            "SELECT e.id, e.credential, e.workload, iif(h.first_process = 0, h.process, h.first_process), e.source, e.place, h.count, h.first_seen,
             h.last_seen, e.modified",
            ("use_hour", "use_edge"),
            &wanted,
            range,
            |row| self.use_row(row),
        )?;
        events.extend(uses.into_iter().map(|mut row| {
            row.partial = !range.contains(row.first_seen, row.last_seen);
            TimelineEvent::Use {
                time: range.first_inside(row.first_seen, row.last_seen),
                row: Box::new(row),
            }
        }));
        let hops = self.hours(
            "SELECT e.id, e.credential, e.workload, iif(h.first_process = 0, h.process, h.first_process), e.destination, e.evidence, h.verdict, h.count,
             h.first_seen, h.last_seen",
            ("hop_hour", "hop_edge"),
            &wanted,
            range,
            |row| self.hop_row(row),
        )?;
        events.extend(hops.into_iter().map(|mut row| {
            row.partial = !range.contains(row.first_seen, row.last_seen);
            TimelineEvent::Hop {
                time: range.first_inside(row.first_seen, row.last_seen),
                row: Box::new(row),
            }
        }));
        let about = |finding: &Finding| match (&ids, &finding.credential) {
            (Some(ids), Some(credential)) => ids.contains(&credential.id),
            (ids, _) => ids.is_none(),
        };
        events.extend(
            self.findings_in(range)?
                .into_iter()
                .filter(about)
                .filter(|finding| {
                    keys.as_ref()
                        .is_none_or(|keys| keys.contains(&finding.workload.key()))
                })
                .map(|finding| TimelineEvent::Finding {
                    time: finding.first_seen,
                    finding: Box::new(finding),
                }),
        );
        let gaps = self.gaps(range)?;
        events.extend(gaps.iter().cloned().map(|gap| TimelineEvent::Gap {
            time: gap.since,
            gap,
        }));
        events.sort_by_key(TimelineEvent::time);
        let surplus = events.len().saturating_sub(EVENTS_MAX);
        events.drain(..surplus);
        Ok(Timeline {
            query: "timeline",
            events,
            older: surplus > 0,
            gaps,
        })
    }

    /// The newest hours of edges in a range, one more than shown.
    fn hours<T>(
        &self,
        select: &str,
        (hours, edges): (&str, &str),
        wanted: &TimelineFilter<'_>,
        range: TimeRange,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let (from, to) = hours_of(range);
        let mut sql = select.to_owned();
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
        if let Some(ids) = wanted.credentials {
            let ids = ids
                .iter()
                .map(|id| Box::new(id.0.clone()) as Box<dyn ToSql>);
            among("e.credential", ids.collect());
        }
        if let Some(rows) = &wanted.workloads {
            let rows = rows.iter().map(|row| Box::new(*row) as Box<dyn ToSql>);
            among("e.workload", rows.collect());
        }
        // A CROSS JOIN fixes the join order: from the few matching edges to their hours, or from
        // the newest hours to their edges.
        let tables = if conditions.is_empty() {
            format!(" FROM {hours} h CROSS JOIN {edges} e ON e.id = h.edge")
        } else {
            format!(" FROM {edges} e CROSS JOIN {hours} h ON h.edge = e.id")
        };
        sql.push_str(&tables);
        sql.push_str(&format!(
            " WHERE h.hour BETWEEN ?1 AND ?2 AND h.last_seen >= ?3 AND h.first_seen <= ?4{conditions}
             ORDER BY h.hour DESC LIMIT {}",
            EVENTS_MAX + 1
        ));
        self.rows(&sql, rusqlite::params_from_iter(parameters), read)
    }

    fn findings_in(&self, range: TimeRange) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding WHERE last_seen >= ?1 AND first_seen <= ?2 ORDER BY last_seen DESC",
            params![since(range), until(range)],
            |row| self.finding_row(row),
        )
    }

    /// Findings, the worst first, then the newest.
    pub fn findings(
        &self,
        about: QueryFilter<'_>,
        rule: Option<&str>,
        severity: Option<Severity>,
        range: TimeRange,
    ) -> Result<Findings, QueryError> {
        let keys = match about.workload {
            None => None,
            Some(workload) => Some(
                self.workloads_by(workload)?
                    .iter()
                    .map(|(_, workload)| workload.key())
                    .collect::<BTreeSet<String>>(),
            ),
        };
        let mut findings = Vec::new();
        match (about.credential, &keys) {
            (Some(credential), _) => {
                for id in self.resolve(credential)? {
                    findings.extend(self.findings_by("credential", &id.0, range)?);
                }
            }
            (None, Some(keys)) => {
                for key in keys {
                    findings.extend(self.findings_by("workload", key, range)?);
                }
            }
            (None, None) => findings = self.findings_in(range)?,
        }
        findings.retain(|finding| {
            rule.is_none_or(|rule| finding.rule == rule)
                && severity.is_none_or(|severity| finding.severity == severity)
                && keys
                    .as_ref()
                    .is_none_or(|keys| keys.contains(&finding.workload.key()))
        });
        findings.sort_by(|a, b| {
            b.severity
                .cmp(&a.severity)
                .then(b.last_seen.cmp(&a.last_seen))
                .then(a.first_seen.cmp(&b.first_seen))
                .then(a.id.cmp(&b.id))
        });
        Ok(Findings {
            findings,
            gaps: self.gaps(range)?,
        })
    }

    fn findings_by(
        &self,
        column: &str,
        value: &str,
        range: TimeRange,
    ) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            &format!(
                "SELECT json, process FROM finding WHERE {column} = ?3 AND last_seen >= ?1 AND first_seen <= ?2"
            ),
            params![since(range), until(range), value],
            |row| self.finding_row(row),
        )
    }

    /// Findings with their counts, the most recently seen.
    pub fn last_findings(&self, most: usize) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding ORDER BY last_seen DESC LIMIT ?1",
            [most as i64],
            |row| self.finding_row(row),
        )
    }

    /// Credentials with a fingerprint, the most recently used, with their places and first-seen
    /// times.
    pub fn last_used(&self, most: usize) -> Result<Vec<(Credential, Timestamp)>, LedgerError> {
        let ids = self.rows(
            "SELECT id, first_seen FROM credential WHERE id >= 'kt-' AND id < 'kt.' ORDER BY last_used DESC LIMIT ?1",
            [most as i64],
            |row| Ok((CredentialId(row.get(0)?), from_micros(row.get(1)?))),
        )?;
        let mut found = Vec::with_capacity(ids.len());
        for (id, first_seen) in ids {
            found.extend(self.credential(&id)?.map(|known| (known, first_seen)));
        }
        Ok(found)
    }

    pub fn inventory(&self, now: Timestamp) -> Result<Inventory, QueryError> {
        let rows = self.rows(
            "SELECT id, class, role, lifetime, name, owner, label, audience, issued_at, expires_at, unmarked, first_seen, last_used
             FROM credential ORDER BY last_used DESC",
            params![],
            |row| {
                Ok((
                    credential_row(row)?,
                    from_micros(row.get(11)?),
                    from_micros(row.get(12)?),
                ))
            },
        )?;
        let mut credentials = Vec::new();
        for (mut credential, first_seen, last_used) in rows {
            credential.sources = self.sources(&credential.id)?;
            let workloads = self.query_strings(
                "SELECT DISTINCT key FROM workload WHERE id IN (
                    SELECT workload FROM use_edge WHERE credential = ?1
                    UNION SELECT workload FROM hop_edge WHERE credential = ?1) ORDER BY key",
                &credential.id.0,
            )?;
            let since = credential.issued_at.unwrap_or(first_seen);
            credentials.push(InventoryItem {
                age_seconds: now.duration_since(since).as_secs().max(0),
                credential,
                first_seen,
                last_used,
                workloads,
            });
        }
        Ok(Inventory {
            credentials,
            gaps: self.gaps(TimeRange::default())?,
        })
    }

    pub fn workloads(&self) -> Result<Workloads, QueryError> {
        Ok(Workloads {
            workloads: self.rows("SELECT json FROM workload ORDER BY key", params![], |row| {
                from_json(row, 0)
            })?,
            gaps: self.gaps(TimeRange::default())?,
        })
    }

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
                of.extend(self.hop_edges("e.credential = ?3", &id.0, range)?);
            }
            narrow(of);
        }
        if let Some(workload) = about.workload {
            let mut by = Vec::new();
            for (row, _) in self.workloads_by(workload)? {
                by.extend(self.hop_edges("e.workload = ?3", &row, range)?);
            }
            narrow(by);
        }
        if let Some(destination) = destination {
            let mut to = Vec::new();
            for row in self.destinations_by(destination)? {
                to.extend(self.hop_edges("e.destination = ?3", &row, range)?);
            }
            narrow(to);
        }
        let edges = match edges {
            Some(edges) => edges,
            None => self.hop_edges("?3", &1, range)?,
        };
        Ok(Hops {
            hops: self.hops_from(edges)?,
            gaps: self.gaps(range)?,
        })
    }

    /// The rows of the destinations that a text matches.
    fn destinations_by(&self, text: &str) -> Result<Vec<i64>, LedgerError> {
        let rows: Vec<(i64, String, Destination)> = self.rows(
            "SELECT id, label, json FROM destination",
            params![],
            |row| Ok((row.get(0)?, row.get(1)?, from_json(row, 2)?)),
        )?;
        let is = |label: &str, destination: &Destination| {
            let address = destination.address.to_string();
            let host = destination.name.as_ref().unwrap_or(&address);
            let port = destination.port;
            label == text
                || host == text
                || address == text
                || format!("{host}:{port}") == text
                || format!("{address}:{port}") == text
        };
        Ok(rows
            .into_iter()
            .filter(|(_, label, destination)| is(label, destination))
            .map(|(row, ..)| row)
            .collect())
    }
}

/// Whether a file needs a write-ahead log that cannot be created here, and no agent uses it.
fn is_unused_wal(connection: &Connection, path: &Path) -> bool {
    let log = format!("{}-wal", path.display());
    connection
        .query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()))
        .is_err_and(|error| error.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen))
        && !Path::new(&log).exists()
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error.into())
    })
}

fn from_word<T: FromStr<Err = String>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse().map_err(|error: String| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            Box::new(FromSqlError::Other(error.into())),
        )
    })
}

fn credential_row(row: &Row<'_>) -> rusqlite::Result<Credential> {
    Ok(Credential {
        id: CredentialId(row.get(0)?),
        class: row.get(1)?,
        role: from_word(row, 2)?,
        lifetime: from_word(row, 3)?,
        name: row.get(4)?,
        owner: row.get(5)?,
        label: row.get(6)?,
        audience: from_json(row, 7)?,
        issued_to: None,
        unmarked: row.get(10)?,
        issued_at: row.get::<_, Option<i64>>(8)?.map(from_micros),
        expires_at: row.get::<_, Option<i64>>(9)?.map(from_micros),
        sources: Vec::new(),
    })
}
