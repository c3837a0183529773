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
    let judge = |disputed: &[(&str, NameSource)]| {
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
        policy("").judge_hop(&hop)
    };
    let verdict = |disputed: &[(&str, NameSource)]| judge(disputed).0;
    let raised = |disputed: &[(&str, NameSource)]| {
        let found = judge(disputed).1;
        let all = rules_of(&found).into_iter();
        all.map(|(_, severity)| ("unexpected-hop", severity))
            .collect::<Vec<_>>()
    };
    let dns = NameSource::Dns;
    let host = NameSource::HttpHost;
    assert_eq!(verdict(&[]), Verdict::Expected);
    assert_eq!(verdict(&[("ec2.amazonaws.com", host)]), Verdict::Expected);
    for (name, findings) in [
        ("bucket.s3.amazonaws.com", vec![]),
        ("paste.example", vec![("unexpected-hop", Severity::Low)]),
        (UNKNOWN_NAME, vec![("unexpected-hop", Severity::Low)]),
    ] {
        assert_eq!(verdict(&[(name, host)]), Verdict::Unproven, "{name}");
        assert_eq!(raised(&[(name, host)]), findings, "{name}");
    }
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
    // It may have the API review the token.
    assert_eq!(at("evil.attacker.svc", ""), Verdict::Unproven);
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
    assert_eq!(
        (verdict, rules_of(&findings)),
        (Verdict::Unproven, vec![("unexpected-hop", Severity::Low)])
    );
    hop.destination.name = Some("paste.example".into());
    assert_eq!(policy.judge_hop(&hop).0, Verdict::Unexpected);
}

#[test]
fn a_token_at_a_service_that_may_review_it_is_low() {
    let class = "k8s-service-account-token";
    for (object, judged) in [
        (
            "kube-state-metrics.monitoring.svc",
            (Verdict::Unproven, Some(Severity::Low)),
        ),
        (
            "prometheus.monitoring.pod",
            (Verdict::Unproven, Some(Severity::Low)),
        ),
        ("n1.node", (Verdict::Unexpected, Some(Severity::Critical))),
    ] {
        let mut hop = hop(class, None, "10.0.0.10", Evidence::Presented);
        hop.destination.set_object(object);
        hop.destination.port = 8443;
        assert_eq!(raised("", &hop), judged, "{object}");
    }
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
    // Not as a kubelet: it may have the API review the token.
    assert_eq!(verdict(10250, "evil.attacker.svc"), Verdict::Unproven);
}

/// What is raised about a credential that is presented somewhere.
fn raised(text: &str, hop: &Hop) -> (Verdict, Option<Severity>) {
    let (verdict, findings) = policy(text).judge_hop(hop);
    let mut about = findings
        .iter()
        .filter(|finding| finding.rule == "unexpected-hop");
    (verdict, about.next().map(|finding| finding.severity))
}

#[test]
fn customers_of_an_issuer_are_not_the_issuer() {
    for (class, host) in [
        ("aws-access-key", "abcdef.lambda-url.eu-west-1.on.aws"),
        (
            "aws-access-key",
            "internal-evil-1.eu-west-1.elb.amazonaws.com",
        ),
        (
            "aws-access-key",
            "ec2-192-0-2-9.eu-west-1.compute.amazonaws.com",
        ),
        ("aws-access-key", "ec2-192-0-2-9.compute-1.amazonaws.com"),
        (
            "aws-access-key",
            "a1b2c3.execute-api.us-east-1.amazonaws.com",
        ),
        ("aws-session-key", "drop.s3.eu-central-1.amazonaws.com"),
        ("azure-access-token", "drop.blob.core.windows.net"),
        ("azure-access-token", "evil.azurewebsites.net"),
        ("github-token", "gist.githubusercontent.com"),
        ("google-api-key", "script.google.com"),
        ("shopify-token", "evil.myshopify.com"),
    ] {
        let hop = hop(class, Some(host), "203.0.113.9", Evidence::Presented);
        assert_eq!(
            raised("", &hop),
            (Verdict::Unproven, None),
            "{class} {host}"
        );
        let written = format!(
            "credentials:\n- name: own\n  match: {{ class: {class} }}\n  destinations: [ {host} ]\n"
        );
        assert_eq!(
            raised(&written, &hop).0,
            Verdict::Expected,
            "{class} {host}"
        );
    }
    // A tenant's name does not excuse a server outside the issuer's domain.
    let mut other = hop(
        "aws-access-key",
        Some("paste.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    other.destination.disputed.push(SourcedName {
        name: "drop.s3.amazonaws.com".into(),
        name_source: NameSource::Dns,
    });
    assert_eq!(
        raised("", &other),
        (Verdict::Unexpected, Some(Severity::Critical))
    );
}

