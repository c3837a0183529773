//! Opens paths as a process sees them, and identifies files as the kernel does.

use super::mount_table::{MountEntry, mounts_of};
use crate::{
    host,
    observed::{file::FileId, process::in_own_user_namespace},
    reader::{protocol::Views, sandbox::FS_IOC_GETVERSION},
};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
};
use std::{
    fs::{self, File, Metadata},
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// Attempts to open a path whose directories are being renamed.
const ATTEMPTS: usize = 16;

/// Which links a path may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// The kernel's own paths have none: one was put there since.
    None,
    /// They are followed, and cannot leave the root of the process.
    Inside,
}

impl Links {
    fn flags(self) -> ResolveFlags {
        match self {
            Self::None => ResolveFlags::NO_SYMLINKS,
            Self::Inside => ResolveFlags::empty(),
        }
    }
}

/// Opens a path below the root of a process.
pub(super) fn below_root(pid: u32, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_below(&root_of(pid)?, path, flags, Links::Inside.flags())
}

/// Opens an O_PATH descriptor of what a process sees at a path, without asking a file system that
/// may not respond: what the kernel has cached needs no file system, and the rest is opened only
/// where the path crosses none of those.
pub(super) fn locate(pid: u32, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
    locate_on(pid, path, links, None, Views::All)
}

/// As [`locate`], but the file system with this device may be asked.
pub(super) fn locate_on(
    pid: u32,
    path: &Path,
    links: Links,
    device: Option<u32>,
    views: Views,
) -> Result<OwnedFd, Errno> {
    let root = root_of(pid)?;
    // Nobody without privileges returns to this user namespace: what was read of the process before
    // is not from another one.
    let privileged = || in_own_user_namespace(pid) == Some(true);
    if views == Views::OwnUserNamespace && !privileged() {
        return Err(Errno::PERM);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let cached = links.flags() | ResolveFlags::CACHED;
    match open_below(&root, path, flags, cached) {
        // It is not cached, or the kernel is older than 5.12.
        Err(Errno::AGAIN | Errno::INVAL) => {}
        opened => return opened,
    }
    let crosses = |mount: &MountEntry| {
        // A link may lead through any mount.
        links == Links::Inside || path.starts_with(&mount.point)
    };
    let mounts = mounts_of(pid);
    let privileged = privileged();
    if views == Views::OwnUserNamespace && !privileged {
        return Err(Errno::PERM);
    }
    let waits = |mount: &MountEntry| {
        may_hang(mount, privileged) && crosses(mount) && Some(mount.device()) != device
    };
    if mounts.iter().any(waits) {
        return match links {
            // Without links the path may cross fewer mounts.
            Links::Inside => locate_on(pid, path, Links::None, device, views),
            Links::None => Err(Errno::STALE),
        };
    }
    open_below(&root, path, flags, links.flags())
}

fn root_of(pid: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
}

/// Whether a mount may keep a lookup waiting. A root from another machine must respond anyway.
fn may_wait(mount: &MountEntry) -> bool {
    mount.is_remote() && (mount.is_fuse() || mount.point != Path::new("/"))
}

/// As [`may_wait`], for a mount that was perhaps not made with privileges: whoever mounts an overlay
/// chooses what is below it.
fn may_hang(mount: &MountEntry, privileged: bool) -> bool {
    may_wait(mount) || (!privileged && mount.is_overlay())
}

/// What an O_PATH descriptor refers to, found without asking its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub kind: FileType,
    /// Device and inode number as system calls show them.
    pub device: u32,
    pub inode: u64,
}

impl Located {
    pub fn of(place: &OwnedFd) -> Result<Self, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::TYPE;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(place, "", flags, wanted)?;
        Ok(Self {
            kind: FileType::from_raw_mode(found.stx_mode.into()),
            device: found.stx_dev_major << 20 | found.stx_dev_minor,
            inode: found.stx_ino,
        })
    }
}

/// The mount through which a descriptor was opened, among those of a process.
pub(super) fn mount_of(descriptor: impl AsFd, pid: u32) -> Option<MountEntry> {
    let number = mount_number(descriptor).ok()??;
    let mut mounts = mounts_of(pid).into_iter();
    mounts.find(|known| known.id.number == number)
}

/// Opens an O_PATH descriptor of a path inside a layer of an overlay, given as the host sees it.
pub(super) fn open_in_layer(layer: &Path, inside: &Path) -> Result<OwnedFd, Errno> {
    let layer = locate(host::pid(), layer, Links::Inside)?;
    // The container may put links into its own layer.
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    // Nothing is mounted in a layer, unless someone wants the reader to wait there.
    let resolve = Links::None.flags() | ResolveFlags::NO_XDEV;
    open_below(&layer, inside, flags, resolve)
}

/// Opens a path below a directory.
pub(super) fn open_below(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let inside = path.strip_prefix("/").unwrap_or(path);
    let inside = if inside.as_os_str().is_empty() {
        Path::new(".")
    } else {
        inside
    };
    let flags = flags | OFlags::CLOEXEC;
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        // The kernel gives up where a path with `..` or a link is renamed meanwhile.
        opened = rustix::fs::openat2(root, inside, flags, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN)) || resolve.contains(ResolveFlags::CACHED) {
            break;
        }
    }
    opened
}

/// Opens the file of an O_PATH descriptor for reading, if it is a regular file: opening a device or
/// a pipe may have side effects.
pub(super) fn reopen(place: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::open(host::descriptor_path(place), flags, Mode::empty())?;
    Ok(File::from(opened))
}

