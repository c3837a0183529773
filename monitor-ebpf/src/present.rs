//! Credentials in the bytes that a process hands to its TLS library, fingerprinted where they are.
//!
//! A write is copied to a buffer in the kernel, searched there and forgotten: no record has a place
//! for it. Which socket it went out on is told by the next program that sees it, on its way out.

use crate::{
    environ::{first_bytes, secret_key},
    kernel::{can_repeat, now, repeat},
    maps::{Bloom, CREDENTIAL_RING, count, current_cgroup, is_agent, rule, send, wipe},
    task::{Hooked, current_pid, fill_header},
};
use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str,
    },
    macros::{map, uprobe, uretprobe},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::{ProbeContext, RetProbeContext},
};
use core::ffi::c_void;
use monitor_common::{
    fingerprint::MAX_WORDS,
    http2::{self, Decoder, Frames},
    record::{Presented, Probe, Stage, Tied, kind},
    scan::{self, Lines, Print, VALUES, Value, WINDOW, Window, form},
};

/// This CPU's place to work. A program of this kind can be preempted by another on some kernels:
/// each puts its own mark, and what is found under another's mark is counted as not read.
#[repr(C)]
struct Scratch {
    mark: u64,
    object: Object,
    lines: Lines,
    frames: Frames,
    values: [Value; VALUES],
    /// The value at hand, in [`Scratch::text`], and then the secret in it.
    secret: Value,
    /// No text since the last wipe was longer than this.
    texts: u64,
    decoder: Decoder,
    print: Print,
    record: Presented,
    window: Window,
    text: Window,
}

#[map]
static PRESENT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Index 0: the decoder of HPACK's Huffman code. Set by the agent before attachment.
#[map]
static HUFFMAN: Array<http2::Table> = Array::with_max_entries(1, 0);

/// What has to be known of a connection when its next write comes: that the head of a request goes
/// on, or where its frames stand. One that is evicted costs what is cut between two writes, and
/// what is only referred to.
#[map]
static STREAMS: LruHashMap<Object, Stream> = LruHashMap::with_max_entries(4096, 0);

/// A TLS object of a process.
#[derive(Clone, Copy)]
#[repr(C)]
struct Object {
    address: u64,
    pid: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Stream {
    /// 1 where it speaks HTTP/2.
    http2: u64,
    /// Bytes of a frame that are still to come.
    skip: u64,
    /// Fields that the connection's table was given.
    inserted: u64,
    /// Credentials in that table.
    known: [Known; KNOWN],
}

/// Credentials that are remembered of a connection, for references to them.
const KNOWN: usize = 2;

#[derive(Clone, Copy)]
#[repr(C)]
struct Known {
    /// Its number in the table; 0 where there is none.
    entry: u64,
    fingerprint: u64,
    secret_len: u32,
    name: u32,
    prefix: u32,
    dots: u32,
}

impl Stream {
    const fn new(http2: u64) -> Self {
        Self {
            http2,
            skip: 0,
            inserted: 0,
            known: [Known {
                entry: 0,
                fingerprint: 0,
                secret_len: 0,
                name: 0,
                prefix: 0,
                dots: 0,
            }; KNOWN],
        }
    }
}

/// Writes with a credential that are still on their way to a socket, by the task that makes them.
/// The agent sweeps what never got there.
#[map]
static WRITES: HashMap<u64, Write> = HashMap::with_max_entries(4096, 0);

/// Such a write.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Write {
    /// Its number, which is also its time.
    pub number: u64,
    /// Bytes in it.
    pub len: u64,
    pub object: u64,
}

/// A function that begins anew does so within this time.
const AGAIN_NS: u64 = 1_000_000;

impl Write {
    /// Whether it is this write, seen a second time.
    #[inline(always)]
    fn is_again(&self, write: &Self) -> bool {
        self.object == write.object
            && self.len == write.len
            && write.number.wrapping_sub(self.number) < AGAIN_NS
    }
}

/// Index 0: whether there may be any in [`WRITES`], so that a packet need not look there.
#[map]
static WRITING: Array<u64> = Array::with_max_entries(1, 0);

/// Hook: uprobe at functions `(object, bytes, length)`: `SSL_write`, `SSL_write_ex` and
/// `gnutls_record_send`. First kernel: 5.10 and before. Fallback: none, a declared gap.
/// Missed: a header that is cut between two writes; bytes behind the first 8 KiB of a write.
#[uprobe]
pub fn present_write(ctx: ProbeContext) -> u32 {
    if let (Some(object), Some(bytes), Some(len)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) {
        written(object, bytes, len);
    }
    0
}

