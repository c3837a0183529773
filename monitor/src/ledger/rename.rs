//! Moves what was stored under a workload's ids to its name.

use super::{
    reader::from_json,
    rows::{intern, json},
};
use monitor_core::model::{Finding, Workload};
use rusqlite::{Connection, params};

/// The tables of one kind of edge: the columns that identify it besides credential and workload,
/// and the columns of its hours after edge and hour.
struct EdgeTables {
    edges: &'static str,
    hours: &'static str,
    apart: [&'static str; 2],
    columns: &'static str,
}

const KINDS: [EdgeTables; 2] = [
    EdgeTables {
        edges: "use_edge",
        hours: "use_hour",
        apart: ["source", "place"],
        columns: "count, first_seen, last_seen, process, first_process",
    },
    EdgeTables {
        edges: "hop_edge",
        hours: "hop_hour",
        apart: ["destination", "evidence"],
        columns: "verdict, count, first_seen, last_seen, process, first_process",
    },
];

/// Adds both counts if both exist.
const SUM: &str = "ON CONFLICT DO UPDATE SET count = count + excluded.count,
    first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)";

/// Keeps the earlier first process.
const FIRST: &str = ", first_process = iif(excluded.first_seen < first_seen,
    iif(excluded.first_process = 0, excluded.process, excluded.first_process),
    iif(first_process = 0, process, first_process))";

/// Moves everything about one workload to another; adds the counts where both exist.
pub fn rename(connection: &Connection, old: &Workload, new: &Workload) -> rusqlite::Result<()> {
    rename_findings(connection, old, new)?;
    let known: Vec<(i64, String, Workload)> = connection
        .prepare_cached("SELECT id, exe, json FROM workload WHERE key = ?1")?
        .query_map([old.key()], |row| {
            Ok((row.get(0)?, row.get(1)?, from_json(row, 2)?))
        })?
        .collect::<Result<_, _>>()?;
    // One for each context.
    for (from, exe, known) in known.into_iter().filter(|(_, _, known)| known == old) {
        rename_row(connection, from, &exe, &known.renamed(new))?;
    }
    Ok(())
}

/// Moves everything about one row to that of a workload.
fn rename_row(
    connection: &Connection,
    from: i64,
    exe: &str,
    new: &Workload,
) -> rusqlite::Result<()> {
    let to = intern(
        connection,
        "SELECT id FROM workload WHERE json = ?1",
        "INSERT INTO workload (json, key, exe) VALUES (?1, ?2, ?3)",
        &json(new),
        &[&new.key(), exe],
    )?;
    for kind in KINDS {
        merge(connection, &kind, from, to)?;
    }
    connection
        .prepare_cached(&format!(
            "INSERT INTO mint_hour SELECT presented, minted, ?2, destination, hour, count, first_seen, last_seen, process
             FROM mint_hour WHERE workload = ?1 {SUM}"
        ))?
        .execute([from, to])?;
    connection
        .prepare_cached("DELETE FROM mint_hour WHERE workload = ?1")?
        .execute([from])?;
    connection
        .prepare_cached("UPDATE OR REPLACE program SET workload = ?2 WHERE workload = ?1")?
        .execute([from, to])?;
    connection
        .prepare_cached("DELETE FROM workload WHERE id = ?1")?
        .execute([from])?;
    Ok(())
}

/// Moves the edges of one workload to another.
fn merge(connection: &Connection, kind: &EdgeTables, from: i64, to: i64) -> rusqlite::Result<()> {
    let EdgeTables {
        edges,
        hours,
        apart: [one, other],
        columns,
    } = kind;
    let both: Vec<(i64, i64)> = connection
        .prepare_cached(&format!(
            "SELECT mine.id, theirs.id FROM {edges} mine JOIN {edges} theirs
             ON theirs.credential = mine.credential AND theirs.workload = ?2
             AND theirs.{one} = mine.{one} AND theirs.{other} = mine.{other}
             WHERE mine.workload = ?1"
        ))?
        .query_map([from, to], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (mine, theirs) in both {
        connection
            .prepare_cached(&format!(
                "INSERT INTO {hours} SELECT ?2, hour, {columns} FROM {hours} WHERE edge = ?1 {SUM}{FIRST}"
            ))?
            .execute([mine, theirs])?;
        connection
            .prepare_cached(&format!("DELETE FROM {hours} WHERE edge = ?1"))?
            .execute([mine])?;
        connection
            .prepare_cached(&format!(
                "UPDATE {edges} SET count = {edges}.count + mine.count,
                 first_seen = min({edges}.first_seen, mine.first_seen),
                 last_seen = max({edges}.last_seen, mine.last_seen),
                 process = iif(mine.last_seen > {edges}.last_seen, mine.process, {edges}.process)
                 FROM {edges} mine WHERE mine.id = ?1 AND {edges}.id = ?2"
            ))?
            .execute([mine, theirs])?;
        connection
            .prepare_cached(&format!("DELETE FROM {edges} WHERE id = ?1"))?
            .execute([mine])?;
    }
    connection
        .prepare_cached(&format!(
            "UPDATE {edges} SET workload = ?2 WHERE workload = ?1"
        ))?
        .execute([from, to])?;
    Ok(())
}

fn rename_findings(
    connection: &Connection,
    old: &Workload,
    new: &Workload,
) -> rusqlite::Result<()> {
    let (old_key, new_key) = (old.key(), new.key());
    let found: Vec<String> = connection
        .prepare_cached("SELECT json FROM finding WHERE workload = ?1")?
        .query_map([&old_key], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for text in found {
        // The stored finding was written by this program.
        let Ok(mut finding) = serde_json::from_str::<Finding>(&text) else {
            continue;
        };
        if finding.workload != *old {
            continue;
        }
        finding.workload = finding.workload.renamed(new);
        finding.summary = finding.summary.replace(&old_key, &new_key);
        connection
            .prepare_cached("UPDATE finding SET workload = ?2, json = ?3 WHERE id = ?1")?
            .execute(params![finding.id, new_key, json(&finding)])?;
    }
    Ok(())
}
