//! Places of credentials that variables name.

use super::{Credentials, class::is_general};
use crate::sensor::{
    observation::{FileId, ObservedVariable},
    running,
};
use monitor_core::catalog::{Catalog, glob::normalise, kernel_filter::FilterRules};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Maximum places named by variables. Anyone who can start programs can invent any number of them,
/// so any more are ignored.
const POINTED_PLACES_MAX: usize = 1024;
/// As [`POINTED_PLACES_MAX`], per container, and for the host.
const POINTED_PER_CONTAINER_MAX: usize = 256;
/// Maximum places named by one environment.
const POINTED_PER_PROCESS_MAX: usize = 16;

impl Credentials {
    /// The entries of the kernel filter.
    pub fn rules(&self) -> FilterRules {
        let paths = self.pointed.keys().map(|(_, path)| path.as_str());
        self.catalog.filter_rules(paths)
    }

    /// Whether a variable points to a credential and its value was not followed before.
    pub fn points(&mut self, variable: &ObservedVariable, container: &str) -> Option<u64> {
        self.catalog.pointers(&variable.name).next()?;
        let value = format!("{}\0{container}\0{}", variable.name, variable.fingerprint);
        let print = self.print_of(&value);
        self.followed.get(&print).is_none().then_some(print)
    }

    /// Follows the paths in a process's environment: files there become credentials of its
    /// container. Returns the files that exist, and whether any place is new; `None` if the process
    /// has no environment any more.
    ///
    /// Anyone can point anywhere: paths that do not exist, excluded paths, and paths beyond the
    /// limits are ignored, and a file counts only if its contents have the form of a credential.
    pub fn follow(
        &mut self,
        pid: u32,
        container: &str,
        values: &[u64],
    ) -> Option<(Vec<FileId>, bool)> {
        let catalog = Arc::clone(&self.catalog);
        let mut environ = File::open(format!("/proc/{pid}/environ")).ok()?;
        let targets = self.buffer.with_file(&mut environ, |bytes| {
            bytes
                .split(|byte| *byte == 0)
                .flat_map(|entry| targets(&catalog, entry))
                .take(POINTED_PER_PROCESS_MAX)
                .collect::<Vec<_>>()
        });
        let targets = targets.ok()?;
        for value in values {
            self.followed.insert(*value, ());
        }
        let (mut files, mut is_new) = (Vec::new(), false);
        for (path, class) in targets {
            let path = if path.is_absolute() {
                path
            } else {
                let Ok(directory) = std::fs::read_link(format!("/proc/{pid}/cwd")) else {
                    continue;
                };
                directory.join(path)
            };
            let normal = normalise(&path.to_string_lossy());
            let known = catalog.file(&normal);
            if catalog.is_excluded_path(&normal)
                || known.is_some_and(|known| !is_general(&known.class))
            {
                continue;
            }
            let Some(target) = running::path_target(pid, &path) else {
                continue;
            };
            if catalog.is_excluded_path(&normalise(&target.path.to_string_lossy())) {
                continue;
            }
            let place = (container.to_owned(), normal.clone());
            if !self.pointed.contains_key(&place) {
                let own = self.pointed.keys().filter(|known| known.0 == container);
                if self.pointed.len() >= POINTED_PLACES_MAX
                    || own.count() >= POINTED_PER_CONTAINER_MAX
                {
                    self.unfollowed += 1;
                    continue;
                }
                self.pointed.insert(place, class);
                is_new = true;
            }
            if let Some(file) = target.file {
                self.homes.entry(file).or_insert(normal);
                files.push(file);
            }
        }
        Some((files, is_new))
    }
}

/// The paths that a variable's value names, with their classes.
pub(super) fn targets(catalog: &Catalog, entry: &[u8]) -> Vec<(PathBuf, String)> {
    let Some((name, value)) = std::str::from_utf8(entry)
        .ok()
        .and_then(|entry| entry.split_once('='))
    else {
        return Vec::new();
    };
    let mut targets = Vec::new();
    for pointer in catalog.pointers(name) {
        let value = value
            .strip_prefix("unix:")
            .map_or(value, |path| path.strip_prefix("//").unwrap_or(path));
        // Some contain the secret itself instead of a path: no part of that may be kept.
        let is_path = |path: &&str| {
            !path.is_empty()
                && path.len() < 1024
                && !path.contains(|c: char| c.is_control() || "\"'{}<>=,;".contains(c))
        };
        for path in value.split(':').filter(is_path) {
            let path = Path::new(path);
            let path = pointer
                .below
                .as_ref()
                .map_or_else(|| path.to_owned(), |below| path.join(below));
            targets.push((path, pointer.class.clone()));
        }
    }
    targets
}
