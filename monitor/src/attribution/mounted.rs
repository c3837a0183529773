//! Files that were mounted into a container on purpose.

use hashlink::LruCache;
use procfs::process::Process;
use std::path::Path;

/// Number of container files cached.
const CACHED: usize = 4096;

/// Detects such mounts, and caches lookups.
#[derive(Debug)]
pub struct MountedFiles {
    /// By container and path.
    alone: LruCache<(String, String), bool>,
}

impl Default for MountedFiles {
    fn default() -> Self {
        Self {
            alone: LruCache::new(CACHED),
        }
    }
}

impl MountedFiles {
    /// Whether a file, or its directory, is a mount of its own: not one with much else below it.
    /// For a process that exited the answer is known only if another process of its container was
    /// checked before.
    pub fn check_alone(&mut self, container: &str, pid: u32, path: &str) -> bool {
        let key = (container.to_owned(), path.to_owned());
        if let Some(known) = self.alone.get(&key) {
            return *known;
        }
        let mounts = i32::try_from(pid)
            .ok()
            .and_then(|pid| Process::new(pid).ok()?.mountinfo().ok());
        let Some(mounts) = mounts else {
            return false;
        };
        let points = mounts.0.iter().map(|mount| mount.mount_point.as_path());
        let alone = check_alone(Path::new(path), points);
        self.alone.insert(key, alone);
        alone
    }
}

fn check_alone<'a>(path: &Path, mut points: impl Iterator<Item = &'a Path>) -> bool {
    let parent = path.parent().unwrap_or(path);
    // The kubelet puts each version of a volume into a directory such as `..2026_11_23`.
    let edition = parent
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(".."));
    let volume = if edition { parent.parent() } else { None };
    points.any(|point| {
        point != Path::new("/") && (point == path || point == parent || Some(point) == volume)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_a_volume_is_mounted_alone() {
        for (path, points, alone) in [
            ("/root/.netrc", vec!["/"], false),
            ("/root/.netrc", vec!["/", "/root/.netrc"], true),
            ("/run/secrets/x/token", vec!["/", "/run/secrets/x"], true),
            (
                "/run/secrets/x/..2026_11/token",
                vec!["/", "/run/secrets/x"],
                true,
            ),
            ("/host/root/.aws/credentials", vec!["/", "/host"], false),
            ("/.netrc", vec!["/"], false),
        ] {
            let found = check_alone(Path::new(path), points.iter().map(Path::new));
            assert_eq!(found, alone, "{path} {points:?}");
        }
    }
}
