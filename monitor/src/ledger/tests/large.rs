//! A benchmark with ten million records.

use super::*;

/// Ten million records of ninety days: 500 workloads, 5,000 credentials, 50,000 edges each seen in
/// 200 hours, except one credential that a hundred edges used in every hour.
#[test]
#[ignore = "takes minutes; `cargo xtask bench --ledger` runs it and prints what it measured"]
fn ten_million_records() {
    use std::time::Instant;
    // Can be set to keep the ledger for further queries.
    let kept = std::env::var_os("KEYTRAIL_BENCH_LEDGER").map(std::path::PathBuf::from);
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = kept.as_deref().unwrap_or(temporary.path());
    write(directory, forever(), vec![used(1, "/a", "/x", at(0))]);
    let path = directory.join(FILE_NAME);
    let connection = rusqlite::Connection::open(&path).expect("opens");
    let began = Instant::now();
    let now = hour(Timestamp::now());
    let first = now - 90 * 24;
    let LedgerEntry::Hop(hop, _) = hop(1, "HOST", at(0), Verdict::Expected) else {
        unreachable!("it is one");
    };
    connection
        .execute_batch(&format!(
            r#"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144; BEGIN;
DELETE FROM use_hour; DELETE FROM use_edge; DELETE FROM workload; DELETE FROM process; DELETE FROM credential; DELETE FROM source;
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 49999) SELECT i FROM n;
INSERT INTO workload SELECT i + 1, 'ns' || (i % 50) || '/app-' || i, '/usr/bin/app-' || i,
    '{{"kind":"deployment","namespace":"ns' || (i % 50) || '","name":"app-' || i || '"}}' FROM n WHERE i < 500;
INSERT INTO program SELECT exe, id FROM workload;
INSERT INTO credential SELECT printf('kt-%016x', i), 'aws-access-key', 'access', 'static', NULL, NULL, NULL, '[]', NULL, NULL,
    {first} * 3600000000, {now} * 3600000000, 0 FROM n WHERE i < 5000;
INSERT INTO source SELECT printf('kt-%016x', i), 'file', '/srv/app-' || i || '/key' FROM n WHERE i < 5000;
INSERT INTO destination SELECT i + 1, 'host-' || i || '.example:443',
    replace('{destination}', 'HOST', 'host-' || i || '.example') FROM n WHERE i < 2000;
INSERT INTO process SELECT i + 1, replace('{process}', '"pid":7', '"pid":' || i), {now} FROM n;
INSERT INTO hop_edge SELECT i + 1, printf('kt-%016x', i / 10), 1 + i % 500, 1 + (i * 7) % 2000, 'presented', 'expected', 200,
    {first} * 3600000000, {now} * 3600000000, i + 1 FROM n;
INSERT OR IGNORE INTO hop_edge SELECT 50001 + i, printf('kt-%016x', 4999), 1 + i, 1 + i, 'sole', 'unexpected', 2160,
    {first} * 3600000000, {now} * 3600000000, i + 1 FROM n WHERE i < 100;
INSERT INTO hop_hour SELECT e.id, {first} + h.i * 10 + e.id % 10, 'expected', 1,
    ({first} + h.i * 10 + e.id % 10) * 3600000000 + 1, ({first} + h.i * 10 + e.id % 10) * 3600000000 + 2, e.id, 0
    FROM hop_edge e CROSS JOIN n h WHERE e.id <= 50000 AND h.i < 200;
INSERT INTO hop_hour SELECT e.id, {first} + h.i, 'unexpected', 1, ({first} + h.i) * 3600000000 + 1,
    ({first} + h.i) * 3600000000 + 2, e.process, 0 FROM hop_edge e CROSS JOIN n h WHERE e.id > 50000 AND h.i < 2160;
INSERT INTO use_edge SELECT i + 1, printf('kt-%016x', i / 2), 1 + i % 500, 'file', '/srv/app-' || (i / 2) || '/key', 90,
    {first} * 3600000000, {now} * 3600000000, i + 1, NULL FROM n WHERE i < 10000;
INSERT INTO use_hour SELECT e.id, {first} + h.i * 24, 1, ({first} + h.i * 24) * 3600000000, ({first} + h.i * 24) * 3600000000, e.id, 0
    FROM use_edge e CROSS JOIN n h WHERE h.i < 90;
COMMIT; ANALYZE;"#,
            destination = rows::json(&hop.destination),
            process = rows::json(&process("/usr/bin/app")),
        ))
        .expect("filled");
    let count: i64 = connection
        .query_row("SELECT count(*) FROM hop_hour", [], |row| row.get(0))
        .expect("counted");
    drop(connection);
    let size = std::fs::metadata(&path).expect("there").len();
    println!(
        "{count} hop records, made in {:.0} s: {} MB, {} MB a million",
        began.elapsed().as_secs_f64(),
        size >> 20,
        (size / (count as u64 / 1_000_000)) >> 20
    );
    assert!(count >= 10_000_000);
    let (cold, hot, workload) = ("kt-0000000000000007", "kt-0000000000001387", "ns7/app-7");
    let since = |hours: i64| TimeRange {
        since: Some(from_micros((now - hours) * 3_600_000_000)),
        until: None,
    };
    let whole = TimeRange::default();
    type QuestionFn<'a> = Box<dyn Fn(&LedgerReader) -> usize + 'a>;
    let questions: Vec<(&str, QuestionFn<'_>)> = vec![
        (
            "who",
            Box::new(|r| r.who(cold, whole).expect("known").uses.len()),
        ),
        (
            "where",
            Box::new(|r| r.where_to(cold, whole).expect("known").hops.len()),
        ),
        (
            "where, of the busiest",
            Box::new(|r| r.where_to(hot, whole).expect("known").hops.len()),
        ),
        (
            "where, of the busiest, 30 days",
            Box::new(|r| r.where_to(hot, since(720)).expect("known").hops.len()),
        ),
        (
            "blast-radius",
            Box::new(|r| {
                r.blast_radius(workload, whole)
                    .expect("known")
                    .credentials
                    .len()
            }),
        ),
        (
            "blast-radius, 7 days",
            Box::new(|r| {
                r.blast_radius(workload, since(168))
                    .expect("known")
                    .credentials
                    .len()
            }),
        ),
        (
            "chain",
            Box::new(|r| r.chain(hot, whole).expect("known").hops.len()),
        ),
        (
            "first-use",
            Box::new(|r| {
                r.first_use(hot, from_micros((now - 720) * 3_600_000_000))
                    .expect("known")
                    .known
                    .len()
            }),
        ),
        (
            "timeline of a credential",
            Box::new(|r| {
                r.timeline(Some(cold), None, whole)
                    .expect("known")
                    .events
                    .len()
            }),
        ),
        (
            "timeline of the busiest",
            Box::new(|r| {
                r.timeline(Some(hot), None, whole)
                    .expect("known")
                    .events
                    .len()
            }),
        ),
        (
            "timeline of a workload, 7 days",
            Box::new(|r| {
                r.timeline(None, Some(workload), since(168))
                    .expect("known")
                    .events
                    .len()
            }),
        ),
        (
            "timeline, all",
            Box::new(|r| r.timeline(None, None, whole).expect("read").events.len()),
        ),
        (
            "findings",
            Box::new(|r| {
                r.findings(QueryFilter::default(), None, None, whole)
                    .expect("read")
                    .findings
                    .len()
            }),
        ),
        (
            "inventory",
            Box::new(|r| {
                r.inventory(Timestamp::now())
                    .expect("read")
                    .credentials
                    .len()
            }),
        ),
    ];
    println!(
        "| question | rows | ms, the first time | ms, of the next ten the longest |\n|---|---:|---:|---:|"
    );
    let mut slow = Vec::new();
    for (name, ask) in questions {
        // As the command line does: a new reader for each question.
        let mut times = Vec::new();
        let mut rows = 0;
        for _ in 0..11 {
            let began = Instant::now();
            rows = ask(&LedgerReader::open(directory).expect("opens"));
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        let most = times[1..].iter().copied().fold(0.0, f64::max);
        println!("| {name} | {rows} | {:.1} | {most:.1} |", times[0]);
        if most > 200.0 {
            slow.push(format!("{name}: {most:.0} ms"));
        }
    }
    assert!(slow.is_empty(), "over the budget of 200 ms: {slow:?}");
}
