//! The search for credentials in a copy of what a process sends or receives, and their
//! fingerprints.
//!
//! Shared by the programs at TLS libraries and at packets. Each source has its own scratch memory
//! per CPU and sends its findings in its own record type.

use crate::{
    environ::{secret_key, value_prefix_rule},
    kernel::{boot_time_ns, repeat},
    maps::{BloomFilter, count, rule, wipe, wipe_whole},
    task::current_pid,
};
use aya_ebpf::{
    helpers::generated::bpf_probe_read_kernel,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use core::ffi::c_void;
use monitor_common::{
    answer::{self, ResponseScan},
    filter::HOST,
    fingerprint::MAX_WORDS,
    http2::{self, FrameScan, HuffmanDecoder},
    login::{self, LoginScan, protocol},
    record::{PlaintextRecord, PresentedRecord, PresentedSecret, Probe, Stage},
    scan::{
        self, Base64Decoder, CARRIED_MAX, FingerprintBuilder, HOST_MAX, HeaderLines, HeaderValue,
        ScanWindow, VALUES_MAX, WINDOW, form, wrapped,
    },
};

/// A source of plaintext to search.
pub trait PlaintextSource {
    /// Index of its scratch memory among those of a CPU.
    const SCRATCH: u32;
    /// The probe whose counter is incremented if something cannot be searched.
    const PROBE: Probe;
    /// Whether its programs use loops of any length. Programs without such loops are for kernels
    /// before 5.17, which also reject code that never runs: they find HTTP/1.1 only, and only in a
    /// short head.
    const LOOPS: bool;
    /// Sends a credential that was found.
    fn emit(scratch: &mut SearchScratch, known: &FoundCredential);
    /// Called once the server name is known, or known to be absent.
    fn emit_host(scratch: &mut SearchScratch);
}

/// This CPU's scratch memory. On some kernels another program of the same source can preempt this
/// one: each writes its own mark, and results found under another mark are counted as not read.
#[repr(C)]
pub struct SearchScratch {
    pub mark: u64,
    pub object: StreamKey,
    /// Fingerprint of the server name in the head; 0 if there is none.
    pub host: u64,
    /// The length of that name, whose position in the text is in [`SearchScratch::secret`] while
    /// [`PlaintextSource::emit_host`] runs.
    pub host_len: u64,
    /// Number of values to process, and the mark with which this search began.
    found: u64,
    number: u64,
    /// Scratch space for [`monitor_common::eight::hide_from_verifier`].
    scratch_word: u64,
    /// The fingerprinted credential to be sent.
    held: FoundCredential,
    unwrap: Base64Decoder,
    lines: HeaderLines,
    frames: FrameScan,
    words: LoginScan,
    fields: ResponseScan,
    values: [HeaderValue; VALUES_MAX],
    /// The current value in [`SearchScratch::text`], and then the secret in it.
    pub secret: HeaderValue,
    /// Bytes of the write. Later code reads it from here: in a register the verifier would track
    /// every possible value.
    pub len: u64,
    /// Bytes of the window that were copied, and how many of them were carried over.
    copied: u64,
    carried: u64,
    /// No text since the last wipe was longer than this.
    texts: u64,
    decoder: HuffmanDecoder,
    print: FingerprintBuilder,
    pub presented: PresentedRecord,
    pub clear: PlaintextRecord,
    pub window: ScanWindow,
    pub text: ScanWindow,
}

/// Indexed by [`PlaintextSource::SCRATCH`].
#[map]
static SEARCH_SCRATCH: PerCpuArray<SearchScratch> = PerCpuArray::with_max_entries(3, 0);

/// Index 0: the decoder table for HPACK's Huffman code. Set by the agent before attaching.
#[map]
static HUFFMAN: Array<http2::HuffmanTable> = Array::with_max_entries(1, 0);

/// State of a connection between two writes: whether a head continues, or the position in its
/// HTTP/2 frames. An evicted entry loses what is split between two writes or referenced from the
/// HPACK table.
#[map]
static STREAMS: LruHashMap<StreamKey, StreamState> = LruHashMap::with_max_entries(4096, 0);

/// Lines of a head that were split between two writes. The bytes are overwritten when the rest
/// arrives; the agent removes lines that were never continued.
#[map]
static CARRIED: HashMap<StreamKey, CarriedLine> = HashMap::with_max_entries(128, 0);

/// A line is continued within this time.
const CARRIED_NS: u64 = 30_000_000_000;

/// The first part of a line, padded with zeros.
#[repr(C)]
struct CarriedLine {
    len: u64,
    bytes: [u8; CARRIED_MAX],
}

/// Identifies a TLS object of a process, or a socket (with [`SOCKET`]).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct StreamKey {
    pub address: u64,
    pub pid: u64,
}

