//! Attributes processes to workloads: lineage, executable, user, cgroup.
//!
//! The process table is filled by the process probes, and from `/proc` at start and whenever a
//! record names an unknown process. Entries of exited processes are kept for a while, because what
//! they did is still being attributed.

mod binary;
pub mod cgroup;
mod given;
mod groups;
pub mod names;
mod peer;

use crate::sensor::{
    decode::BootClock,
    exclude::ContainerImages,
    observation::{ReadTarget, TaskInfo},
};
use binary::{BinaryTrust, RunningBinary};
use cgroup::CgroupIndex;
use given::MountedFiles;
use jiff::{SignedDuration, Timestamp};
use monitor_core::model::{Ancestor, Login, Process, Subject, Untrusted, Workload, WorkloadKind};
use monitor_parse::cgroup::Cgroup;
use names::{NameResolver, WorkloadRename};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long exited processes are kept if a descendant lives, which is shown with its ancestors.
const EXITED_PARENT_TTL: SignedDuration = SignedDuration::from_secs(120);
/// How long other exited processes are kept: their last records arrive within this time. A fork
/// storm consists of these.
const EXITED_TTL: SignedDuration = SignedDuration::from_secs(10);
/// After exit records were lost, the table is compared with `/proc`, at most this often.
const COMPARE_AFTER_LOSS: SignedDuration = SignedDuration::from_secs(10);
/// Interval of that comparison otherwise: a process that was added after its exit gets no exit
/// record.
const COMPARE_INTERVAL: SignedDuration = SignedDuration::from_mins(5);
/// Number of ancestors shown with a process.
const ANCESTORS_MAX: usize = 8;

/// A process in the table.
#[derive(Clone, Debug)]
pub struct ProcessEntry {
    pub subject: Subject,
    pub parent: Option<Subject>,
    pub exe: Arc<str>,
    pub unlinked: bool,
    pub comm: String,
    pub uid: u32,
    pub tty: bool,
    pub group: Arc<Cgroup>,
    /// The cgroup id of its last record; 0 before the first.
    cgroup: u64,
    exited: Option<Timestamp>,
}

