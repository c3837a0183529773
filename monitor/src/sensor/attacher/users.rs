//! Which processes have mapped which files.

use crate::sensor::mapped;
use std::collections::{HashMap, HashSet};

/// The current mappings of all processes.
#[derive(Default)]
pub(super) struct FileUsers {
    /// Processes, by the inode of each file they have mapped.
    pub mappers: HashMap<u64, HashSet<u32>>,
    /// Inodes of running programs.
    pub programs: HashSet<u64>,
}

pub(super) fn users() -> FileUsers {
    use std::os::unix::fs::MetadataExt as _;
    let mut users = FileUsers::default();
    for pid in mapped::processes() {
        for mapping in mapped::mappings_of_process(pid) {
            let mappers = users.mappers.entry(mapping.file.inode).or_default();
            mappers.insert(pid);
        }
        let program = std::fs::metadata(format!("/proc/{pid}/exe"));
        users.programs.extend(program.map(|program| program.ino()));
    }
    users
}
