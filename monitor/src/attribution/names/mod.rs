//! Resolves the ids in cgroup paths to names, in a separate thread.
//!
//! Nothing waits for a provider: a workload that is not named yet is known by its ids, and renamed
//! when the reply arrives. A container id is never reused, so a late name is still correct.

pub mod cri;

use crate::sensor::exclude::ContainerImages;
use monitor_core::{
    catalog::secret_marks::SecretMarks,
    model::{Workload, WorkloadKind},
};
use monitor_parse::cgroup::Cgroup;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{
        PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{runtime::Runtime, sync::mpsc::UnboundedReceiver};

/// What a provider knows about a container, or about a pod if it lists no containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerNames {
    /// The runtime's id, 64 hex digits, as in the cgroup path. Empty if only the pod is known.
    pub id: String,
    /// As in cgroup paths.
    pub pod_uid: Option<String>,
    /// The pod's uid in the Kubernetes API, if the API is the source.
    pub api_uid: Option<String>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    /// Absent for a sandbox.
    pub container: Option<String>,
    pub image: Option<String>,
    /// The pod's controller.
    pub owner: Option<PodOwner>,
    pub service_account: Option<String>,
}

/// A controller of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOwner {
    pub kind: WorkloadKind,
    pub name: String,
}

/// Why a provider has no answer now.
#[derive(Debug, Error)]
#[error("{provider} failed: {reason}")]
pub struct ProviderError {
    /// The request that failed.
    pub provider: String,
    pub reason: String,
}

/// A source of names.
pub trait NameProvider: std::fmt::Debug + Send {
    /// Whether it is available on this machine now.
    fn is_here(&self) -> bool;
    /// Lists everything it knows.
    fn list(&mut self, runtime: &Runtime) -> Result<Vec<ContainerNames>, ProviderError>;
    /// Whether it knows the controllers of pods: answers of other providers are then incomplete.
    fn knows_owners(&self) -> bool {
        false
    }
}

/// The cluster objects at addresses.
pub trait ObjectDirectory: std::fmt::Debug + Send {
    /// The object's name; [`UNKNOWN_NAME`](monitor_core::model::UNKNOWN_NAME) if the address may
    /// belong to the cluster and its objects are not listed yet.
    fn object_at(&self, address: IpAddr) -> Option<String>;
    /// Waits until everything was listed, at most `most`.
    fn await_sync(&self, most: Duration);
    /// Whether all objects with addresses were listed.
    fn is_synced(&self) -> bool;
}

impl ContainerNames {
    /// The workload of a process in this container.
    fn workload(&self) -> Option<Workload> {
        let (kind, name) = match (&self.owner, &self.pod, &self.container) {
            (Some(owner), _, _) => (owner.kind, &owner.name),
            (None, Some(pod), _) => (WorkloadKind::Pod, pod),
            (None, None, Some(container)) => (WorkloadKind::Container, container),
            (None, None, None) => return None,
        };
        Some(Workload {
            kind,
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            service_account: self.service_account.clone(),
            image: self.image.clone(),
            ..Workload::host(name)
        })
    }

    /// The same without secrets in the names.
    fn masked(self, marks: &SecretMarks) -> Self {
        let mask = |name| marks.masked(name);
        Self {
            namespace: self.namespace.map(mask),
            pod: self.pod.map(mask),
            container: self.container.map(mask),
            image: self.image.map(mask),
            owner: self.owner.map(|owner| PodOwner {
                name: mask(owner.name),
                ..owner
            }),
            service_account: self.service_account.map(mask),
            ..self
        }
    }

    /// Adds what another provider knows.
    fn merge(self, other: &Self) -> Self {
        let id = if self.id.is_empty() {
            other.id.clone()
        } else {
            self.id
        };
        Self {
            id,
            pod_uid: self.pod_uid.or_else(|| other.pod_uid.clone()),
            api_uid: self.api_uid.or_else(|| other.api_uid.clone()),
            namespace: self.namespace.or_else(|| other.namespace.clone()),
            pod: self.pod.or_else(|| other.pod.clone()),
            container: self.container.or_else(|| other.container.clone()),
            image: self.image.or_else(|| other.image.clone()),
            owner: self.owner.or_else(|| other.owner.clone()),
            service_account: self
                .service_account
                .or_else(|| other.service_account.clone()),
        }
    }
}

/// The id of a container or pod in a cgroup path: the runtime's id, or the pod's uid if a process
/// is in none of its containers.
fn container_key(group: &Cgroup) -> Option<&str> {
    group.container.as_deref().or(group.pod_uid.as_deref())
}

