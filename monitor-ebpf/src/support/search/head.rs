//! Finds credentials in the head of a request.

use crate::support::{
    maps::{BloomFilter, insert_counted, remove_counted, rule},
    search::{
        carried::save_carried,
        source::{PlaintextSource, repeat_step, scratch},
        stream::STREAMS,
    },
};
use core::ffi::c_void;
use monitor_common::{
    filter::HOST,
    http2,
    map::{EvictingMap, HEAD, SearchScratch, StreamState},
    scan,
};

/// The rule for a header, by its key.
#[inline(always)]
pub fn header(key: u64, bloom: BloomFilter) -> Option<u32> {
    if !bloom.contains(key) {
        return None;
    }
    rule(key)
}

/// Maximum lines, or pieces of long ones, scanned in one write.
pub const LINES_MAX: u32 = 256;

/// As [`LINES_MAX`], without `bpf_loop`.
const UNROLLED_LINES: u32 = 24;

/// Scans the head of an HTTP/1.1 request; returns the number of values found.
#[inline(always)]
pub fn scan_lines<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
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
        insert_counted(&STREAMS, EvictingMap::Streams, scratch.object, &stream);
    } else {
        remove_counted(&STREAMS, EvictingMap::Streams, scratch.object);
    }
    scratch.lines.found
}

pub extern "C" fn next_line<S: PlaintextSource>(_: u64, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch::<S>() else {
        return 1;
    };
    i64::from(!line(scratch))
}

#[inline(never)]
pub fn line(scratch: &mut SearchScratch) -> bool {
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

/// Maximum frames and fields scanned in one write.
const FRAME_STEPS_MAX: u32 = 512;

/// Scans the HTTP/2 frames of a write; returns the number of values found.
#[inline(always)]
pub fn scan_frames<S: PlaintextSource>(scratch: &mut SearchScratch) -> u64 {
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
            remove_counted(&STREAMS, EvictingMap::Streams, scratch.object);
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
