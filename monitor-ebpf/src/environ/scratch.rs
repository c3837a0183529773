//! The memory of the environ probe on each CPU.

use crate::{
    environ::{name::VariableName, trim::ValueTrim},
    support::maps::wipe,
};
use aya_ebpf::{macros::map, maps::PerCpuArray};
use monitor_common::{
    fingerprint::{MAX_SECRET, MAX_WORDS},
    record::VariableRecord,
};

/// Bytes of an entry that are read at once: a name, `=`, and a complete secret.
pub const CHUNK: usize = MAX_SECRET + 128;

/// Candidates per environment; any more are counted as not read.
pub const CANDIDATES_MAX: usize = 64;

#[repr(C)]
pub struct EnvironScratch {
    /// Offset at which entries are stored: on some kernels from 5.8 to 6.1, reading a string to the
    /// first byte of a per-CPU buffer can fault.
    offset: u64,
    pub entry: [u8; CHUNK],
    pub value: [u64; MAX_WORDS],
    pub record: VariableRecord,
    pub candidates: [VariableCandidate; CANDIDATES_MAX],
    /// Number of candidates. It is stored here and not in [`EnvironWalk`], where the verifier would
    /// explore every value.
    pub candidate_count: u64,
    /// For the same reason the state of the name and of value trimming is stored here.
    pub name: VariableName,
    pub trim: ValueTrim,
}

/// A variable that matches a rule.
///
/// Candidates are collected first and fingerprinted afterwards, and all state passes through this
/// per-CPU memory: the verifier knows nothing about its contents, so it verifies each half once
/// instead of once per path through the other.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VariableCandidate {
    /// Address of the entry, and then of the secret in it.
    pub at: u64,
    /// Length of the value, and then of the secret.
    pub len: u64,
    pub name_at: u64,
    pub name_len: u32,
    /// Value of the rule that matches a word of the name, plus 1; or 0.
    pub word: u32,
    /// Value of the rule that matches the first bytes, plus 1; or 0. Without [`JWT_VALUE`].
    pub prefix: u32,
    pub jwt: u32,
    pub url: u32,
    pub dots: u32,
    /// 1 if the value is longer than what was read at once; its length is not known yet.
    pub cut: u32,
    pub reserved: u32,
}

#[map]
static ENVIRON_SCRATCH: PerCpuArray<EnvironScratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's buffer. Do not keep a reference across a call of [`repeat`] whose step changes the
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
