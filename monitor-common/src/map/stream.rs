//! What is remembered of a connection between two writes.

use crate::{record::PresentedSecret, scan::CARRIED_MAX};
#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identifies a TLS object of a process, or a socket (with `SOCKET` as its process).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct StreamKey {
    pub address: u64,
    pub pid: u64,
}

/// A credential on a connection, with the server name of the request: a proxy gets several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PresentationKey {
    pub object: StreamKey,
    pub fingerprint: u64,
    /// Fingerprint of the name; 0 if there is none.
    pub host: u64,
}

/// Credentials on connections whose repeats are counted at the same time.
pub const PRESENTATIONS_MAX: u32 = 4096;

/// Used instead of a process.
const SOCKET: u64 = 1 << 32;

impl StreamKey {
    /// A socket, by its cookie.
    #[inline(always)]
    pub const fn of_socket(cookie: u64) -> Self {
        Self {
            address: cookie,
            pid: SOCKET,
        }
    }
}

/// Format of a write: the head of an HTTP/1.1 request. The others are in [`crate::login::protocol`].
pub const HEAD: u64 = 0;

/// Format of a write: HTTP/2 fields.
pub const FIELDS: u64 = 1;

/// What is remembered of a connection between two writes.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct StreamState {
    /// Format of the next write.
    pub format: u64,
    /// Bytes of a frame that are still to come.
    pub skip: u64,
    /// When a line was split whose first part is in a [`CarriedLine`]; 0 if none was.
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

/// A credential that was found and fingerprinted.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
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
            count: 1,
            reserved: 0,
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

/// The first part of a line, padded with zeros. Its bytes may be those of a secret: it is neither
/// copied nor shown.
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[expect(missing_debug_implementations, reason = "it holds bytes of processes")]
#[repr(C)]
pub struct CarriedLine {
    pub len: u64,
    pub bytes: [u8; CARRIED_MAX],
}

const _: () = {
    assert!(size_of::<StreamKey>() == 16);
    assert!(size_of::<FoundCredential>() == 40);
    assert!(size_of::<StreamState>() == 128);
    assert!(size_of::<CarriedLine>() == 8 + CARRIED_MAX);
};
