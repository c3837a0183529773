//! What a TLS library gives back: credentials in the answers of authenticators.
//!
//! Attached to a process while it talks to an authenticator, and to nobody else: a return probe costs
//! more than any other. An object is looked at for the answers to a request with a credential.

use crate::{
    clear::tell_clear,
    maps::count,
    search::{Known, Object, Scratch, Searcher, begin, bounded, fields, forget, scratch, tell},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user},
    macros::{map, uprobe, uretprobe},
    maps::LruHashMap,
    programs::{ProbeContext, RetProbeContext},
};
use core::ffi::c_void;
use monitor_common::{
    record::{Probe, Stage, kind},
    scan::WINDOW,
};

/// Reads that may come before what was minted: a client may read line by line.
const READS: u64 = 64;

/// Where the last credential of a TLS object went.
#[derive(Clone, Copy)]
#[repr(C)]
struct Asked {
    cookie: u64,
    /// Reads that are still looked at.
    reads: u64,
}

#[map]
static ASKED: LruHashMap<Object, Asked> = LruHashMap::with_max_entries(4096, 0);

/// A credential of a TLS object has left by a socket: an answer may come.
#[inline(always)]
pub fn expect_answer(object: Object, cookie: u64) {
    let asked = Asked {
        cookie,
        reads: READS,
    };
    let _ = ASKED.insert(object, asked, 0);
}

/// A TLS object is gone, and its address may be another's next.
#[inline(always)]
pub fn expect_nothing(object: Object) {
    let _ = ASKED.remove(object);
}

/// A read that is under way.
#[derive(Clone, Copy)]
#[repr(C)]
struct Read {
    cookie: u64,
    bytes: u64,
    /// Where its length will be; 0 where that is what is returned.
    length: u64,
}

/// By task. One that never returns is evicted.
#[map]
static READING: LruHashMap<u64, Read> = LruHashMap::with_max_entries(1024, 0);

/// Hook: uprobe at `SSL_read` and `gnutls_record_recv`, of one process. First kernel: 5.17, for
/// `bpf_loop` in [`returned`]. Fallback: none, a declared gap. Missed: the first answer to a process that
/// was not known to ask; objects whose bytes leave from a buffer of the program's own; Go, whose stacks
/// move under a return probe.
#[uprobe]
pub fn returned_begin(ctx: ProbeContext) -> u32 {
    begins(&ctx, 0);
    0
}

/// As [`returned_begin`], at `SSL_read_ex`.
#[uprobe]
pub fn returned_begin_ex(ctx: ProbeContext) -> u32 {
    begins(&ctx, ctx.arg(3).unwrap_or(0));
    0
}

#[inline(always)]
fn begins(ctx: &ProbeContext, length: u64) -> Option<()> {
    let object = Object::of_process(ctx.arg(0)?);
    let asked = ASKED.get_ptr_mut(object)?;
    // SAFETY: the pointer is into the map; a TLS object is read by one thread at a time.
    let cookie = unsafe {
        if (*asked).reads == 0 {
            return None;
        }
        (*asked).reads -= 1;
        (*asked).cookie
    };
    let read = Read {
        cookie,
        bytes: ctx.arg(1)?,
        length,
    };
    let _ = READING.insert(task(), read, 0);
    Some(())
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Hook: uretprobe at the same functions. Kernels and gaps as [`returned_begin`]; missed besides: fields
/// that are cut between two reads, what is behind the first 8 KiB of one, answers that are compressed.
#[uretprobe]
pub fn returned(ctx: RetProbeContext) -> u32 {
    let result: i32 = ctx.ret::<u64>() as i32;
    ends(result);
    0
}

#[inline(always)]
fn ends(result: i32) -> Option<()> {
    let task = task();
    // SAFETY: the value is copied at once.
    let read = unsafe { READING.get(task) }.copied()?;
    let _ = READING.remove(task);
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
    let scratch = scratch::<Returned>()?;
    let number = begin(scratch, Object::of_socket(read.cookie), len, 0);
    if !copy(scratch, read.bytes, len) {
        forget::<Returned>();
        count(Probe::Present, Stage::Read);
        return None;
    }
    let found = fields::<Returned>(scratch);
    if found > 0 {
        tell::<Returned>(scratch, found, number);
    }
    forget::<Returned>();
    Some(())
}

/// As for what is written, a function of its own.
#[inline(never)]
fn copy(scratch: &mut Scratch, bytes: u64, len: u64) -> bool {
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

/// What TLS libraries give back.
struct Returned;

impl Searcher for Returned {
    /// That of what is handed to them.
    const SCRATCH: u32 = 0;
    const PROBE: Probe = Probe::Present;
    const LOOPS: bool = true;

    /// What is in one answer belongs together, and has one time.
    #[inline(always)]
    fn show(scratch: &mut Scratch, known: &Known) {
        let time = scratch.mark;
        tell_clear(scratch, known, kind::MINTED, time);
    }

    /// An answer has none.
    #[inline(always)]
    fn show_host(_: &mut Scratch) {}
}
