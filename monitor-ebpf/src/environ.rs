//! Secrets in the environment of an exec, fingerprinted in place.
//!
//! `bpf_probe_read_user_str` skips from entry to entry at native speed; only names and the first
//! bytes of values are examined. A value is read into a per-CPU buffer, hashed there and
//! overwritten: no record has room for it.

use crate::{
    kernel::repeat,
    maps::{BloomFilter, CREDENTIAL_RING, SeenSlot, count, rule, send, wipe},
    task::{HookContext, fill_header},
    view::{CopyAccess, DirectAccess, KernelMemory},
};
use aya_ebpf::{
    helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use core::ffi::c_void;
use monitor_common::{
    eight,
    environ::{NAME_MAX, NameWords, SCAN_MAX, ValueMarks},
    fields::FieldId,
    filter::{self, JWT_VALUE, URL_WORD},
    fingerprint::{FingerprintKey, MAX_SECRET, MAX_WORDS, SipHasher, is_space},
    record::{Probe, Stage, VariableRecord, kind},
};

/// The host's fingerprint key, set by the agent before load.
#[unsafe(no_mangle)]
static KEY: [u64; 2] = [0; 2];

/// The host's fingerprint key.
#[inline(always)]
pub fn secret_key() -> FingerprintKey {
    // SAFETY: both reads are inside the array; volatile, because the agent sets the key.
    unsafe {
        FingerprintKey {
            k0: core::ptr::read_volatile(&raw const KEY[0]),
            k1: core::ptr::read_volatile(&raw const KEY[1]),
        }
    }
}

/// Entries examined in one environment.
const ENTRIES_MAX: u32 = 4096;
/// Bytes of an entry that are read at once: a name, `=`, and a complete secret.
const CHUNK: usize = MAX_SECRET + 128;

/// Candidates per environment; any more are counted as not read.
const CANDIDATES_MAX: usize = 64;

#[repr(C)]
struct EnvironScratch {
    /// Offset at which entries are stored: on some kernels from 5.8 to 6.1, reading a string to the
    /// first byte of a per-CPU buffer can fault.
    offset: u64,
    entry: [u8; CHUNK],
    value: [u64; MAX_WORDS],
    record: VariableRecord,
    candidates: [VariableCandidate; CANDIDATES_MAX],
    /// Number of candidates. It is stored here and not in [`EnvironWalk`], where the verifier would
    /// explore every value.
    candidate_count: u64,
    /// For the same reason the state of the name and of value trimming is stored here.
    name: VariableName,
    trim: ValueTrim,
}

/// A variable that matches a rule.
///
/// Candidates are collected first and fingerprinted afterwards, and all state passes through this
/// per-CPU memory: the verifier knows nothing about its contents, so it verifies each half once
/// instead of once per path through the other.
#[derive(Clone, Copy)]
#[repr(C)]
struct VariableCandidate {
    /// Address of the entry, and then of the secret in it.
    at: u64,
    /// Length of the value, and then of the secret.
    len: u64,
    name_at: u64,
    name_len: u32,
    /// Value of the rule that matches a word of the name, plus 1; or 0.
    word: u32,
    /// Value of the rule that matches the first bytes, plus 1; or 0. Without [`JWT_VALUE`].
    prefix: u32,
    jwt: u32,
    url: u32,
    dots: u32,
    /// 1 if the value is longer than what was read at once; its length is not known yet.
    cut: u32,
    reserved: u32,
}

#[map]
static ENVIRON_SCRATCH: PerCpuArray<EnvironScratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's buffer. Do not keep a reference across a call of [`repeat`] whose step changes the
/// buffer: the compiler would assume that its contents are unchanged. Call this function again
/// instead.
#[inline(always)]
fn scratch() -> Option<&'static mut EnvironScratch> {
    // SAFETY: the scratch belongs to this CPU; raw tracepoints run with preemption disabled, so no
    // other exec uses it on the same CPU.
    ENVIRON_SCRATCH
        .get_ptr_mut(0)
        .map(|pointer| unsafe { &mut *pointer })
}

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
/// `read`), and every entry after it.
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
    let gathered = candidate_count();
    if gathered > 0 {
        let mut tell = CandidateWalk {
            candidates: gathered,
        };
        if walk.cut != 0 {
            repeat(CANDIDATES_MAX as u32, extend_candidate, &mut tell);
        }
        repeat(CANDIDATES_MAX as u32, locate_secret, &mut tell);
        repeat(CANDIDATES_MAX as u32, fingerprint_candidate, &mut tell);
    }
    wipe_all();
}

