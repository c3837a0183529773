//! Which processes have mapped which files.

use crate::observed::mapping::{mappings_of_process, processes};
use std::collections::{HashMap, HashSet};

/// The current mappings of all processes.
#[derive(Default)]
pub(super) struct FileUsers {
    /// Processes, by the inode of each file they have mapped.
    pub mappers: HashMap<u64, HashSet<u32>>,
    /// Inodes of running programs.
    pub programs: HashSet<u64>,
}

/// Whether a process exists.
pub(super) fn lives(pid: &u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

pub(super) fn users() -> FileUsers {
    let mut users = FileUsers::default();
    for pid in processes() {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        for mapping in mappings_of_process(pid) {
            let inode = mapping.file.inode;
            users.mappers.entry(inode).or_default().insert(pid);
            if program.as_ref() == Some(&mapping.path) {
                users.programs.insert(inode);
            }
        }
    }
    users
}
