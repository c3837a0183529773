//! Secrets in the environment of an exec, fingerprinted where they are.
//!
//! Entries are crossed with `bpf_probe_read_user_str`, which gives the length of each at native
//! speed; only names, and the first bytes of values, are looked at closely. A value is read into
//! a per-CPU buffer, hashed there and forgotten: no record has a place for it.

use crate::{
    kernel::repeat,
    maps::{Bloom, CREDENTIAL_RING, Looked, count, rule, send, wipe},
    task::{Hooked, fill_header},
    view::{Copied, Direct, Memory},
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
    environ::{Marks, NAME_MAX, SCAN_MAX, Words},
    fields::F,
    filter::{self, JWT_VALUE, URL_WORD},
    fingerprint::{Key, MAX_SECRET, MAX_WORDS, Sip, is_space},
    record::{Probe, Stage, Variable, kind},
};

/// The host's key. Set by the agent before load.
#[unsafe(no_mangle)]
static KEY: [u64; 2] = [0; 2];

/// The host's key.
#[inline(always)]
pub fn secret_key() -> Key {
    // SAFETY: both reads are inside the array; volatile, because the agent sets the key.
    unsafe {
        Key {
            k0: core::ptr::read_volatile(&raw const KEY[0]),
            k1: core::ptr::read_volatile(&raw const KEY[1]),
        }
    }
}

/// Entries looked at in one environment.
const ENTRIES: u32 = 4096;
/// Bytes of an entry that are read at once: a name, `=`, and a whole secret.
const CHUNK: usize = MAX_SECRET + 128;

/// Variables of one environment that can be secrets; more than these are counted as not read.
const CANDIDATES: usize = 64;

#[repr(C)]
struct Scratch {
    /// Where an entry is read to: at an offset, because a string read to the first byte of a
    /// per-CPU buffer can fault on some kernels from 5.8 to 6.1.
    ahead: u64,
    entry: [u8; CHUNK],
    value: [u64; MAX_WORDS],
    record: Variable,
    candidates: [Candidate; CANDIDATES],
    /// Candidates gathered: here and not in the [`Walk`], where the verifier would tell each
    /// number from the next.
    gathered: u64,
    /// For the same reason what is known of the name and of the dress of a value is here.
    name: Name,
    trim: Trim,
}

/// A variable that a rule is about.
///
/// Candidates are gathered first and fingerprinted after, and what is decided on the way goes
/// through this per-CPU memory: the verifier knows nothing of its contents, so that it walks the
/// two halves once each and not once for each way through the other.
#[derive(Clone, Copy)]
#[repr(C)]
struct Candidate {
    /// Address of the entry, and then of the secret in it.
    at: u64,
    /// Length of the value, and then of the secret.
    len: u64,
    name_at: u64,
    name_len: u32,
    /// Value of the rule about a word of the name, plus 1; or 0.
    word: u32,
    /// Value of the rule about the first bytes, plus 1; or 0. Without [`JWT_VALUE`].
    prefix: u32,
    jwt: u32,
    url: u32,
    dots: u32,
    /// 1 where the value goes on behind what was read at once: its length is still to be found.
    cut: u32,
    reserved: u32,
}

#[map]
static ENVIRON_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's buffer. A reference is not kept across a call of [`repeat`] whose step changes the
/// buffer: the compiler would take what it last saw for what is there. It is asked for again.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the scratch is this CPU's own; the program that uses it is not preempted by
    // another exec on the same CPU, as raw tracepoints run with preemption off.
    ENVIRON_SCRATCH
        .get_ptr_mut(0)
        .map(|pointer| unsafe { &mut *pointer })
}

/// Where the walk is.
#[repr(C)]
struct Walk {
    at: u64,
    end: u64,
    /// 1 while the rest of an entry longer than a chunk is crossed.
    inside: u64,
    /// 1 where a candidate is longer than a chunk.
    cut: u64,
}

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.17 (`bpf_loop`). Missed: an entry on a page that is not in memory (counted
/// as `read`), and whatever comes after it.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn environ_exec(_: RawTracePointContext) -> i32 {
    exec();
    0
}

/// Where the environment of the current process begins and ends.
#[inline(always)]
fn bounds<M: Memory>() -> (u64, u64) {
    let mm = M::field(M::task(), F::TaskMm);
    (M::field(mm, F::MmEnvStart), M::field(mm, F::MmEnvEnd))
}

