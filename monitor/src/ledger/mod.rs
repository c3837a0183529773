//! The ledger: Keytrail's storage. SQLite, by edge and hour. The only module that contains SQL.

mod credentials;
mod edges;
pub mod queries;
pub mod reader;
mod records;
mod rename;
mod resolve;
mod rows;
mod schema;
mod settled;
mod shares;
mod size_limit;
mod tidy;
mod watch;
mod write;

pub use write::{LastShutdown, LedgerWriter, PreviousState};

use crate::completion::Completion;
use jiff::Timestamp;
use monitor_core::model::{Finding, Gap, Hop, Mint, Use, Verdict, Workload};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// File name in the state directory.
pub const FILE_NAME: &str = "ledger.sqlite";

/// Why the ledger cannot be used.
#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("cannot use the state directory {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("no ledger at {0}; has the agent run with this --state-dir?")]
    Absent(PathBuf),
    #[error(
        "the ledger {path} is damaged ({reason}); the agent sets it aside when it starts, or restore a copy"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the ledger {path} has schema {found}, and this Keytrail supports up to {known}: use the newer Keytrail that wrote it"
    )]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error(
        "the ledger {path} has schema {found}, of an older Keytrail: start the agent once to migrate it to {known}"
    )]
    Older {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("{0} already exists: a backup is written to a new file")]
    Exists(PathBuf),
    #[error("another agent is writing to the ledger {0}: one state directory serves one agent")]
    InUse(PathBuf),
    #[error("the ledger {path}: {source}")]
    Sql {
        path: PathBuf,
        source: rusqlite::Error,
    },
}

/// An entry to be written.
#[derive(Clone, Debug)]
pub enum LedgerEntry {
    Use(Box<Use>),
    Hop(Box<Hop>, Verdict),
    Finding(Box<Finding>),
    Mint(Box<Mint>),
    /// Everything about the first workload now belongs to the second.
    Renamed(Box<[Workload; 2]>),
    Gap(Box<Gap>),
    /// The agent has observed everything since a time: from then on it counts as alive. An attempt
    /// that fails earlier leaves no trace. The completion is dropped once this is written.
    Started(
        Timestamp,
        #[expect(dead_code, reason = "it is dropped, not read")] Completion,
    ),
    /// The agent stops in an orderly way.
    End,
}

/// Times are stored as microseconds since the epoch.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Microseconds per hour.
const HOUR_MICROS: i64 = 3_600_000_000;

/// The hour of a time, as hours since the epoch.
fn hour(time: Timestamp) -> i64 {
    time.as_second().div_euclid(3600)
}

/// Distinguishes a damaged file from other errors.
fn explain(path: &Path, source: rusqlite::Error) -> LedgerError {
    if is_damage(&source) {
        LedgerError::Damaged {
            path: path.to_owned(),
            reason: source.to_string(),
        }
    } else {
        LedgerError::Sql {
            path: path.to_owned(),
            source,
        }
    }
}

/// Keytrail's statements match its schema, and it wrote all data itself: if a statement or value is
/// invalid, the file was altered.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error, ErrorCode};
    match error {
        Error::SqliteFailure(failure, _) => matches!(
            failure.code,
            ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                // SQLITE_ERROR: a table or a column is missing.
                | ErrorCode::Unknown
        ),
        Error::SqlInputError { .. }
        | Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::InvalidColumnType(..)
        | Error::Utf8Error(..)
        // A row that another one refers to is missing.
        | Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