/// Overwrites the copies of values.
#[inline(never)]
fn wipe_all() {
    if let Some(scratch) = scratch() {
        wipe(scratch.entry.as_mut_ptr(), CHUNK as u64);
        wipe(scratch.value.as_mut_ptr().cast(), MAX_SECRET as u64);
    }
}

/// Forgets the candidates of the last environment.
#[inline(always)]
fn reset_candidates() -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    scratch.candidate_count = 0;
    true
}

/// How many candidates there are.
#[inline(always)]
fn candidate_count() -> u64 {
    scratch().map_or(0, |scratch| scratch.candidate_count)
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
            eight::load_unaligned(scratch.entry.as_ptr().add(at))
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

/// Finds the rule for the longest matching prefix (3 to 8 bytes) of a value. Returns the rule's
/// value plus 1, and whether to check for a JWT.
#[inline(always)]
pub fn value_prefix_rule(first: u64, bloom: BloomFilter) -> (u32, u32) {
    let (mut prefix, mut jwt) = (0, 0);
    for len in 3..9 {
        let key = filter::value_key(first, len);
        if bloom.contains(key)
            && let Some(value) = rule(key)
        {
            prefix = (value & !JWT_VALUE) + 1;
            jwt = value & JWT_VALUE;
        }
    }
    (prefix, jwt)
}

/// What is known about a variable's name.
#[derive(Clone, Copy)]
#[repr(C)]
struct VariableName {
    words: NameWords,
    /// Keys of the first and the last word that may match a rule.
    first_hit: u64,
    last_hit: u64,
    /// Bytes before the `=`; 0 if there is none.
    len: u64,
    /// The result of [`hash_name`].
    quick_hash: [u64; 2],
}

/// Classifies the name at the start of the entry. Programs are passed the same few names again and
/// again: a name that matched no rule before is recognised by its tag.
///
/// The steps are separate functions that exchange data through this CPU's memory: the verifier
/// forgets how each one ended and verifies the next one once.
#[inline(always)]
fn classify_name(scratch: &mut EnvironScratch) {
    hash_name(scratch);
    if !is_known_plain(scratch) {
        split_name(scratch);
        remember_plain(scratch);
    }
}

/// The slot of the name among seen names, if the name is complete.
#[inline(always)]
fn name_slot(scratch: &EnvironScratch) -> Option<SeenSlot> {
    // SAFETY: this CPU's own memory; volatile, because it passes through memory.
    let [sum, len] = unsafe { (&raw const scratch.name.quick_hash).read_volatile() };
    if len == 0 {
        return None;
    }
    SeenSlot::find(|_| [sum, len, 0, 0, 0])
}

/// Whether the name is known to match no rule.
#[inline(never)]
fn is_known_plain(scratch: &mut EnvironScratch) -> bool {
    let seen = name_slot(scratch).is_some_and(SeenSlot::is_seen);
    if seen {
        let found = &raw mut scratch.name;
        // SAFETY: as above.
        unsafe {
            (&raw mut (*found).first_hit).write_volatile(0);
            (&raw mut (*found).last_hit).write_volatile(0);
            let len = (&raw const (*found).quick_hash[1]).read_volatile();
            (&raw mut (*found).len).write_volatile(len);
        }
    }
    seen
}

/// Remembers that a name matches no rule.
#[inline(never)]
fn remember_plain(scratch: &mut EnvironScratch) {
    // SAFETY: as above.
    let hit = unsafe { (&raw const scratch.name.first_hit).read_volatile() };
    if hit == 0
        && let Some(looked) = name_slot(scratch)
    {
        looked.remember();
    }
}

/// Hashes the bytes before the `=`, eight at a time, and counts them; 0 if there is no `=`.
#[inline(never)]
fn hash_name(scratch: &mut EnvironScratch) {
    let (mut sum, mut len) = (0u64, 0u64);
    for (i, bytes) in scratch.entry.chunks_exact(8).enumerate().take(NAME_MAX / 8) {
        // SAFETY: a chunk has eight bytes, and an entry starts at a multiple of eight.
        let word = unsafe { bytes.as_ptr().cast::<u64>().read() };
        let (equals, ends) = (
            eight::zero_bytes(word ^ eight::splat(b'=')),
            eight::zero_bytes(word),
        );
        let Some(below) = eight::mask_below(equals | ends) else {
            sum = eight::add_name_word(sum, word);
            continue;
        };
        if eight::mask_below(equals) == Some(below) {
            sum = eight::add_name_word(sum, word & below);
            len = i as u64 * 8 + eight::masked_bytes(below);
        }
        break;
    }
    // SAFETY: this CPU's own memory.
    unsafe { (&raw mut scratch.name.quick_hash).write_volatile([sum, len]) };
}

/// Splits the name at the front of an entry into words.
#[inline(always)]
fn split_name(scratch: &mut EnvironScratch) {
    let found = &raw mut scratch.name;
    // SAFETY: this CPU's own memory.
    unsafe {
        (&raw mut (*found).words).write_volatile(NameWords::new());
        (&raw mut (*found).first_hit).write_volatile(0);
        (&raw mut (*found).last_hit).write_volatile(0);
        (&raw mut (*found).len).write_volatile(0);
    }
    repeat(
        NAME_MAX as u32,
        next_letter,
        &mut core::ptr::from_mut(scratch),
    );
}

extern "C" fn next_letter(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    i64::from(!push_letter(scratch, i))
}

/// Processes the `i`th byte of the entry; returns `false` at the end of the name.
#[inline(always)]
fn push_letter(scratch: &mut EnvironScratch, i: u64) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
        return false;
    };
    let byte = scratch.entry[i as usize & (NAME_MAX - 1)];
    let ends = byte == b'=' || byte == 0;
    let key = if ends {
        scratch.name.words.end()
    } else {
        scratch.name.words.push(byte)
    };
    if let Some(key) = key
        && bloom.contains(key)
    {
        if scratch.name.first_hit == 0 {
            scratch.name.first_hit = key;
        }
        scratch.name.last_hit = key;
    }
    if byte == b'=' {
        scratch.name.len = i;
    }
    !ends
}

