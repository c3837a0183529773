//! What the questions answer, and what they read.

use super::*;

#[test]
fn entries_are_read_as_written() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![
            used(1, "/root/.aws/credentials", "/usr/bin/cat", at(0)),
            used(1, "/root/.aws/credentials", "/usr/bin/cat", at(7200)),
            used(2, "/root/.netrc", "/usr/bin/curl", at(1)),
            hop(1, "s3.amazonaws.com", at(2), Verdict::Expected),
            hop(1, "paste.example", at(3), Verdict::Unexpected),
            hop(1, "paste.example", at(7203), Verdict::Unexpected),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let who = reader
        .who("/root/.aws/credentials", TimeRange::default())
        .expect("known");
    assert_eq!(who.uses.len(), 1);
    assert_eq!(who.uses[0].count, 4);
    assert_eq!(
        (who.uses[0].first_seen, who.uses[0].last_seen),
        (at(0), at(7200))
    );
    let all = reader
        .where_to("kt-0000000000000001", TimeRange::default())
        .expect("known");
    let shown: Vec<_> = all
        .hops
        .iter()
        .map(|hop| (hop.destination.label(), hop.count))
        .collect();
    assert_eq!(
        shown,
        [
            ("paste.example:443".to_owned(), 2),
            ("s3.amazonaws.com:443".to_owned(), 1)
        ]
    );
    let late = TimeRange {
        since: Some(at(7000)),
        until: None,
    };
    assert_eq!(
        reader
            .where_to("kt-0000000000000001", late)
            .expect("known")
            .hops
            .len(),
        1
    );
    let radius = reader
        .blast_radius("/usr/bin/curl", TimeRange::default())
        .expect("known");
    assert_eq!(radius.credentials.len(), 2);
    assert!(reader.blast_radius("curl", TimeRange::default()).is_ok());
    let timeline = reader
        .timeline(Some("kt-0000000000000001"), None, TimeRange::default())
        .expect("known");
    assert_eq!(timeline.events.len(), 5);
    assert!(timeline.events.is_sorted_by_key(TimelineEvent::time));
    assert_eq!(
        reader.inventory(at(9000)).expect("read").credentials.len(),
        2
    );
}

#[test]
fn filters_are_combined() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![
            hop(1, "a.example", at(1), Verdict::Expected),
            hop(1, "b.example", at(2), Verdict::Expected),
            hop(2, "a.example", at(3), Verdict::Expected),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let one = CredentialId::from_fingerprint(1).0;
    let by = "/usr/bin/curl";
    for (credential, workload, destination, expected) in [
        (None, None, None, 3),
        (Some(one.as_str()), None, None, 2),
        (None, Some(by), None, 3),
        (None, None, Some("a.example"), 2),
        (Some(one.as_str()), Some(by), Some("a.example"), 1),
        (Some(one.as_str()), None, Some("c.example"), 0),
    ] {
        let about = QueryFilter {
            credential,
            workload,
        };
        let found = reader
            .hops(about, destination, TimeRange::default())
            .expect("known");
        assert_eq!(found.hops.len(), expected, "{about:?} {destination:?}");
    }
    let nobody = QueryFilter {
        workload: Some("nobody"),
        ..QueryFilter::default()
    };
    assert!(matches!(
        reader.hops(nobody, None, TimeRange::default()),
        Err(QueryError::NoWorkload(_))
    ));
}

#[test]
fn ids_by_prefix_and_unknown_ids() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![
            used(0x1234_5678_0000_0001, "/a", "/x", at(0)),
            used(0x1234_9999_0000_0001, "/b", "/x", at(0)),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    assert_eq!(reader.resolve("kt-12345").expect("one").len(), 1);
    assert_eq!(reader.resolve("12349").expect("one").len(), 1);
    assert!(
        matches!(reader.resolve("kt-1234"), Err(QueryError::Ambiguous { ids, .. }) if ids.len() == 2)
    );
    for unknown in ["kt-9", "", "%", "' OR 1=1 --", "/nowhere", "env:NOTHING"] {
        assert!(
            matches!(
                reader.resolve(unknown),
                Err(QueryError::NoCredential(_) | QueryError::Ambiguous { .. })
            ),
            "{unknown}"
        );
    }
    assert!(matches!(
        reader.blast_radius("/nowhere", TimeRange::default()),
        Err(QueryError::NoWorkload(_))
    ));
}

