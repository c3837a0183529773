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

#[cfg(test)]
impl FileId {
    /// The file at a path, on a file system that shows system calls what the kernel uses.
    pub fn for_tests(path: &std::path::Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = path.metadata().expect("a file");
        Self {
            device: kernel_device(metadata.dev()),
            inode: metadata.ino(),
            generation: 0,
        }
    }
}

/// Converts a device number from system calls to the kernel's internal representation.
pub fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}
