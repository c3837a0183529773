//! Keeps a file open for its probes without keeping its file system from being unmounted.
//!
//! A uprobe is registered for an inode, but through a path, whose mount stays busy until the probe
//! is detached. So a file is opened through a mount that is permanent anyway, or through a private
//! copy of its mount, and only if neither exists through the mount that the process uses.

use super::{
    identify::{
        Links, locate, metadata, mount_number, open_in_layer, reopen as reopen_for_reading,
    },
    mount_table::{MountEntry, mounts_of},
};
use crate::{
    host::{self, descriptor_path},
    observed::{
        mapping::ProcessMapping,
        mount::{HoldLimit, MountId},
    },
};
use rustix::{
    fs::{Mode, OFlags},
    mount::OpenTreeFlags,
    thread::CapabilitySet,
};
use std::{
    collections::HashSet,
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::LazyLock,
};
use thiserror::Error;

/// Why a file could not be opened this way.
#[derive(Debug, Error)]
pub enum HoldError {
    #[error("cannot open the file: {0}")]
    Open(#[from] io::Error),
    #[error("not a regular file, or replaced by another")]
    Replaced,
    #[error(
        "it is on {0}, which a probe would keep from being unmounted; with CAP_SYS_ADMIN a private copy of the mount is used instead"
    )]
    Busy(PathBuf),
    #[error("it is on {0}, a file system that may not respond")]
    Remote(String),
}

impl HoldError {
    /// Whether another attempt, through another process, would fail the same way.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Remote(_))
    }
}

/// A file opened through a mount that may be kept busy.
#[derive(Debug)]
pub struct HeldFile {
    /// An O_PATH descriptor: what uprobes are registered by.
    pub place: OwnedFd,
    /// The same file, open for reading.
    pub file: File,
    pub metadata: Metadata,
    pub until: HoldLimit,
}

/// Whether a mount may keep the reader waiting. The host's own root must respond anyway.
fn may_wait(mount: &MountEntry) -> bool {
    mount.is_remote() && mount.point != Path::new("/")
}

/// The mounts of this process's own namespace.
pub fn mounts() -> impl Iterator<Item = MountId> {
    mounts_of(std::process::id())
        .into_iter()
        .map(|mount| mount.id)
}

/// Opens a file that a process has mapped. `at_start` are the mounts that were present when the agent
/// started.
pub(super) fn hold_mapped(
    mapping: &ProcessMapping,
    at_start: &HashSet<MountId>,
) -> Result<HeldFile, HoldError> {
    let of_process = mounts_of(mapping.pid);
    let own = mounts_of(std::process::id());
    let mount_of = |opened: &OwnedFd| -> io::Result<Option<&MountEntry>> {
        let number = mount_number(opened)?
            .ok_or_else(|| io::Error::other("the kernel does not report its mount"))?;
        let is_it = |mount: &&MountEntry| mount.id.number == number;
        Ok(of_process.iter().chain(&own).find(is_it))
    };
    let (seen, mount) = open_as_mapped(mapping, |opened| match mount_of(opened)? {
        Some(mount) if may_wait(mount) => Err(HoldError::Remote(mount.kind.clone())),
        mount => Ok(mount),
    })?;
    // A mount that is in neither list is internal to the kernel, for example for shared memory.
    let Some(mount) = mount else {
        return reopen(seen, HoldLimit::Unmapped);
    };
    let inside = mapping
        .path
        .strip_prefix(&mount.point)
        .ok()
        .map(|rest| mount.root.join(rest));
    if let Some(inside) = &inside {
        if mount.is_overlay() {
            if let Some(held) = in_layer(mount, inside, &seen) {
                return Ok(held);
            }
        } else if let Some(held) = in_host_root(mount, inside, &seen) {
            return Ok(held);
        }
    }
    if !own.iter().any(|known| known.id == mount.id) {
        return reopen(seen, HoldLimit::Unmapped);
    }
    match copy_of_mount(&seen) {
        Some(copy) => reopen(copy, HoldLimit::Unmounted(mount.id)),
        None if at_start.contains(&mount.id) => reopen(seen, HoldLimit::Unmapped),
        None => Err(HoldError::Busy(mount.point.clone())),
    }
}

/// A private mount of one file; it keeps the file system busy, but not the mount that others see.
fn copy_of_mount(seen: &OwnedFd) -> Option<OwnedFd> {
    /// A seccomp filter may kill a process that makes the call without the capability.
    static CAN_CLONE_MOUNTS: LazyLock<bool> = LazyLock::new(|| {
        rustix::thread::capabilities(None)
            .is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_ADMIN))
    });
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    (*CAN_CLONE_MOUNTS)
        .then(|| rustix::mount::open_tree(rustix::fs::CWD, descriptor_path(seen), flags).ok())
        .flatten()
}

/// Opens a host file by its path if its mount is permanent; otherwise `None`.
pub(super) fn hold_on_host(path: &Path) -> Option<HeldFile> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let seen = rustix::fs::open(host::path(path), flags, Mode::empty()).ok()?;
    let held = reopen(seen, HoldLimit::Replaced).ok()?;
    let root = std::fs::metadata(host::path(Path::new("/"))).ok()?;
    (held.metadata.dev() == root.dev()).then_some(held)
}

