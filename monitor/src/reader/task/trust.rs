//! Executables that were deleted, added to a container after its image, or written lately.

use super::{
    identify::{Links, locate_on, metadata, open_in_layer},
    mount_table::{MountEntry, mounts_of},
};
use crate::{
    host,
    observed::process::{in_own_user_namespace, live_subject},
    reader::protocol::Views,
};
use jiff::Timestamp;
use rustix::io::Errno;
use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Whether a process sees anything at a path; `None` if that cannot be determined.
pub(super) fn exists(pid: u32, path: &Path, views: Views) -> Option<bool> {
    // Its root is there as long as the process is.
    live_subject(pid)?;
    let found = match locate_on(pid, path, Links::None, None, views) {
        Ok(_) => true,
        Err(Errno::NOENT | Errno::NOTDIR) => false,
        Err(_) => return None,
    };
    live_subject(pid).map(|_| found)
}

/// Whether a program of the host was written, or given its mode, in one of these times; `None` if that
/// cannot be determined. Of a process that has exited, the host's file at the path is taken.
pub(super) fn was_written(
    pid: u32,
    exe: &Path,
    times: &[(Timestamp, Timestamp)],
    views: Views,
) -> Option<bool> {
    let open = |pid| locate_on(pid, exe, Links::None, None, views);
    let place = open(pid).or_else(|_| open(host::pid())).ok()?;
    let metadata = metadata(&place).ok()?;
    let changed = Timestamp::from_second(metadata.ctime()).ok()?;
    // Inodes have the time of the last tick, and only its seconds are compared.
    let from = |began: &Timestamp| began.as_second() - 1;
    Some(
        times
            .iter()
            .any(|(began, ended)| (from(began)..=ended.as_second()).contains(&changed.as_second())),
    )
}

/// Whether a program is in a container's writable layer and differs from its image; `None` if that
/// cannot be determined.
pub(super) fn is_added(pid: u32, exe: &Path, views: Views) -> Option<bool> {
    let mounts = mounts_of(pid);
    // Whoever mounts without privileges chooses the layers.
    if views == Views::OwnUserNamespace && in_own_user_namespace(pid) != Some(true) {
        return None;
    }
    let mount = mounts
        .iter()
        .filter(|mount| exe.starts_with(&mount.point))
        // If several mounts are at one place, the last is on top.
        .max_by_key(|mount| mount.point.components().count())?;
    let (upper, lower) = possible_layers(mount)?;
    let inner = exe.strip_prefix(&mount.point).ok()?;
    // It is the kernel's path: no links, and no `..`.
    if inner
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        return None;
    }
    let metadata_at = |layer: &Path| match open_in_layer(layer, inner) {
        Ok(opened) => metadata(&opened).ok().map(Some),
        Err(Errno::NOENT | Errno::NOTDIR) => Some(None),
        Err(_) => None,
    };
    let Some(upper) = metadata_at(&upper)? else {
        return Some(false);
    };
    // Changing only the owner or mode of a file creates a copy of it with the same times.
    let same = |lower: &Metadata| {
        (lower.len(), lower.mtime(), lower.mtime_nsec())
            == (upper.len(), upper.mtime(), upper.mtime_nsec())
    };
    for layer in &lower {
        // Some of these may not exist.
        if metadata_at(layer).flatten().as_ref().is_some_and(same) {
            return Some(false);
        }
    }
    Some(true)
}

/// The upper directory of an overlay, and where its lower ones may be.
fn possible_layers(mount: &MountEntry) -> Option<(PathBuf, Vec<PathBuf>)> {
    if !mount.is_overlay() {
        return None;
    }
    let layers = mount.overlay_layers();
    let upper = layers.upper?;
    let mut lower = Vec::new();
    for layer in layers.lower {
        if layer.is_absolute() {
            lower.push(layer);
        } else {
            // Relative to the mounter's working directory, which is a parent of the other layers.
            lower.extend(upper.ancestors().skip(1).map(|above| above.join(&layer)));
        }
    }
    Some((upper, lower))
}

#[cfg(test)]
mod tests {
    use super::{super::mount_table::parse_mount, *};

    #[test]
    fn the_layers_of_an_overlay() {
        let layers = |line: &str| possible_layers(&parse_mount(line).expect("a mount"));
        let found = layers(
            "40 39 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/s/2/fs:1/fs,upperdir=/s/3/fs,workdir=/s/3/work",
        );
        let (upper, lower) = found.expect("an overlay");
        assert_eq!(upper, Path::new("/s/3/fs"));
        assert_eq!(lower[0], Path::new("/s/2/fs"));
        assert!(lower.contains(&PathBuf::from("/s/1/fs")), "{lower:?}");
        assert_eq!(
            layers("29 1 254:0 / / rw,relatime - ext4 /dev/vda rw"),
            None
        );
    }
}