/// The workload according to the path alone, without names, if it can be named later.
fn workload_from_path(group: &Cgroup) -> Option<Workload> {
    let mut workload = Workload::host("");
    workload.partial = true;
    if let Some(uid) = &group.pod_uid {
        workload.kind = WorkloadKind::Pod;
        workload.name = format!("pod-{uid}");
        workload.pod = Some(uid.clone());
        workload.container.clone_from(&group.container);
    } else {
        let id = group.container.as_ref()?;
        workload.kind = WorkloadKind::Container;
        workload.name = id.chars().take(12).collect();
        workload.container = Some(id.clone());
    }
    Some(workload)
}

/// A request for a name.
#[derive(Clone, Debug)]
struct NameQuery {
    /// As returned by [`container_key`].
    key: String,
    pod_uid: Option<String>,
}

/// A reply to a request with a [`container_key`].
#[derive(Debug)]
enum NameReply {
    Named {
        key: String,
        named: Box<ContainerNames>,
        /// Whether the name is complete.
        whole: bool,
    },
    /// No provider knows it yet; it is retried.
    Unnamed(String, &'static str),
    /// No longer retried, until it is requested again.
    NotNamed(String),
}

/// A workload that has another name from now on, or that will not get one soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadRename {
    pub old: Workload,
    /// Equal to `old` if no provider has a name.
    pub new: Workload,
}

/// Requests names from providers, and keeps the replies.
#[derive(Debug)]
pub struct NameResolver {
    /// Without a provider, everything keeps its ids.
    queries: Option<Sender<NameQuery>>,
    replies: UnboundedReceiver<NameReply>,
    known: HashMap<String, Workload>,
    /// Requested keys, and the workload shown until they are named.
    requested: HashMap<String, Workload>,
    /// Keys that were given up before they had a complete name.
    not_named: HashSet<String>,
    /// Workloads of pods, by uid.
    pods: HashMap<String, Workload>,
    addresses: Option<Box<dyn ObjectDirectory>>,
    images: ContainerImages,
    /// Number of workloads without a name, by reason.
    pub unnamed: BTreeMap<&'static str, u64>,
}

/// Maximum containers remembered, including removed ones. When half of it is reached, containers
/// without recent processes are evicted; beyond it no names are resolved.
const NAMES_MAX: usize = 16_384;

impl NameResolver {
    /// A resolver without providers.
    pub fn empty() -> Self {
        let (_, replies) = tokio::sync::mpsc::unbounded_channel();
        Self {
            queries: None,
            replies,
            known: HashMap::new(),
            requested: HashMap::new(),
            not_named: HashSet::new(),
            pods: HashMap::new(),
            addresses: None,
            images: ContainerImages::default(),
            unnamed: BTreeMap::new(),
        }
    }