/// The rule for a word of a name, if the key is set and has one.
#[inline(always)]
fn word_rule(key: u64) -> Option<u32> {
    if key == 0 { None } else { rule(key) }
}

/// State of the walk over the candidates.
#[repr(C)]
struct CandidateWalk {
    candidates: u64,
}

/// Finds the secret inside a candidate's value: the password of a URL, or the value without white
/// space, quotes and scheme.
extern "C" fn locate_secret(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let tell = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= tell.candidates {
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
extern "C" fn fingerprint_candidate(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let tell = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= tell.candidates {
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
/// reason as candidates: see [`VariableCandidate`].
extern "C" fn extend_candidate(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the CandidateWalk of `exec`.
    let tell = unsafe { &mut *context.cast::<CandidateWalk>() };
    if i >= tell.candidates {
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
fn fingerprint(scratch: &mut EnvironScratch, len: u64) -> u64 {
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
    // SAFETY: the record is inside the scratch and initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Environ,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<VariableRecord>() as u64,
        );
    }
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

/// A value that is being trimmed.
#[repr(C)]
struct ValueTrim {
    at: u64,
    len: u64,
    /// The next thing to strip: white space, quotes, white space, scheme word, white space, in this
    /// order.
    phase: u64,
}

/// Maximum steps of a trim; white space beyond it remains.
const TRIM_STEPS: u32 = 24;

/// [`monitor_common::fingerprint::trim`], on user memory.
#[inline(always)]
fn trim_value(at: u64, len: u64) -> (u64, u64) {
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
        let six = filter::keep_low_bytes(first, 6);
        let scheme = if filter::keep_low_bytes(first, 7) == u64::from_le_bytes(*b"Bearer \0") {
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
