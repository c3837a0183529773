mod connections;
mod holders;
mod presenting;

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
            tenant: crate::fair_cache::Tenant::default(),
            ancestors: [].into(),
        },
    }
}

fn credential(id: u64) -> Credential {
    Credential::new(
        CredentialId::from_fingerprint(id),
        "aws-access-key",
        Role::Access,
        Lifetime::Static,
        vec![],
    )
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
        credential: credential(id).into(),
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
        in_mounted_home: false,
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
            tunnel: false,
        }),
    }
}

/// What results from events.
fn outputs(events: Vec<TrailEvent>) -> Vec<TrailOutput> {
    let mut trail = Trail::new();
    let mut out = Vec::new();
    for event in events {
        trail.process(event, &mut out);
    }
    out
}

/// `(credential, destination, evidence)` of every hop that results from the events.
fn hops(events: Vec<TrailEvent>) -> Vec<(String, String, Evidence)> {
    outputs(events)
        .into_iter()
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

fn present(pid: u32, connection: Option<u64>, credential_id: u64) -> TrailEvent {
    TrailEvent::Presented(Box::new(Presented {
        time: at(4),
        actor: actor(pid),
        connection,
        server: None,
        host: None,
        credential: credential(credential_id).into(),
        place: Place {
            source: Source::Presented,
            place: "header:authorization".into(),
        },
        count: 1,
    }))
}

fn in_clear(connection: u64, host: Option<&str>, credential_id: u64) -> TrailEvent {
    TrailEvent::Clear {
        time: at(4),
        connection,
        host: host.map(str::to_owned),
        credential: credential(credential_id).into(),
        place: Place {
            source: Source::Presented,
            place: "header:authorization".into(),
        },
        to_loopback: false,
        count: 1,
    }
}

fn minted(connection: u64, credential_id: u64) -> TrailEvent {
    TrailEvent::Minted {
        time: at(5),
        connection,
        credential: credential(credential_id).into(),
        place: Place {
            source: Source::Metadata,
            place: "answer:access_token".into(),
        },
    }
}

fn resolved(name: &str, address: [u8; 4]) -> TrailEvent {
    TrailEvent::Resolved {
        time: at(1),
        tenant: crate::fair_cache::Tenant::default(),
        network: String::new(),
        unconfigured: false,
        names: vec![name.to_owned()],
        addresses: vec![address.into()],
    }
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
