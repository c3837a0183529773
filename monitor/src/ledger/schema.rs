//! The tables, and the migration of older files.

use super::{LedgerError, explain};
use rusqlite::Connection;
use std::path::Path;

/// Step `n` migrates a file from schema `n` to `n + 1`.
pub const MIGRATIONS: [&str; 7] = [
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
    // Splits what is the same in every hour into edges: an answer over all time reads edges, and
    // one over a range also reads the hours of edges that extend beyond it.
    r"
CREATE TABLE process (id INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE, hour INTEGER NOT NULL);
CREATE INDEX process_by_hour ON process (hour);
INSERT INTO process (json, hour)
    SELECT process, max(hour) FROM
        (SELECT process, hour FROM use_hour UNION ALL SELECT process, hour FROM hop_hour)
    GROUP BY process;
DROP INDEX use_by_workload;
DROP INDEX use_by_hour;
DROP INDEX hop_by_workload;
DROP INDEX hop_by_hour;

ALTER TABLE use_hour RENAME TO use_before;
CREATE TABLE use_edge (
    id INTEGER PRIMARY KEY, credential TEXT NOT NULL, workload INTEGER NOT NULL, source TEXT NOT NULL,
    place TEXT NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    process INTEGER NOT NULL,
    UNIQUE (credential, workload, source, place)
);
CREATE INDEX use_edge_workload ON use_edge (workload);
CREATE INDEX use_edge_last ON use_edge (last_seen);
INSERT INTO use_edge (credential, workload, source, place, count, first_seen, last_seen, process)
    SELECT credential, workload, source, place, sum(count), min(first_seen), max(last_seen), 0
    FROM use_before GROUP BY credential, workload, source, place;
CREATE TABLE use_hour (
    edge INTEGER NOT NULL, hour INTEGER NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, process INTEGER NOT NULL,
    PRIMARY KEY (edge, hour)
) WITHOUT ROWID;
INSERT INTO use_hour
    SELECT e.id, b.hour, b.count, b.first_seen, b.last_seen, p.id
    FROM use_before b JOIN use_edge e USING (credential, workload, source, place)
    JOIN process p ON p.json = b.process;
UPDATE use_edge SET process =
    (SELECT process FROM use_hour WHERE edge = use_edge.id ORDER BY hour DESC LIMIT 1);
CREATE INDEX use_by_hour ON use_hour (hour);
DROP TABLE use_before;

ALTER TABLE hop_hour RENAME TO hop_before;
CREATE TABLE hop_edge (
    id INTEGER PRIMARY KEY, credential TEXT NOT NULL, workload INTEGER NOT NULL, destination INTEGER NOT NULL,
    evidence TEXT NOT NULL, verdict TEXT NOT NULL, count INTEGER NOT NULL, first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, process INTEGER NOT NULL,
    UNIQUE (credential, workload, destination, evidence)
);
CREATE INDEX hop_edge_workload ON hop_edge (workload);
CREATE INDEX hop_edge_destination ON hop_edge (destination);
CREATE INDEX hop_edge_last ON hop_edge (last_seen);
INSERT INTO hop_edge
    (credential, workload, destination, evidence, verdict, count, first_seen, last_seen, process)
    SELECT credential, workload, destination, evidence, '', sum(count), min(first_seen), max(last_seen), 0
    FROM hop_before GROUP BY credential, workload, destination, evidence;
CREATE TABLE hop_hour (
    edge INTEGER NOT NULL, hour INTEGER NOT NULL, verdict TEXT NOT NULL, count INTEGER NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, process INTEGER NOT NULL,
    PRIMARY KEY (edge, hour)
) WITHOUT ROWID;
INSERT INTO hop_hour
    SELECT e.id, b.hour, b.verdict, b.count, b.first_seen, b.last_seen, p.id
    FROM hop_before b JOIN hop_edge e USING (credential, workload, destination, evidence)
    JOIN process p ON p.json = b.process;
UPDATE hop_edge SET (verdict, process) =
    (SELECT verdict, process FROM hop_hour WHERE edge = hop_edge.id ORDER BY hour DESC LIMIT 1);
CREATE INDEX hop_by_hour ON hop_hour (hour);
DROP TABLE hop_before;

CREATE INDEX mint_by_workload ON mint_hour (workload);
CREATE INDEX finding_by_credential ON finding (credential);
CREATE INDEX finding_by_workload ON finding (workload);
CREATE INDEX finding_by_rule ON finding (rule, last_seen);
CREATE INDEX credential_last_used ON credential (last_used);
",
    // The first process of an hour, if it differs from the last; otherwise 0.
    r"
ALTER TABLE use_hour ADD COLUMN first_process INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hop_hour ADD COLUMN first_process INTEGER NOT NULL DEFAULT 0;
",
    // What testing expectations on history needs: whether a credential has its issuer's mark, when
    // its file was written, and all programs that ran in a workload. Findings become compact: rows
    // with a number of their own take half the space if they are long, and processes are referenced
    // by number.
    r"
ALTER TABLE credential ADD COLUMN unmarked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE use_edge ADD COLUMN modified INTEGER;
CREATE TABLE program (
    exe TEXT NOT NULL, workload INTEGER NOT NULL, PRIMARY KEY (exe, workload)
) WITHOUT ROWID;
INSERT OR IGNORE INTO program SELECT exe, id FROM workload;
INSERT OR IGNORE INTO program
    SELECT json_extract(p.json, '$.exe'), e.workload
    FROM (SELECT workload, process FROM use_edge UNION SELECT workload, process FROM hop_edge) e
    JOIN process p ON p.id = e.process;
DROP INDEX workload_exe;
ALTER TABLE finding RENAME TO finding_before;
CREATE TABLE finding (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, credential TEXT NOT NULL, workload TEXT NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL, json TEXT NOT NULL,
    process INTEGER NOT NULL
);
INSERT INTO finding
    SELECT id, rule, credential, workload, first_seen, last_seen, count, json, 0 FROM finding_before;
DROP TABLE finding_before;
CREATE INDEX finding_by_time ON finding (last_seen);
CREATE INDEX finding_by_credential ON finding (credential);
CREATE INDEX finding_by_workload ON finding (workload);
CREATE INDEX finding_by_rule ON finding (rule, last_seen);
",
    // Whose records they are, so that each workload has a share of the file's size limit.
    r"
ALTER TABLE process ADD COLUMN owner TEXT NOT NULL DEFAULT '';
UPDATE process SET owner = 'user ' || json_extract(json, '$.uid');
CREATE INDEX process_by_owner ON process (owner, hour);
",
    // Whether a place is one to which a credential was written after it was known elsewhere.
    r"
ALTER TABLE source ADD COLUMN copied INTEGER NOT NULL DEFAULT 0;
",
];

/// The schema that this program writes.
pub const CURRENT_VERSION: i64 = MIGRATIONS.len() as i64;

/// The schema of a file; an error if it is newer than this program.
pub fn version(connection: &Connection, path: &Path) -> Result<i64, LedgerError> {
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|source| explain(path, source))?;
    if found > CURRENT_VERSION {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found,
            known: CURRENT_VERSION,
        });
    }
    Ok(found)
}

/// Migrates a file to the current schema, each step in its own transaction.
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let failed = |source| explain(path, source);
    let found = version(connection, path)?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(found.max(0) as usize) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction
            .pragma_update(None, "user_version", step as i64 + 1)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}
