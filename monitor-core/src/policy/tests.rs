use super::*;
use crate::model::CredentialId;
use crate::model::Lifetime;
use crate::model::Look;
use crate::model::Severity;
use crate::model::Source;
use crate::model::SourcedName;
use crate::model::UNKNOWN_NAME;
use crate::model::Untrusted;
use crate::model::WorkloadKind;
use crate::model::{
    Destination, Gap, IssuedTo, Login, NameSource, Place, Process, Role, Transport, Workload,
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
    Credential {
        id: CredentialId::from_fingerprint(7),
        name: None,
        class: class.into(),
        role: Role::Access,
        lifetime: Lifetime::ShortLived,
        issued_at: None,
        expires_at: None,
        owner: None,
        label: None,
        audience: vec![],
        issued_to: None,
        unmarked: false,
        sources: vec![Place {
            source: Source::File,
            place: place.into(),
        }],
    }
}

fn process(exe: &str) -> Process {
    Process {
        pid: 1,
        start_time: at(0),
        exe: exe.into(),
        comm: "x".into(),
        uid: 0,
        ancestors: vec![],
    }
}

fn used(class: &str, place: &str, exe: &str) -> Use {
    Use {
        time: at(0),
        workload: Workload::host(exe),
        process: process(exe),
        credential: credential(class, place),
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
    }
}

