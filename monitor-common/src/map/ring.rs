//! How much of a ring an owner may fill, and what was lost.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An owner of records, by ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct OwnerKey {
    /// Id of the cgroup v2 directory.
    pub cgroup: u64,
    pub user: u32,
    pub ring: u32,
}

/// Records that an owner has sent into a ring that is half full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RingShare {
    /// Begin of the window, in nanoseconds since boot.
    begun: u64,
    /// Records in this window.
    sent: u64,
}

impl RingShare {
    /// A share is for this time.
    const WINDOW_NS: u64 = 100_000_000;
    /// Records per window: the free half of the smallest ring has room for those of several owners.
    const RECORDS: u64 = 256;

    /// A share of which one record is used.
    #[inline(always)]
    pub const fn begun(now: u64) -> Self {
        Self {
            begun: now,
            sent: 1,
        }
    }

    /// Whether one more record is within the share; it is counted if it is.
    #[inline(always)]
    pub fn admits(&mut self, now: u64) -> bool {
        if now.wrapping_sub(self.begun) >= Self::WINDOW_NS {
            *self = Self::begun(now);
            return true;
        }
        let is_within = self.sent < Self::RECORDS;
        self.sent += u64::from(is_within);
        is_within
    }
}

/// Lost records of one owner and probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct LossKey {
    /// Id of the cgroup v2 directory.
    pub cgroup: u64,
    pub user: u32,
    /// A [`crate::record::Probe`].
    pub probe: u32,
}

const _: () = {
    assert!(size_of::<OwnerKey>() == 16);
    assert!(size_of::<RingShare>() == 16);
    assert!(size_of::<LossKey>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_for_a_window() {
        let mut share = RingShare::begun(1_000);
        let mut admitted = |now| (0..1_000).filter(|_| share.admits(now)).count() as u64;
        assert_eq!(admitted(1_000), RingShare::RECORDS - 1);
        assert_eq!(admitted(1_000 + RingShare::WINDOW_NS - 1), 0);
        assert_eq!(admitted(1_000 + RingShare::WINDOW_NS), RingShare::RECORDS);
    }
}
