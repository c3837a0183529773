//! What is dropped by age and by size, and when the clock was set.

use super::*;

#[test]
fn old_rows_are_dropped_by_age_and_by_size() {
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    let old = now
        .checked_sub(SignedDuration::from_hours(48))
        .expect("in range");
    let retention = RetentionLimits {
        max_age: SignedDuration::from_hours(24),
        max_bytes: u64::MAX,
    };
    write(
        directory.path(),
        forever(),
        vec![used(1, "/old", "/x", old), used(2, "/new", "/x", now)],
    );
    write(directory.path(), retention, vec![]);
    let places = |directory: &Path| -> Vec<String> {
        let timeline = LedgerReader::open(directory)
            .expect("opens")
            .timeline(None, None, TimeRange::default())
            .expect("read");
        timeline
            .events
            .iter()
            .filter_map(|event| match event {
                TimelineEvent::Use { row, .. } => Some(row.place.clone()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(places(directory.path()), ["/new"]);
    write(
        directory.path(),
        forever(),
        vec![used(1, "/old", "/x", old)],
    );
    write(
        directory.path(),
        RetentionLimits {
            max_bytes: 1,
            ..forever()
        },
        vec![],
    );
    assert_eq!(places(directory.path()), ["/new"], "the current hour stays");
    let gaps = LedgerReader::open(directory.path())
        .expect("opens")
        .gaps(TimeRange::default())
        .expect("read");
    assert!(
        gaps.iter().any(|gap| gap.kind == "dropped-for-size"),
        "{gaps:?}"
    );
}

#[test]
fn rows_dropped_for_age_are_one_gap() {
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    let ago = |days: i64| now - SignedDuration::from_hours(24 * days);
    let old = Gap {
        kind: "agent-down".into(),
        probe: None,
        detail: "down".into(),
        since: ago(130),
        until: Some(ago(129)),
        count: 0,
        blind: false,
    };
    write(
        directory.path(),
        forever(),
        vec![
            LedgerEntry::Gap(Box::new(old)),
            used(1, "/old", "/x", ago(120)),
            used(2, "/new", "/x", ago(1)),
        ],
    );
    // Twice: the gap grows.
    for _ in 0..2 {
        write(directory.path(), RetentionLimits::default(), vec![]);
    }
    let gaps = LedgerReader::open(directory.path())
        .expect("opens")
        .gaps(TimeRange {
            since: Some(ago(125)),
            until: Some(ago(100)),
        })
        .expect("read");
    let [gap] = &gaps[..] else {
        panic!("{gaps:?}");
    };
    assert_eq!(gap.kind, "dropped-for-age");
    assert_eq!(gap.since.as_second(), ago(130).as_second());
    assert!(gap.until.is_some_and(|until| until > ago(91)));
}

#[test]
fn a_clock_set_before_the_start_drops_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    write(directory.path(), forever(), vec![used(1, "/a", "/x", now)]);
    let mut connection =
        rusqlite::Connection::open(directory.path().join(FILE_NAME)).expect("opens");
    let later = |days: i64| tidy::ClockReading {
        steady: std::time::Duration::from_secs(60 + 86_400 * (days as u64 - 365)),
        time: now + SignedDuration::from_hours(24 * days),
    };
    let begun = later(365);
    let mut tidy = tidy::RetentionTask::new(RetentionLimits::default(), Some(now), begun);
    tidy.run(&mut connection, begun).expect("tidied");
    let uses = |connection: &rusqlite::Connection| -> i64 {
        connection
            .query_row("SELECT count(*) FROM use_hour", [], |row| row.get(0))
            .expect("counted")
    };
    assert_eq!(uses(&connection), 1);
    // The clock was right after all.
    tidy.run(&mut connection, later(367)).expect("tidied");
    assert_eq!(uses(&connection), 0);
}

#[test]
fn a_file_that_is_too_large_shrinks() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |number: i64| format!("/{number}/{}", "x".repeat(400));
    let entries = |hour: i64| {
        (0..2000).map(move |number| used(number as u64, &place(number), "/x", at(hour * 3600)))
    };
    write(
        directory.path(),
        forever(),
        entries(0).chain(entries(5)).collect(),
    );
    let size = || {
        std::fs::metadata(directory.path().join(FILE_NAME))
            .expect("there")
            .len()
    };
    let before = size();
    let small = RetentionLimits {
        max_bytes: 100_000,
        ..forever()
    };
    write(directory.path(), small, vec![]);
    assert!(size() < before / 4, "{before} to {}", size());
    let gaps = LedgerReader::open(directory.path())
        .expect("opens")
        .gaps(TimeRange::default())
        .expect("read");
    let dropped = gaps
        .iter()
        .filter(|gap| gap.kind == "dropped-for-size")
        .count();
    assert_eq!(dropped, 1, "{gaps:?}");
}

#[test]
fn a_clock_set_while_running_drops_nothing() {
    use std::time::Duration;
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    write(directory.path(), forever(), vec![used(1, "/a", "/x", now)]);
    let mut connection =
        rusqlite::Connection::open(directory.path().join(FILE_NAME)).expect("opens");
    let begun = tidy::ClockReading {
        steady: Duration::ZERO,
        time: at(0),
    };
    let mut tidy = tidy::RetentionTask::new(RetentionLimits::default(), None, begun);
    let moment = |seconds: u64, days: i64| tidy::ClockReading {
        steady: Duration::from_secs(1000 + seconds),
        time: now
            + SignedDuration::from_secs(seconds as i64)
            + SignedDuration::from_hours(24 * days),
    };
    let uses = |connection: &rusqlite::Connection| -> i64 {
        connection
            .query_row("SELECT count(*) FROM use_hour", [], |row| row.get(0))
            .expect("counted")
    };
    tidy.run(&mut connection, moment(0, 0)).expect("tidied");
    // A year ahead, for ten minutes.
    tidy.run(&mut connection, moment(600, 365)).expect("tidied");
    tidy.run(&mut connection, moment(1200, 365))
        .expect("tidied");
    assert_eq!(uses(&connection), 1, "nothing is dropped by such a clock");
    tidy.run(&mut connection, moment(1800, 0)).expect("tidied");
    let gaps = LedgerReader::open(directory.path())
        .expect("opens")
        .gaps(TimeRange::default())
        .expect("read");
    let set = gaps.iter().filter(|gap| gap.kind == "clock-set").count();
    assert_eq!(set, 2, "{gaps:?}");
    // A day later the clock is trusted: what exceeds the retention is dropped.
    let later = tidy::ClockReading {
        steady: Duration::from_secs(200 * 86_400),
        time: now + SignedDuration::from_hours(24 * 200),
    };
    tidy.run(&mut connection, later).expect("tidied");
    assert_eq!(uses(&connection), 0);
}
