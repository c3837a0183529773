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