/// Opens an O_PATH descriptor of exactly the mapped file, so that nothing but a regular file is
/// ever opened.
///
/// `check` examines the descriptor before its file system is accessed; its result is returned as
/// well.
fn open_as_mapped<T>(
    mapping: &ProcessMapping,
    check: impl Fn(&OwnedFd) -> Result<T, HoldError>,
) -> Result<(OwnedFd, T), HoldError> {
    let ProcessMapping { pid, address, .. } = mapping;
    let end = address.saturating_add(mapping.size);
    // In this order: the kernel's link to the mapped file, if permitted; the running program
    // itself; the path as the process sees it.
    let exact = [
        format!("/proc/{pid}/map_files/{address:x}-{end:x}"),
        format!("/proc/{pid}/exe"),
    ];
    let open_exact =
        |link: &String| rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let exact = exact.iter().map(open_exact);
    let named = std::iter::once_with(|| locate(*pid, &mapping.path, Links::None));
    let mut last = HoldError::Replaced;
    for opened in exact.chain(named) {
        match opened {
            Ok(opened) => {
                let found = match check(&opened) {
                    Ok(found) => found,
                    // The other ways lead there too.
                    Err(error @ HoldError::Remote(_)) => return Err(error),
                    Err(error) => {
                        last = error;
                        continue;
                    }
                };
                let metadata = metadata(&opened)?;
                if metadata.is_file() && metadata.ino() == mapping.file.inode {
                    return Ok((opened, found));
                }
            }
            Err(error) => last = HoldError::Open(error.into()),
        }
    }
    Err(last)
}

/// The same file in a layer of an overlay on the host: the inode for which the kernel registers
/// probes.
fn in_layer(mount: &MountEntry, inside: &Path, seen: &OwnedFd) -> Option<HeldFile> {
    let expected = metadata(seen).ok()?;
    let layers = mount.overlay_layers();
    for layer in layers.upper.into_iter().chain(layers.lower) {
        // A relative layer refers to a directory that is not known any more.
        if !layer.is_absolute() {
            return None;
        }
        let Ok(found) = open_in_layer(&layer, inside) else {
            continue;
        };
        let metadata = metadata(&found).ok()?;
        if metadata.file_type().is_char_device() {
            // It was deleted in this layer.
            return None;
        }
        let same = metadata.is_file()
            && metadata.ino() == expected.ino()
            && metadata.len() == expected.len()
            && is_changed(&metadata) == is_changed(&expected);
        return same
            .then(|| reopen(found, HoldLimit::Replaced).ok())
            .flatten();
    }
    None
}

/// The same file below the host's root, if it is in the same file system: often the case for host
/// directories mounted into a container.
fn in_host_root(mount: &MountEntry, inside: &Path, seen: &OwnedFd) -> Option<HeldFile> {
    let mounts = mounts_of(host::pid());
    let root = mounts
        .iter()
        .find(|known| known.point == Path::new("/") && known.id.device == mount.id.device)?;
    let below = inside.strip_prefix(&root.root).ok()?;
    let found = locate(host::pid(), below, Links::None).ok()?;
    let (own_metadata, seen_metadata) = (metadata(&found).ok()?, metadata(seen).ok()?);
    ((own_metadata.dev(), own_metadata.ino()) == (seen_metadata.dev(), seen_metadata.ino()))
        .then(|| reopen(found, HoldLimit::Replaced).ok())
        .flatten()
}

/// Opens the file of an O_PATH descriptor for reading as well.
fn reopen(place: OwnedFd, until: HoldLimit) -> Result<HeldFile, HoldError> {
    if !metadata(&place)?.is_file() {
        return Err(HoldError::Replaced);
    }
    let file = reopen_for_reading(&place)?;
    let metadata = file.metadata()?;
    Ok(HeldFile {
        place,
        file,
        metadata,
        until,
    })
}

fn is_changed(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::{super::mount_table::parse_mount, *};
    use crate::observed::mapping::{MappedFile, mappings_of_process};

    #[test]
    fn this_program_is_held() {
        let own = std::env::current_exe().expect("a path");
        let mapping = mappings_of_process(std::process::id())
            .into_iter()
            .find(|mapping| mapping.path == own)
            .expect("mapped");
        let held = hold_mapped(&mapping, &HashSet::new()).expect("held");
        assert_eq!(held.metadata.ino(), mapping.file.inode);
        let other = ProcessMapping {
            file: MappedFile {
                inode: mapping.file.inode + 1,
                ..mapping.file
            },
            ..mapping
        };
        assert!(
            hold_mapped(&other, &HashSet::new()).is_err(),
            "another file"
        );
    }

    #[test]
    fn file_systems_that_may_not_answer() {
        let mount = |point: &str, kind: &str| {
            parse_mount(&format!("36 35 0:50 / {point} rw - {kind} x rw")).expect("a mount")
        };
        for (point, kind, waits) in [
            ("/home/a/mnt", "fuse.sshfs", true),
            ("/home/a/mnt", "fuse", true),
            ("/srv", "nfs4", true),
            ("/", "nfs4", false),
            ("/srv", "ext4", false),
            ("/dev", "fusectl", false),
        ] {
            assert_eq!(may_wait(&mount(point, kind)), waits, "{kind} at {point}");
        }
    }
}
