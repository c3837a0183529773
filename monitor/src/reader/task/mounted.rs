//! Files that were mounted into a container on purpose.

use super::mount_table::mounts_of;
use std::path::Path;

/// Whether a file, or its directory, is a mount of its own in the view of a process: not one with
/// much else below it. `None` if the process exited.
pub(super) fn is_alone(pid: u32, path: &Path) -> Option<bool> {
    let mounts = mounts_of(pid);
    if mounts.is_empty() {
        return None;
    }
    let points = mounts.iter().map(|mount| mount.point.as_path());
    Some(check_alone(path, points))
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

    #[test]
    fn a_process_that_exited_has_no_mounts() {
        assert_eq!(is_alone(0x7000_0001, Path::new("/x")), None);
        assert!(is_alone(std::process::id(), Path::new("/x")).is_some());
    }
}
