//! Names from the Kubernetes API: the pods of this node with their owners, and the objects at
//! addresses.
//!
//! Three watches (pods of this node, services, nodes) maintain an index in a separate thread. Only
//! names are kept. A deleted object keeps its names for a while, because its uid is never reused.
//! Its address is released at once.

use super::{WatchEvent, WatchHandler};
use crate::attribution::names::{
    ContainerNames, NameProvider, ObjectDirectory, PodOwner, ProviderError,
};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Node, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use monitor_core::model::{UNKNOWN_NAME, WorkloadKind};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// How long the names of a deleted pod are kept.
const DELETED_POD_TTL: Duration = Duration::from_secs(3600);

/// Names of pods and containers, from the API.
#[derive(Debug)]
pub struct KubernetesNames {
    known: SharedNameIndex,
}

/// The index, shared by the watches and its readers.
#[derive(Clone, Debug, Default)]
pub struct SharedNameIndex(Arc<NameIndex>);

#[derive(Debug, Default)]
struct NameIndex {
    known: Mutex<ClusterObjects>,
    /// Signalled when all objects of a kind were listed.
    all: Condvar,
}

/// The objects at addresses.
#[derive(Clone, Debug)]
pub struct AddressIndex(SharedNameIndex);

impl ObjectDirectory for AddressIndex {
    /// `NAME.NAMESPACE.svc`, `OWNER.NAMESPACE.pod` or `NAME.node`.
    fn object_at(&self, address: IpAddr) -> Option<String> {
        let known = lock(&self.0);
        match known.addresses.get(&address).map(Vec::as_slice) {
            Some([(_, name)]) => Some(name.clone()),
            // Two pods share an address only while one of them is being deleted: then it belongs to
            // neither.
            Some(_) => None,
            None => (!known.is_synced() && may_be_inside(address)).then(|| UNKNOWN_NAME.to_owned()),
        }
    }

    fn await_sync(&self, most: Duration) {
        let known = lock(&self.0);
        let all = &self.0.0.all;
        drop(all.wait_timeout_while(known, most, |known| !known.is_synced()));
    }

    fn is_synced(&self) -> bool {
        lock(&self.0).is_synced()
    }
}

/// Whether a cluster may have assigned an address: it does not assign public ones.
fn may_be_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // 100.64/10 is used by providers behind their own NAT.
            address.is_private() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// The objects reported by the watches.
#[derive(Debug, Default)]
pub struct ClusterObjects {
    /// By uid.
    pods: HashMap<String, Vec<ContainerNames>>,
    /// Deleted pods, and when they were deleted.
    gone: HashMap<String, Instant>,
    /// By address: the object's uid and name.
    addresses: HashMap<IpAddr, Vec<(String, String)>>,
    /// The addresses of each object.
    has: HashMap<String, Vec<IpAddr>>,
    /// Whether all pods were listed.
    synced: bool,
    /// Whether all services and all nodes were listed.
    services: bool,
    nodes: bool,
    /// Why they are missing or may be outdated.
    error: Option<String>,
}

fn lock(shared: &SharedNameIndex) -> MutexGuard<'_, ClusterObjects> {
    let known = &shared.0.known;
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KubernetesNames {
    /// Creates the readers of an index.
    pub fn new(known: &SharedNameIndex) -> (Self, AddressIndex) {
        let this = Self {
            known: known.clone(),
        };
        (this, AddressIndex(known.clone()))
    }
}

impl NameProvider for KubernetesNames {
    fn is_here(&self) -> bool {
        true
    }

    fn list(&mut self, _: &Runtime) -> Result<Vec<ContainerNames>, ProviderError> {
        let known = lock(&self.known);
        if !known.synced {
            return Err(ProviderError {
                provider: "the Kubernetes API".to_owned(),
                reason: known
                    .error
                    .clone()
                    .unwrap_or_else(|| "pods are not listed yet".to_owned()),
            });
        }
        Ok(known.pods.values().flatten().cloned().collect())
    }

    fn knows_owners(&self) -> bool {
        true
    }
}

