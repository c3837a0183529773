//! Locates and fingerprints the secret in a variable's value.

use crate::{
    environ::{scratch::scratch, trim::trim_value},
    support::{
        kernel::repeat,
        maps::count,
        ring::Ring,
        secret::secret_key,
        task::{HookContext, fill_header},
    },
};
use aya_ebpf::helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str};
use core::ffi::c_void;
use monitor_common::{
    environ::{NAME_MAX, SCAN_MAX, ValueMarks},
    filter::URL_WORD,
    fingerprint::{MAX_SECRET, MAX_WORDS, SipHasher},
    map::{CANDIDATES_MAX, EnvironScratch},
    record::{Probe, Stage, kind},
};

/// State of the walk over the candidates.
#[repr(C)]
pub struct CandidateWalk {
    pub candidates: u64,
}

/// Finds the secret inside a candidate's value: the password of a URL, or the value without white
/// space, quotes and scheme.
pub extern "C" fn locate_secret(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let walk = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= walk.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES_MAX - 1);
    let (at, len) = (scratch.candidates[place].at, scratch.candidates[place].len);
    if scratch.candidates[place].word == URL_WORD + 1 || scratch.candidates[place].jwt != 0 {
        read_value(scratch, at, len);
        let mut scan = ValueScan {
            marks: ValueMarks::default(),
            len,
        };
        repeat(SCAN_MAX as u32, mark_value, &mut scan);
        let candidate = &mut scratch.candidates[place];
        candidate.dots = scan.marks.dots;
        if let Some((start, password_len)) = scan.marks.password() {
            candidate.at = at.wrapping_add(u64::from(start));
            candidate.len = u64::from(password_len);
            candidate.url = 1;
            return 0;
        }
        if candidate.word == URL_WORD + 1 && candidate.prefix == 0 {
            // A URL without a password is no credential.
            candidate.len = 0;
            return 0;
        }
    }
    let (at, len) = trim_value(at, len);
    if let Some(scratch) = self::scratch() {
        scratch.candidates[place].at = at;
        scratch.candidates[place].len = len;
    }
    0
}

/// Fingerprints one candidate and sends its record.
pub extern "C" fn fingerprint_candidate(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let walk = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= walk.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES_MAX - 1);
    let (at, len) = (scratch.candidates[place].at, scratch.candidates[place].len);
    if len == 0 || len > u64::from(ENTRY_MAX) || !read_value(scratch, at, len) {
        return 0;
    }
    let print = fingerprint(scratch, len);
    send_record(scratch, place, print);
    0
}

/// The kernel limits a string in an environment to this length.
const ENTRY_MAX: u32 = 128 << 10;

/// Determines the length of a candidate longer than a chunk. It is a separate pass for the same
/// reason as candidates: see [`VariableCandidate`](monitor_common::map::VariableCandidate).
pub extern "C" fn extend_candidate(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let walk = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= walk.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES_MAX - 1);
    if scratch.candidates[place].cut == 0 {
        return 0;
    }
    let mut rest = ValueTail {
        at: scratch.candidates[place].at,
        len: 0,
    };
    repeat(ENTRY_MAX / MAX_SECRET as u32 + 1, measure_chunk, &mut rest);
    scratch.candidates[place].len = rest.len;
    0
}

/// The part of a long value that is not measured yet.
#[repr(C)]
struct ValueTail {
    at: u64,
    len: u64,
}

/// Skips one more chunk of a long value.
extern "C" fn measure_chunk(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the ValueTail of `extend_candidate`.
    let rest = unsafe { &mut *context.cast::<ValueTail>() };
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: the destination holds MAX_SECRET bytes; the helper checks the source.
    let read = unsafe {
        bpf_probe_read_user_str(
            scratch.value.as_mut_ptr().cast(),
            MAX_SECRET as u32,
            rest.at as *const c_void,
        )
    };
    if read <= 1 {
        return 1;
    }
    let read = read as u64 - 1;
    rest.len += read;
    rest.at += read;
    i64::from(read + 1 < MAX_SECRET as u64)
}

#[inline(always)]
pub fn fingerprint(scratch: &mut EnvironScratch, len: u64) -> u64 {
    let key = secret_key();
    let counted = if len > MAX_SECRET as u64 {
        MAX_SECRET as u64
    } else {
        len
    };
    let mut hash = ValueHash {
        sip: SipHasher::new(key),
        whole: counted / 8,
    };
    repeat(MAX_WORDS as u32, value_word, &mut hash);
    let tail = scratch.value[(counted / 8) as usize & (MAX_WORDS - 1)];
    hash.sip.finish_secret(tail, len)
}

#[inline(always)]
fn send_record(scratch: &mut EnvironScratch, place: usize, print: u64) {
    let candidate = &scratch.candidates[place];
    let record = &mut scratch.record;
    fill_header(&mut record.header, kind::VARIABLE, HookContext::Tracing);
    record.fingerprint = print;
    record.secret_len = candidate.len as u32;
    record.name_len = candidate.name_len;
    record.prefix = candidate.prefix;
    record.dots = candidate.dots;
    record.url = candidate.url;
    record.reserved = 0;
    // Only the name is copied, so that no byte of the value gets into the record.
    record.name = [0; NAME_MAX];
    // SAFETY: at most NAME_MAX bytes, the size of the destination; the helper checks the source.
    unsafe {
        bpf_probe_read_user(
            record.name.as_mut_ptr().cast(),
            candidate.name_len & (NAME_MAX as u32 - 1),
            candidate.name_at as *const c_void,
        );
    }
    Ring::Credentials.send(Probe::Environ, record.header.owner(), record);
}

/// Reads the hashed part of a value to the front of the aligned buffer; returns `false` if its page
/// is not in memory.
#[inline(always)]
fn read_value(scratch: &mut EnvironScratch, at: u64, len: u64) -> bool {
    let mut counted = len;
    if counted > MAX_SECRET as u64 {
        counted = MAX_SECRET as u64;
    }
    // SAFETY: at most MAX_SECRET bytes, the size of the buffer; the helper checks the source.
    let status = unsafe {
        bpf_probe_read_user(
            scratch.value.as_mut_ptr().cast(),
            counted as u32 & 0x1fff,
            at as *const c_void,
        )
    };
    if status != 0 {
        count(Probe::Environ, Stage::Read);
    }
    status == 0
}

#[repr(C)]
struct ValueHash {
    sip: SipHasher,
    /// Number of full words in the value.
    whole: u64,
}

extern "C" fn value_word(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the ValueHash of `fingerprint`.
    let hash = unsafe { &mut *context.cast::<ValueHash>() };
    if i >= hash.whole {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    hash.sip
        .push_word(scratch.value[i as usize & (MAX_WORDS - 1)]);
    0
}

#[repr(C)]
struct ValueScan {
    marks: ValueMarks,
    len: u64,
}

extern "C" fn mark_value(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the ValueScan of `locate_secret`.
    let scan = unsafe { &mut *context.cast::<ValueScan>() };
    if i >= scan.len {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (SCAN_MAX - 1);
    let byte = (scratch.value[place / 8] >> ((place % 8) * 8)) as u8;
    scan.marks.push(i as u32, byte);
    0
}
