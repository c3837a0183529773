//! Credentials in the bytes that a process hands to its TLS library, fingerprinted where they are.
//!
//! A write is copied to a buffer in the kernel, searched there and forgotten: no record has a place
//! for it. Which socket it went out on is told by the next program that sees it, on its way out.

use crate::{
    environ::{first_bytes, secret_key},
    kernel::{can_repeat, now, repeat},
    maps::{Bloom, CREDENTIAL_RING, RULES, count, is_agent, send},
    task::{Hooked, current_pid, fill_header},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user},
    macros::{map, uprobe},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::ProbeContext,
};
use core::ffi::c_void;
use monitor_common::{
    record::{Presented, Probe, Stage, kind},
    scan::{self, Lines, Print, VALUES, Value, WINDOW, Window},
};

/// This CPU's place to work. A program of this kind can be preempted by another on some kernels:
/// each puts its own mark, and what is found under another's mark is counted as not read.
#[repr(C)]
struct Scratch {
    mark: u64,
    lines: Lines,
    values: [Value; VALUES],
    /// The secret at hand, and what is known of it.
    secret: Value,
    scheme: u64,
    print: Print,
    record: Presented,
    window: Window,
}

#[map]
static PRESENT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// TLS objects in the middle of a request's head: the next write goes on with it.
#[map]
static HEADS: LruHashMap<Object, u64> = LruHashMap::with_max_entries(4096, 0);

/// A TLS object of a process.
#[derive(Clone, Copy)]
#[repr(C)]
struct Object {
    address: u64,
    pid: u64,
}

/// Writes with a credential that are still on their way to a socket, by the task that makes them.
/// The agent sweeps what never got there.
#[map]
pub static WRITES: HashMap<u64, Write> = HashMap::with_max_entries(4096, 0);

/// Such a write.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Write {
    /// Its number, which is also its time.
    pub number: u64,
    /// Bytes in it.
    pub len: u64,
}

/// Index 0: whether there may be any in [`WRITES`], so that a packet need not look there.
#[map]
pub static WRITING: Array<u64> = Array::with_max_entries(1, 0);

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

/// Bytes by which a write is judged at first.
const FRONT: u64 = 16;

#[inline(always)]
fn written(address: u64, bytes: u64, len: u64) {
    // An int where the library's length is one: what is above it is not set.
    let len = len & 0xffff_ffff;
    if len < FRONT || len > i32::MAX as u64 {
        return;
    }
    let mut first = 0u64;
    // SAFETY: the destination is eight bytes on the stack; the helper checks the source.
    if unsafe { bpf_probe_read_user((&raw mut first).cast(), 8, bytes as *const c_void) } != 0 {
        count(Probe::Present, Stage::Read);
        return;
    }
    let pid = current_pid();
    let object = Object {
        address,
        pid: u64::from(pid),
    };
    let goes_on = HEADS.get_ptr(object).is_some();
    if !(goes_on || scan::may_begin_request(first)) || is_agent(pid) {
        return;
    }
    let Some(scratch) = scratch() else { return };
    let number = now();
    scratch.mark = number;
    if !copy(scratch, bytes, len) {
        count(Probe::Present, Stage::Read);
        return;
    }
    lines(scratch);
    // What is left of a head comes with the next write.
    let cut = len > WINDOW as u64;
    if scratch.lines.over == 0 && !cut {
        let _ = HEADS.insert(object, number, 0);
    } else if goes_on {
        let _ = HEADS.remove(object);
    }
    if scratch.lines.found == 0 {
        scratch.mark = 0;
        return;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let _ = WRITES.insert(task, Write { number, len }, 0);
    let _ = WRITING.set(0, 1, 0);
    for i in 0..VALUES {
        tell(scratch, i, address, number);
    }
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
    // SAFETY: at most WINDOW bytes, and the window has SLACK more; the helper checks the source.
    unsafe {
        bpf_probe_read_user(
            scratch.window.as_mut_ptr().cast(),
            len as u32 & (2 * WINDOW as u32 - 1),
            bytes as *const c_void,
        ) == 0
    }
}

/// Lines, or pieces of long ones, that are crossed in one write.
const LINES: u32 = 256;
/// The same where a kernel has no `bpf_loop`.
const FEW_LINES: u32 = 40;

#[inline(always)]
fn lines(scratch: &mut Scratch) {
    if can_repeat() {
        repeat(LINES, next_line, &mut 0u64);
    } else {
        for _ in 0..FEW_LINES {
            if !line(scratch) {
                break;
            }
        }
    }
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
        |key| {
            if !bloom.has(key) {
                return None;
            }
            // SAFETY: the value is copied at once.
            unsafe { RULES.get(key) }.copied()
        },
    )
}

/// Fingerprints the `i`th value and sends its record.
#[inline(never)]
fn tell(scratch: &mut Scratch, i: usize, address: u64, number: u64) {
    if i as u64 >= scratch.lines.found {
        return;
    }
    let value = scratch.values[i & (VALUES - 1)];
    if !locate(scratch, value.at, value.len) {
        return;
    }
    scratch.secret.rule = value.rule;
    scratch.print = Print::new(secret_key());
    if can_repeat() {
        repeat(WORDS, next_word, &mut 0u64);
    } else {
        for i in 0..u64::from(WORDS) {
            if !step(scratch, i) {
                break;
            }
        }
    }
    report(scratch, address, number);
}

/// Finds the secret in a value.
#[inline(never)]
fn locate(scratch: &mut Scratch, at: u64, len: u64) -> bool {
    let (secret, scheme) = scan::secret(&scratch.window, Value { at, len, rule: 0 });
    scratch.secret = secret;
    scratch.scheme = u64::from(scheme);
    secret.len > 0
}

const WORDS: u32 = monitor_common::fingerprint::MAX_WORDS as u32 + 1;

extern "C" fn next_word(i: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    i64::from(!step(scratch, i))
}

#[inline(always)]
fn step(scratch: &mut Scratch, i: u64) -> bool {
    let secret = scratch.secret;
    scratch.print.step(&scratch.window, secret, i)
}

#[inline(never)]
fn report(scratch: &mut Scratch, address: u64, number: u64) {
    let Some(bloom) = Bloom::rules() else { return };
    let secret = scratch.secret;
    let (fingerprint, dots) = scratch.print.end(&scratch.window, secret);
    let (prefix, _) = first_bytes(scan::word(&scratch.window, secret.at), bloom);
    // SAFETY: the scratch is this CPU's own; volatile, as another may have written it.
    if unsafe { (&raw const scratch.mark).read_volatile() } != number {
        // Another has worked here meanwhile: what it has found is not to be trusted either.
        scratch.mark = 0;
        count(Probe::Present, Stage::Read);
        return;
    }
    let record = &mut scratch.record;
    fill_header(&mut record.header, kind::PRESENTED, Hooked::Tracing);
    record.fingerprint = fingerprint;
    record.write = number;
    record.object = address;
    record.secret_len = secret.len as u32;
    record.name = secret.rule as u32;
    record.scheme = scratch.scheme as u32;
    record.prefix = prefix;
    record.dots = dots as u32;
    record.reserved = 0;
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
