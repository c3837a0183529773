//! The tables, and how an older file becomes a newer one.

use super::{LedgerError, explain};
use rusqlite::Connection;
use std::path::Path;

/// Step `n` brings a file from schema `n` to `n + 1`.
const STEPS: [&str; 2] = [
    r"
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE credential (
    id TEXT PRIMARY KEY, class TEXT NOT NULL, role TEXT NOT NULL, lifetime TEXT NOT NULL,
    name TEXT, owner TEXT, label TEXT, audience TEXT NOT NULL, issued_at INTEGER, expires_at INTEGER,
    first_seen INTEGER NOT NULL, last_used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX credential_name ON credential (name) WHERE name IS NOT NULL;
CREATE TABLE source (
    credential TEXT NOT NULL, source TEXT NOT NULL, place TEXT NOT NULL,
    PRIMARY KEY (credential, source, place)
) WITHOUT ROWID;
CREATE INDEX source_place ON source (place);
CREATE TABLE workload (id INTEGER PRIMARY KEY, key TEXT NOT NULL, exe TEXT NOT NULL, json TEXT NOT NULL UNIQUE);
CREATE INDEX workload_key ON workload (key);
CREATE INDEX workload_exe ON workload (exe);
CREATE TABLE destination (id INTEGER PRIMARY KEY, label TEXT NOT NULL, json TEXT NOT NULL UNIQUE);
CREATE TABLE use_hour (
    credential TEXT NOT NULL, workload INTEGER NOT NULL, source TEXT NOT NULL, place TEXT NOT NULL,
    hour INTEGER NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    process TEXT NOT NULL,
    PRIMARY KEY (credential, workload, source, place, hour)
) WITHOUT ROWID;
CREATE INDEX use_by_workload ON use_hour (workload, hour);
CREATE INDEX use_by_hour ON use_hour (hour);
CREATE TABLE hop_hour (
    credential TEXT NOT NULL, workload INTEGER NOT NULL, destination INTEGER NOT NULL, evidence TEXT NOT NULL,
    hour INTEGER NOT NULL, verdict TEXT NOT NULL, count INTEGER NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, process TEXT NOT NULL,
    PRIMARY KEY (credential, workload, destination, evidence, hour)
) WITHOUT ROWID;
CREATE INDEX hop_by_workload ON hop_hour (workload, hour);
CREATE INDEX hop_by_hour ON hop_hour (hour);
CREATE TABLE finding (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, credential TEXT NOT NULL, workload TEXT NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL, json TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX finding_by_time ON finding (last_seen);
CREATE TABLE gap (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, probe TEXT, detail TEXT NOT NULL,
    since INTEGER NOT NULL, until INTEGER, count INTEGER NOT NULL
);
CREATE INDEX gap_by_time ON gap (since);
",
    r"
CREATE TABLE mint_hour (
    presented TEXT NOT NULL, minted TEXT NOT NULL, workload INTEGER NOT NULL, destination INTEGER NOT NULL,
    hour INTEGER NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    process TEXT NOT NULL,
    PRIMARY KEY (presented, minted, workload, destination, hour)
) WITHOUT ROWID;
CREATE INDEX mint_by_minted ON mint_hour (minted);
CREATE INDEX mint_by_hour ON mint_hour (hour);
",
];

/// The schema that this program writes.
pub const KNOWN: i64 = STEPS.len() as i64;

/// The schema of a file; an error where it is newer than this program.
pub fn version(connection: &Connection, path: &Path) -> Result<i64, LedgerError> {
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|source| explain(path, source))?;
    if found > KNOWN {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found,
            known: KNOWN,
        });
    }
    Ok(found)
}

/// Brings a file to the known schema, each step in a transaction of its own.
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let failed = |source| explain(path, source);
    let found = version(connection, path)?;
    for (step, sql) in STEPS.iter().enumerate().skip(found.max(0) as usize) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction
            .pragma_update(None, "user_version", step as i64 + 1)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}