#[test]
fn a_range_that_cuts_an_hour_marks_its_rows_partial() {
    let directory = tempfile::tempdir().expect("a directory");
    let ten =
        |minutes: i64| Timestamp::from_second(480_000 * 3600 + minutes * 60).expect("in range");
    write(
        directory.path(),
        forever(),
        vec![
            used(1, "/a", "/x", ten(1)),
            used(1, "/a", "/x", ten(59)),
            used(2, "/b", "/x", ten(35)),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let asked = |id: &str, since: i64, until: i64| -> Vec<(u64, bool)> {
        let range = TimeRange {
            since: Some(ten(since)),
            until: Some(ten(until)),
        };
        let uses = reader.who(id, range).expect("known").uses;
        uses.iter().map(|row| (row.count, row.partial)).collect()
    };
    let (one, other) = ("kt-0000000000000001", "kt-0000000000000002");
    assert_eq!(asked(one, 0, 60), [(4, false)]);
    assert_eq!(asked(one, 30, 40), [(4, true)], "at most");
    assert_eq!(asked(other, 30, 40), [(2, false)]);
    assert_eq!(asked(other, 36, 40), []);
    let range = TimeRange {
        since: Some(ten(30)),
        until: None,
    };
    let timeline = reader.timeline(Some(one), None, range).expect("read");
    let times: Vec<Timestamp> = timeline.events.iter().map(TimelineEvent::time).collect();
    assert_eq!(times, [ten(59)], "the one that is in the range");
}

#[test]
fn a_program_is_found_in_any_unit_and_a_pod_by_its_namespace() {
    let directory = tempfile::tempdir().expect("a directory");
    let by = |exe: &str, workload: &Workload| {
        let mut entry = used(1, "/a", exe, at(0));
        if let LedgerEntry::Use(used) = &mut entry {
            used.workload = workload.clone();
        }
        entry
    };
    let unit = Workload {
        kind: monitor_core::model::WorkloadKind::Unit,
        unit: Some("api.service".into()),
        ..Workload::host("api.service")
    };
    let pod = Workload {
        kind: monitor_core::model::WorkloadKind::Deployment,
        namespace: Some("payments".into()),
        pod: Some("api-6c9f-xyz".into()),
        ..Workload::host("api")
    };
    write(
        directory.path(),
        forever(),
        vec![
            by("/usr/bin/cat", &unit),
            by("/usr/bin/curl", &unit),
            by("/app", &pod),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    for asked in [
        "/usr/bin/cat",
        "/usr/bin/curl",
        "api.service",
        "payments/api",
        "payments/api-6c9f-xyz",
        "api-6c9f-xyz",
    ] {
        assert!(
            reader.blast_radius(asked, TimeRange::default()).is_ok(),
            "{asked}"
        );
    }
    for asked in ["/usr/bin/wget", "shop/api-6c9f-xyz"] {
        assert!(
            reader.blast_radius(asked, TimeRange::default()).is_err(),
            "{asked}"
        );
    }
}

fn by_pid(pid: u32, entry: LedgerEntry) -> LedgerEntry {
    match entry {
        LedgerEntry::Use(mut used) => {
            used.process.pid = pid;
            LedgerEntry::Use(used)
        }
        other => other,
    }
}

#[test]
fn first_uses_after_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![
            used(1, "/srv/key", "/usr/bin/app", at(0)),
            used(1, "/srv/key", "/usr/bin/app", at(5000)),
            by_pid(42, used(1, "/srv/key", "/usr/bin/thief", at(6001))),
            by_pid(41, used(1, "/srv/key", "/usr/bin/thief", at(6000))),
            by_pid(43, used(1, "/srv/key", "/usr/bin/thief", at(6002))),
            hop(1, "old.example", at(10), Verdict::Expected),
            hop(1, "paste.example", at(6500), Verdict::Unexpected),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let answer = reader.first_use("/srv/key", at(4000)).expect("known");
    assert_eq!(answer.known, ["/usr/bin/app", "/usr/bin/curl"]);
    let times: Vec<_> = answer.new.iter().map(TimelineEvent::time).collect();
    assert_eq!(times, [at(6000)], "the first use of the one who is new");
    let by = |event: &TimelineEvent| match event {
        TimelineEvent::Use { row, .. } => row.process.pid,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        by(&answer.new[0]),
        41,
        "whoever was the first, not the last"
    );
    let begun: Vec<_> = reader
        .timeline(
            Some("/srv/key"),
            Some("/usr/bin/thief"),
            TimeRange::default(),
        )
        .expect("known")
        .events
        .iter()
        .map(|event| (event.time(), by(event)))
        .collect();
    assert_eq!(begun, [(at(6000), 41)]);
    let last = reader.who("/srv/key", TimeRange::default()).expect("known");
    assert_eq!(last.uses[0].process.pid, 43);
    let labels: Vec<_> = answer
        .new_destinations
        .iter()
        .map(|row| row.destination.label())
        .collect();
    assert_eq!(labels, ["paste.example:443"]);
    let none = reader.first_use("/srv/key", at(8000)).expect("known");
    assert!(none.new.is_empty() && none.new_destinations.is_empty());
}

/// Every question is answered from an index at a large size.
#[test]
fn answers_come_from_an_index() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![used(1, "/a", "/x", at(0))],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let (id, whole) = ("kt-0000000000000001", TimeRange::default());
    let part = TimeRange {
        since: Some(at(-10)),
        until: Some(at(10)),
    };
    for range in [whole, part] {
        let sample = IndexSample {
            reader: &reader,
            credential: id,
            workload: "/x",
            destination: "x.example",
            range,
            now: at(0),
        };
        for case in INDEX_CASES {
            case(&sample).expect("answered");
        }
    }
    let plans = reader.query_plans();
    assert!(plans.len() >= 6, "{plans:?}");
    for (sql, plan) in plans {
        for line in plan {
            // These tables are small, however long the history.
            let small = [
                "SCAN gap",
                "SCAN credential",
                "SCAN workload",
                "SCAN destination",
            ]
            .contains(&line.as_str());
            let scans = line.starts_with("SCAN") && !line.contains("USING") && !small;
            assert!(!scans, "{sql}: {line}");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    /// Any text yields an answer or an error, and wildcards in it match nothing else.
    #[test]
    fn any_text_is_answered(text in "\\PC{0,40}") {
        static DIRECTORY: std::sync::LazyLock<tempfile::TempDir> = std::sync::LazyLock::new(|| {
            let directory = tempfile::tempdir().expect("a directory");
            let entries = vec![
                used(1, "/srv/key", "/usr/bin/app", at(0)),
                hop(1, "paste.example", at(3), Verdict::Unexpected),
            ];
            write(directory.path(), forever(), entries);
            directory
        });
        let reader = LedgerReader::open(DIRECTORY.path()).expect("opens");
        let whole = TimeRange::default();
        let known = ["/srv/key", "kt-", "0", "k"].iter().any(|start| text.starts_with(start));
        if let Ok(ids) = reader.resolve(&text) {
            proptest::prop_assert!(known, "{text:?} is {ids:?}");
        }
        drop(reader.who(&text, whole));
        drop(reader.first_use(&text, at(1)));
        drop(reader.timeline(Some(&text), Some(&text), whole));
        let radius = reader.blast_radius(&text, whole);
        proptest::prop_assert!(radius.is_err() || ["app", "curl"].iter().any(|name| text.ends_with(name)));
        let hops = reader.hops(QueryFilter::default(), Some(&text), whole).expect("read").hops;
        proptest::prop_assert!(hops.is_empty() || text.contains("paste.example") || text.contains("10.0.0.1"));
    }
}
