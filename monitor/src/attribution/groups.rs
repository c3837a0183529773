//! The paths of cgroups by their ids, including removed ones.
//!
//! A container can be gone when its events are processed, and its cgroup with it. Therefore a
//! separate thread watches the directories of cgroup v2 and remembers them.

use hashlink::LruCache;
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::DirEntryExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Number of cgroups remembered, including removed ones.
const CACHED: usize = 16_384;
/// Maximum directory depth watched: a pod's container in a nested cluster has nine levels.
const DEPTH_MAX: usize = 16;

/// Paths below the root of cgroup v2, by inode number, which is the id that BPF reports. It is
/// never reused.
#[derive(Clone, Debug)]
pub struct CgroupPaths(Arc<Mutex<LruCache<u64, String>>>);

impl CgroupPaths {
    fn lock(&self) -> MutexGuard<'_, LruCache<u64, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: u64) -> Option<String> {
        self.lock().get(&id).cloned()
    }
}

/// Watches the cgroups below a root, for as long as this program runs.
pub fn watch_cgroups(root: &Path) -> std::io::Result<CgroupPaths> {
    let paths = CgroupPaths(Arc::new(Mutex::new(LruCache::new(CACHED))));
    let mut follower = CgroupWatcher {
        inotify: inotify::init(CreateFlags::CLOEXEC)?,
        root: root.to_owned(),
        watched: HashMap::new(),
        paths: paths.clone(),
    };
    // Existing cgroups are known before this returns.
    follower.watch_directory(root, 0);
    std::thread::Builder::new()
        .name("control-groups".to_owned())
        .spawn(move || follower.run())?;
    Ok(paths)
}

struct CgroupWatcher {
    inotify: OwnedFd,
    root: PathBuf,
    /// Directories by inotify watch.
    watched: HashMap<i32, PathBuf>,
    paths: CgroupPaths,
}

impl CgroupWatcher {
    /// Watches a directory and then lists it: a subdirectory created in between is seen twice
    /// rather than missed.
    fn watch_directory(&mut self, directory: &Path, depth: usize) {
        if depth > DEPTH_MAX {
            return;
        }
        let flags = WatchFlags::CREATE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&self.inotify, directory, flags) {
            Ok(watch) => {
                self.watched.insert(watch, directory.to_owned());
            }
            Err(Errno::NOENT) => return,
            Err(error) => tracing::warn!(
                directory = %directory.display(),
                %error,
                "cannot watch a cgroup: short-lived workloads in it may have no name"
            ),
        }
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                self.record_path(entry.ino(), &path);
                self.watch_directory(&path, depth + 1);
            }
        }
    }

    fn record_path(&self, id: u64, path: &Path) {
        let inner = path.strip_prefix(&self.root).unwrap_or(path);
        let path = format!("/{}", inner.display());
        self.paths.lock().insert(id, path);
    }

    fn run(mut self) {
        let mut buffer = [MaybeUninit::uninit(); 16_384];
        loop {
            let mut came = Vec::new();
            let mut overflow = false;
            let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let flags = event.events();
                        overflow |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
                        if flags.contains(ReadFlags::IGNORED) {
                            came.push((event.wd(), None));
                        } else if flags.contains(ReadFlags::ISDIR)
                            && let Some(name) = event.file_name()
                        {
                            let name = name.to_string_lossy().into_owned();
                            came.push((event.wd(), Some(name)));
                        }
                    }
                    Err(Errno::INTR) => continue,
                    Err(error) => {
                        tracing::error!(%error, "stopped watching cgroups");
                        return;
                    }
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
            for (watch, name) in came {
                match name {
                    None => {
                        self.watched.remove(&watch);
                    }
                    Some(name) => {
                        let Some(path) = self.watched.get(&watch).map(|above| above.join(name))
                        else {
                            continue;
                        };
                        let depth = path.components().count() - self.root.components().count();
                        if let Ok(metadata) = std::fs::symlink_metadata(&path) {
                            self.record_path(std::os::unix::fs::MetadataExt::ino(&metadata), &path);
                            self.watch_directory(&path, depth);
                        }
                    }
                }
            }
            if overflow {
                let root = self.root.clone();
                self.watch_directory(&root, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::MetadataExt as _,
        time::{Duration, Instant},
    };

    #[test]
    fn a_removed_cgroup_keeps_its_path() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("there/already")).expect("made");
        let ino = |path: &str| fs::metadata(root.path().join(path)).expect("there").ino();
        let already = ino("there/already");
        let paths = watch_cgroups(root.path()).expect("followed");
        assert_eq!(paths.get(already).as_deref(), Some("/there/already"));
        let known = |id: u64| {
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                if let Some(path) = paths.get(id) {
                    return path;
                }
                assert!(Instant::now() < end, "{id} is not known");
                std::thread::yield_now();
            }
        };
        // Several levels at once, as runtimes create them, and removed again.
        fs::create_dir_all(root.path().join("kubepods/pod1/container")).expect("made");
        let id = ino("kubepods/pod1/container");
        assert_eq!(known(id), "/kubepods/pod1/container");
        // Other file systems may reuse an inode number; cgroupfs does not.
        fs::create_dir(root.path().join("there/later")).expect("made");
        assert_eq!(known(ino("there/later")), "/there/later");
        fs::remove_dir_all(root.path().join("kubepods")).expect("removed");
        assert_eq!(paths.get(id).as_deref(), Some("/kubepods/pod1/container"));
    }
}
