//! Trims a variable's value in place, without reading it as a whole.

use crate::{environ::scratch::scratch, support::kernel::repeat};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::ffi::c_void;
use monitor_common::{fingerprint::is_space, map::ValueTrim};

/// Maximum steps of a trim; white space beyond it remains.
const TRIM_STEPS: u32 = 24;

/// [`monitor_common::fingerprint::trim`], on user memory.
#[inline(always)]
pub fn trim_value(at: u64, len: u64) -> (u64, u64) {
    {
        let Some(scratch) = scratch() else {
            return (at, 0);
        };
        scratch.trim = ValueTrim { at, len, phase: 0 };
    }
    let mut nothing = 0u64;
    repeat(TRIM_STEPS, trim_step, &mut nothing);
    scratch().map_or((at, 0), |scratch| (scratch.trim.at, scratch.trim.len))
}

extern "C" fn trim_step(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    let trim = &mut scratch.trim;
    if trim.len == 0 || trim.phase > 4 {
        return 1;
    }
    let mut first = 0u64;
    // SAFETY: the destination is eight bytes on the stack; the helper checks the source.
    unsafe { bpf_probe_read_user((&raw mut first).cast(), 8, trim.at as *const c_void) };
    let start = first as u8;
    let end = byte_at(trim.at + trim.len - 1);
    if trim.phase & 1 == 0 {
        if is_space(start) {
            trim.at += 1;
            trim.len -= 1;
        } else if is_space(end) {
            trim.len -= 1;
        } else {
            trim.phase += 1;
        }
        return 0;
    }
    if trim.phase == 1 {
        if trim.len >= 2 && (start == b'"' || start == b'\'') && end == start {
            trim.at += 1;
            trim.len -= 2;
        }
    } else {
        let six = monitor_common::filter::keep_low_bytes(first, 6);
        let scheme = if monitor_common::filter::keep_low_bytes(first, 7)
            == u64::from_le_bytes(*b"Bearer \0")
        {
            7
        } else if six == u64::from_le_bytes(*b"Basic \0\0")
            || six == u64::from_le_bytes(*b"Token \0\0")
            || six == u64::from_le_bytes(*b"token \0\0")
        {
            6
        } else {
            return 1;
        };
        if trim.len <= scheme {
            return 1;
        }
        trim.at += scheme;
        trim.len -= scheme;
    }
    trim.phase += 1;
    0
}

#[inline(always)]
fn byte_at(at: u64) -> u8 {
    let mut byte = 0u8;
    // SAFETY: the destination is one byte on the stack; the helper checks the source.
    unsafe { bpf_probe_read_user((&raw mut byte).cast(), 1, at as *const c_void) };
    byte
}
