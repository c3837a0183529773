//! Enforces retention by age and size. What is dropped early becomes a gap.

use super::{
    HOUR_MICROS, from_micros, hour, micros,
    rows::write_gap,
    size_limit::{shrink, size, vacuum},
};
use crate::config::settings::RetentionLimits;
use jiff::{SignedDuration, Timestamp};
use monitor_core::model::Gap;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Interval of the checks of age and size.
pub const INTERVAL: Duration = Duration::from_secs(600);
/// Interval of the check whether the file is far above its limit.
const GROWTH_INTERVAL: Duration = Duration::from_secs(15);
/// A clock that advances this much more than real time was set.
const CLOCK_JUMP_MIN: SignedDuration = SignedDuration::from_hours(1);
/// After an agent was down for longer than this, by an unobserved clock, the clock may be wrong.
const DOWNTIME_MIN: SignedDuration = SignedDuration::from_hours(24);
/// After such an event nothing is dropped by age for this long, because the clock may be set back.
const CLOCK_DISTRUST: Duration = Duration::from_secs(24 * 3600);

/// A point in time on two clocks.
#[derive(Clone, Copy, Debug)]
pub struct ClockReading {
    /// Time since boot, which cannot be set.
    pub steady: Duration,
    pub time: Timestamp,
}

impl ClockReading {
    pub fn now() -> Self {
        let since_boot = clock_gettime(ClockId::Boottime);
        Self {
            steady: Duration::try_from(since_boot).unwrap_or_default(),
            time: Timestamp::now(),
        }
    }
}

/// Keeps a ledger within its retention limits.
#[derive(Debug)]
pub struct RetentionTask {
    retention: RetentionLimits,
    last: Option<ClockReading>,
    /// When the clock was set, by the steady clock.
    jumped: Option<Duration>,
}

impl RetentionTask {
    /// For a ledger that was last written at a given time, if ever.
    pub fn new(retention: RetentionLimits, alive: Option<Timestamp>, now: ClockReading) -> Self {
        let doubtful = alive.is_some_and(|alive| {
            let away = now.time.duration_since(alive);
            away > DOWNTIME_MIN || away < -CLOCK_JUMP_MIN
        });
        Self {
            retention,
            last: None,
            jumped: doubtful.then_some(now.steady),
        }
    }

    /// Whether a check is due: regularly, and earlier if the file grows fast.
    pub fn is_due(&self, connection: &Connection, now: ClockReading) -> bool {
        let Some(last) = self.last else {
            return true;
        };
        let passed = now.steady.saturating_sub(last.steady);
        let limit = self.retention.max_bytes;
        let is_far_above =
            || size(connection).is_ok_and(|size| size > limit.saturating_add(limit / 10));
        passed > INTERVAL || (passed > GROWTH_INTERVAL && is_far_above())
    }

    /// Drops what is too old, and the oldest hours while the file is too large.
    pub fn run(&mut self, connection: &mut Connection, now: ClockReading) -> rusqlite::Result<()> {
        self.watch_clock(connection, now)?;
        let trusted = self
            .jumped
            .is_none_or(|jumped| now.steady.saturating_sub(jumped) > CLOCK_DISTRUST);
        if trusted {
            let oldest = now
                .time
                .checked_sub(self.retention.max_age)
                .unwrap_or(Timestamp::UNIX_EPOCH);
            drop_before(connection, hour(oldest), micros(oldest), FOR_AGE)?;
        }
        shrink(connection, self.retention.max_bytes, hour(now.time))?;
        // What has no owner, such as mints.
        while size(connection)? > self.retention.max_bytes {
            let first: Option<i64> = connection.query_row(
                "SELECT min(hour) FROM (SELECT min(hour) AS hour FROM use_hour UNION ALL SELECT min(hour) FROM hop_hour)",
                [],
                |row| row.get(0),
            )?;
            // The current hour is kept.
            let Some(first) = first.filter(|first| *first < hour(now.time)) else {
                break;
            };
            drop_before(connection, first + 1, (first + 1) * HOUR_MICROS, FOR_SIZE)?;
        }
        Ok(())
    }

    /// Records when the clock was set: stored times around that moment are inconsistent.
    fn watch_clock(&mut self, connection: &Connection, now: ClockReading) -> rusqlite::Result<()> {
        let Some(last) = self.last.replace(now) else {
            return Ok(());
        };
        let passed = SignedDuration::try_from(now.steady.saturating_sub(last.steady))
            .unwrap_or(SignedDuration::MAX);
        let clock_passed = now.time.duration_since(last.time);
        let off = clock_passed.saturating_sub(passed);
        if off.abs() < CLOCK_JUMP_MIN {
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
                    "the machine's clock was set {direction} by {} min: times before and after are not comparable",
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

/// Why something was dropped: the kind of the gap, and its description.
type DropReason = (&'static str, &'static str);
const FOR_SIZE: DropReason = (
    "dropped-for-size",
    "the oldest records were dropped to keep the ledger below its size limit",
);
const FOR_AGE: DropReason = (
    "dropped-for-age",
    "older records were dropped according to the configured retention",
);

/// Records dropped data in one gap per kind, which grows.
fn note_dropped(
    connection: &Connection,
    (kind, detail): DropReason,
    since: i64,
    until: i64,
) -> rusqlite::Result<()> {
    let grown = connection.execute(
        "UPDATE gap SET since = min(since, ?1), until = max(until, ?2) WHERE kind = ?3",
        params![since, until, kind],
    )?;
    if grown > 0 {
        return Ok(());
    }
    write_gap(
        connection,
        &Gap {
            kind: kind.to_owned(),
            probe: None,
            detail: detail.to_owned(),
            since: from_micros(since),
            until: Some(from_micros(until)),
            count: 0,
            blind: false,
        },
    )
}

/// Drops what ended before a time, and records since when nothing is stored any more.
fn drop_before(
    connection: &mut Connection,
    hour: i64,
    time: i64,
    why: DropReason,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let since: Option<i64> = transaction.query_row(
        "SELECT min(since) FROM (
            SELECT min(hour) * ?3 AS since FROM use_hour WHERE hour < ?1
            UNION ALL SELECT min(hour) * ?3 FROM hop_hour WHERE hour < ?1
            UNION ALL SELECT min(hour) * ?3 FROM mint_hour WHERE hour < ?1
            UNION ALL SELECT min(first_seen) FROM finding WHERE last_seen < ?2
            UNION ALL SELECT min(since) FROM gap WHERE until < ?2 AND kind NOT IN (?4, ?5))",
        params![hour, time, HOUR_MICROS, FOR_SIZE.0, FOR_AGE.0],
        |row| row.get(0),
    )?;
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
        transaction.execute(sql, [before])?;
    }
    if let Some(since) = since {
        transaction.execute(
            "DELETE FROM gap WHERE until < ?1 AND kind NOT IN (?2, ?3)",
            params![time, FOR_SIZE.0, FOR_AGE.0],
        )?;
        note_dropped(&transaction, why, since, time)?;
        transaction.execute_batch(
            "DELETE FROM workload WHERE id NOT IN (SELECT workload FROM use_edge
                 UNION SELECT workload FROM hop_edge UNION SELECT workload FROM mint_hour);
             DELETE FROM program WHERE workload NOT IN (SELECT id FROM workload);
             DELETE FROM destination WHERE id NOT IN (SELECT destination FROM hop_edge
                 UNION SELECT destination FROM mint_hour);",
        )?;
    }
    transaction.commit()?;
    vacuum(connection)
}
