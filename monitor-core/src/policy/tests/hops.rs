//! Where a credential went.

use super::*;

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
fn a_token_may_go_to_its_audience() {
    let mut hop = hop(
        "k8s-service-account-token",
        Some("vault.corp.example"),
        "10.0.0.1",
        Evidence::Sole,
    );
    assert_eq!(policy("").judge_hop(&hop).0, Verdict::Unexpected);
    Arc::make_mut(&mut hop.credential).audience = vec!["https://vault.corp.example:8200".into()];
    assert_eq!(policy("").judge_hop(&hop).0, Verdict::Expected);
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
    Arc::make_mut(&mut stolen.credential).issued_to = Some(Box::new(issued));
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
    Arc::make_mut(&mut request.credential).role = Role::Identity;
    assert_eq!(policy(text).judge_hop(&request).0, Verdict::Expected);
}

proptest! {
    #[test]
    fn held_evidence_raises_nothing(name in "[a-z]{1,10}\\.example", class in "(aws-access-key|github-token|private-key)") {
        let (verdict, findings) = policy("").judge_hop(&hop(&class, Some(&name), "203.0.113.1", Evidence::Held));
        prop_assert_eq!(verdict, Verdict::Unproven);
        prop_assert!(findings.is_empty());
    }
}

#[test]
fn unmarked_and_self_hosted_credentials_are_unproven_elsewhere() {
    let mut policy = policy("");
    let mut at = |class: &str, unmarked: bool, host: &str| {
        let mut hop = hop(class, Some(host), "203.0.113.9", Evidence::Presented);
        Arc::make_mut(&mut hop.credential).unmarked = unmarked;
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
