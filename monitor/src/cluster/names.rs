//! Names from the Kubernetes API: the pods of this node with their owners, and what is at which
//! address.
//!
//! Three watches (pods of this node, services, nodes) keep a small memory up to date, in a thread of
//! their own; whoever asks reads that memory. Only names are kept of what the API tells. What was
//! deleted keeps its names for a while: its uid is nobody else's. Its address is given up at once.

use super::{Told, Watched};
use crate::{
    attribution::names::{Named, Owner, Source, SourceError},
    model::{ANOTHER, WorkloadKind},
};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Node, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// How long the names of a deleted pod are kept.
const TOMBSTONE: Duration = Duration::from_secs(3600);

/// The API, as far as it was heard of.
#[derive(Debug)]
pub struct Kubernetes {
    known: Shared,
}

/// What is known, by those who are told and those who ask.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Memory>);

#[derive(Debug, Default)]
struct Memory {
    known: Mutex<Known>,
    /// All of a kind has been told.
    all: Condvar,
}

/// What is at an address.
#[derive(Clone, Debug)]
pub struct Addresses(Shared);

impl Addresses {
    /// `NAME.NAMESPACE.svc`, `OWNER.NAMESPACE.pod` or `NAME.node`; [`ANOTHER`] where an address can be a
    /// cluster's, and what the cluster has has not been told yet.
    pub fn at(&self, address: IpAddr) -> Option<String> {
        let known = lock(&self.0);
        match known.addresses.get(&address).map(Vec::as_slice) {
            Some([(_, name)]) => Some(name.clone()),
            // Two pods have one address only while one of them goes: then it is neither's.
            Some(_) => None,
            None => (!known.are_told() && may_be_inside(address)).then(|| ANOTHER.to_owned()),
        }
    }

    /// Waits until everything has been told, no longer than `most`.
    pub fn wait(&self, most: Duration) {
        let known = lock(&self.0);
        let all = &self.0.0.all;
        drop(all.wait_timeout_while(known, most, |known| !known.are_told()));
    }

    /// Whether everything that a cluster has addresses for has been told.
    pub fn are_told(&self) -> bool {
        lock(&self.0).are_told()
    }
}

/// Whether a cluster may have given an address: those of the Internet it does not give.
fn may_be_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // 100.64/10 is what providers use behind their own translation.
            address.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// What the watches have told.
#[derive(Debug, Default)]
pub struct Known {
    /// By uid.
    pods: HashMap<String, Vec<Named>>,
    /// Pods that are gone, and since when.
    gone: HashMap<String, Instant>,
    /// By address: what has it, by uid.
    addresses: HashMap<IpAddr, Vec<(String, String)>>,
    /// What each object has.
    has: HashMap<String, Vec<IpAddr>>,
    /// The pods are all there.
    synced: bool,
    /// And the services, and the nodes.
    services: bool,
    nodes: bool,
    /// Why they are not, or may be old.
    error: Option<String>,
}

fn lock(shared: &Shared) -> MutexGuard<'_, Known> {
    let known = &shared.0.known;
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kubernetes {
    /// What is known by `known`, and at which addresses.
    pub fn new(known: &Shared) -> (Self, Addresses) {
        let this = Self {
            known: known.clone(),
        };
        (this, Addresses(known.clone()))
    }
}

impl Source for Kubernetes {
    fn is_here(&self) -> bool {
        true
    }

    fn list(&mut self, _: &Runtime) -> Result<Vec<Named>, SourceError> {
        let known = lock(&self.known);
        if !known.synced {
            return Err(SourceError {
                asked: "the Kubernetes API".to_owned(),
                reason: known
                    .error
                    .clone()
                    .unwrap_or_else(|| "its pods are not listed yet".to_owned()),
            });
        }
        Ok(known.pods.values().flatten().cloned().collect())
    }

    fn knows_owners(&self) -> bool {
        true
    }
}

/// What a watch of pods, services or nodes tells goes to the memory of names.
impl<K: Names> Watched<K> for Shared {
    fn told(&mut self, told: Told<'_, K>) {
        let mut known = lock(self);
        match told {
            Told::There(object) => object.put(&mut known),
            Told::Gone(object) => object.remove(&mut known),
            Told::All(uids) => {
                K::told(uids, &mut known);
                K::state(None, &mut known);
                self.0.all.notify_all();
            }
            Told::Down(reason) => K::state(Some(reason), &mut known),
        }
    }
}

