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

/// A use by a program of a user of the host.
fn used_by(user: u32, id: u64, path: &str, time: Timestamp) -> LedgerEntry {
    let LedgerEntry::Use(mut used) = used(id, path, "/bin/cat", time) else {
        unreachable!("a use");
    };
    used.process.uid = user;
    used.process.tenant.user = user;
    LedgerEntry::Use(used)
}

#[test]
fn a_flood_displaces_neither_what_others_did_nor_a_theft() {
    const SHOP: u32 = 1000;
    const NOBODY: u32 = 65_534;
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    let mut entries: Vec<LedgerEntry> = (0..200)
        .map(|number| used_by(SHOP, number, "/srv/shop/key", at(number as i64 * 3600)))
        .collect();
    // A theft, and then very many variables.
    entries.push(used_by(NOBODY, 0x5703, "/srv/shop/key", now));
    let theft: Finding = serde_json::from_value(serde_json::json!({
        "id": "kf-1", "time": now, "rule": "unexpected-reader", "severity": "critical",
        "summary": "a theft", "workload": { "kind": "host", "name": "/bin/cat" }, "count": 1,
        "credential": {
            "id": "kt-0000000000005703", "class": "aws-access-key", "role": "access",
            "lifetime": "static", "sources": [],
        },
        "process": {
            "pid": 7, "start_time": at(0), "exe": "/bin/cat", "comm": "app", "uid": NOBODY,
        },
        "first_seen": now, "last_seen": now,
    }))
    .expect("a finding");
    entries.push(LedgerEntry::Finding(Box::new(theft)));
    entries.extend((0..10_000).map(|number| {
        let junk = format!("env:JUNK{number}_TOKEN{}", "x".repeat(200));
        used_by(NOBODY, 0x10_000 + number, &junk, now)
    }));
    write(directory.path(), forever(), entries);
    let limit = 1 << 20;
    let small = RetentionLimits {
        max_bytes: limit,
        ..forever()
    };
    write(directory.path(), small, vec![]);
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let timeline = reader
        .timeline(None, None, TimeRange::default())
        .expect("read");
    let mut kept = std::collections::BTreeMap::new();
    for event in &timeline.events {
        if let TimelineEvent::Use { row, .. } = event {
            *kept
                .entry((row.process.uid, row.place == "/srv/shop/key"))
                .or_insert(0) += 1;
        }
    }
    assert_eq!(kept.get(&(SHOP, true)), Some(&200), "{kept:?}");
    assert_eq!(kept.get(&(NOBODY, true)), Some(&1), "the theft: {kept:?}");
    assert_eq!(reader.last_findings(10).expect("read").len(), 1);
    let size = std::fs::metadata(directory.path().join(FILE_NAME)).expect("there");
    assert!(size.len() <= limit, "{} bytes", size.len());
    let gaps = reader.gaps(TimeRange::default()).expect("read");
    let dropped: Vec<&str> = gaps
        .iter()
        .filter(|gap| gap.kind == "dropped-for-size")
        .map(|gap| gap.detail.as_str())
        .collect();
    assert_eq!(
        dropped,
        ["records of user 65534 were dropped to keep the ledger below its size limit"]
    );
}

#[test]
fn of_a_process_that_still_runs_the_oldest_hours_go_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let entries = (0..10_000u64).map(|number| {
        let place = format!("/{number}/{}", "x".repeat(300));
        used_by(1000, number, &place, at((number / 1_000) as i64 * 3600))
    });
    write(directory.path(), forever(), entries.collect());
    let file = directory.path().join(FILE_NAME);
    let before = std::fs::metadata(&file).expect("there").len();
    let limit = before * 6 / 10;
    let small = RetentionLimits {
        max_bytes: limit,
        ..forever()
    };
    write(directory.path(), small, vec![]);
    let after = std::fs::metadata(&file).expect("there").len();
    assert!(after <= limit, "{after} of {limit} bytes");
    assert!(
        after > limit / 2,
        "{after} of {limit} bytes: no more than needed"
    );
    let timeline = LedgerReader::open(directory.path())
        .expect("opens")
        .timeline(None, None, TimeRange::default())
        .expect("read");
    let kept: Vec<Timestamp> = timeline
        .events
        .iter()
        .filter_map(|event| match event {
            TimelineEvent::Use { row, .. } => Some(row.last_seen),
            _ => None,
        })
        .collect();
    let of_hour = |hour: i64| kept.iter().filter(|time| **time == at(hour * 3600)).count();
    assert_eq!((of_hour(0), of_hour(9)), (0, 1_000));
}

#[test]
fn a_repeated_loss_is_one_gap() {
    let directory = tempfile::tempdir().expect("a directory");
    let lost = |from: i64, until: i64| {
        LedgerEntry::Gap(Box::new(Gap {
            kind: "lost-events".into(),
            probe: None,
            detail: "full".into(),
            since: at(from),
            until: Some(at(until)),
            count: 2,
            blind: false,
        }))
    };
    write(
        directory.path(),
        forever(),
        vec![lost(0, 10), lost(10, 20), lost(25, 30), lost(200, 210)],
    );
    let gaps = LedgerReader::open(directory.path())
        .expect("opens")
        .gaps(TimeRange::default())
        .expect("read");
    let told: Vec<_> = gaps
        .iter()
        .filter(|gap| gap.kind == "lost-events")
        .map(|gap| (gap.since, gap.until, gap.count))
        .collect();
    assert_eq!(
        told,
        [(at(0), Some(at(30)), 6), (at(200), Some(at(210)), 2)]
    );
}
