//! Files that somebody mounted into a container for it to read.

use crate::recent::Recent;
use procfs::process::Process;
use std::path::Path;

/// Files of containers that are remembered.
const REMEMBERED: usize = 4096;

/// Remembers what was looked up.
#[derive(Debug)]
pub struct Mounted {
    /// By container and path.
    alone: Recent<(String, String), bool>,
}

impl Default for Mounted {
    fn default() -> Self {
        Self {
            alone: Recent::new(REMEMBERED),
        }
    }
}

impl Mounted {
    /// Whether a file, or the directory that it is in, is a mount of its own: not one with much else
    /// below it. Of a process that is gone it is known only where another one of its container was asked
    /// about.
    pub fn alone(&mut self, container: &str, pid: u32, path: &str) -> bool {
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
        let alone = is_alone(Path::new(path), points);
        self.alone.insert(key, alone);
        alone
    }
}

fn is_alone<'a>(path: &Path, mut points: impl Iterator<Item = &'a Path>) -> bool {
    let parent = path.parent().unwrap_or(path);
    // The kubelet has each edition of a volume in a directory such as `..2026_11_23`.
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
            let found = is_alone(Path::new(path), points.iter().map(Path::new));
            assert_eq!(found, alone, "{path} {points:?}");
        }
    }
}
