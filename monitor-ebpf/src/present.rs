//! Credentials in the bytes that a process hands to its TLS library, fingerprinted where they are.
//!
//! A write is copied to a buffer in the kernel, searched there and forgotten: no record has a place
//! for it. Which socket it went out on is told by the next program that sees it, on its way out.

use crate::{
    kernel::now,
    maps::{CREDENTIAL_RING, count, current_cgroup, is_agent, send},
    returned::expect_nothing,
    search::{
        Known, Object, Reading, Scratch, Searcher, after_carried, begin, bounded, carried,
        carry_on, fingerprint_of, forget, forget_object, is_marked, print, reading, scratch,
        search, tell,
    },
    task::{Hooked, fill_header},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user, bpf_probe_read_user_str},
    macros::{map, uprobe, uretprobe},
    maps::{Array, HashMap, LruHashMap},
    programs::{ProbeContext, RetProbeContext},
};
use core::ffi::c_void;
use monitor_common::{
    record::{Presented, Probe, Stage, Tied, kind},
    scan::{CARRIED_MAX, Value, WINDOW, small_front},
};

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
    /// The record of TLS that carries it, or its front, has so many bytes at least.
    pub least: u32,
    /// And so many at most.
    pub most: u32,
    pub object: Object,
}

/// A write leaves within this time, or not in the same task.
const AT_ONCE_NS: u64 = 100_000_000;
/// A function that begins anew does so within this time.
const AGAIN_NS: u64 = 1_000_000;

impl Write {
    /// `cuts` where the library begins a connection with short records, which leave one by one.
    #[inline(always)]
    fn new(number: u64, object: Object, len: u64, cuts: bool) -> Self {
        /// A longer write goes out in several records.
        const LONGEST: u32 = 16_384;
        /// The tag alone, and the most that initial vector, tag and padding add.
        const TAG: u32 = 16;
        const ADDED: u32 = 96;
        /// The first records of Go fill a packet of a common size.
        const SHORT: u32 = 1024;
        let len = if len > u64::from(LONGEST) {
            LONGEST
        } else {
            len as u32
        };
        Self {
            number,
            object,
            least: TAG + if cuts && len > SHORT { SHORT } else { len },
            most: len + ADDED,
        }
    }

    /// Whether it is this write, seen a second time.
    #[inline(always)]
    fn is_again(&self, write: &Self) -> bool {
        self.object.address == write.object.address
            && self.most == write.most
            && write.number.wrapping_sub(self.number) < AGAIN_NS
    }
}

/// Index 0: whether there may be any in [`WRITES`], so that a packet need not look there.
#[map]
static WRITING: Array<u64> = Array::with_max_entries(1, 0);

/// Hook: uprobe at functions `(object, bytes, length)`: `SSL_write`, `SSL_write_ex` and
/// `gnutls_record_send`. First kernel: 5.17. Fallback: [`present_write_short`].
/// Missed: bytes behind the first 8 KiB of a write; a field of HTTP/2 that is cut between two writes.
#[uprobe]
pub fn present_write(ctx: ProbeContext) -> u32 {
    handed::<true>(&ctx)
}

/// As [`present_write`]. First kernel: 5.10 and before. Fallback: none, a declared gap. Missed besides:
/// HTTP/2, other protocols, what follows the 24th line of a head, and its third credential.
#[uprobe]
pub fn present_write_short(ctx: ProbeContext) -> u32 {
    handed::<false>(&ctx)
}

#[inline(always)]
fn handed<const L: bool>(ctx: &ProbeContext) -> u32 {
    if let (Some(object), Some(bytes), Some(len)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) {
        written::<L>(object, bytes, len, false);
    }
    0
}

/// Hook: uprobe at `crypto/tls.(*Conn).Write` of Go programs since 1.18, which pass arguments in
/// registers of their own. Kernels as [`present_write`]. A function of Go begins anew when its
/// stack has grown: the same write of the same moment is one.
#[uprobe]
pub fn present_go(ctx: ProbeContext) -> u32 {
    handed_by_go::<true>(&ctx)
}

/// As [`present_go`], on kernels as [`present_write_short`].
#[uprobe]
pub fn present_go_short(ctx: ProbeContext) -> u32 {
    handed_by_go::<false>(&ctx)
}

#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn handed_by_go<const L: bool>(ctx: &ProbeContext) -> u32 {
    // SAFETY: the registers are valid for the run of the program; the kernel checks the access.
    let (object, bytes, len) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rbx, (*ctx.regs).rcx) };
    written::<L>(object, bytes, len, true);
    0
}

#[cfg(not(bpf_target_arch = "x86_64"))]
#[inline(always)]
fn handed_by_go<const L: bool>(ctx: &ProbeContext) -> u32 {
    handed::<L>(ctx)
}

#[inline(always)]
fn written<const L: bool>(address: u64, bytes: u64, len: u64, cuts: bool) {
    // An int where the library's length is one: what is above it is not set.
    let len = len & 0xffff_ffff;
    if len == 0 || len > i32::MAX as u64 {
        return;
    }
    let object = Object::of_process(address);
    // A shorter write has fewer bytes: what is behind it decides nothing.
    let Some(first) = eight(bytes) else {
        if len >= 8 {
            count(Probe::Present, Stage::Read);
        }
        return;
    };
    let second = || eight(bytes.wrapping_add(8)).unwrap_or(0);
    let Some(Reading { speaks, skip }) = reading::<Handed<L>>(object, first, len, second) else {
        return;
    };
    if is_agent(object.pid as u32) {
        return;
    }
    look::<L>(object, bytes.wrapping_add(skip), len - skip, speaks, cuts);
}

