//! Opens the file that a process opened: through the process's own view, that of another process of
//! the container, or the host's mounts, because a short-lived container may be gone by then.

use super::MountView;
use crate::{
    host, reserved,
    sensor::observation::{FileId, kernel_device},
};
use procfs::process::MountInfo;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Opens a file as the process saw it. `source` is its path inside its own file system, if that
/// differs.
pub fn as_seen_by_process(
    path: &Path,
    source: Option<&Path>,
    file: FileId,
    view: MountView<'_>,
) -> io::Result<File> {
    let inner = inside(path);
    let contained = !view.container.is_empty();
    let mut views = vec![PathBuf::from(format!("/proc/{}/root", view.pid)).join(inner)];
    views.extend(
        view.peer
            .map(|pid| PathBuf::from(format!("/proc/{pid}/root")).join(inner)),
    );
    if !contained {
        views.push(Path::new("/").join(inner));
        // A mount of a namespace that is gone may show a file of the host's own root.
        views.extend(source.map(|source| Path::new("/").join(inside(source))));
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for view in views {
        // In a container, an overlay's file has another inode number than the probe reported.
        match open(&view, |metadata| contained || metadata.ino() == file.inode) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    for place in mounted_at(source.unwrap_or(path), file) {
        match open(&place, |metadata| is(metadata, file)) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Whether it is exactly the file that the probe reported.
fn is(metadata: &std::fs::Metadata, file: FileId) -> bool {
    (metadata.ino(), kernel_device(metadata.dev())) == (file.inode, file.device)
}

fn open(path: &Path, is_right: impl Fn(&std::fs::Metadata) -> bool) -> io::Result<File> {
    // The kernel's path contains no links; if someone created one since, the open fails. Only
    // regular files are opened, because opening a device or pipe may have side effects.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = place.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("no longer a regular file"));
    }
    if !is_right(&metadata) {
        return Err(io::Error::other("it was replaced by another file"));
    }
    if reserved::is_reserved(&metadata) {
        return Err(io::Error::other("it belongs to the agent's own ledger"));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::open(host::descriptor_path(&place), flags, Mode::empty())?;
    Ok(File::from(opened))
}

/// Paths at which the host has mounted a file's file system, from its path inside that file system.
fn mounted_at(source: &Path, file: FileId) -> Vec<PathBuf> {
    let places = places(&host::mounts(), source, file.device);
    places.iter().map(|place| host::path(place)).collect()
}

fn places(mounts: &[MountInfo], source: &Path, device: u32) -> Vec<PathBuf> {
    let device = format!("{}:{}", device >> 20, device & 0xf_ffff);
    mounts
        .iter()
        .filter(|mount| mount.majmin == device)
        .filter_map(|mount| {
            let rest = source.strip_prefix(&mount.root).ok()?;
            Some(if rest.as_os_str().is_empty() {
                mount.mount_point.clone()
            } else {
                mount.mount_point.join(rest)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mounts(text: &str) -> Vec<MountInfo> {
        text.lines()
            .map(|line| MountInfo::from_line(line).expect("a mount"))
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

    #[test]
    fn a_file_is_opened_through_its_mount_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "FAKE").expect("written");
        let metadata = path.metadata().expect("it is there");
        let mut file = FileId {
            device: kernel_device(metadata.dev()),
            inode: metadata.ino(),
            generation: 0,
        };
        let gone = MountView {
            pid: u32::MAX,
            peer: None,
            container: "gone",
        };
        let source = path.canonicalize().expect("a path");
        // As the process saw it; the path no longer exists.
        let seen = Path::new("/run/secrets/token");
        let opened = as_seen_by_process(seen, Some(&source), file, gone);
        // A mount whose root does not contain the directory has no such path.
        let places = mounted_at(&source, file);
        assert_eq!(opened.is_ok(), places.iter().any(|place| place.exists()));
        file.inode += 1;
        assert!(as_seen_by_process(seen, Some(&source), file, gone).is_err());
    }

    proptest! {
        #[test]
        fn any_source(source in "(/[a-z.]{0,4}){0,4}", device: u32) {
            let mounts = mounts("29 1 254:0 /a /b rw - ext4 /dev/vda rw");
            let _ = places(&mounts, Path::new(&source), device);
        }
    }
}
