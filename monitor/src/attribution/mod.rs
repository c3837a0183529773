//! Attributes processes to workloads: lineage, executable, user, cgroup.
//!
//! The process table is filled by the process probes, and from `/proc` at start and whenever a
//! record names an unknown process. Entries of exited processes are kept for a while, because what
//! they did is still being attributed.

mod binary;
pub mod cgroup;
mod context;
mod description;
mod downloads;
mod groups;
pub mod names;
mod peer;
mod processes;

use crate::{
    observed::process::live_subject,
    reader::protocol::ReadRequest,
    sensor::{
        decode::BootClock,
        exclude::ContainerImages,
        observation::{ReadTarget, TaskInfo},
    },
};
use binary::{BinaryTrust, RunningBinary};
use cgroup::CgroupIndex;
use context::Contexts;
use downloads::DownloadTimes;
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};
use monitor_core::model::{Ancestor, CiJob, Login, Subject, Untrusted, Workload, WorkloadKind};
use monitor_core::{catalog::secret_marks::SecretMarks, process_table::ProcessTable};
use monitor_parse::cgroup::Cgroup;
use names::{NameResolver, WorkloadRename};
use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Number of processes of this program cached.
const AGENTS_CACHED: usize = 256;
/// Number of container files cached.
const MOUNTED_CACHED: usize = 4096;
/// Number of cgroups of which the first process is cached.
const FIRST_CACHED: usize = 8192;
/// How long the first process of a workload is taken for it. Finding it means looking at every
/// process.
const FIRST_FOUND_FOR: SignedDuration = SignedDuration::from_secs(1);
/// Number of ancestors shown with a process.
const ANCESTORS_MAX: usize = 8;
/// A process that has run for so long did not delete its program to hide.
const SETTLED_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Number of processes whose ancestors are shared by the records of their children.
const LINEAGES_CACHED: usize = 1024;

/// A process in the table.
#[derive(Clone, Debug)]
pub struct ProcessEntry {
    pub exe: Arc<str>,
    pub unlinked: bool,
    pub comm: String,
    pub uid: u32,
    pub tty: bool,
    pub group: Arc<Cgroup>,
    /// The cgroup id of its last record; 0 before the first.
    cgroup: u64,
    /// The AI agent that it is, or below which it runs.
    ai_agent: Option<Arc<str>>,
    /// The job of a CI system that its environment, or that of an ancestor, names.
    ci_job: Option<Arc<CiJob>>,
}

/// Attributes processes to workloads.
#[derive(Debug)]
pub struct Attribution {
    table: ProcessTable<ProcessEntry>,
    groups: CgroupIndex,
    names: NameResolver,
    /// Home directories by user.
    homes: HashMap<u32, String>,
    clock: BootClock,
    binaries: BinaryTrust,
    /// Whether a file is mounted on its own, by container and path.
    mounted: LruCache<(String, String), bool>,
    /// The first process of the workload in a cgroup, and when it was found.
    first_of: LruCache<String, (Option<Subject>, Timestamp)>,
    /// Names of outermost cgroups, each once.
    outermost: LruCache<Arc<str>, Arc<str>>,
    contexts: Contexts,
    downloads: DownloadTimes,
    /// By what secrets are recognised in the names of programs and units.
    marks: SecretMarks,
    /// The ancestors that were last shown for the children of a process.
    lineages: LruCache<Subject, Arc<[Ancestor]>>,
    /// Processes running this program, and whether they are agents.
    agents: LruCache<Subject, bool>,
    /// Whether process records, possibly exits, were lost since the table was last compared with
    /// `/proc`.
    records_lost: bool,
    last_comparison: Option<Timestamp>,
    /// Number of processes that had exited before they could be looked up.
    pub unattributed: u64,
}