fn hop(class: &str, name: Option<&str>, address: &str, evidence: Evidence) -> Hop {
    Hop {
        time: at(0),
        workload: Workload::host("/usr/bin/curl"),
        process: process("/usr/bin/curl"),
        credential: credential(class, "/srv/key"),
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
        },
        others: Vec::new(),
        evidence,
        clear: false,
        again: false,
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
fn unexpected_hop() {
    for (text, hop, verdict, severity) in [
        (
            "",
            hop(
                "aws-access-key",
                Some("s3.eu-central-1.amazonaws.com"),
                "127.0.0.1",
                Evidence::Sole,
            ),
            Verdict::Expected,
            None,
        ),
        (
            "",
            hop(
                "aws-access-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Presented,
            ),
            Verdict::Unexpected,
            Some(Severity::Critical),
        ),
        (
            "",
            hop(
                "aws-access-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Sole,
            ),
            Verdict::Unexpected,
            Some(Severity::Low),
        ),
        (
            "",
            hop(
                "aws-access-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Held,
            ),
            Verdict::Unproven,
            None,
        ),
        (
            "",
            hop("aws-access-key", None, "203.0.113.9", Evidence::Sole),
            Verdict::Unexpected,
            Some(Severity::Low),
        ),
        (
            "",
            hop("aws-access-key", None, "169.254.169.254", Evidence::Sole),
            Verdict::Unproven,
            None,
        ),
        (
            "",
            hop(
                "private-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Presented,
            ),
            Verdict::Unproven,
            None,
        ),
        (
            STRIPE,
            hop(
                "aws-access-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Sole,
            ),
            Verdict::Unexpected,
            Some(Severity::Medium),
        ),
        (
            STRIPE,
            hop(
                "private-key",
                Some("api.partner.example"),
                "127.0.0.1",
                Evidence::Sole,
            ),
            Verdict::Expected,
            None,
        ),
        (
            STRIPE,
            hop("private-key", None, "10.1.1.1", Evidence::Held),
            Verdict::Expected,
            None,
        ),
        (
            STRIPE,
            hop(
                "private-key",
                Some("paste.example"),
                "127.0.0.1",
                Evidence::Presented,
            ),
            Verdict::Unexpected,
            Some(Severity::Critical),
        ),
    ] {
        let (found, findings) = policy(text).judge_hop(&hop);
        assert_eq!(found, verdict, "{hop:?}");
        assert_eq!(
            findings.first().map(|finding| finding.severity),
            severity,
            "{hop:?}"
        );
    }
}

#[test]
fn cleartext_credential() {
    let mut policy = policy("");
    let mut found = |address: &str, clear: bool| {
        let hop = Hop {
            clear,
            ..hop("registry-credential", None, address, Evidence::Presented)
        };
        policy.judge_hop(&hop).1.iter().any(|finding| {
            finding.rule == "cleartext-credential" && finding.severity == Severity::High
        })
    };
    assert!(found("10.0.0.1", true));
    assert!(found("fd00::1", true));
    for (address, clear) in [
        ("10.0.0.1", false),
        ("127.0.0.1", true),
        ("::1", true),
        ("169.254.169.254", true),
    ] {
        assert!(!found(address, clear), "{address} {clear}");
    }
}

#[test]
fn a_disputed_name_is_not_enough() {
    let mut policy = policy("");
    let mut verdict = |disputed: &[(&str, NameSource)]| {
        let mut hop = hop(
            "aws-access-key",
            Some("s3.amazonaws.com"),
            "10.0.0.1",
            Evidence::Presented,
        );
        hop.destination.disputed = disputed
            .iter()
            .map(|(name, name_source)| SourcedName {
                name: (*name).to_owned(),
                name_source: *name_source,
            })
            .collect();
        policy.judge_hop(&hop).0
    };
    let dns = NameSource::Dns;
    let host = NameSource::HttpHost;
    assert_eq!(verdict(&[]), Verdict::Expected);
    assert_eq!(
        verdict(&[("bucket.s3.amazonaws.com", host)]),
        Verdict::Expected
    );
    assert_eq!(verdict(&[("paste.example", host)]), Verdict::Unexpected);
    assert_eq!(verdict(&[(UNKNOWN_NAME, host)]), Verdict::Unexpected);
    assert_eq!(verdict(&[("paste.example", dns)]), Verdict::Unexpected);
    assert_eq!(
        verdict(&[("edge.example", dns), ("s3-1.amazonaws.com", dns)]),
        Verdict::Expected,
        "one of the names of an address is enough"
    );
}

#[test]
fn unexpected_mint() {
    let text = "credentials:\n- name: node\n  match: { class: aws-session-key }\n  readers: [ { executable: /usr/bin/good } ]\nauthenticators:\n- { name: vault, destinations: [ '10.0.0.9:8200' ], mints: access, readers: [ { unit: good.service } ] }\n";
    let mut with = policy(text);
    let mint = |class: &str, exe: &str, address: &str, port: u16| Mint {
        time: at(0),
        workload: Workload::host(exe),
        process: process(exe),
        authenticator: Destination::unnamed(
            address.parse().expect("an address"),
            port,
            Transport::Tcp,
        ),
        presented: None,
        minted: Some(credential(class, "/x")),
    };
    let imds = "169.254.169.254";
    for (text, mint, found) in [
        ("", mint("aws-session-key", "/usr/bin/bad", imds, 80), false),
        (
            text,
            mint("aws-session-key", "/usr/bin/bad", imds, 80),
            true,
        ),
        (
            text,
            mint("aws-session-key", "/usr/bin/good", imds, 80),
            false,
        ),
        (text, mint("oauth-token", "/usr/bin/bad", imds, 80), false),
        (
            text,
            mint("vault-token", "/usr/bin/bad", "10.0.0.9", 8200),
            true,
        ),
        (
            text,
            mint("vault-token", "/usr/bin/bad", "10.0.0.8", 8200),
            false,
        ),
    ] {
        let findings = findings_of(policy(text).judge_mint(&mint));
        assert_eq!(
            rules_of(&findings),
            if found {
                vec![("unexpected-mint", Severity::High)]
            } else {
                vec![]
            },
            "{} {}",
            mint.process.exe,
            mint.authenticator.label()
        );
    }
    // A role that it may not mint.
    let mut identity = mint("oidc-token", "/usr/bin/x", "10.0.0.9", 8200);
    identity.workload.unit = Some("good.service".into());
    assert_eq!(with.judge_mint(&identity), Decision::Allowed);
    if let Some(minted) = &mut identity.minted {
        minted.role = Role::Identity;
    }
    assert_eq!(findings_of(with.judge_mint(&identity)).len(), 1);
}

#[test]
fn a_token_may_go_to_its_audience() {
    let mut hop = hop(
        "k8s-service-account-token",
        Some("vault.corp.example"),
        "10.0.0.1",
        Evidence::Sole,
    );
    assert_eq!(policy("").judge_hop(&hop).0, Verdict::Unexpected);
    hop.credential.audience = vec!["https://vault.corp.example:8200".into()];
    assert_eq!(policy("").judge_hop(&hop).0, Verdict::Expected);
}

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
fn unexpected_reader() {
    assert_eq!(
        rules_of(&policy(STRIPE).judge_all(&used("x", "/srv/key", "/usr/bin/bad"))),
        [("unexpected-reader", Severity::High)]
    );
    assert_eq!(
        rules_of(&policy(STRIPE).judge_all(&used("x", "/srv/key", "/usr/bin/good"))),
        []
    );
    let mut unit = used("x", "/srv/key", "/usr/bin/bad");
    unit.workload.unit = Some("good-2.service".into());
    assert_eq!(rules_of(&policy(STRIPE).judge_all(&unit)), []);
    assert_eq!(
        rules_of(&policy(STRIPE).judge_all(&used("x", "/srv/other", "/usr/bin/bad"))),
        []
    );
}

#[test]
fn an_unknown_attribute_makes_a_decision_pending() {
    let text = "credentials:\n- name: k\n  match: { file: /srv/key }\n  readers: [ { namespace: payments, workload: api, service_account: payer } ]\n";
    let judge = |workload: Workload| {
        let mut read = used("x", "/srv/key", "/app");
        read.workload = workload;
        policy(text).judge_reader(&read)
    };
    let pod = |namespace: Option<&str>, account: Option<&str>, partial| Workload {
        kind: WorkloadKind::Pod,
        namespace: namespace.map(str::to_owned),
        pod: Some("api-0".into()),
        service_account: account.map(str::to_owned),
        partial,
        ..Workload::host("api-0")
    };
    let owned = |name: &str, account: &str| Workload {
        kind: WorkloadKind::Deployment,
        name: name.into(),
        ..pod(Some("payments"), Some(account), false)
    };
    for doubtful in [
        // Nothing is known yet, or no provider exists.
        pod(None, None, true),
        pod(None, None, false),
        // The runtime's part of the name matches; the owner is not known yet.
        pod(Some("payments"), None, true),
    ] {
        let judged = judge(doubtful.clone());
        assert!(
            matches!(&judged, Decision::Pending(low) if low.severity == Severity::Low),
            "{doubtful:?}: {judged:?}"
        );
    }
    for breaks in [
        // The namespace alone differs.
        pod(Some("default"), None, true),
        // The complete name differs.
        pod(Some("payments"), Some("payer"), false),
        owned("web", "payer"),
        owned("api", "default"),
        Workload::host("/app"),
        // A plain container has no namespace that could become known.
        container("a"),
    ] {
        let judged = judge(breaks.clone());
        assert!(
            matches!(&judged, Decision::Violation(high) if high.severity == Severity::High),
            "{breaks:?}: {judged:?}"
        );
    }
    assert_eq!(judge(owned("api", "payer")), Decision::Allowed);
}

#[test]
fn the_token_of_another_pod() {
    let issued = IssuedTo {
        namespace: "payments".into(),
        pod: "api-0".into(),
        pod_uid: "a".into(),
        service_account: "payer".into(),
        workload: None,
        kind: None,
    };
    let token = |source: Source, kind: WorkloadKind, reader: Option<&str>, pod: &str| {
        let mut used = used("k8s-service-account-token", "/shared/token", "/app");
        used.place.source = source;
        used.credential.issued_to = Some(issued.clone());
        used.pod_uid = reader.map(str::to_owned);
        used.workload = Workload {
            kind,
            namespace: (!pod.is_empty()).then(|| "payments".to_owned()),
            pod: Some(pod.to_owned()),
            ..Workload::host(pod)
        };
        used
    };
    let pod = WorkloadKind::Pod;
    for honest in [
        token(Source::File, pod, Some("a"), "api-0"),
        token(Source::File, pod, None, "api-0"),
        token(Source::File, pod, None, ""),
        token(Source::Presented, pod, Some("b"), "proxy"),
    ] {
        assert_eq!(rules_of(&policy("").judge_all(&honest)), [], "{honest:?}");
    }
    for bad in [
        token(Source::File, pod, Some("b"), "thief"),
        token(Source::Environment, pod, None, "thief"),
        token(Source::File, WorkloadKind::Host, None, ""),
    ] {
        let found = policy("").judge_all(&bad);
        assert!(
            rules_of(&found).contains(&("unexpected-reader", Severity::High)),
            "{bad:?}: {found:?}"
        );
    }
    let mut named = token(Source::File, pod, Some("b"), "thief");
    named.home = Some(Box::new(Workload {
        kind: WorkloadKind::Deployment,
        namespace: Some("payments".into()),
        pod: Some("api-0".into()),
        ..Workload::host("api")
    }));
    let found = policy("").judge_all(&named);
    assert!(
        found[0].summary.ends_with(
            "that was issued to payments/api (deployment, pod api-0, service account payer)"
        ),
        "{}",
        found[0].summary
    );
}

#[test]
fn a_finding_names_the_pod_of_a_token() {
    let issued = IssuedTo {
        namespace: "payments".into(),
        pod: "api-0".into(),
        pod_uid: "a".into(),
        service_account: "payer".into(),
        workload: Some("api".into()),
        kind: Some(WorkloadKind::Deployment),
    };
    let mut stolen = hop(
        "k8s-service-account-token",
        Some("paste.example"),
        "192.0.2.9",
        Evidence::Presented,
    );
    stolen.credential.issued_to = Some(issued);
    stolen.workload = Workload {
        kind: WorkloadKind::Pod,
        namespace: Some("default".into()),
        pod: Some("thief".into()),
        ..Workload::host("thief")
    };
    let summary_of = |hop: &Hop| policy("").judge_hop(hop).1[0].summary.clone();
    let whose = "issued to payments/api (deployment, pod api-0, service account payer)";
    assert!(
        summary_of(&stolen).ends_with(whose),
        "{}",
        summary_of(&stolen)
    );
    stolen.workload.namespace = Some("payments".into());
    stolen.workload.pod = Some("api-0".into());
    assert!(
        !summary_of(&stolen).contains("issued to"),
        "{}",
        summary_of(&stolen)
    );
    // Before they are named.
    stolen.workload.namespace = None;
    for (pod, own) in [(Some("a"), true), (Some("b"), false), (None, true)] {
        stolen.workload.pod = pod.map(str::to_owned);
        assert_eq!(!summary_of(&stolen).contains("issued to"), own, "{pod:?}");
    }
}

/// Anyone can create a service in a cluster: it is not a home for the API's credentials.
#[test]
fn a_cluster_service_is_not_an_expected_destination() {
    let at = |object: &str, written: &str| {
        let mut hop = hop(
            "k8s-service-account-token",
            None,
            "10.96.0.9",
            Evidence::Presented,
        );
        hop.destination = hop.destination.with_object(Some(object.to_owned()));
        policy(written).judge_hop(&hop).0
    };
    assert_eq!(at("kubernetes.default.svc", ""), Verdict::Expected);
    assert_eq!(at("evil.attacker.svc", ""), Verdict::Unexpected);
    // It may be the API's, as far as is known.
    assert_eq!(at(UNKNOWN_NAME, ""), Verdict::Unproven);
    let written = "credentials:\n  - name: own\n    match: { file: /srv/key }\n    destinations: [\"vault.vault.svc:443\"]\n";
    assert_eq!(at("vault.vault.svc", written), Verdict::Expected);
    // Whatever name the connection uses.
    let mut named = hop(
        "k8s-service-account-token",
        Some("paste.example"),
        "10.96.0.9",
        Evidence::Presented,
    );
    named.destination.object = Some("egress.infra.svc".to_owned());
    assert_eq!(policy("").judge_hop(&named).0, Verdict::Unexpected);
}

#[test]
fn the_volume_of_another_pod() {
    let mut plain = policy("");
    let volume = |exe: &str, reader: Option<&str>| {
        let mut used = used(
            "k8s-service-account-token",
            "/var/lib/kubelet/pods/a/volumes/x/token",
            exe,
        );
        used.volume_of = Some("a".into());
        used.pod_uid = reader.map(str::to_owned);
        used
    };
    assert_eq!(
        rules_of(&plain.judge_all(&volume("/usr/bin/kubelet", None))),
        []
    );
    assert_eq!(rules_of(&plain.judge_all(&volume("/app", Some("a")))), []);
    for bad in [
        volume("/usr/bin/tar", None),
        volume("/app", Some("b")),
        volume("/fake/kubelet", Some("b")),
    ] {
        assert_eq!(
            rules_of(&plain.judge_all(&bad)),
            [("unexpected-reader", Severity::High)]
        );
    }
}

#[test]
fn credential_copied() {
    let mut plain = policy("");
    assert_eq!(
        rules_of(&plain.judge_all(&used("x", "/a/.netrc", "/usr/bin/cat"))),
        []
    );
    assert_eq!(
        rules_of(&plain.judge_all(&used("x", "/a/.netrc", "/usr/bin/curl"))),
        [],
        "two programs share one file"
    );
    assert_eq!(
        rules_of(&plain.judge_all(&used("x", "/b/.netrc", "/usr/bin/cat"))),
        [("credential-copied", Severity::Low)]
    );
    let mut variable = used("x", "env:TOKEN", "/usr/bin/curl");
    variable.place.source = Source::Environment;
    assert_eq!(
        rules_of(&plain.judge_all(&variable)),
        [],
        "a script reads a file and sets a variable"
    );
    let mut plain = policy("");
    let mut first = used("x", "/run/secrets/x", "/app");
    first.workload = container("a");
    let mut second = first.clone();
    second.workload = container("b");
    assert_eq!(rules_of(&plain.judge_all(&first)), []);
    assert_eq!(rules_of(&plain.judge_all(&first)), []);
    assert_eq!(
        rules_of(&plain.judge_all(&second)),
        [("credential-copied", Severity::Low)]
    );
}

#[test]
fn a_credential_expected_in_two_places_is_no_copy() {
    let text = "credentials:\n- name: shared\n  match: { file: [ /run/secrets/x, /srv/x ] }\n  readers: [ { workload: a }, { workload: b } ]\n";
    let read = |place: &str, name: &str| {
        let mut used = used("x", place, "/app");
        used.workload = container(name);
        // As the agent knows it by then.
        used.credential.sources.push(Place {
            source: Source::File,
            place: "/srv/x".into(),
        });
        used
    };
    let mut with = policy(text);
    for (place, name) in [
        ("/run/secrets/x", "a"),
        ("/run/secrets/x", "b"),
        ("/srv/x", "b"),
    ] {
        assert_eq!(
            rules_of(&with.judge_all(&read(place, name))),
            [],
            "{place} of {name}"
        );
    }
    assert_eq!(
        rules_of(&with.judge_all(&read("/tmp/x", "b"))),
        [("credential-copied", Severity::Medium)],
        "a reader, and a file that nobody wrote"
    );
    let mut mounted = read("/mnt/x", "b");
    mounted.given = true;
    assert_eq!(
        rules_of(&with.judge_all(&mounted)),
        [],
        "mounted into a reader"
    );
    assert_eq!(
        rules_of(&with.judge_all(&read("/run/secrets/x", "c"))),
        [
            ("unexpected-reader", Severity::High),
            ("credential-copied", Severity::Medium)
        ]
    );
}

#[test]
fn human_use() {
    let read = |place: &str, exe: &str| {
        let mut used = used("x", place, exe);
        used.login = Some(Login {
            uid: 1000,
            home: Some("/home/u".into()),
        });
        used
    };
    assert_eq!(
        rules_of(&policy("").judge_all(&read("/srv/app/.env", "/usr/bin/cat"))),
        [("human-use", Severity::Low)]
    );
    assert_eq!(
        rules_of(&policy("").judge_all(&read("/home/u/.netrc", "/usr/bin/cat"))),
        [],
        "one's own"
    );
    let mut sudo = read("/etc/shadow", "/usr/bin/sudo");
    sudo.credential.class = "password-hashes".into();
    assert_eq!(rules_of(&policy("").judge_all(&sudo)), [], "its duty");
    let with = policy(STRIPE).judge_all(&read("/srv/key", "/usr/bin/good"));
    assert_eq!(rules_of(&with), [("human-use", Severity::Medium)]);
}

#[test]
fn expired_credential_used() {
    let mut late = hop("jwt", Some("x.example"), "10.0.0.1", Evidence::Presented);
    late.credential.expires_at = Some(at(-1));
    assert_eq!(
        rules_of(&policy("").judge_hop(&late).1),
        [("expired-credential-used", Severity::Medium)]
    );
    late.evidence = Evidence::Held;
    assert_eq!(rules_of(&policy("").judge_hop(&late).1), []);
    late.evidence = Evidence::Presented;
    late.credential.expires_at = Some(at(1));
    assert_eq!(rules_of(&policy("").judge_hop(&late).1), []);
}

#[test]
fn long_lived_credential() {
    let mut plain = policy("");
    let mut fixed = used("aws-access-key", "/x", "/a");
    fixed.credential.lifetime = Lifetime::Static;
    assert_eq!(
        rules_of(&plain.judge_all(&fixed)),
        [("long-lived-credential", Severity::Low)]
    );
    assert_eq!(rules_of(&plain.judge_all(&used("ssh-key", "/x", "/a"))), []);
    let mut with = policy(STRIPE);
    let mut aged = used("x", "/srv/key", "/usr/bin/good");
    aged.modified = Some(at(-31 * 86_400));
    assert_eq!(
        rules_of(&with.judge_all(&aged)),
        [("long-lived-credential", Severity::Low)]
    );
    aged.modified = Some(at(-29 * 86_400));
    assert_eq!(rules_of(&with.judge_all(&aged)), []);
}

#[test]
fn revoked_credential_used() {
    let text = "credentials:\n- name: old\n  match: { file: /srv/key }\n  revoked_at: 2023-11-14T22:13:20Z\n";
    let mut read = used("x", "/srv/key", "/a");
    assert_eq!(
        rules_of(&policy(text).judge_all(&read)),
        [],
        "at that very moment"
    );
    read.time = at(1);
    assert_eq!(
        rules_of(&policy(text).judge_all(&read)),
        [("revoked-credential-used", Severity::Critical)]
    );
    let mut late = hop("x", Some("x.example"), "10.0.0.1", Evidence::Sole);
    late.time = at(1);
    let by_one = policy(text).judge_hop(&late).1;
    assert_eq!(
        rules_of(&by_one),
        [("revoked-credential-used", Severity::Critical)]
    );
    assert!(by_one[0].destination.is_some(), "{by_one:?}");
    assert_ne!(by_one[0].id, policy(text).judge_all(&read)[0].id);
    let mut by_another = late.clone();
    by_another.workload = container("b");
    assert_ne!(by_one[0].id, policy(text).judge_hop(&by_another).1[0].id);
    late.evidence = Evidence::Held;
    assert_eq!(rules_of(&policy(text).judge_hop(&late).1), []);
}

#[test]
fn presenting_to_an_authenticator_is_expected() {
    let text = "authenticators:\n- { name: vault, destinations: [ 'vault.corp.example:443' ] }\n";
    let mut request = hop(
        "k8s-service-account-token",
        Some("vault.corp.example"),
        "10.0.0.1",
        Evidence::Sole,
    );
    assert_eq!(
        policy(text).judge_hop(&request).0,
        Verdict::Unexpected,
        "not with an access credential"
    );
    request.credential.role = Role::Identity;
    assert_eq!(policy(text).judge_hop(&request).0, Verdict::Expected);
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

proptest! {
    #[test]
    fn held_evidence_raises_nothing(name in "[a-z]{1,10}\\.example", class in "(aws-access-key|github-token|private-key)") {
        let (verdict, findings) = policy("").judge_hop(&hop(&class, Some(&name), "203.0.113.1", Evidence::Held));
        prop_assert_eq!(verdict, Verdict::Unproven);
        prop_assert!(findings.is_empty());
    }
}

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
    upgrade.process.ancestors = vec![crate::model::Ancestor {
        pid: 2,
        exe: "/usr/bin/apt-get".into(),
        comm: "apt-get".into(),
    }];
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

#[test]
fn unmarked_and_self_hosted_credentials_are_unproven_elsewhere() {
    let mut policy = policy("");
    let mut at = |class: &str, unmarked: bool, host: &str| {
        let mut hop = hop(class, Some(host), "203.0.113.9", Evidence::Presented);
        hop.credential.unmarked = unmarked;
        let (verdict, findings) = policy.judge_hop(&hop);
        (verdict, rules_of(&findings).first().map(|found| found.1))
    };
    let critical = (Verdict::Unexpected, Some(Severity::Critical));
    let unproven = (Verdict::Unproven, None);
    assert_eq!(at("aws-access-key", false, "minio.corp.example"), critical);
    assert_eq!(at("aws-access-key", true, "minio.corp.example"), unproven);
    for host in ["git.corp.example", "gitlab.evil.example"] {
        assert_eq!(at("gitlab-token", false, host), unproven);
    }
    assert_eq!(at("vault-token", false, "x.vault.evil.example"), unproven);
    assert_eq!(at("gitlab-token", false, "gitlab.com").0, Verdict::Expected);
}

#[test]
fn a_minted_token_may_return_to_its_authenticator() {
    let text = "authenticators: [ { name: vault, destinations: [ 'secrets.corp.example:443' ], mints: access } ]";
    let verdict = |class: &str, text: &str| {
        let name = Some("secrets.corp.example");
        let hop = hop(class, name, "203.0.113.9", Evidence::Presented);
        policy(text).judge_hop(&hop).0
    };
    assert_eq!(verdict("vault-token", text), Verdict::Expected);
    assert_eq!(
        verdict("aws-access-key", text),
        Verdict::Unexpected,
        "AWS's own"
    );
    let identities = text.replace("access", "[ identity ]");
    assert_eq!(verdict("vault-token", &identities), Verdict::Unproven);
}

#[test]
fn a_name_that_dns_disputes_is_not_confirmed() {
    let mut policy = policy("");
    let mut hop = hop(
        "stripe-key",
        Some("api.stripe.com"),
        "203.0.113.9",
        Evidence::Presented,
    );
    assert_eq!(policy.judge_hop(&hop).0, Verdict::Expected);
    hop.destination.disputed.push(SourcedName {
        name: UNKNOWN_NAME.into(),
        name_source: NameSource::Dns,
    });
    let (verdict, findings) = policy.judge_hop(&hop);
    assert_eq!((verdict, rules_of(&findings)), (Verdict::Unproven, vec![]));
    hop.destination.name = Some("paste.example".into());
    assert_eq!(policy.judge_hop(&hop).0, Verdict::Unexpected);
}

#[test]
fn a_token_at_a_kubelet_is_unproven() {
    let mut policy = policy("");
    let mut verdict = |port: u16, object: &str| {
        let class = "k8s-service-account-token";
        let mut hop = hop(class, None, "10.0.0.10", Evidence::Presented);
        hop.destination.port = port;
        hop.destination.set_object(object);
        policy.judge_hop(&hop).0
    };
    assert_eq!(verdict(10250, "n1.node"), Verdict::Unproven);
    assert_eq!(verdict(8080, "n1.node"), Verdict::Unexpected);
    assert_eq!(verdict(10250, "evil.attacker.svc"), Verdict::Unexpected);
}

#[test]
fn untrusted_binary() {
    let with = |why: Option<Untrusted>| {
        let mut read = used("x", "/srv/x", "/memfd:a");
        read.untrusted = why;
        let found = policy("").judge_use(&read);
        found
            .first()
            .map(|found| (found.rule.clone(), found.severity))
    };
    for (why, severity) in [
        (Untrusted::Memory, Severity::High),
        (Untrusted::Deleted, Severity::High),
        (Untrusted::Added, Severity::High),
        (Untrusted::Temporary, Severity::Low),
    ] {
        let expected = Some(("untrusted-binary".to_owned(), severity));
        assert_eq!(with(Some(why)), expected, "{why}");
    }
    assert_eq!(with(None), None);
}

/// A pick-up of one class by a workload, a number of minutes after the first.
fn picked(workload: &Workload, number: u64, class: &str, minutes: i64) -> Use {
    let mut read = used(class, &format!("/srv/{class}"), "/usr/bin/cat");
    read.workload = workload.clone();
    read.credential.id = CredentialId::from_fingerprint(number);
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
    let written = "credentials:\n- name: k\n  match: { class: kubeconfig }\n  readers: [ { executable: /usr/bin/cat } ]\n";
    assert_eq!(harvests(&mut policy(written), &three(&pod, 2)), []);
    // A harvested credential appears where it should not.
    let mut out = hop(
        "aws-access-key",
        Some("paste.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    out.credential.id = CredentialId::from_fingerprint(1);
    out.time = at(3600);
    let (_, found) = plain.judge_hop(&out);
    assert!(rules_of(&found).contains(&("harvest", Severity::Critical)));
    out.destination.name = Some("sts.amazonaws.com".into());
    assert_eq!(rules_of(&plain.judge_hop(&out).1), []);
    let mut other = out.clone();
    other.destination.name = Some("paste.example".into());
    other.credential.id = CredentialId::from_fingerprint(9);
    assert_eq!(
        rules_of(&plain.judge_hop(&other).1),
        [("unexpected-hop", Severity::Critical)]
    );
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
    out.credential.id = CredentialId::from_fingerprint(1);
    out.time = at(3600);
    let (_, found) = plain.judge_hop(&out);
    let harvest = found.iter().find(|finding| finding.rule == "harvest");
    let summary = &harvest.expect("a finding").summary;
    assert!(summary.contains("that shop/cart harvested"), "{summary}");
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
