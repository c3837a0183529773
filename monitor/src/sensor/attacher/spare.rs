//! Spares busy processes: nothing is attached to them while they rest.
//!
//! A link cannot leave out a process. So the files that a busy process has mapped are attached to for
//! each of the other processes that have mapped them, and for those that will.

use super::{
    SensorNotice,
    busy::BusyChange,
    detach::detach,
    files::{AttachedFile, ProcessScope},
    spared::SparedProcess,
    state::AttacherState,
    users::{FileUsers, lives, users},
};
use crate::observed::mapping::mapped_inodes;
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// A file is attached to for all processes again after no busy process used it for this long.
const SPARED_FOR: Duration = Duration::from_secs(60);
/// Above this number of processes a file is not attached to one by one: each costs some descriptors, and
/// each hit asks every link whether it is for it.
const PROCESSES_MAX: usize = 256;
/// Hits of a resting process between two looks that may come from links that are being detached.
const LATE_HITS: u64 = 200;

impl AttacherState {
    /// Looks at how often programs were hit, if it is due.
    pub(super) fn look_at_hits(&mut self) {
        let now = Instant::now();
        if now < self.busy.next_look() {
            return;
        }
        let hits = self.hits.take();
        let changes = self.busy.look(&hits, now);
        for change in &changes {
            self.apply_busy(*change);
        }
        self.rest_again_where_hit(&hits, &changes);
    }

    pub(super) fn apply_busy(&mut self, change: BusyChange) {
        match change {
            BusyChange::Rest(pid) => self.rest(pid),
            BusyChange::Observe(pid) => self.observe(pid),
            BusyChange::RestAgain(pid) => self.detach_process(pid),
            BusyChange::Calm(pid) => self.forget_busy(pid),
        }
        self.spares.store(!self.busy.is_empty(), Ordering::Relaxed);
    }

    /// A resting process that is hit nevertheless has mapped another file since.
    fn rest_again_where_hit(&mut self, hits: &HashMap<u32, u64>, changes: &[BusyChange]) {
        let hit: Vec<u32> = hits
            .iter()
            .filter(|(pid, hits)| **hits > LATE_HITS && self.busy.rests(**pid))
            .map(|(pid, _)| *pid)
            .filter(|pid| {
                ![BusyChange::Rest(*pid), BusyChange::RestAgain(*pid)]
                    .iter()
                    .any(|change| changes.contains(change))
            })
            .collect();
        for pid in hit {
            self.leave_out(pid);
        }
    }

    fn rest(&mut self, pid: u32) {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        let program = program.unwrap_or_else(|_| PathBuf::from("?"));
        let spared = SparedProcess {
            program: program.display().to_string(),
            since: Timestamp::now(),
        };
        tracing::info!(
            pid,
            program = spared.program,
            "sampling the TLS writes of a busy process"
        );
        self.reporter.report(SensorNotice::Sampled {
            program: spared.program.clone(),
            since: spared.since,
            unread: None,
        });
        self.spared.insert(pid, spared);
        self.leave_out(pid);
    }

    /// Detaches everything from a process, and from what it has mapped for all.
    fn leave_out(&mut self, pid: u32) {
        let inodes = mapped_inodes(pid);
        let now = Instant::now();
        let mut files = std::mem::take(&mut self.files);
        let mut all: Option<FileUsers> = None;
        for ((_, inode, _), watched) in &mut files {
            let crowded = watched
                .crowded
                .is_some_and(|since| now.duration_since(since) < SPARED_FOR);
            if crowded || !inodes.contains(inode) {
                continue;
            }
            watched.spared = Some(now);
            if matches!(watched.scope, ProcessScope::All(_)) {
                // Before the processes are listed: those that map it meanwhile are told.
                watched.watch.by_process.store(true, Ordering::Relaxed);
                let users = all.get_or_insert_with(users);
                self.attach_one_by_one(watched, users);
            }
        }
        self.files = files;
        self.detach_process(pid);
        self.update_follows();
    }

    fn attach_one_by_one(&self, watched: &mut AttachedFile, users: &FileUsers) {
        let inode = watched.watch.key.inode;
        let mappers = users.mappers.get(&inode).cloned().unwrap_or_default();
        if mappers.len() > PROCESSES_MAX {
            tracing::warn!(
                file = %watched.name,
                processes = mappers.len(),
                "busy processes are not spared: too many use the same library"
            );
            watched.watch.by_process.store(false, Ordering::Relaxed);
            (watched.spared, watched.crowded) = (None, Some(Instant::now()));
            return;
        }
        watched.mappers = mappers;
        let all = std::mem::replace(&mut watched.scope, ProcessScope::Processes(HashMap::new()));
        for pid in watched.mappers.clone() {
            self.attach_process(watched, pid);
        }
        detach(all.into_links());
    }

    /// Detaches from a process.
    fn detach_process(&mut self, pid: u32) {
        let mut links: Vec<_> = self.answers.remove(&pid).into_iter().flatten().collect();
        for watched in self.files.values_mut() {
            if let ProcessScope::Processes(processes) = &mut watched.scope {
                links.extend(processes.remove(&pid).into_iter().flatten());
            }
        }
        detach(links);
    }

    /// Attaches to everything that a process has mapped.
    fn observe(&mut self, pid: u32) {
        let inodes = mapped_inodes(pid);
        let mut files = std::mem::take(&mut self.files);
        for ((_, inode, _), watched) in &mut files {
            if inodes.contains(inode) {
                watched.spared = watched.spared.map(|_| Instant::now());
                self.attach_process(watched, pid);
            }
        }
        self.files = files;
    }

    /// A process connects: a busy one is observed if it can be afforded.
    pub(super) fn connected(&mut self, pid: u32) {
        if let Some(change) = self.busy.connected(pid, Instant::now()) {
            self.apply_busy(change);
        }
    }

    /// A process ended, or executed another program.
    pub(super) fn forget_busy(&mut self, pid: u32) {
        if let (Some(process), Some(spared)) = (self.busy.forget(pid), self.spared.remove(&pid)) {
            self.reporter.report(SensorNotice::Sampled {
                program: spared.program,
                since: spared.since,
                unread: Some(process.unread),
            });
        }
        self.spares.store(!self.busy.is_empty(), Ordering::Relaxed);
    }

    /// Attaches for all processes again to files that no busy process uses any more.
    pub(super) fn unspare_files(&mut self) {
        let ended: Vec<u32> = self.busy.pids().filter(|pid| !lives(pid)).collect();
        for pid in ended {
            self.forget_busy(pid);
        }
        let busy: HashSet<u32> = self.busy.pids().collect();
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, watched) in &mut self.files {
            let Some(spared) = &mut watched.spared else {
                continue;
            };
            if watched.mappers.iter().any(|pid| busy.contains(pid)) {
                *spared = now;
            } else if now.duration_since(*spared) > SPARED_FOR {
                due.push(*key);
            }
        }
        if due.is_empty() {
            return;
        }
        let programs = users().programs;
        for key in due {
            let Some(mut watched) = self.files.remove(&key) else {
                continue;
            };
            watched.spared = None;
            watched.watch.by_process.store(false, Ordering::Relaxed);
            let one_by_one = std::mem::replace(&mut watched.scope, ProcessScope::All(Vec::new()));
            if self.attach_scope(&mut watched, programs.contains(&key.1)) {
                detach(one_by_one.into_links());
                self.files.insert(key, watched);
            } else {
                detach(one_by_one.into_links());
                self.known.forget(watched.watch.key);
            }
        }
        self.update_follows();
    }
}