    /// Starts a resolver; if the first provider does not know something, the next one is used.
    /// `addresses` are those of cluster objects.
    pub fn from(
        sources: Vec<Box<dyn NameProvider>>,
        addresses: Option<Box<dyn ObjectDirectory>>,
    ) -> std::io::Result<Self> {
        let (queries, received) = channel();
        let (send_reply, replies) = tokio::sync::mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || {
                let mut resolver = ResolverThread {
                    sources,
                    runtime,
                    pending: HashMap::new(),
                };
                resolver.run(&received, |answer| send_reply.send(answer).is_ok());
            })?;
        Ok(Self {
            queries: Some(queries),
            replies,
            addresses,
            ..Self::empty()
        })
    }

    /// The workload of a pod, if it was named before.
    pub fn pod_workload(&self, uid: &str) -> Option<&Workload> {
        self.pods.get(uid)
    }

    /// Images of containers, shared and kept up to date.
    pub fn images(&self) -> &ContainerImages {
        &self.images
    }

    /// The cluster object at an address.
    pub fn object_at(&self, address: IpAddr) -> Option<String> {
        self.addresses.as_ref()?.object_at(address)
    }

    /// Waits until the cluster's addresses are known, at most `most`.
    pub fn await_objects(&self, most: Duration) {
        if let Some(addresses) = &self.addresses {
            addresses.await_sync(most);
        }
    }

    /// Whether all addresses of the cluster are known; `None` without a cluster.
    pub fn objects_synced(&self) -> Option<bool> {
        Some(self.addresses.as_ref()?.is_synced())
    }

    /// Requests the name of a cgroup's container, once.
    pub fn request(&mut self, group: &Cgroup) {
        let (Some(queries), Some(key), Some(workload)) = (
            &self.queries,
            container_key(group),
            workload_from_path(group),
        ) else {
            return;
        };
        let again = self.not_named.remove(key);
        let known = self.known.contains_key(key);
        if (known || self.requested.contains_key(key)) && !again {
            return;
        }
        if self.known.len() + self.requested.len() >= NAMES_MAX {
            return;
        }
        // The thread ends only with this value.
        let _ = queries.send(NameQuery {
            key: key.to_owned(),
            pod_uid: group.pod_uid.clone(),
        });
        if !known {
            self.requested.insert(key.to_owned(), workload);
        }
    }

    /// Evicts what belongs to none of these cgroups, if much is remembered.
    pub fn retain<'a>(&mut self, groups: impl Iterator<Item = &'a Cgroup>) {
        if self.known.len() + self.requested.len() < NAMES_MAX / 2 {
            return;
        }
        let mut keys = HashSet::new();
        let mut uids = HashSet::new();
        for group in groups {
            keys.extend(container_key(group));
            uids.extend(group.pod_uid.as_deref());
        }
        self.known.retain(|key, _| keys.contains(key.as_str()));
        self.requested.retain(|key, _| keys.contains(key.as_str()));
        self.not_named.retain(|key| keys.contains(key.as_str()));
        self.pods.retain(|uid, _| uids.contains(uid.as_str()));
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        images.retain(|key, _| keys.contains(key.as_str()));
    }

    /// The workload of a cgroup, by name if it is known; `None` if it belongs to the host.
    pub fn workload(&self, group: &Cgroup) -> Option<Workload> {
        let key = container_key(group)?;
        let known = self.known.get(key).or_else(|| self.requested.get(key));
        known.cloned().or_else(|| workload_from_path(group))
    }

    /// The renames that resulted from replies since the last call, without secrets in the names.
    pub fn take_replies(&mut self, marks: &SecretMarks) -> Vec<WorkloadRename> {
        let mut renamed = Vec::new();
        while let Ok(answer) = self.replies.try_recv() {
            match answer {
                NameReply::Named { key, named, whole } => {
                    let named = named.masked(marks);
                    let Some(mut new) = named.workload() else {
                        continue;
                    };
                    new.partial = !whole;
                    if let Some(image) = &new.image {
                        let mut images =
                            self.images.write().unwrap_or_else(PoisonError::into_inner);
                        images.insert(key.clone(), image.clone());
                    }
                    if let Some(uid) = named.pod_uid {
                        let container = None;
                        let pod = Workload {
                            container,
                            ..new.clone()
                        };
                        self.pods.insert(uid, pod);
                    }
                    // A workload that has a name may get a better one.
                    let old = self.requested.remove(&key);
                    if let Some(old) = old.or_else(|| self.known.get(&key).cloned())
                        && old != new
                    {
                        self.known.insert(key, new.clone());
                        renamed.push(WorkloadRename { old, new });
                    }
                }
                NameReply::NotNamed(key) => {
                    self.not_named.insert(key);
                }
                NameReply::Unnamed(key, reason) => {
                    *self.unnamed.entry(reason).or_default() += 1;
                    if let Some(called) = self.requested.get_mut(&key) {
                        let old = called.clone();
                        // Without a provider, the ids are its complete name.
                        called.partial &= reason != NO_SOURCE;
                        renamed.push(WorkloadRename {
                            old,
                            new: called.clone(),
                        });
                    }
                }
            }
        }
        renamed
    }
}

/// The thread that queries providers.
#[derive(Debug)]
struct ResolverThread {
    sources: Vec<Box<dyn NameProvider>>,
    runtime: Runtime,
    pending: HashMap<String, PendingName>,
}

/// Something without a complete name.
#[derive(Debug)]
struct PendingName {
    pod_uid: Option<String>,
    since: Instant,
    next: Instant,
    /// Whether it was reported as unnamed.
    unnamed: bool,
    /// The incomplete name that was reported.
    part: Option<ContainerNames>,
}

/// The reason if no provider is available.
const NO_SOURCE: &str = "no-source";
/// First and maximum delay between queries for the same key.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// An incomplete name is reported after this time.
const PARTIAL_AFTER: Duration = Duration::from_secs(2);
/// Without any name it is reported as unnamed after this time.
const UNNAMED_AFTER: Duration = Duration::from_secs(3);
/// It is given up after this time.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// What the providers listed in one round.
#[derive(Debug)]
struct ProviderListing {
    lists: Vec<Vec<ContainerNames>>,
    /// Why a name may be missing.
    reason: &'static str,
    /// Whether a provider knows owners, now or later.
    owners: bool,
}