/// Used instead of a process.
const SOCKET: u64 = 1 << 32;

impl StreamKey {
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

/// Format of a write: the head of an HTTP/1.1 request, HTTP/2 fields, or one of [`speaks`].
pub const HEAD: u64 = 0;
pub const FIELDS: u64 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
struct StreamState {
    /// Format of the next write.
    format: u64,
    /// Bytes of a frame that are still to come.
    skip: u64,
    /// When a line was split whose first part is in [`CARRIED`]; 0 if none was.
    carried_at: u64,
    /// Entries inserted into the connection's HPACK table.
    inserted: u64,
    /// Credentials in that table.
    known: [FoundCredential; KNOWN_MAX],
    /// The server name in that table: its index and its fingerprint.
    host: [u64; 2],
}

/// Credentials remembered per connection, for references to them.
const KNOWN_MAX: usize = 2;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct FoundCredential {
    /// Its index in the table; 0 if it has none.
    table_index: u64,
    fingerprint: u64,
    /// Fingerprint of the password inside, if there is one.
    inner: u64,
    secret_len: u32,
    name: u32,
    prefix: u32,
    dots: u32,
}

impl SearchScratch {
    /// Whether the write is an HTTP request.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.words.protocol == HEAD || self.words.protocol == FIELDS
    }
}

