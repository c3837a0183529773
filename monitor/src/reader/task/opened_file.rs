//! Opens the file that a process opened: through the process's own view, that of another process of
//! its container, or the host's mounts, because a short-lived container may be gone by then.

use super::{
    identify::{Links, Located, locate_on, metadata, mount_of, reopen},
    mount_table::{MountEntry, mounts_of},
};
use crate::{
    host,
    observed::file::{FileId, kernel_device},
    reader::protocol::{FileRequest, Views},
};
use rustix::fs::FileType;
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// Opens a file as the process saw it; also returns how system calls identify it. The caller
/// compares what was opened with what the probe reported.
pub(super) fn open_as_seen(request: &FileRequest, allowed: Views) -> io::Result<(File, FileId)> {
    let path = request.path.as_path();
    let source = request.source.as_ref().map(|source| source.as_path());
    let mut views = vec![(request.pid, path)];
    views.extend(request.peer.map(|pid| (pid, path)));
    if !request.contained {
        views.push((host::pid(), path));
        // A mount of a namespace that is gone may show a file of the host's own root.
        views.extend(source.map(|source| (host::pid(), source)));
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (pid, path) in views {
        match open(pid, path, request.file, allowed) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    let mounts = mounts_of(host::pid());
    for place in places(&mounts, source.unwrap_or(path), request.file.device) {
        match open(host::pid(), &place, request.file, allowed) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open(pid: u32, path: &Path, wanted: FileId, views: Views) -> io::Result<(File, FileId)> {
    let place = locate_on(pid, path, Links::None, Some(wanted.device), views)?;
    let located = Located::of(&place)?;
    if located.kind != FileType::RegularFile {
        return Err(io::Error::other("no longer a regular file"));
    }
    if !is_on(&place, located, pid, wanted.device) {
        return Err(io::Error::other("it is on another file system now"));
    }
    let file = reopen(&place)?;
    let metadata = metadata(&place)?;
    let seen = FileId {
        device: kernel_device(metadata.dev()),
        inode: metadata.ino(),
        generation: 0,
    };
    Ok((file, seen))
}

/// Whether a descriptor is on the file system with this device. Some file systems show system calls
/// another device than the kernel's, which is in the mount table.
fn is_on(place: &OwnedFd, located: Located, pid: u32, device: u32) -> bool {
    located.device == device || mount_of(place, pid).is_some_and(|mount| mount.device() == device)
}

/// Paths at which the host has mounted a file's file system, from its path inside that file system.
fn places(mounts: &[MountEntry], source: &Path, device: u32) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|mount| mount.device() == device)
        .filter_map(|mount| {
            let rest = source.strip_prefix(&mount.root).ok()?;
            Some(if rest.as_os_str().is_empty() {
                mount.point.clone()
            } else {
                mount.point.join(rest)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::mount_table::parse_mount, *};
    use proptest::prelude::*;

    fn mounts(text: &str) -> Vec<MountEntry> {
        text.lines()
            .map(|line| parse_mount(line).expect("a mount"))
            .collect()
    }

    #[test]
    fn a_volume_is_found_at_its_path_on_the_host() {
        let mounts = mounts(
            "29 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 29 254:16 /volumes /var/lib/kubelet/pods rw,relatime - ext4 /dev/vdb rw
40 29 0:35 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/x rw,relatime - tmpfs tmpfs rw",
        );
        let place = |source: &str, device: (u32, u32)| {
            places(&mounts, Path::new(source), device.0 << 20 | device.1)
        };
        assert_eq!(place("/srv/token", (254, 0)), [Path::new("/srv/token")]);
        assert_eq!(
            place("/volumes/u/token", (254, 16)),
            [Path::new("/var/lib/kubelet/pods/u/token")]
        );
        assert_eq!(
            place("/..1/token", (0, 35)),
            [Path::new(
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/x/..1/token"
            )]
        );
        assert!(place("/elsewhere/token", (254, 16)).is_empty());
    }

    /// A file that a process opened, and the directory that contains it.
    fn opened() -> (tempfile::TempDir, PathBuf, FileId) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory
            .path()
            .canonicalize()
            .expect("a path")
            .join("token");
        std::fs::write(&path, "FAKE").expect("written");
        let file = FileId::for_tests(&path);
        (directory, path, file)
    }

    #[test]
    fn a_file_is_opened_through_its_mount_only() {
        let (_directory, path, file) = opened();
        // As the process saw it; the path no longer exists.
        let gone = FileRequest {
            pid: u32::MAX,
            source: Some(path.as_path().into()),
            contained: true,
            ..FileRequest::for_tests(Path::new("/run/secrets/token"), file)
        };
        // A mount whose root does not contain the directory has no such path.
        let places = places(&mounts_of(host::pid()), &path, file.device);
        let expected = places.iter().any(|place| host::path(place).exists());
        assert_eq!(open_as_seen(&gone, Views::All).is_ok(), expected);
    }

    #[test]
    fn a_directory_that_became_a_link_is_not_followed() {
        let (directory, path, file) = opened();
        let home = path.parent().expect("a parent");
        let elsewhere = home.join("elsewhere");
        std::fs::create_dir(&elsewhere).expect("made");
        std::fs::write(elsewhere.join("key"), "FAKE-of-another-user").expect("written");
        let swapped = home.join("swapped");
        std::os::unix::fs::symlink(&elsewhere, &swapped).expect("linked");
        assert!(
            open_as_seen(
                &FileRequest::for_tests(&swapped.join("key"), file),
                Views::All
            )
            .is_err()
        );
        assert!(open_as_seen(&FileRequest::for_tests(&path, file), Views::All).is_ok());
        drop(directory);
    }

    #[test]
    fn another_file_system_and_another_kind_of_file_are_refused() {
        let (_directory, path, file) = opened();
        let elsewhere = FileId { device: 7, ..file };
        assert!(open_as_seen(&FileRequest::for_tests(&path, elsewhere), Views::All).is_err());
        let directory = path.parent().expect("a parent");
        assert!(open_as_seen(&FileRequest::for_tests(directory, file), Views::All).is_err());
    }

    proptest! {
        #[test]
        fn any_source(source in "(/[a-z.]{0,4}){0,4}", device: u32) {
            let mounts = mounts("29 1 254:0 /a /b rw - ext4 /dev/vda rw");
            let _ = places(&mounts, Path::new(&source), device);
        }
    }
}