impl Attribution {
    pub fn new(cgroup_root: Option<PathBuf>, names: NameResolver) -> Self {
        Self {
            table: ProcessTable::default(),
            groups: CgroupIndex::new(cgroup_root),
            names,
            homes: HashMap::new(),
            clock: BootClock::now(),
            binaries: BinaryTrust::default(),
            mounted: LruCache::new(MOUNTED_CACHED),
            first_of: LruCache::new(FIRST_CACHED),
            outermost: LruCache::new(LINEAGES_CACHED),
            lineages: LruCache::new(LINEAGES_CACHED),
            contexts: Contexts::default(),
            downloads: DownloadTimes::default(),
            marks: SecretMarks::default(),
            agents: LruCache::new(AGENTS_CACHED),
            records_lost: false,
            last_comparison: None,
            unattributed: 0,
        }
    }

    /// The task information of a process in the table, for what it did before it was observed.
    pub fn task_info(&self, subject: Subject, time: Timestamp) -> TaskInfo {
        let entry = self.table.get(subject);
        TaskInfo {
            time,
            subject,
            parent: self.table.parent(subject),
            cgroup: 0,
            uid: entry.map_or(0, |entry| entry.uid),
            loginuid: None,
            tty: entry.is_some_and(|entry| entry.tty),
            comm: entry.map_or_else(String::new, |entry| entry.comm.clone()),
        }
    }

    /// The name of a cgroup: its unit, its container, or its path.
    pub fn group_name(&mut self, id: u64) -> String {
        let group = self.groups.get(id, None, None);
        if let Some(workload) = self.names.workload(&group) {
            return workload.key();
        }
        group
            .unit
            .as_deref()
            .unwrap_or(if group.path.is_empty() {
                "(unknown)"
            } else {
                &group.path
            })
            .to_owned()
    }

    /// As [`group_name`](Self::group_name); the user instead, if the cgroup has no name.
    pub fn owner_name(&mut self, id: u64, user: Option<u32>) -> String {
        let group = self.groups.get(id, None, None);
        match user {
            Some(user) if group.path.is_empty() || group.gone.is_some() => format!("user {user}"),
            _ => self.group_name(id),
        }
    }

    /// The process that was read by another one, if it can be identified.
    pub fn resolve_target(&mut self, from: Subject, target: ReadTarget) -> Option<Subject> {
        let subject = match target {
            ReadTarget::Subject(subject) => subject,
            ReadTarget::Number(number) => {
                let contained = self
                    .table
                    .get(from)
                    .is_none_or(|entry| entry.group.container.is_some());
                let found = pid_from_namespace(from.pid, number, contained).and_then(live_subject);
                if found.is_none() {
                    self.unattributed += 1;
                }
                found?
            }
        };
        if self.table.get(subject).is_none() {
            self.adopt(subject.pid);
        }
        self.table.get(subject).is_some().then_some(subject)
    }

    /// Whether a process has the user and cgroup of its parent.
    pub fn matches_parent(&self, subject: Subject) -> bool {
        let Some(entry) = self.table.get(subject) else {
            return false;
        };
        let parent = self.table.ancestors(subject).next();
        parent.is_some_and(|(_, parent)| parent.uid == entry.uid && parent.group == entry.group)
    }

    pub fn parent(&self, subject: Subject) -> Option<Subject> {
        self.table.parent(subject)
    }

    pub fn entry(&self, subject: Subject) -> Option<&ProcessEntry> {
        self.table.get(subject)
    }

    /// The workload of a subject, with its context.
    pub fn workload(&self, subject: Subject) -> Workload {
        let Some(entry) = self.table.get(subject) else {
            return Workload::host("(unknown)");
        };
        let mut workload = self.workload_of(entry);
        self.add_context(entry, &mut workload);
        workload
    }

