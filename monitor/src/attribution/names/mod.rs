//! Names for what a cgroup path only has ids for, asked for in a thread of its own.
//!
//! Nobody waits for a source: a workload that is not named yet has its ids, and is renamed when the
//! answer comes. An id is a container's for good, so a name can come late and still be right.

pub mod cri;

use super::cgroup::Group;
use crate::{
    cluster::names::Addresses,
    model::{Workload, WorkloadKind},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{runtime::Runtime, sync::mpsc::UnboundedReceiver};

/// What a source knows of a container, or of a pod where it names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The runtime's id, 64 hex digits: that of the cgroup. Empty where only the pod is known.
    pub id: String,
    /// As in paths.
    pub pod_uid: Option<String>,
    /// The pod's uid in the Kubernetes API, which said all this.
    pub api_uid: Option<String>,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    /// Nothing for a sandbox.
    pub container: Option<String>,
    pub image: Option<String>,
    /// Who controls the pod.
    pub owner: Option<Owner>,
    pub service_account: Option<String>,
}

/// A controller of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub kind: WorkloadKind,
    pub name: String,
}

/// Why a source has no answer now.
#[derive(Debug, Error)]
#[error("{asked} does not answer: {reason}")]
pub struct SourceError {
    /// What was asked.
    pub asked: String,
    pub reason: String,
}

/// Something that knows names.
pub trait Source: std::fmt::Debug + Send {
    /// Whether it is to be had on this machine now.
    fn is_here(&self) -> bool;
    /// Everything that it knows.
    fn list(&mut self, runtime: &Runtime) -> Result<Vec<Named>, SourceError>;
    /// Whether it knows who controls a pod: what others say is then not all.
    fn knows_owners(&self) -> bool {
        false
    }
}

