use super::*;
use crate::{
    observed::{file::FileId, mapping::FileVersion, path::RawPath},
    reader::{
        protocol::{FileContents, FileRequest},
        registry::Unregistered,
    },
};
use monitor_core::model::Subject;
use std::{fs, os::unix::fs::PermissionsExt as _};

/// Records which processes are registered, and reports one open.
#[derive(Debug, Default)]
struct TestRegistry {
    registered: Mutex<Vec<Subject>>,
    removed: Mutex<Vec<usize>>,
    opens: Vec<KernelOpen>,
}

impl ProcessRegistry for TestRegistry {
    fn add(&self, subject: Subject) -> Option<usize> {
        let mut registered = self.registered.lock().expect("unpoisoned");
        registered.push(subject);
        Some(registered.len() - 1)
    }

    fn remove(&self, entry: usize) {
        let registered = self.registered.lock().expect("unpoisoned");
        let pid = registered[entry].pid;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its pid is not free");
        assert!(
            state.contains(") Z "),
            "it ended and was not waited for: {state}"
        );
        self.removed.lock().expect("unpoisoned").push(entry);
    }

    fn take_opens(&self, _: usize) -> Option<Vec<KernelOpen>> {
        Some(self.opens.clone())
    }
}

fn setup() -> ReaderSetup {
    ReaderSetup {
        catalog: None,
        key: [1, 2],
        mounts_at_start: Vec::new(),
        host: None,
        views: Views::All,
    }
}

/// A client whose reader is a shell script that says it is ready, and receives one byte more than
/// its setup.
fn client(
    script: &str,
    registry: &Arc<TestRegistry>,
) -> (ReaderPool, ReaderClient, tempfile::TempPath) {
    let path = tempfile::NamedTempFile::new()
        .expect("a file")
        .into_temp_path();
    let ready = serde_json::to_string(&ReadAnswer::Ready).expect("encoded");
    let setup_len = serde_json::to_vec(&setup()).expect("encoded").len() + 4;
    let say_ready = format!("printf '\\{:03o}\\0\\0\\0%s' '{ready}' >&0", ready.len());
    let text = format!(
        "#!/bin/sh\nhead -c {setup_len} >/dev/null\n{say_ready}\nhead -c 1 >/dev/null\n{script}\n"
    );
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("executable");
    let pool = ReaderPool::with_program(&path, setup(), Arc::clone(registry) as _);
    let client = pool.client(ReaderRole::Credentials);
    (pool, client, path)
}

fn failures(pool: &ReaderPool) -> Vec<(ReadFailure, u64)> {
    pool.failures().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_reader_that_crashes_is_replaced_and_counted() {
    let registry = Arc::new(TestRegistry::default());
    let (pool, mut client, _program) = client("exit 3", &registry);
    for count in 1..=2 {
        let failed = client.call(&ReadRequest::Homes).expect_err("it ended");
        assert_eq!(failed, ReadFailure::Crashed);
        assert_eq!(failures(&pool), [(ReadFailure::Crashed, count)]);
    }
    // Each request is tried twice.
    assert_eq!(registry.removed.lock().expect("unpoisoned").len(), 4);
}

#[test]
fn a_reader_that_does_not_answer_is_killed() {
    let registry = Arc::new(TestRegistry::default());
    let (pool, mut client, _program) = client("exec sleep 60", &registry);
    let request = ReadRequest::Exists {
        pid: 1,
        path: RawPath::from(Path::new("/x")),
    };
    let failed = client.call(&request).expect_err("no answer");
    assert_eq!(failed, ReadFailure::TimedOut);
    assert_eq!(failures(&pool), [(ReadFailure::TimedOut, 1)]);
    let registered = registry.registered.lock().expect("unpoisoned");
    let gone = registered
        .iter()
        .all(|reader| !Path::new(&format!("/proc/{}", reader.pid)).exists());
    assert!(gone, "{registered:?}");
}

#[test]
fn how_a_reader_ends_is_told_apart() {
    let registry = Arc::new(TestRegistry::default());
    for (signal, expected) in [
        ("ABRT", ReadFailure::Memory),
        ("XCPU", ReadFailure::CpuTime),
    ] {
        let (_pool, mut client, _program) = client(&format!("kill -{signal} $$"), &registry);
        let failed = client.call(&ReadRequest::Homes).expect_err("it ended");
        assert_eq!(failed, expected);
    }
}

#[test]
fn a_reader_that_cannot_be_started_is_not_tried_at_once_again() {
    let pool = ReaderPool::with_program(Path::new("/nonexistent"), setup(), Arc::new(Unregistered));
    let mut client = pool.client(ReaderRole::Credentials);
    for count in 1..=2 {
        let failed = client.call(&ReadRequest::Homes).expect_err("no program");
        assert_eq!(failed, ReadFailure::NotStarted);
        assert_eq!(failures(&pool), [(ReadFailure::NotStarted, count)]);
    }
}

#[test]
fn another_file_than_the_probe_reported_is_replaced() {
    let wanted = FileId {
        device: 1,
        inode: 2,
        generation: 3,
    };
    let other = FileId {
        generation: 4,
        ..wanted
    };
    let metadata = fs::metadata("/proc/self/exe").expect("there");
    let answer = ReadAnswer::File(FileAnswer {
        contents: Ok(FileContents {
            version: FileVersion::of(&metadata),
            modified: None,
            found: Some(Vec::new()),
            opened: other,
            left_out: None,
        }),
        mounted_alone: None,
    });
    let open = |file| KernelOpen { file, magic: 0 };
    let request = ReadRequest::File(FileRequest::for_tests(Path::new("/x"), wanted));
    for (opens, expected) in [
        (Some(vec![open(wanted)]), Ok(())),
        // The file of an overlay, then the one below it.
        (Some(vec![open(wanted), open(other)]), Ok(())),
        (Some(vec![open(other)]), Err(ReadFailure::Replaced)),
        (Some(vec![]), Err(ReadFailure::Replaced)),
        // Without probes, the inode number must do.
        (None, Ok(())),
    ] {
        assert_eq!(
            check(&request, &answer, opens.as_deref()),
            expected,
            "{opens:?}"
        );
    }
}
