//! Keeps a file open for its probes without keeping its file system from being unmounted.
//!
//! A uprobe is registered for an inode, but through a path, whose mount stays busy until the probe
//! is detached. So a file is opened through a mount that is permanent anyway, or through a private
//! copy of its mount, and only if neither exists through the mount that the process uses.

use super::identify::{
    Links, is_remote_kind, locate, metadata, open_below, reopen as reopen_for_reading,
};
use crate::{
    host::{self, descriptor_path},
    observed::{
        mapping::{ProcessMapping, bounded_lines},
        mount::{HoldLimit, MountId},
    },
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    mount::OpenTreeFlags,
    thread::CapabilitySet,
};
use std::{
    collections::HashSet,
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
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

/// The used parts of a `mountinfo` line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountEntry {
    id: MountId,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    point: PathBuf,
    kind: String,
    /// The options of the file system.
    options: String,
}

impl MountEntry {
    /// Whether another machine, or a local program, serves the file system and may not respond. The
    /// host's own root must respond anyway.
    fn may_wait(&self) -> bool {
        is_remote_kind(&self.kind) && self.point != Path::new("/")
    }
}

/// The mounts of this process's own namespace.
pub fn mounts() -> impl Iterator<Item = MountId> {
    mounts_of(std::process::id())
        .into_iter()
        .map(|mount| mount.id)
}

/// The mount points of a process.
pub(super) fn mount_points(pid: u32) -> impl Iterator<Item = PathBuf> + use<> {
    mounts_of(pid).into_iter().map(|mount| mount.point)
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
        let number = mount_number(opened)?;
        let is_it = |mount: &&MountEntry| mount.id.number == number;
        Ok(of_process.iter().chain(&own).find(is_it))
    };
    let (seen, mount) = open_as_mapped(mapping, |opened| match mount_of(opened)? {
        Some(mount) if mount.may_wait() => Err(HoldError::Remote(mount.kind.clone())),
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
        if mount.kind == "overlay" {
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
    let named = Path::new(&format!("/proc/{pid}/root")).join(relative_path(&mapping.path));
    let places = exact.into_iter().map(PathBuf::from).chain([named]);
    let mut last = HoldError::Replaced;
    for place in places {
        match rustix::fs::open(&place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(opened) => {
                let found = match check(&opened) {
                    Ok(found) => found,
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
    for layer in layers(&mount.options) {
        // A relative layer refers to a directory that is not known any more.
        if !layer.is_absolute() {
            return None;
        }
        let Ok(layer) = locate(host::pid(), &layer, Links::Inside) else {
            continue;
        };
        // The container may put links into its own layer.
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let Ok(found) = open_below(&layer, inside, flags, ResolveFlags::NO_SYMLINKS) else {
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

/// The directories of an overlay, the uppermost first.
fn layers(options: &str) -> Vec<PathBuf> {
    let (mut upper, mut lower) = (Vec::new(), Vec::new());
    for (name, value) in options
        .split(',')
        .filter_map(|option| option.split_once('='))
    {
        match name {
            "upperdir" => upper.push(unescape(value)),
            "lowerdir" => lower.extend(
                value
                    .split(':')
                    .filter(|part| !part.is_empty())
                    .map(unescape),
            ),
            // Since Linux 6.8 each layer can be an option of its own.
            "lowerdir+" => lower.push(unescape(value)),
            _ => {}
        }
    }
    upper.into_iter().chain(lower).collect()
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

fn relative_path(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Maximum mounts of one namespace; a node with hundreds of containers has a few thousand.
const MOUNTS_MAX: usize = 20_000;

/// The number of the mount through which a descriptor was opened.
fn mount_number(descriptor: &OwnedFd) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not report its mount"))
}

fn mounts_of(pid: u32) -> Vec<MountEntry> {
    bounded_lines(&format!("/proc/{pid}/mountinfo"))
        .take(MOUNTS_MAX)
        .filter_map(|line| parse_mount(&String::from_utf8_lossy(&line)))
        .collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/x rw,errors=continue`
fn parse_mount(line: &str) -> Option<MountEntry> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let number = front.next()?.parse().ok()?;
    let (major, minor) = front.nth(1)?.split_once(':')?;
    let root = unescape(front.next()?);
    let point = unescape(front.next()?);
    let mut back = back.split(' ');
    let kind = back.next()?.to_owned();
    Some(MountEntry {
        id: MountId {
            number,
            device: (major.parse().ok()?, minor.parse().ok()?),
        },
        root,
        point,
        kind,
        options: back.nth(1).unwrap_or_default().to_owned(),
    })
}

/// The kernel escapes spaces and similar characters as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| std::str::from_utf8(bytes.get(at + 1..at + 4)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(code);
                at += 4;
            }
            None => {
                path.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::mapping::{MappedFile, mappings_of_process};
    use proptest::prelude::*;

    #[test]
    fn layers_of_an_overlay() {
        let old = "rw,lowerdir=/l/2/fs:/l/1\\040x/fs,upperdir=/u/fs,workdir=/w";
        let paths: Vec<PathBuf> = ["/u/fs", "/l/2/fs", "/l/1 x/fs"]
            .map(PathBuf::from)
            .to_vec();
        assert_eq!(layers(old), paths);
        let new = "rw,lowerdir+=/l/2/fs,lowerdir+=/l/1\\040x/fs,upperdir=/u/fs";
        assert_eq!(layers(new), paths);
    }

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
            assert_eq!(mount(point, kind).may_wait(), waits, "{kind} at {point}");
        }
    }

    proptest! {
        #[test]
        fn any_mount(line in "\\PC{0,80}") {
            let _ = parse_mount(&line);
        }

        #[test]
        fn any_options(options in "(lowerdir|upperdir|[+=:,/\\\\a-z0-7]){0,30}") {
            let _ = layers(&options);
        }
    }
}
