//! `perf_event_open(2)`: what is shared by uprobes and by records of mapped files.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// `struct perf_event_attr` in the size that it had with its third version.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Attributes {
    pub kind: u32,
    pub size: u32,
    pub config: u64,
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup: u32,
    pub breakpoint_type: u32,
    /// For the PMU of uprobes the address of a path.
    pub config1: u64,
    /// And an offset in that file.
    pub config2: u64,
    pub branch_sample_type: u64,
}

impl Attributes {
    pub fn new(kind: u32) -> Self {
        Self {
            kind,
            size: size_of::<Self>() as u32,
            ..Self::default()
        }
    }
}

/// Which tasks an event is about.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// One process, wherever it runs.
    Process(NonZeroU32),
    /// Every process, while it runs on this processor.
    Processor(u32),
}

/// Opens an event.
///
/// # Errors
///
/// As the kernel gives them. `EACCES` and `EPERM`: `CAP_PERFMON` is missing, or more.
pub fn open(attributes: &Attributes, target: Target) -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    let (pid, processor) = match target {
        Target::Process(pid) => (pid.get().cast_signed(), -1),
        Target::Processor(number) => (-1, number.cast_signed()),
    };
    // SAFETY: the kernel reads as many bytes as the attributes say they have, and a path that they
    // point to, which the caller keeps; nothing is written.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            pid,
            processor,
            -1,
            CLOSE_ON_EXEC,
        )
    };
    owned(fd)
}

/// A descriptor that a system call has returned.
pub fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just made it for this caller.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
