//! Rounds, without a kernel and without a process.

use super::*;
use monitor_common::record::Probe;

fn program(program: &'static str, mechanism: &str) -> AttachedProgram {
    AttachedProgram {
        probe: Probe::Connect,
        program,
        mechanism: mechanism.to_owned(),
        error: None,
        missed: None,
        passed: Vec::new(),
        instructions: None,
    }
}

fn canary() -> Canary {
    let attached = [
        program("connect_v4", "cgroup/connect4"),
        program("connect_v6", "cgroup/connect6"),
    ];
    let key = FingerprintKey { k0: 1, k1: 2 };
    let agent = Subject { pid: 1, start: 2 };
    Canary::start(Path::new("/nonexistent"), agent, key, &attached).expect("a thread")
}

/// A round in which both were done and some were reported.
fn judge(canary: &mut Canary, seen: &[CanaryStep], lossy: bool) -> Vec<(String, bool)> {
    let done = BTreeSet::from([CanaryStep::ConnectV4, CanaryStep::ConnectV6]);
    let round = CanaryRound {
        seen: seen.iter().copied().collect(),
        done: Some((done, Instant::now())),
        lossy,
    };
    let changes = canary.judge(round, Timestamp::now());
    changes
        .into_iter()
        .map(|change| (change.mechanisms.join(", "), change.until.is_some()))
        .collect()
}

const BOTH: [CanaryStep; 2] = [CanaryStep::ConnectV4, CanaryStep::ConnectV6];

#[test]
fn a_probe_is_silent_after_two_rounds_and_heard_again_once() {
    let mut canary = canary();
    let v4 = |heard| vec![("cgroup/connect4".to_owned(), heard)];
    assert_eq!(judge(&mut canary, &BOTH, false), []);
    assert_eq!(judge(&mut canary, &BOTH[1..], false), []);
    assert_eq!(judge(&mut canary, &BOTH[1..], false), v4(false));
    assert_eq!(judge(&mut canary, &BOTH[1..], false), []);
    assert_eq!(judge(&mut canary, &BOTH, false), v4(true));
    assert_eq!(judge(&mut canary, &BOTH, false), []);
}

#[test]
fn a_round_with_lost_records_proves_no_silence() {
    let mut canary = canary();
    for _ in 0..5 {
        assert_eq!(judge(&mut canary, &[], true), []);
    }
}

#[test]
fn a_step_that_the_canary_could_not_do_is_untested_and_not_silent() {
    let mut canary = canary();
    judge(&mut canary, &BOTH, false);
    let mut changes = Vec::new();
    for _ in 0..5 {
        let round = CanaryRound {
            done: Some((BTreeSet::new(), Instant::now())),
            ..CanaryRound::default()
        };
        changes.extend(canary.judge(round, Timestamp::now()));
    }
    let both: Vec<bool> = changes
        .iter()
        .map(|change| {
            change.reason == SilenceReason::Untested && change.until.is_none() && change.was_heard
        })
        .collect();
    assert_eq!(both, [true, true]);
    let ended = judge(&mut canary, &BOTH, false);
    assert!(ended.iter().all(|(_, ended)| *ended) && ended.len() == 2);
}