impl FoundCredential {
    /// Converts it for a record, adding the fingerprint of the server name.
    #[inline(always)]
    pub fn to_record(&self, host: u64) -> PresentedSecret {
        PresentedSecret {
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
        table_index: 0,
        fingerprint: 0,
        inner: 0,
        secret_len: 0,
        name: 0,
        prefix: 0,
        dots: 0,
    };
}

impl StreamState {
    const fn new(format: u64) -> Self {
        Self {
            format,
            host: [0; 2],
            skip: 0,
            carried_at: 0,
            inserted: 0,
            known: [FoundCredential::NONE; KNOWN_MAX],
        }
    }
}

/// The format of a write, and how many bytes to skip at its start.
pub struct WriteFormat {
    pub format: u64,
    pub skip: u64,
}

/// Determines the format of a write from its first eight bytes and from the previous writes of the
/// connection. `second` returns the next eight bytes.
#[inline(always)]
pub fn write_format<S: PlaintextSource>(
    object: StreamKey,
    first: u64,
    len: u64,
    second: impl FnOnce() -> u64,
) -> Option<WriteFormat> {
    // Without `bpf_loop` everything except HTTP/1.1 exceeds the verifier's limit: a declared gap.
    let able = S::LOOPS;
    if able && first == http2::PREFACE && len >= http2::PREFACE_LEN {
        let _ = STREAMS.insert(object, StreamState::new(FIELDS), 0);
        return Some(WriteFormat {
            format: FIELDS,
            skip: http2::PREFACE_LEN,
        });
    }
    // A very short write is judged by its first byte.
    let first = if len < 8 {
        scan::single_byte_word(first as u8)
    } else {
        first
    };
    let mut speaks = HEAD;
    let mut skip = 0;
    if let Some(stream) = STREAMS.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map; a TLS object or socket is written to by one thread
        // at a time.
        unsafe {
            speaks = (*stream).format;
            if speaks == FIELDS {
                skip = (*stream).skip;
                if skip >= len {
                    (*stream).skip = skip - len;
                    return None;
                }
                // No frame is that long: the address belonged to another object before.
                if skip == 0 && scan::begins_with_method(first) {
                    speaks = HEAD;
                }
                (*stream).skip = 0;
            }
            // The start of a request ends whatever was split before it.
            if len >= 8 && scan::begins_with_method(first) {
                (*stream).carried_at = 0;
            }
            // What looked like the head of a request may have been a line of something else.
            if able && speaks == HEAD && (*stream).carried_at == 0 {
                speaks = login::detect_protocol(first, second);
            }
        }
    } else if able {
        speaks = login::detect_protocol(first, second);
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
    Some(WriteFormat {
        format: speaks,
        skip,
    })
}

/// Starts a search of a write of `len` bytes, of which the caller copies at most [`WINDOW`] to the
/// window; returns the mark of this search. A separate function, because many paths lead here:
/// after it the verifier sees only one.
#[inline(never)]
pub fn begin_search(scratch: &mut SearchScratch, object: StreamKey, len: u64, speaks: u64) -> u64 {
    let number = boot_time_ns();
    scratch.mark = number;
    scratch.object = object;
    scratch.host = 0;
    scratch.host_len = 0;
    scratch.len = len;
    let len = bounded(len);
    scratch.copied = len;
    scratch.carried = 0;
    scratch.lines = HeaderLines {
        end: len,
        ..HeaderLines::default()
    };
    scratch.frames = FrameScan {
        end: len,
        ..FrameScan::default()
    };
    scratch.words = LoginScan::new(len, speaks);
    scratch.fields = ResponseScan {
        end: len,
        ..ResponseScan::default()
    };
    number
}

/// Restores the first part of a line that the connection's last write split to the front of the
/// window; returns its length, which is less than [`CARRIED_MAX`]. Called after [`begin_search`]
/// and followed by [`continue_after_carried`].
#[inline(never)]
pub fn restore_carried(scratch: &mut SearchScratch) -> u64 {
    let object = scratch.object;
    let Some(stream) = STREAMS.get_ptr_mut(object) else {
        return 0;
    };
    // SAFETY: the pointer is into the map.
    let cut = unsafe { core::mem::replace(&mut (*stream).carried_at, 0) };
    if cut == 0 || scratch.words.protocol != HEAD {
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

/// The window now holds the carried bytes and at most [`AFTER_CARRIED`] of the `len` bytes of the
/// write.
#[inline(always)]
pub fn continue_after_carried(scratch: &mut SearchScratch, len: u64) {
    let end = scratch.carried + after_carried(len);
    scratch.copied = end;
    scratch.lines.end = end;
}

/// Bytes of a write that are copied after carried bytes, if there are any.
pub const AFTER_CARRIED: u32 = (WINDOW - CARRIED_MAX) as u32;

#[inline(always)]
pub fn after_carried(len: u64) -> u64 {
    if len > u64::from(AFTER_CARRIED) {
        u64::from(AFTER_CARRIED)
    } else {
        len
    }
}

/// Saves the beginning of a line that the next write continues; returns `true` if there is one.
#[inline(always)]
fn save_carried<S: PlaintextSource>(scratch: &mut SearchScratch) -> bool {
    let HeaderLines {
        line_start: begin,
        end,
        in_line: inside,
        ..
    } = scratch.lines;
    if inside == 0 || begin >= end {
        return false;
    }
    let len = end - begin;
    if len >= CARRIED_MAX as u64 {
        count(S::PROBE, Stage::Read);
        return false;
    }
    // The text is unused since it was wiped, and is wiped again, because later code assumes that it
    // is. SAFETY: the text has room for a CarriedLine and consists of bytes; the helper checks the
    // source.
    unsafe {
        let place: *mut CarriedLine = scratch.text.as_mut_ptr().cast();
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

/// Searches the window; returns the number of values found.
#[inline(always)]
pub fn search<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    let speaks = scratch.words.protocol;
    if speaks == HEAD || !S::LOOPS {
        scan_lines::<S>(scratch)
    } else if speaks == FIELDS {
        scan_frames::<S>(scratch)
    } else {
        scan_login::<S>(scratch, speaks)
    }
}

/// Maximum tokens of a response that are scanned.
const TOKENS_MAX: u32 = 1024;

/// Searches the window for fields with credentials; returns the number of values found.
#[inline(always)]
pub fn fields<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    repeat_step(TOKENS_MAX, next_piece::<S>, scratch);
    end_fields::<S>()
}

#[inline(never)]
fn end_fields<S: PlaintextSource>() -> u64 {
    scratch::<S>().map_or(0, |scratch| scratch.fields.found)
}

extern "C" fn next_piece<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!piece(scratch))
}

#[inline(never)]
fn piece(scratch: &mut SearchScratch) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
        return false;
    };
    answer::step(
        &scratch.window,
        &mut scratch.fields,
        &mut scratch.values,
        |key| header(key, bloom),
    )
}

