//! What a cgroup path reveals: container, pod, systemd unit.

use super::groups::{CgroupPaths, watch_cgroups};
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is known about a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The path from which it was derived.
    pub path: String,
    /// The runtime's container id, 64 hex digits.
    pub container: Option<String>,
    pub pod_uid: Option<String>,
    /// The innermost systemd service; sessions do not count.
    pub unit: Option<String>,
    /// A login session.
    pub session: bool,
    /// The cgroup's id, if it was removed before it could be examined: nothing else is known about
    /// it.
    pub gone: Option<u64>,
}

impl Cgroup {
    fn vanished(id: u64) -> Self {
        Self {
            path: format!("(cgroup {id})"),
            gone: Some(id),
            ..Self::default()
        }
    }
}

/// Parses a cgroup path of any runtime and cgroup driver.
///
/// `kubepods.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` (systemd driver),
/// `/kubepods/burstable/podUID/ID` (cgroupfs), `/docker/ID`, `docker-ID.scope`, `libpod-ID.scope`,
/// `crio-ID.scope`, and units below `system.slice` and `user.slice`.
pub fn parse(path: &str) -> Cgroup {
    let mut group = Cgroup {
        path: path.to_owned(),
        ..Cgroup::default()
    };
    // Users choose the names of their own cgroups: no kubelet keeps pods there.
    let mut of_user = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        of_user |= part.starts_with("user@") || part.starts_with("user-");
        if let Some(uid) = pod_uid(part).filter(|_| !of_user) {
            group.pod_uid = Some(uid);
            group.unit = None;
        } else if let Some(id) = container_id(part) {
            group.container = Some(id);
            group.unit = None;
        } else if group.container.is_none() && group.pod_uid.is_none() {
            if part.starts_with("session-") && part.ends_with(".scope") {
                group.session = true;
            } else if part.ends_with(".service") && !part.starts_with("user@") {
                group.unit = Some(part.to_owned());
            }
        }
    }
    group
}

/// A container id: the last run of 64 hex digits, alone or as `runtime-ID.scope`.
fn container_id(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    // conmon's own scope is not the container.
    if name.contains("-conmon-") {
        return None;
    }
    // `cri-containerd:NAME:ID` and `runtime-ID`.
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// `podUID`, or `kubepods-besteffort-podUID.slice` with `_` for `-`.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = if let Some(rest) = name.strip_prefix("pod") {
        rest
    } else {
        name.strip_prefix("kubepods")?.rsplit_once("-pod")?.1
    };
    let uid = uid.replace('_', "-");
    // A static pod's uid is a hash of 32 digits.
    (uid.len() >= 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-'))
    .then_some(uid)
}

/// Cgroups by the id that BPF reports, with `/proc/PID/cgroup` as a fallback.
#[derive(Debug, Default)]
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
    known: HashMap<u64, Arc<Cgroup>>,
    by_path: HashMap<String, Arc<Cgroup>>,
}

/// Number of cgroups cached before the cache is cleared: more than a node has.
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
            ..Self::default()
        }
    }

    /// The cgroup of a process.
    ///
    /// On a hybrid host every process can be in the root of cgroup v2 while the v1 hierarchies hold
    /// the information, so the root's id is never used. `parent` is used for a process that exited,
    /// because cgroups are inherited.
    pub fn get(&mut self, id: u64, pid: u32, parent: Option<&Arc<Cgroup>>) -> Arc<Cgroup> {
        if id != self.root_id
            && let Some(known) = self.known.get(&id)
        {
            return Arc::clone(known);
        }
        if self.by_path.len() > CACHED || self.known.len() > CACHED {
            self.by_path.clear();
            self.known.clear();
        }
        let own = id != 0 && id != self.root_id;
        let found = self
            .path_by_id(id)
            .or_else(|| read_proc(pid, &self.namespace));
        let path = match (found, parent) {
            (Some(path), _) => path,
            // A process in a cgroup of its own is not in its parent's: a runtime starts a
            // container's first process this way.
            (None, _) if own => {
                self.gone += 1;
                return Arc::new(Cgroup::vanished(id));
            }
            (None, Some(parent)) => parent.path.clone(),
            (None, None) => String::new(),
        };
        let group = Arc::clone(
            self.by_path
                .entry(path)
                .or_insert_with_key(|path| Arc::new(parse(path))),
        );
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

/// The paths of a process in every hierarchy, as `/proc` shows them; empty if it exited.
pub fn paths_of(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| path.strip_suffix(" (deleted)").unwrap_or(path).to_owned())
        .collect()
}

/// The most informative path of a process: a container's, a unit's, or the longest.
fn read_proc(pid: u32, namespace: &str) -> Option<String> {
    // A zombie is in the root of every v1 hierarchy, whatever it was in before; so the root is no
    // information, and the parent's cgroup is the better answer.
    paths_of(pid)
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
    let shown = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = std::process::id().to_string();
    let here = containing_directory(root, &own, 0)?;
    let here = format!("/{}", here.strip_prefix(root).ok()?.display());
    let namespace = here.strip_suffix(shown.trim_end_matches('/'))?;
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
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "1b2c3d4e-0001-4002-8003-1234567890ab";

    #[test]
    fn containers_pods_and_units() {
        let underscored = UID.replace('-', "_");
        for (path, container, pod, unit) in [
            (
                format!("/kubepods/burstable/pod{UID}/{ID}"),
                true,
                true,
                None,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-{ID}.scope"
                ),
                true,
                true,
                None,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{underscored}.slice/crio-{ID}.scope"),
                true,
                true,
                None,
            ),
            (
                format!("/system.slice/docker-{ID}.scope"),
                true,
                false,
                None,
            ),
            (format!("/docker/{ID}"), true, false, None),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                true,
                false,
                None,
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-besteffort-pod{underscored}.slice:cri-containerd:{ID}"
                ),
                true,
                false,
                None,
            ),
            (
                format!("/machine.slice/libpod-conmon-{ID}.scope"),
                false,
                false,
                None,
            ),
            (
                "/system.slice/nginx.service".to_owned(),
                false,
                false,
                Some("nginx.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service".to_owned(),
                false,
                false,
                Some("sync.service"),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope".to_owned(),
                false,
                false,
                None,
            ),
            ("/".to_owned(), false, false, None),
        ] {
            let group = parse(&path);
            assert_eq!(group.container.is_some(), container, "{path}");
            assert_eq!(group.pod_uid.as_deref() == Some(UID), pod, "{path}");
            assert_eq!(group.unit.as_deref(), unit, "{path}");
        }
        assert!(parse("/user.slice/user-1000.slice/session-3.scope").session);
    }

    #[test]
    fn paths_of_a_namespace_are_those_of_the_host() {
        let own = format!("/kubepods/burstable/pod{UID}/{ID}");
        for (namespace, shown, host) in [
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
            assert_eq!(host_path(namespace, shown), host, "{shown} in {namespace}");
        }
    }

    proptest! {
        #[test]
        fn any_path_parses(path in "\\PC{0,200}") {
            let _ = parse(&path);
        }
    }
}
