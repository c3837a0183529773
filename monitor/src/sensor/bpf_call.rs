//! The system call `bpf(2)`, for what aya does not support.

use aya_obj::generated::{bpf_attr, bpf_cmd};
use std::io;

/// Calls `bpf(2)`.
///
/// # Errors
///
/// Those of the kernel.
pub fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the kernel accesses the attributes up to the given size, and what they point to,
    // which the callers keep alive until the call returns.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_uint,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if returned < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(returned)
    }
}
