//! The search for credentials in a copy of what a process sends, and their fingerprints.
//!
//! Programs at TLS libraries and at packets share it. Each kind has a place of its own to work in on
//! each CPU, and tells what it found in its own way.

use crate::{
    environ::{first_bytes, secret_key},
    kernel::{now, repeat},
    maps::{Bloom, count, rule, wipe, wipe_whole},
    task::current_pid,
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use core::ffi::c_void;
use monitor_common::{
    answer::{self, Fields},
    filter::HOST,
    fingerprint::MAX_WORDS,
    http2::{self, Decoder, Frames},
    login::{self, Words, speaks},
    record::{Clear, Presented, Probe, Shown, Stage},
    scan::{
        self, CARRIED_MAX, HOST_MAX, Lines, Print, Unwrap, VALUES, Value, WINDOW, Window, form,
        wrapped,
    },
};

/// A kind of program that searches.
pub trait Searcher {
    /// Its scratch among those of a CPU.
    const SCRATCH: u32;
    /// What is counted where something cannot be searched.
    const PROBE: Probe;
    /// Whether its programs have loops of any length. Those that have none are for kernels before
    /// 5.17, which also refuse what is never run: they find HTTP/1.1 only, and a short head of it.
    const LOOPS: bool;
    /// Sends a credential that was found.
    fn show(scratch: &mut Scratch, known: &Known);
    /// The server's name is known, or that there is none.
    fn show_host(scratch: &mut Scratch);
}

/// This CPU's place to work. A program of this kind can be preempted by another on some kernels:
/// each puts its own mark, and what is found under another's mark is counted as not read.
#[repr(C)]
pub struct Scratch {
    pub mark: u64,
    pub object: Object,
    /// Fingerprint of the server's name in the head; 0 where there is none.
    pub host: u64,
    /// The length of that name, whose place in the text is in [`Scratch::secret`] while
    /// [`Searcher::show_host`] runs.
    pub host_len: u64,
    /// Values to look at, and the mark that this use began with.
    found: u64,
    number: u64,
    /// For [`monitor_common::eight::through`].
    place: u64,
    /// What was printed, and is to be sent.
    held: Known,
    unwrap: Unwrap,
    lines: Lines,
    frames: Frames,
    words: Words,
    fields: Fields,
    values: [Value; VALUES],
    /// The value at hand, in [`Scratch::text`], and then the secret in it.
    pub secret: Value,
    /// Bytes of the write. Whoever needs it later reads it here: of what the verifier sees again in
    /// a register it would keep all that it could be.
    pub len: u64,
    /// Bytes of the window that are a copy, and how many of them were carried.
    copied: u64,
    carried: u64,
    /// No text since the last wipe was longer than this.
    texts: u64,
    decoder: Decoder,
    print: Print,
    pub presented: Presented,
    pub clear: Clear,
    pub window: Window,
    pub text: Window,
}

/// Index: [`Searcher::SCRATCH`].
#[map]
static SEARCH_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(3, 0);

/// Index 0: the decoder of HPACK's Huffman code. Set by the agent before attachment.
#[map]
static HUFFMAN: Array<http2::Table> = Array::with_max_entries(1, 0);

/// What has to be known of a connection when its next write comes: that the head of a request goes
/// on, or where its frames stand. One that is evicted costs what is cut between two writes, and
/// what is only referred to.
#[map]
static STREAMS: LruHashMap<Object, Stream> = LruHashMap::with_max_entries(4096, 0);

/// Lines of a head that were cut between two writes. The bytes are overwritten when the rest comes;
/// the agent takes out what never went on.
#[map]
static CARRIED: HashMap<Object, Carried> = HashMap::with_max_entries(128, 0);

/// A line goes on within this time.
const CARRIED_NS: u64 = 30_000_000_000;

/// The first part of a line; zeros follow.
#[repr(C)]
struct Carried {
    len: u64,
    bytes: [u8; CARRIED_MAX],
}

/// A TLS object of a process; or a socket, with [`SOCKET`].
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Object {
    pub address: u64,
    pub pid: u64,
}

/// In place of a process.
const SOCKET: u64 = 1 << 32;

impl Object {
    /// A TLS object of the current process.
    #[inline(always)]
    pub fn of_process(address: u64) -> Self {
        Self {
            address,
            pid: u64::from(current_pid()),
        }
    }

    /// A socket, by its cookie.
    #[inline(always)]
    pub const fn of_socket(cookie: u64) -> Self {
        Self {
            address: cookie,
            pid: SOCKET,
        }
    }
}

/// How the bytes of a write are read: the head of a request of HTTP/1.1, and fields of HTTP/2; or
/// one of [`speaks`].
pub const HEAD: u64 = 0;
pub const FIELDS: u64 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
struct Stream {
    /// How its next write is read.
    speaks: u64,
    /// Bytes of a frame that are still to come.
    skip: u64,
    /// When a line was cut whose first part is in [`CARRIED`]; 0 where none was.
    cut: u64,
    /// Fields that the connection's table was given.
    inserted: u64,
    /// Credentials in that table.
    known: [Known; KNOWN],
    /// The server's name in that table: its number, and its fingerprint.
    host: [u64; 2],
}

/// Credentials that are remembered of a connection, for references to them.
const KNOWN: usize = 2;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Known {
    /// Its number in the table; 0 where there is none.
    entry: u64,
    fingerprint: u64,
    /// Of the password inside, where there is one.
    inner: u64,
    secret_len: u32,
    name: u32,
    prefix: u32,
    dots: u32,
}

impl Scratch {
    /// Whether the write is a request of HTTP.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.words.speaks == HEAD || self.words.speaks == FIELDS
    }
}

