//! Executables that were not installed: in memory only, deleted, or added to a container after its
//! image.

use crate::host;
use hashlink::LruCache;
use monitor_core::model::Untrusted;
use procfs::process::{MountInfo, Process};
use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Number of container executables whose origin is cached.
const CACHED: usize = 4096;
/// Directories in which anyone may create a program.
const TEMPORARY_DIRECTORIES: [&str; 4] = ["/tmp/", "/var/tmp/", "/dev/shm/", "/run/shm/"];
/// Low-level runtimes run a copy of themselves from memory until the container's own program
/// starts.
const RUNTIMES: [&str; 4] = ["runc", "crun", "youki", "runsc"];

/// A running executable, as far as it matters for trust.
#[derive(Clone, Copy, Debug)]
pub struct RunningBinary<'a> {
    pub pid: u32,
    /// Path as the process sees it.
    pub exe: &'a str,
    /// It had no name when it was started.
    pub unlinked: bool,
    /// The executable of the parent process.
    pub parent: Option<&'a str>,
    /// The container that it runs in.
    pub container: Option<&'a str>,
}

/// Decides whether executables can be trusted, and caches lookups.
#[derive(Debug)]
pub struct BinaryTrust {
    /// Whether it was added after the image, by container and executable.
    added: LruCache<(String, String), bool>,
}

impl Default for BinaryTrust {
    fn default() -> Self {
        Self {
            added: LruCache::new(CACHED),
        }
    }
}

impl BinaryTrust {
    /// Why an executable cannot be trusted. For a process that exited, only what was seen at its
    /// start is known.
    pub fn distrust_reason(&mut self, running: RunningBinary<'_>) -> Option<Untrusted> {
        let exe = running.exe;
        if running.unlinked {
            let in_memory = exe.trim_start_matches('/').starts_with("memfd:");
            return match (in_memory, is_runtime(running)) {
                (true, true) => None,
                (true, false) => Some(Untrusted::Memory),
                (false, _) => Some(Untrusted::Deleted),
            };
        }
        if is_deleted(running.pid, exe) {
            return Some(Untrusted::Deleted);
        }
        if let Some(container) = running.container {
            let key = (container.to_owned(), exe.to_owned());
            let known = self.added.get(&key).copied();
            let added = known.or_else(|| {
                let added = is_added(running.pid, Path::new(exe))?;
                self.added.insert(key, added);
                Some(added)
            });
            if added == Some(true) {
                return Some(Untrusted::Added);
            }
        }
        TEMPORARY_DIRECTORIES
            .iter()
            .any(|place| exe.starts_with(place))
            .then_some(Untrusted::Temporary)
    }
}

/// Whether it is a runtime's copy of itself: not in a container yet, and started by the runtime.
fn is_runtime(running: RunningBinary<'_>) -> bool {
    let parent = running.parent.and_then(|exe| exe.rsplit('/').next());
    running.container.is_none() && parent.is_some_and(|name| RUNTIMES.contains(&name))
}

/// Whether the file of a running program was deleted without a replacement; an upgrade puts another
/// file at the same path.
fn is_deleted(pid: u32, exe: &str) -> bool {
    let gone = std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|link| link.to_string_lossy().ends_with(" (deleted)"));
    let place = Path::new("/proc").join(pid.to_string()).join("root");
    gone && std::fs::symlink_metadata(place.join(exe.trim_start_matches('/')))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether a program is in a container's writable layer and differs from its image; `None` if that
/// cannot be determined.
fn is_added(pid: u32, exe: &Path) -> Option<bool> {
    let mounts = Process::new(i32::try_from(pid).ok()?)
        .ok()?
        .mountinfo()
        .ok()?;
    let mount = mounts
        .0
        .iter()
        .filter(|mount| exe.starts_with(&mount.mount_point))
        // If several mounts are at one place, the last is on top.
        .max_by_key(|mount| mount.mount_point.components().count())?;
    let layers = OverlayLayers::read(mount)?;
    let inner = exe.strip_prefix(&mount.mount_point).ok()?;
    // It is the kernel's path: no links, and no `..`.
    if inner
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        return None;
    }
    let metadata_at = |layer: &Path| std::fs::symlink_metadata(host::path(layer).join(inner)).ok();
    let Some(upper) = metadata_at(&layers.upper) else {
        return Some(false);
    };
    // Changing only the owner or mode of a file creates a copy of it with the same times.
    let same = |lower: &Metadata| {
        (lower.len(), lower.mtime(), lower.mtime_nsec())
            == (upper.len(), upper.mtime(), upper.mtime_nsec())
    };
    Some(
        !layers
            .lower
            .iter()
            .any(|layer| metadata_at(layer).as_ref().is_some_and(same)),
    )
}

