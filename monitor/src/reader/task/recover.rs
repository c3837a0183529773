//! Finds credential files again after a restart, by their place on the host.
//!
//! A process in a pod opens a Secret's file under a path that reveals nothing: it is recognised
//! because the kubelet wrote it under a volume's path. An agent running at that time remembers the
//! inode. One started later finds it through the host's mounts, the kubelet's directory, and the
//! ledger.

use super::{
    identify::{Links, identify_among, locate, open_below},
    mount_table::{MountEntry, mounts_of},
};
use crate::{host, observed::file::FileId, reader::protocol::RecoveredFile};
use monitor_core::catalog::{Catalog, glob::normalise};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

/// Directories in which kubelets keep their pods.
const POD_DIRECTORIES: [&str; 3] = [
    "/var/lib/kubelet/pods",
    "/var/lib/k0s/kubelet/pods",
    "/var/snap/microk8s/common/var/lib/kubelet/pods",
];
/// Paths between a pod's directory and the names of its volumes, for volumes that hold secrets.
const VOLUMES: [&str; 3] = [
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~csi",
];
/// Maximum directory depth below a volume.
const DEPTH_MAX: usize = 4;
/// Programs that keep volumes.
const KUBELETS: [&str; 5] = ["kubelet", "k3s", "rke2", "k0s", "kubelite"];
/// Maximum entries read per directory.
const ENTRIES_MAX: usize = 4096;
/// Maximum files per volume, and in total.
const FILES_PER_VOLUME_MAX: usize = 1024;
const FILES_MAX: usize = 40_000;
/// Maximum bytes of all paths: a message has four bytes or so for each.
const PATH_BYTES_MAX: usize = 3 << 20;

/// Finds credential files in volumes of pods, and at previously known places.
pub(super) fn recover(catalog: &Catalog, known: &[String]) -> Vec<RecoveredFile> {
    let mut recovered = Vec::new();
    let mut seen = HashSet::new();
    let mut path_bytes = 0;
    let mut add = |path: PathBuf, identify: &dyn Fn(&Path) -> Option<FileId>| {
        if seen.len() < FILES_MAX
            && path_bytes < PATH_BYTES_MAX
            && catalog.file(&normalise(&path.to_string_lossy())).is_some()
            && let Some(file) = identify(&path)
            && seen.insert(file)
        {
            path_bytes += path.as_os_str().len();
            recovered.push(RecoveredFile {
                file,
                path: path.into(),
            });
        }
    };
    for view in views() {
        for volume in view.volumes() {
            let mut files = Vec::new();
            view.walk(&volume, DEPTH_MAX, &mut files);
            for path in files {
                add(path, &|path| view.identify(path));
            }
        }
    }
    let mounts = mounts_of(host::pid());
    for place in known.iter().filter(|place| place.starts_with('/')) {
        add(PathBuf::from(place), &|path| {
            let place = locate(host::pid(), path, Links::Inside).ok()?;
            identify_among(&place, &mounts)
        });
    }
    recovered
}

/// A mount namespace: a kubelet may have its own, as does a node that is a container. Its
/// directories are opened below its root without following links, because whoever creates links
/// there chooses their targets.
struct MountNamespace {
    root: OwnedFd,
    mounts: Vec<MountEntry>,
}

/// The mount namespaces in which kubelets keep volumes: the host's, the agent's own, and those of
/// kubelets that run as root.
fn views() -> Vec<MountNamespace> {
    let processes = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten();
    let kubelets = processes
        .filter(|process| process.uid().is_ok_and(|uid| uid == 0))
        .filter(|process| {
            let exe = process.exe().unwrap_or_default();
            let name = exe.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| KUBELETS.contains(&name))
        })
        .map(|process| process.pid() as u32);
    let mut seen = HashSet::new();
    let mut views = Vec::new();
    for pid in [host::pid(), std::process::id()]
        .into_iter()
        .chain(kubelets)
    {
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty());
        if let (Ok(namespace), Ok(root)) = (namespace, root)
            && seen.insert(namespace)
        {
            views.push(MountNamespace {
                root,
                mounts: mounts_of(pid),
            });
        }
    }
    views
}