impl ProviderListing {
    /// Everything listed about a key, and whether it is complete.
    fn lookup(&self, key: &str, pod_uid: Option<&str>) -> Option<(ContainerNames, bool)> {
        let exact = |list: &'_ [ContainerNames]| list.iter().position(|named| named.id == key);
        let uid = pod_uid.map(str::to_owned).or_else(|| {
            let mut lists = self.lists.iter();
            lists.find_map(|list| list[exact(list)?].pod_uid.clone())
        });
        let mut all: Option<ContainerNames> = None;
        let mut found = pod_uid == Some(key);
        for list in &self.lists {
            let by_id = exact(list).map(|place| &list[place]);
            found |= by_id.is_some();
            let by_uid = || {
                list.iter()
                    .find(|named| named.container.is_none() && named.pod_uid == uid)
            };
            let found_names = by_id.or_else(|| uid.as_ref().and_then(|_| by_uid()));
            if let Some(found_names) = found_names {
                all = Some(match all {
                    Some(before) => before.merge(found_names),
                    None => found_names.clone(),
                });
            }
        }
        let all = all.filter(|named| named.workload().is_some())?;
        let whole = found && (!self.owners || all.api_uid.is_some());
        Some((all, whole))
    }
}

impl ResolverThread {
    fn run(
        &mut self,
        received: &Receiver<NameQuery>,
        mut send_reply: impl FnMut(NameReply) -> bool,
    ) {
        loop {
            let next = self.pending.values().map(|pending| pending.next).min();
            let wait = next.map_or(RETRY_MAX, |next| {
                next.saturating_duration_since(Instant::now())
            });
            let mut new = |question: NameQuery| {
                let now = Instant::now();
                self.pending.entry(question.key).or_insert(PendingName {
                    pod_uid: question.pod_uid,
                    since: now,
                    next: now,
                    unnamed: false,
                    part: None,
                });
            };
            match received.recv_timeout(wait) {
                Ok(question) => {
                    new(question);
                    received.try_iter().for_each(new);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for answer in self.query_due() {
                if !send_reply(answer) {
                    return;
                }
            }
        }
    }

    /// Queries what is due.
    fn query_due(&mut self) -> Vec<NameReply> {
        let now = Instant::now();
        let mut replies = Vec::new();
        if !self.pending.values().any(|pending| pending.next <= now) {
            return replies;
        }
        let round = self.list_all();
        self.pending.retain(|key, pending| {
            if pending.next > now {
                return true;
            }
            let age = now.duration_since(pending.since);
            pending.next = Instant::now() + (age / 2).clamp(FIRST_RETRY, RETRY_MAX);
            match round.lookup(key, pending.pod_uid.as_deref()) {
                Some((named, true)) => {
                    replies.push(NameReply::Named {
                        key: key.clone(),
                        named: Box::new(named),
                        whole: true,
                    });
                    return false;
                }
                Some((named, false)) => {
                    if age > PARTIAL_AFTER && pending.part.as_ref() != Some(&named) {
                        pending.part = Some(named.clone());
                        replies.push(NameReply::Named {
                            key: key.clone(),
                            named: Box::new(named),
                            whole: false,
                        });
                    }
                }
                None => {
                    if !pending.unnamed && (age > UNNAMED_AFTER || round.reason == NO_SOURCE) {
                        pending.unnamed = true;
                        replies.push(NameReply::Unnamed(key.clone(), round.reason));
                    }
                }
            }
            if age < GIVE_UP_AFTER {
                return true;
            }
            replies.push(NameReply::NotNamed(key.clone()));
            false
        });
        replies
    }

    fn list_all(&mut self) -> ProviderListing {
        let mut round = ProviderListing {
            lists: Vec::new(),
            reason: NO_SOURCE,
            owners: false,
        };
        for source in &mut self.sources {
            if !source.is_here() {
                continue;
            }
            round.owners |= source.knows_owners();
            match source.list(&self.runtime) {
                Ok(list) => {
                    if round.reason == NO_SOURCE {
                        round.reason = "unknown";
                    }
                    round.lists.push(list);
                }
                Err(error) => {
                    round.reason = "source-down";
                    tracing::debug!(%error, "names can be resolved again");
                }
            }
        }
        round
    }
}

#[cfg(test)]
mod tests;