/// Events of the watches of pods, services and nodes update the index.
impl<K: NamedObject> WatchHandler<K> for SharedNameIndex {
    fn deliver(&mut self, event: WatchEvent<'_, K>) {
        let mut known = lock(self);
        match event {
            WatchEvent::There(object) => object.put(&mut known),
            WatchEvent::Gone(object) => object.remove(&mut known),
            WatchEvent::All(uids) => {
                K::synced(uids, &mut known);
                K::set_error(None, &mut known);
                self.0.all.notify_all();
            }
            WatchEvent::Down(reason) => K::set_error(Some(reason), &mut known),
        }
    }
}

/// A kind of object that has names.
pub trait NamedObject {
    /// It exists, or has changed.
    fn put(&self, known: &mut ClusterObjects);
    /// It was deleted.
    fn remove(&self, known: &mut ClusterObjects);
    /// All existing objects were listed; any other was deleted.
    fn synced(uids: &HashSet<String>, known: &mut ClusterObjects);
    /// The watch failed, or recovered.
    fn set_error(_: Option<String>, _: &mut ClusterObjects) {}
}

impl NamedObject for Pod {
    fn put(&self, known: &mut ClusterObjects) {
        let Some(uid) = self.metadata.uid.clone() else {
            return;
        };
        known.set_addresses(&uid, addresses_of(self));
        for (uid, named) in container_names(self) {
            known.gone.remove(&uid);
            known.pods.insert(uid, named);
        }
    }

    fn remove(&self, known: &mut ClusterObjects) {
        let now = Instant::now();
        known.evict_deleted(now);
        if let Some(uid) = &self.metadata.uid {
            known.set_addresses(uid, Vec::new());
        }
        for (uid, _) in container_names(self) {
            known.gone.insert(uid, now);
        }
    }

    fn synced(uids: &HashSet<String>, known: &mut ClusterObjects) {
        let now = Instant::now();
        known.evict_deleted(now);
        let missing: Vec<String> = known
            .pods
            .iter()
            // A static pod has two uids; the API's is in its listing.
            .filter(|(uid, named)| {
                let api = named.iter().find_map(|named| named.api_uid.as_ref());
                !uids.contains(api.unwrap_or(uid))
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in missing {
            known.set_addresses(&uid, Vec::new());
            known.gone.entry(uid).or_insert(now);
        }
    }

    fn set_error(error: Option<String>, known: &mut ClusterObjects) {
        known.synced |= error.is_none();
        known.error = error;
    }
}

impl NamedObject for Service {
    fn put(&self, known: &mut ClusterObjects) {
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
        known.set_addresses(uid, named_addresses(addresses, &name));
    }

    fn remove(&self, known: &mut ClusterObjects) {
        if let Some(uid) = &self.metadata.uid {
            known.set_addresses(uid, Vec::new());
        }
    }

    fn synced(uids: &HashSet<String>, known: &mut ClusterObjects) {
        known.retain(".svc", uids);
        known.services = true;
    }
}

impl NamedObject for Node {
    fn put(&self, known: &mut ClusterObjects) {
        let (Some(uid), Some(name)) = (&self.metadata.uid, &self.metadata.name) else {
            return;
        };
        let addresses = self
            .status
            .iter()
            .filter_map(|status| status.addresses.as_ref())
            .flatten()
            .map(|address| &address.address);
        known.set_addresses(uid, named_addresses(addresses, &format!("{name}.node")));
    }

    fn remove(&self, known: &mut ClusterObjects) {
        if let Some(uid) = &self.metadata.uid {
            known.set_addresses(uid, Vec::new());
        }
    }

    fn synced(uids: &HashSet<String>, known: &mut ClusterObjects) {
        known.retain(".node", uids);
        known.nodes = true;
    }
}

/// Parses addresses, and pairs each with the name of their object.
fn named_addresses<'a>(
    texts: impl Iterator<Item = &'a String>,
    name: &str,
) -> Vec<(IpAddr, String)> {
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let named = addresses.into_iter();
    named.map(|address| (address, name.to_owned())).collect()
}

impl ClusterObjects {
    fn is_synced(&self) -> bool {
        self.synced && self.services && self.nodes
    }

