//! Credential files: opened, received from another process, inherited across exec.

pub mod inherited;
pub mod names;
pub mod open;
mod procfs;
