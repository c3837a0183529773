//! The states of mapped files, shared by the threads that inspect them and attach to them.

use crate::observed::mapping::{FileKey, MappedFile};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

/// Maximum number of files remembered.
pub const FILES_CACHED: usize = 65_536;
/// A file with nothing to attach to is inspected again after this time: it may have been
/// overwritten, and file systems without a device of their own reuse inode numbers.
const NOTHING_TTL: Duration = Duration::from_secs(30);
/// Maximum files waiting for the inspector, and for its slow part.
pub const WAITING_MAX: usize = 2048;

/// A file with attached probes, as other threads see it.
#[derive(Debug)]
pub struct FileWatch {
    pub key: FileKey,
    /// When it was last mapped, in seconds since the agent started.
    pub last_mapped: AtomicU64,
    /// Whether the attacher must know which processes map it.
    pub by_process: AtomicBool,
}

/// The state of a mapped file.
#[derive(Clone, Debug)]
pub enum FileState {
    /// Waiting for the inspector.
    Pending,
    /// Nothing to attach to, or nothing that could be proven.
    NothingFound {
        since: Instant,
    },
    Watched(Arc<FileWatch>),
}

/// The states of mapped files, shared by the threads.
#[derive(Clone, Debug, Default)]
pub struct KnownFiles(Arc<Mutex<InspectedFiles>>);

#[derive(Debug, Default)]
pub struct InspectedFiles {
    known: HashMap<MappedFile, FileState>,
    /// Number of pending files.
    pending: usize,
}

impl InspectedFiles {
    pub fn set(&mut self, file: MappedFile, known: Option<FileState>) {
        let is_pending =
            |known: &Option<FileState>| usize::from(matches!(known, Some(FileState::Pending)));
        let after = is_pending(&known);
        let before = match known {
            Some(known) => self.known.insert(file, known),
            None => self.known.remove(&file),
        };
        self.pending = (self.pending + after).saturating_sub(is_pending(&before));
    }

    /// The state of a file; `None` if it is too old.
    pub fn get(&self, file: &MappedFile) -> Option<&FileState> {
        self.known.get(file).filter(
            |known| !matches!(known, FileState::NothingFound { since } if since.elapsed() > NOTHING_TTL),
        )
    }

    /// Marks a file as pending, if there is room.
    pub fn begin(&mut self, file: MappedFile) -> bool {
        if self.known.len() >= FILES_CACHED {
            self.known
                .retain(|_, known| !matches!(known, FileState::NothingFound { .. }));
        }
        let room = self.known.len() < FILES_CACHED && self.pending < WAITING_MAX;
        if room {
            self.set(file, Some(FileState::Pending));
        }
        room
    }
}

impl KnownFiles {
    pub fn lock<T>(&self, look: impl FnOnce(&mut InspectedFiles) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, file: MappedFile, known: Option<FileState>) {
        self.lock(|files| files.set(file, known));
    }

    /// Records that a file has nothing to attach to, for now.
    pub fn set_nothing_found(&self, file: MappedFile) {
        let since = Instant::now();
        self.set(file, Some(FileState::NothingFound { since }));
    }

    /// Has every file without attach points inspected again.
    pub fn reset_nothing_found(&self) {
        self.lock(|files| {
            files
                .known
                .retain(|_, known| !matches!(known, FileState::NothingFound { .. }));
        });
    }

    /// Records that a file has attached probes.
    pub fn set_watched(&self, file: MappedFile, watch: &Arc<FileWatch>) {
        self.set(file, Some(FileState::Watched(Arc::clone(watch))));
    }

    /// Has a file inspected again the next time it is mapped.
    pub fn forget_mapped(&self, file: MappedFile) {
        self.set(file, None);
    }

    /// Has a file that was detached inspected again the next time it is mapped.
    pub fn forget(&self, key: FileKey) {
        self.lock(|files| {
            files
                .known
                .retain(|_, known| !matches!(known, FileState::Watched(watch) if watch.key == key));
        });
    }
}
