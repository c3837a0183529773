//! Who presents a credential for the first time.

use super::*;
use crate::{baseline::KnownUser, model::OnBehalfOf};

fn pod(namespace: &str, name: &str, pod: &str) -> Workload {
    Workload {
        kind: WorkloadKind::Deployment,
        namespace: Some(namespace.into()),
        pod: Some(pod.into()),
        container: Some("main".into()),
        image: Some("registry.example/app:1".into()),
        ..Workload::host(name)
    }
}

fn unit(name: &str) -> Workload {
    Workload {
        kind: WorkloadKind::Unit,
        unit: Some(name.into()),
        ..Workload::host(name)
    }
}

/// A workload presents the credential at its home.
fn presents(workload: &Workload, hours: i64, picked_up: bool) -> Hop {
    let mut hop = hop(
        "github-token",
        Some("api.github.com"),
        "192.0.2.9",
        Evidence::Presented,
    );
    hop.workload = workload.clone();
    hop.time = at(hours * 3600);
    hop.picked_up = picked_up;
    hop.process.start_time = at(hours * 3600 - 60);
    hop
}

fn severity(policy: &mut Policy, hop: &Hop) -> Option<Severity> {
    let found = findings_of(policy.judge_user(hop));
    found.first().map(|finding| {
        assert_eq!(finding.rule, "new-user");
        finding.severity
    })
}

#[test]
fn whoever_presents_what_it_never_picked_up_is_new() {
    let (own, thief) = (unit("shop.service"), unit("thief.service"));
    let mut policy = policy("");
    assert_eq!(severity(&mut policy, &presents(&own, 0, true)), None);
    assert_eq!(severity(&mut policy, &presents(&own, 1, true)), None);
    let stolen = presents(&thief, 1, false);
    assert_eq!(severity(&mut policy, &stolen), Some(Severity::Medium));
    assert_eq!(severity(&mut policy, &stolen), None, "once");
}

#[test]
fn a_presenter_that_never_picked_it_up_sets_no_example() {
    // It was running before the agent.
    let (old, other) = (unit("old.service"), unit("other.service"));
    let mut policy = policy("");
    assert_eq!(severity(&mut policy, &presents(&old, 0, false)), None);
    assert_eq!(severity(&mut policy, &presents(&other, 1, false)), None);
}

#[test]
fn a_process_older_than_the_history_is_not_new() {
    let (own, old) = (unit("shop.service"), unit("old.service"));
    let mut policy = policy("");
    severity(&mut policy, &presents(&own, 1, true));
    let mut late = presents(&old, 2, false);
    late.process.start_time = at(0);
    assert_eq!(severity(&mut policy, &late), None);
}

#[test]
fn after_a_foreign_read_it_is_high() {
    let (own, thief) = (unit("shop.service"), unit("thief.service"));
    let mut policy = policy("");
    severity(&mut policy, &presents(&own, 0, true));
    let read = ForeignRead {
        time: at(3600),
        workload: thief.clone(),
        process: process("/usr/bin/python3"),
        victim: own,
        victim_process: process("/usr/bin/shop"),
        look: Look::Memory,
        credentials: vec![presents(&thief, 0, false).credential],
        evidence: Evidence::Sole,
        relation: Kinship::Unrelated,
    };
    policy.judge_foreign(&read);
    // The trail says that the reader holds it now.
    let stolen = presents(&thief, 2, true);
    assert_eq!(severity(&mut policy, &stolen), Some(Severity::High));
}

#[test]
fn after_a_copy_it_is_high() {
    let (own, thief) = (unit("shop.service"), unit("thief.service"));
    let mut policy = policy("");
    severity(&mut policy, &presents(&own, 0, true));
    let mut stolen = presents(&thief, 2, false);
    let copies = &mut Arc::make_mut(&mut stolen.credential).copies;
    copies.push(Place {
        source: Source::File,
        place: "/tmp/x".into(),
    });
    assert_eq!(severity(&mut policy, &stolen), Some(Severity::High));
}

#[test]
fn whoever_picks_it_up_itself_is_new_after_a_day() {
    let (own, later) = (unit("shop.service"), unit("report.service"));
    let mut policy = policy("");
    severity(&mut policy, &presents(&own, 0, true));
    let early = presents(&unit("early.service"), 23, true);
    assert_eq!(severity(&mut policy, &early), None);
    let late = presents(&later, 25, true);
    assert_eq!(severity(&mut policy, &late), Some(Severity::Low));
    assert_eq!(severity(&mut policy, &late), None, "once");
}

