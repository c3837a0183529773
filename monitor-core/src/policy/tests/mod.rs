mod ages;
mod foreign_reads;
mod harvests;
mod hops;
mod mints;
mod readers;
mod users;

use super::*;
use crate::model::{
    CredentialId, DeclaredGateway, Destination, Gap, IssuedTo, Kinship, Lifetime, Login, Look,
    NameSource, Place, Process, Role, Severity, Source, SourcedName, Transport, UNKNOWN_NAME,
    Untrusted, Workload, WorkloadKind,
};
use jiff::Timestamp;
use proptest::prelude::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

fn policy(text: &str) -> Policy {
    let document: Expectations = if text.is_empty() {
        Expectations::default()
    } else {
        serde_saphyr::from_str(text).expect("parses")
    };
    let (files, variables) = document.places();
    let catalog = Catalog::new("", &files, &variables).expect("compiles");
    Policy::new(document, Arc::new(catalog))
}

fn credential(class: &str, place: &str) -> Credential {
    let place = Place {
        source: Source::File,
        place: place.into(),
    };
    Credential::new(
        CredentialId::from_fingerprint(7),
        class,
        Role::Access,
        Lifetime::ShortLived,
        vec![place],
    )
}

fn process(exe: &str) -> Process {
    Process {
        pid: 1,
        start_time: at(0),
        exe: exe.into(),
        comm: "x".into(),
        uid: 0,
        tenant: crate::fair_cache::Tenant::default(),
        ancestors: [].into(),
    }
}

fn used(class: &str, place: &str, exe: &str) -> Use {
    Use {
        time: at(0),
        workload: Workload::host(exe),
        process: process(exe),
        credential: credential(class, place).into(),
        place: Place {
            source: Source::File,
            place: place.into(),
        },
        count: 1,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
        untrusted: None,
        given: false,
        in_mounted_home: false,
    }
}

fn hop(class: &str, name: Option<&str>, address: &str, evidence: Evidence) -> Hop {
    Hop {
        time: at(0),
        workload: Workload::host("/usr/bin/curl"),
        process: process("/usr/bin/curl"),
        credential: credential(class, "/srv/key").into(),
        destination: Destination {
            address: address.parse().expect("an address"),
            port: 443,
            name: name.map(str::to_owned),
            name_source: NameSource::Sni,
            transport: Transport::Tcp,
            ech: false,
            one_of: 0,
            disputed: Vec::new(),
            object: None,
            via: None,
        },
        others: Vec::new(),
        evidence,
        clear: false,
        again: false,
        held_with: Vec::new(),
        picked_up: false,
        on_behalf_of: None,
        for_proxy: false,
        count: 1,
    }
}

fn rules_of(findings: &[Finding]) -> Vec<(&str, Severity)> {
    findings
        .iter()
        .map(|finding| (finding.rule.as_str(), finding.severity))
        .collect()
}

impl Policy {
    fn judge_all(&mut self, used: &Use) -> Vec<Finding> {
        let mut findings = findings_of(self.judge_reader(used));
        findings.extend(self.judge_use(used));
        findings
    }
}

fn findings_of(judged: Decision) -> Vec<Finding> {
    match judged {
        Decision::Allowed => vec![],
        Decision::Pending(finding) | Decision::Violation(finding) => vec![finding],
    }
}

fn container(name: &str) -> Workload {
    Workload {
        kind: WorkloadKind::Container,
        container: Some(name.repeat(64)),
        ..Workload::host(name)
    }
}

const STRIPE: &str = "credentials:\n- name: stripe\n  match: { file: /srv/key }\n  owner: payments\n  readers: [ { executable: /usr/bin/good }, { unit: 'good*.service' } ]\n  destinations: [ '*.partner.example:443', '10.0.0.0/8' ]\n  max_age: 30d\n";

#[test]
fn learning_raises_nothing() {
    let hop = hop(
        "aws-access-key",
        Some("paste.example"),
        "127.0.0.1",
        Evidence::Presented,
    );
    let (verdict, findings) = policy("mode: learn").judge_hop(&hop);
    assert_eq!((verdict, findings.len()), (Verdict::Unexpected, 0));
}

#[test]
fn a_repetition_has_the_same_finding_id() {
    let mut policy = policy("");
    let one = hop(
        "aws-access-key",
        Some("paste.example"),
        "127.0.0.1",
        Evidence::Sole,
    );
    let mut other = one.clone();
    other.process.pid = 99;
    other.time = at(60);
    let mut id = |hop: &Hop| policy.judge_hop(hop).1[0].id.clone();
    assert_eq!(id(&one), id(&other));
    other.destination.name = Some("elsewhere.example".into());
    assert_ne!(id(&one), id(&other));
}

#[test]
fn blind() {
    let gap = |blind| Gap {
        kind: "lost-events".into(),
        probe: Some("file".into()),
        detail: "file ring buffer overflowed".into(),
        since: at(0),
        until: Some(at(1)),
        count: 3,
        blind,
    };
    let found = policy("").judge_gap(&gap(true)).pop().expect("a finding");
    assert_eq!(
        rules_of(std::slice::from_ref(&found)),
        [("blind", Severity::High)]
    );
    assert_eq!((found.credential, found.process), (None, None));
    assert_eq!(found.gaps, [gap(true)]);
    assert_eq!(policy("").judge_gap(&gap(false)), []);
}

#[test]
fn every_rule_has_its_own_name_and_a_reference() {
    let metas = rules::metas();
    let names: std::collections::BTreeSet<&str> = metas.iter().map(|meta| meta.name).collect();
    assert_eq!(names.len(), metas.len());
    for meta in metas {
        assert!(!meta.references.is_empty(), "{}", meta.name);
        assert!(meta.description.ends_with('.'), "{}", meta.name);
    }
    assert!(rules::check_rule_name("harvest").is_ok());
    assert!(rules::check_rule_name("no-such-rule").is_err());
}