/// Takes the whole body of a response as the only value; returns 0 if the body is still to come.
#[inline(always)]
pub fn take_whole_body<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    repeat_step(LINES_MAX, next_line::<S>, scratch);
    end_whole_body::<S>()
}

#[inline(never)]
fn end_whole_body<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
    let end = scratch.lines.end;
    let at = if scan::word_at(&scratch.window, 0) as u32 != HTTP {
        0
    } else if scratch.lines.ended != 0 {
        let line = scratch.lines.at;
        line + 1 + u64::from(scan::word_at(&scratch.window, line) as u8 == b'\r')
    } else {
        end
    };
    scratch.values[0] = HeaderValue {
        at,
        len: end.saturating_sub(at),
        rule: answer::RESPONSE_FIELD | answer::WHOLE_BODY,
        ..HeaderValue::default()
    };
    u64::from(at < end)
}

/// Values of one head that are fingerprinted without `bpf_loop`: the verifier walks every word of
/// each.
const UNROLLED_VALUES: usize = 2;

/// Fingerprints the server name and the first `found` values, and sends them.
#[inline(always)]
pub fn emit_values<S: PlaintextSource>(scratch: &mut SearchScratch, found: u64, number: u64) {
    scratch.number = number;
    if S::LOOPS {
        scratch.found = found;
        repeat_step(1 + 2 * VALUES_MAX as u32, next_value::<S>, scratch);
        return;
    }
    S::emit_host(scratch);
    for i in 0..UNROLLED_VALUES {
        if i as u64 >= found {
            break;
        }
        emit_one::<S>(scratch, i);
    }
}

extern "C" fn next_value<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    if i > 2 * scratch.found {
        return 1;
    }
    // Prevents specialisation, so that the verifier sees identical iterations.
    value::<S>(scratch, core::hint::black_box(i));
    0
}

/// One iteration: the server name first, then two per value: the value as sent and what is wrapped
/// in it. The same code handles them all, so the verifier walks it once.
#[inline(always)]
fn value<S: PlaintextSource>(scratch: &mut SearchScratch, i: u64) {
    let ready = load_value(scratch, i);
    if !ready {
        return end_turn::<S>(scratch, i, false);
    }
    match scratch.secret.form {
        form::HUFFMAN => decode::<S>(scratch),
        WRAPPED => decode_base64::<S>(scratch),
        _ => copy_value(scratch),
    }
    let found = trim_value(scratch, i);
    if found {
        fingerprint_words::<S>(scratch);
    }
    end_turn::<S>(scratch, i, found);
}

