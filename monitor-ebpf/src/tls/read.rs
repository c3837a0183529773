//! Plaintext returned by a TLS library: credentials in the responses of authenticators.
//!
//! Attached to a process only while it talks to an authenticator, because a return probe costs more
//! than any other. A TLS object is examined only for responses to a request with a credential.

use crate::{
    support::{
        maps::{count, count_hit, insert_counted, remove_counted},
        search::{
            plaintext_record::{send_plaintext_record, set_plaintext_record},
            response::fields,
            source::{PlaintextSource, begin_search, bounded, end_search, scratch},
            stream::object_at,
            value::emit_values,
        },
        task::{current_owner, current_pid},
    },
    tls::expected::LAST_REQUESTS,
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user},
    macros::{map, uprobe, uretprobe},
    maps::LruHashMap,
    programs::{ProbeContext, RetProbeContext},
};
use core::ffi::c_void;
use monitor_common::{
    map::{EvictingMap, FoundCredential, PendingRead, SearchScratch, StreamKey},
    record::{Probe, Stage, kind},
    scan::WINDOW,
};

/// By task. An entry whose read never returns is evicted.
#[map]
static PENDING_READS: LruHashMap<u64, PendingRead> =
    LruHashMap::with_max_entries(EvictingMap::PendingReads.capacity(1), 0);

/// Hook: uprobe at `SSL_read` and `gnutls_record_recv`, of one process. First kernel: 5.17, for
/// `bpf_loop` in [`tls_read_exit`]. Fallback: none, a declared gap. Missed: the first response to a
/// process that was not known to talk to an authenticator; objects whose bytes are sent from a
/// buffer of the program's own; Go, whose stacks move under a return probe.
#[uprobe]
pub fn tls_read_enter(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_read_enter(&ctx, 0);
    0
}

/// As [`tls_read_enter`], at `SSL_read_ex`.
#[uprobe]
pub fn tls_read_enter_ex(ctx: ProbeContext) -> u32 {
    count_hit(current_pid());
    handle_read_enter(&ctx, ctx.arg(3).unwrap_or(0));
    0
}

#[inline(always)]
fn handle_read_enter(ctx: &ProbeContext, length: u64) -> Option<()> {
    let object = object_at(ctx.arg(0)?);
    let request = LAST_REQUESTS.get_ptr_mut(object)?;
    // SAFETY: the pointer is into the map; a TLS object is read by one thread at a time.
    let cookie = unsafe {
        if (*request).reads == 0 {
            return None;
        }
        (*request).reads -= 1;
        (*request).cookie
    };
    let read = PendingRead {
        cookie,
        bytes: ctx.arg(1)?,
        length,
    };
    insert_counted(&PENDING_READS, EvictingMap::PendingReads, task(), &read);
    Some(())
}

#[inline(always)]
pub fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Hook: uretprobe at the same functions. Kernels and gaps as [`tls_read_enter`]; also missed:
/// fields split between two reads, bytes after the first 8 KiB of a read, compressed responses.
#[uretprobe]
pub fn tls_read_exit(ctx: RetProbeContext) -> u32 {
    count_hit(current_pid());
    let result: i32 = ctx.ret::<u64>() as i32;
    handle_read_exit(result);
    0
}

#[inline(always)]
fn handle_read_exit(result: i32) -> Option<()> {
    let task = task();
    // SAFETY: the value is copied at once.
    let read = unsafe { PENDING_READS.get(task) }.copied()?;
    remove_counted(&PENDING_READS, EvictingMap::PendingReads, task);
    if result <= 0 {
        return None;
    }
    let len = if read.length == 0 {
        result as u64
    } else {
        let mut len = 0u64;
        // SAFETY: eight bytes on the stack; the helper checks the source.
        let got = unsafe {
            bpf_probe_read_user(
                (&raw mut len).cast(),
                size_of::<u64>() as u32,
                read.length as *const c_void,
            )
        };
        if got != 0 {
            count(Probe::Present, Stage::Read);
            return None;
        }
        len
    };
    if len == 0 {
        return None;
    }
    let scratch = scratch::<TlsReadPlaintext>()?;
    let number = begin_search(scratch, StreamKey::of_socket(read.cookie), len, 0);
    scratch.owner = current_owner();
    if !copy(scratch, read.bytes, len) {
        end_search::<TlsReadPlaintext>();
        count(Probe::Present, Stage::Read);
        return None;
    }
    let found = fields::<TlsReadPlaintext>(scratch);
    if found > 0 {
        emit_values::<TlsReadPlaintext>(scratch, found, number);
    }
    end_search::<TlsReadPlaintext>();
    Some(())
}

/// A separate function, as for writes.
#[inline(never)]
fn copy(scratch: &mut SearchScratch, bytes: u64, len: u64) -> bool {
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

/// Plaintext returned by TLS libraries.
struct TlsReadPlaintext;

impl PlaintextSource for TlsReadPlaintext {
    /// Shared with the write side.
    const SCRATCH: u32 = 0;
    const PROBE: Probe = Probe::Present;
    const LOOPS: bool = true;

    /// All secrets of one response belong together and have the same time.
    #[inline(always)]
    fn emit(scratch: &mut SearchScratch, known: &FoundCredential) {
        let time = scratch.mark;
        set_plaintext_record(scratch, known, kind::ISSUED, time);
        send_plaintext_record(scratch);
    }

    /// A response has no server name.
    #[inline(always)]
    fn emit_host(_: &mut SearchScratch) {}
}
