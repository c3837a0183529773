use super::*;
use crate::model::{
    CredentialId, Lifetime, Process, Role, Source, Subject, UNKNOWN_NAME, Workload,
};
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("in range")
}

fn subject(pid: u32) -> Subject {
    Subject { pid, start: 1 }
}

fn actor(pid: u32) -> Actor {
    Actor {
        subject: subject(pid),
        workload: Workload::host("/usr/bin/app"),
        process: Process {
            pid,
            start_time: at(0),
            exe: "/usr/bin/app".into(),
            comm: "app".into(),
            uid: 0,
            ancestors: vec![],
        },
    }
}

fn credential(id: u64) -> Credential {
    Credential {
        id: CredentialId::from_fingerprint(id),
        name: None,
        class: "aws-access-key".into(),
        role: Role::Access,
        lifetime: Lifetime::Static,
        issued_at: None,
        expires_at: None,
        owner: None,
        label: None,
        audience: vec![],
        issued_to: None,
        unmarked: false,
        sources: vec![],
    }
}

fn exec(pid: u32, parent: u32, boundary: &str, shell: bool) -> TrailEvent {
    TrailEvent::Exec {
        time: at(0),
        subject: subject(pid),
        parent: Some(subject(parent)),
        boundary: boundary.into(),
        shell,
    }
}

fn fork(pid: u32, parent: u32) -> TrailEvent {
    TrailEvent::Fork {
        time: at(0),
        subject: subject(pid),
        parent: Some(subject(parent)),
    }
}

fn pick(pid: u32, id: u64, source: Source, stdout: Option<u64>) -> TrailEvent {
    TrailEvent::PickUp(Box::new(PickUp {
        time: at(1),
        actor: actor(pid),
        credential: credential(id),
        place: Place {
            source,
            place: "/x".into(),
        },
        count: 1,
        stdout,
        stdout_of_parent: false,
        usual: false,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
        untrusted: None,
        given: false,
    }))
}

fn connect(pid: u32, id: u64, address: &str, port: u16) -> TrailEvent {
    TrailEvent::Connect {
        time: at(2),
        actor: actor(pid),
        connection: id,
        destination: Destination::unnamed(
            address.parse().expect("an address"),
            port,
            Transport::Tcp,
        ),
        stdin: None,
    }
}

fn payload(id: u64, name: Option<&str>) -> TrailEvent {
    TrailEvent::Payload {
        time: at(3),
        connection: id,
        destination: name.map(|name| ConnectionName {
            server_name: Some(name.into()),
            ech: false,
            host: false,
        }),
    }
}

/// `(credential, destination, evidence)` of every hop that results from the events.
fn hops(events: Vec<TrailEvent>) -> Vec<(String, String, Evidence)> {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in events {
        trail.process(event, &mut out);
    }
    out.into_iter()
        .filter_map(|outcome| match outcome {
            TrailOutput::Hop(hop) => Some((
                hop.credential.id.0.clone(),
                hop.destination.label(),
                hop.evidence,
            )),
            _ => None,
        })
        .collect()
}

fn id(number: u64) -> String {
    CredentialId::from_fingerprint(number).0
}