impl Known {
    /// As it is told, with the fingerprint of the server's name.
    #[inline(always)]
    pub fn shown(&self, host: u64) -> Shown {
        Shown {
            fingerprint: self.fingerprint,
            inner: self.inner,
            host,
            secret_len: self.secret_len,
            name: self.name,
            prefix: self.prefix,
            dots: self.dots,
        }
    }

    const NONE: Self = Self {
        entry: 0,
        fingerprint: 0,
        inner: 0,
        secret_len: 0,
        name: 0,
        prefix: 0,
        dots: 0,
    };
}

impl Stream {
    const fn new(speaks: u64) -> Self {
        Self {
            speaks,
            host: [0; 2],
            skip: 0,
            cut: 0,
            inserted: 0,
            known: [Known::NONE; KNOWN],
        }
    }
}

/// How a write is read, and how many bytes at its front are not.
pub struct Reading {
    pub speaks: u64,
    pub skip: u64,
}

/// Judges a write by its first eight bytes, and by what went before it on the connection. `second`
/// gives the next eight.
#[inline(always)]
pub fn reading<S: Searcher>(
    object: Object,
    first: u64,
    len: u64,
    second: impl FnOnce() -> u64,
) -> Option<Reading> {
    // Without `bpf_loop` all but HTTP/1.1 is more than the verifier would walk: a declared gap.
    let able = S::LOOPS;
    if able && first == http2::PREFACE && len >= http2::PREFACE_LEN {
        let _ = STREAMS.insert(object, Stream::new(FIELDS), 0);
        return Some(Reading {
            speaks: FIELDS,
            skip: http2::PREFACE_LEN,
        });
    }
    // Of a very short write the first byte is judged.
    let first = if len < 8 {
        scan::alone(first as u8)
    } else {
        first
    };
    let mut speaks = HEAD;
    let mut skip = 0;
    if let Some(stream) = STREAMS.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map; a TLS object is written to by one thread at a time,
        // and a socket by one.
        unsafe {
            speaks = (*stream).speaks;
            if speaks == FIELDS {
                skip = (*stream).skip;
                if skip >= len {
                    (*stream).skip = skip - len;
                    return None;
                }
                // No frame is so long: its address was another object's before.
                if skip == 0 && scan::begins_with_method(first) {
                    speaks = HEAD;
                }
                (*stream).skip = 0;
            }
            // Where a request begins, what was cut before it has ended.
            if len >= 8 && scan::begins_with_method(first) {
                (*stream).cut = 0;
            }
            // What looked like the head of a request may have been a line of something else.
            if able && speaks == HEAD && (*stream).cut == 0 {
                speaks = login::begins(first, second);
            }
        }
    } else if able {
        speaks = login::begins(first, second);
        if speaks == 0 {
            if http2::may_begin_fields(first) {
                speaks = FIELDS;
            } else if !scan::may_begin_request(first) {
                return None;
            }
        }
    } else if !scan::may_begin_request(first) {
        return None;
    }
    Some(Reading { speaks, skip })
}

