//! Processes that have mapped attached files, and those whose TLS reads are inspected.

use super::{
    detach::detach,
    files::{AttachedFile, ProcessScope},
    state::AttacherState,
    users::{FileUsers, users},
};
use crate::observed::{
    mapping::{FileKey, mapped_inodes},
    mount::HoldLimit,
};
use monitor_parse::tls_functions as tls;
use std::{cell::LazyCell, num::NonZeroU32, sync::atomic::Ordering};

/// Maximum number of processes whose TLS reads are inspected at the same time.
const RESPONSE_PROCESSES_MAX: usize = 64;

impl AttacherState {
    /// Finds the processes that have mapped a file, if that must be known: others may have mapped
    /// it during its inspection, and the first one may have exited before its exit was tracked.
    pub(super) fn find_mappers(&mut self, key: FileKey, users: &FileUsers) {
        let mappers = users.mappers.get(&key.inode).cloned().unwrap_or_default();
        let mut unused = mappers.is_empty();
        for mut watched in self.evict_files(key) {
            unused &= watched.until == HoldLimit::Unmapped;
            watched.mappers.clone_from(&mappers);
            for pid in &mappers {
                self.attach_process(&mut watched, *pid);
            }
            self.restore_mappers(vec![watched]);
        }
        if unused {
            self.release_file(key);
        }
    }

    pub(super) fn attach_process(&self, watched: &mut AttachedFile, pid: u32) {
        let ProcessScope::Processes(processes) = &mut watched.scope else {
            return;
        };
        if processes.contains_key(&pid)
            || self.busy.rests(pid)
            || self.exclusion.pattern_for(pid).is_some()
        {
            return;
        }
        match self.attach(&watched.points, &watched.file, NonZeroU32::new(pid)) {
            Ok(links) => drop(processes.insert(pid, links)),
            // The process may have exited.
            Err(error) => tracing::debug!(pid, file = %watched.name, %error, "not attached"),
        }
    }

    pub(super) fn add_mapper(&mut self, key: FileKey, pid: u32) {
        let mut watched_files: Vec<AttachedFile> = self.evict_files(key);
        for watched in &mut watched_files {
            if watched.watch.by_process.load(Ordering::Relaxed) {
                watched.mappers.insert(pid);
                self.attach_process(watched, pid);
            }
        }
        self.restore_mappers(watched_files);
    }

    pub(super) fn forked(&mut self, parent: u32, child: u32) {
        let of_parent: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| watched.mappers.contains(&parent))
            .map(|watched| watched.watch.key)
            .collect();
        for key in of_parent {
            self.add_mapper(key, child);
        }
    }

    /// A process exited or executed another program: all its mappings are gone.
    pub(super) fn unmapped(&mut self, pid: u32) {
        self.forget_busy(pid);
        let mut unused = Vec::new();
        let mut links = Vec::new();
        let still_mapped = LazyCell::new(|| mapped_inodes(pid));
        for ((_, inode, _), watched) in &mut self.files {
            // It may have executed the same program again before this request was handled.
            if !watched.mappers.contains(&pid) || still_mapped.contains(inode) {
                continue;
            }
            watched.mappers.remove(&pid);
            if let ProcessScope::Processes(processes) = &mut watched.scope {
                links.extend(processes.remove(&pid).into_iter().flatten());
            }
            if watched.mappers.is_empty() && watched.until == HoldLimit::Unmapped {
                unused.push(watched.watch.key);
            }
        }
        detach(links);
        if !unused.is_empty() {
            // A process that was not tracked may have mapped them.
            let users = users();
            for key in unused {
                self.find_mappers(key, &users);
            }
        }
        self.update_follows();
    }

    /// Inspects the TLS reads of a process that talks to an authenticator.
    pub(super) fn inspect_answers(&mut self, pid: u32) {
        let able = self.programs.contains_key(tls::READ_RETURN);
        let Some(process) = NonZeroU32::new(pid) else {
            return;
        };
        if !able || self.answers.contains_key(&pid) || self.without_answers.contains(&pid) {
            return;
        }
        // Of a busy process, what it presents is sampled; a trap for each read as well is too much.
        if self.busy.rests(pid) || self.exclusion.pattern_for(pid).is_some() {
            return;
        }
        if self.answers.len() >= RESPONSE_PROCESSES_MAX {
            tracing::warn!(
                pid,
                limit = RESPONSE_PROCESSES_MAX,
                "TLS reads not inspected: too many processes talk to authenticators"
            );
            return;
        }
        let inodes = mapped_inodes(pid);
        let mut links = Vec::new();
        for watched in self.files.values() {
            if watched.answers.is_empty() || !inodes.contains(&watched.watch.key.inode) {
                continue;
            }
            match self.attach(&watched.answers, &watched.file, Some(process)) {
                Ok(attached) => links.extend(attached),
                // The process may have exited.
                Err(error) => tracing::debug!(pid, %error, "TLS reads not inspected"),
            }
        }
        if links.is_empty() {
            self.without_answers.insert(pid);
            return;
        }
        tracing::info!(
            pid,
            "inspecting TLS reads of a process that talks to an authenticator"
        );
        self.answers.insert(pid, links);
    }
}