impl MountNamespace {
    fn open(&self, path: &Path, flags: OFlags) -> Option<OwnedFd> {
        open_below(&self.root, path, flags, ResolveFlags::NO_SYMLINKS).ok()
    }

    /// Identifies a file, as the probes do.
    fn identify(&self, path: &Path) -> Option<FileId> {
        identify_among(&self.open(path, OFlags::PATH)?, &self.mounts)
    }

    /// The directories of volumes with secrets.
    fn volumes(&self) -> BTreeSet<PathBuf> {
        let points = self.mounts.iter().map(|mount| &mount.point);
        let mut volumes: BTreeSet<PathBuf> =
            points.filter(|point| is_volume(point)).cloned().collect();
        let mut directories: BTreeSet<PathBuf> =
            POD_DIRECTORIES.iter().map(PathBuf::from).collect();
        // Kubelets with another directory are found by their mounts.
        directories.extend(
            volumes
                .iter()
                .filter_map(|volume| volume.ancestors().nth(4).map(Path::to_owned)),
        );
        for pods in directories {
            for (pod, _) in self.entries(&pods) {
                for kind in VOLUMES {
                    let of_kind = self.entries(&pod.join("volumes").join(kind));
                    volumes.extend(of_kind.into_iter().map(|(path, _)| path));
                }
            }
        }
        volumes
    }

    /// The entries of a directory, up to the limit.
    fn entries(&self, directory: &Path) -> Vec<(PathBuf, FileType)> {
        let Some(opened) = self.open(directory, OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Vec::new();
        };
        let Ok(entries) = Dir::read_from(&opened) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| ![c".", c".."].contains(&entry.file_name()))
            .take(ENTRIES_MAX)
            .map(|entry| {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                (directory.join(name), entry.file_type())
            })
            .collect()
    }

    fn walk(&self, directory: &Path, depth: usize, into: &mut Vec<PathBuf>) {
        for (path, kind) in self.entries(directory) {
            if into.len() >= FILES_PER_VOLUME_MAX {
                return;
            }
            // The target of a link in a volume is in the volume too.
            match kind {
                FileType::Directory if depth > 0 => self.walk(&path, depth - 1, into),
                FileType::RegularFile => into.push(path),
                _ => {}
            }
        }
    }
}

/// Whether a path is `…/pods/UID/volumes/kubernetes.io~secret/NAME`, or of a similar kind.
fn is_volume(path: &Path) -> bool {
    let mut parts = path.iter().rev().skip(1);
    let kind = parts.next();
    kind.is_some_and(|kind| VOLUMES.iter().any(|volume| *volume == kind))
        && parts.next().is_some_and(|part| part == "volumes")
        && parts.nth(1).is_some_and(|part| part == "pods")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn volumes_with_secrets() {
        for (path, is) in [
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/db",
                true,
            ),
            (
                "/srv/kubelet/pods/u/volumes/kubernetes.io~projected/t",
                true,
            ),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/x",
                false,
            ),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/x",
                false,
            ),
            ("/volumes/kubernetes.io~secret/db", false),
            ("/", false),
        ] {
            assert_eq!(is_volume(Path::new(path)), is, "{path}");
        }
    }

    #[test]
    fn a_known_place_is_found_by_its_inode() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().canonicalize().expect("a path").join(".netrc");
        std::fs::write(&path, "machine a login b password FAKE").expect("written");
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        let known = [
            path.display().to_string(),
            "/nowhere/.netrc".to_owned(),
            "env:X".to_owned(),
        ];
        let recovered = recover(&catalog, &known);
        let found = recovered.iter().find(|found| found.path.as_path() == path);
        let inode = path.metadata().expect("there").ino();
        assert_eq!(found.map(|found| found.file.inode), Some(inode));
    }
}