/// Hook: uprobe at `crypto/tls.(*Conn).Write` of Go programs since 1.18, which pass arguments in
/// registers of their own. First kernel: 5.10 and before. A function of Go begins anew when its
/// stack has grown: the same write of the same moment is one.
#[uprobe]
pub fn present_go(ctx: ProbeContext) -> u32 {
    #[cfg(bpf_target_arch = "x86_64")]
    {
        // SAFETY: the registers are valid for the run of the program; the kernel checks the access.
        let (object, bytes, len) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rbx, (*ctx.regs).rcx) };
        written(object, bytes, len);
    }
    #[cfg(not(bpf_target_arch = "x86_64"))]
    if let (Some(object), Some(bytes), Some(len)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) {
        written(object, bytes, len);
    }
    0
}

#[inline(always)]
fn written(address: u64, bytes: u64, len: u64) {
    // An int where the library's length is one: what is above it is not set.
    let len = len & 0xffff_ffff;
    if len == 0 || len > i32::MAX as u64 {
        return;
    }
    let object = Object {
        address,
        pid: u64::from(current_pid()),
    };
    let mut first = 0u64;
    // SAFETY: the destination is eight bytes on the stack; the helper checks the source, of which
    // a shorter write has fewer: what is behind it decides nothing.
    let read = unsafe { bpf_probe_read_user((&raw mut first).cast(), 8, bytes as *const c_void) };
    if read != 0 {
        if len >= 8 {
            count(Probe::Present, Stage::Read);
        }
        return;
    }
    // Without `bpf_loop` HTTP/2 is more than the verifier would walk: a declared gap.
    let can_http2 = can_repeat();
    let mut skip = 0;
    let http2 = match STREAMS.get_ptr_mut(object) {
        _ if can_http2 && first == http2::PREFACE && len >= http2::PREFACE_LEN => {
            let _ = STREAMS.insert(object, Stream::new(1), 0);
            skip = http2::PREFACE_LEN;
            true
        }
        // SAFETY: the pointer is into the map; a TLS object is written to by one thread at a time.
        Some(stream) if can_http2 && unsafe { (*stream).http2 } != 0 => unsafe {
            skip = (*stream).skip;
            if skip >= len {
                (*stream).skip = skip - len;
                return;
            }
            (*stream).skip = 0;
            true
        },
        Some(_) => false,
        None if scan::may_begin_request(first) => false,
        None if can_http2 && http2::may_begin_fields(first) => true,
        None => return,
    };
    if is_agent(object.pid as u32) {
        return;
    }
    look(object, bytes.wrapping_add(skip), len - skip, http2);
}

/// Hook: uretprobe at the same functions, where they are in a program and not in a library: such a
/// program may hand over the same bytes again and again until the handshake has ended. First
/// kernel: 5.10 and before.
#[uretprobe]
pub fn present_written(ctx: RetProbeContext) -> u32 {
    let result: i32 = ctx.ret::<u64>() as i32;
    if result <= 0
        && let Some(under_way) = UnderWay::now()
    {
        under_way.end(kind::WITHDRAWN, 0, current_cgroup());
    }
    0
}

/// The write of the current task that is on its way to a socket.
pub struct UnderWay {
    task: u64,
    pub write: Write,
}

impl UnderWay {
    #[inline(always)]
    pub fn now() -> Option<Self> {
        if WRITING.get(0).copied().unwrap_or(0) == 0 {
            return None;
        }
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        // SAFETY: the value is copied at once.
        let write = unsafe { WRITES.get(task) }.copied()?;
        Some(Self { task, write })
    }

    /// Tells what became of it, and forgets it.
    #[inline(always)]
    pub fn end(self, kind: u32, cookie: u64, cgroup: u64) {
        let _ = WRITES.remove(self.task);
        let record = Tied {
            kind,
            reserved: 0,
            time: now(),
            write: self.write.number,
            cookie,
        };
        // SAFETY: a plain record on the stack.
        unsafe {
            send(
                &CREDENTIAL_RING,
                Probe::Present,
                cgroup,
                core::ptr::from_ref(&record).cast(),
                size_of::<Tied>() as u64,
            );
        }
    }
}

/// Fingerprints of the server names that programs gave their TLS objects.
#[map]
static SERVERS: LruHashMap<Object, u64> = LruHashMap::with_max_entries(4096, 0);

const SSL_CTRL_SET_TLSEXT_HOSTNAME: u64 = 55;
/// Bytes of a server name.
const NAME_MAX: u32 = 256;

