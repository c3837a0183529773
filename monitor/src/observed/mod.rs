//! Processes, and their files, mappings and variables, as all parts of the agent describe them.

pub mod file;
pub mod file_system;
pub mod mapping;
pub mod mount;
pub mod path;
pub mod process;
pub mod variable;