#[test]
fn issuers_in_other_clouds_and_domains() {
    for (class, host) in [
        ("azure-access-token", "management.usgovcloudapi.net"),
        ("azure-access-token", "management.chinacloudapi.cn"),
        ("azure-access-token", "login.microsoftonline.us"),
        ("azure-access-token", "dev.azure.com"),
        ("azure-access-token", "api.powerbi.com"),
        ("github-token", "api.octocorp.ghe.com"),
        ("github-app-token", "api.githubcopilot.com"),
        ("github-token", "models.github.ai"),
        ("npm-token", "registry.yarnpkg.com"),
        ("anthropic-key", "platform.claude.com"),
        ("aws-access-key", "sts.cn-north-1.amazonaws.com.cn"),
        ("aws-access-key", "s3.eusc-de-east-1.amazonaws.eu"),
    ] {
        let hop = hop(class, Some(host), "203.0.113.9", Evidence::Presented);
        assert_eq!(
            raised("", &hop),
            (Verdict::Expected, None),
            "{class} {host}"
        );
    }
}

#[test]
fn a_gateway_that_the_configuration_names_is_expected() {
    let text = "gateways:\n- { name: llm, classes: [ 'anthropic-*' ], destinations: [ 'llm.corp.example:443' ] }\n";
    let at = |class: &str, host: &str| {
        raised(
            text,
            &hop(class, Some(host), "203.0.113.9", Evidence::Presented),
        )
    };
    assert_eq!(
        at("anthropic-key", "llm.corp.example"),
        (Verdict::Expected, None)
    );
    let critical = (Verdict::Unexpected, Some(Severity::Critical));
    assert_eq!(at("stripe-key", "llm.corp.example"), critical);
    assert_eq!(at("anthropic-key", "llm.evil.example"), critical);
}