/// A form of a value in the text that still has to be decoded.
const WRAPPED: u64 = 4;

/// Whether an iteration is about what is wrapped in the value of the previous one.
#[inline(always)]
fn is_inner(i: u64) -> bool {
    i > 0 && i & 1 == 0
}

/// Loads the value of an iteration; returns `false` if there is nothing to do.
#[inline(never)]
fn load_value(scratch: &mut SearchScratch, i: u64) -> bool {
    if i == 0 {
        return take_host(scratch);
    }
    if is_inner(i) {
        scratch.secret.form = WRAPPED;
        return scratch.held.fingerprint != 0 && scratch.secret.wrapped != wrapped::NOT;
    }
    scratch.secret = scratch.values[(i as usize >> 1) & (VALUES_MAX - 1)];
    scratch.held = FoundCredential::NONE;
    if scratch.secret.form == form::INDEXED {
        emit_referenced(scratch);
        return false;
    }
    true
}

/// Finds the secret, the server name, or the password in the text.
#[inline(never)]
fn trim_value(scratch: &mut SearchScratch, i: u64) -> bool {
    if i == 0 {
        trim_host(scratch);
    } else if is_inner(i) {
        scratch.secret = scan::basic_password(&scratch.text, scratch.unwrap.len, scratch.secret);
    } else if scratch.secret.rule < scan::BARE_VALUE {
        return locate(scratch);
    } else {
        scratch.secret.at = 0;
    }
    scratch.secret.len > 0
}

#[inline(never)]
fn end_turn<S: PlaintextSource>(scratch: &mut SearchScratch, i: u64, printed: bool) {
    if i == 0 {
        end_host::<S>(scratch, printed);
    } else if is_inner(i) {
        if printed {
            scratch.held.inner = fingerprint_of(scratch, scratch.secret);
        }
        emit_held::<S>(scratch);
    } else if printed {
        hold_outer(scratch);
    }
}

/// Decodes base64.
#[inline(always)]
fn decode_base64<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.unwrap = Base64Decoder::default();
    repeat_step(HUFFMAN_MAX / 4, next_four::<S>, scratch);
}

extern "C" fn next_four<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    let secret = scratch.secret;
    i64::from(!scratch.unwrap.step(&mut scratch.text, secret, i))
}

/// Loads the value that holds the server name; returns `false` if there is none, or if it is
/// already known.
#[inline(always)]
fn take_host(scratch: &mut SearchScratch) -> bool {
    let value = if scratch.lines.host.len != 0 {
        scratch.lines.host
    } else {
        scratch.frames.host
    };
    scratch.secret = value;
    // The target of a CONNECT is not the name of the proxy itself.
    const CONNECT: u64 = u64::from_le_bytes(*b"CONNECT ");
    if scan::word_at(&scratch.window, 0) == CONNECT {
        return false;
    }
    if value.form == form::INDEXED
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let [entry, fingerprint] = unsafe { (*stream).host };
        if entry == value.table_index {
            scratch.host = fingerprint;
        }
    }
    value.len != 0
}

#[inline(always)]
fn trim_host(scratch: &mut SearchScratch) {
    let value = HeaderValue {
        at: 0,
        ..scratch.secret
    };
    scan::lowercase_front(&mut scratch.text);
    scratch.secret = scan::host_name(&scratch.text, value, &mut scratch.scratch_word);
    without_address(scratch);
}

/// A separate function, so that the verifier arrives here once, however the name ended.
#[inline(never)]
fn without_address(scratch: &mut SearchScratch) {
    if scan::is_address(&scratch.text, scratch.secret) {
        scratch.secret.len = 0;
    }
}

