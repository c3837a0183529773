//! What is dropped: by age, and by size. What goes before its time is a gap.

use super::{from_micros, hour, micros, write::write_gap};
use crate::{model::Gap, policy::document::Retention};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// How often age and size are looked at.
pub const EVERY: Duration = Duration::from_secs(600);
/// A clock that goes so much further than time did has been set.
const JUMP: SignedDuration = SignedDuration::from_hours(1);
/// After that nothing is dropped by age for so long: the clock may be set back.
const DISTRUST: Duration = Duration::from_secs(24 * 3600);
/// Microseconds of an hour.
const HOUR: i64 = 3_600_000_000;
/// Pages given back to the file system at a time.
const PAGES: u32 = 4000;

/// When something was, by two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since boot: nobody sets it.
    pub steady: Duration,
    pub time: Timestamp,
}

impl Moment {
    pub fn now() -> Self {
        let since_boot = clock_gettime(ClockId::Boottime);
        Self {
            steady: Duration::try_from(since_boot).unwrap_or_default(),
            time: Timestamp::now(),
        }
    }
}

/// Keeps a ledger within its retention.
#[derive(Debug)]
pub struct Tidy {
    retention: Retention,
    last: Option<Moment>,
    /// When the clock was set, by the steady one.
    jumped: Option<Duration>,
}

impl Tidy {
    pub fn new(retention: Retention) -> Self {
        Self {
            retention,
            last: None,
            jumped: None,
        }
    }

    /// Whether it is time to.
    pub fn is_due(&self, now: Moment) -> bool {
        self.last
            .is_none_or(|last| now.steady.saturating_sub(last.steady) > EVERY)
    }

    /// Drops what is too old, and the oldest hours while the file is too large.
    pub fn tidy(&mut self, connection: &mut Connection, now: Moment) -> rusqlite::Result<()> {
        self.watch_clock(connection, now)?;
        let trusted = self
            .jumped
            .is_none_or(|jumped| now.steady.saturating_sub(jumped) > DISTRUST);
        if trusted {
            let oldest = now
                .time
                .checked_sub(self.retention.max_age)
                .unwrap_or(Timestamp::UNIX_EPOCH);
            drop_before(connection, hour(oldest), micros(oldest))?;
        }
        while size(connection)? > self.retention.max_bytes {
            let first: Option<i64> = connection.query_row(
                "SELECT min(hour) FROM (SELECT min(hour) AS hour FROM use_hour UNION ALL SELECT min(hour) FROM hop_hour)",
                [],
                |row| row.get(0),
            )?;
            // The hour that is being written stays.
            let Some(first) = first.filter(|first| *first < hour(now.time)) else {
                break;
            };
            drop_before(connection, first + 1, (first + 1) * HOUR)?;
            note_dropped(connection, first * HOUR, (first + 1) * HOUR)?;
        }
        Ok(())
    }

    /// Notes where the clock was set: what is stored around that has times that do not fit together.
    fn watch_clock(&mut self, connection: &Connection, now: Moment) -> rusqlite::Result<()> {
        let Some(last) = self.last.replace(now) else {
            return Ok(());
        };
        let passed = SignedDuration::try_from(now.steady.saturating_sub(last.steady))
            .unwrap_or(SignedDuration::MAX);
        let shown = now.time.duration_since(last.time);
        let off = shown.saturating_sub(passed);
        if off.abs() < JUMP {
            return Ok(());
        }
        self.jumped = Some(now.steady);
        let direction = if off.is_negative() { "back" } else { "ahead" };
        write_gap(
            connection,
            &Gap {
                kind: "clock-set".to_owned(),
                probe: None,
                detail: format!(
                    "the machine's clock was set {direction} by {} min: times before and after do not fit together",
                    off.abs().as_mins()
                ),
                since: last.time.min(now.time),
                until: Some(last.time.max(now.time)),
                count: 0,
                blind: false,
            },
        )
    }
}

/// One gap for all that was dropped in a row: it grows.
fn note_dropped(connection: &Connection, since: i64, until: i64) -> rusqlite::Result<()> {
    const KIND: &str = "dropped-for-size";
    let grown = connection.execute(
        "UPDATE gap SET until = ?1 WHERE kind = ?2 AND until = ?3",
        params![until, KIND, since],
    )?;
    if grown > 0 {
        return Ok(());
    }
    write_gap(
        connection,
        &Gap {
            kind: KIND.to_owned(),
            probe: None,
            detail: "the oldest records were dropped to keep the ledger below its size".to_owned(),
            since: from_micros(since),
            until: Some(from_micros(until)),
            count: 0,
            blind: false,
        },
    )
}

fn drop_before(connection: &mut Connection, hour: i64, time: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let mut dropped = 0;
    for (sql, before) in [
        ("DELETE FROM use_hour WHERE hour < ?1", hour),
        ("DELETE FROM hop_hour WHERE hour < ?1", hour),
        ("DELETE FROM mint_hour WHERE hour < ?1", hour),
        ("DELETE FROM process WHERE hour < ?1", hour),
        ("DELETE FROM use_edge WHERE last_seen < ?1", time),
        ("DELETE FROM hop_edge WHERE last_seen < ?1", time),
        (
            "DELETE FROM source WHERE credential IN (SELECT id FROM credential WHERE last_used < ?1)",
            time,
        ),
        ("DELETE FROM credential WHERE last_used < ?1", time),
        ("DELETE FROM finding WHERE last_seen < ?1", time),
    ] {
        dropped += transaction.execute(sql, [before])?;
    }
    transaction.execute(
        "DELETE FROM gap WHERE until < ?1 AND kind <> 'dropped-for-size'",
        [time],
    )?;
    if dropped > 0 {
        transaction.execute_batch(
            "DELETE FROM workload WHERE id NOT IN (SELECT workload FROM use_edge
                 UNION SELECT workload FROM hop_edge UNION SELECT workload FROM mint_hour);
             DELETE FROM destination WHERE id NOT IN (SELECT destination FROM hop_edge
                 UNION SELECT destination FROM mint_hour);",
        )?;
    }
    transaction.commit()?;
    connection.execute_batch(&format!("PRAGMA incremental_vacuum({PAGES})"))
}

fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let pages: i64 = connection.query_row(
        "SELECT (SELECT page_count FROM pragma_page_count()) - (SELECT freelist_count FROM pragma_freelist_count())",
        [],
        |row| row.get(0),
    )?;
    let size: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok((pages * size).max(0) as u64)
}
