//! Findings for other systems: a stream of lines as JSON or OCSF.

pub mod findings;
pub mod lines;
pub mod ocsf;
