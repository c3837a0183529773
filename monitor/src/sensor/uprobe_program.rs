//! Loaded programs for functions in user space.

use std::{collections::HashMap, os::fd::OwnedFd};

/// A loaded program.
#[derive(Debug)]
pub struct UprobeProgram {
    pub fd: OwnedFd,
    /// Whether it is attached to the return of a function.
    pub at_return: bool,
}

/// The loaded programs, by the names used in [`monitor_parse::tls_functions`].
pub type UprobePrograms = HashMap<&'static str, UprobeProgram>;
