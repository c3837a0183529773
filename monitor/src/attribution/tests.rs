use super::*;
use jiff::SignedDuration;
use std::{collections::HashSet, path::Path};

fn task_info(pid: u32, parent: u32) -> TaskInfo {
    TaskInfo {
        time: Timestamp::UNIX_EPOCH,
        subject: Subject {
            pid,
            start: u64::from(pid),
        },
        parent: Some(Subject {
            pid: parent,
            start: u64::from(parent),
        }),
        cgroup: 0,
        uid: 7,
        loginuid: None,
        tty: false,
        comm: "x".to_owned(),
    }
}

/// Numbers above the kernel's limit of 2^22, so that no real process has them.
const A: u32 = 0x7000_0001;
const B: u32 = 0x7000_0002;
const C: u32 = 0x7000_0003;

#[test]
fn a_child_has_its_parents_executable_until_it_execs() {
    let mut attribution = Attribution::new(None, NameResolver::empty());
    let parent = task_info(A, 0x7000_0000);
    attribution.exec(&parent, Path::new("/bin/sh"), false);
    let child = task_info(B, A);
    attribution.fork(&child);
    assert_eq!(attribution.process(child.subject).exe, "/bin/sh");
    attribution.exec(&child, Path::new("/usr/bin/curl"), false);
    let process = attribution.process(child.subject);
    assert_eq!(process.exe, "/usr/bin/curl");
    assert_eq!(process.ancestors[0].exe, "/bin/sh");
    assert_eq!(attribution.workload(child.subject).key(), "/usr/bin/curl");
}

/// What an event pays for being attributed: `cargo test --release -p keytrail cost_of_attribution -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_attribution() {
    use std::{hint::black_box, time::Instant};
    const EVENTS: u32 = 200_000;
    let root = crate::sensor::cgroup_root();
    let mut attribution = Attribution::new(root, NameResolver::empty());
    let subjects = attribution.scan();
    let own = std::process::id();
    let subject = subjects
        .into_iter()
        .find(|subject| subject.pid == own)
        .expect("it runs");
    let mut stamp = attribution.task_info(subject, Timestamp::now());
    stamp.cgroup = 1;
    let mut measure = |what: &str, act: &mut dyn FnMut(&mut Attribution)| {
        let began = Instant::now();
        for _ in 0..EVENTS {
            act(&mut attribution);
        }
        let each = began.elapsed().as_nanos() / u128::from(EVENTS);
        println!("{what}: {each} ns");
        assert!(each < 100_000, "{what}: {each} ns");
    };
    measure("workload and process of an event", &mut |attribution| {
        attribution.ensure(&stamp);
        black_box(attribution.workload(subject));
        black_box(attribution.process(subject));
    });
    measure("an exec in a group that is known", &mut |attribution| {
        attribution.exec(&stamp, Path::new("/usr/bin/true"), false);
    });
    measure(
        "whether the executable is to be trusted",
        &mut |attribution| {
            black_box(attribution.distrust_reason(Timestamp::now(), subject));
        },
    );
}

#[test]
fn exited_processes_are_kept_longer_while_a_descendant_lives() {
    let mut attribution = Attribution::new(None, NameResolver::empty());
    let (process, below) = (task_info(A, B), task_info(C, A));
    attribution.exec(&process, Path::new("/bin/true"), false);
    attribution.fork(&below);
    attribution.exit(&process);
    let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
    assert!(
        attribution
            .evict_exited(after(60), &HashSet::new())
            .is_empty()
    );
    assert_eq!(attribution.process(process.subject).exe, "/bin/true");
    attribution.exit(&below);
    assert_eq!(attribution.evict_exited(after(9), &HashSet::new()), []);
    let mut dead = attribution.evict_exited(after(11), &HashSet::new());
    dead.sort();
    assert_eq!(dead, [process.subject, below.subject]);
}

#[test]
fn a_process_whose_exit_was_lost_is_found_missing() {
    let mut attribution = Attribution::new(None, NameResolver::empty());
    let own = attribution
        .adopt(std::process::id())
        .expect("this process runs");
    let gone = task_info(C, A);
    attribution.exec(&gone, Path::new("/bin/true"), false);
    let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
    for second in [0, 30] {
        assert_eq!(
            attribution.take_missing(after(second)),
            [],
            "nothing was lost"
        );
    }
    attribution.note_lost_records();
    assert_eq!(attribution.take_missing(after(31)), [gone.subject]);
    attribution.exec(&gone, Path::new("/bin/true"), false);
    attribution.evict_exited(after(60), &HashSet::new());
    attribution.exec(&gone, Path::new("/bin/true"), false);
    attribution.note_lost_records();
    assert_eq!(attribution.take_missing(after(35)), [], "not each second");
    attribution.records_lost = false;
    assert_eq!(
        attribution.take_missing(after(335)),
        [gone.subject],
        "but some time"
    );
    assert!(attribution.table.alive().any(|(subject, _)| subject == own));
}