/// Begins the use of the scratch for a write of `len` bytes, of which [`WINDOW`] at most are to be
/// copied to its window by the caller; gives the mark of this use. A function of its own, as many ways
/// lead here: behind it the verifier sees one.
#[inline(never)]
pub fn begin(scratch: &mut Scratch, object: Object, len: u64, speaks: u64) -> u64 {
    let number = now();
    scratch.mark = number;
    scratch.object = object;
    scratch.host = 0;
    scratch.host_len = 0;
    scratch.len = len;
    let len = bounded(len);
    scratch.copied = len;
    scratch.carried = 0;
    scratch.lines = Lines {
        end: len,
        ..Lines::default()
    };
    scratch.frames = Frames {
        end: len,
        ..Frames::default()
    };
    scratch.words = Words::new(len, speaks);
    scratch.fields = Fields {
        end: len,
        ..Fields::default()
    };
    number
}

/// Brings the first part of a line that the last write of the connection cut to the front of the
/// window; gives its length, which is less than [`CARRIED_MAX`]. To be called behind [`begin`], and
/// followed by [`carry_on`].
#[inline(never)]
pub fn carried(scratch: &mut Scratch) -> u64 {
    let object = scratch.object;
    let Some(stream) = STREAMS.get_ptr_mut(object) else {
        return 0;
    };
    // SAFETY: the pointer is into the map.
    let cut = unsafe { core::mem::replace(&mut (*stream).cut, 0) };
    if cut == 0 || scratch.words.speaks != HEAD {
        return 0;
    }
    let Some(carried) = CARRIED.get_ptr_mut(object) else {
        return 0;
    };
    // SAFETY: the pointer is into the map, and the window has room for more.
    let len = unsafe {
        let bytes = &raw mut (*carried).bytes;
        if scratch.mark - cut < CARRIED_NS {
            bpf_probe_read_kernel(
                scratch.window.as_mut_ptr().cast(),
                CARRIED_MAX as u32,
                bytes.cast(),
            );
            scratch.carried = (*carried).len & (CARRIED_MAX as u64 - 1);
        }
        wipe_whole(bytes);
        scratch.carried
    };
    let _ = CARRIED.remove(object);
    len
}

/// The window holds what was carried, and at most [`AFTER_CARRIED`] of the `len` bytes of the
/// write.
#[inline(always)]
pub fn carry_on(scratch: &mut Scratch, len: u64) {
    let end = scratch.carried + after_carried(len);
    scratch.copied = end;
    scratch.lines.end = end;
}

/// Bytes of a write that are copied behind those that were carried, if there are any.
pub const AFTER_CARRIED: u32 = (WINDOW - CARRIED_MAX) as u32;

#[inline(always)]
pub fn after_carried(len: u64) -> u64 {
    if len > u64::from(AFTER_CARRIED) {
        u64::from(AFTER_CARRIED)
    } else {
        len
    }
}

/// Keeps what a write has of a line that the next one ends; `true` where there is something.
#[inline(always)]
fn keep<S: Searcher>(scratch: &mut Scratch) -> bool {
    let Lines {
        begin, end, inside, ..
    } = scratch.lines;
    if inside == 0 || begin >= end {
        return false;
    }
    let len = end - begin;
    if len >= CARRIED_MAX as u64 {
        count(S::PROBE, Stage::Read);
        return false;
    }
    // The text has not been used since it was wiped, and is wiped again: others take it for theirs.
    // SAFETY: the text has room for a Carried, and is of bytes; the helper checks the source.
    unsafe {
        let place: *mut Carried = scratch.text.as_mut_ptr().cast();
        (*place).len = len;
        bpf_probe_read_kernel(
            (&raw mut (*place).bytes).cast(),
            len as u32 & (CARRIED_MAX as u32 - 1),
            scratch
                .window
                .as_ptr()
                .add(begin as usize & (WINDOW - 1))
                .cast(),
        );
        let kept = CARRIED.insert(scratch.object, &*place, 0).is_ok();
        wipe(scratch.text.as_mut_ptr(), size_of::<u64>() as u64 + len);
        if !kept {
            count(S::PROBE, Stage::Read);
        }
        kept
    }
}

