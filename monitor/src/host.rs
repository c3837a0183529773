//! The host's own view of its files, where the agent is in a container.

use procfs::process::{MountInfo, Process};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// The root of the first process, where that is another than the agent's and may be entered: a
/// container that shares the host's processes. Empty where the agent is on the host itself.
static ROOT: LazyLock<&str> = LazyLock::new(|| {
    const OF_FIRST: &str = "/proc/1/root";
    let id = |path: &str| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    match (id("/"), id(OF_FIRST)) {
        (Some(own), Some(first)) if own != first => OF_FIRST,
        _ => "",
    }
});

/// Where the agent finds what the host has at a path.
pub fn path(path: &Path) -> PathBuf {
    below(&ROOT, path)
}

fn below(root: &str, path: &Path) -> PathBuf {
    let root = if root.is_empty() { "/" } else { root };
    Path::new(root).join(path.strip_prefix("/").unwrap_or(path))
}

/// What the host has mounted; nothing where that cannot be read.
pub fn mounts() -> Vec<MountInfo> {
    let process = if ROOT.is_empty() {
        Process::myself()
    } else {
        Process::new(1)
    };
    let mounts = process.and_then(|process| process.mountinfo());
    mounts.map(|mounts| mounts.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_host() {
        for (root, path, expected) in [
            ("", "/run/x", "/run/x"),
            ("", "run/x", "/run/x"),
            ("/proc/1/root", "/run/x", "/proc/1/root/run/x"),
        ] {
            assert_eq!(below(root, Path::new(path)), Path::new(expected));
        }
    }
}
