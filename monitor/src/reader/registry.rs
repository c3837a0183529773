//! What the reader's owner asks of the probes.

use crate::observed::file::FileId;
use monitor_core::model::Subject;
use std::fmt::Debug;

/// A file that a reader opened, as the kernel identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOpen {
    pub file: FileId,
    /// Magic number of its file system.
    pub magic: u32,
}

/// Tells the probes which processes belong to the agent, and returns what they opened.
pub trait ProcessRegistry: Debug + Send + Sync {
    /// Adds a process before it opens anything; returns the number of its entry, or `None` if there
    /// is no room: then its reads are observed like those of others.
    fn add(&self, subject: Subject) -> Option<usize>;

    /// Removes a process before its pid can be reused.
    fn remove(&self, entry: usize);

    /// The files that a process opened since the last call; `None` if the probes do not report
    /// them.
    fn take_opens(&self, entry: usize) -> Option<Vec<KernelOpen>>;
}

/// Used where no probes are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Unregistered;

impl ProcessRegistry for Unregistered {
    fn add(&self, _: Subject) -> Option<usize> {
        None
    }

    fn remove(&self, _: usize) {}

    fn take_opens(&self, _: usize) -> Option<Vec<KernelOpen>> {
        None
    }
}
