use super::{read::*, *};
use crate::{
    model::{
        Credential, CredentialId, Destination, Evidence, Lifetime, NameSource, Place, Process,
        Role, Source, Transport, Workload,
    },
    policy::document::Retention,
};
use jiff::SignedDuration;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

fn process(exe: &str) -> Process {
    Process {
        pid: 7,
        start_time: at(0),
        exe: exe.into(),
        comm: "app".into(),
        uid: 0,
        ancestors: vec![],
    }
}

fn credential(id: u64, path: &str) -> (Credential, Place) {
    let place = Place {
        source: Source::File,
        place: path.into(),
    };
    let credential = Credential {
        id: CredentialId::of_fingerprint(id),
        name: None,
        class: "aws-access-key".into(),
        role: Role::Access,
        lifetime: Lifetime::Static,
        issued_at: None,
        expires_at: None,
        owner: None,
        label: None,
        audience: vec![],
        issued_to: None,
        sources: vec![place.clone()],
    };
    (credential, place)
}

fn used(id: u64, path: &str, exe: &str, time: Timestamp) -> Entry {
    let (credential, place) = credential(id, path);
    Entry::Use(Box::new(Use {
        time,
        workload: Workload::host(exe),
        process: process(exe),
        credential,
        place,
        count: 2,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
    }))
}

fn hop(id: u64, name: &str, time: Timestamp, verdict: Verdict) -> Entry {
    let hop = Hop {
        time,
        workload: Workload::host("/usr/bin/curl"),
        process: process("/usr/bin/curl"),
        credential: credential(id, "/x").0,
        destination: Destination {
            address: "10.0.0.1".parse().expect("an address"),
            port: 443,
            name: Some(name.into()),
            name_source: NameSource::Sni,
            transport: Transport::Tcp,
            ech: false,
            one_of: 0,
            disputed: Vec::new(),
            object: None,
        },
        others: Vec::new(),
        evidence: Evidence::Sole,
        clear: false,
    };
    Entry::Hop(Box::new(hop), verdict)
}

fn write(directory: &Path, retention: Retention, entries: Vec<Entry>) {
    let (writer, _) = Writer::open(directory, retention).expect("opens");
    for entry in entries {
        writer.write(entry);
    }
}

/// Kept for a hundred years: the tests' times are in the past.
fn forever() -> Retention {
    Retention {
        max_age: SignedDuration::from_hours(24 * 36_500),
        max_bytes: u64::MAX,
    }
}

#[test]
fn what_gets_its_name_late_is_stored_under_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = Workload {
        kind: crate::model::WorkloadKind::Pod,
        pod: Some("uid".into()),
        container: Some("id".into()),
        ..Workload::host("pod-uid")
    };
    let new = Workload {
        namespace: Some("payments".into()),
        name: "api-0".into(),
        ..old.clone()
    };
    let by = |workload: &Workload, time| {
        let mut entry = used(1, "/run/secrets/key", "/bin/cat", time);
        if let Entry::Use(used) = &mut entry {
            used.workload = workload.clone();
        }
        entry
    };
    let mut hop = hop(1, "paste.example", at(3), Verdict::Unexpected);
    if let Entry::Hop(hop, _) = &mut hop {
        hop.workload = old.clone();
    }
    write(
        directory.path(),
        forever(),
        vec![
            by(&old, at(0)),
            hop,
            by(&new, at(10)),
            Entry::Renamed(Box::new([old.clone(), new.clone()])),
            // Nobody has this one.
            Entry::Renamed(Box::new([old, new.clone()])),
        ],
    );
    let reader = Reader::open(directory.path()).expect("opens");
    let who = reader
        .who("kt-0000000000000001", Range::default())
        .expect("known");
    assert_eq!(who.uses.len(), 1);
    assert_eq!(who.uses[0].workload, new);
    assert_eq!(who.uses[0].count, 4);
    assert_eq!(
        (who.uses[0].first_seen, who.uses[0].last_seen),
        (at(0), at(10))
    );
    let hops = reader
        .where_to("kt-0000000000000001", Range::default())
        .expect("known")
        .hops;
    assert_eq!(hops[0].workload, new);
    let radius = reader
        .blast_radius("payments/api-0", Range::default())
        .expect("known");
    assert!(!radius.credentials.is_empty());
}

