//! Executables that were deleted, or added to a container after its image.

use super::{
    identify::{Links, locate, metadata, open_below},
    mounted::bounded_mounts,
};
use crate::host;
use procfs::process::MountInfo;
use rustix::{
    fs::{OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Whether a process sees anything at a path. Also true if that cannot be determined.
pub(super) fn exists(pid: u32, path: &Path) -> bool {
    !matches!(locate(pid, path, Links::None), Err(Errno::NOENT))
}

/// Whether a program is in a container's writable layer and differs from its image; `None` if that
/// cannot be determined.
pub(super) fn is_added(pid: u32, exe: &Path) -> Option<bool> {
    let mounts = bounded_mounts(pid);
    let mount = mounts
        .iter()
        .filter(|mount| exe.starts_with(&mount.mount_point))
        // If several mounts are at one place, the last is on top.
        .max_by_key(|mount| mount.mount_point.components().count())?;
    let layers = OverlayLayers::read(mount)?;
    let inner = exe.strip_prefix(&mount.mount_point).ok()?;
    // It is the kernel's path: no links, and no `..`.
    if inner
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        return None;
    }
    let metadata_at = |layer: &Path| {
        let layer = locate(host::pid(), layer, Links::Inside).ok()?;
        // The container may put links into its own layer.
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let place = open_below(&layer, inner, flags, ResolveFlags::NO_SYMLINKS).ok()?;
        metadata(&place).ok()
    };
    let Some(upper) = metadata_at(&layers.upper) else {
        return Some(false);
    };
    // Changing only the owner or mode of a file creates a copy of it with the same times.
    let same = |lower: &Metadata| {
        (lower.len(), lower.mtime(), lower.mtime_nsec())
            == (upper.len(), upper.mtime(), upper.mtime_nsec())
    };
    Some(
        !layers
            .lower
            .iter()
            .any(|layer| metadata_at(layer).as_ref().is_some_and(same)),
    )
}

/// The directories of an overlay, as its mounter sees them.
#[derive(Debug, PartialEq, Eq)]
struct OverlayLayers {
    upper: PathBuf,
    lower: Vec<PathBuf>,
}

impl OverlayLayers {
    fn read(mount: &MountInfo) -> Option<Self> {
        if mount.fs_type != "overlay" {
            return None;
        }
        let option = |name: &str| mount.super_options.get(name)?.clone();
        let upper = PathBuf::from(option("upperdir")?);
        let mut lower = Vec::new();
        for layer in option("lowerdir").unwrap_or_default().split(':') {
            let layer = Path::new(layer);
            if layer.is_absolute() {
                lower.push(layer.to_owned());
            } else if !layer.as_os_str().is_empty() {
                // Relative to the mounter's working directory, which is a parent of the other
                // layers.
                lower.extend(upper.ancestors().skip(1).map(|above| above.join(layer)));
            }
        }
        Some(Self { upper, lower })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_an_overlay() {
        let layers =
            |line: &str| OverlayLayers::read(&MountInfo::from_line(line).expect("a mount"));
        let found = layers(
            "40 39 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/s/2/fs:1/fs,upperdir=/s/3/fs,workdir=/s/3/work",
        );
        let found = found.expect("an overlay");
        assert_eq!(found.upper, Path::new("/s/3/fs"));
        assert_eq!(found.lower[0], Path::new("/s/2/fs"));
        assert!(found.lower.contains(&PathBuf::from("/s/1/fs")), "{found:?}");
        assert_eq!(
            layers("29 1 254:0 / / rw,relatime - ext4 /dev/vda rw"),
            None
        );
    }
}
