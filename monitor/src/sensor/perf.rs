//! `perf_event_open(2)`, shared by uprobes and by records of mapped files.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// `struct perf_event_attr` in the size of its third version.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PerfAttributes {
    pub kind: u32,
    pub size: u32,
    pub config: u64,
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup: u32,
    pub breakpoint_type: u32,
    /// For the uprobe PMU: the address of a path.
    pub config1: u64,
    /// For the uprobe PMU: an offset in that file.
    pub config2: u64,
    pub branch_sample_type: u64,
}

impl PerfAttributes {
    pub fn new(kind: u32) -> Self {
        Self {
            kind,
            size: size_of::<Self>() as u32,
            ..Self::default()
        }
    }
}

/// Which tasks an event observes.
#[derive(Clone, Copy, Debug)]
pub enum PerfTarget {
    /// One process, on any CPU.
    Process(NonZeroU32),
    /// Every process, while it runs on this CPU.
    Processor(u32),
}

/// Opens an event.
///
/// # Errors
///
/// Those of the kernel. `EACCES` and `EPERM`: `CAP_PERFMON`, or more, is missing.
pub fn open(attributes: &PerfAttributes, target: PerfTarget) -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    let (pid, processor) = match target {
        PerfTarget::Process(pid) => (pid.get().cast_signed(), -1),
        PerfTarget::Processor(number) => (-1, number.cast_signed()),
    };
    // SAFETY: the kernel reads the attributes up to their given size, and a path that they point
    // to, which the caller keeps alive; nothing is written.
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
    owned_descriptor(fd)
}

/// Takes ownership of a descriptor that a system call returned.
pub fn owned_descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just created it for this caller.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