/// Bytes of a write that are copied.
#[inline(always)]
pub fn bounded(len: u64) -> u64 {
    if len > WINDOW as u64 {
        WINDOW as u64
    } else {
        len
    }
}

/// Searches the window; gives how many values there are to look at.
#[inline(always)]
pub fn search<S: Searcher>(scratch: &mut Scratch) -> u64 {
    let speaks = scratch.words.speaks;
    if speaks == HEAD || !S::LOOPS {
        lines::<S>(scratch)
    } else if speaks == FIELDS {
        frames::<S>(scratch)
    } else {
        words::<S>(scratch, speaks)
    }
}

/// Pieces of an answer that are crossed.
const PIECES: u32 = 1024;

/// Searches the window for fields with credentials; gives how many values there are to look at.
#[inline(always)]
pub fn fields<S: Searcher>(scratch: &mut Scratch) -> u64 {
    each(PIECES, next_piece::<S>, scratch);
    end_fields::<S>()
}

#[inline(never)]
fn end_fields<S: Searcher>() -> u64 {
    scratch::<S>().map_or(0, |scratch| scratch.fields.found)
}

extern "C" fn next_piece<S: Searcher>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!piece(scratch))
}

#[inline(never)]
fn piece(scratch: &mut Scratch) -> bool {
    let Some(bloom) = Bloom::rules() else {
        return false;
    };
    answer::step(
        &scratch.window,
        &mut scratch.fields,
        &mut scratch.values,
        |key| header(key, bloom),
    )
}

/// Takes the whole body of an answer as the one value; gives 0 where it is still to come.
#[inline(always)]
pub fn whole<S: Searcher>(scratch: &mut Scratch) -> u64 {
    each(LINES, next_line::<S>, scratch);
    end_whole::<S>()
}

#[inline(never)]
fn end_whole<S: Searcher>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
    let end = scratch.lines.end;
    let at = if scan::word(&scratch.window, 0) as u32 != HTTP {
        0
    } else if scratch.lines.over != 0 {
        let line = scratch.lines.at;
        line + 1 + u64::from(scan::word(&scratch.window, line) as u8 == b'\r')
    } else {
        end
    };
    scratch.values[0] = Value {
        at,
        len: end.saturating_sub(at),
        rule: answer::FIELD | answer::WHOLE,
        ..Value::default()
    };
    u64::from(at < end)
}

/// Values of one head that are fingerprinted where a kernel has no `bpf_loop`: the verifier walks
/// every word of each.
const FEW_VALUES: usize = 2;

/// Fingerprints the server's name and the first `found` values, and sends them.
#[inline(always)]
pub fn tell<S: Searcher>(scratch: &mut Scratch, found: u64, number: u64) {
    scratch.number = number;
    if S::LOOPS {
        scratch.found = found;
        each(1 + 2 * VALUES as u32, next_value::<S>, scratch);
        return;
    }
    S::show_host(scratch);
    for i in 0..FEW_VALUES {
        if i as u64 >= found {
            break;
        }
        tell_one::<S>(scratch, i);
    }
}

extern "C" fn next_value<S: Searcher>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    if i > 2 * scratch.found {
        return 1;
    }
    // The verifier is to see one of them like the other.
    value::<S>(scratch, core::hint::black_box(i));
    0
}

/// One of several turns: first the server's name, and then two for each value, as it was sent and what
/// is wrapped in it. One piece of code does them all: the verifier walks it once.
#[inline(always)]
fn value<S: Searcher>(scratch: &mut Scratch, i: u64) {
    let ready = take(scratch, i);
    if !ready {
        return end_turn::<S>(scratch, i, false);
    }
    match scratch.secret.form {
        form::CODED => decode::<S>(scratch),
        WRAPPED => unwrap::<S>(scratch),
        _ => bring(scratch),
    }
    let found = trim(scratch, i);
    if found {
        print::<S>(scratch);
    }
    end_turn::<S>(scratch, i, found);
}

