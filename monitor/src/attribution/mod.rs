//! Process to workload: lineage, executable, user, cgroup.
//!
//! The table is fed by the process probes, and by `/proc` at start and wherever a record names a
//! process that is not in it. What the dead did is still attributed: entries stay for a while.

mod binary;
pub mod cgroup;
mod given;
mod groups;
pub mod names;
mod peer;

use crate::{
    model::{Ancestor, Login, Process, Subject, Untrusted, Workload, WorkloadKind},
    sensor::{
        decode::BootClock,
        observation::{Stamp, Target},
    },
};
use binary::{Binaries, Running};
use cgroup::{Group, Groups};
use given::Mounted;
use jiff::{SignedDuration, Timestamp};
use names::{Images, Names, Renamed};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long the dead are remembered where somebody below them lives, who is shown with his ancestors.
const TOMBSTONE: SignedDuration = SignedDuration::from_secs(120);
/// How long the others are: what they did is told within this. A storm of forks is nothing but such.
const ECHO: SignedDuration = SignedDuration::from_secs(10);
/// After ends of processes were lost, the table is compared with `/proc`, but not more often than this.
const COMPARED: SignedDuration = SignedDuration::from_secs(10);
/// And so often anyhow: of whom something was told when he had ended, no end is told any more.
const ANYHOW: SignedDuration = SignedDuration::from_mins(5);
/// Ancestors shown with a process.
const ANCESTORS: usize = 8;

/// A process of the table.
#[derive(Clone, Debug)]
pub struct Entry {
    pub subject: Subject,
    pub parent: Option<Subject>,
    pub exe: Arc<str>,
    pub unlinked: bool,
    pub comm: String,
    pub uid: u32,
    pub tty: bool,
    pub group: Arc<Group>,
    /// The control group of the last record, by the id that the kernel gives; 0 before the first.
    cgroup: u64,
    exited: Option<Timestamp>,
}

/// Who is who.
#[derive(Debug)]
pub struct Attribution {
    table: HashMap<Subject, Entry>,
    groups: Groups,
    names: Names,
    homes: Homes,
    clock: BootClock,
    binaries: Binaries,
    mounted: Mounted,
    /// Processes with this program's name, and whether they are agents.
    agents: HashMap<Subject, bool>,
    /// Records of processes were lost, ends among them, since the table was compared with `/proc`.
    lost: bool,
    compared: Option<Timestamp>,
    /// Processes that could not be found any more when they were asked for.
    pub unattributed: u64,
}

impl Attribution {
    pub fn new(cgroup_root: Option<PathBuf>, names: Names) -> Self {
        Self {
            table: HashMap::new(),
            groups: Groups::new(cgroup_root),
            names,
            homes: Homes::default(),
            clock: BootClock::now(),
            binaries: Binaries::default(),
            mounted: Mounted::default(),
            agents: HashMap::new(),
            lost: false,
            compared: None,
            unattributed: 0,
        }
    }

    /// Takes in every process that already runs; gives them.
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

