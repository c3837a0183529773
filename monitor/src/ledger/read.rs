//! Reading: the answers of the CLI and of the API.

use super::{FILE, LedgerError, chain::Link, explain, from_micros, micros, schema};
use crate::{
    credential::catalog::normalise,
    model::{
        Credential, CredentialId, Destination, Evidence, Finding, Gap, Place, Process, Severity,
        Source, Verdict, Workload,
    },
};
use jiff::Timestamp;
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

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum QueryError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "no credential is known by `{0}`: it takes an id, the beginning of one, a name of the policy, a path, or env:NAME; `keytrail inventory` lists them"
    )]
    NoCredential(String),
    #[error("`{text}` is the beginning of {} ids: {}", .ids.len(), listed(.ids))]
    Ambiguous { text: String, ids: Vec<String> },
    #[error(
        "no workload is known by `{0}`: it takes namespace/name, a unit, a container, or the path of an executable"
    )]
    NoWorkload(String),
}

/// The first ids of many.
fn listed(ids: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = ids.iter().take(SHOWN).map(String::as_str);
    let more = (ids.len() > SHOWN).then_some("…");
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// From when to when an answer goes; open ends where not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Range {
    /// Whether its end is before its beginning.
    pub fn is_reversed(self) -> bool {
        self.since
            .zip(self.until)
            .is_some_and(|(since, until)| since > until)
    }

    pub(super) fn since(self) -> i64 {
        self.since.map_or(0, micros)
    }

    pub(super) fn until(self) -> i64 {
        self.until.map_or(i64::MAX, micros)
    }

    /// The hours that it touches.
    fn hours(self) -> (i64, i64) {
        (
            self.since().div_euclid(3_600_000_000),
            self.until().div_euclid(3_600_000_000),
        )
    }

    /// The first of two times, or the last where only that is in it.
    fn inner(self, first: Timestamp, last: Timestamp) -> Timestamp {
        if !self.holds(first, first) && self.holds(last, last) {
            last
        } else {
            first
        }
    }

    /// Whether everything between two times is in it.
    fn holds(self, first: Timestamp, last: Timestamp) -> bool {
        self.since.is_none_or(|since| since <= first)
            && self.until.is_none_or(|until| last <= until)
    }
}

/// Who used a credential.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UseRow {
    /// The row of its edge.
    #[serde(skip)]
    pub(super) edge: i64,
    pub credential: CredentialId,
    pub workload: Workload,
    pub process: Process,
    pub source: Source,
    pub place: String,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    /// The range has a part of this: of an hour at its edge only the whole is known, so that the count is the most that
    /// it can be, and a time may lie outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// When the file was written.
    #[serde(skip)]
    pub modified: Option<Timestamp>,
}

/// Where a credential went.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HopRow {
    /// The row of its edge.
    #[serde(skip)]
    pub(super) edge: i64,
    pub credential: CredentialId,
    pub workload: Workload,
    pub destination: Destination,
    pub evidence: Evidence,
    pub verdict: Verdict,
    pub count: u64,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    /// The range has a part of this: of an hour at its edge only the whole is known, so that the count is the most that
    /// it can be, and a time may lie outside.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    pub process: Process,
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

/// One credential within the reach of a workload.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Reach {
    pub credential: Credential,
    pub uses: Vec<UseRow>,
    pub hops: Vec<HopRow>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BlastRadius {
    pub query: &'static str,
    pub workloads: Vec<Workload>,
    pub credentials: Vec<Reach>,
    /// What these workloads had minted, and with what.
    pub minted: Vec<Link>,
    pub gaps: Vec<Gap>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Event {
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

impl Event {
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
    pub events: Vec<Event>,
    /// There are older ones in the range that are not shown: ask for less of it.
    pub older: bool,
    pub gaps: Vec<Gap>,
}

/// What findings or hops are about; everything where nothing is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    pub credential: Option<&'a str>,
    pub workload: Option<&'a str>,
}

/// What a timeline is about; everything where neither is given.
struct Wanted<'a> {
    credentials: Option<&'a [CredentialId]>,
    workloads: Option<Vec<i64>>,
}

