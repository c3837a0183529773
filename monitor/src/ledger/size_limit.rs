//! Keeps the file below its size limit. Whoever has the most loses their oldest records: nobody can
//! displace what is known about others.

use super::{
    HOUR_MICROS,
    rows::write_gap,
    shares::{group_of, share_name},
};
use jiff::Timestamp;
use monitor_core::{fair_cache::fair_caps, model::Gap};
use rusqlite::{Connection, params};

/// The file shrinks to this part of the limit, so that there is time until the next reduction.
const TARGET_PERCENT: u64 = 90;
/// Of the current hour, nobody loses less than this, in bytes.
const CURRENT_HOUR_MIN: u64 = 1 << 20;
/// Owners with a gap of their own; the others share one.
const GAPS_MAX: i64 = 64;

/// Pages returned to the file system at a time.
const VACUUM_PAGES: u32 = 4000;

/// What one owner has stored.
#[derive(Debug, Default)]
struct OwnerSize {
    owner: String,
    total: u64,
    /// Estimated bytes by hour, the oldest first.
    hours: Vec<(i64, u64)>,
}

impl OwnerSize {
    /// What to drop, so that the rest fits.
    fn to_drop(&self, cap: u64, current_hour: i64) -> Option<DroppedHours<'_>> {
        let mut rest = self.total;
        let mut last = None;
        for (hour, bytes) in &self.hours {
            let is_kept = *hour >= current_hour && *bytes < CURRENT_HOUR_MIN;
            if rest <= cap || is_kept {
                break;
            }
            rest = rest.saturating_sub(*bytes);
            last = Some(*hour);
        }
        Some(DroppedHours {
            owner: &self.owner,
            first: self.hours.first()?.0,
            last: last?,
        })
    }
}

/// Hours since the epoch that are dropped of an owner, both inclusive.
#[derive(Debug)]
struct DroppedHours<'a> {
    owner: &'a str,
    first: i64,
    last: i64,
}

/// What is dropped of an owner's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DropScope {
    /// What has nothing to do with a finding: a flood does not hide a theft by the same owner.
    WithoutFindings,
    Everything,
}

/// Drops records of whoever has the most while the file is larger than `max_bytes`.
pub fn shrink(
    connection: &mut Connection,
    max_bytes: u64,
    current_hour: i64,
) -> rusqlite::Result<()> {
    for scope in [DropScope::WithoutFindings, DropScope::Everything] {
        let size = size(connection)?;
        if size <= max_bytes {
            return Ok(());
        }
        let owners = owner_sizes(connection)?;
        let estimated: u64 = owners.iter().map(|owner| owner.total).sum();
        let target = max_bytes.saturating_mul(TARGET_PERCENT) / 100;
        // As a part of what is estimated, because the estimate omits indexes.
        let allowed = u128::from(estimated) * u128::from(target) / u128::from(size.max(1));
        let allowed = u64::try_from(allowed).unwrap_or(u64::MAX);
        let sizes = owners
            .iter()
            .map(|owner| (group_of(&owner.owner), owner.total));
        let caps = fair_caps(sizes, allowed);
        let dropped: Vec<DroppedHours<'_>> = owners
            .iter()
            .filter_map(|owner| {
                let cap = caps.get(group_of(&owner.owner))?;
                owner.to_drop(*cap, current_hour)
            })
            .collect();
        if !dropped.is_empty() {
            drop_records(connection, &dropped, scope)?;
            vacuum(connection)?;
        }
    }
    Ok(())
}

/// Bytes of the file that are in use.
pub fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let pages: i64 = connection.query_row(
        "SELECT (SELECT page_count FROM pragma_page_count()) - (SELECT freelist_count FROM pragma_freelist_count())",
        [],
        |row| row.get(0),
    )?;
    let size: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok((pages * size).max(0) as u64)
}

fn owner_sizes(connection: &Connection) -> rusqlite::Result<Vec<OwnerSize>> {
    // Rows of an hour also stand for those of their edge, credential and place.
    let mut statement = connection.prepare(
        "SELECT owner, hour, sum(bytes) FROM (
            SELECT owner, hour, length(json) + 100 AS bytes FROM process
            UNION ALL SELECT p.owner, h.hour, 500 FROM use_hour h JOIN process p ON p.id = h.process
            UNION ALL SELECT p.owner, h.hour, 300 FROM hop_hour h JOIN process p ON p.id = h.process
            UNION ALL SELECT p.owner, f.last_seen / ?1, length(f.json) + 300
                FROM finding f JOIN process p ON p.id = f.process)
         GROUP BY owner, hour ORDER BY owner, hour",
    )?;
    let mut rows = statement.query([HOUR_MICROS])?;
    let mut owners: Vec<OwnerSize> = Vec::new();
    while let Some(row) = rows.next()? {
        let (owner, hour): (String, i64) = (row.get(0)?, row.get(1)?);
        let bytes = row.get::<_, i64>(2)?.max(0) as u64;
        if owners.last().is_none_or(|last| last.owner != owner) {
            owners.push(OwnerSize {
                owner,
                ..OwnerSize::default()
            });
        }
        if let Some(last) = owners.last_mut() {
            last.total += bytes;
            last.hours.push((hour, bytes));
        }
    }
    Ok(owners)
}