#[test]
fn one_credential_is_sole_and_two_are_held() {
    let one = hops(vec![
        pick(1, 7, Source::File, None),
        connect(1, 1, "127.0.0.1", 443),
        payload(1, Some("s3.example")),
    ]);
    assert_eq!(one, [(id(7), "s3.example:443".into(), Evidence::Sole)]);
    let two = hops(vec![
        pick(1, 7, Source::File, None),
        pick(1, 8, Source::Environment, None),
        connect(1, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(
        two,
        [
            (id(7), "10.0.0.1:443".into(), Evidence::Held),
            (id(8), "10.0.0.1:443".into(), Evidence::Held)
        ]
    );
}

#[test]
fn a_process_without_credentials_makes_no_hop() {
    assert_eq!(
        hops(vec![
            connect(1, 1, "10.0.0.1", 443),
            payload(1, Some("x.example"))
        ]),
        []
    );
}

#[test]
fn dns_and_unnamed_loopback_are_no_hops() {
    for (address, port) in [
        ("10.0.0.1", 53),
        ("127.0.0.1", 9000),
        ("::1", 80),
        ("10.0.0.1", 123),
    ] {
        let found = hops(vec![
            pick(1, 7, Source::File, None),
            connect(1, 1, address, port),
            payload(1, None),
        ]);
        assert_eq!(found, [], "{address}:{port}");
    }
}

#[test]
fn a_helper_passes_a_credential_up_through_a_pipe() {
    // sh: $(cat key), then curl.
    let found = hops(vec![
        exec(1, 0, "b", true),
        fork(2, 1),
        exec(2, 1, "b", false),
        pick(2, 7, Source::File, Some(99)),
        TrailEvent::Exit {
            time: at(1),
            subject: subject(2),
        },
        fork(3, 1),
        exec(3, 1, "b", false),
        connect(3, 1, "10.0.0.1", 443),
        payload(1, Some("x.example")),
    ]);
    assert_eq!(found, [(id(7), "x.example:443".into(), Evidence::Sole)]);
}

#[test]
fn an_output_shared_with_the_parent_passes_nothing_up() {
    // Two workers of one supervisor, all with the log at their standard output.
    let of_the_log = |pid, id| {
        let mut event = pick(pid, id, Source::File, Some(99));
        if let TrailEvent::PickUp(event) = &mut event {
            event.stdout_of_parent = true;
        }
        event
    };
    let found = hops(vec![
        exec(1, 0, "b", false),
        fork(2, 1),
        of_the_log(2, 7),
        fork(3, 1),
        of_the_log(3, 8),
        connect(3, 1, "10.0.0.1", 443),
        payload(1, Some("x.example")),
        connect(1, 2, "10.0.0.1", 443),
        payload(2, Some("y.example")),
    ]);
    assert_eq!(found, [(id(8), "x.example:443".into(), Evidence::Sole)]);
}

#[test]
fn a_pipe_between_two_commands() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in [
        exec(1, 0, "b", false),
        fork(2, 1),
        exec(2, 1, "b", false),
        fork(3, 1),
        exec(3, 1, "other", false),
        pick(2, 7, Source::File, Some(99)),
    ] {
        trail.process(event, &mut out);
    }
    let TrailEvent::Connect {
        time,
        actor,
        connection,
        destination,
        ..
    } = connect(3, 1, "10.0.0.1", 443)
    else {
        unreachable!("connect gives a connect");
    };
    trail.process(
        TrailEvent::Connect {
            time,
            actor,
            connection,
            destination,
            stdin: Some(99),
        },
        &mut out,
    );
    trail.process(payload(1, None), &mut out);
    assert!(matches!(out.last(), Some(TrailOutput::Hop(hop)) if hop.evidence == Evidence::Sole));
}

#[test]
fn a_sibling_counts_only_under_a_shell() {
    for (shell, expected) in [(true, 1), (false, 0)] {
        let found = hops(vec![
            exec(1, 0, "b", shell),
            fork(2, 1),
            exec(2, 1, "b", false),
            pick(2, 7, Source::File, None),
            fork(3, 1),
            exec(3, 1, "b", false),
            connect(3, 1, "10.0.0.1", 443),
            payload(1, None),
        ]);
        assert_eq!(found.len(), expected, "shell: {shell}");
    }
}

#[test]
fn own_credentials_take_precedence_over_a_siblings() {
    let found = hops(vec![
        exec(1, 0, "b", true),
        fork(2, 1),
        exec(2, 1, "b", false),
        pick(2, 7, Source::File, None),
        fork(3, 1),
        exec(3, 1, "b", false),
        pick(3, 8, Source::File, None),
        connect(3, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(found, [(id(8), "10.0.0.1:443".into(), Evidence::Sole)]);
}

#[test]
fn inheritance_stops_at_a_change_of_user_or_workload() {
    let found = hops(vec![
        exec(1, 0, "root", false),
        pick(1, 7, Source::File, None),
        fork(2, 1),
        exec(2, 1, "user", false),
        connect(2, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(found, []);
}

#[test]
fn exec_drops_inherited_variables() {
    let forked = hops(vec![
        exec(1, 0, "b", false),
        pick(1, 7, Source::Environment, None),
        fork(2, 1),
        connect(2, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(forked.len(), 1, "a fork has its parent's memory");
    let other = hops(vec![
        exec(1, 0, "b", false),
        pick(1, 7, Source::Environment, None),
        fork(2, 1),
        exec(2, 1, "b", false),
        connect(2, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(other, [], "the new program was given a clean environment");
}

#[test]
fn a_name_after_a_proxys_connect_is_another_hop() {
    let found = hops(vec![
        pick(1, 7, Source::File, None),
        connect(1, 1, "10.0.0.9", 3128),
        payload(1, None),
        payload(1, Some("paste.example")),
    ]);
    assert_eq!(
        found.iter().map(|hop| hop.1.as_str()).collect::<Vec<_>>(),
        ["10.0.0.9:3128", "paste.example:3128"]
    );
}

#[test]
fn a_silent_connection_becomes_a_hop_after_a_timeout() {
    let mut events = vec![
        pick(1, 7, Source::File, None),
        connect(1, 1, "10.0.0.1", 443),
    ];
    assert_eq!(hops(events.clone()), []);
    events.push(TrailEvent::Tick { time: at(10) });
    assert_eq!(hops(events).len(), 1);
}

#[test]
fn a_second_call_of_connect_is_the_same_connection() {
    let found = hops(vec![
        pick(1, 7, Source::File, None),
        connect(1, 1, "10.0.0.1", 443),
        payload(1, None),
        connect(1, 1, "10.0.0.1", 443),
        payload(1, None),
    ]);
    assert_eq!(found.len(), 1);
}

#[test]
fn presented_is_the_strongest_evidence() {
    let found = hops(vec![
        connect(1, 1, "127.0.0.1", 80),
        payload(1, None),
        present(1, Some(1), 7),
    ]);
    assert_eq!(found, [(id(7), "127.0.0.1:80".into(), Evidence::Presented)]);
}

#[test]
fn presenting_after_sole_counts_the_use_once() {
    let again = |events: Vec<TrailEvent>| -> Vec<bool> {
        let mut trail = Trail::new();
        let mut out = Vec::new();
        for event in events {
            trail.process(event, &mut out);
        }
        out.into_iter()
            .filter_map(|outcome| match outcome {
                TrailOutput::Hop(hop) => Some(hop.again),
                _ => None,
            })
            .collect()
    };
    let begun = || {
        vec![
            pick(1, 7, Source::File, None),
            connect(1, 1, "10.0.0.1", 443),
            payload(1, None),
        ]
    };
    // Each further request on a connection is a use of its own, as is another credential.
    let mut requests = begun();
    requests.extend([present(1, Some(1), 7), present(1, Some(1), 7)]);
    assert_eq!(again(requests), [false, true, false]);
    let mut another = begun();
    another.push(present(1, Some(1), 8));
    assert_eq!(again(another), [false, false]);
    // The connection is unknown, and only one is possible.
    let mut unknown = begun();
    unknown.push(present(1, None, 7));
    assert_eq!(again(unknown), [false, true]);
    // The server name means another destination, which was not reported yet.
    let mut named = begun();
    named.extend([in_clear(1, Some("api.example"), 7)]);
    assert_eq!(again(named), [false, false]);
    // A late record was reported already.
    let late = vec![
        pick(1, 7, Source::File, None),
        connect(1, 1, "10.0.0.1", 443),
        present(1, Some(1), 7),
        payload(1, None),
    ];
    assert_eq!(again(late), [false, true]);
}

#[test]
fn an_unknown_connection_is_one_of_the_process() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in [
        connect(1, 1, "10.0.0.1", 443),
        connect(1, 2, "10.0.0.2", 443),
        connect(1, 3, "10.0.0.2", 443),
        connect(1, 4, "10.0.0.3", 53),
        connect(2, 5, "10.0.0.4", 443),
        present(1, None, 7),
    ] {
        trail.process(event, &mut out);
    }
    let hops: Vec<_> = out
        .iter()
        .filter_map(|outcome| match outcome {
            TrailOutput::Hop(hop) => Some((
                hop.destination.label(),
                hop.destination.one_of,
                hop.others.len(),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(
        hops,
        [
            ("10.0.0.1:443 (one of 2)".to_owned(), 2, 1),
            ("10.0.0.2:443 (one of 2)".to_owned(), 2, 1)
        ]
    );
}

#[test]
fn presenting_is_a_use_even_without_a_connection() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    trail.process(present(1, Some(9), 7), &mut out);
    assert!(matches!(out[..], [TrailOutput::Use(_)]));
    assert_eq!(trail.unmatched, 1);
}

#[test]
fn a_forgotten_process_passes_nothing_on() {
    let events = |gone| {
        let mut events = vec![
            exec(1, 0, "b", false),
            pick(1, 7, Source::File, None),
            fork(2, 1),
            TrailEvent::Gone { subjects: gone },
        ];
        events.extend([
            connect(2, 1, "10.0.0.1", 443),
            payload(1, Some("x.example")),
        ]);
        events
    };
    assert_eq!(hops(events(vec![])).len(), 1);
    assert_eq!(hops(events(vec![subject(1)])), []);
}

#[test]
fn a_child_presents_on_the_connection_of_a_forgotten_parent() {
    let found = hops(vec![
        connect(1, 1, "10.0.0.1", 443),
        payload(1, Some("x.example")),
        fork(2, 1),
        TrailEvent::Gone {
            subjects: vec![subject(1)],
        },
        TrailEvent::Tick { time: at(200) },
        present(2, Some(1), 7),
    ]);
    assert_eq!(
        found,
        [(id(7), "x.example:443".into(), Evidence::Presented)]
    );
}

#[test]
fn a_response_to_a_forgotten_process_does_not_bring_it_back() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in [
        connect(1, 1, "10.0.0.1", 443),
        payload(1, Some("x.example")),
        fork(2, 1),
        TrailEvent::Gone {
            subjects: vec![subject(1)],
        },
        minted(1, 7),
    ] {
        trail.process(event, &mut out);
    }
    assert!(matches!(out.last(), Some(TrailOutput::Mint(_))));
    assert!(!trail.holders.contains(subject(1)));
}

fn present(pid: u32, connection: Option<u64>, credential_id: u64) -> TrailEvent {
    TrailEvent::Presented(Box::new(Presented {
        time: at(4),
        actor: actor(pid),
        connection,
        server: None,
        host: None,
        credential: credential(credential_id),
        place: Place {
            source: Source::Presented,
            place: "header:authorization".into(),
        },
    }))
}

fn in_clear(connection: u64, host: Option<&str>, credential_id: u64) -> TrailEvent {
    TrailEvent::Clear {
        time: at(4),
        connection,
        host: host.map(str::to_owned),
        credential: credential(credential_id),
        place: Place {
            source: Source::Presented,
            place: "header:authorization".into(),
        },
    }
}

fn minted(connection: u64, credential_id: u64) -> TrailEvent {
    TrailEvent::Minted {
        time: at(5),
        connection,
        credential: credential(credential_id),
        place: Place {
            source: Source::Metadata,
            place: "answer:access_token".into(),
        },
    }
}

fn resolved(name: &str, address: [u8; 4]) -> TrailEvent {
    TrailEvent::Resolved {
        time: at(1),
        names: vec![name.to_owned()],
        addresses: vec![address.into()],
    }
}

/// A request inside TLS whose head names a server.
fn request_for(host: &str) -> TrailEvent {
    let mut event = present(1, Some(1), 7);
    if let TrailEvent::Presented(event) = &mut event {
        event.host = Some(host.to_owned());
    }
    event
}

#[test]
fn disagreeing_names_are_kept() {
    let label = |events: Vec<TrailEvent>| hops(events).pop().map(|(_, label, _)| label);
    let hello = |ech| TrailEvent::Payload {
        time: at(3),
        connection: 1,
        destination: Some(ConnectionName {
            server_name: Some("front.example".into()),
            ech,
            host: false,
        }),
    };
    for (ech, host, expected) in [
        (false, "front.example", "front.example:443"),
        (
            false,
            "back.example",
            "front.example:443 (back.example by http-host)",
        ),
        (false, UNKNOWN_NAME, "front.example:443 (? by http-host)"),
        (true, "back.example", "back.example:443"),
        (true, UNKNOWN_NAME, "front.example:443"),
    ] {
        let found = label(vec![
            connect(1, 1, "10.0.0.1", 443),
            hello(ech),
            request_for(host),
        ]);
        assert_eq!(found.as_deref(), Some(expected), "{ech} {host}");
    }
    // A plaintext proxy is told one name after another.
    let found = label(vec![
        connect(1, 1, "10.0.0.1", 3128),
        in_clear(1, Some("a.example"), 7),
        in_clear(1, Some("b.example"), 7),
    ]);
    assert_eq!(found.as_deref(), Some("b.example:3128"));
    // Without anything better, the name from DNS.
    let found = label(vec![
        resolved("db.example", [10, 0, 0, 1]),
        connect(1, 1, "10.0.0.1", 5432),
        in_clear(1, None, 7),
    ]);
    assert_eq!(found.as_deref(), Some("db.example:5432"));
}

#[test]
fn a_minted_credential_is_held_and_linked_to_what_was_presented() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in [
        connect(1, 1, "169.254.169.254", 80),
        in_clear(1, None, 3),
        minted(1, 4),
        connect(1, 2, "10.0.0.9", 443),
        payload(2, Some("s3.example")),
    ] {
        trail.process(event, &mut out);
    }
    let mint = out.iter().find_map(|outcome| match outcome {
        TrailOutput::Mint(mint) => Some(mint),
        _ => None,
    });
    let mint = mint.expect("something was minted");
    let id_of = |side: &Option<Credential>| side.as_ref().map(|known| known.id.0.clone());
    assert_eq!(id_of(&mint.presented), Some(id(3)));
    assert_eq!(id_of(&mint.minted), Some(id(4)));
    let held = out.iter().any(|outcome| {
        matches!(outcome, TrailOutput::Hop(hop) if hop.credential.id.0 == id(4) && hop.evidence == Evidence::Sole)
    });
    assert!(held, "{out:#?}");
}

#[test]
fn a_late_workload_name_reaches_its_connections() {
    let named = Workload {
        namespace: Some("payments".into()),
        ..Workload::host("api")
    };
    let mut trail = Trail::new();
    let mut out = Vec::new();
    let begin = connect(1, 1, "10.0.0.1", 443);
    let TrailEvent::Connect { actor, .. } = &begin else {
        unreachable!("it is one");
    };
    let old = actor.workload.clone();
    for event in [
        begin,
        TrailEvent::Renamed {
            time: at(3),
            old,
            new: named.clone(),
        },
        in_clear(1, None, 7),
    ] {
        trail.process(event, &mut out);
    }
    let hop = out.iter().rev().find_map(|outcome| match outcome {
        TrailOutput::Hop(hop) => Some(hop),
        _ => None,
    });
    assert_eq!(hop.expect("a hop").workload, named);
}

#[test]
fn a_late_cluster_object_reaches_its_connections() {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    let mut begin = |id: u64, address: &str| {
        let mut event = connect(1, id, address, 443);
        if let TrailEvent::Connect { destination, .. } = &mut event {
            destination.set_object(UNKNOWN_NAME);
        }
        trail.process(event, &mut out);
    };
    begin(1, "10.0.0.1");
    begin(2, "10.0.0.2");
    let objects = TrailEvent::Objects {
        time: at(3),
        objects: BTreeMap::from([(
            "10.0.0.1".parse().expect("an address"),
            "kubernetes.default.svc".into(),
        )]),
    };
    trail.process(objects, &mut out);
    trail.process(in_clear(1, None, 7), &mut out);
    trail.process(in_clear(2, None, 7), &mut out);
    let destinations: Vec<_> = out
        .iter()
        .filter_map(|outcome| match outcome {
            TrailOutput::Hop(hop) => {
                Some((hop.destination.label(), hop.destination.object.clone()))
            }
            _ => None,
        })
        .collect();
    let api = "kubernetes.default.svc".to_owned();
    assert_eq!(
        destinations,
        [
            (format!("{api}:443"), Some(api)),
            ("10.0.0.2:443".to_owned(), None)
        ]
    );
}

fn any_event() -> impl Strategy<Value = TrailEvent> {
    let pid = 1u32..6;
    prop_oneof![
        (pid.clone(), pid.clone()).prop_map(|(child, parent)| fork(child, parent)),
        (pid.clone(), pid.clone(), "[ab]", any::<bool>())
            .prop_map(|(a, b, c, d)| exec(a, b, &c, d)),
        pid.clone().prop_map(|pid| TrailEvent::Exit {
            time: at(5),
            subject: subject(pid)
        }),
        pid.clone().prop_map(|pid| TrailEvent::Gone {
            subjects: vec![subject(pid)]
        }),
        (
            pid.clone(),
            1u64..4,
            any::<bool>(),
            proptest::option::of(1u64..3)
        )
            .prop_map(|(p, id, file, out)| {
                pick(
                    p,
                    id,
                    if file {
                        Source::File
                    } else {
                        Source::Environment
                    },
                    out,
                )
            }),
        (pid, 1u64..5).prop_map(|(pid, id)| connect(pid, id, "10.0.0.1", 443)),
        (1u64..5, any::<bool>()).prop_map(|(id, named)| payload(id, named.then_some("x.example"))),
        (1u32..6, proptest::option::of(1u64..5)).prop_map(|(pid, id)| present(pid, id, 3)),
        (1u64..5, proptest::option::of("[ab]\\.example")).prop_map(|(id, host)| in_clear(
            id,
            host.as_deref(),
            3
        )),
        (1u64..5).prop_map(|id| minted(id, 4)),
        ("[xy]\\.example", 1u8..3).prop_map(|(name, host)| resolved(&name, [10, 0, 0, host])),
        (0i64..200).prop_map(|second| TrailEvent::Tick { time: at(second) }),
    ]
}

fn foreign(pid: u32, victim: u32) -> TrailEvent {
    TrailEvent::Foreign {
        time: at(2),
        actor: actor(pid),
        victim: actor(victim),
        look: Look::Environ,
    }
}

fn foreign_reads(events: Vec<TrailEvent>) -> Vec<ForeignRead> {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in events {
        trail.process(event, &mut out);
    }
    out.into_iter()
        .filter_map(|outcome| match outcome {
            TrailOutput::Foreign(read) => Some(*read),
            _ => None,
        })
        .collect()
}

#[test]
fn reading_a_holders_memory_makes_a_holder() {
    let events = vec![
        exec(10, 1, "a", false),
        pick(10, 7, Source::Environment, None),
        exec(20, 1, "b", false),
        foreign(20, 10),
        connect(20, 1, "192.0.2.1", 443),
        payload(1, Some("paste.example")),
    ];
    let reads = foreign_reads(events.clone());
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].evidence, Evidence::Sole);
    assert!(!reads[0].ancestor);
    let hops = hops(events);
    assert_eq!(hops.len(), 1, "{hops:?}");
    assert_eq!(hops[0].1, "paste.example:443");
}

#[test]
fn reading_a_process_without_credentials_reports_nothing() {
    assert!(foreign_reads(vec![exec(10, 1, "a", false), foreign(20, 10)]).is_empty());
    let below = vec![
        exec(20, 1, "a", false),
        exec(10, 20, "a", false),
        pick(10, 7, Source::File, None),
        foreign(20, 10),
    ];
    assert!(foreign_reads(below)[0].ancestor, "it started the other one");
}

#[test]
fn a_refused_connection_is_no_hop() {
    let events = vec![
        exec(10, 1, "a", false),
        pick(10, 7, Source::File, None),
        connect(10, 1, "192.0.2.1", 443),
        TrailEvent::Refused { connection: 1 },
        TrailEvent::Tick { time: at(60) },
    ];
    assert!(hops(events).is_empty());
}

proptest! {
    #[test]
    fn evidence_is_never_stronger_than_it_is(events in proptest::collection::vec(any_event(), 0..60)) {
        let picked: std::collections::HashSet<String> = events.iter().filter_map(|event| match event {
            TrailEvent::PickUp(event) => Some(event.credential.id.0.clone()),
            TrailEvent::Minted { credential, .. } => Some(credential.id.0.clone()),
            _ => None,
        }).collect();
        let presented = events.iter().any(|event| matches!(event, TrailEvent::Presented(_) | TrailEvent::Clear { .. }));
        let mut trail = Trail::new();
        let mut out = Vec::new();
        for event in events {
            let before = out.len();
            let single = matches!(event, TrailEvent::Connect { .. } | TrailEvent::Payload { .. });
            trail.process(event, &mut out);
            let hops: Vec<_> = out[before..].iter().filter_map(|outcome| match outcome {
                TrailOutput::Hop(hop) => Some(hop),
                _ => None,
            }).collect();
            for hop in &hops {
                match hop.evidence {
                    Evidence::Presented => prop_assert!(presented),
                    // One event resolves one connection: `sole` is the only hop there.
                    Evidence::Sole => prop_assert!(!single || hops.len() == 1),
                    Evidence::Held => prop_assert!(hops.len() > 1),
                }
                prop_assert!(hop.evidence == Evidence::Presented || picked.contains(&hop.credential.id.0));
            }
        }
    }

    #[test]
    fn the_same_events_give_the_same_hops(events in proptest::collection::vec(any_event(), 0..40)) {
        prop_assert_eq!(hops(events.clone()), hops(events));
    }
}