    /// Replaces the addresses of an object.
    fn set_addresses(&mut self, uid: &str, addresses: Vec<(IpAddr, String)>) {
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

    /// Of the objects whose name has this suffix, keeps only the listed ones.
    fn retain(&mut self, suffix: &str, uids: &HashSet<String>) {
        let gone: Vec<String> = self
            .addresses
            .values()
            .flatten()
            .filter(|(uid, name)| name.ends_with(suffix) && !uids.contains(uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.set_addresses(&uid, Vec::new());
        }
    }

    /// Evicts objects that were deleted long ago.
    fn evict_deleted(&mut self, now: Instant) {
        let Self { pods, gone, .. } = self;
        gone.retain(|uid, since| {
            let stays = now.duration_since(*since) < DELETED_POD_TTL;
            if !stays {
                pods.remove(uid);
            }
            stays
        });
    }
}

/// The addresses of a running pod, with its name; a pod with host networking has none of its own.
fn addresses_of(pod: &Pod) -> Vec<(IpAddr, String)> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else {
        return Vec::new();
    };
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || over {
        return Vec::new();
    }
    let name = match pod_owner(&pod.metadata) {
        Some(owner) => owner.name,
        None => pod.metadata.name.clone().unwrap_or_default(),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let many = status.pod_ips.iter().flatten().map(|address| &address.ip);
    named_addresses(
        status.pod_ip.iter().chain(many),
        &format!("{name}.{namespace}.pod"),
    )
}

/// The kubelet's uid of a static pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// The names of a pod and its containers, by each uid that a cgroup path may contain.
fn container_names(pod: &Pod) -> Vec<(String, Vec<ContainerNames>)> {
    let meta = &pod.metadata;
    let Some(api_uid) = &meta.uid else {
        return Vec::new();
    };
    let mut uids = vec![api_uid.clone()];
    let annotated = meta.annotations.as_ref();
    uids.extend(annotated.and_then(|all| all.get(STATIC_UID)).cloned());
    let owner = pod_owner(meta);
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .filter(|name| !name.is_empty());
    uids.into_iter()
        .map(|uid| {
            let whole = ContainerNames {
                pod_uid: Some(uid.clone()),
                api_uid: Some(api_uid.clone()),
                namespace: meta.namespace.clone(),
                pod: meta.name.clone(),
                owner: owner.clone(),
                service_account: account.clone(),
                ..ContainerNames::default()
            };
            let mut named = vec![whole.clone()];
            for status in statuses(pod) {
                named.extend(container_ids(status).map(|id| ContainerNames {
                    id,
                    container: Some(status.name.clone()),
                    image: container_image(pod, status),
                    ..whole.clone()
                }));
            }
            (uid, named)
        })
        .collect()
}

/// The image of a container: as named by the kubelet, or as requested if the kubelet gives only a
/// digest.
fn container_image(pod: &Pod, status: &ContainerStatus) -> Option<String> {
    let by_kubelet =
        Some(&status.image).filter(|image| !image.is_empty() && !image.starts_with("sha256:"));
    let requested = || {
        let spec = pod.spec.as_ref()?;
        let init = spec.init_containers.iter().flatten();
        let mut all = spec.containers.iter().chain(init);
        all.find(|container| container.name == status.name)?
            .image
            .as_ref()
    };
    by_kubelet.or_else(requested).cloned()
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

/// The ids of a container, current and before its last restart, without the runtime's name.
fn container_ids(status: &ContainerStatus) -> impl Iterator<Item = String> {
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

/// The controller of a pod: for a ReplicaSet its Deployment, for a Job its CronJob. Both are
/// derived from the names that controllers generate, so no further query is needed.
fn pod_owner(meta: &ObjectMeta) -> Option<PodOwner> {
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
        // A static pod belongs to its node.
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
        ("batch", "Job") => match cron_job_name(name, meta) {
            Some(name) => (WorkloadKind::CronJob, name),
            None => (WorkloadKind::Job, name.clone()),
        },
        _ => (WorkloadKind::Owner, name.clone()),
    };
    Some(PodOwner { kind, name })
}

/// The CronJob of a Job: the Job's name ends with the minute for which it was scheduled, which is
/// close to the pod's creation time.
fn cron_job_name(job: &str, meta: &ObjectMeta) -> Option<String> {
    const DAY: i64 = 24 * 60;
    let (name, minute) = job.rsplit_once('-')?;
    let minute: i64 = minute.parse().ok()?;
    let made = meta.creation_timestamp.as_ref()?.0.as_second() / 60;
    ((made - minute).abs() < DAY && !name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
