//! Tests of the policies of a cluster, without one.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn good() -> Value {
    json!({ "credentials": [{ "name": "payments",
        "match": { "file": "/run/secrets/payments" }, "destinations": ["*.example:443"] }] })
}

fn object(name: &str, spec: &Value, status: Option<&Value>) -> DynamicObject {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"), "kind": KIND,
        "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 3 },
        "spec": spec,
    });
    if let Some(status) = status {
        object["status"] = status.clone();
    }
    serde_json::from_value(object).expect("an object")
}

/// A watch that has not listed anything.
fn watch(policies: &ClusterPolicies) -> (PolicyWatch, UnboundedReceiver<(String, Value)>) {
    let (status_queue, statuses) = unbounded_channel();
    (PolicyWatch::new(policies.clone(), status_queue), statuses)
}

/// A cluster with agents: what they write to statuses is there for all.
#[derive(Default)]
struct TestCluster {
    objects: BTreeMap<String, DynamicObject>,
}

impl TestCluster {
    /// Creates or changes a resource with so many credentials.
    fn put(&mut self, name: &str, created: i64, generation: i64, credentials: usize) {
        let credentials: Vec<Value> = (0..credentials)
            .map(|number| json!({ "name": format!("c{number}"), "match": { "class": "github-token" } }))
            .collect();
        let status = self
            .objects
            .get(name)
            .and_then(|known| known.data.get("status").cloned());
        let mut object = object(
            name,
            &json!({ "credentials": credentials }),
            status.as_ref(),
        );
        object.metadata.generation = Some(generation);
        let created = Timestamp::from_second(created).expect("in range");
        object.metadata.creation_timestamp =
            serde_json::from_value(json!(created.to_string())).ok();
        self.objects.insert(name.to_owned(), object);
    }

    /// An agent starts, and lists the resources in some order; returns the number of credentials of
    /// each resource that is in force.
    fn agent(&mut self, reversed: bool) -> Vec<usize> {
        let policies = ClusterPolicies::default();
        let (mut memory, statuses) = watch(&policies);
        let mut listed: Vec<&DynamicObject> = self.objects.values().collect();
        if reversed {
            listed.reverse();
        }
        for object in &listed {
            memory.deliver(WatchEvent::There(object));
        }
        let uids = listed
            .iter()
            .filter_map(|object| object.metadata.uid.clone());
        memory.deliver(WatchEvent::All(&uids.collect()));
        self.write(statuses);
        in_force(&policies)
    }

    fn write(&mut self, mut statuses: UnboundedReceiver<(String, Value)>) {
        while let Ok((name, status)) = statuses.try_recv() {
            let object = self.objects.get_mut(&name).expect("known");
            object.data["status"] = status;
        }
    }

    fn is_accepted(&self, name: &str) -> bool {
        let status = self.objects[name].data.get("status").expect("a status");
        accepted_condition(status).expect("a condition")["status"] == "True"
    }
}

fn in_force(policies: &ClusterPolicies) -> Vec<usize> {
    let held = policies.since(u64::MAX).expect("a snapshot");
    held.expectations
        .iter()
        .map(|all| all.credentials.len())
        .collect()
}

#[test]
fn which_policies_have_room_depends_on_their_age_and_not_on_the_agent() {
    for reversed in [false, true] {
        let mut cluster = TestCluster::default();
        cluster.put("old", 1, 1, 3_000);
        cluster.put("a-new", 2, 1, 3_000);
        assert_eq!(cluster.agent(reversed), [3_000]);
        assert!(cluster.is_accepted("old") && !cluster.is_accepted("a-new"));
        // Less needs room.
        cluster.put("a-new", 2, 2, 2_000);
        assert_eq!(cluster.agent(reversed), [2_000, 3_000]);
        assert!(cluster.is_accepted("a-new"));
        // What is in force stays there, although the one that grew is older.
        cluster.put("old", 1, 2, 4_000);
        assert_eq!(cluster.agent(reversed), [2_000]);
        assert!(cluster.is_accepted("a-new") && !cluster.is_accepted("old"));
    }
}