    fn workload_of(&self, entry: &ProcessEntry) -> Workload {
        let group = &*entry.group;
        if let Some(workload) = self.names.workload(group) {
            return match &group.nested {
                Some(id) => workload.nested(&self.marks.masked(id.clone())),
                None => workload,
            };
        }
        if let Some(id) = group.gone {
            return Workload::vanished(id);
        }
        let mut workload = Workload::host(&self.shown_program(entry).0);
        if let Some(unit) = &group.unit {
            workload.kind = WorkloadKind::Unit;
            workload.name = self.marks.masked(unit.clone());
            workload.unit = Some(workload.name.clone());
        }
        workload
    }

    /// The workload of a pod, if it was named before.
    pub fn pod_workload(&self, uid: &str) -> Option<Workload> {
        self.names.pod_workload(uid).cloned()
    }

    /// Whether a process is another agent of this host.
    pub fn is_agent(&mut self, subject: Subject) -> bool {
        let named = self
            .entry(subject)
            .is_some_and(|entry| entry.exe.ends_with("/keytrail") && entry.uid == 0);
        if !named {
            return false;
        }
        if let Some(known) = self.agents.get(&subject) {
            return *known;
        }
        let Some(is_agent) = peer::is_agent(subject.pid) else {
            return false;
        };
        self.agents.insert(subject, is_agent);
        is_agent
    }

    /// Images of containers, shared and kept up to date.
    pub fn images(&self) -> &ContainerImages {
        self.names.images()
    }

    /// The cluster object at an address, without secrets in its name.
    pub fn object_at(&self, address: IpAddr) -> Option<String> {
        let name = self.names.object_at(address)?;
        Some(self.marks.masked(name))
    }

    /// Waits until the cluster's addresses are known, at most `most`.
    pub fn await_objects(&self, most: Duration) {
        self.names.await_objects(most);
    }

    /// Whether all addresses of the cluster are known; `None` without a cluster.
    pub fn objects_synced(&self) -> Option<bool> {
        self.names.objects_synced()
    }

    /// Workloads that were named since the last call.
    pub fn take_renames(&mut self) -> Vec<WorkloadRename> {
        self.names.take_replies(&self.marks)
    }

