//! Files with attached probes.

use crate::{
    observed::{mapping::FileVersion, mount::HoldLimit},
    sensor::{known_files::FileWatch, uprobe::UprobeLink},
};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    sync::Arc,
    time::Instant,
};

/// A file with attached probes.
pub(super) struct AttachedFile {
    pub watch: Arc<FileWatch>,
    pub version: FileVersion,
    pub name: String,
    pub stack: &'static str,
    /// Keeps the file that its probes refer to.
    pub file: File,
    pub until: HoldLimit,
    /// Attach points by program; those limited to single processes are separate.
    pub points: Vec<(&'static str, Vec<u64>)>,
    pub answers: Vec<(&'static str, Vec<u64>)>,
    pub scope: ProcessScope,
    /// Processes that have mapped it, if that must be known.
    pub mappers: HashSet<u32>,
    /// The inotify watch for changes of the file.
    pub change: Option<i32>,
    /// When a busy process last used it, if it is attached to one by one because of that.
    pub spared: Option<Instant>,
    /// When too many processes had mapped it for that.
    pub crowded: Option<Instant>,
}

/// Which processes a file's probes apply to.
pub(super) enum ProcessScope {
    All(Vec<UprobeLink>),
    Processes(HashMap<u32, Vec<UprobeLink>>),
}

impl ProcessScope {
    pub fn into_links(self) -> Vec<UprobeLink> {
        match self {
            Self::All(links) => links,
            Self::Processes(links) => links.into_values().flatten().collect(),
        }
    }
}

/// Whether a file is still linked in a directory and has the contents that were inspected.
pub(super) fn is_same(watched: &AttachedFile) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    watched.file.metadata().is_ok_and(|metadata| {
        // Adding or removing a link changes ctime but not the contents.
        let same = FileVersion::of(&metadata).same_content(&watched.version);
        let in_memory_only = watched.until == HoldLimit::Unmapped;
        same && (metadata.nlink() > 0 || in_memory_only)
    })
}
