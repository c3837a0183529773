//! Resolves cgroup ids to cgroups.

use super::groups::{CgroupPaths, watch_cgroups};
use crate::host;
use hashlink::LruCache;
use monitor_parse::cgroup::{Cgroup, parse};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Cgroups by the id that BPF reports, with `/proc/PID/cgroup` as a fallback.
#[derive(Debug)]
pub struct CgroupIndex {
    root: Option<PathBuf>,
    root_id: u64,
    /// Paths of cgroups, including removed ones.
    paths: Option<CgroupPaths>,
    /// Number of cgroups that were removed before they could be examined.
    pub gone: u64,
    /// The cgroup that `/proc` shows as its root: the agent's own, if its container has a cgroup
    /// namespace. Empty if it is the real root.
    namespace: String,
    known: LruCache<u64, Arc<Cgroup>>,
    by_path: LruCache<String, Arc<Cgroup>>,
}

/// Number of cgroups cached: more than a node has.
const CACHED: usize = 8192;

impl CgroupIndex {
    /// `root` is the mount point of cgroup v2.
    pub fn new(root: Option<PathBuf>) -> Self {
        let root_id = root
            .as_deref()
            .and_then(|path| path.metadata().ok())
            .map_or(0, |metadata| metadata.ino());
        let namespace = root.as_deref().and_then(namespace_of).unwrap_or_default();
        let paths = root.as_deref().and_then(|root| match watch_cgroups(root) {
            Ok(paths) => Some(paths),
            Err(error) => {
                tracing::warn!(%error, "cannot watch cgroups: short-lived workloads may have no name");
                None
            }
        });
        Self {
            root,
            root_id,
            paths,
            gone: 0,
            namespace,
            known: LruCache::new(CACHED),
            by_path: LruCache::new(CACHED),
        }
    }

    /// The cgroup of a process, or one without a known process.
    ///
    /// On a hybrid host every process can be in the root of cgroup v2 while the v1 hierarchies hold
    /// the information, so the root's id is never used. `parent` is used for a process that exited,
    /// because cgroups are inherited.
    pub fn get(&mut self, id: u64, pid: Option<u32>, parent: Option<&Arc<Cgroup>>) -> Arc<Cgroup> {
        if id != self.root_id
            && let Some(known) = self.known.get(&id)
        {
            return Arc::clone(known);
        }
        let own = id != 0 && id != self.root_id;
        let found = self
            .path_by_id(id)
            .or_else(|| read_proc(pid?, &self.namespace));
        let path = match (found, parent) {
            (Some(path), _) => path,
            // A process in a cgroup of its own is not in its parent's: a runtime starts a
            // container's first process this way.
            (None, _) if own => {
                self.gone += u64::from(pid.is_some());
                return Arc::new(Cgroup::vanished(id));
            }
            (None, Some(parent)) => parent.path.clone(),
            (None, None) => String::new(),
        };
        let group = match self.by_path.get(&path) {
            Some(group) => Arc::clone(group),
            None => {
                let group = Arc::new(parse(&path));
                self.by_path.insert(path, Arc::clone(&group));
                group
            }
        };
        if id != self.root_id && id != 0 {
            self.known.insert(id, Arc::clone(&group));
        }
        group
    }

    /// The path of a cgroup v2 directory by its inode number, which is the id that BPF reports.
    fn path_by_id(&self, id: u64) -> Option<String> {
        let root = self.root.as_deref()?;
        if id == self.root_id || id == 0 {
            return None;
        }
        self.paths
            .as_ref()
            .and_then(|paths| paths.get(id))
            .or_else(|| {
                find(root, id, 0).map(|path| {
                    let inner = path.strip_prefix(root).unwrap_or(&path);
                    format!("/{}", inner.display())
                })
            })
    }
}

/// Maximum directory depth searched.
const DEPTH_MAX: usize = 16;

fn find(directory: &Path, id: u64, depth: usize) -> Option<PathBuf> {
    if depth > DEPTH_MAX {
        return None;
    }
    let entries = std::fs::read_dir(directory).ok()?;
    let mut below = Vec::new();
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            use std::os::unix::fs::DirEntryExt as _;
            if entry.ino() == id {
                return Some(entry.path());
            }
            below.push(entry.path());
        }
    }
    below.iter().find_map(|path| find(path, id, depth + 1))
}

/// The most informative path of a process: a container's, a unit's, or the longest.
fn read_proc(pid: u32, namespace: &str) -> Option<String> {
    // A zombie is in the root of every v1 hierarchy, whatever it was in before; so the root is no
    // information, and the parent's cgroup is the better answer.
    host::cgroup_paths(pid)
        .iter()
        .map(|path| host_path(namespace, path))
        .filter(|path| path != "/")
        .max_by_key(|path| {
            let group = parse(path);
            (
                group.container.is_some(),
                group.pod_uid.is_some(),
                group.unit.is_some(),
                path.len(),
            )
        })
}

/// The cgroup that `/proc` shows as its root, determined from the tree mounted at `root`.
fn namespace_of(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let relative = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = std::process::id().to_string();
    let here = containing_directory(root, &own, 0)?;
    let here = format!("/{}", here.strip_prefix(root).ok()?.display());
    let namespace = here.strip_suffix(relative.trim_end_matches('/'))?;
    Some(namespace.trim_end_matches('/').to_owned())
}

/// The cgroup directory that contains a process.
fn containing_directory(directory: &Path, pid: &str, depth: usize) -> Option<PathBuf> {
    if depth > DEPTH_MAX {
        return None;
    }
    let has = std::fs::read_to_string(directory.join("cgroup.procs"))
        .is_ok_and(|pids| pids.lines().any(|line| line == pid));
    if has {
        return Some(directory.to_owned());
    }
    let below = std::fs::read_dir(directory).ok()?.flatten();
    below
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| containing_directory(&entry.path(), pid, depth + 1))
}

/// Converts a path shown inside a cgroup namespace to the host's: each leading `..` goes up one
/// level.
fn host_path(namespace: &str, path: &str) -> String {
    if namespace.is_empty() {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = namespace
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_namespace_are_those_of_the_host() {
        let own = "/kubepods/burstable/pod1b2c/0123".to_owned();
        for (namespace, relative, host) in [
            (
                "",
                "/system.slice/nginx.service",
                "/system.slice/nginx.service",
            ),
            (own.as_str(), "/", own.as_str()),
            (&own, "/../../../..", "/"),
            (
                &own,
                "/../../../../system.slice/a.service",
                "/system.slice/a.service",
            ),
            (&own, "/../../podx/y", "/kubepods/burstable/podx/y"),
            // More of them than there are levels.
            (&own, "/../../../../../../a", "/a"),
        ] {
            assert_eq!(
                host_path(namespace, relative),
                host,
                "{relative} in {namespace}"
            );
        }
    }
}