/// The server name is known and in the text, or there is none.
#[inline(always)]
fn end_host<S: PlaintextSource>(scratch: &mut SearchScratch, printed: bool) {
    let secret = scratch.secret;
    if !printed || secret.len > HOST_MAX as u64 {
        S::emit_host(scratch);
        return;
    }
    let fingerprint = fingerprint_of(scratch, secret);
    scratch.host = fingerprint;
    scratch.host_len = secret.len;
    S::emit_host(scratch);
    if secret.table_index != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        unsafe { (*stream).host = [secret.table_index, fingerprint] };
    }
}

/// Scans the words of a login.
#[inline(always)]
fn scan_login<S: PlaintextSource>(scratch: &mut SearchScratch, speaks: u64) -> u64 {
    match speaks {
        protocol::POSTGRES => postgres(scratch),
        protocol::MYSQL => mysql(scratch),
        protocol::MQTT => mqtt(scratch),
        protocol::LDAP => ldap(scratch),
        _ => repeat_step(LOGIN_WORDS_MAX, next_word_of_login::<S>, scratch),
    }
    end_login::<S>()
}

/// Maximum words, or pieces of long ones, in a login.
const LOGIN_WORDS_MAX: u32 = 64;

extern "C" fn next_word_of_login<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word_of_login(scratch))
}

#[inline(never)]
fn word_of_login(scratch: &mut SearchScratch) -> bool {
    login::step(&scratch.window, &mut scratch.words)
}

#[inline(never)]
fn postgres(scratch: &mut SearchScratch) {
    login::postgres(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mysql(scratch: &mut SearchScratch) {
    login::mysql(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn mqtt(scratch: &mut SearchScratch) {
    login::mqtt(&scratch.window, &mut scratch.words);
}

#[inline(never)]
fn ldap(scratch: &mut SearchScratch) {
    login::ldap(&scratch.window, &mut scratch.words);
}

/// Takes the secret of a login as the only value, and remembers the format of the next write.
#[inline(never)]
fn end_login<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    let words = &scratch.words;
    if words.next == 0 || words.secret.len != 0 {
        let _ = STREAMS.remove(scratch.object);
    } else {
        let _ = STREAMS.insert(scratch.object, StreamState::new(words.next), 0);
    }
    scratch.values[0] = words.secret;
    u64::from(words.secret.len != 0)
}

/// Forgets everything about a TLS object, because another may get the same address.
#[inline(always)]
pub fn forget_object(object: StreamKey) {
    let _ = STREAMS.remove(object);
    if let Some(carried) = CARRIED.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map.
        unsafe { wipe_whole(&raw mut (*carried).bytes) };
        let _ = CARRIED.remove(object);
    }
}

/// Whether the next write of the connection is searched regardless of how it begins.
#[inline(always)]
pub fn expects_more(object: StreamKey) -> bool {
    STREAMS.get_ptr(object).is_some()
}

/// Overwrites the copy of a write, and ends the search.
#[inline(never)]
pub fn end_search<S: PlaintextSource>() {
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
pub fn scratch<S: PlaintextSource>() -> Option<&'static mut SearchScratch> {
    // SAFETY: the scratch belongs to this CPU; concurrent use is detected by its mark.
    SEARCH_SCRATCH
        .get_ptr_mut(S::SCRATCH)
        .map(|pointer| unsafe { &mut *pointer })
}

/// Runs a step that works on the scratch. The step looks the scratch up by itself; this signature
/// only tells the compiler that it changes, so that it does not assume the old contents.
#[inline(always)]
fn repeat_step(
    times: u32,
    step: extern "C" fn(u64, *mut c_void) -> i64,
    scratch: &mut SearchScratch,
) {
    repeat(times, step, &mut core::ptr::from_mut(scratch));
}

/// Maximum lines, or pieces of long ones, scanned in one write.
const LINES_MAX: u32 = 256;
/// As [`LINES`], without `bpf_loop`.
const UNROLLED_LINES: u32 = 24;

/// Scans the head of an HTTP/1.1 request; returns the number of values found.
#[inline(always)]
fn scan_lines<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    if S::LOOPS {
        repeat_step(LINES_MAX, next_line::<S>, scratch);
    } else {
        for _ in 0..UNROLLED_LINES {
            if !line(scratch) {
                break;
            }
        }
    }
    end_lines::<S>()
}

/// The rest of a head arrives with the next write.
#[inline(never)]
fn end_lines<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    if scratch.lines.ended == 0 && scratch.copied == scratch.carried + scratch.len {
        let mut stream = StreamState::new(HEAD);
        if S::LOOPS && save_carried::<S>(scratch) {
            stream.carried_at = scratch.mark;
        }
        let _ = STREAMS.insert(scratch.object, stream, 0);
    } else {
        let _ = STREAMS.remove(scratch.object);
    }
    scratch.lines.found
}