/// A kind of object that has names.
pub trait Names {
    /// It is there, or has changed.
    fn put(&self, known: &mut Known);
    /// It is gone.
    fn remove(&self, known: &mut Known);
    /// Everything that there is has been told; what is not among it is gone.
    fn told(uids: &HashSet<String>, known: &mut Known);
    /// The watch has an error, or none any more.
    fn state(_: Option<String>, _: &mut Known) {}
}

impl Names for Pod {
    fn put(&self, known: &mut Known) {
        let Some(uid) = self.metadata.uid.clone() else {
            return;
        };
        known.give(&uid, addresses_of(self));
        for (uid, named) in names(self) {
            known.gone.remove(&uid);
            known.pods.insert(uid, named);
        }
    }

    fn remove(&self, known: &mut Known) {
        let now = Instant::now();
        known.bury(now);
        if let Some(uid) = &self.metadata.uid {
            known.give(uid, Vec::new());
        }
        for (uid, _) in names(self) {
            known.gone.insert(uid, now);
        }
    }

    fn told(uids: &HashSet<String>, known: &mut Known) {
        let now = Instant::now();
        known.bury(now);
        let missing: Vec<String> = known
            .pods
            .iter()
            // A static pod is known by two uids; that of the API is in what was told.
            .filter(|(uid, named)| {
                let api = named.iter().find_map(|named| named.api_uid.as_ref());
                !uids.contains(api.unwrap_or(uid))
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in missing {
            known.give(&uid, Vec::new());
            known.gone.entry(uid).or_insert(now);
        }
    }

    fn state(error: Option<String>, known: &mut Known) {
        known.synced |= error.is_none();
        known.error = error;
    }
}

impl Names for Service {
    fn put(&self, known: &mut Known) {
        let meta = &self.metadata;
        let (Some(uid), Some(name), Some(namespace)) = (&meta.uid, &meta.name, &meta.namespace)
        else {
            return;
        };
        let spec = self.spec.as_ref();
        let balancers = self
            .status
            .iter()
            .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
            .flatten()
            .filter_map(|ingress| ingress.ip.as_ref());
        let addresses = spec
            .iter()
            .flat_map(|spec| {
                let many = spec.cluster_ips.iter().chain(&spec.external_ips).flatten();
                spec.cluster_ip.iter().chain(many)
            })
            .chain(balancers);
        let name = format!("{name}.{namespace}.svc");
        known.give(uid, at(addresses, &name));
    }

    fn remove(&self, known: &mut Known) {
        if let Some(uid) = &self.metadata.uid {
            known.give(uid, Vec::new());
        }
    }

    fn told(uids: &HashSet<String>, known: &mut Known) {
        known.keep(".svc", uids);
        known.services = true;
    }
}

impl Names for Node {
    fn put(&self, known: &mut Known) {
        let (Some(uid), Some(name)) = (&self.metadata.uid, &self.metadata.name) else {
            return;
        };
        let addresses = self
            .status
            .iter()
            .filter_map(|status| status.addresses.as_ref())
            .flatten()
            .map(|address| &address.address);
        known.give(uid, at(addresses, &format!("{name}.node")));
    }

    fn remove(&self, known: &mut Known) {
        if let Some(uid) = &self.metadata.uid {
            known.give(uid, Vec::new());
        }
    }

    fn told(uids: &HashSet<String>, known: &mut Known) {
        known.keep(".node", uids);
        known.nodes = true;
    }
}

/// Those of some texts that are addresses, with the name of what has them.
fn at<'a>(texts: impl Iterator<Item = &'a String>, name: &str) -> Vec<(IpAddr, String)> {
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let named = addresses.into_iter();
    named.map(|address| (address, name.to_owned())).collect()
}

impl Known {
    fn are_told(&self) -> bool {
        self.synced && self.services && self.nodes
    }

