//! How long the pipeline may wait for readers: a file system that responds slowly, on purpose or
//! not, must not delay the observations of others.

use crate::observed::file_system::{is_remote, is_surely_local};
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};

/// Longest wait for one file on a local device or in memory.
const LOCAL_WAIT: SignedDuration = SignedDuration::from_millis(500);
/// Longest wait for one file on a file system that may not respond.
const REMOTE_WAIT: SignedDuration = SignedDuration::from_millis(100);
/// Longest wait for all files of one file system within [`PERIOD`].
const DEVICE_WAIT: SignedDuration = SignedDuration::from_millis(200);
/// Longest wait for what is not a file: an environment, or the trust in a program.
const OTHER_WAIT: SignedDuration = SignedDuration::from_millis(100);
/// Longest wait for everything that may be slow, within [`PERIOD`].
const TOTAL_WAIT: SignedDuration = SignedDuration::from_millis(500);
/// As [`TOTAL_WAIT`], for local devices and memory: users can make many file systems in memory, and
/// keep their reader busy.
const TOTAL_LOCAL_WAIT: SignedDuration = SignedDuration::from_secs(2);
/// After this time, waits are forgotten.
const PERIOD: SignedDuration = SignedDuration::from_secs(10);
/// Number of file systems whose waits are remembered.
const DEVICES_CACHED: usize = 1024;

/// Waits within the current period.
#[derive(Debug)]
pub(super) struct WaitBudget {
    since: Timestamp,
    total: SignedDuration,
    total_local: SignedDuration,
    by_device: LruCache<u32, SignedDuration>,
}

impl Default for WaitBudget {
    fn default() -> Self {
        Self {
            since: Timestamp::UNIX_EPOCH,
            total: SignedDuration::ZERO,
            total_local: SignedDuration::ZERO,
            by_device: LruCache::new(DEVICES_CACHED),
        }
    }
}

impl WaitBudget {
    /// How long to wait for a file on a file system, given by device and magic number.
    pub fn limit(&mut self, now: Timestamp, device: u32, magic: u32) -> SignedDuration {
        self.begin_period(now);
        if is_surely_local(magic, device) {
            return LOCAL_WAIT
                .min(TOTAL_LOCAL_WAIT - self.total_local)
                .max(SignedDuration::ZERO);
        }
        let longest = if is_remote(magic) {
            REMOTE_WAIT
        } else {
            LOCAL_WAIT
        };
        let of_device = self.by_device.get(&device).copied().unwrap_or_default();
        let left = (DEVICE_WAIT - of_device).min(TOTAL_WAIT - self.total);
        longest.min(left).max(SignedDuration::ZERO)
    }

    /// How long to wait for what is not a file.
    pub fn other_limit(&mut self, now: Timestamp) -> SignedDuration {
        self.begin_period(now);
        OTHER_WAIT
            .min(TOTAL_WAIT - self.total)
            .max(SignedDuration::ZERO)
    }

    fn begin_period(&mut self, now: Timestamp) {
        // The clock may have been set back.
        if now.duration_since(self.since).abs() >= PERIOD {
            self.since = now;
            self.total = SignedDuration::ZERO;
            self.total_local = SignedDuration::ZERO;
            self.by_device.clear();
        }
    }

    /// Records a wait in vain for what is not a file.
    pub fn add_other(&mut self, waited: SignedDuration) {
        self.total += waited.abs();
    }

    /// Records a wait in vain for a file.
    pub fn add(&mut self, device: u32, magic: u32, waited: SignedDuration) {
        if is_surely_local(magic, device) {
            self.total_local += waited.abs();
        } else {
            self.total += waited.abs();
            let of_device = self.by_device.get(&device).copied().unwrap_or_default();
            self.by_device.insert(device, of_device + waited.abs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAY: u32 = 0x794c_7630;
    const NFS: u32 = 0x6969;
    const TMPFS: u32 = 0x0102_1994;

    #[test]
    fn slow_file_systems_use_up_their_share() {
        let mut budget = WaitBudget::default();
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        let slow = SignedDuration::from_millis(150);
        assert_eq!(budget.limit(now, 40, NFS), REMOTE_WAIT);
        assert_eq!(budget.limit(now, 41, OVERLAY), DEVICE_WAIT);
        budget.add(41, OVERLAY, slow);
        assert_eq!(budget.limit(now, 41, OVERLAY), DEVICE_WAIT - slow);
        budget.add(41, OVERLAY, slow);
        assert_eq!(budget.limit(now, 41, OVERLAY), SignedDuration::ZERO);
        // Many of them together have a limit as well.
        budget.add(42, OVERLAY, slow);
        assert_eq!(
            budget.limit(now, 43, OVERLAY),
            SignedDuration::from_millis(50)
        );
        budget.add(43, OVERLAY, slow);
        assert_eq!(budget.limit(now, 44, OVERLAY), SignedDuration::ZERO);
        assert_eq!(
            budget.limit(now, 45, TMPFS),
            LOCAL_WAIT,
            "memory is not slow"
        );
        assert_eq!(budget.other_limit(now), SignedDuration::ZERO);
        for device in 50..54 {
            budget.add(device, TMPFS, LOCAL_WAIT);
        }
        assert_eq!(
            budget.limit(now, 54, TMPFS),
            SignedDuration::ZERO,
            "many of them are"
        );
        let later = now + PERIOD;
        assert_eq!(budget.limit(later, 41, OVERLAY), DEVICE_WAIT);
        assert_eq!(budget.other_limit(later), OTHER_WAIT);
    }
}
