//! What is remembered of a connection between two writes.

use crate::support::{maps::insert_counted, search::source::PlaintextSource, task::current_pid};
use aya_ebpf::{macros::map, maps::LruHashMap};
use monitor_common::{
    http2,
    map::{EvictingMap, FIELDS, HEAD, StreamKey, StreamState},
    scan,
};

/// State of a connection between two writes: whether a head continues, or the position in its
/// HTTP/2 frames. An evicted entry loses what is split between two writes or referenced from the
/// HPACK table.
#[map]
pub static STREAMS: LruHashMap<StreamKey, StreamState> =
    LruHashMap::with_max_entries(EvictingMap::Streams.capacity(1), 0);

/// A TLS object of the current process.
#[inline(always)]
pub fn object_at(address: u64) -> StreamKey {
    StreamKey {
        address,
        pid: u64::from(current_pid()),
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
        insert_counted(
            &STREAMS,
            EvictingMap::Streams,
            object,
            &StreamState::new(FIELDS),
        );
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
    let mut format = HEAD;
    let mut skip = 0;
    if let Some(stream) = STREAMS.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map; a TLS object or socket is written to by one thread
        // at a time.
        unsafe {
            format = (*stream).format;
            if format == FIELDS {
                skip = (*stream).skip;
                if skip >= len {
                    (*stream).skip = skip - len;
                    return None;
                }
                // No frame is that long: the address belonged to another object before.
                if skip == 0 && scan::begins_with_method(first) {
                    format = HEAD;
                }
                (*stream).skip = 0;
            }
            // The start of a request ends whatever was split before it.
            if len >= 8 && scan::begins_with_method(first) {
                (*stream).carried_at = 0;
            }
            // What looked like the head of a request may have been a line of something else.
            if able && format == HEAD && (*stream).carried_at == 0 {
                format = monitor_common::login::detect_protocol(first, second);
            }
        }
    } else if able {
        format = monitor_common::login::detect_protocol(first, second);
        if format == 0 {
            if http2::may_begin_fields(first) {
                format = FIELDS;
            } else if !scan::may_begin_request(first) {
                return None;
            }
        }
    } else if !scan::may_begin_request(first) {
        return None;
    }
    Some(WriteFormat { format, skip })
}

/// Whether the next write of the connection is searched regardless of how it begins.
#[inline(always)]
pub fn expects_more(object: StreamKey) -> bool {
    STREAMS.get_ptr(object).is_some()
}
