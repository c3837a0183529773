//! Writes a record each: uses and hops as edges and their hours, mints, findings; and what they refer
//! to.

use super::{
    hour, micros,
    rows::{intern, json},
    shares::owner,
};
use jiff::Timestamp;
use monitor_core::model::{
    Credential, Destination, Finding, Hop, Mint, Place, Process, Source, Use, Verdict, Workload,
};
use rusqlite::{Connection, params};

fn credential(
    connection: &Connection,
    credential: &Credential,
    time: Timestamp,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO credential VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12)
             ON CONFLICT DO UPDATE SET class = ?2, unmarked = ?12, role = ?3, lifetime = ?4, name = coalesce(?5, name),
             owner = coalesce(?6, owner), label = coalesce(?7, label),
             audience = iif(?8 = '[]', audience, ?8), issued_at = coalesce(?9, issued_at),
             expires_at = coalesce(?10, expires_at), last_used = max(last_used, ?11), first_seen = min(first_seen, ?11)",
        )?
        .execute(params![
            credential.id.0,
            credential.class,
            credential.role.as_str(),
            credential.lifetime.as_str(),
            credential.name,
            credential.owner,
            credential.label,
            json(&credential.audience),
            credential.issued_at.map(micros),
            credential.expires_at.map(micros),
            micros(time),
            credential.unmarked,
        ])?;
    Ok(())
}

fn place(connection: &Connection, credential: &Credential, place: &Place) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO source VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            credential.id.0,
            place.source.as_str(),
            place.place,
            credential.copies.contains(place),
        ])?;
    Ok(())
}

pub(super) fn write_use(connection: &Connection, used: &Use) -> rusqlite::Result<()> {
    credential(connection, &used.credential, used.time)?;
    place(connection, &used.credential, &used.place)?;
    // Its other places were written when it was picked up there.
    if used.place.source != Source::Presented {
        for source in &used.credential.sources {
            place(connection, &used.credential, source)?;
        }
    }
    let process = process(connection, &used.workload, &used.process, used.time)?;
    let workload = workload(connection, &used.workload, &used.process)?;
    let (count, time) = (used.count as i64, micros(used.time));
    let edge: i64 = connection
        .prepare_cached(
            "INSERT INTO use_edge (credential, workload, source, place, count, first_seen, last_seen, process, modified)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8)
             ON CONFLICT (credential, workload, source, place) DO UPDATE SET count = count + ?5,
             last_seen = max(last_seen, ?6), first_seen = min(first_seen, ?6),
             process = iif(?6 >= last_seen, ?7, process), modified = coalesce(?8, modified) RETURNING id",
        )?
        .query_row(
            params![
                used.credential.id.0,
                workload,
                used.place.source.as_str(),
                used.place.place,
                count,
                time,
                process,
                used.modified.map(micros),
            ],
            |row| row.get(0),
        )?;
    connection
        .prepare_cached(
            "INSERT INTO use_hour VALUES (?1, ?2, ?3, ?4, ?4, ?5, 0)
             ON CONFLICT DO UPDATE SET count = count + ?3, last_seen = max(last_seen, ?4),
             first_process = iif(?4 < first_seen, ?5, iif(first_process = 0 AND process <> ?5, process, first_process)),
             first_seen = min(first_seen, ?4), process = ?5",
        )?
        .execute(params![edge, hour(used.time), count, time, process])?;
    Ok(())
}

pub(super) fn write_hop(
    connection: &Connection,
    hop: &Hop,
    verdict: Verdict,
) -> rusqlite::Result<()> {
    credential(connection, &hop.credential, hop.time)?;
    let process = process(connection, &hop.workload, &hop.process, hop.time)?;
    let workload = workload(connection, &hop.workload, &hop.process)?;
    let destination = place_index(connection, &hop.destination)?;
    let (count, time) = (hop.count as i64, micros(hop.time));
    let edge: i64 = connection
        .prepare_cached(
            "INSERT INTO hop_edge
             (credential, workload, destination, evidence, verdict, count, first_seen, last_seen, process)
             VALUES (?1, ?2, ?3, ?4, ?5, ?8, ?6, ?6, ?7)
             ON CONFLICT (credential, workload, destination, evidence) DO UPDATE SET count = count + ?8,
             last_seen = max(last_seen, ?6), first_seen = min(first_seen, ?6), verdict = ?5,
             process = iif(?6 >= last_seen, ?7, process) RETURNING id",
        )?
        .query_row(
            params![
                hop.credential.id.0,
                workload,
                destination,
                hop.evidence.as_str(),
                verdict.as_str(),
                time,
                process,
                count,
            ],
            |row| row.get(0),
        )?;
    connection
        .prepare_cached(
            "INSERT INTO hop_hour VALUES (?1, ?2, ?3, ?6, ?4, ?4, ?5, 0)
             ON CONFLICT DO UPDATE SET count = count + ?6, last_seen = max(last_seen, ?4),
             first_process = iif(?4 < first_seen, ?5, iif(first_process = 0 AND process <> ?5, process, first_process)),
             first_seen = min(first_seen, ?4), verdict = ?3, process = ?5",
        )?
        .execute(params![
            edge,
            hour(hop.time),
            verdict.as_str(),
            time,
            process,
            count
        ])?;
    Ok(())
}