/// A form of a value in the text: it is to be unwrapped.
const WRAPPED: u64 = 4;

/// Whether a turn is about what is wrapped in the value of the turn before.
#[inline(always)]
fn is_inner(i: u64) -> bool {
    i > 0 && i & 1 == 0
}

/// The value of a turn becomes the one at hand; `false` where there is nothing to do.
#[inline(never)]
fn take(scratch: &mut Scratch, i: u64) -> bool {
    if i == 0 {
        return take_host(scratch);
    }
    if is_inner(i) {
        scratch.secret.form = WRAPPED;
        return scratch.held.fingerprint != 0 && scratch.secret.wrapped != wrapped::NOT;
    }
    scratch.secret = scratch.values[(i as usize >> 1) & (VALUES - 1)];
    scratch.held = Known::NONE;
    if scratch.secret.form == form::REFERRED {
        refer(scratch);
        return false;
    }
    true
}

/// Finds the secret, the server's name, or the password, in the text.
#[inline(never)]
fn trim(scratch: &mut Scratch, i: u64) -> bool {
    if i == 0 {
        trim_host(scratch);
    } else if is_inner(i) {
        scratch.secret = scan::password(&scratch.text, scratch.unwrap.len, scratch.secret);
    } else if scratch.secret.rule < scan::BARE {
        return locate(scratch);
    } else {
        scratch.secret.at = 0;
    }
    scratch.secret.len > 0
}

#[inline(never)]
fn end_turn<S: Searcher>(scratch: &mut Scratch, i: u64, printed: bool) {
    if i == 0 {
        end_host::<S>(scratch, printed);
    } else if is_inner(i) {
        if printed {
            scratch.held.inner = fingerprint_of(scratch, scratch.secret);
        }
        show_held::<S>(scratch);
    } else if printed {
        hold(scratch);
    }
}

/// Takes off the base64.
#[inline(always)]
fn unwrap<S: Searcher>(scratch: &mut Scratch) {
    scratch.unwrap = Unwrap::default();
    each(CODED / 4, next_four::<S>, scratch);
}

extern "C" fn next_four<S: Searcher>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    let secret = scratch.secret;
    i64::from(!scratch.unwrap.step(&mut scratch.text, secret, i))
}

/// The value with the server's name is the one at hand; `false` where there is none, or it is known.
#[inline(always)]
fn take_host(scratch: &mut Scratch) -> bool {
    let value = if scratch.lines.host.len != 0 {
        scratch.lines.host
    } else {
        scratch.frames.host
    };
    scratch.secret = value;
    // What a proxy is asked for is not its own name.
    const CONNECT: u64 = u64::from_le_bytes(*b"CONNECT ");
    if scan::word(&scratch.window, 0) == CONNECT {
        return false;
    }
    if value.form == form::REFERRED
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let [entry, fingerprint] = unsafe { (*stream).host };
        if entry == value.entry {
            scratch.host = fingerprint;
        }
    }
    value.len != 0
}

#[inline(always)]
fn trim_host(scratch: &mut Scratch) {
    let value = Value {
        at: 0,
        ..scratch.secret
    };
    scan::small_front(&mut scratch.text);
    scratch.secret = scan::host(&scratch.text, value, &mut scratch.place);
    without_address(scratch);
}

/// A function of its own: the verifier comes here once, however the name has ended.
#[inline(never)]
fn without_address(scratch: &mut Scratch) {
    if scan::is_address(&scratch.text, scratch.secret) {
        scratch.secret.len = 0;
    }
}

/// The name is known, and in the text; or there is none.
#[inline(always)]
fn end_host<S: Searcher>(scratch: &mut Scratch, printed: bool) {
    let secret = scratch.secret;
    if !printed || secret.len > HOST_MAX as u64 {
        S::show_host(scratch);
        return;
    }
    let fingerprint = fingerprint_of(scratch, secret);
    scratch.host = fingerprint;
    scratch.host_len = secret.len;
    S::show_host(scratch);
    if secret.entry != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        unsafe { (*stream).host = [secret.entry, fingerprint] };
    }
}

