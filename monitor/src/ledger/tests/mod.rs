mod answers;
mod files;
mod large;
mod retention;

use super::{
    queries::{INDEX_CASES, IndexSample, QueryFilter, timeline::TimelineEvent},
    reader::*,
    *,
};
use crate::{config::settings::RetentionLimits, health::Health};
use jiff::SignedDuration;
use monitor_core::history::TimeRange;
use monitor_core::model::{
    CiJob, Credential, CredentialId, Destination, Evidence, Lifetime, NameSource, Place, Process,
    Role, Source, Transport, Workload,
};
use std::sync::{Arc, atomic::Ordering};

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

fn process(exe: &str) -> Process {
    Process {
        pid: 7,
        start_time: at(0),
        exe: exe.into(),
        comm: "app".into(),
        uid: 0,
        tenant: monitor_core::fair_cache::Tenant::default(),
        ancestors: [].into(),
    }
}

fn credential(id: u64, path: &str) -> (Credential, Place) {
    let place = Place {
        source: Source::File,
        place: path.into(),
    };
    let credential = Credential::new(
        CredentialId::from_fingerprint(id),
        "aws-access-key",
        Role::Access,
        Lifetime::Static,
        vec![place.clone()],
    );
    (credential, place)
}

pub(super) fn used(id: u64, path: &str, exe: &str, time: Timestamp) -> LedgerEntry {
    let (credential, place) = credential(id, path);
    LedgerEntry::Use(Box::new(Use {
        time,
        workload: Workload::host(exe),
        process: process(exe),
        credential: credential.into(),
        place,
        count: 2,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
        untrusted: None,
        given: false,
        in_mounted_home: false,
    }))
}

fn hop(id: u64, name: &str, time: Timestamp, verdict: Verdict) -> LedgerEntry {
    let hop = Hop {
        time,
        workload: Workload::host("/usr/bin/curl"),
        process: process("/usr/bin/curl"),
        credential: credential(id, "/x").0.into(),
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
            via: None,
        },
        others: Vec::new(),
        evidence: Evidence::Sole,
        clear: false,
        again: false,
        held_with: Vec::new(),
        picked_up: false,
        on_behalf_of: None,
        for_proxy: false,
        count: 1,
    };
    LedgerEntry::Hop(Box::new(hop), verdict)
}

/// Writes entries, a part at a time: the queue has no room for very many of one owner.
fn write(directory: &Path, retention: RetentionLimits, entries: Vec<LedgerEntry>) {
    const PART: usize = 2_000;
    let mut entries = entries.into_iter().peekable();
    loop {
        let (writer, _) =
            LedgerWriter::open(directory, retention.clone(), Health::default()).expect("opens");
        for entry in entries.by_ref().take(PART) {
            writer.write(entry);
        }
        if entries.peek().is_none() {
            return;
        }
    }
}

/// Retention of a hundred years, because the tests use times in the past.
fn forever() -> RetentionLimits {
    RetentionLimits {
        max_age: SignedDuration::from_hours(24 * 36_500),
        max_bytes: u64::MAX,
    }
}

#[test]
fn a_late_name_applies_to_stored_rows() {
    let directory = tempfile::tempdir().expect("a directory");
    let old = Workload {
        kind: monitor_core::model::WorkloadKind::Pod,
        pod: Some("uid".into()),
        container: Some("id".into()),
        ..Workload::host("pod-uid")
    };
    let new = Workload {
        namespace: Some("payments".into()),
        name: "api-0".into(),
        ..old.clone()
    };
    let in_job = Workload {
        ci_job: Some(Arc::new(CiJob {
            system: "github".into(),
            ..CiJob::default()
        })),
        ..old.clone()
    };
    let by = |workload: &Workload, time| {
        let mut entry = used(1, "/run/secrets/key", "/bin/cat", time);
        if let LedgerEntry::Use(used) = &mut entry {
            used.workload = workload.clone();
        }
        entry
    };
    let mut hop = hop(1, "paste.example", at(3), Verdict::Unexpected);
    if let LedgerEntry::Hop(hop, _) = &mut hop {
        hop.workload = old.clone();
    }
    write(
        directory.path(),
        forever(),
        vec![
            by(&old, at(0)),
            by(&in_job, at(1)),
            hop,
            by(&new, at(10)),
            LedgerEntry::Renamed(Box::new([old.clone(), new.clone()])),
            // An unknown workload.
            LedgerEntry::Renamed(Box::new([old, new.clone()])),
        ],
    );
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let who = reader
        .who("kt-0000000000000001", TimeRange::default())
        .expect("known");
    // In each context by the new name.
    let (plain, of_job): (Vec<_>, Vec<_>) =
        (who.uses.iter()).partition(|row| row.workload.ci_job.is_none());
    assert_eq!((plain.len(), of_job.len()), (1, 1));
    assert_eq!((&plain[0].workload, &of_job[0].workload), (&new, &new));
    assert_eq!((plain[0].count, of_job[0].count), (4, 2));
    assert_eq!((plain[0].first_seen, plain[0].last_seen), (at(0), at(10)));
    let hops = reader
        .where_to("kt-0000000000000001", TimeRange::default())
        .expect("known")
        .hops;
    assert_eq!(hops[0].workload, new);
    let radius = reader
        .blast_radius("payments/api-0", TimeRange::default())
        .expect("known");
    assert!(!radius.credentials.is_empty());
}

#[test]
fn growth_is_by_edge_and_hour() {
    let directory = tempfile::tempdir().expect("a directory");
    let many = (0..2000)
        .map(|i| used(1, "/a", "/x", at(i % 3000)))
        .collect();
    write(directory.path(), forever(), many);
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let timeline = reader
        .timeline(None, None, TimeRange::default())
        .expect("read");
    assert!(timeline.events.len() <= 2, "{} rows", timeline.events.len());
}

#[test]
fn an_edge_keeps_its_process_when_the_clock_was_set_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let later = at(86_400);
    let mut before = used(1, "/a", "/y", at(0));
    if let LedgerEntry::Use(used) = &mut before {
        used.workload = Workload::host("/x");
    }
    write(
        directory.path(),
        forever(),
        vec![
            used(1, "/a", "/x", later),
            before,
            used(2, "/b", "/x", at(0)),
        ],
    );
    // Everything before noon is dropped.
    let since_noon = RetentionLimits {
        max_age: Timestamp::now().duration_since(at(43_200)),
        ..forever()
    };
    write(directory.path(), since_noon, vec![]);
    let reader = LedgerReader::open(directory.path()).expect("opens");
    let who = reader.who("kt-0000000000000001", TimeRange::default());
    assert_eq!(who.expect("known").uses.len(), 1);
    assert!(
        reader
            .who("kt-0000000000000002", TimeRange::default())
            .is_err()
    );
}