/// The row of a process, which is kept as long as an hour refers to it.
fn process(
    connection: &Connection,
    workload: &Workload,
    process: &Process,
    time: Timestamp,
) -> rusqlite::Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO process (json, hour, owner) VALUES (?1, ?2, ?3)
             ON CONFLICT (json) DO UPDATE SET hour = max(hour, ?2) RETURNING id",
        )?
        .query_row(
            params![json(process), hour(time), owner(workload, process)],
            |row| row.get(0),
        )
}

fn workload(
    connection: &Connection,
    workload: &Workload,
    process: &Process,
) -> rusqlite::Result<i64> {
    let id = intern(
        connection,
        "SELECT id FROM workload WHERE json = ?1",
        "INSERT INTO workload (json, key, exe) VALUES (?1, ?2, ?3)",
        &json(workload),
        &[&workload.key(), &process.exe],
    )?;
    if !is_transient_program(&process.exe) {
        connection
            .prepare_cached("INSERT OR IGNORE INTO program VALUES (?1, ?2)")?
            .execute(params![process.exe, id])?;
    }
    Ok(id)
}

/// Whether a program is a one-off, such as one that a build creates and runs once.
fn is_transient_program(exe: &str) -> bool {
    ["/tmp/", "/var/tmp/", "/dev/shm/", "/memfd:"]
        .iter()
        .any(|start| exe.starts_with(start))
}

fn place_index(transaction: &Connection, destination: &Destination) -> rusqlite::Result<i64> {
    intern(
        transaction,
        "SELECT id FROM destination WHERE json = ?1",
        "INSERT INTO destination (json, label) VALUES (?1, ?2)",
        &json(destination),
        &[&destination.label()],
    )
}

pub(super) fn write_mint(transaction: &Connection, mint: &Mint) -> rusqlite::Result<()> {
    let sides = [&mint.presented, &mint.minted];
    for known in sides.into_iter().flatten() {
        credential(transaction, known, mint.time)?;
    }
    let id = |side: &Option<Credential>| {
        side.as_ref()
            .map_or_else(String::new, |known| known.id.0.clone())
    };
    let workload = workload(transaction, &mint.workload, &mint.process)?;
    let destination = place_index(transaction, &mint.authenticator)?;
    transaction
        .prepare_cached(
            "INSERT INTO mint_hour VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, ?7)
             ON CONFLICT DO UPDATE SET count = count + 1, last_seen = max(last_seen, ?6),
             first_seen = min(first_seen, ?6), process = ?7",
        )?
        .execute(params![
            id(&mint.presented),
            id(&mint.minted),
            workload,
            destination,
            hour(mint.time),
            micros(mint.time),
            json(&mint.process),
        ])?;
    Ok(())
}

/// Writes a finding without what is stored elsewhere: its process, and gaps that are not its own.
pub(super) fn write_finding(connection: &Connection, finding: &Finding) -> rusqlite::Result<()> {
    let process = match &finding.process {
        Some(known) => process(connection, &finding.workload, known, finding.last_seen)?,
        None => 0,
    };
    let mut rest = finding.clone();
    rest.process = None;
    rest.gaps.retain(|gap| gap.blind);
    connection
        .prepare_cached(
            "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET last_seen = ?6, count = ?7, json = ?8, process = ?9",
        )?
        .execute(params![
            finding.id,
            finding.rule,
            finding.credential.as_ref().map_or("", |known| &known.id.0),
            finding.workload.key(),
            micros(finding.first_seen),
            micros(finding.last_seen),
            finding.count as i64,
            json(&rest),
            process,
        ])?;
    Ok(())
}