/// Walks the words of a sign-in.
#[inline(always)]
fn words<S: Searcher>(scratch: &mut Scratch, speaks: u64) -> u64 {
    match speaks {
        speaks::POSTGRES => postgres(scratch),
        speaks::MYSQL => mysql(scratch),
        speaks::MQTT => mqtt(scratch),
        speaks::LDAP => ldap(scratch),
        _ => each(WORDS_OF_LOGIN, next_word_of_login::<S>, scratch),
    }
    end_words::<S>()
}

/// Words, or pieces of long ones, in a sign-in.
const WORDS_OF_LOGIN: u32 = 64;

extern "C" fn next_word_of_login<S: Searcher>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word_of_login(scratch))
}

#[inline(never)]
fn word_of_login(scratch: &mut Scratch) -> bool {
    login::step(&scratch.window, &mut scratch.words)
}

#[inline(never)]
fn postgres(scratch: &mut Scratch) {
    login::postgres(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mysql(scratch: &mut Scratch) {
    login::mysql(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mqtt(scratch: &mut Scratch) {
    login::mqtt(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn ldap(scratch: &mut Scratch) {
    login::ldap(&scratch.window, &mut scratch.words);
}

/// The secret of a sign-in is the one value; what the next write is, is remembered.
#[inline(never)]
fn end_words<S: Searcher>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    let words = &scratch.words;
    if words.next == 0 || words.secret.len != 0 {
        let _ = STREAMS.remove(scratch.object);
    } else {
        let _ = STREAMS.insert(scratch.object, Stream::new(words.next), 0);
    }
    scratch.values[0] = words.secret;
    u64::from(words.secret.len != 0)
}

/// Nothing that is known of a TLS object holds for the next at its address.
#[inline(always)]
pub fn forget_object(object: Object) {
    let _ = STREAMS.remove(object);
    if let Some(carried) = CARRIED.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map.
        unsafe { wipe_whole(&raw mut (*carried).bytes) };
        let _ = CARRIED.remove(object);
    }
}

/// Whether the next write of the connection is to be looked at whatever it begins with.
#[inline(always)]
pub fn goes_on(object: Object) -> bool {
    STREAMS.get_ptr(object).is_some()
}

/// Overwrites the copy of a write, and ends the use of the scratch.
#[inline(never)]
pub fn forget<S: Searcher>() {
    let Some(scratch) = scratch::<S>() else {
        return;
    };
    let (window, text) = (scratch.copied, scratch.texts);
    wipe(scratch.window.as_mut_ptr(), window);
    wipe(scratch.text.as_mut_ptr(), text);
    scratch.texts = 0;
    scratch.mark = 0;
}

#[inline(always)]
pub fn scratch<S: Searcher>() -> Option<&'static mut Scratch> {
    // SAFETY: the scratch is this CPU's own, and what happens where two use it at once is told by
    // its mark.
    SEARCH_SCRATCH
        .get_ptr_mut(S::SCRATCH)
        .map(|pointer| unsafe { &mut *pointer })
}

/// Runs a step that works on the scratch. It finds it by itself; here it is only said that it does,
/// as the compiler would take what it last saw there for what is there.
#[inline(always)]
fn each(times: u32, step: extern "C" fn(u64, *mut c_void) -> i64, scratch: &mut Scratch) {
    repeat(times, step, &mut core::ptr::from_mut(scratch));
}

/// Lines, or pieces of long ones, that are crossed in one write.
const LINES: u32 = 256;
/// The same where a kernel has no `bpf_loop`.
const FEW_LINES: u32 = 24;

/// Walks the head of a request of HTTP/1.1; gives how many values there are to look at.
#[inline(always)]
fn lines<S: Searcher>(scratch: &mut Scratch) -> u64 {
    if S::LOOPS {
        each(LINES, next_line::<S>, scratch);
    } else {
        for _ in 0..FEW_LINES {
            if !line(scratch) {
                break;
            }
        }
    }
    end_lines::<S>()
}

/// What is left of a head comes with the next write.
#[inline(never)]
fn end_lines<S: Searcher>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    if scratch.lines.over == 0 && scratch.copied == scratch.carried + scratch.len {
        let mut stream = Stream::new(HEAD);
        if S::LOOPS && keep::<S>(scratch) {
            stream.cut = scratch.mark;
        }
        let _ = STREAMS.insert(scratch.object, stream, 0);
    } else {
        let _ = STREAMS.remove(scratch.object);
    }
    scratch.lines.found
}

/// Frames and fields that are walked over in one write.
const STEPS: u32 = 512;

/// Walks the frames of a write; gives how many values there are to look at.
#[inline(always)]
fn frames<S: Searcher>(scratch: &mut Scratch) -> u64 {
    if let Some(stream) = STREAMS.get_ptr_mut(scratch.object) {
        // SAFETY: the pointer is into the map.
        scratch.frames.inserted = unsafe { (*stream).inserted };
    }
    each(STEPS, next_field::<S>, scratch);
    end_frames::<S>()
}

/// Remembers where the next write begins.
#[inline(never)]
fn end_frames<S: Searcher>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    let (frames, len) = (&scratch.frames, scratch.len);
    if let Some(stream) = STREAMS.get_ptr_mut(scratch.object) {
        if frames.lost != 0 || frames.block_end != 0 || frames.at < len {
            let _ = STREAMS.remove(scratch.object);
        } else {
            // SAFETY: the pointer is into the map.
            unsafe {
                (*stream).skip = frames.at - len;
                (*stream).inserted = frames.inserted;
            }
        }
    }
    frames.found
}

extern "C" fn next_field<S: Searcher>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!field(scratch))
}

