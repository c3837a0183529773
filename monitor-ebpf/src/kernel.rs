//! Reading the kernel's structures: offsets from the field table.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel};
use core::{ffi::c_void, mem::MaybeUninit};
use monitor_common::fields::{BLOCK_BYTES, COUNT, F, Offsets};

/// Set by the agent before load, then frozen: the verifier sees constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = [0; COUNT];

/// The offset of a field.
#[inline(always)]
pub fn offset(field: F) -> u64 {
    // SAFETY: the read is inside the array; volatile, because the agent overrides the zeros that
    // the compiler sees.
    u64::from(unsafe { core::ptr::read_volatile(&raw const OFFSETS[field as usize]) })
}

/// Reads a value of kernel memory at an address; zero where the address is bad.
///
/// The helper itself zeroes what it could not fill, so there is nothing to branch on: a branch
/// at each read would double the ways that the verifier walks.
#[inline(always)]
pub fn read<T>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and writes every byte of the value, zeros where it
    // cannot read; every type read here is plain integers.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// Reads a field of the structure at `base`.
#[inline(always)]
pub fn field<T>(base: u64, field: F) -> T {
    read(base.wrapping_add(offset(field)))
}

/// Reads a value of kernel memory to where it is needed; `false` where the address is bad. The
/// stack of a program is 512 bytes, so what is large goes to a per-CPU buffer this way.
#[inline(always)]
pub fn read_to<T>(place: &mut T, address: u64) -> bool {
    // SAFETY: the place holds a T of plain integers; the helper checks the address.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(place).cast(),
            size_of::<T>() as u32,
            address as *const _,
        ) == 0
    }
}

/// The beginning of a structure, read at once: one helper call for several fields.
pub type Block = [u64; BLOCK_BYTES / 8];

/// The 64-bit field of a block.
#[inline(always)]
pub fn pick(block: &Block, field: F) -> u64 {
    // SAFETY: the agent loads no probe where a field of a block is outside it (`layout_error`),
    // and the verifier checks the constant offset.
    unsafe {
        block
            .as_ptr()
            .byte_add((offset(field) & 0x78) as usize)
            .read()
    }
}

/// The 32-bit field of a block.
#[inline(always)]
pub fn pick32(block: &Block, field: F) -> u32 {
    (pick(block, field) >> ((offset(field) & 4) * 8)) as u32
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

pub const S_IFREG: u32 = 0x8000;

/// 1 where this kernel has `bpf_loop`. Set by the agent before load, after trying.
#[unsafe(no_mangle)]
static LOOPS: u32 = 0;

/// Whether [`repeat`] may be used. Without it loops are walked by the verifier turn by turn, and
/// have to be short.
#[inline(always)]
pub fn can_repeat() -> bool {
    // SAFETY: a plain read; volatile, because the agent overrides it.
    unsafe { core::ptr::read_volatile(&raw const LOOPS) != 0 }
}

/// Calls `step` with a context up to `times`, until it gives 1. First kernel: 5.17.
#[inline(always)]
pub fn repeat<T>(times: u32, step: extern "C" fn(u64, *mut c_void) -> i64, context: &mut T) {
    // SAFETY: the helper calls `step` with an index and the context, which outlives the call.
    unsafe {
        bpf_loop(
            times,
            step as *mut c_void,
            core::ptr::from_mut(context).cast(),
            0,
        );
    }
}

/// A length between 1 and `limit` (a power of two) that the verifier can see to be so: it does
/// not follow a bound through a spilled register.
#[inline(always)]
pub fn bounded(len: u32, limit: u32) -> u32 {
    let len = if len > limit { limit } else { len };
    ((core::hint::black_box(len).wrapping_sub(1)) & (limit - 1)) + 1
}
