//! Damaged, older and newer files, and copies.

use super::*;

#[test]
fn damaged_newer_and_absent_files() {
    let directory = tempfile::tempdir().expect("a directory");
    assert!(matches!(
        LedgerReader::open(directory.path()),
        Err(LedgerError::Absent(_))
    ));
    std::fs::write(
        directory.path().join(FILE_NAME),
        b"this is no database, and never was one",
    )
    .expect("written");
    assert!(matches!(
        LedgerReader::open(directory.path()),
        Err(LedgerError::Damaged { .. })
    ));
    // It is set aside completely, and the new one reports it.
    write(
        directory.path(),
        forever(),
        vec![used(1, "/a", "/x", at(0))],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    assert!(reader.who("/a", TimeRange::default()).is_ok());
    let gaps = reader.gaps(TimeRange::default()).expect("read");
    assert!(
        gaps.iter().any(|gap| gap.kind == "ledger-damaged"),
        "{gaps:?}"
    );
    let aside = std::fs::read_dir(directory.path())
        .expect("read")
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().contains(".damaged-"))
        .expect("it is there");
    assert_eq!(
        std::fs::read(aside.path()).expect("read"),
        b"this is no database, and never was one"
    );
    drop(reader);
    for suffix in ["-wal", "-shm"] {
        let path = directory.path().join(format!("{FILE_NAME}{suffix}"));
        if path.exists() {
            std::fs::remove_file(path).expect("removed");
        }
    }
    std::fs::remove_file(directory.path().join(FILE_NAME)).expect("removed");
    let connection = rusqlite::Connection::open(directory.path().join(FILE_NAME)).expect("opens");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("set");
    drop(connection);
    let error =
        LedgerWriter::open(directory.path(), forever(), Health::default()).expect_err("newer");
    assert!(
        matches!(error, LedgerError::Newer { found: 99, .. }),
        "{error}"
    );
}

/// Whatever page is damaged, and in whatever way: an agent starts, and stores what it writes
/// afterwards.
#[test]
fn a_ledger_damaged_anywhere_stops_no_agent() {
    const PAGE: usize = 4096;
    let whole = tempfile::tempdir().expect("a directory");
    let many = (0..400).map(|n| used(n, &format!("/key-{n}"), &format!("/bin/{n}"), at(n as i64)));
    write(whole.path(), forever(), many.collect());
    let sound = std::fs::read(whole.path().join(FILE_NAME)).expect("read");
    let pages = sound.len() / PAGE;
    assert!(pages > 50, "{pages} pages");
    let mut aside = 0;
    for page in 0..pages {
        for junk in [0x00, 0x5a, 0xff] {
            let directory = tempfile::tempdir().expect("a directory");
            let mut bytes = sound.clone();
            // The end of a page contains its records, the beginning their layout.
            let from = if junk == 0xff { PAGE / 2 } else { 0 };
            bytes[page * PAGE + from..(page + 1) * PAGE].fill(junk);
            std::fs::write(directory.path().join(FILE_NAME), &bytes).expect("written");
            let (writer, _) = LedgerWriter::open(directory.path(), forever(), Health::default())
                .unwrap_or_else(|error| panic!("page {page} of {junk:#x}: {error}"));
            let lost = Arc::clone(&writer.lost);
            writer.write(used(9_999, "/new-key", "/bin/new", at(9_999)));
            drop(writer);
            assert_eq!(lost.load(Ordering::Relaxed), 0, "page {page} of {junk:#x}");
            match LedgerReader::open(directory.path()).and_then(|reader| {
                aside += usize::from(
                    reader
                        .gaps(TimeRange::default())?
                        .iter()
                        .any(|gap| gap.kind == "ledger-damaged"),
                );
                reader
                    .who("/new-key", TimeRange::default())
                    .map_err(|error| match error {
                        QueryError::Ledger(error) => error,
                        other => panic!("page {page} of {junk:#x}: {other}"),
                    })
            }) {
                Ok(answer) => assert_eq!(answer.uses.len(), 1, "page {page} of {junk:#x}"),
                // A large file is not checked completely before the first answer.
                Err(LedgerError::Damaged { .. }) => {}
                Err(error) => panic!("page {page} of {junk:#x}: {error}"),
            }
        }
    }
    assert!(aside > pages, "{aside} of {} were set aside", 3 * pages);
}

