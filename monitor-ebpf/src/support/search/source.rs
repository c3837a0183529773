//! Sources of plaintext, and the memory in which it is searched.

use crate::support::{
    kernel::{boot_time_ns, repeat},
    maps::wipe,
};
use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use core::ffi::c_void;
use monitor_common::{
    http2::{self, FrameScan},
    login::LoginScan,
    map::{FoundCredential, SearchScratch, StreamKey},
    record::Probe,
    response::ResponseScan,
    scan::{HeaderLines, WINDOW},
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

/// Indexed by [`PlaintextSource::SCRATCH`].
#[map]
static SEARCH_SCRATCH: PerCpuArray<SearchScratch> = PerCpuArray::with_max_entries(3, 0);

/// Index 0: the decoder table for HPACK's Huffman code. Set by the agent before attaching.
#[map]
pub static HUFFMAN: Array<http2::HuffmanTable> = Array::with_max_entries(1, 0);

/// Starts a search of a write of `len` bytes, of which the caller copies at most [`WINDOW`] to the
/// window; returns the mark of this search. A separate function, because many paths lead here:
/// after it the verifier sees only one.
#[inline(never)]
pub fn begin_search(scratch: &mut SearchScratch, object: StreamKey, len: u64, format: u64) -> u64 {
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
    scratch.words = LoginScan::new(len, format);
    scratch.fields = ResponseScan {
        end: len,
        ..ResponseScan::default()
    };
    number
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
pub fn repeat_step(
    times: u32,
    step: extern "C" fn(u64, *mut c_void) -> i64,
    scratch: &mut SearchScratch,
) {
    repeat(times, step, &mut core::ptr::from_mut(scratch));
}

/// Whether this search still owns the scratch.
#[inline(always)]
pub fn owns_scratch(scratch: &SearchScratch, number: u64) -> bool {
    // SAFETY: the scratch belongs to this CPU; volatile, as another program may have written it.
    unsafe { (&raw const scratch.mark).read_volatile() == number }
}
