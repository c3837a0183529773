//! Which processes hold a credential.

use super::*;

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

fn foreign(pid: u32, victim: u32) -> TrailEvent {
    TrailEvent::Foreign {
        time: at(2),
        actor: actor(pid),
        victim: actor(victim).into(),
        look: Look::Environ,
    }
}

fn foreign_reads(events: Vec<TrailEvent>) -> Vec<ForeignRead> {
    outputs(events)
        .into_iter()
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
    assert_eq!(reads[0].relation, Kinship::Unrelated);
    let hops = hops(events);
    assert_eq!(hops.len(), 1, "{hops:?}");
    assert_eq!(hops[0].1, "paste.example:443");
}

#[test]
fn a_reader_is_related_to_whom_it_reads() {
    let reads = foreign_reads(vec![exec(10, 1, "a", false), foreign(20, 10)]);
    assert_eq!(reads[0].credentials, [], "it may hold what is not known");
    let above = vec![
        exec(10, 1, "a", false),
        exec(20, 10, "a", false),
        foreign(20, 10),
    ];
    assert_eq!(foreign_reads(above)[0].relation, Kinship::Descendant);
    let below = vec![
        exec(20, 1, "a", false),
        exec(10, 20, "a", false),
        pick(10, 7, Source::File, None),
        foreign(20, 10),
    ];
    assert_eq!(foreign_reads(below)[0].relation, Kinship::Ancestor);
}
