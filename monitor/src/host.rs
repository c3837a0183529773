//! Access to the host's files from inside a container.

use std::{
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A process that has the host's root, if the agent's root is another one and that process may be
/// accessed: a container that shares the host's PID namespace. `None` if the agent runs on the host
/// itself.
///
/// This is pid 1 if it may be accessed, otherwise the process that started this container.
static HOST: OnceLock<Option<i32>> = OnceLock::new();

/// The process with the host's root; see [`HOST`].
pub fn process() -> Option<i32> {
    *HOST.get_or_init(find_process)
}

/// Sets what [`process`] returns, in a process whose parent is the agent.
pub fn set_process(pid: Option<i32>) {
    // Nothing asked before.
    let _ = HOST.set(pid);
}

fn find_process() -> Option<i32> {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    let own = id("/")?;
    [Some(1), parent]
        .into_iter()
        .flatten()
        .find_map(|pid| id(&root(pid)).map(|root| (pid, root)))
        .and_then(|(pid, root)| (root != own).then_some(pid))
}

fn root(pid: i32) -> String {
    format!("/proc/{pid}/root")
}

fn id(path: &str) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The host's name, in lower case.
pub fn name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().to_lowercase()
}

/// A process that has the host's root: another one, or this one.
pub fn pid() -> u32 {
    process().map_or_else(std::process::id, i32::unsigned_abs)
}

/// Where the agent finds a path of the host.
pub fn path(path: &Path) -> PathBuf {
    below(&process().map_or_else(|| "/".to_owned(), root), path)
}

/// A path that refers to an open descriptor of this process, whatever its former name refers to
/// now.
pub fn descriptor_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

fn below(root: &str, path: &Path) -> PathBuf {
    Path::new(root).join(path.strip_prefix("/").unwrap_or(path))
}

/// The paths of a process in every hierarchy, as `/proc` shows them; empty if it exited.
pub fn cgroup_paths(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| path.strip_suffix(" (deleted)").unwrap_or(path).to_owned())
        .collect()
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