/// Maximum frames and fields scanned in one write.
const FRAME_STEPS_MAX: u32 = 512;

/// Scans the HTTP/2 frames of a write; returns the number of values found.
#[inline(always)]
fn scan_frames<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
    if let Some(stream) = STREAMS.get_ptr_mut(scratch.object) {
        // SAFETY: the pointer is into the map.
        scratch.frames.inserted = unsafe { (*stream).inserted };
    }
    repeat_step(FRAME_STEPS_MAX, next_field::<S>, scratch);
    end_frames::<S>()
}

/// Remembers the offset at which the next write begins.
#[inline(never)]
fn end_frames<S: PlaintextSource>() -> u64 {
    let Some(scratch) = scratch::<S>() else {
        return 0;
    };
    let (frames, len) = (&scratch.frames, scratch.len);
    if let Some(stream) = STREAMS.get_ptr_mut(scratch.object) {
        if frames.out_of_sync != 0 || frames.block_end != 0 || frames.at < len {
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

extern "C" fn next_field<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!field(scratch))
}

#[inline(never)]
fn field(scratch: &mut SearchScratch) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
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
                .find(|known| known.table_index == entry)
                .map(|known| known.name)
        },
    )
}

/// The rule for a header, by its key.
#[inline(always)]
fn header(key: u64, bloom: BloomFilter) -> Option<u32> {
    if !bloom.contains(key) {
        return None;
    }
    rule(key)
}

extern "C" fn next_line<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!line(scratch))
}

#[inline(never)]
fn line(scratch: &mut SearchScratch) -> bool {
    let Some(bloom) = BloomFilter::rules() else {
        return false;
    };
    scan::scan_line(
        &scratch.window,
        &mut scratch.lines,
        &mut scratch.values,
        |key| header(key, bloom),
    )
}

/// Fingerprints the `i`th value and sends its record, without `bpf_loop`.
#[inline(never)]
fn emit_one<S: PlaintextSource>(scratch: &mut SearchScratch, i: usize) {
    scratch.secret = scratch.values[i & (VALUES_MAX - 1)];
    copy_value(scratch);
    if locate(scratch) {
        fingerprint_words::<S>(scratch);
        hold_outer(scratch);
        emit_held::<S>(scratch);
    }
}

/// Hashes the full words of the secret.
#[inline(always)]
pub fn fingerprint_words<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.print = FingerprintBuilder::new(secret_key());
    if S::LOOPS {
        repeat_step(WORDS, next_word::<S>, scratch);
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
fn copy_value(scratch: &mut SearchScratch) {
    let HeaderValue { at, len, .. } = scratch.secret;
    let len = if len > WINDOW as u64 {
        WINDOW as u64
    } else {
        len
    };
    // SAFETY: at most WINDOW bytes, and the text has SLACK bytes more; the helper checks the
    // source.
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

/// Maximum bytes of a Huffman-coded value that are decoded.
const HUFFMAN_MAX: u32 = 4096;

/// Decodes the value to the front of the text.
#[inline(always)]
fn decode<S: PlaintextSource>(scratch: &mut SearchScratch) {
    scratch.decoder = HuffmanDecoder::default();
    repeat_step(HUFFMAN_MAX, next_byte::<S>, scratch);
    scratch.secret.len = scratch.decoder.len;
    scratch.texts |= scratch.decoder.len;
}

extern "C" fn next_byte<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!byte(scratch, i))
}

