//! Reads kernel structures, using the offsets of the field table.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel};
use core::{ffi::c_void, mem::MaybeUninit};
use monitor_common::fields::{BLOCK_BYTES, COUNT, FieldId, FieldOffsets};

/// Set by the agent before load, then frozen: constants to the verifier.
#[unsafe(no_mangle)]
static OFFSETS: FieldOffsets = [0; COUNT];

/// The offset of a field.
#[inline(always)]
pub fn offset(field: FieldId) -> u64 {
    // SAFETY: the read is inside the array; volatile, because the agent overrides the zeros that
    // the compiler sees.
    u64::from(unsafe { core::ptr::read_volatile(&raw const OFFSETS[field as usize]) })
}

/// Reads a value from kernel memory; zero if the address is invalid.
///
/// The helper zeroes what it cannot read, so no branch is needed: a branch at each read would
/// double the verifier's paths.
#[inline(always)]
pub fn read<T>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and writes every byte of the value, zeros if it cannot
    // read; every type read here consists of plain integers.
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
pub fn field<T>(base: u64, field: FieldId) -> T {
    read(base.wrapping_add(offset(field)))
}

/// Reads a value from kernel memory into a given place; returns `false` if the address is invalid.
/// A program's stack is 512 bytes, so large values are read into a per-CPU buffer this way.
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

/// The first bytes of a structure, read at once: one helper call for several fields.
pub type StructPrefix = [u64; BLOCK_BYTES / 8];

/// A 64-bit field of such a block.
#[inline(always)]
pub fn prefix_field(block: &StructPrefix, field: FieldId) -> u64 {
    // SAFETY: the agent loads no probe if a field lies outside its block (`layout_error`), and the
    // verifier checks the constant offset.
    unsafe {
        block
            .as_ptr()
            .byte_add((offset(field) & 0x78) as usize)
            .read()
    }
}

/// A 32-bit field of such a block.
#[inline(always)]
pub fn prefix_field32(block: &StructPrefix, field: FieldId) -> u32 {
    (prefix_field(block, field) >> ((offset(field) & 4) * 8)) as u32
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn boot_time_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

pub const S_IFREG: u32 = 0x8000;

/// Magic number of procfs.
pub const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// The magic number of an inode's file system.
#[inline(always)]
pub fn file_system_magic(inode: u64) -> u64 {
    let sb: u64 = field(inode, FieldId::InodeSb);
    field(sb, FieldId::SbMagic)
}

/// 1 if this kernel has `bpf_loop`. Set by the agent before load, after probing for it.
#[unsafe(no_mangle)]
pub static LOOPS: u32 = 0;

/// Whether [`repeat`] may be used. Without it the verifier unrolls loops, so they must be short.
#[inline(always)]
pub fn can_repeat() -> bool {
    // SAFETY: a plain read; volatile, because the agent overrides it.
    unsafe { core::ptr::read_volatile(&raw const LOOPS) != 0 }
}

/// Calls `step` with a context up to `times` times, until it returns 1. First kernel: 5.17.
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

/// Bounds a length to 1..=`limit` (a power of two) in a way that the verifier recognises: it does
/// not track a bound through a spilled register.
#[inline(always)]
pub fn bound_length(len: u32, limit: u32) -> u32 {
    let len = if len > limit { limit } else { len };
    ((core::hint::black_box(len).wrapping_sub(1)) & (limit - 1)) + 1
}
