//! The reader: a process that opens and parses what others control, so that the agent does not.
//!
//! It runs this program under limits of memory, time, descriptors and system calls, answers one
//! request at a time over a socket, and returns fingerprints and public facts, never a secret. If
//! it crashes or takes too long, it is replaced, and what it was reading is counted as unread.
//! A process that waits for a dead file system cannot be killed: it is abandoned, and that file
//! system is not read until the process returns.

mod client;
mod lane;
mod process;
pub mod protocol;
mod registry;
mod role;
mod sandbox;
mod serve;
mod stuck;
mod task;
mod wire;

pub use client::{ReadFailure, ReaderClient, ReaderPool};
pub use lane::{ReadId, ReadResult, ReaderLanes};
pub use registry::{KernelOpen, ProcessRegistry, Unregistered};
pub use role::ReaderRole;
pub use serve::serve;
#[cfg(test)]
pub use task::ReaderTasks;
pub use task::hold::mounts;