/// A credential of the inventory.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Item {
    #[serde(flatten)]
    pub credential: Credential,
    pub first_seen: Timestamp,
    pub last_used: Timestamp,
    /// Seconds since it was issued, or since it was first seen.
    pub age_seconds: i64,
    pub workloads: Vec<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Inventory {
    pub credentials: Vec<Item>,
    pub gaps: Vec<Gap>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Findings {
    pub findings: Vec<Finding>,
    pub gaps: Vec<Gap>,
}

impl Findings {
    /// Says of the first findings which gaps touch each; of many the last.
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
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    workloads: Interned<Workload>,
    destinations: Interned<Destination>,
    processes: Interned<Process>,
    /// Which rows of a list are read whole, and how many were left out so far.
    skip: usize,
    most: usize,
    omitted: Cell<usize>,
    /// What was asked of SQLite, for the tests of how it answers.
    #[cfg(test)]
    asked: RefCell<BTreeSet<String>>,
}

/// Values that many records share, each read once.
#[derive(Debug)]
struct Interned<T> {
    sql: &'static str,
    known: RefCell<HashMap<i64, T>>,
}

impl<T: serde::de::DeserializeOwned + Clone> Interned<T> {
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

/// What the hours of an edge say of a range.
#[derive(Debug)]
struct Part {
    verdict: Option<Verdict>,
    process: i64,
    count: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Some of it may lie outside of the range.
    partial: bool,
}

/// An edge without what it is between: of many, those that are wanted are read whole.
#[derive(Debug)]
pub(super) struct Edge {
    id: i64,
    verdict: Verdict,
    evidence: Evidence,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Where the range has not all of it.
    part: Option<Part>,
}

/// Edges, with what [`Interned`] keeps of each only where it was not read before.
const USES: &str =
    "SELECT e.id, e.credential, e.workload, e.process, e.source, e.place, e.count, e.first_seen,
    e.last_seen, e.modified FROM use_edge e";
const HOPS: &str = "SELECT e.id, e.credential, e.workload, e.process, e.destination, e.evidence, e.verdict, e.count,
    e.first_seen, e.last_seen FROM hop_edge e";
/// Edges that may have been seen in a range.
const WITHIN: &str = "e.last_seen >= ?1 AND e.first_seen <= ?2";

/// Events of a timeline at most; the newest are kept.
const EVENTS: usize = 10_000;

impl Reader {
    /// Opens the ledger of a state directory.
    pub fn open(directory: &Path) -> Result<Self, LedgerError> {
        let path = directory.join(FILE);
        // Without opening it: closing a descriptor of the file drops every lock that SQLite holds on
        // it in this process.
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
        if is_still(&connection, &path) {
            // Of a file to which nobody writes, and nothing can be written beside: a copy for forensics.
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
        if version != schema::KNOWN {
            return Err(LedgerError::Older {
                path,
                found: version,
                known: schema::KNOWN,
            });
        }
        // In one view of the file: what is written meanwhile is in the next answer.
        connection
            .execute_batch("PRAGMA temp_store = MEMORY; PRAGMA query_only = 1; BEGIN")
            .map_err(failed)?;
        Ok(Self {
            connection,
            path,
            workloads: Interned::new("SELECT json FROM workload WHERE id = ?1"),
            destinations: Interned::new("SELECT json FROM destination WHERE id = ?1"),
            processes: Interned::new("SELECT json FROM process WHERE id = ?1"),
            skip: 0,
            most: usize::MAX,
            omitted: Cell::new(0),
            #[cfg(test)]
            asked: RefCell::default(),
        })
    }

    /// The same, but of each list of uses or of hops it reads so many rows, after leaving out some.
    pub fn limited(mut self, skip: usize, most: usize) -> Self {
        (self.skip, self.most) = (skip, most);
        self
    }

    /// Uses and hops that were left out so far.
    pub fn omitted(&self) -> usize {
        self.omitted.get()
    }

    /// How SQLite answers what was asked so far, step by step.
    #[cfg(test)]
    pub fn plans(&self) -> BTreeMap<String, Vec<String>> {
        let plan = |sql: &String| -> rusqlite::Result<Vec<String>> {
            let mut statement = self
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let unbound = vec![rusqlite::types::Null; statement.parameter_count()];
            statement
                .query_map(rusqlite::params_from_iter(unbound), |row| row.get(3))?
                .collect()
        };
        let asked = self.asked.borrow();
        asked
            .iter()
            .map(|sql| (sql.clone(), plan(sql).expect("explained")))
            .collect()
    }

    /// Writes a copy of the whole ledger to a file, while the agent goes on writing to this one.
    pub fn back_up(&self, to: &Path) -> Result<(), LedgerError> {
        let failed = |source| explain(&self.path, source);
        let unusable = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AlreadyExists => LedgerError::Exists(to.to_owned()),
            _ => LedgerError::Directory {
                path: to.to_owned(),
                source,
            },
        };
        // SQLite fills an empty file, and nobody else reads it meanwhile.
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
                // Half a copy is none.
                drop(std::fs::remove_file(to));
                failed(source)
            })
    }

    /// The ids that a text stands for: one by id or the beginning of one, all that a name, a
    /// path or a variable holds.
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
            let ids = self.strings(sql, &place)?;
            if !ids.is_empty() {
                return Ok(ids.into_iter().map(CredentialId).collect());
            }
        }
        // `kt-` and `loc-` may be left out.
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

    fn strings(&self, sql: &str, parameter: &str) -> Result<Vec<String>, LedgerError> {
        self.connection
            .prepare(sql)
            .and_then(|mut statement| {
                statement
                    .query_map([parameter], |row| row.get(0))?
                    .collect()
            })
            .map_err(|source| explain(&self.path, source))
    }

    /// The rows of workloads that a text stands for.
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
        // A container or a pod by its id, a program by its name.
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
        // An executable's path is a host workload's own name; in a unit or a container it says
        // which program of it ran, and then the whole unit is meant.
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
        self.asked.borrow_mut().insert(sql.to_owned());
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
                    source: word(row, 0)?,
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

    /// Uses of credentials in a range, the last first.
    pub(super) fn uses_of(
        &self,
        ids: &[CredentialId],
        range: Range,
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
        range: Range,
    ) -> Result<Vec<HopRow>, LedgerError> {
        let mut edges = Vec::new();
        for id in ids {
            edges.extend(self.hop_edges("e.credential = ?3", &id.0, range)?);
        }
        self.hops_from(edges)
    }

    /// Uses of a range for which a condition on `?3` holds.
    pub(super) fn use_edges(
        &self,
        condition: &str,
        parameter: &dyn ToSql,
        range: Range,
    ) -> Result<Vec<Edge>, LedgerError> {
        let edges = self.rows(
            &format!(
                "SELECT e.id, e.first_seen, e.last_seen FROM use_edge e WHERE {WITHIN} AND {condition}"
            ),
            &[&range.since() as &dyn ToSql, &range.until(), parameter][..],
            |row| {
                Ok(Edge {
                    id: row.get(0)?,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    verdict: Verdict::Expected,
                    evidence: Evidence::Held,
                    part: None,
                })
            },
        )?;
        self.narrow(edges, "use_hour", range)
    }

    /// Hops of a range for which a condition on `?3` holds.
    pub(super) fn hop_edges(
        &self,
        condition: &str,
        parameter: &dyn ToSql,
        range: Range,
    ) -> Result<Vec<Edge>, LedgerError> {
        let edges = self.rows(
            &format!(
                "SELECT e.id, e.first_seen, e.last_seen, e.verdict, e.evidence FROM hop_edge e
                 WHERE {WITHIN} AND {condition}"
            ),
            &[&range.since() as &dyn ToSql, &range.until(), parameter][..],
            |row| {
                Ok(Edge {
                    id: row.get(0)?,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    verdict: word(row, 3)?,
                    evidence: word(row, 4)?,
                    part: None,
                })
            },
        )?;
        self.narrow(edges, "hop_hour", range)
    }

    /// Reads those uses of edges that are wanted, the last first.
    pub(super) fn uses(&self, edges: Vec<Edge>) -> Result<Vec<UseRow>, LedgerError> {
        let mut found = Vec::new();
        for edge in self.wanted(edges) {
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

    /// Reads those hops of edges that are wanted, the worst first.
    pub(super) fn hops_from(&self, edges: Vec<Edge>) -> Result<Vec<HopRow>, LedgerError> {
        let mut found = Vec::new();
        for edge in self.wanted(edges) {
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

    /// Unexpected before unproven before expected, strong evidence first, then the newest; as many as are wanted,
    /// and the others are counted.
    fn wanted(&self, mut edges: Vec<Edge>) -> Vec<Edge> {
        edges.sort_by_key(|edge| std::cmp::Reverse((edge.verdict, edge.evidence, edge.last_seen)));
        let all = edges.len();
        edges.drain(..self.skip.min(all));
        edges.truncate(self.most);
        self.omitted.set(self.omitted.get() + all - edges.len());
        edges
    }

    /// Leaves of each edge what a range has of it, and drops those that were not seen in it.
    fn narrow(
        &self,
        edges: Vec<Edge>,
        hours: &str,
        range: Range,
    ) -> Result<Vec<Edge>, LedgerError> {
        let mut kept = Vec::with_capacity(edges.len());
        for mut edge in edges {
            if !range.holds(edge.first_seen, edge.last_seen) {
                let Some(part) = self.part(hours, edge.id, range)? else {
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

    /// What the hours of an edge say of a range; `None` where it was not seen in it.
    fn part(&self, hours: &str, edge: i64, range: Range) -> Result<Option<Part>, LedgerError> {
        let (from, to) = range.hours();
        let rows = "edge = ?1 AND hour BETWEEN ?2 AND ?3 AND last_seen >= ?4 AND first_seen <= ?5";
        let parameters = params![edge, from, to, range.since(), range.until()];
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
                Ok(Part {
                    verdict,
                    process,
                    count: row.get::<_, i64>(0)?.max(0) as u64,
                    first_seen: from_micros(row.get(1)?),
                    last_seen: from_micros(row.get(2)?),
                    partial: false,
                })
            },
        )?;
        Ok(sums.into_iter().next().map(|part| Part {
            partial: !range.holds(part.first_seen, part.last_seen),
            ..part
        }))
    }

    /// Who was the first of an edge, where its first hour is still there.
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
            source: word(row, 4)?,
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
            evidence: word(row, 5)?,
            verdict: word(row, 6)?,
            count: row.get::<_, i64>(7)?.max(0) as u64,
            first_seen: from_micros(row.get(8)?),
            last_seen: from_micros(row.get(9)?),
            partial: false,
        })
    }

    /// Gaps that touch a range.
    pub fn gaps(&self, range: Range) -> Result<Vec<Gap>, LedgerError> {
        self.rows(
            "SELECT kind, probe, detail, since, until, count FROM gap
             WHERE since <= ?2 AND (until IS NULL OR until >= ?1) ORDER BY since",
            params![range.since(), range.until()],
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

    pub fn who(&self, text: &str, range: Range) -> Result<WhoAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhoAnswer {
            query: "who",
            credentials: self.credentials(&ids)?,
            uses: self.uses_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }

    pub fn where_to(&self, text: &str, range: Range) -> Result<WhereAnswer, QueryError> {
        let ids = self.resolve(text)?;
        Ok(WhereAnswer {
            query: "where",
            credentials: self.credentials(&ids)?,
            hops: self.hops_of(&ids, range)?,
            gaps: self.gaps(range)?,
        })
    }

    /// What a workload picked up or took somewhere, and everywhere it went with it.
    pub fn blast_radius(&self, text: &str, range: Range) -> Result<BlastRadius, QueryError> {
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
                credentials.push(Reach {
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

    /// What happened, oldest first, gaps in their place.
    pub fn timeline(
        &self,
        credential: Option<&str>,
        workload: Option<&str>,
        range: Range,
    ) -> Result<Timeline, QueryError> {
        let ids = credential.map(|text| self.resolve(text)).transpose()?;
        let rows = workload.map(|text| self.workloads_by(text)).transpose()?;
        let keys: Option<BTreeSet<String>> = rows
            .as_ref()
            .map(|rows| rows.iter().map(|(_, workload)| workload.key()).collect());
        let wanted = Wanted {
            credentials: ids.as_deref(),
            workloads: rows
                .as_ref()
                .map(|rows| rows.iter().map(|(row, _)| *row).collect()),
        };
        let mut events: Vec<Event> = Vec::new();
        // By the hour, as the ledger has it.
        let uses = self.hours(
            "SELECT e.id, e.credential, e.workload, iif(h.first_process = 0, h.process, h.first_process), e.source, e.place, h.count, h.first_seen,
             h.last_seen, e.modified",
            ("use_hour", "use_edge"),
            &wanted,
            range,
            |row| self.use_row(row),
        )?;
        events.extend(uses.into_iter().map(|mut row| {
            row.partial = !range.holds(row.first_seen, row.last_seen);
            Event::Use {
                time: range.inner(row.first_seen, row.last_seen),
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
            row.partial = !range.holds(row.first_seen, row.last_seen);
            Event::Hop {
                time: range.inner(row.first_seen, row.last_seen),
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
                .map(|finding| Event::Finding {
                    time: finding.first_seen,
                    finding: Box::new(finding),
                }),
        );
        let gaps = self.gaps(range)?;
        events.extend(gaps.iter().cloned().map(|gap| Event::Gap {
            time: gap.since,
            gap,
        }));
        events.sort_by_key(Event::time);
        let surplus = events.len().saturating_sub(EVENTS);
        events.drain(..surplus);
        Ok(Timeline {
            query: "timeline",
            events,
            older: surplus > 0,
            gaps,
        })
    }

    /// The newest hours of edges in a range, one more than are shown.
    fn hours<T>(
        &self,
        select: &str,
        (hours, edges): (&str, &str),
        wanted: &Wanted<'_>,
        range: Range,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let (from, to) = range.hours();
        let mut sql = select.to_owned();
        let mut parameters: Vec<Box<dyn ToSql>> = vec![
            Box::new(from),
            Box::new(to),
            Box::new(range.since()),
            Box::new(range.until()),
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
        // The order of a CROSS JOIN is kept: from the few edges that are wanted to their hours, or from the
        // newest hours to their edges.
        let tables = if conditions.is_empty() {
            format!(" FROM {hours} h CROSS JOIN {edges} e ON e.id = h.edge")
        } else {
            format!(" FROM {edges} e CROSS JOIN {hours} h ON h.edge = e.id")
        };
        sql.push_str(&tables);
        sql.push_str(&format!(
            " WHERE h.hour BETWEEN ?1 AND ?2 AND h.last_seen >= ?3 AND h.first_seen <= ?4{conditions}
             ORDER BY h.hour DESC LIMIT {}",
            EVENTS + 1
        ));
        self.rows(&sql, rusqlite::params_from_iter(parameters), read)
    }

    fn findings_in(&self, range: Range) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding WHERE last_seen >= ?1 AND first_seen <= ?2 ORDER BY last_seen DESC",
            params![range.since(), range.until()],
            |row| self.finding_row(row),
        )
    }

    /// Findings, the worst first and then the newest.
    pub fn findings(
        &self,
        about: About<'_>,
        rule: Option<&str>,
        severity: Option<Severity>,
        range: Range,
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
        range: Range,
    ) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            &format!(
                "SELECT json, process FROM finding WHERE {column} = ?3 AND last_seen >= ?1 AND first_seen <= ?2"
            ),
            params![range.since(), range.until(), value],
            |row| self.finding_row(row),
        )
    }

    /// Findings with their counts, those that were seen last.
    pub fn last_findings(&self, most: usize) -> Result<Vec<Finding>, LedgerError> {
        self.rows(
            "SELECT json, process FROM finding ORDER BY last_seen DESC LIMIT ?1",
            [most as i64],
            |row| self.finding_row(row),
        )
    }

    /// Credentials with a fingerprint, those that were used last, with their places, and when each was first seen.
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
            let workloads = self.strings(
                "SELECT DISTINCT key FROM workload WHERE id IN (
                    SELECT workload FROM use_edge WHERE credential = ?1
                    UNION SELECT workload FROM hop_edge WHERE credential = ?1) ORDER BY key",
                &credential.id.0,
            )?;
            let since = credential.issued_at.unwrap_or(first_seen);
            credentials.push(Item {
                age_seconds: now.duration_since(since).as_secs().max(0),
                credential,
                first_seen,
                last_used,
                workloads,
            });
        }
        Ok(Inventory {
            credentials,
            gaps: self.gaps(Range::default())?,
        })
    }

    pub fn workloads(&self) -> Result<Workloads, QueryError> {
        Ok(Workloads {
            workloads: self.rows("SELECT json FROM workload ORDER BY key", params![], |row| {
                from_json(row, 0)
            })?,
            gaps: self.gaps(Range::default())?,
        })
    }

    /// Hops, or those of a credential, by a workload, to a destination: by its label, by `host:port`, by its host
    /// alone, or by address.
    pub fn hops(
        &self,
        about: About<'_>,
        destination: Option<&str>,
        range: Range,
    ) -> Result<Hops, QueryError> {
        let mut edges: Option<Vec<Edge>> = None;
        let mut narrow = |these: Vec<Edge>| match &mut edges {
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

    /// The rows of destinations that a text stands for.
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

/// Whether a file cannot be read as it is used by an agent, for want of a place for its log, and nobody uses it.
fn is_still(connection: &Connection, path: &Path) -> bool {
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

fn word<T: FromStr<Err = String>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
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
        role: word(row, 2)?,
        lifetime: word(row, 3)?,
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
