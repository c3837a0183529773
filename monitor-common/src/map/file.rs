//! Files, and what was lost of them.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identifies one open file of one process, to count repeated reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ReadKey {
    pub start: u64,
    pub inode: u64,
    /// Combined with [`WRITE_ONLY_PID`] for opens that only write: the next open for reading then counts
    /// as the first.
    pub pid: u32,
    pub device: u32,
}

/// No process id has this bit.
pub const WRITE_ONLY_PID: u32 = 1 << 31;

/// Repeated opens of one file by one process.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ReadCount {
    /// When the last record was sent, nanoseconds since boot.
    pub sent: u64,
    /// Opens since then.
    pub count: u32,
    pub reserved: u32,
}

/// Repeats within this time are counted and not sent.
pub const REPEAT_NS: u64 = 1_000_000_000;

/// Identifies a file even if its inode number is reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct InodeKey {
    pub inode: u64,
    pub device: u32,
    pub generation: u32,
}

/// Value in the inode map: report opens of this file.
pub const INODE_CREDENTIAL: u32 = 1;
/// Value in the inode map: the file's name looks like a credential's, but it holds none.
pub const INODE_IGNORED: u32 = 2;

const _: () = {
    assert!(size_of::<ReadKey>() == 24);
    assert!(size_of::<ReadCount>() == 16);
    assert!(size_of::<InodeKey>() == 16);
};
