//! Reads and writes of TLS libraries.

use super::stream::StreamKey;
use crate::record::OwnerFields;
#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A write that contains a credential.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct TlsWrite {
    /// Its number, which is also its time.
    pub number: u64,
    /// Minimum length of the TLS record that carries the write, or its first part.
    pub min_len: u32,
    /// Maximum length of that record.
    pub max_len: u32,
    pub object: StreamKey,
    pub owner: OwnerFields,
}

/// A function that restarts does so within this time.
const RESTART_WITHIN_NS: u64 = 1_000_000;

impl TlsWrite {
    /// `cuts`: the library begins a connection with short records, which are sent one by one.
    #[inline(always)]
    pub fn new(number: u64, object: StreamKey, owner: OwnerFields, len: u64, cuts: bool) -> Self {
        /// A longer write is sent in several records.
        const RECORD_MAX: u32 = 16_384;
        /// The tag alone, and the maximum that initialisation vector, tag and padding add.
        const TAG: u32 = 16;
        const OVERHEAD_MAX: u32 = 96;
        /// The first records of Go fill a packet of a common size.
        const SMALL_RECORD: u32 = 1024;
        let len = if len > u64::from(RECORD_MAX) {
            RECORD_MAX
        } else {
            len as u32
        };
        Self {
            number,
            object,
            owner,
            min_len: TAG
                + if cuts && len > SMALL_RECORD {
                    SMALL_RECORD
                } else {
                    len
                },
            max_len: len + OVERHEAD_MAX,
        }
    }

    /// Whether this is the same write, observed a second time.
    #[inline(always)]
    pub fn is_repeat(&self, write: &Self) -> bool {
        self.object.address == write.object.address
            && self.max_len == write.max_len
            && write.number.wrapping_sub(self.number) < RESTART_WITHIN_NS
    }
}

/// The last request with a credential on a TLS object.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct LastRequest {
    pub cookie: u64,
    /// Reads that are still examined.
    pub reads: u64,
}

/// A read in progress.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PendingRead {
    pub cookie: u64,
    pub bytes: u64,
    /// Address of the returned length; 0 if the length is the return value.
    pub length: u64,
}

const _: () = {
    assert!(size_of::<TlsWrite>() == 48);
    assert!(size_of::<LastRequest>() == 16);
    assert!(size_of::<PendingRead>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn write(number: u64, len: u64, cuts: bool) -> TlsWrite {
        TlsWrite::new(
            number,
            StreamKey::of_socket(1),
            OwnerFields::UNKNOWN,
            len,
            cuts,
        )
    }

    #[test]
    fn the_record_of_a_write_has_a_length_within_bounds() {
        let lengths = |len, cuts| {
            let write = write(1, len, cuts);
            (write.min_len, write.max_len)
        };
        assert_eq!(lengths(100, false), (116, 196));
        assert_eq!(lengths(5000, true), (1040, 5096));
        assert_eq!(lengths(1 << 40, false), (16_400, 16_480));
    }

    #[test]
    fn a_write_that_was_observed_twice_is_one() {
        let first = write(1_000, 100, false);
        assert!(first.is_repeat(&write(2_000, 100, false)));
        assert!(!first.is_repeat(&write(2_000, 101, false)));
        assert!(!first.is_repeat(&write(1_000 + RESTART_WITHIN_NS, 100, false)));
    }
}
