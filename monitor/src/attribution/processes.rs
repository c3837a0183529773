//! The process table: filled by the process probes, and from `/proc` at start and whenever a record
//! names an unknown process.

use super::{Attribution, ProcessEntry, program_name};
use crate::{observed::process::live_subject, sensor::observation::TaskInfo};
use jiff::{SignedDuration, Timestamp};
use monitor_core::model::Subject;
use std::{collections::HashSet, path::Path, sync::Arc};

/// After exit records were lost, the table is compared with `/proc`, at most this often.
const COMPARE_AFTER_LOSS: SignedDuration = SignedDuration::from_secs(10);
/// Interval of that comparison otherwise: a process that was added after its exit gets no exit
/// record.
const COMPARE_INTERVAL: SignedDuration = SignedDuration::from_mins(5);

/// Whether a program runs scripts.
fn is_interpreter(exe: &str) -> bool {
    let name =
        program_name(exe).trim_end_matches(|char: char| char.is_ascii_digit() || char == '.');
    ["node", "nodejs", "python", "ruby", "perl", "php"].contains(&name)
}

impl Attribution {
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
    pub(super) fn adopt(&mut self, pid: u32) -> Option<Subject> {
        let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let subject = Subject {
            pid,
            start: stat.starttime,
        };
        let parent = (stat.ppid > 0)
            .then(|| live_subject(stat.ppid as u32))
            .flatten();
        let (exe, unlinked) = executable(pid, &stat.comm);
        let group = self.groups.get(0, Some(pid), None);
        // The pid may have been reused between the two reads.
        if live_subject(pid) != Some(subject) {
            return None;
        }
        self.names.request(&group);
        let uid = process.uid().unwrap_or(0);
        let above = parent.and_then(|parent| self.table.get(parent));
        let own = self.contexts.ai_agent(&exe, &stat.comm);
        let ai_agent = own.or_else(|| above?.ai_agent.clone());
        let ci_job = above.and_then(|above| above.ci_job.clone());
        self.table.insert(
            subject,
            parent,
            ProcessEntry {
                exe: exe.into(),
                unlinked,
                comm: stat.comm,
                uid,
                tty: stat.tty_nr != 0,
                group,
                cgroup: 0,
                ai_agent,
                ci_job,
            },
        );
        Some(subject)
    }

    /// Records an exec.
    pub fn exec(&mut self, stamp: &TaskInfo, exe: &Path, unlinked: bool) {
        self.agents.remove(&stamp.subject);
        self.ensure(stamp);
        // A runtime moves a process to its own cgroup between fork and exec.
        let parent = stamp.parent.and_then(|parent| self.table.get(parent));
        // The environment may be another one: what its own said of a job does not count any more.
        let job_of_parent = parent.map(|parent| parent.ci_job.clone());
        let parent = parent.map(|parent| Arc::clone(&parent.group));
        let group = self
            .groups
            .get(stamp.cgroup, Some(stamp.subject.pid), parent.as_ref());
        self.names.request(&group);
        let exe = exe.to_string_lossy();
        let ai_agent = self.contexts.ai_agent(&exe, &stamp.comm);
        if let Some(entry) = self.table.get_mut(stamp.subject) {
            entry.exe = exe.into();
            entry.unlinked = unlinked;
            entry.comm.clone_from(&stamp.comm);
            entry.uid = stamp.uid;
            entry.tty = stamp.tty;
            entry.group = group;
            entry.cgroup = stamp.cgroup;
            if ai_agent.is_some() {
                entry.ai_agent = ai_agent;
            }
            if let Some(job) = job_of_parent {
                entry.ci_job = job;
            }
        }
        self.binaries.forget(stamp.subject);
        self.note_download(stamp.subject, stamp.time);
    }

    /// Records a fork: the child inherits its parent's properties.
    pub fn fork(&mut self, stamp: &TaskInfo) {
        let parent = stamp.parent.and_then(|parent| self.table.get(parent));
        let Some(parent) = parent else {
            self.ensure(stamp);
            return;
        };
        let mut entry = ProcessEntry {
            uid: stamp.uid,
            comm: stamp.comm.clone(),
            ..parent.clone()
        };
        // That of a process from /proc is not known by its id: the child's first record would look as
        // if it had been moved.
        if entry.cgroup == 0 {
            entry.cgroup = stamp.cgroup;
        }
        // What a script calls itself says more than the name of its interpreter: `npm install`. Other
        // programs have threads with names of their own.
        if is_interpreter(&entry.exe)
            && let Some(parent) = stamp.parent.and_then(|parent| self.table.get_mut(parent))
        {
            parent.comm.clone_from(&stamp.comm);
            if let Some(ai_agent) = self.contexts.ai_agent("", &stamp.comm) {
                parent.ai_agent = Some(Arc::clone(&ai_agent));
                entry.ai_agent = Some(ai_agent);
            }
        }
        self.table.insert(stamp.subject, stamp.parent, entry);
    }

    /// Records an exit.
    pub fn exit(&mut self, stamp: &TaskInfo) {
        self.downloads.end(stamp.subject, stamp.time);
        self.table.exit(stamp.subject, stamp.time);
    }

    /// Ensures that the subject of a record is in the table, from `/proc` or, if it exited, from
    /// the record itself.
    pub fn ensure(&mut self, stamp: &TaskInfo) {
        if let Some(entry) = self.table.get_mut(stamp.subject) {
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
            .and_then(|parent| self.table.get(parent))
            .cloned();
        if parent.is_none() {
            self.unattributed += 1;
        }
        let group = self.groups.get(
            stamp.cgroup,
            Some(stamp.subject.pid),
            parent.as_ref().map(|parent| &parent.group),
        );
        self.names.request(&group);
        self.table.insert(
            stamp.subject,
            stamp.parent,
            ProcessEntry {
                ai_agent: parent.as_ref().and_then(|parent| parent.ai_agent.clone()),
                ci_job: parent.as_ref().and_then(|parent| parent.ci_job.clone()),
                exe: parent.map_or_else(|| Arc::from(format!("({})", stamp.comm)), |p| p.exe),
                unlinked: false,
                comm: stamp.comm.clone(),
                uid: stamp.uid,
                tty: stamp.tty,
                group,
                cgroup: stamp.cgroup,
            },
        );
    }

    /// Updates the cgroup if a record shows that the process was moved.
    fn update_cgroup(&mut self, stamp: &TaskInfo) {
        let group = self.groups.get(stamp.cgroup, Some(stamp.subject.pid), None);
        // The previously known cgroup tells more than the fact that it was removed.
        if group.gone.is_none() && !group.path.is_empty() {
            self.names.request(&group);
            if let Some(entry) = self.table.get_mut(stamp.subject) {
                entry.group = group;
            }
        }
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
        let missing: Vec<Subject> = self
            .table
            .alive()
            .map(|(subject, _)| subject)
            .filter(|subject| live_subject(subject.pid) != Some(*subject))
            .collect();
        for subject in &missing {
            self.table.exit(*subject, now);
        }
        missing
    }

    /// Forgets processes that exited long ago, and those without descendants that exited recently;
    /// returns them. Those in `kept` stay.
    pub fn evict_exited(&mut self, now: Timestamp, kept: &HashSet<Subject>) -> Vec<Subject> {
        let evicted = self.table.evict_exited(now, kept);
        self.names
            .retain(self.table.values().map(|entry| &*entry.group));
        evicted
    }
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
