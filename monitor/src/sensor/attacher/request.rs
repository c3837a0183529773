//! Requests to the attacher thread.

use crate::{
    completion::Completion,
    observed::{
        mapping::{FileKey, FileVersion, MappedFile},
        mount::HoldLimit,
    },
    sensor::exclude::ExclusionRules,
};
use std::{collections::HashSet, fs::File, time::Duration};

/// The functions of one TLS library: the program for each, and its offset in the file.
pub type LibraryFunctions = Vec<(&'static str, u64)>;

/// A file with functions to attach to.
#[derive(Debug)]
pub struct AttachTarget {
    pub key: FileKey,
    pub version: FileVersion,
    /// An O_PATH descriptor: the file itself is not open.
    pub file: File,
    pub until: HoldLimit,
    pub name: String,
    /// Whether it is a program rather than a library.
    pub executable: bool,
    /// The process that mapped it.
    pub pid: Option<u32>,
    /// How mapping records identify it.
    pub mapped: Option<MappedFile>,
    /// Functions by TLS library.
    pub stacks: Vec<(&'static str, LibraryFunctions)>,
}

/// A request to the attacher thread.
#[derive(Debug)]
pub enum AttachRequest {
    Found(Box<AttachTarget>),
    /// The function that the canary calls: attached to for good, whatever else is.
    Canary {
        file: File,
        functions: LibraryFunctions,
        /// Calls it, and tells what the trap costs.
        trap_time: fn() -> Duration,
    },
    /// A process mapped a file that is attached per process, or held only while it is mapped.
    Mapped {
        key: FileKey,
        pid: u32,
    },
    /// A child process inherits its parent's mappings.
    Forked {
        parent: u32,
        child: u32,
    },
    /// A process executed another program.
    Executed {
        pid: u32,
    },
    Exited {
        pid: u32,
    },
    /// A process connects to something.
    Connected {
        pid: u32,
    },
    /// Inspect the TLS reads of a process that talks to an authenticator.
    InspectResponses {
        pid: u32,
    },
    Exclude(ExclusionRules),
    /// Detach from everything but the canary, to spare the node, or attach again.
    Switch(bool),
    /// The names of images became known: what was excluded as a precaution may no longer be.
    Reconsider,
    /// Watches of files that may have changed or been deleted.
    Changed(HashSet<i32>),
    /// A file system was mounted or unmounted.
    MountsChanged,
    /// Dropped when every earlier request has been handled.
    Reached(Completion),
}
