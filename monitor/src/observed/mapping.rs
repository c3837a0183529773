//! Files that processes have mapped executable.

use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
};

/// A file as the kernel identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MappedFile {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
    /// Distinguishes a file from an earlier one with the same inode number, if the file system
    /// supports it.
    pub generation: u64,
}

/// A file that a process has mapped executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMapping {
    pub pid: u32,
    pub file: MappedFile,
    /// Address in the process's memory.
    pub address: u64,
    pub size: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Path as the process sees it.
    #[serde(with = "super::path")]
    pub path: PathBuf,
}

impl ProcessMapping {
    /// Whether it is the program that the process runs. Their file system is not asked.
    pub fn is_program(&self) -> bool {
        let exe = std::fs::read_link(format!("/proc/{}/exe", self.pid));
        exe.is_ok_and(|exe| exe == self.path)
    }
}

/// Identifies a file as system calls do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileKey {
    pub device: u64,
    pub inode: u64,
}

impl FileKey {
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Identifies one version of a file's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    /// When its contents or its metadata were last changed, which no process can set.
    pub fn changed(&self) -> Option<jiff::Timestamp> {
        let nanoseconds = i32::try_from(self.changed.1).ok()?;
        jiff::Timestamp::new(self.changed.0, nanoseconds).ok()
    }

    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the contents are the same: a change of owner or link count does not matter.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
    }

    /// When the contents were modified, in seconds since 1970.
    pub fn modified_seconds(&self) -> i64 {
        self.modified.0
    }
}

/// The files that a process has mapped executable now, from `/proc`; only the first
/// [`OF_PROCESS_MAX`] mappings are read.
pub fn mappings_of_process(pid: u32) -> Vec<ProcessMapping> {
    let lines = bounded_lines(&format!("/proc/{pid}/maps"));
    lines
        .filter_map(|line| parse_line(pid, &line))
        .take(OF_PROCESS_MAX)
        .collect()
}

/// The inodes of the files that a process has mapped executable now.
pub fn mapped_inodes(pid: u32) -> HashSet<u64> {
    let mappings = mappings_of_process(pid);
    mappings.iter().map(|mapping| mapping.file.inode).collect()
}

/// Maximum mappings read of one process; programs have a few hundred.
const OF_PROCESS_MAX: usize = 4096;

/// The lines of a `/proc` file whose size others control, without line ends: one at a time, and at
/// most a few megabytes. They are bytes, because a path need not be text.
pub fn bounded_lines(path: &str) -> impl Iterator<Item = Vec<u8>> + use<> {
    const BYTES_MAX: u64 = 16 << 20;
    let file = std::fs::File::open(path).ok();
    let text = file.map(|file| BufReader::new(file.take(BYTES_MAX)));
    text.into_iter()
        .flat_map(|text| text.split(b'\n').map_while(Result::ok))
}

/// `55d0-55d8 r-xp 00002000 fe:00 1234    /usr/bin/cat`
fn parse_line(pid: u32, line: &[u8]) -> Option<ProcessMapping> {
    let path = line.iter().position(|byte| *byte == b'/')?;
    let (front, path) = line.split_at(path);
    let mut words = std::str::from_utf8(front).ok()?.split_ascii_whitespace();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    if words.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    Some(ProcessMapping {
        pid,
        address: start,
        size: end.checked_sub(start)?,
        offset,
        file: MappedFile {
            major: hex(major)?.try_into().ok()?,
            minor: hex(minor)?.try_into().ok()?,
            inode: words.next()?.parse().ok()?,
            generation: 0,
        },
        path: PathBuf::from(OsStr::from_bytes(path)),
    })
}

/// The processes running now.
pub fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn a_line_of_maps() {
        let line = b"7f12-7f22 r-xp 00002000 fe:10 1234                       /opt/a b/libssl.so.3";
        let found = parse_line(7, line).expect("a mapping");
        assert_eq!(
            (found.address, found.size, found.offset),
            (0x7f12, 0x10, 0x2000)
        );
        assert_eq!(
            (found.file.major, found.file.minor, found.file.inode),
            (0xfe, 0x10, 1234)
        );
        assert_eq!(found.path, Path::new("/opt/a b/libssl.so.3"));
        assert_eq!(
            parse_line(7, b"7f12-7f22 r--p 00002000 fe:10 1234 /x"),
            None
        );
        assert_eq!(
            parse_line(7, b"7f12-7f22 r-xp 00000000 00:00 0 [vdso]"),
            None
        );
    }

    #[test]
    fn this_program_is_among_its_mappings() {
        let own = std::env::current_exe().expect("a path");
        let found = mappings_of_process(std::process::id());
        assert!(found.iter().any(|mapping| mapping.path == own), "{found:?}");
    }

    proptest! {
        #[test]
        fn any_line(line in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse_line(1, &line);
        }
    }
}
