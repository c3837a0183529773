//! Files that are credentials' by where they are on the host, found again after a restart.
//!
//! A process in a pod opens a file of a Secret by a path that says nothing: what tells it is that
//! the kubelet wrote it under a volume's path. An agent that was there remembers the inode. One that
//! starts later finds it through the host's mounts, the kubelet's directory, and the ledger.

use super::catalog::{Catalog, normalise};
use crate::{
    host,
    sensor::{observation::FileId, running},
};
use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
};

/// Where kubelets keep their pods.
const PODS: [&str; 3] = [
    "/var/lib/kubelet/pods",
    "/var/lib/k0s/kubelet/pods",
    "/var/snap/microk8s/common/var/lib/kubelet/pods",
];
/// What is between a pod's directory and the names of its volumes, for volumes that hold secrets.
const VOLUMES: [&str; 3] = [
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~csi",
];
/// Directories below a volume.
const DEPTH: usize = 4;
/// Files of one volume, and of all.
const FILES_OF_ONE: usize = 1024;
const FILES_MAX: usize = 40_000;

/// A file, and the path by which the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub file: FileId,
    pub path: PathBuf,
}

/// Looks for credential files: in volumes of pods, and at places that are known from before.
pub fn recover(catalog: &Catalog, known: &[String]) -> Vec<Recovered> {
    let mut recovered = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |path: PathBuf, place: &Path| {
        if seen.len() < FILES_MAX
            && catalog.file(&normalise(&path.to_string_lossy())).is_some()
            && let Some(file) = running::identify(place)
            && seen.insert(file)
        {
            recovered.push(Recovered { file, path });
        }
    };
    for view in views() {
        for volume in view.volumes() {
            let mut files = Vec::new();
            view.walk(&volume, DEPTH, &mut files);
            for path in files {
                let place = view.at(&path);
                add(path, &place);
            }
        }
    }
    for place in known.iter().filter(|place| place.starts_with('/')) {
        let path = PathBuf::from(place);
        let place = host::path(&path);
        add(path, &place);
    }
    recovered
}

/// A mount namespace: a kubelet may have one of its own, as the whole node has where it is a container.
struct View {
    root: PathBuf,
    points: Vec<PathBuf>,
}

/// The mount namespaces of all processes.
fn views() -> Vec<View> {
    let mut seen = HashSet::new();
    let mut views = Vec::new();
    for process in procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten()
    {
        let namespace = std::fs::read_link(format!("/proc/{}/ns/mnt", process.pid()));
        if let Ok(namespace) = namespace
            && !seen.contains(&namespace)
            && let Ok(mounts) = process.mountinfo()
        {
            seen.insert(namespace);
            views.push(View {
                root: PathBuf::from(format!("/proc/{}/root", process.pid())),
                points: mounts.into_iter().map(|mount| mount.mount_point).collect(),
            });
        }
    }
    views
}

impl View {
    /// Where the agent finds what has a path there.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The directories of volumes with secrets.
    fn volumes(&self) -> BTreeSet<PathBuf> {
        let mounted = self.points.iter().filter(|point| is_volume(point));
        let mut volumes: BTreeSet<PathBuf> = mounted.cloned().collect();
        let mut directories: BTreeSet<PathBuf> = PODS.iter().map(PathBuf::from).collect();
        // A kubelet that keeps them elsewhere shows it by its mounts.
        directories.extend(
            volumes
                .iter()
                .filter_map(|volume| volume.ancestors().nth(4).map(Path::to_owned)),
        );
        for pods in directories {
            for pod in self.entries(&pods) {
                for kind in VOLUMES {
                    volumes.extend(self.entries(&pod.join("volumes").join(kind)));
                }
            }
        }
        volumes
    }

    fn entries(&self, directory: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(self.at(directory))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| directory.join(entry.file_name()))
            .collect()
    }

    fn walk(&self, directory: &Path, depth: usize, into: &mut Vec<PathBuf>) {
        for path in self.entries(directory) {
            if into.len() >= FILES_OF_ONE {
                return;
            }
            // Not through links: the file that a link of a volume leads to is in the volume too.
            match std::fs::symlink_metadata(self.at(&path)) {
                Ok(metadata) if metadata.is_dir() && depth > 0 => {
                    self.walk(&path, depth - 1, into);
                }
                Ok(metadata) if metadata.is_file() => into.push(path),
                _ => {}
            }
        }
    }
}

/// Whether a path is `…/pods/UID/volumes/kubernetes.io~secret/NAME`, or of another such kind.
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
    fn a_place_that_is_known_is_found_by_its_inode() {
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
        let found = recovered.iter().find(|found| found.path == path);
        assert_eq!(found.map(|found| found.file), running::identify(&path));
    }
}
