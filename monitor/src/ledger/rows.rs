//! Rows that several writers share: interned values, and gaps.

use super::micros;
use monitor_core::model::Gap;
use rusqlite::{Connection, OptionalExtension as _, params};

pub(super) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

/// The row of a value shared by many records.
pub(super) fn intern(
    connection: &Connection,
    find: &str,
    insert: &str,
    json: &str,
    more: &[&str],
) -> rusqlite::Result<i64> {
    let found: Option<i64> = connection
        .prepare_cached(find)?
        .query_row([json], |row| row.get(0))
        .optional()?;
    if let Some(found) = found {
        return Ok(found);
    }
    let values = std::iter::once(json).chain(more.iter().copied());
    connection
        .prepare_cached(insert)?
        .execute(rusqlite::params_from_iter(values))?;
    Ok(connection.last_insert_rowid())
}

/// A loss that is reported again within this time, in microseconds, is the same gap.
const REPEATED_WITHIN_MICROS: i64 = 30_000_000;

/// An open gap that exists already continues; its count grows.
pub(super) fn write_gap(connection: &Connection, gap: &Gap) -> rusqlite::Result<()> {
    // A gap that is reported again, with its end or without, is still the same; and so is a loss that
    // goes on.
    let known: Option<i64> = connection
        .prepare_cached(
            "SELECT id FROM gap WHERE kind = ?1 AND probe IS ?2 AND detail = ?3
             AND (until IS NULL OR (?5 IS NOT NULL AND until BETWEEN ?4 - ?6 AND ?5))
             ORDER BY until IS NULL DESC, id DESC LIMIT 1",
        )?
        .query_row(
            params![
                gap.kind,
                gap.probe,
                gap.detail,
                micros(gap.since),
                gap.until.map(micros),
                REPEATED_WITHIN_MICROS,
            ],
            |row| row.get(0),
        )
        .optional()?;
    match known {
        Some(id) => {
            connection
                .prepare_cached(
                    "UPDATE gap SET count = count + ?2, until = ?3, since = min(since, ?4) WHERE id = ?1",
                )?
                .execute(params![
                    id,
                    gap.count as i64,
                    gap.until.map(micros),
                    micros(gap.since)
                ])?;
        }
        None => {
            connection
                .prepare_cached(
                    "INSERT INTO gap (kind, probe, detail, since, until, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    gap.kind,
                    gap.probe,
                    gap.detail,
                    micros(gap.since),
                    gap.until.map(micros),
                    gap.count as i64
                ])?;
        }
    }
    Ok(())
}
