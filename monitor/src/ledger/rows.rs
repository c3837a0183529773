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

/// A counted loss that is reported again within this time, in microseconds, is the same gap.
const REPEATED_WITHIN_MICROS: i64 = 30_000_000;

/// An open gap that exists already continues; its count grows.
pub(super) fn write_gap(connection: &Connection, gap: &Gap) -> rusqlite::Result<()> {
    // A gap that is reported again, with its end or without, is still the same; and so is a loss that
    // goes on. Times without an agent are not joined: what was seen between them is not missing.
    let within = if gap.count > 0 {
        REPEATED_WITHIN_MICROS
    } else {
        0
    };
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
                within,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::schema::migrate;
    use std::path::Path;

    /// The gaps after some were written, from second to second.
    fn written(gaps: &[(u64, i64, i64)]) -> Vec<(i64, i64, i64)> {
        let mut connection = Connection::open_in_memory().expect("a database");
        migrate(&mut connection, Path::new("ledger")).expect("a schema");
        let at = |second| jiff::Timestamp::from_second(second).expect("in range");
        for (count, since, until) in gaps {
            let gap = Gap {
                kind: "a-kind".to_owned(),
                probe: None,
                detail: "a detail".to_owned(),
                since: at(*since),
                until: Some(at(*until)),
                count: *count,
                blind: false,
            };
            write_gap(&connection, &gap).expect("written");
        }
        let mut all = connection
            .prepare("SELECT count, since / 1000000, until / 1000000 FROM gap ORDER BY id")
            .expect("a statement");
        let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        rows.expect("rows").map(|row| row.expect("a row")).collect()
    }

    #[test]
    fn losses_that_go_on_are_one_gap_and_times_without_an_agent_are_several() {
        assert_eq!(written(&[(5, 10, 11), (7, 20, 21)]), [(12, 10, 21)]);
        assert_eq!(
            written(&[(5, 10, 11), (7, 60, 61)]),
            [(5, 10, 11), (7, 60, 61)]
        );
        assert_eq!(
            written(&[(0, 10, 11), (0, 20, 21)]),
            [(0, 10, 11), (0, 20, 21)]
        );
    }
}