/// Attributes processes to workloads.
#[derive(Debug)]
pub struct Attribution {
    table: HashMap<Subject, ProcessEntry>,
    groups: CgroupIndex,
    names: NameResolver,
    homes: HomeDirectories,
    clock: BootClock,
    binaries: BinaryTrust,
    mounted: MountedFiles,
    /// Processes running this program, and whether they are agents.
    agents: HashMap<Subject, bool>,
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
            table: HashMap::new(),
            groups: CgroupIndex::new(cgroup_root),
            names,
            homes: HomeDirectories::default(),
            clock: BootClock::now(),
            binaries: BinaryTrust::default(),
            mounted: MountedFiles::default(),
            agents: HashMap::new(),
            records_lost: false,
            last_comparison: None,
            unattributed: 0,
        }
    }

    /// Adds every running process; returns them.
    pub fn scan(&mut self) -> Vec<Subject> {
        let Ok(processes) = procfs::process::all_processes() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for process in processes.flatten() {
            if let Some(subject) = self.adopt(process.pid() as u32) {
                found.push(subject);
            }
        }
        found
    }

    /// Adds one process from `/proc`, by pid.
    fn adopt(&mut self, pid: u32) -> Option<Subject> {
        let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let subject = Subject {
            pid,
            start: stat.starttime,
        };
        let parent = (stat.ppid > 0)
            .then(|| self.live_subject(stat.ppid as u32))
            .flatten();
        let (exe, unlinked) = executable(pid, &stat.comm);
        let group = self.groups.get(0, pid, None);
        // The pid may have been reused between the two reads.
        if self.live_subject(pid) != Some(subject) {
            return None;
        }
        self.names.request(&group);
        let uid = process.uid().unwrap_or(0);
        self.table.insert(
            subject,
            ProcessEntry {
                subject,
                parent,
                exe: exe.into(),
                unlinked,
                comm: stat.comm,
                uid,
                tty: stat.tty_nr != 0,
                group,
                cgroup: 0,
                exited: None,
            },
        );
        Some(subject)
    }

    /// The process that has a pid now, if it is in the table.
    fn live_subject(&self, pid: u32) -> Option<Subject> {
        let stat = procfs::process::Process::new(i32::try_from(pid).ok()?)
            .and_then(|process| process.stat())
            .ok()?;
        Some(Subject {
            pid,
            start: stat.starttime,
        })
    }

    /// Records an exec.
    pub fn exec(&mut self, stamp: &TaskInfo, exe: &Path, unlinked: bool) {
        self.agents.remove(&stamp.subject);
        self.ensure(stamp);
        // A runtime moves a process to its own cgroup between fork and exec.
        let parent = stamp
            .parent
            .and_then(|parent| self.table.get(&parent))
            .map(|parent| Arc::clone(&parent.group));
        let group = self
            .groups
            .get(stamp.cgroup, stamp.subject.pid, parent.as_ref());
        self.names.request(&group);
        if let Some(entry) = self.table.get_mut(&stamp.subject) {
            entry.exe = exe.to_string_lossy().into();
            entry.unlinked = unlinked;
            entry.comm.clone_from(&stamp.comm);
            entry.uid = stamp.uid;
            entry.tty = stamp.tty;
            entry.group = group;
            entry.cgroup = stamp.cgroup;
        }
    }

    /// Records a fork: the child inherits its parent's properties.
    pub fn fork(&mut self, stamp: &TaskInfo) {
        let parent = stamp.parent.and_then(|parent| self.table.get(&parent));
        let entry = match parent {
            Some(parent) => ProcessEntry {
                subject: stamp.subject,
                parent: stamp.parent,
                exited: None,
                uid: stamp.uid,
                ..parent.clone()
            },
            None => {
                self.ensure(stamp);
                return;
            }
        };
        self.table.insert(stamp.subject, entry);
    }

    /// Records an exit.
    pub fn exit(&mut self, stamp: &TaskInfo) {
        if let Some(entry) = self.table.get_mut(&stamp.subject) {
            entry.exited = Some(stamp.time);
        }
    }

    /// Ensures that the subject of a record is in the table, from `/proc` or, if it exited, from
    /// the record itself.
    pub fn ensure(&mut self, stamp: &TaskInfo) {
        if let Some(entry) = self.table.get_mut(&stamp.subject) {
            // A forked process that does not exec may change its user and cgroup.
            entry.uid = stamp.uid;
            let moved = entry.cgroup != stamp.cgroup && stamp.cgroup != 0;
            entry.cgroup = stamp.cgroup;
            if moved {
                self.update_cgroup(stamp);
            }
            return;
        }
        if self.adopt(stamp.subject.pid) == Some(stamp.subject) {
            return;
        }
        let parent = stamp
            .parent
            .and_then(|parent| self.table.get(&parent))
            .cloned();
        if parent.is_none() {
            self.unattributed += 1;
        }
        let group = self.groups.get(
            stamp.cgroup,
            stamp.subject.pid,
            parent.as_ref().map(|parent| &parent.group),
        );
        self.names.request(&group);
        self.table.insert(
            stamp.subject,
            ProcessEntry {
                subject: stamp.subject,
                parent: stamp.parent,
                exe: parent.map_or_else(|| Arc::from(format!("({})", stamp.comm)), |p| p.exe),
                unlinked: false,
                comm: stamp.comm.clone(),
                uid: stamp.uid,
                tty: stamp.tty,
                group,
                cgroup: stamp.cgroup,
                exited: None,
            },
        );
    }

    /// Updates the cgroup if a record shows that the process was moved.
    fn update_cgroup(&mut self, stamp: &TaskInfo) {
        let group = self.groups.get(stamp.cgroup, stamp.subject.pid, None);
        // The previously known cgroup tells more than the fact that it was removed.
        if group.gone.is_none() && !group.path.is_empty() {
            self.names.request(&group);
            if let Some(entry) = self.table.get_mut(&stamp.subject) {
                entry.group = group;
            }
        }
    }

    /// The task information of a process in the table, for what it did before it was observed.
    pub fn task_info(&self, subject: Subject, time: Timestamp) -> TaskInfo {
        let entry = self.table.get(&subject);
        TaskInfo {
            time,
            subject,
            parent: entry.and_then(|entry| entry.parent),
            cgroup: 0,
            uid: entry.map_or(0, |entry| entry.uid),
            loginuid: None,
            tty: entry.is_some_and(|entry| entry.tty),
            comm: entry.map_or_else(String::new, |entry| entry.comm.clone()),
        }
    }

    /// The name of a cgroup: its unit, its container, or its path.
    pub fn group_name(&mut self, id: u64) -> String {
        let group = self.groups.get(id, 0, None);
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

    /// The process that was read by another one, if it can be identified.
    pub fn resolve_target(&mut self, from: Subject, target: ReadTarget) -> Option<Subject> {
        let subject = match target {
            ReadTarget::Subject(subject) => subject,
            ReadTarget::Number(number) => {
                let contained = self
                    .table
                    .get(&from)
                    .is_none_or(|entry| entry.group.container.is_some());
                let found = pid_from_namespace(from.pid, number, contained)
                    .and_then(|number| self.live_subject(number));
                if found.is_none() {
                    self.unattributed += 1;
                }
                found?
            }
        };
        if !self.table.contains_key(&subject) {
            self.adopt(subject.pid);
        }
        self.table.contains_key(&subject).then_some(subject)
    }

    /// Whether a process has the user and cgroup of its parent.
    pub fn matches_parent(&self, subject: Subject) -> bool {
        let Some(entry) = self.table.get(&subject) else {
            return false;
        };
        let parent = entry.parent.and_then(|parent| self.table.get(&parent));
        parent.is_some_and(|parent| parent.uid == entry.uid && parent.group == entry.group)
    }

    pub fn entry(&self, subject: Subject) -> Option<&ProcessEntry> {
        self.table.get(&subject)
    }

    /// The workload of a subject.
    pub fn workload(&self, subject: Subject) -> Workload {
        let Some(entry) = self.table.get(&subject) else {
            return Workload::host("(unknown)");
        };
        let group = &*entry.group;
        if let Some(workload) = self.names.workload(group) {
            return workload;
        }
        if let Some(id) = group.gone {
            return vanished_workload(id);
        }
        let mut workload = Workload::host(&entry.exe);
        if let Some(unit) = &group.unit {
            workload.kind = WorkloadKind::Unit;
            workload.name.clone_from(unit);
            workload.unit = Some(unit.clone());
        }
        workload
    }

    /// The workload of a pod, if it was named before.
    pub fn pod_workload(&self, uid: &str) -> Option<Workload> {
        self.names.pod_workload(uid).cloned()
    }

    /// Whether a process is another agent of this host.
    pub fn is_agent(&mut self, subject: Subject) -> bool {
        /// Number of processes cached.
        const AGENTS_CACHED: usize = 256;
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
        if self.agents.len() >= AGENTS_CACHED {
            self.agents.clear();
        }
        self.agents.insert(subject, is_agent);
        is_agent
    }

    /// Images of containers, shared and kept up to date.
    pub fn images(&self) -> &ContainerImages {
        self.names.images()
    }

    /// The cluster object at an address.
    pub fn object_at(&self, address: IpAddr) -> Option<String> {
        self.names.object_at(address)
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
        self.names.take_replies()
    }

    /// Number of workloads without a name, by reason.
    pub fn take_unnamed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names
            .unnamed
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .chain([("group-gone", self.groups.gone)])
    }

    /// The process of a subject, with its ancestors.
    pub fn process(&self, subject: Subject) -> Process {
        let entry = self.table.get(&subject);
        let mut ancestors = Vec::new();
        let mut above = entry.and_then(|entry| entry.parent);
        while let Some(parent) = above.and_then(|parent| self.table.get(&parent)) {
            if ancestors.len() == ANCESTORS_MAX {
                break;
            }
            ancestors.push(Ancestor {
                pid: parent.subject.pid,
                exe: parent.exe.to_string(),
                comm: parent.comm.clone(),
            });
            above = parent.parent;
        }
        Process {
            pid: subject.pid,
            start_time: self.clock.started(subject),
            exe: entry.map_or_else(String::new, |entry| entry.exe.to_string()),
            comm: entry.map_or_else(String::new, |entry| entry.comm.clone()),
            uid: entry.map_or(0, |entry| entry.uid),
            ancestors,
        }
    }

    /// The interactive login of a subject, if it has a terminal.
    pub fn login(&mut self, subject: Subject) -> Option<Login> {
        let entry = self.table.get(&subject)?;
        entry.tty.then(|| Login {
            uid: entry.uid,
            home: self.homes.of(entry.uid),
        })
    }

    /// Why the executable of a subject cannot be trusted.
    pub fn distrust_reason(&mut self, subject: Subject) -> Option<Untrusted> {
        let entry = self.table.get(&subject)?;
        let parent = entry.parent.and_then(|parent| self.table.get(&parent));
        self.binaries.distrust_reason(RunningBinary {
            pid: subject.pid,
            exe: &entry.exe,
            unlinked: entry.unlinked,
            parent: parent.map(|parent| &*parent.exe),
            container: entry.group.container.as_deref(),
        })
    }

    /// Whether a file was mounted individually into the container of a subject.
    pub fn is_mounted(&mut self, subject: Subject, path: &str) -> bool {
        let container = self
            .table
            .get(&subject)
            .and_then(|entry| entry.group.container.as_deref());
        container.is_some_and(|container| self.mounted.check_alone(container, subject.pid, path))
    }

    /// Another live process of the same cgroup, through whose root a file of an exited process's
    /// container can still be read.
    pub fn live_peer(&self, subject: Subject) -> Option<u32> {
        let group = &self.table.get(&subject)?.group;
        self.table
            .values()
            .find(|entry| {
                entry.exited.is_none()
                    && entry.subject != subject
                    && Arc::ptr_eq(&entry.group, group)
            })
            .map(|entry| entry.subject.pid)
    }

    /// Records that process records were lost: some processes may have exited unnoticed.
    pub fn note_lost_records(&mut self) {
        self.records_lost = true;
    }

    /// Processes that exited unnoticed; marks them as exited.
    pub fn take_missing(&mut self, now: Timestamp) -> Vec<Subject> {
        let often = if self.records_lost {
            COMPARE_AFTER_LOSS
        } else {
            COMPARE_INTERVAL
        };
        let compared = *self.last_comparison.get_or_insert(now);
        if compared <= now && now.duration_since(compared) < often {
            return Vec::new();
        }
        (self.records_lost, self.last_comparison) = (false, Some(now));
        let alive = self.table.values().filter(|entry| entry.exited.is_none());
        let missing: Vec<Subject> = alive
            .map(|entry| entry.subject)
            .filter(|subject| self.live_subject(subject.pid) != Some(*subject))
            .collect();
        for subject in &missing {
            if let Some(entry) = self.table.get_mut(subject) {
                entry.exited = Some(now);
            }
        }
        missing
    }

    /// Removes processes that exited long ago, and those without descendants that exited recently;
    /// returns them.
    pub fn evict_exited(&mut self, now: Timestamp) -> Vec<Subject> {
        let mut has_heirs = HashSet::new();
        for alive in self.table.values().filter(|entry| entry.exited.is_none()) {
            let mut above = alive.parent;
            while let Some(parent) = above
                && has_heirs.insert(parent)
            {
                above = self.table.get(&parent).and_then(|entry| entry.parent);
            }
        }
        let mut dead = Vec::new();
        self.table.retain(|subject, entry| {
            let kept = if has_heirs.contains(subject) {
                EXITED_PARENT_TTL
            } else {
                EXITED_TTL
            };
            let stays = entry
                .exited
                .is_none_or(|exited| now.duration_since(exited) <= kept);
            if !stays {
                dead.push(*subject);
            }
            stays
        });
        // Returns the memory of a fork storm.
        if self.table.capacity() > 1024 + 8 * self.table.len() {
            self.table.shrink_to_fit();
        }
        self.names
            .retain(self.table.values().map(|entry| &*entry.group));
        dead
    }
}