/// Drops owners' records up to and including an hour, and records that in gaps.
fn drop_records(
    connection: &mut Connection,
    dropped: &[DroppedHours<'_>],
    scope: DropScope,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TEMP TABLE dropped (id INTEGER PRIMARY KEY, last INTEGER NOT NULL)",
    )?;
    for of_owner in dropped {
        transaction
            .prepare_cached("INSERT INTO dropped SELECT id, ?2 FROM process WHERE owner = ?1")?
            .execute(params![of_owner.owner, of_owner.last])?;
    }
    let kept = match scope {
        DropScope::WithoutFindings => "SELECT credential FROM finding",
        DropScope::Everything => "SELECT NULL WHERE 0",
    };
    let mut count = 0;
    for (hours, edges) in [("use_hour", "use_edge"), ("hop_hour", "hop_edge")] {
        count += transaction.execute(
            &format!(
                "DELETE FROM {hours} WHERE hour <= (SELECT last FROM dropped WHERE id = process)
                 AND edge NOT IN (SELECT id FROM {edges} WHERE credential IN ({kept}))"
            ),
            [],
        )?;
        transaction.execute(
            &format!(
                "DELETE FROM {edges} WHERE process IN (SELECT id FROM dropped)
                 AND id NOT IN (SELECT edge FROM {hours})"
            ),
            [],
        )?;
    }
    if scope == DropScope::Everything {
        count += transaction.execute(
            "DELETE FROM finding WHERE last_seen / ?1 <= (SELECT last FROM dropped WHERE id = process)",
            [HOUR_MICROS],
        )?;
    }
    transaction.execute_batch(DROP_UNREFERENCED)?;
    if count > 0 {
        for of_owner in dropped {
            note_dropped(&transaction, of_owner)?;
        }
    }
    transaction.commit()
}

/// Drops what only dropped records referred to.
const DROP_UNREFERENCED: &str = "
    DELETE FROM process WHERE id IN (SELECT id FROM dropped) AND id NOT IN (
        SELECT process FROM use_hour UNION SELECT first_process FROM use_hour
        UNION SELECT process FROM hop_hour UNION SELECT first_process FROM hop_hour
        UNION SELECT process FROM use_edge UNION SELECT process FROM hop_edge
        UNION SELECT process FROM finding);
    DROP TABLE dropped;
    DELETE FROM credential WHERE id NOT IN (
        SELECT credential FROM use_edge UNION SELECT credential FROM hop_edge
        UNION SELECT presented FROM mint_hour UNION SELECT minted FROM mint_hour
        UNION SELECT credential FROM finding);
    DELETE FROM source WHERE credential NOT IN (SELECT id FROM credential);
    DELETE FROM workload WHERE id NOT IN (SELECT workload FROM use_edge
        UNION SELECT workload FROM hop_edge UNION SELECT workload FROM mint_hour);
    DELETE FROM program WHERE workload NOT IN (SELECT id FROM workload);
    DELETE FROM destination WHERE id NOT IN (SELECT destination FROM hop_edge
        UNION SELECT destination FROM mint_hour);";

/// One gap for each owner, which grows.
fn note_dropped(connection: &Connection, dropped: &DroppedHours<'_>) -> rusqlite::Result<()> {
    const KIND: &str = "dropped-for-size";
    let owner = dropped.owner;
    let (since, until) = (
        dropped.first * HOUR_MICROS,
        (dropped.last + 1) * HOUR_MICROS,
    );
    let detail = |owner: &str| {
        format!("records of {owner} were dropped to keep the ledger below its size limit")
    };
    let known: i64 =
        connection.query_row("SELECT count(*) FROM gap WHERE kind = ?1", [KIND], |row| {
            row.get(0)
        })?;
    for detail in [detail(share_name(owner)), detail("others")] {
        let grown = connection.execute(
            "UPDATE gap SET since = min(since, ?1), until = max(until, ?2) WHERE kind = ?3 AND detail = ?4",
            params![since, until, KIND, detail],
        )?;
        if grown > 0 {
            return Ok(());
        }
    }
    let named = if known < GAPS_MAX {
        share_name(owner)
    } else {
        "others"
    };
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    write_gap(
        connection,
        &Gap {
            kind: KIND.to_owned(),
            probe: None,
            detail: detail(named),
            since: time(since),
            until: Some(time(until).min(Timestamp::now())),
            count: 0,
            blind: false,
        },
    )
}

/// Returns free pages to the file system.
pub fn vacuum(connection: &Connection) -> rusqlite::Result<()> {
    // It returns one page per step.
    let mut statement =
        connection.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut pages = statement.query([])?;
    while pages.next()?.is_some() {}
    Ok(())
}
