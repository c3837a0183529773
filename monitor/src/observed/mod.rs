//! Files, mappings and variables of observed processes, as the sensor and the reader describe them.

pub mod file;
pub mod file_system;
pub mod mapping;
pub mod mount;
pub mod path;
pub mod variable;