/// Hook: uprobe at `SSL_ctrl(object, 55, 0, name)`, which is what `SSL_set_tlsext_host_name` is
/// compiled to. First kernel: 5.10 and before. It tells connections apart whose bytes leave later,
/// from a buffer of the program's own.
#[uprobe]
pub fn present_server(ctx: ProbeContext) -> u32 {
    let (Some(address), Some(command), Some(name)) = (ctx.arg(0), ctx.arg(1), ctx.arg(3)) else {
        return 0;
    };
    let command: u64 = command;
    if command & 0xffff_ffff == SSL_CTRL_SET_TLSEXT_HOSTNAME {
        server(address, name);
    }
    0
}

#[inline(always)]
fn server(address: u64, name: u64) {
    let Some(scratch) = scratch() else { return };
    let number = now();
    scratch.mark = number;
    scratch.object = Object {
        address,
        pid: u64::from(current_pid()),
    };
    // At an offset: a string read to the first byte of a per-CPU buffer can fault on some kernels
    // from 5.8 to 6.1. SAFETY: the text holds more; the helper checks the source.
    let read = unsafe {
        bpf_probe_read_user_str(
            scratch.text.as_mut_ptr().cast(),
            NAME_MAX,
            name as *const c_void,
        )
    };
    if read < 2 {
        scratch.mark = 0;
        return;
    }
    scratch.secret = Value {
        len: (read as u64 - 1) & u64::from(NAME_MAX - 1),
        ..Value::default()
    };
    print(scratch);
    named(scratch, number);
}

/// Remembers the fingerprint of the name in the text.
#[inline(never)]
fn named(scratch: &mut Scratch, number: u64) {
    let secret = scratch.secret;
    let (fingerprint, _) = scratch.print.end(&scratch.text, secret);
    // SAFETY: as in `show`.
    if unsafe { (&raw const scratch.mark).read_volatile() } == number {
        let _ = SERVERS.insert(scratch.object, fingerprint, 0);
    }
    scratch.mark = 0;
}

/// Looks for credentials in `len` bytes.
#[inline(always)]
fn look(object: Object, bytes: u64, len: u64, http2: bool) {
    let Some(scratch) = scratch() else { return };
    let number = now();
    scratch.mark = number;
    scratch.object = object;
    if !copy(scratch, bytes, len) {
        scratch.mark = 0;
        count(Probe::Present, Stage::Read);
        return;
    }
    let found = if http2 && can_repeat() {
        frames(scratch, len)
    } else {
        lines(scratch, len)
    };
    if found > 0 {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        // SAFETY: the value is copied at once.
        let before = unsafe { WRITES.get(task) }.copied();
        let write = Write {
            number,
            len,
            object: object.address,
        };
        if before.is_some_and(|before| before.is_again(&write)) {
            forget();
            return;
        }
        let _ = WRITES.insert(task, write, 0);
        let _ = WRITING.set(0, 1, 0);
        for i in 0..VALUES {
            if i as u64 >= found {
                break;
            }
            tell(scratch, i, number);
        }
    }
    forget();
}

/// Overwrites the copy of a write, and ends the use of the scratch.
#[inline(never)]
fn forget() {
    let Some(scratch) = scratch() else { return };
    let (window, text) = (scratch.lines.end, scratch.texts);
    wipe(scratch.window.as_mut_ptr(), window);
    wipe(scratch.text.as_mut_ptr(), text);
    scratch.texts = 0;
    scratch.mark = 0;
}

#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the scratch is this CPU's own, and what happens where two use it at once is told by
    // its mark.
    PRESENT_SCRATCH
        .get_ptr_mut(0)
        .map(|pointer| unsafe { &mut *pointer })
}

