//! What is remembered of a connection between two writes.

use crate::support::{
    maps::wipe_whole,
    search::{carried::CARRIED, source::PlaintextSource},
    task::current_pid,
};
use aya_ebpf::{macros::map, maps::LruHashMap};
use monitor_common::{http2, record::PresentedSecret, scan};

/// State of a connection between two writes: whether a head continues, or the position in its
/// HTTP/2 frames. An evicted entry loses what is split between two writes or referenced from the
/// HPACK table.
#[map]
pub static STREAMS: LruHashMap<StreamKey, StreamState> = LruHashMap::with_max_entries(4096, 0);

/// Identifies a TLS object of a process, or a socket (with [`SOCKET`]).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct StreamKey {
    pub address: u64,
    pub pid: u64,
}

/// Used instead of a process.
const SOCKET: u64 = 1 << 32;

impl StreamKey {
    /// A TLS object of the current process.
    #[inline(always)]
    pub fn of_process(address: u64) -> Self {
        Self {
            address,
            pid: u64::from(current_pid()),
        }
    }

    /// A socket, by its cookie.
    #[inline(always)]
    pub const fn of_socket(cookie: u64) -> Self {
        Self {
            address: cookie,
            pid: SOCKET,
        }
    }
}

/// Format of a write: the head of an HTTP/1.1 request, HTTP/2 fields, or one of [`speaks`].
pub const HEAD: u64 = 0;

pub const FIELDS: u64 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct StreamState {
    /// Format of the next write.
    format: u64,
    /// Bytes of a frame that are still to come.
    pub skip: u64,
    /// When a line was split whose first part is in [`CARRIED`]; 0 if none was.
    pub carried_at: u64,
    /// Entries inserted into the connection's HPACK table.
    pub inserted: u64,
    /// Credentials in that table.
    pub known: [FoundCredential; KNOWN_MAX],
    /// The server name in that table: its index and its fingerprint.
    pub host: [u64; 2],
}

/// Credentials remembered per connection, for references to them.
const KNOWN_MAX: usize = 2;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct FoundCredential {
    /// Its index in the table; 0 if it has none.
    pub table_index: u64,
    pub fingerprint: u64,
    /// Fingerprint of the password inside, if there is one.
    pub inner: u64,
    pub secret_len: u32,
    pub name: u32,
    pub prefix: u32,
    pub dots: u32,
}

impl FoundCredential {
    /// Converts it for a record, adding the fingerprint of the server name.
    #[inline(always)]
    pub fn as_record(&self, host: u64) -> PresentedSecret {
        PresentedSecret {
            fingerprint: self.fingerprint,
            inner: self.inner,
            host,
            secret_len: self.secret_len,
            name: self.name,
            prefix: self.prefix,
            dots: self.dots,
        }
    }

    pub const NONE: Self = Self {
        table_index: 0,
        fingerprint: 0,
        inner: 0,
        secret_len: 0,
        name: 0,
        prefix: 0,
        dots: 0,
    };
}

impl StreamState {
    pub const fn new(format: u64) -> Self {
        Self {
            format,
            host: [0; 2],
            skip: 0,
            carried_at: 0,
            inserted: 0,
            known: [FoundCredential::NONE; KNOWN_MAX],
        }
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
        let _ = STREAMS.insert(object, StreamState::new(FIELDS), 0);
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
    let mut speaks = HEAD;
    let mut skip = 0;
    if let Some(stream) = STREAMS.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map; a TLS object or socket is written to by one thread
        // at a time.
        unsafe {
            speaks = (*stream).format;
            if speaks == FIELDS {
                skip = (*stream).skip;
                if skip >= len {
                    (*stream).skip = skip - len;
                    return None;
                }
                // No frame is that long: the address belonged to another object before.
                if skip == 0 && scan::begins_with_method(first) {
                    speaks = HEAD;
                }
                (*stream).skip = 0;
            }
            // The start of a request ends whatever was split before it.
            if len >= 8 && scan::begins_with_method(first) {
                (*stream).carried_at = 0;
            }
            // What looked like the head of a request may have been a line of something else.
            if able && speaks == HEAD && (*stream).carried_at == 0 {
                speaks = monitor_common::login::detect_protocol(first, second);
            }
        }
    } else if able {
        speaks = monitor_common::login::detect_protocol(first, second);
        if speaks == 0 {
            if http2::may_begin_fields(first) {
                speaks = FIELDS;
            } else if !scan::may_begin_request(first) {
                return None;
            }
        }
    } else if !scan::may_begin_request(first) {
        return None;
    }
    Some(WriteFormat {
        format: speaks,
        skip,
    })
}

/// Forgets everything about a TLS object, because another may get the same address.
#[inline(always)]
pub fn forget_object(object: StreamKey) {
    let _ = STREAMS.remove(object);
    if let Some(carried) = CARRIED.get_ptr_mut(object) {
        // SAFETY: the pointer is into the map.
        unsafe { wipe_whole(&raw mut (*carried).bytes) };
        let _ = CARRIED.remove(object);
    }
}

/// Whether the next write of the connection is searched regardless of how it begins.
#[inline(always)]
pub fn expects_more(object: StreamKey) -> bool {
    STREAMS.get_ptr(object).is_some()
}