#[inline(always)]
fn exec() {
    let (at, end) = if Hooked::Tracing.typed() {
        bounds::<Direct>()
    } else {
        bounds::<Copied>()
    };
    let mut walk = Walk {
        at,
        end,
        inside: 0,
        cut: 0,
    };
    if walk.at >= walk.end || !forget() {
        return;
    }
    repeat(ENTRIES, entry, &mut walk);
    let gathered = gathered();
    if gathered > 0 {
        let mut tell = Tell {
            candidates: gathered,
        };
        if walk.cut != 0 {
            repeat(CANDIDATES as u32, lengthen, &mut tell);
        }
        repeat(CANDIDATES as u32, locate, &mut tell);
        repeat(CANDIDATES as u32, secret, &mut tell);
    }
    wipe_all();
}

/// Overwrites what was copied of the values.
#[inline(never)]
fn wipe_all() {
    if let Some(scratch) = scratch() {
        wipe(scratch.entry.as_mut_ptr(), CHUNK as u64);
        wipe(scratch.value.as_mut_ptr().cast(), MAX_SECRET as u64);
    }
}

/// Forgets the candidates of the last environment.
#[inline(always)]
fn forget() -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    scratch.gathered = 0;
    true
}

/// How many candidates there are.
#[inline(always)]
fn gathered() -> u64 {
    scratch().map_or(0, |scratch| scratch.gathered)
}

/// One entry of the environment; 1 ends the walk.
extern "C" fn entry(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Walk of `exec`.
    let walk = unsafe { &mut *context.cast::<Walk>() };
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
    // A cut entry ends in a zero byte that is not in user memory.
    walk.at = at.wrapping_add(if whole { read } else { read - 1 });
    let was_inside = walk.inside != 0;
    walk.inside = u64::from(!whole);
    if !was_inside {
        variable(walk, at, read - 1, !whole);
    }
    0
}

