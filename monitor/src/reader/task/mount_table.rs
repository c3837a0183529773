//! The mount table of a process.

use crate::observed::{mapping::bounded_lines, mount::MountId};
use std::path::PathBuf;

/// The used parts of a `mountinfo` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub id: MountId,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    pub point: PathBuf,
    pub kind: String,
    /// The options of the file system.
    options: String,
}

/// Names of file systems that another machine serves.
const REMOTE_KINDS: [&str; 12] = [
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "gfs2", "ocfs2",
    "virtiofs",
];

impl MountEntry {
    /// The kernel's number of its device.
    pub fn device(&self) -> u32 {
        let (major, minor) = self.id.device;
        major << 20 | minor
    }

    /// Whether a local program serves the file system.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }

    /// Whether another machine or a local program serves the file system, and may not respond.
    pub fn is_remote(&self) -> bool {
        self.is_fuse() || REMOTE_KINDS.contains(&self.kind.as_str())
    }

    pub fn is_overlay(&self) -> bool {
        self.kind == "overlay"
    }

    /// The directories of an overlay, as its mounter sees them.
    pub fn overlay_layers(&self) -> OverlayLayers {
        overlay_layers(&self.options)
    }
}

/// The directories of an overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OverlayLayers {
    pub upper: Option<PathBuf>,
    /// The uppermost first.
    pub lower: Vec<PathBuf>,
}

fn overlay_layers(options: &str) -> OverlayLayers {
    let mut layers = OverlayLayers::default();
    for (name, value) in options
        .split(',')
        .filter_map(|option| option.split_once('='))
    {
        match name {
            "upperdir" => layers.upper = Some(unescape(value)),
            "lowerdir" => layers.lower.extend(
                value
                    .split(':')
                    .filter(|part| !part.is_empty())
                    .map(unescape),
            ),
            // Since Linux 6.8 each layer can be an option of its own.
            "lowerdir+" => layers.lower.push(unescape(value)),
            _ => {}
        }
    }
    layers
}

/// Maximum mounts of one namespace; a node with hundreds of containers has a few thousand.
const MOUNTS_MAX: usize = 20_000;

/// The mounts of a process; empty if it exited.
pub(super) fn mounts_of(pid: u32) -> Vec<MountEntry> {
    bounded_lines(&format!("/proc/{pid}/mountinfo"))
        .take(MOUNTS_MAX)
        .filter_map(|line| parse_mount(&String::from_utf8_lossy(&line)))
        .collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/x rw,errors=continue`
pub(super) fn parse_mount(line: &str) -> Option<MountEntry> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let number = front.next()?.parse().ok()?;
    let (major, minor) = front.nth(1)?.split_once(':')?;
    let root = unescape(front.next()?);
    let point = unescape(front.next()?);
    let mut back = back.split(' ');
    let kind = back.next()?.to_owned();
    Some(MountEntry {
        id: MountId {
            number,
            device: (major.parse().ok()?, minor.parse().ok()?),
        },
        root,
        point,
        kind,
        options: back.nth(1).unwrap_or_default().to_owned(),
    })
}

/// The kernel escapes spaces and similar characters as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| std::str::from_utf8(bytes.get(at + 1..at + 4)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(code);
                at += 4;
            }
            None => {
                path.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layers_of_an_overlay() {
        let lower: Vec<PathBuf> = ["/l/2/fs", "/l/1 x/fs"].map(PathBuf::from).to_vec();
        let expected = OverlayLayers {
            upper: Some("/u/fs".into()),
            lower,
        };
        let old = "rw,lowerdir=/l/2/fs:/l/1\\040x/fs,upperdir=/u/fs,workdir=/w";
        assert_eq!(overlay_layers(old), expected);
        let new = "rw,lowerdir+=/l/2/fs,lowerdir+=/l/1\\040x/fs,upperdir=/u/fs";
        assert_eq!(overlay_layers(new), expected);
    }

    #[test]
    fn file_systems_that_may_not_respond() {
        for (kind, remote, fuse) in [
            ("fuse", true, true),
            ("fuse.sshfs", true, true),
            ("fuseblk", true, true),
            ("fusectl", false, false),
            ("nfs4", true, false),
            ("ext4", false, false),
            ("overlay", false, false),
        ] {
            let line = format!("36 35 0:50 / /mnt rw - {kind} x rw");
            let mount = parse_mount(&line).expect("a mount");
            assert_eq!(
                (mount.is_remote(), mount.is_fuse()),
                (remote, fuse),
                "{kind}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_mount(line in "\\PC{0,80}") {
            let _ = parse_mount(&line);
        }

        #[test]
        fn any_options(options in "(lowerdir|upperdir|[+=:,/\\\\a-z0-7]){0,30}") {
            let _ = overlay_layers(&options);
        }
    }
}
