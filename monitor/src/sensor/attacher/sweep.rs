//! What changed since files were attached to: exclusion rules, files, mounts, processes.

use super::{
    detach::detach,
    files::{ProcessScope, is_same},
    state::AttacherState,
    users::{lives, users},
};
use crate::{
    observed::{
        mapping::FileKey,
        mount::{HoldLimit, MountId},
    },
    reader::mounts,
    sensor::exclude::ExclusionRules,
};
use std::collections::HashSet;

impl AttacherState {
    pub(super) fn exclude(&mut self, exclusion: ExclusionRules) {
        self.exclusion = exclusion;
        let files = std::mem::take(&mut self.files);
        let mut gone = Vec::new();
        let users = users();
        for (key, mut watched) in files {
            let executable = users.programs.contains(&key.1);
            let scope = std::mem::replace(&mut watched.scope, ProcessScope::All(Vec::new()));
            gone.extend(scope.into_links());
            watched.mappers = users.mappers.get(&key.1).cloned().unwrap_or_default();
            if self.attach_scope(&mut watched, executable) {
                self.files.insert(key, watched);
            } else {
                self.known.forget(watched.watch.key);
            }
        }
        detach(gone);
        self.update_follows();
    }

    pub(super) fn reconsider(&mut self) {
        let files = std::mem::take(&mut self.files);
        for (key, mut watched) in files {
            for pid in watched.mappers.clone() {
                self.attach_process(&mut watched, pid);
            }
            self.files.insert(key, watched);
        }
    }

    /// Detaches from files that changed or were deleted.
    pub(super) fn changed(&mut self, changed: &HashSet<i32>) {
        let keys: HashSet<FileKey> = self
            .files
            .values()
            .filter(|watched| {
                watched
                    .change
                    .is_some_and(|change| changed.contains(&change))
            })
            .filter(|watched| !is_same(watched))
            .map(|watched| watched.watch.key)
            .collect();
        for key in keys {
            self.release_file(key);
        }
    }

    pub(super) fn release_unmounted(&mut self) {
        let mounted: HashSet<MountId> = mounts().collect();
        let gone: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| {
                matches!(watched.until, HoldLimit::Unmounted(mount) if !mounted.contains(&mount))
            })
            .map(|watched| watched.watch.key)
            .collect();
        for key in gone {
            self.release_file(key);
        }
    }

    pub(super) fn sweep(&mut self) {
        self.unspare_files();
        self.without_answers.clear();
        let ended: Vec<u32> = self
            .answers
            .keys()
            .copied()
            .filter(|pid| !lives(pid))
            .collect();
        let links = ended
            .iter()
            .filter_map(|pid| self.answers.remove(pid))
            .flatten()
            .collect();
        detach(links);
        // An exit event may have been lost, and a library may have been closed.
        let in_doubt: HashSet<u32> = self
            .files
            .values()
            .flat_map(|watched| {
                let held = watched.until == HoldLimit::Unmapped;
                let mappers = watched.mappers.iter().copied();
                mappers.filter(move |pid| held || !lives(pid))
            })
            .collect();
        for pid in in_doubt {
            self.unmapped(pid);
        }
        // A change event may have been lost as well.
        let changed: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| !is_same(watched))
            .map(|watched| watched.watch.key)
            .collect();
        for key in changed {
            self.release_file(key);
        }
        self.release_unmounted();
    }
}