/// A file written by the previous release.
fn of_schema_2(path: &Path) {
    let connection = rusqlite::Connection::open(path).expect("opens");
    for (step, sql) in schema::MIGRATIONS.iter().take(2).enumerate() {
        connection.execute_batch(sql).expect("made");
        connection
            .pragma_update(None, "user_version", step as i64 + 1)
            .expect("set");
    }
    let workload = rows::json(&Workload::host("/usr/bin/curl"));
    let (credential, _) = credential(1, "/x");
    let LedgerEntry::Hop(hop, _) = hop(1, "paste.example", at(0), Verdict::Unexpected) else {
        unreachable!("it is one");
    };
    let first = hour(at(0));
    connection
        .execute(
            "INSERT INTO credential VALUES (?1, 'aws-access-key', 'access', 'static', NULL, NULL, NULL, '[]', NULL, NULL, 0, 0)",
            [&credential.id.0],
        )
        .expect("written");
    connection
        .execute(
            "INSERT INTO workload VALUES (1, '/usr/bin/curl', '/usr/bin/curl', ?1)",
            [workload],
        )
        .expect("written");
    connection
        .execute(
            "INSERT INTO destination VALUES (1, 'paste.example:443', ?1)",
            [rows::json(&hop.destination)],
        )
        .expect("written");
    for number in 0..3 {
        let process = rows::json(&Process {
            pid: 100 + number,
            ..process("/usr/bin/curl")
        });
        let time = micros(at(i64::from(number) * 3600));
        connection
            .execute(
                "INSERT INTO hop_hour VALUES (?1, 1, 1, 'sole', ?2, ?3, 2, ?4, ?4, ?5)",
                rusqlite::params![
                    credential.id.0,
                    first + i64::from(number),
                    if number == 2 {
                        "expected"
                    } else {
                        "unexpected"
                    },
                    time,
                    process
                ],
            )
            .expect("written");
        connection
            .execute(
                "INSERT INTO use_hour VALUES (?1, 1, 'file', '/x', ?2, 5, ?3, ?3, ?4)",
                rusqlite::params![credential.id.0, first + i64::from(number), time, process],
            )
            .expect("written");
    }
}

#[test]
fn an_older_schema_is_migrated() {
    let directory = tempfile::tempdir().expect("a directory");
    of_schema_2(&directory.path().join(FILE_NAME));
    write(directory.path(), forever(), vec![]);
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let all = reader
        .where_to("kt-0000000000000001", TimeRange::default())
        .expect("known");
    let [hop] = &all.hops[..] else {
        panic!("{:?}", all.hops);
    };
    assert_eq!(hop.count, 6);
    assert_eq!((hop.first_seen, hop.last_seen), (at(0), at(7200)));
    assert_eq!((hop.verdict, hop.process.pid), (Verdict::Expected, 102));
    // In part of the range, only what was true then.
    let early = TimeRange {
        since: None,
        until: Some(at(4000)),
    };
    let part = reader
        .where_to("kt-0000000000000001", early)
        .expect("known");
    assert_eq!(part.hops[0].count, 4);
    assert_eq!(part.hops[0].last_seen, at(3600));
    assert_eq!(part.hops[0].verdict, Verdict::Unexpected);
    assert_eq!(part.hops[0].process.pid, 101);
    let who = reader
        .who("kt-0000000000000001", TimeRange::default())
        .expect("known");
    assert_eq!((who.uses.len(), who.uses[0].count), (1, 15));
    let timeline = reader
        .timeline(None, None, TimeRange::default())
        .expect("read");
    assert_eq!(timeline.events.len(), 6);
}

#[test]
fn a_backup_is_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    write(&state, forever(), vec![used(1, "/a", "/x", at(0))]);
    let copy = directory.path().join("copy");
    std::fs::create_dir(&copy).expect("made");
    let reader = LedgerReader::open(&state).expect("opens");
    reader.back_up(&copy.join(FILE_NAME)).expect("copied");
    // An existing file is not overwritten.
    let again = LedgerReader::open(&state).expect("opens");
    assert!(again.back_up(&copy.join(FILE_NAME)).is_err());
    let copied = LedgerReader::open(&copy).expect("opens");
    assert!(copied.who("/a", TimeRange::default()).is_ok());
}

/// What was still in a queue when an agent was killed is missing: the time without one begins there.
#[test]
fn a_killed_agent_was_alive_until_what_it_had_stored() {
    let directory = tempfile::tempdir().expect("a directory");
    let last = || {
        let opened = LedgerWriter::open(directory.path(), forever(), Health::default());
        opened.expect("opens").1.last.expect("an earlier run")
    };
    let start = |settled: Option<i64>| {
        let opened = LedgerWriter::open(directory.path(), forever(), Health::default());
        let (writer, _) = opened.expect("opens");
        writer.started(at(0));
        writer.write(used(1, "/a", "/x", at(5)));
        if let Some(until) = settled {
            writer.settled_until(at(until));
        }
    };
    start(None);
    assert_eq!((last().alive, last().in_order), (at(0), false));
    start(Some(3));
    assert_eq!(last().alive, at(3));
}