    /// An object has these addresses from now on, and no others.
    fn give(&mut self, uid: &str, addresses: Vec<(IpAddr, String)>) {
        for address in self.has.remove(uid).unwrap_or_default() {
            if let Some(objects) = self.addresses.get_mut(&address) {
                objects.retain(|(owner, _)| owner != uid);
                if objects.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
        if addresses.is_empty() {
            return;
        }
        let all = addresses.iter().map(|(address, _)| *address).collect();
        self.has.insert(uid.to_owned(), all);
        for (address, name) in addresses {
            self.addresses
                .entry(address)
                .or_default()
                .push((uid.to_owned(), name));
        }
    }

    /// Of the objects whose name ends so, only these are still there.
    fn keep(&mut self, suffix: &str, uids: &HashSet<String>) {
        let gone: Vec<String> = self
            .addresses
            .values()
            .flatten()
            .filter(|(uid, name)| name.ends_with(suffix) && !uids.contains(uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.give(&uid, Vec::new());
        }
    }

    /// Forgets those who are gone for long.
    fn bury(&mut self, now: Instant) {
        let Self { pods, gone, .. } = self;
        gone.retain(|uid, since| {
            let stays = now.duration_since(*since) < TOMBSTONE;
            if !stays {
                pods.remove(uid);
            }
            stays
        });
    }
}

/// The addresses of a pod that runs, with its name; a pod in the node's network has none of its own.
fn addresses_of(pod: &Pod) -> Vec<(IpAddr, String)> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
        return Vec::new();
    };
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || over {
        return Vec::new();
    }
    let name = match owner(&pod.metadata) {
        Some(owner) => owner.name,
        None => pod.metadata.name.clone().unwrap_or_default(),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let many = status.pod_ips.iter().flatten().map(|address| &address.ip);
    at(
        status.pod_ip.iter().chain(many),
        &format!("{name}.{namespace}.pod"),
    )
}

/// The uid that the kubelet has for a pod that it was given in a file.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// The names of a pod and of its containers, by each uid that a path may have for it.
fn names(pod: &Pod) -> Vec<(String, Vec<Named>)> {
    let meta = &pod.metadata;
    let Some(api_uid) = &meta.uid else {
        return Vec::new();
    };
    let mut uids = vec![api_uid.clone()];
    let annotated = meta.annotations.as_ref();
    uids.extend(annotated.and_then(|all| all.get(STATIC_UID)).cloned());
    let owner = owner(meta);
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .filter(|name| !name.is_empty());
    uids.into_iter()
        .map(|uid| {
            let whole = Named {
                pod_uid: Some(uid.clone()),
                api_uid: Some(api_uid.clone()),
                namespace: meta.namespace.clone(),
                pod: meta.name.clone(),
                owner: owner.clone(),
                service_account: account.clone(),
                ..Named::default()
            };
            let mut named = vec![whole.clone()];
            for status in statuses(pod) {
                named.extend(ids(status).map(|id| Named {
                    id,
                    container: Some(status.name.clone()),
                    image: image(pod, status),
                    ..whole.clone()
                }));
            }
            (uid, named)
        })
        .collect()
}

/// What a container was made from: the name that the kubelet gives, or that was asked for where it gives none but
/// a digest.
fn image(pod: &Pod, status: &ContainerStatus) -> Option<String> {
    let told =
        Some(&status.image).filter(|image| !image.is_empty() && !image.starts_with("sha256:"));
    let asked = || {
        let spec = pod.spec.as_ref()?;
        let init = spec.init_containers.iter().flatten();
        let mut all = spec.containers.iter().chain(init);
        all.find(|container| container.name == status.name)?
            .image
            .as_ref()
    };
    told.or_else(asked).cloned()
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ]
        .into_iter()
        .flatten()
        .flatten()
    })
}

/// The ids of a container, now and before its last restart, without the runtime's name.
fn ids(status: &ContainerStatus) -> impl Iterator<Item = String> {
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref()?.container_id.as_ref());
    status
        .container_id
        .iter()
        .chain(last)
        .filter_map(|id| Some(id.split_once("://")?.1.to_owned()))
}

