//! The ledger: what Keytrail remembers. SQLite, by edge and hour. The only module that knows SQL.

pub mod chain;
pub mod first;
pub mod history;
pub mod read;
mod rename;
mod schema;
mod tidy;
mod write;

pub use write::{Before, Last, Writer};

use crate::{
    done::Done,
    model::{Finding, Gap, Hop, Mint, Use, Verdict, Workload},
};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The file's name in the state directory.
pub const FILE: &str = "ledger.sqlite";

/// Why the ledger cannot be used.
#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("cannot use the state directory {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is no ledger at {0}; has the agent run with this --state-dir?")]
    Absent(PathBuf),
    #[error(
        "the ledger {path} is damaged ({reason}); the agent sets it aside when it starts, or restore a copy"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the ledger {path} has schema {found}, and this Keytrail knows up to {known}: use the newer Keytrail that wrote it"
    )]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error(
        "the ledger {path} has schema {found}, of an older Keytrail: start the agent once, and it is brought to {known}"
    )]
    Older {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("there is something at {0} already: a copy is written to a new file")]
    Exists(PathBuf),
    #[error("another agent is writing to the ledger {0}: one state directory serves one agent")]
    InUse(PathBuf),
    #[error("the ledger {path}: {source}")]
    Sql {
        path: PathBuf,
        source: rusqlite::Error,
    },
}

/// What is written down.
#[derive(Clone, Debug)]
pub enum Entry {
    Use(Box<Use>),
    Hop(Box<Hop>, Verdict),
    Finding(Box<Finding>),
    Mint(Box<Mint>),
    /// What is there of the first workload is of the second.
    Renamed(Box<[Workload; 2]>),
    Gap(Box<Gap>),
    /// The agent has started: from now on it is alive. An attempt that fails before leaves no trace.
    /// What it carries is dropped when that is written.
    Started(#[expect(dead_code, reason = "it is dropped, not read")] Done),
    /// The agent ends as it was told to.
    End,
}

/// Times are stored as microseconds since the epoch.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The hour that a time is in, as hours since the epoch.
fn hour(time: Timestamp) -> i64 {
    time.as_second().div_euclid(3600)
}

/// Tells a damaged file from other trouble.
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

/// Keytrail's statements fit its schema, and what they read Keytrail wrote: where one cannot be understood, or
/// what it reads cannot, the file is not what it was.
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
        // What one record says of another is not there.
        | Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