impl Named {
    /// The workload of a process in it.
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
            name: name.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            service_account: self.service_account.clone(),
            unit: None,
            image: self.image.clone(),
            partial: false,
        })
    }

    /// The same, with what another source knows besides.
    fn and(self, other: &Self) -> Self {
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

/// What a container or a pod is known by in a path: its runtime's id, or the pod's uid where a process
/// is in none of its containers.
fn key(group: &Group) -> Option<&str> {
    group.container.as_deref().or(group.pod_uid.as_deref())
}

/// The workload that a path tells, without any name, where one may come.
fn by_path(group: &Group) -> Option<Workload> {
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

/// Something whose name is asked for.
#[derive(Clone, Debug)]
struct Question {
    /// As [`key`] gives it.
    key: String,
    pod_uid: Option<String>,
}

/// An answer to a question that was asked by [`key`].
#[derive(Debug)]
enum Answer {
    Named {
        key: String,
        named: Box<Named>,
        /// Nothing is missing.
        whole: bool,
    },
    /// Nobody knows it; it is asked for on.
    Unnamed(String, &'static str),
    /// It is not asked for any more, until somebody wants it again.
    GivenUp(String),
}

/// A workload that is called something else from now on, or is not going to be named soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    pub old: Workload,
    /// The same as `old` where nobody has a name.
    pub new: Workload,
}

/// Images by the id of the container, shared with those who select programs by their image.
pub type Images = Arc<RwLock<HashMap<String, String>>>;

/// Who is asked, and what was answered.
#[derive(Debug)]
pub struct Names {
    /// Where there is nobody to ask, everything keeps its ids.
    ask: Option<Sender<Question>>,
    answers: UnboundedReceiver<Answer>,
    known: HashMap<String, Workload>,
    /// What was asked for, and how it is called until it is named.
    asked: HashMap<String, Workload>,
    /// What was given up before it had its whole name.
    given_up: HashSet<String>,
    /// Workloads of pods, by uid.
    pods: HashMap<String, Workload>,
    addresses: Option<Addresses>,
    images: Images,
    /// Workloads without a name, by reason.
    pub unnamed: BTreeMap<&'static str, u64>,
}

/// Containers remembered, the dead among them. From half of it on, those are forgotten that no process was in
/// lately; what is beyond it has no name.
const REMEMBERED: usize = 16_384;

impl Names {
    /// Nobody is asked.
    pub fn none() -> Self {
        let (_, answers) = tokio::sync::mpsc::unbounded_channel();
        Self {
            ask: None,
            answers,
            known: HashMap::new(),
            asked: HashMap::new(),
            given_up: HashSet::new(),
            pods: HashMap::new(),
            addresses: None,
            images: Images::default(),
            unnamed: BTreeMap::new(),
        }
    }

    /// Asks sources: what the first does not know of something, the next may. `addresses` are those
    /// of objects in a cluster.
    pub fn from(
        sources: Vec<Box<dyn Source>>,
        addresses: Option<Addresses>,
    ) -> std::io::Result<Self> {
        let (ask, asked) = channel();
        let (tell, answers) = tokio::sync::mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || {
                let mut asker = Asker {
                    sources,
                    runtime,
                    pending: HashMap::new(),
                };
                asker.run(&asked, |answer| tell.send(answer).is_ok());
            })?;
        Ok(Self {
            ask: Some(ask),
            answers,
            addresses,
            ..Self::none()
        })
    }

    /// The workload of a pod that was named before.
    pub fn of_pod(&self, uid: &str) -> Option<&Workload> {
        self.pods.get(uid)
    }

    /// What is known of images, now and later.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// What a cluster has at an address.
    pub fn object_at(&self, address: IpAddr) -> Option<String> {
        self.addresses.as_ref()?.at(address)
    }

    /// Waits until a cluster has told what is at which address, no longer than `most`.
    pub fn await_objects(&self, most: Duration) {
        if let Some(addresses) = &self.addresses {
            addresses.wait(most);
        }
    }

    /// Whether there is a cluster to tell addresses, and it has told them all.
    pub fn objects_are_told(&self) -> Option<bool> {
        Some(self.addresses.as_ref()?.are_told())
    }

    /// Has a group's name asked for, once.
    pub fn want(&mut self, group: &Group) {
        let (Some(ask), Some(key), Some(workload)) = (&self.ask, key(group), by_path(group)) else {
            return;
        };
        let again = self.given_up.remove(key);
        let known = self.known.contains_key(key);
        if (known || self.asked.contains_key(key)) && !again {
            return;
        }
        if self.known.len() + self.asked.len() >= REMEMBERED {
            return;
        }
        // The thread ends only with this value.
        let _ = ask.send(Question {
            key: key.to_owned(),
            pod_uid: group.pod_uid.clone(),
        });
        if !known {
            self.asked.insert(key.to_owned(), workload);
        }
    }

    /// Forgets what is of none of these groups, where much is remembered.
    pub fn keep<'a>(&mut self, groups: impl Iterator<Item = &'a Group>) {
        if self.known.len() + self.asked.len() < REMEMBERED / 2 {
            return;
        }
        let mut keys = HashSet::new();
        let mut uids = HashSet::new();
        for group in groups {
            keys.extend(key(group));
            uids.extend(group.pod_uid.as_deref());
        }
        self.known.retain(|key, _| keys.contains(key.as_str()));
        self.asked.retain(|key, _| keys.contains(key.as_str()));
        self.given_up.retain(|key| keys.contains(key.as_str()));
        self.pods.retain(|uid, _| uids.contains(uid.as_str()));
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        images.retain(|key, _| keys.contains(key.as_str()));
    }

    /// The workload of a group, by name where it has one by now; `None` where it is of the host.
    pub fn workload(&self, group: &Group) -> Option<Workload> {
        let key = key(group)?;
        let known = self.known.get(key).or_else(|| self.asked.get(key));
        known.cloned().or_else(|| by_path(group))
    }

    /// What was answered since the last call.
    pub fn answered(&mut self) -> Vec<Renamed> {
        let mut renamed = Vec::new();
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Answer::Named { key, named, whole } => {
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
                    // What was named once may get a better name.
                    let old = self.asked.remove(&key);
                    if let Some(old) = old.or_else(|| self.known.get(&key).cloned())
                        && old != new
                    {
                        self.known.insert(key, new.clone());
                        renamed.push(Renamed { old, new });
                    }
                }
                Answer::GivenUp(key) => {
                    self.given_up.insert(key);
                }
                Answer::Unnamed(key, reason) => {
                    *self.unnamed.entry(reason).or_default() += 1;
                    if let Some(called) = self.asked.get_mut(&key) {
                        let old = called.clone();
                        // With nobody to ask, its ids are all of its name.
                        called.partial &= reason != NO_SOURCE;
                        renamed.push(Renamed {
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

/// The thread that asks.
#[derive(Debug)]
struct Asker {
    sources: Vec<Box<dyn Source>>,
    runtime: Runtime,
    pending: HashMap<String, Pending>,
}

/// Something that has no name yet, or not all of it.
#[derive(Debug)]
struct Pending {
    pod_uid: Option<String>,
    since: Instant,
    next: Instant,
    /// It was said that nobody knows it.
    unnamed: bool,
    /// The part of its name that was said.
    part: Option<Named>,
}

/// Why there is no name where nobody can be asked.
const NO_SOURCE: &str = "no-source";
/// Between two questions for the same, at first, and at most.
const FIRST: Duration = Duration::from_millis(20);
const MOST: Duration = Duration::from_secs(10);
/// A part of a name is told after this.
const IN_PART: Duration = Duration::from_secs(2);
/// What nobody knows after this is said to have no name.
const SOON: Duration = Duration::from_secs(3);
/// And after this is not asked for any more.
const LATE: Duration = Duration::from_secs(600);

/// What the sources have said in one round.
#[derive(Debug)]
struct Round {
    lists: Vec<Vec<Named>>,
    /// Why there may be no name.
    reason: &'static str,
    /// Somebody here knows owners, now or later.
    owners: bool,
}

impl Round {
    /// All that is said of something, and whether nothing is missing.
    fn name(&self, key: &str, pod_uid: Option<&str>) -> Option<(Named, bool)> {
        let exact = |list: &'_ [Named]| list.iter().position(|named| named.id == key);
        let uid = pod_uid.map(str::to_owned).or_else(|| {
            let mut lists = self.lists.iter();
            lists.find_map(|list| list[exact(list)?].pod_uid.clone())
        });
        let mut all: Option<Named> = None;
        let mut found = pod_uid == Some(key);
        for list in &self.lists {
            let by_id = exact(list).map(|place| &list[place]);
            found |= by_id.is_some();
            let by_uid = || {
                list.iter()
                    .find(|named| named.container.is_none() && named.pod_uid == uid)
            };
            let said = by_id.or_else(|| uid.as_ref().and_then(|_| by_uid()));
            if let Some(said) = said {
                all = Some(match all {
                    Some(before) => before.and(said),
                    None => said.clone(),
                });
            }
        }
        let all = all.filter(|named| named.workload().is_some())?;
        let whole = found && (!self.owners || all.api_uid.is_some());
        Some((all, whole))
    }
}

impl Asker {
    fn run(&mut self, asked: &Receiver<Question>, mut tell: impl FnMut(Answer) -> bool) {
        loop {
            let next = self.pending.values().map(|pending| pending.next).min();
            let wait = next.map_or(MOST, |next| next.saturating_duration_since(Instant::now()));
            let mut new = |question: Question| {
                let now = Instant::now();
                self.pending.entry(question.key).or_insert(Pending {
                    pod_uid: question.pod_uid,
                    since: now,
                    next: now,
                    unnamed: false,
                    part: None,
                });
            };
            match asked.recv_timeout(wait) {
                Ok(question) => {
                    new(question);
                    asked.try_iter().for_each(new);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for answer in self.ask() {
                if !tell(answer) {
                    return;
                }
            }
        }
    }

    /// Asks for what is due.
    fn ask(&mut self) -> Vec<Answer> {
        let now = Instant::now();
        let mut answers = Vec::new();
        if !self.pending.values().any(|pending| pending.next <= now) {
            return answers;
        }
        let round = self.round();
        self.pending.retain(|key, pending| {
            if pending.next > now {
                return true;
            }
            let age = now.duration_since(pending.since);
            pending.next = Instant::now() + (age / 2).clamp(FIRST, MOST);
            match round.name(key, pending.pod_uid.as_deref()) {
                Some((named, true)) => {
                    answers.push(Answer::Named {
                        key: key.clone(),
                        named: Box::new(named),
                        whole: true,
                    });
                    return false;
                }
                Some((named, false)) => {
                    if age > IN_PART && pending.part.as_ref() != Some(&named) {
                        pending.part = Some(named.clone());
                        answers.push(Answer::Named {
                            key: key.clone(),
                            named: Box::new(named),
                            whole: false,
                        });
                    }
                }
                None => {
                    if !pending.unnamed && (age > SOON || round.reason == NO_SOURCE) {
                        pending.unnamed = true;
                        answers.push(Answer::Unnamed(key.clone(), round.reason));
                    }
                }
            }
            if age < LATE {
                return true;
            }
            answers.push(Answer::GivenUp(key.clone()));
            false
        });
        answers
    }

    fn round(&mut self) -> Round {
        let mut round = Round {
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
                    tracing::debug!(%error, "names are asked for again");
                }
            }
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::cgroup::parse;
    use std::sync::{Arc, Mutex};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "1b2c3d4e-0001-4002-8003-1234567890ab";

    type Says = Option<Result<Vec<Named>, String>>;

    /// A source that is told what to say.
    #[derive(Clone, Debug, Default)]
    struct Said(Arc<Mutex<Says>>);

    impl Said {
        fn say(&self, what: Result<Vec<Named>, String>) {
            *self.0.lock().expect("nobody panicked") = Some(what);
        }
    }

    impl Source for Said {
        fn is_here(&self) -> bool {
            self.0.lock().expect("nobody panicked").is_some()
        }

        fn list(&mut self, _: &Runtime) -> Result<Vec<Named>, SourceError> {
            let said = self.0.lock().expect("nobody panicked").clone();
            said.unwrap_or_else(|| Ok(Vec::new()))
                .map_err(|reason| SourceError {
                    asked: "said".into(),
                    reason,
                })
        }
    }

    fn container() -> Group {
        parse(&format!("/kubepods/burstable/pod{UID}/{ID}"))
    }

    fn named() -> Named {
        Named {
            id: ID.into(),
            pod_uid: Some(UID.into()),
            namespace: Some("payments".into()),
            pod: Some("api-0".into()),
            container: Some("api".into()),
            ..Named::default()
        }
    }

    /// What is answered next.
    fn next(names: &mut Names) -> Renamed {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(renamed) = names.answered().pop() {
                return renamed;
            }
            assert!(Instant::now() < end, "nothing was answered");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_has_no_name_yet_is_named_when_the_answer_comes() {
        let said = Said::default();
        let mut names = Names::from(vec![Box::new(said.clone())], None).expect("a thread");
        let group = container();
        names.want(&group);
        let unnamed = names.workload(&group).expect("it has its ids");
        assert_eq!(unnamed.name, format!("pod-{UID}"));
        // Nobody is there to be asked.
        let renamed = next(&mut names);
        assert_eq!(renamed.old, unnamed);
        assert!(unnamed.partial && !renamed.new.partial);
        let unnamed = renamed.new;
        assert_eq!(names.workload(&group).as_ref(), Some(&unnamed));
        assert_eq!(names.unnamed.get(NO_SOURCE), Some(&1));
        said.say(Err("not now".into()));
        said.say(Ok(vec![named()]));
        let renamed = next(&mut names);
        assert_eq!(renamed.old, unnamed);
        assert_eq!(renamed.new.key(), "payments/api-0");
        assert_eq!(renamed.new.container.as_deref(), Some("api"));
        assert_eq!(names.workload(&group), Some(renamed.new));
    }

    #[test]
    fn no_name_is_better_than_anothers() {
        let said = Said::default();
        said.say(Ok(vec![Named {
            id: ID.replace('0', "1"),
            ..named()
        }]));
        let mut names = Names::from(vec![Box::new(said)], None).expect("a thread");
        let group = container();
        names.want(&group);
        let renamed = next(&mut names);
        assert_eq!(renamed.old, renamed.new);
        assert_eq!(names.unnamed.get("unknown"), Some(&1));
    }

    /// A source that knows owners, and is told what to say.
    #[derive(Debug)]
    struct Api(Said);

    impl Source for Api {
        fn is_here(&self) -> bool {
            true
        }

        fn list(&mut self, runtime: &Runtime) -> Result<Vec<Named>, SourceError> {
            self.0.list(runtime)
        }

        fn knows_owners(&self) -> bool {
            true
        }
    }

    #[test]
    fn what_one_source_does_not_know_the_next_may() {
        let (api, runtime) = (Said::default(), Said::default());
        runtime.say(Ok(vec![named()]));
        let sources: Vec<Box<dyn Source>> = vec![Box::new(Api(api.clone())), Box::new(runtime)];
        let mut names = Names::from(sources, None).expect("a thread");
        let group = container();
        names.want(&group);
        let renamed = next(&mut names);
        assert_eq!(renamed.new.key(), "payments/api-0", "the owner is late");
        api.say(Ok(vec![Named {
            id: String::new(),
            api_uid: Some(UID.into()),
            container: None,
            owner: Some(Owner {
                kind: WorkloadKind::StatefulSet,
                name: "api".into(),
            }),
            service_account: Some("payer".into()),
            ..named()
        }]));
        let better = next(&mut names);
        assert_eq!(better.old, renamed.new);
        assert_eq!(better.new.key(), "payments/api");
        assert_eq!(better.new.kind, WorkloadKind::StatefulSet);
        assert_eq!(better.new.container.as_deref(), Some("api"));
        assert_eq!(better.new.service_account.as_deref(), Some("payer"));
        assert_eq!(names.workload(&group), Some(better.new));
    }

    #[test]
    fn what_is_of_the_host_is_not_asked_for() {
        let mut names = Names::from(vec![], None).expect("a thread");
        let group = parse("/system.slice/nginx.service");
        names.want(&group);
        assert_eq!(names.workload(&group), None);
        assert!(names.asked.is_empty());
    }
}