/// Who controls a pod: of a ReplicaSet the Deployment that made it, of a Job the CronJob. Both are
/// told by the names that their controllers give, so that nothing else has to be asked for.
fn owner(meta: &ObjectMeta) -> Option<Owner> {
    let controller = meta
        .owner_references
        .iter()
        .flatten()
        .find(|reference| reference.controller == Some(true))?;
    let group = controller.api_version.split('/').next().unwrap_or_default();
    let label = |name: &str| meta.labels.as_ref().and_then(|labels| labels.get(name));
    let name = &controller.name;
    let before = |hash: Option<&String>| {
        let name = name.strip_suffix(hash?.as_str())?.strip_suffix('-')?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    let (kind, name) = match (group, controller.kind.as_str()) {
        // A pod that a node was given in a file is the node's own.
        ("v1", "Node") => return None,
        ("apps", "ReplicaSet") => {
            if let Some(name) = before(label("rollouts-pod-template-hash")) {
                (WorkloadKind::Owner, name)
            } else if let Some(name) = before(label("pod-template-hash")) {
                (WorkloadKind::Deployment, name)
            } else {
                (WorkloadKind::ReplicaSet, name.clone())
            }
        }
        ("apps", "StatefulSet") => (WorkloadKind::StatefulSet, name.clone()),
        ("apps", "DaemonSet") => (WorkloadKind::DaemonSet, name.clone()),
        ("batch", "Job") => match scheduled(name, meta) {
            Some(name) => (WorkloadKind::CronJob, name),
            None => (WorkloadKind::Job, name.clone()),
        },
        _ => (WorkloadKind::Owner, name.clone()),
    };
    Some(Owner { kind, name })
}

/// The CronJob of a Job: its name ends with the minute that it was scheduled for, which is close to
/// when its pod was made.
fn scheduled(job: &str, meta: &ObjectMeta) -> Option<String> {
    const DAY: i64 = 24 * 60;
    let (name, minute) = job.rsplit_once('-')?;
    let minute: i64 = minute.parse().ok()?;
    let made = meta.creation_timestamp.as_ref()?.0.as_second() / 60;
    ((made - minute).abs() < DAY && !name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
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

    /// Objects are merged, and everything else is replaced.
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
        owner(&pod.metadata).map(|owner| (owner.kind, owner.name))
    }

    #[test]
    fn a_pod_is_its_owners() {
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
        let all = names(&pod(json!({})));
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
        let uids: Vec<String> = names(&pod(annotations))
            .into_iter()
            .map(|(uid, _)| uid)
            .collect();
        assert_eq!(uids, ["u-1", "hash"]);
    }

    /// A cluster of nothing.
    fn all_told() -> (Shared, Addresses) {
        let known = Shared::default();
        let addresses = Addresses(known.clone());
        for (told, address) in [("10.1.0.7", Some(ANOTHER)), ("203.0.113.7", None)] {
            let at = addresses.at(told.parse().expect("an address"));
            assert_eq!(at.as_deref(), address, "{told}, before anything was told");
        }
        let nothing = || HashSet::new();
        Watched::<Pod>::told(&mut known.clone(), Told::All(&nothing()));
        Watched::<Service>::told(&mut known.clone(), Told::All(&nothing()));
        assert!(!addresses.are_told());
        Watched::<Node>::told(&mut known.clone(), Told::All(&nothing()));
        addresses.wait(Duration::from_secs(60));
        assert!(addresses.are_told());
        (known, addresses)
    }

    #[test]
    fn an_address_is_of_who_has_it_now() {
        let (known, addresses) = all_told();
        let at = |text: &str| addresses.at(text.parse().expect("an address"));
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
        Pod::told(&HashSet::new(), &mut lock(&known));
        assert_eq!(at("10.1.0.7"), None);
        let over = pod(json!({ "status": { "phase": "Succeeded" } }));
        over.put(&mut lock(&known));
        assert_eq!(at("10.1.0.7"), None);
    }

    #[test]
    fn services_and_nodes_have_addresses() {
        let (known, addresses) = all_told();
        let at = |text: &str| addresses.at(text.parse().expect("an address"));
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
        Service::told(&HashSet::new(), &mut lock(&known));
        assert_eq!(at("10.96.0.9"), None);
        assert_eq!(at("10.0.0.5").as_deref(), Some("n1.node"));
    }

    proptest! {
        /// Names of any shape give no panic, and an owner's name is part of its controller's.
        #[test]
        fn any_names(name in "[a-z0-9-]{0,20}", hash in "[a-z0-9]{0,8}", kind in "ReplicaSet|Job|Node|X") {
            let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
            let pod = pod(json!({ "metadata": { "labels": { "pod-template-hash": hash },
                "ownerReferences": [{ "apiVersion": version, "kind": kind, "name": name, "uid": "o",
                    "controller": true }] } }));
            if let Some(owner) = owner(&pod.metadata) {
                prop_assert!(name.starts_with(&owner.name));
            }
        }
    }
}
