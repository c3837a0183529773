//! Credentials in the bytes that a process passes to its TLS library, fingerprinted in the kernel.
//!
//! A write is copied to a kernel buffer, searched there and overwritten: no record has room for it.
//! The socket is reported later by the egress program that sees the packet.

use crate::{
    support::{
        agent::is_agent,
        kernel::boot_time_ns,
        maps::{count, count_full, count_hit, insert_counted, remove_counted},
        presentations::is_due,
        ring::Ring,
        search::{
            carried::{after_carried, continue_after_carried, forget_object, restore_carried},
            search,
            source::{PlaintextSource, begin_search, bounded, end_search, owns_scratch, scratch},
            stream::{WriteFormat, object_at, write_format},
            value::{emit_values, fingerprint_of, fingerprint_words},
        },
        task::{HookContext, current_owner, current_pid, fill_header},
    },
    tls::{
        expected::{forget_expected, has_sent},
        pending::{PENDING_WRITES, PendingWrite, WRITES_PENDING},
    },
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user, bpf_probe_read_user_str},
    macros::{map, uprobe, uretprobe},
    maps::LruHashMap,
    programs::{ProbeContext, RetProbeContext},
};
use core::ffi::c_void;
use monitor_common::{
    map::{EvictingMap, FoundCredential, LimitedMap, SearchScratch, StreamKey, TlsWrite},
    record::{Probe, Stage, kind},
    scan::{CARRIED_MAX, HeaderValue, WINDOW, lowercase_front},
};

/// Hook: uprobe at functions `(object, bytes, length)`: `SSL_write`, `SSL_write_ex` and
/// `gnutls_record_send`. First kernel: 5.17. Fallback: [`present_write_short`]. Missed: bytes after
/// the first 8 KiB of a write; an HTTP/2 field split between two writes.
#[uprobe]
pub fn present_write(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_write::<true>(&ctx)
}

/// As [`present_write`]. First kernel: 5.10 and before. Fallback: none, a declared gap. Also
/// missed: HTTP/2, other protocols, lines of a head after the 24th, and credentials in a head after
/// the second.
#[uprobe]
pub fn present_write_short(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_write::<false>(&ctx)
}

#[inline(always)]
fn handle_write<const L: bool>(ctx: &ProbeContext) -> u32 {
    if let (Some(object), Some(bytes), Some(len)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) {
        handle_write_return::<L>(object, bytes, len, false);
    }
    0
}

/// Hook: uprobe at `crypto/tls.(*Conn).Write` of Go programs since 1.18, which pass arguments in
/// registers of Go's own convention. Kernels as [`present_write`]. A Go function restarts when its
/// stack has grown: the same write at the same moment counts once.
#[uprobe]
pub fn present_go(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_go_write::<true>(&ctx)
}

/// As [`present_go`], on kernels as [`present_write_short`].
#[uprobe]
pub fn present_go_short(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_go_write::<false>(&ctx)
}

#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn handle_go_write<const L: bool>(ctx: &ProbeContext) -> u32 {
    // SAFETY: the registers are valid while the program runs; the kernel checks the access.
    let (object, bytes, len) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rbx, (*ctx.regs).rcx) };
    handle_write_return::<L>(object, bytes, len, true);
    0
}

#[cfg(not(bpf_target_arch = "x86_64"))]
#[inline(always)]
fn handle_go_write<const L: bool>(ctx: &ProbeContext) -> u32 {
    handle_write::<L>(ctx)
}

#[inline(always)]
fn handle_write_return<const L: bool>(address: u64, bytes: u64, len: u64, cuts: bool) {
    // Some libraries take the length as an int, which leaves the upper half undefined.
    let len = len & 0xffff_ffff;
    if len == 0 || len > i32::MAX as u64 {
        return;
    }
    let object = object_at(address);
    // A shorter write has fewer bytes; the bytes after it do not affect the decision.
    let Some(first) = read_word(bytes) else {
        if len >= 8 {
            count(Probe::Present, Stage::Read);
        }
        return;
    };
    let second = || read_word(bytes.wrapping_add(8)).unwrap_or(0);
    let Some(WriteFormat { format, skip }) =
        write_format::<TlsWritePlaintext<L>>(object, first, len, second)
    else {
        return;
    };
    if is_agent(object.pid as u32, HookContext::Tracing) {
        return;
    }
    search_write::<L>(object, bytes.wrapping_add(skip), len - skip, format, cuts);
}