/// The metadata of an open descriptor.
pub(super) fn metadata(descriptor: &OwnedFd) -> io::Result<Metadata> {
    // A clone of the descriptor, because `File` provides the metadata call.
    File::from(descriptor.as_fd().try_clone_to_owned()?).metadata()
}

/// The number of the mount through which a descriptor was opened.
pub(super) fn mount_number(descriptor: impl AsFd) -> io::Result<Option<u64>> {
    descriptor_field(descriptor, "mnt_id:")
}

/// A number that the kernel shows about a descriptor, if it shows that one.
fn descriptor_field(descriptor: impl AsFd, name: &str) -> io::Result<Option<u64>> {
    let number = descriptor.as_fd().as_raw_fd();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let mut lines = text.lines();
    Ok(lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
}

/// Identifies what a descriptor refers to as the probes do; `None` if it is not a regular file, or on
/// a file system that may not respond. `pid` is a process in whose mounts it was found.
///
/// Some file systems show system calls another device than the kernel uses, and an overlay another
/// inode number: the kernel's own device is in the mount table.
pub(super) fn identify(place: &OwnedFd, pid: u32) -> Option<FileId> {
    identify_among(place, &mounts_of(pid))
}

/// As [`identify`], with the mounts of that process.
pub(super) fn identify_among(place: &OwnedFd, mounts: &[MountEntry]) -> Option<FileId> {
    let located = Located::of(place).ok()?;
    let number = mount_number(place).ok().flatten();
    let mount = mounts.iter().find(|mount| Some(mount.id.number) == number);
    let remote = mount.is_some_and(MountEntry::is_remote);
    if located.kind != FileType::RegularFile || remote {
        return None;
    }
    // Since Linux 5.14.
    let inode = descriptor_field(place, "ino:").ok()?;
    Some(FileId {
        device: mount.map_or(located.device, MountEntry::device),
        inode: inode.unwrap_or(located.inode),
        generation: reopen(place).map_or(0, |file| inode_generation(&file)),
    })
}

/// The target of a path.
#[derive(Debug)]
pub(super) struct PathTarget {
    /// Its path, with links resolved.
    pub path: PathBuf,
    /// Absent for a socket.
    pub file: Option<FileId>,
}

/// Opens an O_PATH descriptor of what a process sees at a path, links included, also if the last
/// component is one. It does not wait for other machines: if a file system that may not respond is
/// mounted, a path that the kernel has not cached is treated as absent.
pub(super) fn target(pid: u32, path: &Path) -> Result<OwnedFd, Errno> {
    let root = root_of(pid)?;
    let cached = Links::Inside.flags() | ResolveFlags::CACHED;
    match open_below(&root, path, OFlags::PATH, cached) {
        Err(Errno::AGAIN | Errno::INVAL) => {
            let mounts = mounts_of(pid);
            let privileged = in_own_user_namespace(pid) == Some(true);
            if mounts.iter().any(|mount| may_hang(mount, privileged)) {
                locate(pid, path, Links::None)
            } else {
                open_below(&root, path, OFlags::PATH, Links::Inside.flags())
            }
        }
        opened => opened,
    }
}

/// Resolves a path as [`target`] does; `None` if it is neither a regular file nor a socket.
pub(super) fn path_target(pid: u32, path: &Path) -> Option<PathTarget> {
    let opened = target(pid, path).ok()?;
    let path = std::fs::read_link(host::descriptor_path(&opened)).ok()?;
    let path = path
        .strip_prefix(format!("/proc/{pid}/root"))
        .map_or(path.clone(), |rest| Path::new("/").join(rest));
    let file = match Located::of(&opened).ok()?.kind {
        FileType::Socket => None,
        FileType::RegularFile => Some(identify(&opened, pid)?),
        _ => return None,
    };
    Some(PathTarget { path, file })
}

/// The generation of a file's inode; 0 if its file system has none.
fn inode_generation(file: &File) -> u32 {
    use rustix::ioctl::{Getter, ioctl};
    // SAFETY: despite its definition the call writes an int, and there is room for a long.
    let version = unsafe { ioctl(file, Getter::<FS_IOC_GETVERSION, u64>::new()) };
    version.map_or(0, |version| version as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn own() -> u32 {
        std::process::id()
    }

    #[test]
    fn a_path_with_a_link_is_not_the_kernels() {
        let directory = tempfile::tempdir().expect("a directory");
        let real = directory.path().join("real");
        std::fs::create_dir(&real).expect("made");
        std::fs::write(real.join("key"), "FAKE").expect("written");
        symlink(&real, directory.path().join("link")).expect("linked");
        let linked = directory.path().join("link/key");
        locate(own(), &real.join("key"), Links::None).expect("it has none");
        let refused = locate(own(), &linked, Links::None).expect_err("a link");
        assert_eq!(refused, Errno::LOOP);
        locate(own(), &linked, Links::Inside).expect("followed");
    }

    #[test]
    fn an_open_file_has_the_identity_of_its_inode() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let place = locate(own(), file.path(), Links::None).expect("there");
        let found = identify(&place, own()).expect("a regular file");
        assert_eq!(found.inode, file.as_file().metadata().expect("there").ino());
        let directory = locate(own(), Path::new("/proc"), Links::None).expect("there");
        assert_eq!(identify(&directory, own()), None);
    }

    #[test]
    fn a_path_leads_to_its_target() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = directory.path().canonicalize().expect("a path");
        std::fs::write(home.join("key"), "FAKE").expect("written");
        symlink(home.join("key"), home.join("link")).expect("linked");
        let target = path_target(own(), &home.join("link")).expect("a target");
        assert_eq!(target.path, home.join("key"));
        assert!(target.file.is_some());
        assert!(path_target(own(), &home).is_none(), "a directory");
    }
}
