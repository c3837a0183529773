//! The memory of the environ probe on each CPU.

use crate::support::maps::wipe;
use aya_ebpf::{macros::map, maps::PerCpuArray};
use monitor_common::{
    fingerprint::MAX_SECRET,
    map::{CHUNK, EnvironScratch},
};

#[map]
static ENVIRON_SCRATCH: PerCpuArray<EnvironScratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's buffer. Do not keep a reference across a call of [`repeat`](crate::support::kernel::repeat) whose step changes the
/// buffer: the compiler would assume that its contents are unchanged. Call this function again
/// instead.
#[inline(always)]
pub fn scratch() -> Option<&'static mut EnvironScratch> {
    // SAFETY: the scratch belongs to this CPU; raw tracepoints run with preemption disabled, so no
    // other exec uses it on the same CPU.
    ENVIRON_SCRATCH
        .get_ptr_mut(0)
        .map(|pointer| unsafe { &mut *pointer })
}

/// Overwrites the copies of values.
#[inline(never)]
pub fn wipe_all() {
    if let Some(scratch) = scratch() {
        wipe(scratch.entry.as_mut_ptr(), CHUNK as u64);
        wipe(scratch.value.as_mut_ptr().cast(), MAX_SECRET as u64);
    }
}

/// Forgets the candidates of the last environment.
#[inline(always)]
pub fn reset_candidates() -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    scratch.candidate_count = 0;
    true
}

/// How many candidates there are.
#[inline(always)]
pub fn candidate_count() -> u64 {
    scratch().map_or(0, |scratch| scratch.candidate_count)
}
