//! Many credentials picked up by one workload.

use super::*;

/// A pick-up of one class by a workload, a number of minutes after the first.
fn picked(workload: &Workload, number: u64, class: &str, minutes: i64) -> Use {
    let mut read = used(class, &format!("/srv/{class}"), "/usr/bin/cat");
    read.workload = workload.clone();
    Arc::make_mut(&mut read.credential).id = CredentialId::from_fingerprint(number);
    read.time = at(minutes * 60);
    read
}

fn harvests(policy: &mut Policy, reads: &[Use]) -> Vec<Severity> {
    reads
        .iter()
        .flat_map(|read| policy.judge_use(read))
        .filter(|finding| finding.rule == "harvest")
        .map(|finding| finding.severity)
        .collect()
}

#[test]
fn harvest() {
    let pod = container("a");
    let host = Workload::host("/usr/bin/cat");
    let three = |workload: &Workload, minutes: i64| {
        [
            picked(workload, 1, "aws-access-key", 0),
            picked(workload, 2, "github-token", 1),
            picked(workload, 3, "kubeconfig", minutes),
        ]
    };
    let mut plain = policy("");
    assert_eq!(harvests(&mut plain, &three(&pod, 9)), [Severity::High]);
    assert_eq!(harvests(&mut policy(""), &three(&host, 9)), [Severity::Low]);
    // Honest ones: slow, of two classes, its own, or of two workloads.
    assert_eq!(harvests(&mut policy(""), &three(&pod, 12)), []);
    let same = [1, 2, 3].map(|number| picked(&pod, number, "github-token", 0));
    assert_eq!(harvests(&mut policy(""), &same), []);
    let given = three(&pod, 2).map(|mut read| {
        read.given = true;
        read
    });
    assert_eq!(harvests(&mut policy(""), &given), []);
    let at_home = three(&pod, 2).map(|mut read| {
        read.in_mounted_home = true;
        read
    });
    assert_eq!(harvests(&mut policy(""), &at_home), [Severity::Low]);
    let volumes = three(&pod, 2).map(|mut read| {
        read.pod_uid = Some("u".into());
        read.volume_of = Some("u".into());
        read
    });
    assert_eq!(harvests(&mut policy(""), &volumes), []);
    // Many of one class do not displace the others.
    let decoys = (10..200).map(|number| picked(&pod, number, "dotenv-secret", 0));
    let hidden: Vec<Use> = decoys.chain(three(&pod, 2)).collect();
    assert!(harvests(&mut policy(""), &hidden).contains(&Severity::High));
    let mut shared = three(&pod, 2);
    shared[2].workload = container("b");
    assert_eq!(harvests(&mut policy(""), &shared), []);
    let written = "credentials:\n- name: k\n  match: { class: kubeconfig }\n  readers: [ { executable: /usr/bin/cat, container: '*' } ]\n";
    assert_eq!(harvests(&mut policy(written), &three(&pod, 2)), []);
    // A harvested credential appears where it should not.
    let mut out = hop(
        "aws-access-key",
        Some("paste.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    Arc::make_mut(&mut out.credential).id = CredentialId::from_fingerprint(1);
    out.time = at(3600);
    let (_, found) = plain.judge_hop(&out);
    assert!(rules_of(&found).contains(&("harvest", Severity::Critical)));
    out.destination.name = Some("sts.amazonaws.com".into());
    assert_eq!(rules_of(&plain.judge_hop(&out).1), []);
    let mut other = out.clone();
    other.destination.name = Some("paste.example".into());
    Arc::make_mut(&mut other.credential).id = CredentialId::from_fingerprint(9);
    assert_eq!(
        rules_of(&plain.judge_hop(&other).1),
        [("unexpected-hop", Severity::Critical)]
    );
}

#[test]
fn a_harvest_is_attributed_to_the_name_that_arrives_late() {
    let unnamed = container("a");
    let mut plain = policy("");
    for (number, class) in ["aws-access-key", "github-token", "stripe-key"]
        .into_iter()
        .enumerate()
    {
        plain.judge_use(&picked(&unnamed, number as u64 + 1, class, number as i64));
    }
    let named = Workload {
        kind: WorkloadKind::Deployment,
        namespace: Some("shop".into()),
        name: "cart".into(),
        ..unnamed.clone()
    };
    plain.rename(&unnamed, &named);
    let mut out = hop(
        "aws-access-key",
        Some("paste.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    Arc::make_mut(&mut out.credential).id = CredentialId::from_fingerprint(1);
    out.time = at(3600);
    let (_, found) = plain.judge_hop(&out);
    let harvest = found.iter().find(|finding| finding.rule == "harvest");
    let summary = &harvest.expect("a finding").summary;
    assert!(summary.contains("that shop/cart harvested"), "{summary}");
}

fn ancestor(pid: u32, exe: &str, comm: &str) -> crate::model::Ancestor {
    crate::model::Ancestor {
        pid,
        exe: exe.into(),
        comm: comm.into(),
    }
}

/// Three pick-ups by three programs of the host, below these processes.
fn below(ancestors: &[crate::model::Ancestor]) -> Vec<Use> {
    let programs = ["/usr/bin/cat", "/usr/bin/grep", "/usr/bin/python3"];
    let classes = ["aws-access-key", "github-token", "kubeconfig"];
    let all = programs.iter().zip(classes).zip(1..);
    all.map(|((exe, class), number)| {
        let mut read = picked(&Workload::host(exe), number, class, 1);
        read.process.exe = (*exe).into();
        read.process.ancestors = ancestors.into();
        read
    })
    .collect()
}

#[test]
fn an_install_script_is_high_on_a_host() {
    let shell = ancestor(50, "/usr/bin/dash", "sh");
    let npm = |comm: &str| ancestor(40, "/usr/bin/node", comm);
    let top = ancestor(1, "/usr/lib/systemd/systemd", "systemd");
    let with = |installer: crate::model::Ancestor| {
        let reads = below(&[shell.clone(), installer, top.clone()]);
        harvests(&mut policy(""), &reads)
    };
    let high = [Severity::High];
    for comm in ["npm install", "npm ci", "npm"] {
        assert_eq!(with(npm(comm)), high, "{comm}");
    }
    for (exe, comm) in [
        ("/usr/bin/python3.12", "pip"),
        ("/usr/bin/apt-get", "apt-get"),
    ] {
        assert_eq!(with(ancestor(40, exe, comm)), high, "{exe}");
    }
    // The children of one shell; and a script that somebody runs by name.
    assert_eq!(with(ancestor(40, "/usr/bin/make", "make")), [Severity::Low]);
    assert_eq!(with(npm("npm run deploy")), [Severity::Low]);
}

#[test]
fn unrelated_programs_are_no_harvest() {
    // Of a session, of a terminal, and of two parents.
    let sshd = ancestor(40, "/usr/sbin/sshd", "sshd");
    assert_eq!(harvests(&mut policy(""), &below(&[sshd])), []);
    let mut typed = below(&[ancestor(50, "/usr/bin/bash", "bash")]);
    for read in &mut typed {
        read.login = Some(Login { uid: 0, home: None });
    }
    assert_eq!(harvests(&mut policy(""), &typed), []);
    let mut apart = below(&[ancestor(50, "/usr/bin/bash", "bash")]);
    apart[2].process.ancestors = [ancestor(60, "/usr/bin/bash", "bash")].into();
    assert_eq!(harvests(&mut policy(""), &apart), []);
    // A backup of the host reads everything; a program of that name elsewhere is not one.
    let backup = |exe: &str| {
        let mut reads = below(&[]);
        for read in &mut reads {
            read.workload = Workload::host(exe);
            read.process.exe = exe.into();
        }
        harvests(&mut policy(""), &reads)
    };
    assert_eq!(backup("/usr/bin/restic"), []);
    assert_eq!(backup("/tmp/restic"), [Severity::Low]);
}

#[test]
fn what_a_metadata_service_issues_counts() {
    let mut reads = below(&[ancestor(50, "/usr/bin/bash", "bash")]);
    reads[2].place.source = Source::Metadata;
    reads[2].given = true;
    assert_eq!(harvests(&mut policy(""), &reads), [Severity::Low]);
}