/// Copies a write to the window. A function of its own, as all that follow: what the verifier
/// knows at its end is forgotten.
#[inline(never)]
fn copy(scratch: &mut Scratch, bytes: u64, len: u64) -> bool {
    let len = if len > WINDOW as u64 {
        WINDOW as u64
    } else {
        len
    };
    scratch.lines = Lines {
        end: len,
        ..Lines::default()
    };
    scratch.frames = Frames {
        end: len,
        ..Frames::default()
    };
    // SAFETY: at most WINDOW bytes, and the window has SLACK more; the helper checks the source.
    unsafe {
        bpf_probe_read_user(
            scratch.window.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            bytes as *const c_void,
        ) == 0
    }
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
fn lines(scratch: &mut Scratch, len: u64) -> u64 {
    if can_repeat() {
        each(LINES, next_line, scratch);
    } else {
        for _ in 0..FEW_LINES {
            if !line(scratch) {
                break;
            }
        }
    }
    end_lines(len)
}

/// What is left of a head comes with the next write.
#[inline(never)]
fn end_lines(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    if scratch.lines.over == 0 && len <= WINDOW as u64 {
        let _ = STREAMS.insert(scratch.object, Stream::new(0), 0);
    } else {
        let _ = STREAMS.remove(scratch.object);
    }
    scratch.lines.found
}

/// Frames and fields that are walked over in one write.
const FIELDS: u32 = 512;

/// Walks the frames of a write; gives how many values there are to look at.
#[inline(always)]
fn frames(scratch: &mut Scratch, len: u64) -> u64 {
    if let Some(stream) = STREAMS.get_ptr_mut(scratch.object) {
        // SAFETY: the pointer is into the map.
        scratch.frames.inserted = unsafe { (*stream).inserted };
    }
    each(FIELDS, next_field, scratch);
    end_frames(len)
}

/// Remembers where the next write begins.
#[inline(never)]
fn end_frames(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let frames = &scratch.frames;
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

extern "C" fn next_field(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
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
            let known = unsafe { &(*stream).known };
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

extern "C" fn next_line(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
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

/// Fingerprints the `i`th value and sends its record.
#[inline(never)]
fn tell(scratch: &mut Scratch, i: usize, number: u64) {
    let value = scratch.values[i & (VALUES - 1)];
    scratch.secret = value;
    if can_repeat() && value.form == form::REFERRED {
        again(scratch, number);
        return;
    }
    if can_repeat() && value.form == form::CODED {
        decode(scratch);
    } else {
        bring(scratch);
    }
    if !locate(scratch) {
        return;
    }
    print(scratch);
    report(scratch, number);
}

/// Takes in the whole words of the secret.
#[inline(always)]
fn print(scratch: &mut Scratch) {
    scratch.print = Print::new(secret_key());
    if can_repeat() {
        each(WORDS, next_word, scratch);
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
fn decode(scratch: &mut Scratch) {
    scratch.decoder = Decoder::default();
    each(CODED, next_byte, scratch);
    scratch.secret.len = scratch.decoder.len;
    scratch.texts |= scratch.decoder.len;
}

extern "C" fn next_byte(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
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
    let (secret, _) = scan::secret(&scratch.text, value);
    scratch.secret = secret;
    secret.len > 0
}

const WORDS: u32 = MAX_WORDS as u32 + 1;

extern "C" fn next_word(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    i64::from(!word(scratch, i))
}

#[inline(always)]
fn word(scratch: &mut Scratch, i: u64) -> bool {
    let secret = scratch.secret;
    scratch.print.step(&scratch.text, secret, i)
}

#[inline(never)]
fn report(scratch: &mut Scratch, number: u64) {
    let Some(bloom) = Bloom::rules() else { return };
    let secret = scratch.secret;
    let (fingerprint, dots) = scratch.print.end(&scratch.text, secret);
    let (prefix, _) = first_bytes(scan::word(&scratch.text, secret.at), bloom);
    let known = Known {
        entry: secret.entry,
        fingerprint,
        secret_len: secret.len as u32,
        name: secret.rule as u32,
        prefix,
        dots: dots as u32,
    };
    if secret.entry != 0
        && let Some(stream) = STREAMS.get_ptr_mut(scratch.object)
    {
        // SAFETY: the pointer is into the map.
        let place = unsafe { &mut (*stream).known };
        place[1] = place[0];
        place[0] = known;
    }
    show(scratch, &known, number);
}

/// A credential that the connection's table has.
#[inline(never)]
fn again(scratch: &mut Scratch, number: u64) {
    let Some(stream) = STREAMS.get_ptr_mut(scratch.object) else {
        return;
    };
    // SAFETY: the pointer is into the map.
    let known = unsafe { (*stream).known };
    let entry = scratch.secret.entry;
    if known[0].entry == entry {
        show(scratch, &known[0], number);
    } else if known[1].entry == entry {
        show(scratch, &known[1], number);
    }
}

#[inline(always)]
fn show(scratch: &mut Scratch, known: &Known, number: u64) {
    // SAFETY: the scratch is this CPU's own; volatile, as another may have written it.
    if unsafe { (&raw const scratch.mark).read_volatile() } != number {
        // Another has worked here meanwhile: what it has found is not to be trusted either.
        scratch.mark = 0;
        count(Probe::Present, Stage::Read);
        return;
    }
    let record = &mut scratch.record;
    fill_header(&mut record.header, kind::PRESENTED, Hooked::Tracing);
    record.fingerprint = known.fingerprint;
    record.write = number;
    // SAFETY: the value is copied at once.
    record.server = unsafe { SERVERS.get(scratch.object) }.copied().unwrap_or(0);
    record.secret_len = known.secret_len;
    record.name = known.name;
    record.prefix = known.prefix;
    record.dots = known.dots;
    // SAFETY: the record is inside the scratch and initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Present,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<Presented>() as u64,
        );
    }
}