/// Looks at a variable at `at` of `len` bytes, or of more where it is `cut`.
#[inline(always)]
fn variable(walk: &mut Walk, at: u64, len: u64, cut: bool) {
    let (Some(scratch), Some(bloom)) = (scratch(), Bloom::rules()) else {
        return;
    };
    split(scratch);
    // SAFETY: the place is this CPU's own; volatile, so that what is found goes through memory:
    // the verifier then walks on from here once, and not once for each length of a name.
    let name = unsafe { (&raw const scratch.name).read_volatile() };
    if name.len == 0 || name.len >= NAME_MAX as u64 {
        return;
    }
    let value_at = at.wrapping_add(name.len + 1);
    let value_len = len.wrapping_sub(name.len + 1);
    if !(4..=CHUNK as u64).contains(&value_len) {
        return;
    }
    let word = match (hit(name.last_hit), hit(name.first_hit)) {
        (Some(last), _) => last + 1,
        (None, Some(first)) => first + 1,
        (None, None) => 0,
    };
    let (prefix, jwt) = if value_len >= 12 {
        // SAFETY: a name is shorter than NAME_MAX, and the entry has eight bytes more than that.
        let first = unsafe {
            let at = (name.len + 1) as usize & (2 * NAME_MAX - 1);
            eight::load(scratch.entry.as_ptr().add(at))
        };
        first_bytes(first, bloom)
    } else {
        (0, 0)
    };
    if word == 0 && prefix == 0 {
        return;
    }
    let place = scratch.gathered;
    if place >= CANDIDATES as u64 {
        count(Probe::Environ, Stage::Read);
        return;
    }
    scratch.candidates[place as usize & (CANDIDATES - 1)] = Candidate {
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
    scratch.gathered = place + 1;
    walk.cut |= u64::from(cut);
}

/// Looks for a rule about the first 3 to 8 bytes of a value; the longest that holds counts. Gives
/// its value plus 1, and whether a JWT is to be looked for.
#[inline(always)]
pub fn first_bytes(first: u64, bloom: Bloom) -> (u32, u32) {
    let (mut prefix, mut jwt) = (0, 0);
    for len in 3..9 {
        let key = filter::value_key(first, len);
        if bloom.has(key)
            && let Some(value) = rule(key)
        {
            prefix = (value & !JWT_VALUE) + 1;
            jwt = value & JWT_VALUE;
        }
    }
    (prefix, jwt)
}

/// What is known of a name.
#[derive(Clone, Copy)]
#[repr(C)]
struct Name {
    words: Words,
    /// Keys of the first and the last word that a rule may be about.
    first_hit: u64,
    last_hit: u64,
    /// Bytes before the `=`; 0 where there is none.
    len: u64,
    /// What [`glance`] found.
    glance: [u64; 2],
}

/// Finds out what there is to know of the name at the front of the entry. Programs are given the
/// same few names again and again: one that was found to be of no rule is told by its tag.
///
/// Its steps are functions of their own that speak through this CPU's memory: the verifier
/// forgets how each came to its end, and walks the next one once.
#[inline(always)]
fn split(scratch: &mut Scratch) {
    glance(scratch);
    if !seen(scratch) {
        name(scratch);
        remember(scratch);
    }
}

/// What tells the name from others, where it has an end.
#[inline(always)]
fn looked(scratch: &Scratch) -> Option<Looked> {
    // SAFETY: the place is this CPU's own; volatile, as it goes through memory.
    let [sum, len] = unsafe { (&raw const scratch.name.glance).read_volatile() };
    if len == 0 {
        return None;
    }
    Looked::at(|_| [sum, len, 0, 0, 0])
}

/// Whether the name was found to be of no rule before.
#[inline(never)]
fn seen(scratch: &mut Scratch) -> bool {
    let seen = looked(scratch).is_some_and(Looked::before);
    if seen {
        let found = &raw mut scratch.name;
        // SAFETY: as above.
        unsafe {
            (&raw mut (*found).first_hit).write_volatile(0);
            (&raw mut (*found).last_hit).write_volatile(0);
            let len = (&raw const (*found).glance[1]).read_volatile();
            (&raw mut (*found).len).write_volatile(len);
        }
    }
    seen
}

/// Remembers a name that is of no rule.
#[inline(never)]
fn remember(scratch: &mut Scratch) {
    // SAFETY: as above.
    let hit = unsafe { (&raw const scratch.name.first_hit).read_volatile() };
    if hit == 0
        && let Some(looked) = looked(scratch)
    {
        looked.remember();
    }
}

/// Sums up the bytes before the `=`, eight at a time, and counts them; 0 where there is none.
#[inline(never)]
fn glance(scratch: &mut Scratch) {
    let (mut sum, mut len) = (0u64, 0u64);
    for (i, bytes) in scratch.entry.chunks_exact(8).enumerate().take(NAME_MAX / 8) {
        // SAFETY: a chunk has eight bytes, and an entry begins at a multiple of eight.
        let word = unsafe { bytes.as_ptr().cast::<u64>().read() };
        let (equals, ends) = (
            eight::zeros(word ^ eight::eight_of(b'=')),
            eight::zeros(word),
        );
        let Some(below) = eight::below(equals | ends) else {
            sum = eight::sum(sum, word);
            continue;
        };
        if eight::below(equals) == Some(below) {
            sum = eight::sum(sum, word & below);
            len = i as u64 * 8 + eight::bytes(below);
        }
        break;
    }
    // SAFETY: the place is this CPU's own.
    unsafe { (&raw mut scratch.name.glance).write_volatile([sum, len]) };
}

/// Splits the name at the front of an entry into words.
#[inline(always)]
fn name(scratch: &mut Scratch) {
    let found = &raw mut scratch.name;
    // SAFETY: the place is this CPU's own.
    unsafe {
        (&raw mut (*found).words).write_volatile(Words::new());
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
    i64::from(!letter(scratch, i))
}

/// Takes in the `i`th byte of the entry; `false` at the end of the name.
#[inline(always)]
fn letter(scratch: &mut Scratch, i: u64) -> bool {
    let Some(bloom) = Bloom::rules() else {
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
        && bloom.has(key)
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

/// The rule about a word of a name, where there was such a word.
#[inline(always)]
fn hit(key: u64) -> Option<u32> {
    if key == 0 { None } else { rule(key) }
}

/// The candidates that wait.
#[repr(C)]
struct Tell {
    candidates: u64,
}

/// Finds the secret inside the value of one candidate: the password of a URL, or what is left
/// without spaces, quotes and scheme.
extern "C" fn locate(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Tell of `exec`.
    let tell = unsafe { &mut *context.cast::<Tell>() };
    if i >= tell.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES - 1);
    let (at, len) = (scratch.candidates[place].at, scratch.candidates[place].len);
    if scratch.candidates[place].word == URL_WORD + 1 || scratch.candidates[place].jwt != 0 {
        read_value(scratch, at, len);
        let mut scan = Scan {
            marks: Marks::default(),
            len,
        };
        repeat(SCAN_MAX as u32, mark, &mut scan);
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
    let (at, len) = trim(at, len);
    if let Some(scratch) = self::scratch() {
        scratch.candidates[place].at = at;
        scratch.candidates[place].len = len;
    }
    0
}

/// Fingerprints one candidate and sends its record.
extern "C" fn secret(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Tell of `exec`.
    let tell = unsafe { &mut *context.cast::<Tell>() };
    if i >= tell.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES - 1);
    let (at, len) = (scratch.candidates[place].at, scratch.candidates[place].len);
    if len == 0 || len > u64::from(LONGEST) || !read_value(scratch, at, len) {
        return 0;
    }
    let print = fingerprint(scratch, len);
    report(scratch, place, print);
    0
}

/// The kernel takes no longer string into an environment.
const LONGEST: u32 = 128 << 10;

/// Finds the length of one candidate that is longer than a chunk. A pass of its own, for the
/// same reason as candidates: see [`Candidate`].
extern "C" fn lengthen(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Tell of `exec`.
    let tell = unsafe { &mut *context.cast::<Tell>() };
    if i >= tell.candidates {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (CANDIDATES - 1);
    if scratch.candidates[place].cut == 0 {
        return 0;
    }
    let mut rest = Rest {
        at: scratch.candidates[place].at,
        len: 0,
    };
    repeat(LONGEST / MAX_SECRET as u32 + 1, measure, &mut rest);
    scratch.candidates[place].len = rest.len;
    0
}

/// What is still to be measured of a long value.
#[repr(C)]
struct Rest {
    at: u64,
    len: u64,
}

/// Crosses one more piece of a long value.
extern "C" fn measure(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Rest of `lengthen`.
    let rest = unsafe { &mut *context.cast::<Rest>() };
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
fn fingerprint(scratch: &mut Scratch, len: u64) -> u64 {
    let key = secret_key();
    let counted = if len > MAX_SECRET as u64 {
        MAX_SECRET as u64
    } else {
        len
    };
    let mut hash = Hash {
        sip: Sip::new(key),
        whole: counted / 8,
    };
    repeat(MAX_WORDS as u32, word, &mut hash);
    let tail = scratch.value[(counted / 8) as usize & (MAX_WORDS - 1)];
    hash.sip.end(tail, len)
}

#[inline(always)]
fn report(scratch: &mut Scratch, place: usize, print: u64) {
    let candidate = &scratch.candidates[place];
    let record = &mut scratch.record;
    fill_header(&mut record.header, kind::VARIABLE, Hooked::Tracing);
    record.fingerprint = print;
    record.secret_len = candidate.len as u32;
    record.name_len = candidate.name_len;
    record.prefix = candidate.prefix;
    record.dots = candidate.dots;
    record.url = candidate.url;
    record.reserved = 0;
    // Only the name is read, so that no byte of the value gets into the record.
    record.name = [0; NAME_MAX];
    // SAFETY: at most NAME_MAX bytes, the size of the place; the helper checks the source.
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
            size_of::<Variable>() as u64,
        );
    }
}

/// Reads the counted part of a value to the front of the aligned buffer; `false` where its page
/// is not in memory.
#[inline(always)]
fn read_value(scratch: &mut Scratch, at: u64, len: u64) -> bool {
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
struct Hash {
    sip: Sip,
    /// Whole words of the value.
    whole: u64,
}

extern "C" fn word(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Hash of `fingerprint`.
    let hash = unsafe { &mut *context.cast::<Hash>() };
    if i >= hash.whole {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    hash.sip.word(scratch.value[i as usize & (MAX_WORDS - 1)]);
    0
}

#[repr(C)]
struct Scan {
    marks: Marks,
    len: u64,
}

extern "C" fn mark(i: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Scan of `locate`.
    let scan = unsafe { &mut *context.cast::<Scan>() };
    if i >= scan.len {
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let place = i as usize & (SCAN_MAX - 1);
    let byte = (scratch.value[place / 8] >> ((place % 8) * 8)) as u8;
    scan.marks.push(i as u32, byte);
    0
}

/// What is left of a value, and what is still to be taken off it.
#[repr(C)]
struct Trim {
    at: u64,
    len: u64,
    /// Spaces, quotes, spaces, a scheme word, spaces: in this order.
    phase: u64,
}

/// Steps of a trim: a value dressed in more white space than this keeps the rest of it.
const TRIM_STEPS: u32 = 24;

/// The same as `fingerprint::trim`, on user memory.
#[inline(always)]
fn trim(at: u64, len: u64) -> (u64, u64) {
    {
        let Some(scratch) = scratch() else {
            return (at, 0);
        };
        scratch.trim = Trim { at, len, phase: 0 };
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
        let six = filter::keep(first, 6);
        let scheme = if filter::keep(first, 7) == u64::from_le_bytes(*b"Bearer \0") {
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