/// The workload of a process in a cgroup that was removed: most likely a container, but unknown
/// which.
fn vanished_workload(id: u64) -> Workload {
    Workload {
        kind: WorkloadKind::Container,
        partial: true,
        ..Workload::host(&format!("cgroup-{id}"))
    }
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

/// The executable of a running process, and whether its file is gone.
fn executable(pid: u32, comm: &str) -> (String, bool) {
    match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => {
            let path = path.to_string_lossy().into_owned();
            match path.strip_suffix(" (deleted)") {
                Some(path) => (path.to_owned(), true),
                None => (path, false),
            }
        }
        // A kernel thread, or one that has just ended.
        Err(_) => (format!("({comm})"), false),
    }
}

/// Home directories, read again only when `/etc/passwd` changes.
#[derive(Debug, Default)]
struct HomeDirectories {
    read: Option<std::time::SystemTime>,
    homes: HashMap<u32, String>,
}

impl HomeDirectories {
    fn of(&mut self, uid: u32) -> Option<String> {
        let modified = std::fs::metadata("/etc/passwd")
            .and_then(|metadata| metadata.modified())
            .ok();
        if self.homes.is_empty() || modified != self.read {
            self.read = modified;
            let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            self.homes = text
                .lines()
                .filter_map(|line| {
                    let fields: Vec<&str> = line.split(':').collect();
                    let home = fields.get(5).filter(|home| home.len() > 1)?;
                    Some((fields.get(2)?.parse().ok()?, (*home).to_owned()))
                })
                .collect();
        }
        self.homes.get(&uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task_info(pid: u32, parent: u32) -> TaskInfo {
        TaskInfo {
            time: Timestamp::UNIX_EPOCH,
            subject: Subject {
                pid,
                start: u64::from(pid),
            },
            parent: Some(Subject {
                pid: parent,
                start: u64::from(parent),
            }),
            cgroup: 0,
            uid: 7,
            loginuid: None,
            tty: false,
            comm: "x".to_owned(),
        }
    }

    /// Numbers above the kernel's limit of 2^22, so that no real process has them.
    const A: u32 = 0x7000_0001;
    const B: u32 = 0x7000_0002;
    const C: u32 = 0x7000_0003;

    #[test]
    fn a_child_has_its_parents_executable_until_it_execs() {
        let mut attribution = Attribution::new(None, NameResolver::empty());
        let parent = task_info(A, 0x7000_0000);
        attribution.exec(&parent, Path::new("/bin/sh"), false);
        let child = task_info(B, A);
        attribution.fork(&child);
        assert_eq!(attribution.process(child.subject).exe, "/bin/sh");
        attribution.exec(&child, Path::new("/usr/bin/curl"), false);
        let process = attribution.process(child.subject);
        assert_eq!(process.exe, "/usr/bin/curl");
        assert_eq!(process.ancestors[0].exe, "/bin/sh");
        assert_eq!(attribution.workload(child.subject).key(), "/usr/bin/curl");
    }

    /// What an event pays for being attributed: `cargo test --release -p keytrail cost_of_attribution -- --ignored
    /// --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_attribution() {
        use std::{hint::black_box, time::Instant};
        const EVENTS: u32 = 200_000;
        let root = crate::sensor::cgroup_root();
        let mut attribution = Attribution::new(root, NameResolver::empty());
        let subjects = attribution.scan();
        let own = std::process::id();
        let subject = subjects
            .into_iter()
            .find(|subject| subject.pid == own)
            .expect("it runs");
        let mut stamp = attribution.task_info(subject, Timestamp::now());
        stamp.cgroup = 1;
        let mut measure = |what: &str, act: &mut dyn FnMut(&mut Attribution)| {
            let began = Instant::now();
            for _ in 0..EVENTS {
                act(&mut attribution);
            }
            let each = began.elapsed().as_nanos() / u128::from(EVENTS);
            println!("{what}: {each} ns");
            assert!(each < 100_000, "{what}: {each} ns");
        };
        measure("workload and process of an event", &mut |attribution| {
            attribution.ensure(&stamp);
            black_box(attribution.workload(subject));
            black_box(attribution.process(subject));
        });
        measure("an exec in a group that is known", &mut |attribution| {
            attribution.exec(&stamp, Path::new("/usr/bin/true"), false);
        });
        measure(
            "whether the executable is to be trusted",
            &mut |attribution| {
                black_box(attribution.distrust_reason(subject));
            },
        );
    }

    #[test]
    fn the_dead_are_remembered_for_a_while_and_longer_where_somebody_below_them_lives() {
        let mut attribution = Attribution::new(None, NameResolver::empty());
        let (process, below) = (task_info(A, B), task_info(C, A));
        attribution.exec(&process, Path::new("/bin/true"), false);
        attribution.fork(&below);
        attribution.exit(&process);
        let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        assert!(attribution.evict_exited(after(60)).is_empty());
        assert_eq!(attribution.process(process.subject).exe, "/bin/true");
        attribution.exit(&below);
        assert_eq!(attribution.evict_exited(after(9)), []);
        let mut dead = attribution.evict_exited(after(11));
        dead.sort();
        assert_eq!(dead, [process.subject, below.subject]);
    }

    #[test]
    fn who_ended_without_a_word_is_missed_where_records_were_lost() {
        let mut attribution = Attribution::new(None, NameResolver::empty());
        let own = attribution
            .adopt(std::process::id())
            .expect("this process runs");
        let gone = task_info(C, A);
        attribution.exec(&gone, Path::new("/bin/true"), false);
        let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        for second in [0, 30] {
            assert_eq!(
                attribution.take_missing(after(second)),
                [],
                "nothing was lost"
            );
        }
        attribution.note_lost_records();
        assert_eq!(attribution.take_missing(after(31)), [gone.subject]);
        attribution.exec(&gone, Path::new("/bin/true"), false);
        if let Some(entry) = attribution.table.get_mut(&gone.subject) {
            entry.exited = None;
        }
        attribution.note_lost_records();
        assert_eq!(attribution.take_missing(after(35)), [], "not each second");
        attribution.records_lost = false;
        assert_eq!(
            attribution.take_missing(after(335)),
            [gone.subject],
            "but some time"
        );
        assert!(
            attribution
                .entry(own)
                .is_some_and(|entry| entry.exited.is_none())
        );
    }
}