/// A rollout, more replicas, a new colour, another image: the pod's own specification gives it the
/// credential.
#[test]
fn what_is_given_is_no_surprise() {
    let mut policy = policy("");
    let mut give = |workload: &Workload, hours: i64| {
        let mut given = used("github-token", "/srv/key", "/app");
        given.workload = workload.clone();
        given.given = true;
        given.time = at(hours * 3600);
        policy.judge_use(&given);
        severity(&mut policy, &presents(workload, hours, true))
    };
    let green = Workload {
        image: Some("registry.example/app:2".into()),
        ..pod("shop", "web-green", "web-green-1")
    };
    for (workload, hours) in [
        (pod("shop", "web", "web-1"), 0),
        (pod("shop", "web", "web-2"), 30),
        (green, 31),
        (
            Workload {
                kind: WorkloadKind::CronJob,
                ..pod("shop", "nightly", "nightly-28-x")
            },
            32,
        ),
    ] {
        assert_eq!(give(&workload, hours), None, "{workload:?}");
    }
}

#[test]
fn a_declared_reader_and_a_broker_are_not_new() {
    let own = unit("shop.service");
    let text = "credentials: [ { name: k, match: { class: github-token }, readers: [ { unit: report.service } ] } ]";
    let mut policy = policy(text);
    severity(&mut policy, &presents(&own, 0, true));
    let declared = presents(&unit("report.service"), 1, false);
    assert_eq!(severity(&mut policy, &declared), None);
    let mut brokered = presents(&unit("envoy.service"), 1, false);
    brokered.on_behalf_of = Some(Box::new(OnBehalfOf { workload: own }));
    assert_eq!(severity(&mut policy, &brokered), None);
}

#[test]
fn a_token_issued_to_another_pod_needs_no_history() {
    let issued = IssuedTo {
        namespace: "payments".into(),
        pod: "api-0".into(),
        pod_uid: "a-uid".into(),
        service_account: "payer".into(),
        workload: None,
        kind: None,
    };
    let with = |workload: &Workload| {
        let mut hop = presents(workload, 0, true);
        Arc::make_mut(&mut hop.credential).issued_to = Some(Box::new(issued.clone()));
        severity(&mut policy(""), &hop)
    };
    assert_eq!(with(&pod("payments", "api", "api-0")), None);
    assert_eq!(
        with(&pod("payments", "api", "a-uid")),
        None,
        "not named yet"
    );
    let high = Some(Severity::High);
    assert_eq!(with(&pod("default", "thief", "thief-0")), high);
    assert_eq!(with(&pod("other", "api", "api-0")), high);
    assert_eq!(with(&unit("thief.service")), high);
    assert_eq!(with(&Workload::host("/usr/bin/curl")), high);
    assert_eq!(with(&Workload::vanished(7)), None, "unknown is not another");
}

#[test]
fn users_survive_a_restart_and_a_rename() {
    let mut policy = policy("");
    policy.restore(&[KnownUser {
        credential: CredentialId::from_fingerprint(7),
        workload: "shop.service".into(),
        presented: Some(at(0)),
        picked_up: true,
    }]);
    let again = presents(&unit("shop.service"), 48, false);
    assert_eq!(severity(&mut policy, &again), None, "it is known");
    let stolen = presents(&unit("thief.service"), 48, false);
    assert_eq!(severity(&mut policy, &stolen), Some(Severity::Medium));
    // What presented it before it had a name is known under the name.
    let unnamed = container("b");
    policy.restore(&[KnownUser {
        credential: CredentialId::from_fingerprint(7),
        workload: unnamed.key(),
        presented: Some(at(1)),
        picked_up: true,
    }]);
    let named = pod("shop", "web", "web-1");
    policy.rename(&unnamed, &named);
    assert_eq!(severity(&mut policy, &presents(&named, 49, false)), None);
}

#[test]
fn one_event_is_one_finding() {
    let mut out = Hop {
        clear: true,
        ..presents(&unit("shop.service"), 0, true)
    };
    out.destination.name = Some("paste.example".into());
    let (_, findings) = policy("").judge_hop(&out);
    assert_eq!(findings.len(), 2, "{findings:?}");
    let merged = Finding::merged(findings);
    assert_eq!(rules_of(&merged), [("unexpected-hop", Severity::Critical)]);
    assert_eq!(merged[0].also, ["cleartext-credential"]);
    assert_eq!(Finding::merged(Vec::new()), []);
    // A digest of the day is not about the event.
    let mut read = used("aws-access-key", "/srv/key", "/usr/bin/cat");
    Arc::make_mut(&mut read.credential).lifetime = Lifetime::Static;
    let digest = policy("").judge_use(&read).into_iter();
    let both = digest.chain(merged).collect();
    assert_eq!(Finding::merged(both).len(), 2);
}