#[test]
fn a_gateway_that_a_first_process_names_raises_low() {
    let mut policy = policy("");
    let hop = hop(
        "anthropic-key",
        Some("llm.corp.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    let gateway = |class: &str, port| DeclaredGateway {
        host: "llm.corp.example".into(),
        port,
        classes: vec![class.into()],
    };
    let mut with = |gateway| {
        policy.set_gateways(WorkloadGateways {
            time: at(0),
            workload: hop.workload.clone(),
            tenant: crate::fair_cache::Tenant::default(),
            gateways: vec![gateway],
        });
        let (verdict, findings) = policy.judge_hop(&hop);
        (verdict, rules_of(&findings).first().map(|found| found.1))
    };
    let low = (Verdict::Unproven, Some(Severity::Low));
    assert_eq!(with(gateway("anthropic-key", None)), low);
    assert_eq!(with(gateway("anthropic-key", Some(443))), low);
    let critical = (Verdict::Unexpected, Some(Severity::Critical));
    assert_eq!(with(gateway("anthropic-key", Some(8443))), critical);
    assert_eq!(with(gateway("openai-key", None)), critical);
    // A renamed workload keeps its gateways, and another has none of them.
    with(gateway("anthropic-key", None));
    let named = container("llm-client");
    policy.rename(&hop.workload, &named);
    let mut renamed = hop.clone();
    renamed.workload = named;
    assert_eq!(policy.judge_hop(&renamed).0, Verdict::Unproven);
    assert_eq!(policy.judge_hop(&hop).0, Verdict::Unexpected);
}

#[test]
fn without_an_issuers_mark_an_unknown_host_is_medium_at_most() {
    let mut hop = hop(
        "datadog-key",
        Some("metrics.corp.example"),
        "203.0.113.9",
        Evidence::Presented,
    );
    Arc::make_mut(&mut hop.credential).unmarked = true;
    assert_eq!(
        raised("", &hop),
        (Verdict::Unexpected, Some(Severity::Medium))
    );
    // What is written is not a guess.
    let written = "credentials:\n- { name: dd, match: { class: datadog-key }, destinations: [ intake.corp.example ] }\n";
    assert_eq!(raised(written, &hop).1, Some(Severity::Critical));
}

#[test]
fn a_server_on_this_machine_is_low() {
    let at = |name: Option<&str>, clear: bool, picked_up: bool| {
        let mut hop = Hop {
            clear,
            picked_up,
            ..hop("aws-access-key", name, "127.0.0.1", Evidence::Presented)
        };
        let client = crate::model::OnBehalfOf {
            workload: container("client"),
        };
        hop.on_behalf_of = (!picked_up).then(|| client.into());
        raised("", &hop).1
    };
    assert_eq!(at(None, false, true), Some(Severity::Low));
    assert_eq!(at(Some("localhost"), true, true), Some(Severity::Low));
    assert_eq!(at(Some("s3.localhost"), false, true), Some(Severity::Low));
    // nginx passes the name of its own client on.
    assert_eq!(
        at(Some("shop.corp.example"), true, false),
        Some(Severity::Low)
    );
    // A relay to another machine.
    assert_eq!(
        at(Some("paste.example"), false, false),
        Some(Severity::Critical)
    );
    let critical = Some(Severity::Critical);
    assert_eq!(at(Some("paste.example"), true, true), critical);
}

#[test]
fn plaintext_inside_a_cluster_is_low() {
    let severity = |text: &str, object: Option<&str>| {
        let mut hop = Hop {
            clear: true,
            ..hop("registry-credential", None, "10.0.0.1", Evidence::Presented)
        };
        if let Some(object) = object {
            hop.destination.set_object(object);
        }
        let (_, findings) = policy(text).judge_hop(&hop);
        let mut about = findings
            .iter()
            .filter(|finding| finding.rule == "cleartext-credential");
        about.next().map(|finding| finding.severity)
    };
    assert_eq!(
        severity("", Some("registry.infra.svc")),
        Some(Severity::Low)
    );
    assert_eq!(
        severity("", Some("registry.infra.pod")),
        Some(Severity::Low)
    );
    assert_eq!(severity("", Some("n1.node")), Some(Severity::High));
    assert_eq!(severity("", None), Some(Severity::High));
    let allowed =
        "credentials:\n- { name: r, match: { class: registry-credential }, cleartext: allowed }\n";
    assert_eq!(severity(allowed, None), None);
}

#[test]
fn any_use_of_a_decoy_is_critical() {
    let text =
        "mode: learn\ncredentials:\n- { name: bait, match: { file: /srv/key }, decoy: true }\n";
    for evidence in [Evidence::Presented, Evidence::Sole] {
        let hop = hop(
            "aws-access-key",
            Some("sts.amazonaws.com"),
            "203.0.113.9",
            evidence,
        );
        assert_eq!(raised(text, &hop).1, Some(Severity::Critical), "{evidence}");
    }
    let held = hop(
        "aws-access-key",
        Some("sts.amazonaws.com"),
        "203.0.113.9",
        Evidence::Held,
    );
    assert_eq!(raised(text, &held).1, None);
    let read = used("aws-access-key", "/srv/key", "/usr/bin/cat");
    assert_eq!(
        rules_of(&findings_of(policy(text).judge_reader(&read))),
        [("unexpected-reader", Severity::Critical)]
    );
    let kept = text.replace(
        "decoy: true",
        "decoy: true, readers: [ { executable: /usr/bin/cat } ]",
    );
    assert_eq!(findings_of(policy(&kept).judge_reader(&read)), []);
}

#[test]
fn several_held_credentials_where_none_belongs_are_low_once() {
    let at = |policy: &mut Policy, host: &str, classes: &[&str]| {
        let mut first = hop(classes[0], Some(host), "203.0.113.9", Evidence::Held);
        let others = classes[1..]
            .iter()
            .map(|class| credential(class, "/srv/other").into());
        first.held_with = others.collect();
        let (verdict, findings) = policy.judge_hop(&first);
        assert_eq!(verdict, policy.judge_hop(&first).0);
        findings
            .first()
            .map(|finding| (finding.severity, finding.id.clone()))
    };
    let mut policy = policy("");
    let both = ["aws-access-key", "github-token"];
    let (severity, id) = at(&mut policy, "paste.example", &both).expect("a finding");
    assert_eq!(severity, Severity::Low);
    let other = at(&mut policy, "webhook.example", &both).expect("a finding");
    assert_eq!(other.1, id, "once per workload");
    assert_eq!(
        at(&mut policy, "api.github.com", &both),
        None,
        "one belongs there"
    );
    let unknown = ["aws-access-key", "private-key"];
    assert_eq!(at(&mut policy, "paste.example", &unknown), None);
}
