//! Reads of another process's environment and memory.

use super::*;

fn foreign(exe: &str, victim: &str, look: Look) -> ForeignRead {
    ForeignRead {
        time: at(0),
        workload: Workload::host(exe),
        process: process(exe),
        victim: Workload::host(victim),
        victim_process: process(victim),
        look,
        credential: credential("github-token", "/srv/token"),
        evidence: Evidence::Sole,
        ancestor: false,
    }
}

#[test]
fn reading_another_workloads_memory_is_high() {
    let mut policy = policy("");
    let found = policy
        .judge_foreign(&foreign("/tmp/thief", "/usr/bin/app", Look::Environ))
        .pop()
        .expect("a finding");
    assert_eq!(found.rule, "foreign-process-read");
    assert_eq!(found.severity, Severity::High);
    assert_eq!(found.evidence, Some(Evidence::Sole));
    assert!(found.summary.contains("/usr/bin/app"), "{}", found.summary);
}

#[test]
fn debuggers_and_monitors_reading_processes_are_low() {
    let mut policy = policy("");
    let within = foreign("/usr/bin/app", "/usr/bin/app", Look::Trace);
    let mut started = foreign("/usr/bin/strace", "/usr/bin/app", Look::Trace);
    started.ancestor = true;
    let duty = foreign("/usr/bin/ps", "/usr/bin/app", Look::Environ);
    let mut upgrade = foreign("/usr/bin/perl", "/usr/bin/app", Look::Environ);
    upgrade.process.ancestors = [crate::model::Ancestor {
        pid: 2,
        exe: "/usr/bin/apt-get".into(),
        comm: "apt-get".into(),
    }]
    .into();
    for read in [within, started, duty, upgrade] {
        let found = policy.judge_foreign(&read).pop().expect("a finding");
        assert_eq!(found.severity, Severity::Low, "{}", found.summary);
    }
    // The same program name inside a container is not an inspector.
    let mut contained = foreign("/usr/bin/ps", "/usr/bin/app", Look::Environ);
    contained.workload.kind = WorkloadKind::Container;
    let found = policy.judge_foreign(&contained).pop().expect("a finding");
    assert_eq!(found.severity, Severity::High);
    let mut unattended = foreign("/usr/bin/perl", "/usr/bin/app", Look::Environ);
    unattended.workload.kind = WorkloadKind::Unit;
    unattended.workload.unit = Some("apt-daily-upgrade.service".into());
    let found = policy.judge_foreign(&unattended).pop().expect("a finding");
    assert_eq!(found.severity, Severity::Low);
    // No expectation settles it, so it is raised in learn mode too.
    let mut learning = self::policy("mode: learn");
    let thief = foreign("/tmp/thief", "/usr/bin/app", Look::Memory);
    let found = learning.judge_foreign(&thief).pop().expect("a finding");
    assert_eq!(found.severity, Severity::High);
}
