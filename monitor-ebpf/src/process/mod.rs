//! Processes: their lifecycle, and reads of one process by another.

pub mod lifecycle;
pub mod memory;