#[inline(never)]
fn field(scratch: &mut Scratch) -> bool {
    let Some(bloom) = Bloom::rules() else {
        return false;
    };
    let object = scratch.object;
    http2::step(
        &scratch.window,
        &mut scratch.frames,
        &mut scratch.values,
        |key| header(key, bloom),
        |entry| {
            let stream = STREAMS.get_ptr_mut(object)?;
            // SAFETY: the pointer is into the map.
            let (known, host) = unsafe { (&(*stream).known, (*stream).host[0]) };
            if host == entry {
                return Some(HOST);
            }
            known
                .iter()
                .find(|known| known.entry == entry)
                .map(|known| known.name)
        },
    )
}

/// The rule about a header, by its key.
#[inline(always)]
fn header(key: u64, bloom: Bloom) -> Option<u32> {
    if !bloom.has(key) {
        return None;
    }
    rule(key)
}

extern "C" fn next_line<S: Searcher>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!line(scratch))
}

#[inline(never)]
fn line(scratch: &mut Scratch) -> bool {
    let Some(bloom) = Bloom::rules() else {
        return false;
    };
    scan::line(
        &scratch.window,
        &mut scratch.lines,
        &mut scratch.values,
        |key| header(key, bloom),
    )
}

/// Fingerprints the `i`th value and sends its record, where there are no loops.
#[inline(never)]
fn tell_one<S: Searcher>(scratch: &mut Scratch, i: usize) {
    scratch.secret = scratch.values[i & (VALUES - 1)];
    bring(scratch);
    if locate(scratch) {
        print::<S>(scratch);
        hold(scratch);
        show_held::<S>(scratch);
    }
}

/// Takes in the whole words of the secret.
#[inline(always)]
pub fn print<S: Searcher>(scratch: &mut Scratch) {
    scratch.print = Print::new(secret_key());
    if S::LOOPS {
        each(WORDS, next_word::<S>, scratch);
    } else {
        for i in 0..u64::from(WORDS) {
            if !word(scratch, i) {
                break;
            }
        }
    }
}

