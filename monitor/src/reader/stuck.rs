//! Readers that wait in the kernel and cannot be killed.

use super::{process::ReaderProcess, role::ReaderRole};
use crate::observed::file_system::is_surely_local;
use std::sync::{Mutex, PoisonError};

/// Maximum number of readers that are abandoned at the same time.
const ABANDONED_MAX: usize = 2;
/// Maximum readers of programs among them: programs that hang must not use up all.
const PROGRAM_READERS_MAX: usize = 1;

/// An abandoned reader, and the file system that it waits for, if that is known.
#[derive(Debug)]
struct StuckReader {
    process: ReaderProcess,
    role: ReaderRole,
    device: Option<u32>,
}

/// The abandoned readers of all clients.
#[derive(Debug, Default)]
pub(super) struct StuckReaders(Mutex<Vec<StuckReader>>);

impl StuckReaders {
    fn lock<T>(&self, look: impl FnOnce(&mut Vec<StuckReader>) -> T) -> T {
        let mut stuck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.retain_mut(|reader| !reader.process.has_ended());
        look(&mut stuck)
    }

    /// Abandons a reader; returns it if there are too many already.
    pub fn add(
        &self,
        process: ReaderProcess,
        role: ReaderRole,
        device: Option<u32>,
    ) -> Option<ReaderProcess> {
        self.lock(|stuck| {
            let programs = stuck
                .iter()
                .filter(|reader| reader.role == ReaderRole::Programs);
            if stuck.len() >= ABANDONED_MAX
                || (role == ReaderRole::Programs && programs.count() >= PROGRAM_READERS_MAX)
            {
                return Some(process);
            }
            stuck.push(StuckReader {
                process,
                role,
                device,
            });
            None
        })
    }

    /// Whether a file system, given by device and magic number, must not be read: an abandoned
    /// reader waits for it; or no more can be abandoned, and it may be one to wait for.
    pub fn refuses(&self, device: u32, magic: u32) -> bool {
        self.lock(|stuck| {
            stuck.iter().any(|reader| reader.device == Some(device))
                || (stuck.len() >= ABANDONED_MAX && !is_surely_local(magic, device))
        })
    }

    /// Whether no more readers can be abandoned.
    pub fn is_full(&self) -> bool {
        self.lock(|stuck| stuck.len() >= ABANDONED_MAX)
    }
}
