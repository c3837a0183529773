//! When a connection becomes a hop, and under which name.

use super::*;

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

/// A request that asks a proxy for a connection to a server.
fn tunnel(id: u64, name: Option<&str>) -> TrailEvent {
    TrailEvent::Payload {
        time: at(3),
        connection: id,
        destination: Some(ConnectionName {
            server_name: name.map(str::to_owned),
            ech: false,
            host: true,
            tunnel: true,
        }),
    }
}

#[test]
fn a_server_behind_a_proxy_is_the_destination() {
    // Both names are known from DNS, and the proxy's address is not the server's.
    let resolved = |name: &str, address: &str| TrailEvent::Resolved {
        time: at(0),
        tenant: crate::fair_cache::Tenant::default(),
        network: String::new(),
        unconfigured: false,
        names: vec![name.into()],
        addresses: vec![address.parse().expect("an address")],
    };
    let begin = [
        resolved("proxy.corp.example", "10.0.0.9"),
        resolved("api.example", "192.0.2.1"),
        pick(1, 7, Source::File, None),
        connect(1, 1, "10.0.0.9", 3128),
    ];
    let labels = |more: Vec<TrailEvent>| {
        let found = hops(begin.iter().cloned().chain(more).collect());
        found.into_iter().map(|hop| hop.1).collect::<Vec<_>>()
    };
    let via = "api.example:443 via proxy.corp.example:3128";
    let whole = vec![
        tunnel(1, Some("api.example")),
        payload(1, Some("api.example")),
    ];
    assert_eq!(labels(whole), [via], "one hop, without a dispute");
    let by_address = vec![tunnel(1, None), payload(1, Some("api.example"))];
    assert_eq!(labels(by_address), [via]);
    // The request and the connection inside name two servers.
    let two = vec![
        tunnel(1, Some("api.example")),
        payload(1, Some("paste.example")),
    ];
    assert_eq!(
        labels(two),
        [via.to_owned(), format!("{via} (paste.example by sni)")]
    );
    // STARTTLS is no tunnel.
    let upgrade = vec![payload(1, None), payload(1, Some("db.example"))];
    assert_eq!(
        labels(upgrade),
        ["proxy.corp.example:3128", "db.example:3128"]
    );
}

#[test]
fn a_proxys_own_credential_is_for_the_proxy() {
    let mut clear = in_clear(1, None, 8);
    if let TrailEvent::Clear { place, .. } = &mut clear {
        place.place = "header:proxy-authorization".into();
    }
    let events = vec![
        connect(1, 1, "10.0.0.9", 3128),
        tunnel(1, Some("api.example")),
        clear,
    ];
    let found = outputs(events)
        .into_iter()
        .find_map(|outcome| match outcome {
            TrailOutput::Hop(hop) => Some(hop),
            _ => None,
        });
    let hop = found.expect("a hop");
    assert_eq!(hop.destination.label(), "10.0.0.9:3128");
    assert!(hop.for_proxy && hop.clear);
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