#[test]
fn a_policy_that_grows_too_large_stays_as_it_was_until_there_is_room() {
    let mut cluster = TestCluster::default();
    cluster.put("one", 1, 1, 3_000);
    cluster.put("two", 2, 1, 2_000);
    let policies = ClusterPolicies::default();
    let (mut memory, statuses) = watch(&policies);
    for object in cluster.objects.values() {
        memory.deliver(WatchEvent::There(object));
    }
    // Before all are known, none is judged.
    assert!(policies.since(0).is_none());
    let uids = ["one", "two"].map(|name| format!("uid-{name}"));
    memory.deliver(WatchEvent::All(&HashSet::from(uids)));
    cluster.write(statuses);
    assert_eq!(in_force(&policies), [3_000, 2_000]);
    let (status_queue, mut statuses) = unbounded_channel();
    memory.status_queue = status_queue;
    cluster.put("one", 1, 2, 4_000);
    memory.deliver(WatchEvent::There(&cluster.objects["one"]));
    assert_eq!(in_force(&policies), [3_000, 2_000]);
    assert_eq!(policies.since(0).expect("a snapshot").refused, 1);
    let (name, status) = statuses.try_recv().expect("a status");
    let condition = accepted_condition(&status).expect("a condition");
    assert_eq!(
        (name.as_str(), &condition["status"]),
        ("one", &json!("False"))
    );
    let reason = condition["message"].as_str().expect("a text");
    assert!(
        reason.starts_with(
            "together with the other policies: the expectations have 6000 credentials"
        ),
        "{reason}"
    );
    // When the other one goes, nobody has to touch the first.
    memory.deliver(WatchEvent::Gone(&cluster.objects["two"]));
    assert_eq!(in_force(&policies), [4_000]);
    let (name, status) = statuses.try_recv().expect("a status");
    let condition = accepted_condition(&status).expect("a condition");
    assert_eq!(
        (name.as_str(), &condition["status"]),
        ("one", &json!("True"))
    );
    assert!(statuses.try_recv().is_err());
}

#[test]
fn an_invalid_policy_is_reported_and_does_not_replace_a_valid_one() {
    let policies = ClusterPolicies::default();
    let (mut memory, mut statuses) = watch(&policies);
    memory.deliver(WatchEvent::All(&HashSet::new()));
    memory.deliver(WatchEvent::There(&object("a", &good(), None)));
    let held = policies.since(0).expect("it has changed");
    assert_eq!((held.expectations.len(), held.refused), (1, 0));
    let (name, status) = statuses.try_recv().expect("a status");
    assert_eq!(name, "a");
    assert_eq!(status["conditions"][0]["status"], "True");
    assert_eq!(status["credentials"], 1);
    // An identical resource needs no status update.
    memory.deliver(WatchEvent::There(&object("a", &good(), Some(&status))));
    assert!(statuses.try_recv().is_err());
    for wrong in [
        json!({ "credentials": [{ "name": "x", "match": { "file": "/a" }, "readerz": [] }] }),
        json!({ "credentials": [{ "name": "x", "match": { "file": "/a/[" } }] }),
        json!({ "state_dir": "/etc" }),
        Value::Null,
    ] {
        memory.deliver(WatchEvent::There(&object("a", &wrong, Some(&status))));
        let held = policies.since(0).expect("it has changed");
        assert_eq!((held.expectations.len(), held.refused), (1, 1), "{wrong}");
        let (_, status) = statuses.try_recv().expect("a status");
        let condition = &status["conditions"][0];
        assert_eq!(condition["status"], "False", "{wrong}");
        assert_ne!(condition["message"], "", "{wrong}");
    }
    memory.deliver(WatchEvent::Gone(&object("a", &good(), None)));
    let held = policies.since(0).expect("it has changed");
    assert_eq!((held.expectations.len(), held.refused), (0, 0));
    assert!(policies.since(held.version).is_none());
}

#[test]
fn stored_policies_apply_until_the_cluster_answers() {
    let state = tempfile::tempdir().expect("a directory");
    let first = ClusterPolicies::restore(state.path());
    assert!(first.since(0).is_none());
    let (mut memory, _statuses) = watch(&first);
    memory.deliver(WatchEvent::All(&HashSet::new()));
    memory.deliver(WatchEvent::There(&object("a", &good(), None)));
    memory.deliver(WatchEvent::There(&object("b", &good(), None)));
    let version = first.since(0).expect("it has changed").version;
    // A status update does not change the expectations.
    memory.deliver(WatchEvent::There(&object("b", &good(), None)));
    assert!(first.since(version).is_none());
    let second = ClusterPolicies::restore(state.path());
    let held = second.since(0).expect("what was kept");
    assert_eq!(held.expectations.len(), 2);
    let (mut memory, _statuses) = watch(&second);
    memory.deliver(WatchEvent::There(&object("b", &good(), None)));
    memory.deliver(WatchEvent::All(&HashSet::from(["uid-b".to_owned()])));
    let third = ClusterPolicies::restore(state.path());
    assert_eq!(third.since(0).expect("what was kept").expectations.len(), 1);
    fs::write(state.path().join(STATE_FILE), "[1,").expect("a file");
    assert!(ClusterPolicies::restore(state.path()).since(0).is_none());
}

#[test]
fn policies_deleted_during_an_outage_are_removed() {
    let policies = ClusterPolicies::default();
    let (mut memory, _statuses) = watch(&policies);
    memory.deliver(WatchEvent::There(&object("a", &good(), None)));
    memory.deliver(WatchEvent::There(&object("b", &good(), None)));
    memory.deliver(WatchEvent::All(&HashSet::from(["uid-b".to_owned()])));
    let held = policies.since(0).expect("it has changed");
    assert_eq!(held.expectations.len(), 1);
}

proptest! {
    #[test]
    fn any_text_is_accepted_or_refused(text in "\\PC{0,40}", field in "[a-z]{0,12}") {
        let _ = parse_policy("x", &json!({ "credentials": text }));
        let _ = parse_policy("x", &json!({ field: [text] }));
    }
}
