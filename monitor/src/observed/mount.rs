//! Mounts, and how long they may be kept busy.

use serde::{Deserialize, Serialize};

/// How long a file may be kept open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldLimit {
    /// Until it is deleted or replaced: its mount is the host's own, or contains image layers.
    Replaced,
    /// Until this mount is gone: the file is open through a private copy of it.
    Unmounted(MountId),
    /// Until no process maps it: its mount is busy until then anyway.
    Unmapped,
}

/// Identifies a mount; the mount number alone is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountId {
    pub number: u64,
    pub device: (u32, u32),
}
