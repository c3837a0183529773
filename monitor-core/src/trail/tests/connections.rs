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