#[inline(always)]
fn byte(scratch: &mut SearchScratch, i: u64) -> bool {
    let Some(table) = HUFFMAN.get(0) else {
        return false;
    };
    scratch
        .decoder
        .step(&scratch.window, scratch.secret, i, table, &mut scratch.text)
}

/// Finds the secret in the text.
#[inline(never)]
fn locate(scratch: &mut SearchScratch) -> bool {
    let value = HeaderValue {
        at: 0,
        ..scratch.secret
    };
    let (secret, _) = scan::find_secret(&scratch.text, value, &mut scratch.scratch_word);
    scratch.secret = secret;
    secret.len > 0
}

const WORDS: u32 = MAX_WORDS as u32 + 1;

extern "C" fn next_word<S: PlaintextSource>(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!word(scratch, i))
}

#[inline(always)]
fn word(scratch: &mut SearchScratch, i: u64) -> bool {
    let secret = scratch.secret;
    scratch.print.step(&scratch.text, secret, i)
}

/// Keeps the fingerprint until what is wrapped in the value is known.
#[inline(always)]
fn hold_outer(scratch: &mut SearchScratch) {
    let Some(bloom) = BloomFilter::rules() else {
        return;
    };
    let secret = scratch.secret;
    let (fingerprint, dots) = scratch.print.finish(&scratch.text, secret);
    let (prefix, _) = value_prefix_rule(scan::word_at(&scratch.text, secret.at), bloom);
    scratch.held = FoundCredential {
        table_index: secret.table_index,
        fingerprint,
        inner: 0,
        secret_len: secret.len as u32,
        name: secret.rule as u32,
        prefix,
        dots: dots as u32,
    };
}

/// Emits a credential referenced from the connection's HPACK table.
#[inline(always)]
fn emit_referenced(scratch: &mut SearchScratch) {
    let Some(stream) = STREAMS.get_ptr_mut(scratch.object) else {
        return;
    };
    // SAFETY: the pointer is into the map.
    let known = unsafe { (*stream).known };
    let entry = scratch.secret.table_index;
    if known[0].table_index == entry {
        scratch.held = known[0];
    } else if known[1].table_index == entry {
        scratch.held = known[1];
    }
    // It is in the table already.
    scratch.held.table_index = 0;
    scratch.secret.wrapped = wrapped::NOT;
}

/// Sends the held credential, and remembers it if it is in the connection's HPACK table.
#[inline(always)]
fn emit_held<S: PlaintextSource>(scratch: &mut SearchScratch) {
    let held = scratch.held;
    if held.fingerprint == 0 {
        return;
    }
    if !owns_scratch(scratch, scratch.number) {
        // Another program used the scratch in between: its results are not valid either.
        scratch.mark = 0;
        count(S::PROBE, Stage::Read);
        return;
    }
    if held.table_index != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let place = unsafe { &mut (*stream).known };
        place[1] = place[0];
        place[0] = held;
    }
    S::emit(scratch, &held);
}

/// Whether this search still owns the scratch.
#[inline(always)]
pub fn owns_scratch(scratch: &SearchScratch, number: u64) -> bool {
    // SAFETY: the scratch belongs to this CPU; volatile, as another program may have written it.
    unsafe { (&raw const scratch.mark).read_volatile() == number }
}

/// The fingerprint of the words hashed by [`fingerprint_words`].
#[inline(always)]
pub fn fingerprint_of(scratch: &SearchScratch, secret: HeaderValue) -> u64 {
    scratch.print.finish(&scratch.text, secret).0
}
