//! Credentials in the bytes of a connection.

use super::*;

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
        outputs(events)
            .into_iter()
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
            tunnel: false,
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

/// A proxy on loopback presents what a client sent to it.
#[test]
fn a_broker_presents_on_behalf_of_its_client() {
    let of = |seconds: i64, local: &str| {
        let mut late = in_clear(2, None, 7);
        if let TrailEvent::Clear { time, .. } = &mut late {
            *time = at(3 + seconds);
        }
        let mut to_issuer = connect(20, 2, "192.0.2.1", 443);
        if let TrailEvent::Connect { actor, .. } = &mut to_issuer {
            actor.workload = Workload::host("/usr/sbin/nginx");
        }
        let found = outputs(vec![
            exec(10, 1, "a", false),
            pick(10, 7, Source::File, None),
            connect(10, 1, local, 9000),
            in_clear(1, None, 7),
            exec(20, 1, "b", false),
            to_issuer,
            late,
        ]);
        let mut presented = found.into_iter().filter_map(|outcome| match outcome {
            TrailOutput::Hop(hop) if hop.evidence == Evidence::Presented => Some(hop),
            _ => None,
        });
        let (client, broker) = (presented.next(), presented.next());
        let (client, broker) = (client.expect("a hop"), broker.expect("a hop"));
        assert_eq!(client.on_behalf_of, None);
        assert!(client.picked_up && !broker.picked_up);
        let sender = broker.on_behalf_of.map(|behalf| behalf.workload);
        assert!(
            sender
                .as_ref()
                .is_none_or(|sender| *sender == client.workload)
        );
        sender.is_some()
    };
    assert!(of(1, "127.0.0.1"));
    assert!(!of(60, "127.0.0.1"), "much later");
    assert!(!of(1, "192.0.2.7"), "not on this machine");
}

/// A rule of the machine takes a request to a sidecar.
#[test]
fn what_a_local_rule_redirects_is_not_in_clear() {
    let with = |address: &str, to_loopback: bool| {
        let mut sent = in_clear(1, None, 7);
        if let TrailEvent::Clear {
            to_loopback: redirected,
            ..
        } = &mut sent
        {
            *redirected = to_loopback;
        }
        let found = outputs(vec![connect(10, 1, address, 80), sent]);
        let hop = found.into_iter().find_map(|outcome| match outcome {
            TrailOutput::Hop(hop) => Some(hop),
            _ => None,
        });
        hop.expect("a hop").clear
    };
    assert!(!with("10.0.0.9", true));
    assert!(with("10.0.0.9", false));
    assert!(with("127.0.0.1", true), "it was meant for loopback");
}
