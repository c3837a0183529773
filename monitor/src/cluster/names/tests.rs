use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn pod(more: Value) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": "api-6d4cf56db6-x7k2p", "namespace": "payments", "uid": "u-1",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": { "pod-template-hash": "6d4cf56db6" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "api-6d4cf56db6", "uid": "r-1", "controller": true }],
        },
        "spec": { "serviceAccountName": "api", "containers": [] },
        "status": { "podIP": "10.1.0.7", "podIPs": [{ "ip": "10.1.0.7" }, { "ip": "fd00::7" }],
            "containerStatuses": [{ "name": "main", "image": "r.example/api:1", "imageID": "",
                "ready": true, "restartCount": 1, "containerID": format!("containerd://{ID}"),
                "lastState": { "terminated": { "exitCode": 1,
                    "containerID": format!("containerd://{}", ID.replace('0', "f")) } } }] },
    });
    merge(&mut pod, more);
    serde_json::from_value(pod).expect("a pod")
}

/// Merges objects, and replaces everything else.
fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(value), Value::Object(more)) => {
            for (key, more) in more {
                merge(value.entry(key).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}

fn owned_by(version: &str, kind: &str, name: &str) -> Option<(WorkloadKind, String)> {
    let reference = json!([{ "apiVersion": version, "kind": kind, "name": name, "uid": "o",
        "controller": true }]);
    let pod = pod(json!({ "metadata": { "ownerReferences": reference } }));
    pod_owner(&pod.metadata).map(|owner| (owner.kind, owner.name))
}

#[test]
fn a_pod_has_the_name_of_its_owner() {
    for (version, kind, name, expected) in [
        (
            "apps/v1",
            "ReplicaSet",
            "api-6d4cf56db6",
            Some((WorkloadKind::Deployment, "api")),
        ),
        (
            "apps/v1",
            "ReplicaSet",
            "by-hand",
            Some((WorkloadKind::ReplicaSet, "by-hand")),
        ),
        (
            "apps/v1",
            "StatefulSet",
            "db",
            Some((WorkloadKind::StatefulSet, "db")),
        ),
        (
            "batch/v1",
            "Job",
            "backup-29455384",
            Some((WorkloadKind::CronJob, "backup")),
        ),
        (
            "batch/v1",
            "Job",
            "backup-12345678",
            Some((WorkloadKind::Job, "backup-12345678")),
        ),
        (
            "apps.kruise.io/v1",
            "CloneSet",
            "web",
            Some((WorkloadKind::Owner, "web")),
        ),
        ("v1", "Node", "node-1", None),
    ] {
        let expected = expected.map(|(kind, name)| (kind, name.to_owned()));
        assert_eq!(owned_by(version, kind, name), expected, "{kind} {name}");
    }
}

#[test]
fn a_restarted_container_keeps_the_name_of_its_former_id() {
    let all = container_names(&pod(json!({})));
    let [(uid, named)] = &all[..] else {
        panic!("one uid");
    };
    assert_eq!(uid, "u-1");
    assert_eq!(named.len(), 3);
    assert_eq!(named[1].id, ID);
    assert_eq!(named[1].container.as_deref(), Some("main"));
    assert_eq!(named[2].id, ID.replace('0', "f"));
    assert_eq!(named[1].service_account.as_deref(), Some("api"));
}

#[test]
fn a_static_pod_is_known_by_the_kubelets_uid_too() {
    let annotations = json!({ "metadata": { "annotations": { (STATIC_UID): "hash" } } });
    let uids: Vec<String> = container_names(&pod(annotations))
        .into_iter()
        .map(|(uid, _)| uid)
        .collect();
    assert_eq!(uids, ["u-1", "hash"]);
}

/// An empty, synced cluster.
fn synced_index() -> (SharedNameIndex, AddressIndex) {
    let known = SharedNameIndex::default();
    let addresses = AddressIndex(known.clone());
    for (address, expected) in [("10.1.0.7", Some(UNKNOWN_NAME)), ("203.0.113.7", None)] {
        let at = addresses.object_at(address.parse().expect("an address"));
        assert_eq!(at.as_deref(), expected, "{address}, before any event");
    }
    let nothing = || HashSet::new();
    WatchHandler::<Pod>::deliver(&mut known.clone(), WatchEvent::All(&nothing()));
    WatchHandler::<Service>::deliver(&mut known.clone(), WatchEvent::All(&nothing()));
    assert!(!addresses.is_synced());
    WatchHandler::<Node>::deliver(&mut known.clone(), WatchEvent::All(&nothing()));
    addresses.await_sync(Duration::from_secs(60));
    assert!(addresses.is_synced());
    (known, addresses)
}

#[test]
fn an_address_belongs_to_its_current_pod() {
    let (known, addresses) = synced_index();
    let at = |text: &str| addresses.object_at(text.parse().expect("an address"));
    let first = pod(json!({}));
    first.put(&mut lock(&known));
    assert_eq!(at("10.1.0.7").as_deref(), Some("api.payments.pod"));
    assert_eq!(at("fd00::7").as_deref(), Some("api.payments.pod"));
    let second =
        pod(json!({ "metadata": { "uid": "u-2", "ownerReferences": null, "name": "other" } }));
    second.put(&mut lock(&known));
    assert_eq!(at("10.1.0.7"), None, "two say that they have it");
    first.remove(&mut lock(&known));
    assert_eq!(at("10.1.0.7").as_deref(), Some("other.payments.pod"));
    assert!(
        lock(&known).pods.contains_key("u-1"),
        "names of the dead are kept"
    );
    Pod::synced(&HashSet::new(), &mut lock(&known));
    assert_eq!(at("10.1.0.7"), None);
    let over = pod(json!({ "status": { "phase": "Succeeded" } }));
    over.put(&mut lock(&known));
    assert_eq!(at("10.1.0.7"), None);
}

#[test]
fn services_and_nodes_have_addresses() {
    let (known, addresses) = synced_index();
    let at = |text: &str| addresses.object_at(text.parse().expect("an address"));
    let service: Service = serde_json::from_value(json!({
        "metadata": { "name": "ledger", "namespace": "payments", "uid": "s-1" },
        "spec": { "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "externalIPs": ["192.0.2.1"] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.2" }, { "hostname": "x" }] } },
    }))
    .expect("a service");
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": "n1", "uid": "n-1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.5" },
            { "type": "Hostname", "address": "n1" }] },
    }))
    .expect("a node");
    service.put(&mut lock(&known));
    node.put(&mut lock(&known));
    for address in ["10.96.0.9", "192.0.2.1", "192.0.2.2"] {
        assert_eq!(at(address).as_deref(), Some("ledger.payments.svc"));
    }
    assert_eq!(at("10.0.0.5").as_deref(), Some("n1.node"));
    Service::synced(&HashSet::new(), &mut lock(&known));
    assert_eq!(at("10.96.0.9"), None);
    assert_eq!(at("10.0.0.5").as_deref(), Some("n1.node"));
}

proptest! {
    /// No name causes a panic, and an owner's name is part of its controller's.
    #[test]
    fn any_names(name in "[a-z0-9-]{0,20}", hash in "[a-z0-9]{0,8}", kind in "ReplicaSet|Job|Node|X") {
        let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        let pod = pod(json!({ "metadata": { "labels": { "pod-template-hash": hash },
            "ownerReferences": [{ "apiVersion": version, "kind": kind, "name": name, "uid": "o",
                "controller": true }] } }));
        if let Some(owner) = pod_owner(&pod.metadata) {
            prop_assert!(name.starts_with(&owner.name));
        }
    }
}