/// Reads eight bytes of the process.
#[inline(always)]
fn read_word(bytes: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the destination is eight bytes on the stack; the helper checks the source.
    let read = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, bytes as *const c_void) };
    (read == 0).then_some(word)
}

/// Hook: uretprobe at the same functions if they are inside a program rather than a library: such a
/// program may pass the same bytes repeatedly until the handshake has ended. First kernel: 5.10 and
/// before.
#[uretprobe]
pub fn present_written(ctx: RetProbeContext) -> u32 {
    count_hit(current_pid());
    let result: i32 = ctx.ret::<u64>() as i32;
    if result <= 0
        && let Some(under_way) = PendingWrite::current()
    {
        under_way.finish_write(kind::WRITE_REJECTED, 0);
    }
    0
}

/// Fingerprints of the server names that programs set on their TLS objects.
#[map]
static SERVER_NAMES: LruHashMap<StreamKey, u64> =
    LruHashMap::with_max_entries(EvictingMap::ServerNames.capacity(1), 0);

const SSL_CTRL_SET_TLSEXT_HOSTNAME: u64 = 55;
/// Maximum length of a server name.
pub const SERVER_NAME_MAX: u32 = 256;

/// Hook: uprobe at `SSL_ctrl(object, 55, 0, name)`, to which `SSL_set_tlsext_host_name` compiles.
/// First kernel: 5.17. Fallback: none, a declared gap. It distinguishes connections whose bytes are
/// sent later, from the program's own buffer.
#[uprobe]
pub fn present_server(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    let (Some(address), Some(command), Some(name)) = (ctx.arg(0), ctx.arg(1), ctx.arg(3)) else {
        return 0;
    };
    let command: u64 = command;
    if command & 0xffff_ffff == SSL_CTRL_SET_TLSEXT_HOSTNAME {
        handle_server_name(address, name);
    }
    0
}

#[inline(always)]
fn handle_server_name(address: u64, name: u64) {
    let Some(scratch) = scratch::<TlsWritePlaintext<true>>() else {
        return;
    };
    let number = boot_time_ns();
    scratch.mark = number;
    scratch.object = object_at(address);
    // At an offset, because on some kernels from 5.8 to 6.1 reading a string to the first byte of a
    // per-CPU buffer can fault. SAFETY: the text is larger; the helper checks the source.
    let read = unsafe {
        bpf_probe_read_user_str(
            scratch.text.as_mut_ptr().cast(),
            SERVER_NAME_MAX,
            name as *const c_void,
        )
    };
    if read < 2 {
        scratch.mark = 0;
        return;
    }
    scratch.secret = HeaderValue {
        len: (read as u64 - 1) & u64::from(SERVER_NAME_MAX - 1),
        ..HeaderValue::default()
    };
    to_lower(scratch);
    fingerprint_words::<TlsWritePlaintext<true>>(scratch);
    store_server_name(scratch, number);
}

#[inline(never)]
fn to_lower(scratch: &mut SearchScratch) {
    lowercase_front(&mut scratch.text);
}

/// Stores the fingerprint of the name in the text.
#[inline(never)]
fn store_server_name(scratch: &mut SearchScratch, number: u64) {
    let secret = scratch.secret;
    let fingerprint = fingerprint_of(scratch, secret);
    if owns_scratch(scratch, number) {
        insert_counted(
            &SERVER_NAMES,
            EvictingMap::ServerNames,
            scratch.object,
            &fingerprint,
        );
    }
    scratch.mark = 0;
}

/// Hook: uprobe at `SSL_free` and `gnutls_deinit`. First kernel: 5.10 and before. Missed: Go, whose
/// objects are garbage-collected; a reused address is recognised by other first bytes.
#[uprobe]
pub fn present_freed(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    if let Some(address) = ctx.arg(0) {
        let object = object_at(address);
        forget_object(object);
        forget_expected(object);
        remove_counted(&SERVER_NAMES, EvictingMap::ServerNames, object);
    }
    0
}

/// Plaintext passed to TLS libraries.
struct TlsWritePlaintext<const LOOPS: bool>;