    /// Number of workloads without a name, by reason.
    pub fn take_unnamed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names
            .unnamed
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .chain([("group-gone", self.groups.gone)])
    }

    /// The interactive login of a subject, if it has a terminal.
    pub fn login(&self, subject: Subject) -> Option<Login> {
        let entry = self.table.get(subject)?;
        entry.tty.then(|| Login {
            uid: entry.uid,
            home: self.homes.get(&entry.uid).cloned(),
        })
    }

    /// Whether a path of the host is in the home directory of somebody who logs in.
    pub fn is_in_home(&self, path: &Path) -> bool {
        /// Users below this number are the system's, except root.
        const USERS_BEGIN: u32 = 1000;
        let of_people = |user: &u32| *user == 0 || *user >= USERS_BEGIN;
        let mut homes = self.homes.iter().filter(|(user, _)| of_people(user));
        homes.any(|(_, home)| home != "/" && path.starts_with(home))
    }

    /// Replaces the home directories of the host's users.
    pub fn set_homes(&mut self, homes: Vec<(u32, String)>) {
        self.homes = homes.into_iter().collect();
    }

    /// What must be read to decide whether the executable of a subject can be trusted, if anything.
    pub fn trust_request(&mut self, now: Timestamp, subject: Subject) -> Option<ReadRequest> {
        let user = self.table.get(subject)?.uid;
        let running = running_binary(&self.table, subject)?;
        let downloads = || self.downloads.times_of(user, now);
        self.binaries.request(running, downloads)
    }

    /// Takes the answer to a [`trust_request`](Self::trust_request).
    pub fn set_trust(&mut self, subject: Subject, request: &ReadRequest, fact: bool) {
        if let Some(running) = running_binary(&self.table, subject) {
            self.binaries.learn(running, request, fact);
        }
    }

    /// Why the executable of a subject cannot be trusted, as far as it is known.
    pub fn distrust_reason(&mut self, now: Timestamp, subject: Subject) -> Option<Untrusted> {
        let is_old = now.duration_since(self.started(subject)) >= SETTLED_AFTER;
        let running = running_binary(&self.table, subject)?;
        self.binaries.distrust_reason(running, is_old)
    }

    /// Whether a file was mounted individually into the container of a subject: for a process on the
    /// host it was not. `None` if that is not known.
    pub fn is_mounted(&mut self, subject: Subject, path: &str) -> Option<bool> {
        let entry = self.table.get(subject)?;
        let Some(container) = &entry.group.container else {
            return Some(false);
        };
        let key = (container.clone(), path.to_owned());
        self.mounted.get(&key).copied()
    }

    /// Remembers whether a file was mounted individually into the container of a subject.
    pub fn set_mounted(&mut self, subject: Subject, path: &str, alone: bool) {
        let container = self
            .table
            .get(subject)
            .and_then(|entry| entry.group.container.clone());
        if let Some(container) = container {
            self.mounted.insert((container, path.to_owned()), alone);
        }
    }

    /// The first live process of the container or unit of a subject, whose environment is that which
    /// the runtime or the service manager set. `None` on the host, where there is no such process.
    pub fn first_process(&mut self, now: Timestamp, subject: Subject) -> Option<Subject> {
        let group = &self.table.get(subject)?.group;
        match self.first_of.get(&group.path) {
            // The clock may have been set back.
            Some((first, when)) if now.duration_since(*when).abs() < FIRST_FOUND_FOR => *first,
            _ => {
                let path = group.path.clone();
                let first = self.find_first_process(subject);
                self.first_of.insert(path, (first, now));
                first
            }
        }
    }

    fn find_first_process(&self, subject: Subject) -> Option<Subject> {
        let group = &self.table.get(subject)?.group;
        if group.container.is_none() && group.unit.is_none() {
            return None;
        }
        let alive = self.table.alive();
        alive
            .filter(|(_, entry)| entry.group.is_same_workload(group))
            .map(|(process, _)| process)
            .min_by_key(|process| process.start)
    }

    /// Another live process of the same cgroup, through whose root a file of an exited process's
    /// container can still be read.
    pub fn live_peer(&self, subject: Subject) -> Option<u32> {
        let group = &self.table.get(subject)?.group;
        self.table
            .alive()
            .find(|(peer, entry)| *peer != subject && entry.group == *group)
            .map(|(peer, _)| peer.pid)
    }
}

/// The name of a program, from its path.
fn program_name(exe: &str) -> &str {
    exe.rsplit('/').next().unwrap_or_default()
}

fn running_binary(
    table: &ProcessTable<ProcessEntry>,
    subject: Subject,
) -> Option<RunningBinary<'_>> {
    let entry = table.get(subject)?;
    let parent = table.ancestors(subject).next();
    Some(RunningBinary {
        subject,
        exe: &entry.exe,
        unlinked: entry.unlinked,
        parent: parent.map(|(_, parent)| &*parent.exe),
        container: entry.group.container.as_deref(),
    })
}

/// The host pid of a process that is known by its pid in a PID namespace. If that process exited,
/// its pid is taken as the host's only if the reader is not in a container.
fn pid_from_namespace(pid: u32, number: u32, contained: bool) -> Option<u32> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(theirs) = namespace(&pid.to_string()) else {
        return (!contained).then_some(number);
    };
    if Some(&theirs) == namespace("self").as_ref() {
        return Some(number);
    }
    procfs::process::all_processes()
        .ok()?
        .flatten()
        .find_map(|process| {
            let inner = process.status().ok()?.nspid?.last().copied()?;
            let here = process.pid() as u32;
            (inner == number as i32 && namespace(&here.to_string()).as_ref() == Some(&theirs))
                .then_some(here)
        })
}

#[cfg(test)]
mod tests;
