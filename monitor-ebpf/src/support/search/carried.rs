//! Lines that are split between two writes.

use crate::support::{
    maps::{count, count_full, remove_counted, wipe, wipe_whole},
    search::{source::PlaintextSource, stream::STREAMS},
};
use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::map, maps::HashMap};
use monitor_common::{
    map::{CarriedLine, EvictingMap, HEAD, LimitedMap, SearchScratch, StreamKey},
    record::Stage,
    scan::{CARRIED_MAX, HeaderLines, WINDOW},
};

/// Lines of a head that were split between two writes. The bytes are overwritten when the rest
/// arrives; the agent removes lines that were never continued.
#[map]
pub static CARRIED: HashMap<StreamKey, CarriedLine> = HashMap::with_max_entries(128, 0);

/// A line is continued within this time.
const CARRIED_NS: u64 = 30_000_000_000;

/// Restores the first part of a line that the connection's last write split to the front of the
/// window; returns its length, which is less than [`CARRIED_MAX`]. Called after [`begin_search`](crate::support::search::source::begin_search)
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
pub fn save_carried<S: PlaintextSource>(scratch: &mut SearchScratch) -> bool {
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
            count_full(LimitedMap::Carried);
        }
        kept
    }
}

/// Forgets everything about a TLS object, because another may get the same address.
#[inline(always)]
pub fn forget_object(object: StreamKey) {
    remove_counted(&STREAMS, EvictingMap::Streams, object);
    if let Some(carried) = CARRIED.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map.
        unsafe { wipe_whole(&raw mut (*carried).bytes) };
        let _ = CARRIED.remove(object);
    }
}
