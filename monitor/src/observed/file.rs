//! How a file is identified: as the kernel does, even if its inode number is reused.

use serde::{Deserialize, Serialize};

/// Identifies a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// See [`kernel_device`].
    pub device: u32,
    pub inode: u64,
    pub generation: u32,
}

/// Converts a device number from system calls to the kernel's internal representation.
pub fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}