    /// Takes in one process from `/proc`, by number.
    fn adopt(&mut self, pid: u32) -> Option<Subject> {
        let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let subject = Subject {
            pid,
            start: stat.starttime,
        };
        let parent = (stat.ppid > 0)
            .then(|| self.live(stat.ppid as u32))
            .flatten();
        let (exe, unlinked) = executable(pid, &stat.comm);
        let group = self.groups.of(0, pid, None);
        // Between two looks the number may have gone to another.
        if self.live(pid) != Some(subject) {
            return None;
        }
        self.names.want(&group);
        let uid = process.uid().unwrap_or(0);
        self.table.insert(
            subject,
            Entry {
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

    /// The process that has a number now, if the table has it.
    fn live(&self, pid: u32) -> Option<Subject> {
        let stat = procfs::process::Process::new(i32::try_from(pid).ok()?)
            .and_then(|process| process.stat())
            .ok()?;
        Some(Subject {
            pid,
            start: stat.starttime,
        })
    }

    /// A process became another program.
    pub fn exec(&mut self, stamp: &Stamp, exe: &Path, unlinked: bool) {
        self.agents.remove(&stamp.subject);
        self.ensure(stamp);
        // Between fork and exec a runtime moves a process to its own group.
        let parent = stamp
            .parent
            .and_then(|parent| self.table.get(&parent))
            .map(|parent| Arc::clone(&parent.group));
        let group = self
            .groups
            .of(stamp.cgroup, stamp.subject.pid, parent.as_ref());
        self.names.want(&group);
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

    /// A process was born: it has what its parent has.
    pub fn fork(&mut self, stamp: &Stamp) {
        let parent = stamp.parent.and_then(|parent| self.table.get(&parent));
        let entry = match parent {
            Some(parent) => Entry {
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

    /// A process ended.
    pub fn exit(&mut self, stamp: &Stamp) {
        if let Some(entry) = self.table.get_mut(&stamp.subject) {
            entry.exited = Some(stamp.time);
        }
    }

    /// Makes sure that the subject of a record is in the table, from `/proc` or, where it is
    /// gone already, from the record itself.
    pub fn ensure(&mut self, stamp: &Stamp) {
        if let Some(entry) = self.table.get_mut(&stamp.subject) {
            // A fork that runs no other program may be given to another user, and to another group.
            entry.uid = stamp.uid;
            let moved = entry.cgroup != stamp.cgroup && stamp.cgroup != 0;
            entry.cgroup = stamp.cgroup;
            if moved {
                self.moved(stamp);
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
        let group = self.groups.of(
            stamp.cgroup,
            stamp.subject.pid,
            parent.as_ref().map(|parent| &parent.group),
        );
        self.names.want(&group);
        self.table.insert(
            stamp.subject,
            Entry {
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

    /// A record of a process comes from another group than the one before.
    fn moved(&mut self, stamp: &Stamp) {
        let group = self.groups.of(stamp.cgroup, stamp.subject.pid, None);
        // What was a group when the process was last looked at tells more than that it has gone.
        if group.gone.is_none() && !group.path.is_empty() {
            self.names.want(&group);
            if let Some(entry) = self.table.get_mut(&stamp.subject) {
                entry.group = group;
            }
        }
    }

    /// A stamp for what a process of the table had done before it was watched.
    pub fn stamp(&self, subject: Subject, time: Timestamp) -> Stamp {
        let entry = self.table.get(&subject);
        Stamp {
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

    /// The name of a control group: its unit, its container, or its path.
    pub fn group_name(&mut self, id: u64) -> String {
        let group = self.groups.of(id, 0, None);
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

    /// The process that another one looked at, where it is known who that is.
    pub fn target(&mut self, from: Subject, target: Target) -> Option<Subject> {
        let subject = match target {
            Target::Subject(subject) => subject,
            Target::Number(number) => {
                let contained = self
                    .table
                    .get(&from)
                    .is_none_or(|entry| entry.group.container.is_some());
                let found = in_namespace_of(from.pid, number, contained)
                    .and_then(|number| self.live(number));
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

    /// Whether a process has the user and the control group of its parent.
    pub fn is_with_parent(&self, subject: Subject) -> bool {
        let Some(entry) = self.table.get(&subject) else {
            return false;
        };
        let parent = entry.parent.and_then(|parent| self.table.get(&parent));
        parent.is_some_and(|parent| parent.uid == entry.uid && parent.group == entry.group)
    }

    pub fn entry(&self, subject: Subject) -> Option<&Entry> {
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
            return unknown(id);
        }
        let mut workload = Workload::host(&entry.exe);
        if let Some(unit) = &group.unit {
            workload.kind = WorkloadKind::Unit;
            workload.name.clone_from(unit);
            workload.unit = Some(unit.clone());
        }
        workload
    }

    /// The workload of a pod that was named before.
    pub fn of_pod(&self, uid: &str) -> Option<Workload> {
        self.names.of_pod(uid).cloned()
    }

    /// Whether a process is another agent of this host.
    pub fn is_agent(&mut self, subject: Subject) -> bool {
        /// Processes that are remembered.
        const AGENTS: usize = 256;
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
        if self.agents.len() >= AGENTS {
            self.agents.clear();
        }
        self.agents.insert(subject, is_agent);
        is_agent
    }

    /// What is known of images, now and later.
    pub fn images(&self) -> &Images {
        self.names.images()
    }

    /// What a cluster has at an address.
    pub fn object_at(&self, address: IpAddr) -> Option<String> {
        self.names.object_at(address)
    }

    /// Waits until a cluster has told what is at which address, no longer than `most`.
    pub fn await_objects(&self, most: Duration) {
        self.names.await_objects(most);
    }

    /// Whether there is a cluster to tell addresses, and it has told them all.
    pub fn objects_are_told(&self) -> Option<bool> {
        self.names.objects_are_told()
    }

    /// Workloads that were named since the last call.
    pub fn renamed(&mut self) -> Vec<Renamed> {
        self.names.answered()
    }

    /// Workloads that got no name, by reason.
    pub fn unnamed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names
            .unnamed
            .iter()
            .map(|(reason, count)| (*reason, *count))
            .chain([("group-gone", self.groups.gone)])
    }

    /// The process of a subject, with those above it.
    pub fn process(&self, subject: Subject) -> Process {
        let entry = self.table.get(&subject);
        let mut ancestors = Vec::new();
        let mut above = entry.and_then(|entry| entry.parent);
        while let Some(parent) = above.and_then(|parent| self.table.get(&parent)) {
            if ancestors.len() == ANCESTORS {
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

    /// The interactive login that a subject belongs to, if it has a terminal.
    pub fn login(&mut self, subject: Subject) -> Option<Login> {
        let entry = self.table.get(&subject)?;
        entry.tty.then(|| Login {
            uid: entry.uid,
            home: self.homes.of(entry.uid),
        })
    }

    /// Why the executable of a subject is not to be trusted.
    pub fn untrusted(&mut self, subject: Subject) -> Option<Untrusted> {
        let entry = self.table.get(&subject)?;
        let parent = entry.parent.and_then(|parent| self.table.get(&parent));
        self.binaries.untrusted(Running {
            pid: subject.pid,
            exe: &entry.exe,
            unlinked: entry.unlinked,
            parent: parent.map(|parent| &*parent.exe),
            container: entry.group.container.as_deref(),
        })
    }

    /// Whether a file was mounted by itself into the container of a subject.
    pub fn is_mounted(&mut self, subject: Subject, path: &str) -> bool {
        let container = self
            .table
            .get(&subject)
            .and_then(|entry| entry.group.container.as_deref());
        container.is_some_and(|container| self.mounted.alone(container, subject.pid, path))
    }

    /// Another live process of the same group, through whose root a file of a dead one's
    /// container can still be read.
    pub fn peer(&self, subject: Subject) -> Option<u32> {
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

    /// Records of processes were lost: some of the table may have ended without a word.
    pub fn lost(&mut self) {
        self.lost = true;
    }

    /// Those of the table that have ended without a word. They are dead from now on.
    pub fn missing(&mut self, now: Timestamp) -> Vec<Subject> {
        let often = if self.lost { COMPARED } else { ANYHOW };
        let compared = *self.compared.get_or_insert(now);
        if compared <= now && now.duration_since(compared) < often {
            return Vec::new();
        }
        (self.lost, self.compared) = (false, Some(now));
        let alive = self.table.values().filter(|entry| entry.exited.is_none());
        let missing: Vec<Subject> = alive
            .map(|entry| entry.subject)
            .filter(|subject| self.live(subject.pid) != Some(*subject))
            .collect();
        for subject in &missing {
            if let Some(entry) = self.table.get_mut(subject) {
                entry.exited = Some(now);
            }
        }
        missing
    }

    /// Forgets those who died long ago, and those who died lately and left nobody behind; gives them.
    pub fn bury(&mut self, now: Timestamp) -> Vec<Subject> {
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
                TOMBSTONE
            } else {
                ECHO
            };
            let stays = entry
                .exited
                .is_none_or(|exited| now.duration_since(exited) <= kept);
            if !stays {
                dead.push(*subject);
            }
            stays
        });
        // What a storm took is given back.
        if self.table.capacity() > 1024 + 8 * self.table.len() {
            self.table.shrink_to_fit();
        }
        self.names
            .keep(self.table.values().map(|entry| &*entry.group));
        dead
    }
}

/// What was in a group of its own that is gone: a container most likely, and nobody knows which.
fn unknown(id: u64) -> Workload {
    Workload {
        kind: WorkloadKind::Container,
        partial: true,
        ..Workload::host(&format!("cgroup-{id}"))
    }
}

/// The number that a process of another's PID namespace has here. Of one that has ended, only
/// that it was in no container says that its numbers are ours.
fn in_namespace_of(pid: u32, number: u32, contained: bool) -> Option<u32> {
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
struct Homes {
    read: Option<std::time::SystemTime>,
    homes: HashMap<u32, String>,
}

impl Homes {
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

    fn stamp(pid: u32, parent: u32) -> Stamp {
        Stamp {
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
        let mut attribution = Attribution::new(None, Names::none());
        let parent = stamp(A, 0x7000_0000);
        attribution.exec(&parent, Path::new("/bin/sh"), false);
        let child = stamp(B, A);
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
        let mut attribution = Attribution::new(root, Names::none());
        let subjects = attribution.scan();
        let own = std::process::id();
        let subject = subjects
            .into_iter()
            .find(|subject| subject.pid == own)
            .expect("it runs");
        let mut stamp = attribution.stamp(subject, Timestamp::now());
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
                black_box(attribution.untrusted(subject));
            },
        );
    }

    #[test]
    fn the_dead_are_remembered_for_a_while_and_longer_where_somebody_below_them_lives() {
        let mut attribution = Attribution::new(None, Names::none());
        let (process, below) = (stamp(A, B), stamp(C, A));
        attribution.exec(&process, Path::new("/bin/true"), false);
        attribution.fork(&below);
        attribution.exit(&process);
        let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        assert!(attribution.bury(after(60)).is_empty());
        assert_eq!(attribution.process(process.subject).exe, "/bin/true");
        attribution.exit(&below);
        assert_eq!(attribution.bury(after(9)), []);
        let mut dead = attribution.bury(after(11));
        dead.sort();
        assert_eq!(dead, [process.subject, below.subject]);
    }

    #[test]
    fn who_ended_without_a_word_is_missed_where_records_were_lost() {
        let mut attribution = Attribution::new(None, Names::none());
        let own = attribution
            .adopt(std::process::id())
            .expect("this process runs");
        let gone = stamp(C, A);
        attribution.exec(&gone, Path::new("/bin/true"), false);
        let after = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        for second in [0, 30] {
            assert_eq!(attribution.missing(after(second)), [], "nothing was lost");
        }
        attribution.lost();
        assert_eq!(attribution.missing(after(31)), [gone.subject]);
        attribution.exec(&gone, Path::new("/bin/true"), false);
        if let Some(entry) = attribution.table.get_mut(&gone.subject) {
            entry.exited = None;
        }
        attribution.lost();
        assert_eq!(attribution.missing(after(35)), [], "not each second");
        attribution.lost = false;
        assert_eq!(
            attribution.missing(after(335)),
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