impl<const LOOPS: bool> PlaintextSource for TlsWritePlaintext<LOOPS> {
    const SCRATCH: u32 = 0;
    const PROBE: Probe = Probe::Present;
    const LOOPS: bool = LOOPS;

    #[inline(always)]
    fn emit(scratch: &mut SearchScratch, known: &FoundCredential) {
        let record = &mut scratch.presented;
        fill_header(&mut record.header, kind::PRESENTED, HookContext::Tracing);
        record.write = scratch.mark;
        // SAFETY: the value is copied at once.
        record.server = unsafe { SERVER_NAMES.get(scratch.object) }
            .copied()
            .unwrap_or(0);
        record.secret = known.as_record(scratch.host);
        let object = scratch.object;
        let counts = scratch.counts_repeats != 0 && has_sent(object);
        if !counts || is_due(object, record) {
            scratch.is_sent = 1;
            let record = &mut scratch.presented;
            Ring::Credentials.send(Probe::Present, record.header.owner(), record);
        }
    }

    /// The server name is sent with each credential.
    #[inline(always)]
    fn emit_host(_: &mut SearchScratch) {}
}

/// Searches `len` bytes for credentials.
#[inline(always)]
fn search_write<const L: bool>(object: StreamKey, bytes: u64, len: u64, format: u64, cuts: bool) {
    let Some(scratch) = scratch::<TlsWritePlaintext<L>>() else {
        return;
    };
    let number = begin_search(scratch, object, len, format);
    if !copy::<L>(scratch, bytes, len) {
        end_search::<TlsWritePlaintext<L>>();
        count(Probe::Present, Stage::Read);
        return;
    }
    finish_write::<L>(number, cuts);
}

#[inline(never)]
pub fn finish_write<const L: bool>(number: u64, cuts: bool) {
    let Some(scratch) = scratch::<TlsWritePlaintext<L>>() else {
        return;
    };
    let found = search::<TlsWritePlaintext<L>>(scratch);
    if found > 0 && !is_restart(scratch, number, cuts) {
        scratch.is_sent = 0;
        // Objects of Go are freed unseen, and another connection may get the address.
        scratch.counts_repeats = u64::from(!cuts);
        emit_values::<TlsWritePlaintext<L>>(scratch, found, number);
        // The write leaves only after this program. What is not sent was sent before, with the socket
        // of its connection.
        if scratch.is_sent != 0 {
            await_socket(scratch, number, cuts);
        }
    }
    end_search::<TlsWritePlaintext<L>>();
}

/// Whether this is the write that was searched last, in a function that began anew. These functions
/// are separate, so that what they need is not on the stack while values are sent.
#[inline(never)]
fn is_restart(scratch: &SearchScratch, number: u64, cuts: bool) -> bool {
    let write = TlsWrite::new(number, scratch.object, current_owner(), scratch.len, cuts);
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the value is read at once.
    unsafe { PENDING_WRITES.get(task) }.is_some_and(|before| before.is_repeat(&write))
}

/// The write waits for its socket.
#[inline(never)]
fn await_socket(scratch: &SearchScratch, number: u64, cuts: bool) {
    let write = TlsWrite::new(number, scratch.object, current_owner(), scratch.len, cuts);
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if PENDING_WRITES.insert(task, write, 0).is_err() {
        count_full(LimitedMap::PendingWrites);
    }
    let _ = WRITES_PENDING.set(0, 1, 0);
}

/// Copies a write to the window. A separate function, so that the verifier forgets its state at the
/// end.
#[inline(never)]
fn copy<const L: bool>(scratch: &mut SearchScratch, bytes: u64, len: u64) -> bool {
    let before = if L { restore_carried(scratch) } else { 0 };
    if before > 0 {
        continue_after_carried(scratch, len);
        return copy_after_carried(scratch, before, bytes, after_carried(len) as u32);
    }
    let len = bounded(len);
    // SAFETY: at most WINDOW bytes, and the window has SLACK bytes more; the helper checks the
    // source.
    unsafe {
        bpf_probe_read_user(
            scratch.window.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            bytes as *const c_void,
        ) == 0
    }
}

/// As [`copy`], after the carried bytes.
#[inline(always)]
fn copy_after_carried(scratch: &mut SearchScratch, before: u64, bytes: u64, len: u32) -> bool {
    // SAFETY: at most WINDOW bytes in total; the helper checks the source.
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
