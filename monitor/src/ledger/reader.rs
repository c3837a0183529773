//! A ledger opened for reading: rows, the values they share, gaps, backups.

use super::{FILE_NAME, LedgerError, explain, from_micros, micros, schema};
use monitor_core::{
    history::TimeRange,
    model::{Destination, Gap, Process, Workload},
};
use rusqlite::{Connection, OpenFlags, Row, params, types::FromSqlError};
#[cfg(test)]
use std::collections::{BTreeMap, BTreeSet};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use thiserror::Error;

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
    let first = ids.iter().take(SHOWN).map(String::as_str);
    let more = (ids.len() > SHOWN).then_some("…");
    first.chain(more).collect::<Vec<_>>().join(", ")
}

pub(super) fn since(range: TimeRange) -> i64 {
    range.since.map_or(0, micros)
}

pub(super) fn until(range: TimeRange) -> i64 {
    range.until.map_or(i64::MAX, micros)
}

/// The hours that a range touches.
pub(super) fn hours_of(range: TimeRange) -> (i64, i64) {
    (
        since(range).div_euclid(3_600_000_000),
        until(range).div_euclid(3_600_000_000),
    )
}

/// A ledger opened for reading.
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) connection: Connection,
    path: PathBuf,
    workloads: InternedRows<Workload>,
    destinations: InternedRows<Destination>,
    processes: InternedRows<Process>,
    /// Number of rows to skip in a list, the maximum to read, and the number omitted so far.
    pub(super) skip: usize,
    pub(super) most: usize,
    pub(super) omitted: Cell<usize>,
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
            .map_err(|source| self.failed(source))
    }

    pub(super) fn query_strings(
        &self,
        sql: &str,
        parameter: &str,
    ) -> Result<Vec<String>, LedgerError> {
        self.connection
            .prepare(sql)
            .and_then(|mut statement| {
                statement
                    .query_map([parameter], |row| row.get(0))?
                    .collect()
            })
            .map_err(|source| self.failed(source))
    }

    pub(super) fn workload(&self, id: i64) -> rusqlite::Result<Workload> {
        self.workloads.get(&self.connection, id)
    }

    pub(super) fn destination(&self, id: i64) -> rusqlite::Result<Destination> {
        self.destinations.get(&self.connection, id)
    }

    pub(super) fn process(&self, id: i64) -> rusqlite::Result<Process> {
        self.processes.get(&self.connection, id)
    }

    /// Names this ledger in an error.
    pub(super) fn failed(&self, source: rusqlite::Error) -> LedgerError {
        explain(&self.path, source)
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

pub(super) fn from_word<T: FromStr<Err = String>>(
    row: &Row<'_>,
    index: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse().map_err(|error: String| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            Box::new(FromSqlError::Other(error.into())),
        )
    })
}
