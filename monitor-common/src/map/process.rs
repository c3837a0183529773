//! Processes that look at others.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A system call in progress that reads another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ReadCall {
    /// The process that the call names.
    pub pid: u32,
    /// One of [`crate::record::foreign`].
    pub how: u32,
}

const _: () = assert!(size_of::<ReadCall>() == 8);