/// Eight bytes of the process.
#[inline(always)]
fn eight(bytes: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the destination is eight bytes on the stack; the helper checks the source.
    let read = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, bytes as *const c_void) };
    (read == 0).then_some(word)
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
        // What did not leave at once leaves later, by another way.
        (now().wrapping_sub(write.number) < AT_ONCE_NS).then_some(Self { task, write })
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
/// compiled to. First kernel: 5.17. Fallback: none, a declared gap. It tells connections apart whose bytes leave later,
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
    let Some(scratch) = scratch::<Handed<true>>() else {
        return;
    };
    let number = now();
    scratch.mark = number;
    scratch.object = Object::of_process(address);
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
    small(scratch);
    print::<Handed<true>>(scratch);
    named(scratch, number);
}

#[inline(never)]
fn small(scratch: &mut Scratch) {
    small_front(&mut scratch.text);
}

/// Remembers the fingerprint of the name in the text.
#[inline(never)]
fn named(scratch: &mut Scratch, number: u64) {
    let secret = scratch.secret;
    let fingerprint = fingerprint_of(scratch, secret);
    if is_marked(scratch, number) {
        let _ = SERVERS.insert(scratch.object, fingerprint, 0);
    }
    scratch.mark = 0;
}

/// Hook: uprobe at `SSL_free` and `gnutls_deinit`. First kernel: 5.10 and before. Missed: Go, whose
/// objects are collected some time; there an address is used again with other first bytes.
#[uprobe]
pub fn present_freed(ctx: ProbeContext) -> u32 {
    if let Some(address) = ctx.arg(0) {
        let object = Object::of_process(address);
        forget_object(object);
        expect_nothing(object);
        let _ = SERVERS.remove(object);
    }
    0
}

/// What is handed to TLS libraries.
struct Handed<const LOOPS: bool>;

impl<const LOOPS: bool> Searcher for Handed<LOOPS> {
    const SCRATCH: u32 = 0;
    const PROBE: Probe = Probe::Present;
    const LOOPS: bool = LOOPS;

    #[inline(always)]
    fn show(scratch: &mut Scratch, known: &Known) {
        let record = &mut scratch.presented;
        fill_header(&mut record.header, kind::PRESENTED, Hooked::Tracing);
        record.write = scratch.mark;
        // SAFETY: the value is copied at once.
        record.server = unsafe { SERVERS.get(scratch.object) }.copied().unwrap_or(0);
        record.shown = known.shown(scratch.host);
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

    /// It goes with each credential.
    #[inline(always)]
    fn show_host(_: &mut Scratch) {}
}

/// Looks for credentials in `len` bytes.
#[inline(always)]
fn look<const L: bool>(object: Object, bytes: u64, len: u64, speaks: u64, cuts: bool) {
    let Some(scratch) = scratch::<Handed<L>>() else {
        return;
    };
    let number = begin(scratch, object, len, speaks);
    if !copy::<L>(scratch, bytes, len) {
        forget::<Handed<L>>();
        count(Probe::Present, Stage::Read);
        return;
    }
    finish::<L>(number, cuts);
}

#[inline(never)]
fn finish<const L: bool>(number: u64, cuts: bool) {
    let Some(scratch) = scratch::<Handed<L>>() else {
        return;
    };
    let found = search::<Handed<L>>(scratch);
    if found > 0 {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        // SAFETY: the value is copied at once.
        let before = unsafe { WRITES.get(task) }.copied();
        let write = Write::new(number, scratch.object, scratch.len, cuts);
        if before.is_some_and(|before| before.is_again(&write)) {
            forget::<Handed<L>>();
            return;
        }
        let _ = WRITES.insert(task, write, 0);
        let _ = WRITING.set(0, 1, 0);
        tell::<Handed<L>>(scratch, found, number);
    }
    forget::<Handed<L>>();
}

/// Copies a write to the window. A function of its own: what the verifier knows at its end is
/// forgotten.
#[inline(never)]
fn copy<const L: bool>(scratch: &mut Scratch, bytes: u64, len: u64) -> bool {
    let before = if L { carried(scratch) } else { 0 };
    if before > 0 {
        carry_on(scratch, len);
        return copy_behind(scratch, before, bytes, after_carried(len) as u32);
    }
    let len = bounded(len);
    // SAFETY: at most WINDOW bytes, and the window has SLACK more; the helper checks the source.
    unsafe {
        bpf_probe_read_user(
            scratch.window.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            bytes as *const c_void,
        ) == 0
    }
}

/// The same, behind what was carried.
#[inline(always)]
fn copy_behind(scratch: &mut Scratch, before: u64, bytes: u64, len: u32) -> bool {
    // SAFETY: at most WINDOW bytes in all; the helper checks the source.
    unsafe {
        bpf_probe_read_user(
            scratch
                .window
                .as_mut_ptr()
                .add(before as usize & (CARRIED_MAX - 1))
                .cast(),
            len,
            bytes as *const c_void,
        ) == 0
    }
}
