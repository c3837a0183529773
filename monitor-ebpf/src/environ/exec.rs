//! Secrets in the environment of an exec, fingerprinted in place.
//!
//! `bpf_probe_read_user_str` skips from entry to entry at native speed; only names and the first
//! bytes of values are examined. A value is read into a per-CPU buffer, hashed there and
//! overwritten: no record has room for it.

use crate::{
    environ::{
        name::{classify_name, word_rule},
        scratch::{candidate_count, reset_candidates, scratch, wipe_all},
        value::{CandidateWalk, extend_candidate, fingerprint_candidate, locate_secret},
    },
    support::{
        kernel::repeat,
        maps::{BloomFilter, count},
        secret::value_prefix_rule,
        task::HookContext,
        view::{CopyAccess, DirectAccess, KernelMemory},
    },
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_user_str, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use core::ffi::c_void;
use monitor_common::{
    environ::NAME_MAX,
    fields::FieldId,
    map::{CANDIDATES_MAX, CHUNK, VariableCandidate},
    record::{Probe, Stage},
    swar,
};

/// Entries examined in one environment.
const ENTRIES_MAX: u32 = 4096;
/// Position of the walk over the environment.
#[repr(C)]
struct EnvironWalk {
    at: u64,
    end: u64,
    /// 1 while skipping the rest of an entry longer than a chunk.
    inside: u64,
    /// 1 if a candidate is longer than a chunk.
    cut: u64,
}

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.17 (`bpf_loop`). Missed: an entry on a page that is not in memory (counted as
/// `read`), and every entry after it; entries beyond the first 4,096 (counted as `read`).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn environ_exec(_: RawTracePointContext) -> i32 {
    exec();
    0
}

/// Start and end address of the current process's environment.
#[inline(always)]
fn bounds<M: KernelMemory>() -> (u64, u64) {
    let mm = M::field(M::task(), FieldId::TaskMm);
    (
        M::field(mm, FieldId::MmEnvStart),
        M::field(mm, FieldId::MmEnvEnd),
    )
}

#[inline(always)]
fn exec() {
    let (at, end) = if HookContext::Tracing.typed() {
        bounds::<DirectAccess>()
    } else {
        bounds::<CopyAccess>()
    };
    let mut walk = EnvironWalk {
        at,
        end,
        inside: 0,
        cut: 0,
    };
    if walk.at >= walk.end || !reset_candidates() {
        return;
    }
    repeat(ENTRIES_MAX, scan_entry, &mut walk);
    if walk.at < walk.end {
        count(Probe::Environ, Stage::Read);
    }
    let gathered = candidate_count();
    if gathered > 0 {
        let mut candidates = CandidateWalk {
            candidates: gathered,
        };
        if walk.cut != 0 {
            repeat(CANDIDATES_MAX as u32, extend_candidate, &mut candidates);
        }
        repeat(CANDIDATES_MAX as u32, locate_secret, &mut candidates);
        repeat(
            CANDIDATES_MAX as u32,
            fingerprint_candidate,
            &mut candidates,
        );
    }
    wipe_all();
}

/// Processes one entry of the environment; 1 ends the walk.
extern "C" fn scan_entry(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the EnvironWalk of `exec`.
    let walk = unsafe { &mut *context.cast::<EnvironWalk>() };
    if walk.at >= walk.end {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: the destination holds CHUNK bytes; the helper checks the source.
    let read = unsafe {
        bpf_probe_read_user_str(
            scratch.entry.as_mut_ptr().cast(),
            CHUNK as u32,
            walk.at as *const c_void,
        )
    };
    if read <= 0 {
        count(Probe::Environ, Stage::Read);
        walk.at = walk.end;
        return 1;
    }
    let read = read as u64;
    let whole = read < CHUNK as u64;
    let at = walk.at;
    // A truncated entry ends with a zero byte that is not in user memory.
    walk.at = at.wrapping_add(if whole { read } else { read - 1 });
    let was_inside = walk.inside != 0;
    walk.inside = u64::from(!whole);
    if !was_inside {
        check_variable(walk, at, read - 1, !whole);
    }
    0
}

/// Checks a variable at `at` of `len` bytes, or longer if `cut`.
#[inline(always)]
fn check_variable(walk: &mut EnvironWalk, at: u64, len: u64, cut: bool) {
    let (Some(scratch), Some(bloom)) = (scratch(), BloomFilter::rules()) else {
        return;
    };
    classify_name(scratch);
    // SAFETY: this CPU's own memory; volatile, so that the result passes through memory and the
    // verifier continues from here once, not once per length of a name.
    let name = unsafe { (&raw const scratch.name).read_volatile() };
    if name.len == 0 || name.len >= NAME_MAX as u64 {
        return;
    }
    let value_at = at.wrapping_add(name.len + 1);
    let value_len = len.wrapping_sub(name.len + 1);
    if !(4..=CHUNK as u64).contains(&value_len) {
        return;
    }
    let word = match (word_rule(name.last_hit), word_rule(name.first_hit)) {
        (Some(last), _) => last + 1,
        (None, Some(first)) => first + 1,
        (None, None) => 0,
    };
    let (prefix, jwt) = if value_len >= 12 {
        // SAFETY: a name is shorter than NAME_MAX, and the entry has eight more bytes.
        let first = unsafe {
            let at = (name.len + 1) as usize & (2 * NAME_MAX - 1);
            swar::load_unaligned(scratch.entry.as_ptr().add(at))
        };
        value_prefix_rule(first, bloom)
    } else {
        (0, 0)
    };
    if word == 0 && prefix == 0 {
        return;
    }
    let place = scratch.candidate_count;
    if place >= CANDIDATES_MAX as u64 {
        count(Probe::Environ, Stage::Read);
        return;
    }
    scratch.candidates[place as usize & (CANDIDATES_MAX - 1)] = VariableCandidate {
        at: value_at,
        len: value_len,
        name_at: at,
        name_len: name.len as u32,
        word,
        prefix,
        jwt,
        url: 0,
        dots: 0,
        cut: u32::from(cut),
        reserved: 0,
    };
    scratch.candidate_count = place + 1;
    walk.cut |= u64::from(cut);
}
