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
        credentials: vec![credential("github-token", "/srv/token").into()],
        evidence: Evidence::Sole,
        relation: Kinship::Unrelated,
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

fn severity_of(read: &ForeignRead) -> Option<Severity> {
    let found = policy("").judge_foreign(read);
    assert!(found.len() <= 1, "one finding for one inspection");
    found.first().map(|finding| finding.severity)
}

#[test]
fn what_is_read_and_who_is_related_decides() {
    let of = |relation, look, holds: bool, within: bool| {
        let mut read = foreign("/opt/agent", "/usr/bin/app", look);
        read.relation = relation;
        if !holds {
            read.credentials.clear();
        }
        if within {
            read.workload = read.victim.clone();
        }
        severity_of(&read)
    };
    let (high, low) = (Some(Severity::High), Some(Severity::Low));
    for (relation, look, holds, within, expected) in [
        // The memory of another workload, whatever it is known to hold.
        (Kinship::Unrelated, Look::Memory, true, false, high),
        (Kinship::Unrelated, Look::Memory, false, false, high),
        (Kinship::Unrelated, Look::Trace, false, false, high),
        // A job reads its runner, in the runner's own unit.
        (Kinship::Descendant, Look::Memory, false, true, high),
        (Kinship::Descendant, Look::Trace, true, true, high),
        (Kinship::Descendant, Look::Environ, true, true, low),
        // A debugger and its program.
        (Kinship::Ancestor, Look::Trace, true, false, low),
        (Kinship::Ancestor, Look::Trace, false, false, None),
        // Within one workload.
        (Kinship::Unrelated, Look::Memory, true, true, low),
        (Kinship::Unrelated, Look::Memory, false, true, None),
        (Kinship::Unrelated, Look::Environ, true, false, high),
        (Kinship::Unrelated, Look::Environ, false, false, None),
    ] {
        assert_eq!(
            of(relation, look, holds, within),
            expected,
            "{relation:?} {look} holds={holds} within={within}"
        );
    }
}

#[test]
fn only_environments_are_read_by_programs_of_packages() {
    let with = |exe: &str, look, uid| {
        let mut read = foreign(exe, "/usr/bin/app", look);
        read.process.uid = uid;
        // A package manager that was told to run a script.
        read.process.ancestors = [crate::model::Ancestor {
            pid: 2,
            exe: "/usr/bin/apt-get".into(),
            comm: "apt-get".into(),
        }]
        .into();
        read
    };
    let (high, low) = (Some(Severity::High), Some(Severity::Low));
    assert_eq!(severity_of(&with("/usr/bin/ps", Look::Environ, 0)), low);
    assert_eq!(severity_of(&with("/usr/bin/perl", Look::Environ, 0)), low);
    assert_eq!(severity_of(&with("/usr/bin/ps", Look::Memory, 0)), high);
    assert_eq!(
        severity_of(&with("/usr/bin/python3", Look::Memory, 0)),
        high
    );
    assert_eq!(severity_of(&with("/usr/bin/ps", Look::Environ, 1000)), high);
    assert_eq!(severity_of(&with("/tmp/ps", Look::Environ, 0)), high);
    // Any image may have a program of that name.
    let mut contained = with("/usr/bin/ps", Look::Environ, 0);
    contained.workload.kind = WorkloadKind::Container;
    assert_eq!(severity_of(&contained), high);
}

#[test]
fn inspectors_are_expected() {
    let text = "inspectors: [ { unit: profiler.service }, { image: docker.io/pixie/pem } ]";
    let mut read = foreign("/opt/profiler", "/usr/bin/app", Look::Memory);
    let raised = |read: &ForeignRead| policy(text).judge_foreign(read).len();
    assert_eq!(raised(&read), 1);
    read.workload.unit = Some("profiler.service".into());
    assert_eq!(raised(&read), 0);
    read.workload.unit = Some("user@1000/profiler.service".into());
    assert_eq!(raised(&read), 1);
    read.workload = Workload {
        image: Some("docker.io/pixie/pem:0.14".into()),
        ..container("a")
    };
    assert_eq!(raised(&read), 0);
}

#[test]
fn one_inspection_of_many_credentials_is_one_finding() {
    let mut read = foreign("/opt/x", "/usr/bin/app", Look::Environ);
    read.credentials = (0..5)
        .map(|number| {
            let mut one = credential("github-token", "/srv/token");
            one.id = CredentialId::from_fingerprint(number);
            one.into()
        })
        .collect();
    let found = policy("").judge_foreign(&read);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].summary.ends_with("and 2 more"),
        "{}",
        found[0].summary
    );
    // No expectation settles it, so it is raised in learn mode too.
    assert_eq!(policy("mode: learn").judge_foreign(&read).len(), 1);
}