/// Copies the value to the front of the text.
#[inline(never)]
fn bring(scratch: &mut Scratch) {
    let Value { at, len, .. } = scratch.secret;
    let len = if len > WINDOW as u64 {
        WINDOW as u64
    } else {
        len
    };
    // SAFETY: at most WINDOW bytes, and the text has SLACK more; the helper checks the source.
    unsafe {
        bpf_probe_read_kernel(
            scratch.text.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            scratch
                .window
                .as_ptr()
                .add(at as usize & (WINDOW - 1))
                .cast(),
        );
    }
    scratch.secret.len = len;
    scratch.texts |= len;
}

/// Bytes of a coded value that are decoded.
const CODED: u32 = 4096;

/// Decodes the value to the front of the text.
#[inline(always)]
fn decode<S: Searcher>(scratch: &mut Scratch) {
    scratch.decoder = Decoder::default();
    each(CODED, next_byte::<S>, scratch);
    scratch.secret.len = scratch.decoder.len;
    scratch.texts |= scratch.decoder.len;
}

extern "C" fn next_byte<S: Searcher>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!byte(scratch, i))
}

#[inline(always)]
fn byte(scratch: &mut Scratch, i: u64) -> bool {
    let Some(table) = HUFFMAN.get(0) else {
        return false;
    };
    scratch
        .decoder
        .step(&scratch.window, scratch.secret, i, table, &mut scratch.text)
}

/// Finds the secret in the text.
#[inline(never)]
fn locate(scratch: &mut Scratch) -> bool {
    let value = Value {
        at: 0,
        ..scratch.secret
    };
    let (secret, _) = scan::secret(&scratch.text, value, &mut scratch.place);
    scratch.secret = secret;
    secret.len > 0
}

const WORDS: u32 = MAX_WORDS as u32 + 1;

extern "C" fn next_word<S: Searcher>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word(scratch, i))
}

#[inline(always)]
fn word(scratch: &mut Scratch, i: u64) -> bool {
    let secret = scratch.secret;
    scratch.print.step(&scratch.text, secret, i)
}

/// What was printed is kept until what is wrapped in it is known.
#[inline(always)]
fn hold(scratch: &mut Scratch) {
    let Some(bloom) = Bloom::rules() else { return };
    let secret = scratch.secret;
    let (fingerprint, dots) = scratch.print.end(&scratch.text, secret);
    let (prefix, _) = first_bytes(scan::word(&scratch.text, secret.at), bloom);
    scratch.held = Known {
        entry: secret.entry,
        fingerprint,
        inner: 0,
        secret_len: secret.len as u32,
        name: secret.rule as u32,
        prefix,
        dots: dots as u32,
    };
}

/// A credential that the connection's table has.
#[inline(always)]
fn refer(scratch: &mut Scratch) {
    let Some(stream) = STREAMS.get_ptr_mut(scratch.object) else {
        return;
    };
    // SAFETY: the pointer is into the map.
    let known = unsafe { (*stream).known };
    let entry = scratch.secret.entry;
    if known[0].entry == entry {
        scratch.held = known[0];
    } else if known[1].entry == entry {
        scratch.held = known[1];
    }
    // It is there already.
    scratch.held.entry = 0;
    scratch.secret.wrapped = wrapped::NOT;
}

/// Sends what is held, and remembers it where the connection's table has it.
#[inline(always)]
fn show_held<S: Searcher>(scratch: &mut Scratch) {
    let held = scratch.held;
    if held.fingerprint == 0 {
        return;
    }
    if !is_marked(scratch, scratch.number) {
        // Another has worked here meanwhile: what it has found is not to be trusted either.
        scratch.mark = 0;
        count(S::PROBE, Stage::Read);
        return;
    }
    if held.entry != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let place = unsafe { &mut (*stream).known };
        place[1] = place[0];
        place[0] = held;
    }
    S::show(scratch, &held);
}

/// Whether the scratch is still in this use, and nobody else has worked there.
#[inline(always)]
pub fn is_marked(scratch: &Scratch, number: u64) -> bool {
    // SAFETY: the scratch is this CPU's own; volatile, as another may have written it.
    unsafe { (&raw const scratch.mark).read_volatile() == number }
}

/// The fingerprint whose words were taken in by [`print`].
#[inline(always)]
pub fn fingerprint_of(scratch: &Scratch, secret: Value) -> u64 {
    scratch.print.end(&scratch.text, secret).0
}