/// The directories of an overlay, as its mounter sees them.
#[derive(Debug, PartialEq, Eq)]
struct OverlayLayers {
    upper: PathBuf,
    lower: Vec<PathBuf>,
}

impl OverlayLayers {
    fn read(mount: &MountInfo) -> Option<Self> {
        if mount.fs_type != "overlay" {
            return None;
        }
        let option = |name: &str| mount.super_options.get(name)?.clone();
        let upper = PathBuf::from(option("upperdir")?);
        let mut lower = Vec::new();
        for layer in option("lowerdir").unwrap_or_default().split(':') {
            let layer = Path::new(layer);
            if layer.is_absolute() {
                lower.push(layer.to_owned());
            } else if !layer.as_os_str().is_empty() {
                // Relative to the mounter's working directory, which is a parent of the other
                // layers.
                lower.extend(upper.ancestors().skip(1).map(|above| above.join(layer)));
            }
        }
        Some(Self { upper, lower })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(exe: &str, unlinked: bool) -> RunningBinary<'_> {
        RunningBinary {
            // No process has this pid.
            pid: 0x7000_0001,
            exe,
            unlinked,
            parent: Some("/usr/bin/bash"),
            container: None,
        }
    }

    #[test]
    fn executables_that_can_be_trusted() {
        let mut binaries = BinaryTrust::default();
        for (exe, unlinked, expected) in [
            ("/usr/bin/curl", false, None),
            ("/memfd:x", true, Some(Untrusted::Memory)),
            ("memfd:x", true, Some(Untrusted::Memory)),
            ("/usr/bin/curl", true, Some(Untrusted::Deleted)),
            ("/tmp/a", true, Some(Untrusted::Deleted)),
            ("/tmp/a", false, Some(Untrusted::Temporary)),
            ("/dev/shm/a", false, Some(Untrusted::Temporary)),
            ("/tmpfiles/a", false, None),
        ] {
            let found = binaries.distrust_reason(running(exe, unlinked));
            assert_eq!(found, expected, "{exe} {unlinked}");
        }
        let mut copy = running("/memfd:runc_cloned:/proc/self/exe", true);
        copy.parent = Some("/usr/sbin/runc");
        assert_eq!(binaries.distrust_reason(copy), None);
        copy.container = Some("c");
        assert_eq!(binaries.distrust_reason(copy), Some(Untrusted::Memory));
    }

    #[test]
    fn a_program_that_deleted_itself_and_one_that_was_upgraded() {
        use std::{fs, process::Command};
        let directory = tempfile::Builder::new()
            .tempdir_in(env!("CARGO_MANIFEST_DIR"))
            .expect("a directory");
        let program = directory.path().join("program");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = Command::new(&program).arg("60").spawn().expect("it runs");
        let exe = program.display().to_string();
        // A program built below /tmp is a temporary program.
        let named = TEMPORARY_DIRECTORIES
            .iter()
            .any(|place| exe.starts_with(place))
            .then_some(Untrusted::Temporary);
        let mut binaries = BinaryTrust::default();
        let mut look = || {
            binaries.distrust_reason(RunningBinary {
                pid: child.id(),
                ..running(&exe, false)
            })
        };
        let running = look();
        fs::remove_file(&program).expect("removed");
        let gone = look();
        // An upgrade puts another file in its place.
        fs::copy("/bin/cat", &program).expect("copied");
        let replaced = look();
        child.kill().expect("it ran");
        child.wait().expect("it ended");
        assert_eq!(
            (running, gone, replaced),
            (named, Some(Untrusted::Deleted), named)
        );
    }

    #[test]
    fn the_layers_of_an_overlay() {
        let layers =
            |line: &str| OverlayLayers::read(&MountInfo::from_line(line).expect("a mount"));
        let found = layers(
            "40 39 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/s/2/fs:1/fs,upperdir=/s/3/fs,workdir=/s/3/work",
        );
        let found = found.expect("an overlay");
        assert_eq!(found.upper, Path::new("/s/3/fs"));
        assert_eq!(found.lower[0], Path::new("/s/2/fs"));
        assert!(found.lower.contains(&PathBuf::from("/s/1/fs")), "{found:?}");
        assert_eq!(
            layers("29 1 254:0 / / rw,relatime - ext4 /dev/vda rw"),
            None
        );
    }
}
