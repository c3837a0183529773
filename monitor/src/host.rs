//! The host's own view of its files, where the agent is in a container.

use procfs::process::{MountInfo, Process};
use std::{
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// A process that has the host's root, where the agent's is another and that one may be entered: a container
/// that shares the host's processes. Nothing where the agent is on the host itself.
///
/// The first process has it, if it may be looked into; else whoever started this container.
static HOST: LazyLock<Option<i32>> = LazyLock::new(|| {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    let own = id("/")?;
    [Some(1), parent]
        .into_iter()
        .flatten()
        .find_map(|pid| id(&root(pid)).map(|root| (pid, root)))
        .and_then(|(pid, root)| (root != own).then_some(pid))
});

fn root(pid: i32) -> String {
    format!("/proc/{pid}/root")
}

fn id(path: &str) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The directory in `/proc` of a process that has the host's root.
pub fn process() -> String {
    HOST.map_or_else(|| "self".to_owned(), |pid| pid.to_string())
}

/// Where the agent finds what the host has at a path.
pub fn path(path: &Path) -> PathBuf {
    below(&HOST.map_or_else(|| "/".to_owned(), root), path)
}

/// A path that leads to what a descriptor of this process stands for, whatever has its name by now.
pub fn descriptor_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

fn below(root: &str, path: &Path) -> PathBuf {
    Path::new(root).join(path.strip_prefix("/").unwrap_or(path))
}

/// What the host has mounted; nothing where that cannot be read.
pub fn mounts() -> Vec<MountInfo> {
    let process = HOST.map_or_else(Process::myself, Process::new);
    let mounts = process.and_then(|process| process.mountinfo());
    mounts.map(|mounts| mounts.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_host() {
        for (root, path, expected) in [
            ("/", "/run/x", "/run/x"),
            ("/", "run/x", "/run/x"),
            ("/proc/1/root", "/run/x", "/proc/1/root/run/x"),
        ] {
            assert_eq!(below(root, Path::new(path)), Path::new(expected));
        }
    }
}