#[test]
fn what_is_written_is_read() {
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
    let reader = Reader::open(directory.path()).expect("opens");
    let who = reader
        .who("/root/.aws/credentials", Range::default())
        .expect("known");
    assert_eq!(who.uses.len(), 1);
    assert_eq!(who.uses[0].count, 4);
    assert_eq!(
        (who.uses[0].first_seen, who.uses[0].last_seen),
        (at(0), at(7200))
    );
    let all = reader
        .where_to("kt-0000000000000001", Range::default())
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
    let late = Range {
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
        .blast_radius("/usr/bin/curl", Range::default())
        .expect("known");
    assert_eq!(radius.credentials.len(), 2);
    assert!(reader.blast_radius("curl", Range::default()).is_ok());
    let timeline = reader
        .timeline(Some("kt-0000000000000001"), None, Range::default())
        .expect("known");
    assert_eq!(timeline.events.len(), 5);
    assert!(timeline.events.is_sorted_by_key(Event::time));
    assert_eq!(
        reader.inventory(at(9000)).expect("read").credentials.len(),
        2
    );
}

#[test]
fn ids_by_prefix_and_what_is_not_known() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        directory.path(),
        forever(),
        vec![
            used(0x1234_5678_0000_0001, "/a", "/x", at(0)),
            used(0x1234_9999_0000_0001, "/b", "/x", at(0)),
        ],
    );
    let reader = Reader::open(directory.path()).expect("opens");
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
        reader.blast_radius("/nowhere", Range::default()),
        Err(QueryError::NoWorkload(_))
    ));
}

#[test]
fn growth_is_by_edge_and_hour() {
    let directory = tempfile::tempdir().expect("a directory");
    let many = (0..2000)
        .map(|i| used(1, "/a", "/x", at(i % 3000)))
        .collect();
    write(directory.path(), forever(), many);
    let reader = Reader::open(directory.path()).expect("opens");
    let timeline = reader.timeline(None, None, Range::default()).expect("read");
    assert!(timeline.events.len() <= 2, "{} rows", timeline.events.len());
}

#[test]
fn the_old_is_dropped_by_age_and_by_size() {
    let directory = tempfile::tempdir().expect("a directory");
    let now = Timestamp::now();
    let old = now
        .checked_sub(SignedDuration::from_hours(48))
        .expect("in range");
    let retention = Retention {
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
        let timeline = Reader::open(directory)
            .expect("opens")
            .timeline(None, None, Range::default())
            .expect("read");
        timeline
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Use { row, .. } => Some(row.place.clone()),
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
        Retention {
            max_bytes: 1,
            ..forever()
        },
        vec![],
    );
    assert_eq!(places(directory.path()), ["/new"], "the current hour stays");
    let gaps = Reader::open(directory.path())
        .expect("opens")
        .gaps(Range::default())
        .expect("read");
    assert!(
        gaps.iter().any(|gap| gap.kind == "dropped-for-size"),
        "{gaps:?}"
    );
}

#[test]
fn damaged_newer_and_absent_files() {
    let directory = tempfile::tempdir().expect("a directory");
    assert!(matches!(
        Reader::open(directory.path()),
        Err(LedgerError::Absent(_))
    ));
    std::fs::write(
        directory.path().join(FILE),
        b"this is no database, and never was one",
    )
    .expect("written");
    let error = Writer::open(directory.path(), forever()).expect_err("damaged");
    assert!(matches!(error, LedgerError::Damaged { .. }), "{error}");
    assert!(matches!(
        Reader::open(directory.path()),
        Err(LedgerError::Damaged { .. })
    ));
    std::fs::remove_file(directory.path().join(FILE)).expect("removed");
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).expect("opens");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("set");
    drop(connection);
    let error = Writer::open(directory.path(), forever()).expect_err("newer");
    assert!(
        matches!(error, LedgerError::Newer { found: 99, .. }),
        "{error}"
    );
}
