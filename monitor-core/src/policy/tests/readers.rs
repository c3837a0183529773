//! Who picked up a credential.

use super::*;

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
        Arc::make_mut(&mut used.credential).issued_to = Some(Box::new(issued.clone()));
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
        Arc::make_mut(&mut used.credential).sources.push(Place {
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
    Arc::make_mut(&mut sudo.credential).class = "password-hashes".into();
    assert_eq!(rules_of(&policy("").judge_all(&sudo)), [], "its duty");
    let with = policy(STRIPE).judge_all(&read("/srv/key", "/usr/bin/good"));
    assert_eq!(rules_of(&with), [("human-use", Severity::Medium)]);
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
        (Untrusted::Downloaded, Severity::Medium),
        (Untrusted::Temporary, Severity::Low),
    ] {
        let expected = Some(("untrusted-binary".to_owned(), severity));
        assert_eq!(with(Some(why)), expected, "{why}");
    }
    assert_eq!(with(None), None);
    let mut own = used("x", "/srv/x", "/opt/tool");
    (own.untrusted, own.given) = (Some(Untrusted::Downloaded), true);
    assert_eq!(policy("").judge_use(&own), [], "its own");
}

#[test]
fn a_reader_that_a_user_or_an_image_can_imitate_does_not_qualify() {
    let allowed = |reader: &str, workload: &Workload, exe: &str| {
        let text = format!(
            "credentials:\n- name: k\n  match: {{ file: /srv/key }}\n  readers: [ {reader} ]\n"
        );
        let mut read = used("x", "/srv/key", exe);
        read.workload = workload.clone();
        findings_of(policy(&text).judge_reader(&read)).is_empty()
    };
    let unit = |name: &str| Workload {
        kind: WorkloadKind::Unit,
        unit: Some(name.into()),
        ..Workload::host(name)
    };
    let (own, users) = (unit("payments.service"), unit("user@1000/payments.service"));
    for pattern in ["payments.service", "*.service", "'*'", "'pay*'"] {
        let reader = format!("{{ unit: {pattern} }}");
        let reader = reader.replace("*.service", "'*.service'");
        assert!(allowed(&reader, &own, "/usr/bin/x"), "{pattern}");
        assert!(!allowed(&reader, &users, "/usr/bin/x"), "{pattern}");
    }
    assert!(allowed("{ unit: 'user@1000/*' }", &users, "/usr/bin/x"));
    let image = |image: &str| Workload {
        image: Some(image.into()),
        ..container("a")
    };
    let shop = image("registry.example:5000/shop/api:v1.2@sha256:0123");
    let executable = "{ executable: /app/api }";
    assert!(
        !allowed(executable, &shop, "/app/api"),
        "a path in any image"
    );
    assert!(allowed(executable, &Workload::host("/app/api"), "/app/api"));
    let both = "{ executable: /app/api, image: registry.example:5000/shop/api }";
    assert!(allowed(both, &shop, "/app/api"));
    assert!(!allowed(
        both,
        &image("docker.io/evil/api:v1.2"),
        "/app/api"
    ));
    assert!(!allowed(both, &shop, "/app/other"));
    assert!(allowed(
        "{ image: '*/shop/api:v1.2*' }",
        &shop,
        "/app/other"
    ));
    let nested = shop.nested("0123456789abcdef");
    assert!(!allowed(
        "{ image: 'registry.example:5000/shop/*' }",
        &nested,
        "/app/api"
    ));
}
