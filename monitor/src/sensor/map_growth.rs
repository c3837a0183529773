//! How many entries the kernel evicted from maps that evict by themselves.
//!
//! The probes count entries added less those removed. A map that grew by less than its capacity within
//! a while has evicted only what had been silent for longer than that: the remains of connections and
//! calls that ended unseen. Beyond that, each further entry displaced one that may be in use.

use monitor_common::map::{EVICTING_MAPS, EvictingMap};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What has been silent for longer is not missed.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Interval of the stored samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Entries added to each map less those removed, since the start.
pub type MapGrowthTotals = [i64; EVICTING_MAPS];

/// Entries that may have been in use when they were evicted, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictedEntries([u64; EVICTING_MAPS]);

impl EvictedEntries {
    pub fn get(&self, map: EvictingMap) -> u64 {
        self.0[map as usize]
    }
}

/// Follows the growth of the maps.
#[derive(Debug)]
pub struct MapGrowth {
    capacities: MapGrowthTotals,
    /// The last ones, the oldest first.
    samples: VecDeque<(Instant, MapGrowthTotals)>,
    /// Up to which total evictions were counted.
    counted: MapGrowthTotals,
    evicted: EvictedEntries,
}

impl MapGrowth {
    /// For a machine with this many processors, when the maps were made.
    pub fn new(processors: usize, now: Instant) -> Self {
        let mut capacities = [0; EVICTING_MAPS];
        for map in EvictingMap::ALL {
            capacities[map as usize] = i64::from(map.capacity(processors));
        }
        Self {
            capacities,
            samples: VecDeque::from([(now, [0; EVICTING_MAPS])]),
            counted: [i64::MIN; EVICTING_MAPS],
            evicted: EvictedEntries::default(),
        }
    }

    /// Takes the current totals; returns what was evicted since the start.
    pub fn update(&mut self, now: Instant, totals: MapGrowthTotals) -> EvictedEntries {
        while self
            .samples
            .front()
            .is_some_and(|(time, _)| now.duration_since(*time) > SILENCE_MAX)
        {
            self.samples.pop_front();
        }
        let is_due = |(time, _): &(Instant, _)| now.duration_since(*time) >= SAMPLE_INTERVAL;
        if self.samples.back().is_none_or(is_due) {
            self.samples.push_back((now, totals));
        }
        for map in 0..EVICTING_MAPS {
            let least = self.samples.iter().map(|(_, sample)| sample[map]).min();
            let floor = least.unwrap_or(totals[map]).max(self.counted[map]);
            let over = totals[map] - floor - self.capacities[map];
            if over > 0 {
                self.evicted.0[map] += over as u64;
                self.counted[map] = totals[map] - self.capacities[map];
            }
        }
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn totals(of_calls: i64) -> MapGrowthTotals {
        let mut totals = [0; EVICTING_MAPS];
        totals[EvictingMap::Calls as usize] = of_calls;
        totals
    }

    /// The evicted calls after totals at given seconds.
    fn evicted(totals_at: &[(u64, i64)]) -> u64 {
        let start = Instant::now();
        let mut growth = MapGrowth::new(2, start);
        let mut evicted = EvictedEntries::default();
        for (second, total) in totals_at {
            evicted = growth.update(start + Duration::from_secs(*second), totals(*total));
        }
        evicted.get(EvictingMap::Calls)
    }

    #[test]
    fn a_burst_beyond_the_capacity_is_counted_once() {
        assert_eq!(evicted(&[(0, 0), (1, 1_000)]), 0);
        assert_eq!(evicted(&[(0, 0), (1, 1_100)]), 76);
        assert_eq!(evicted(&[(2, 1_100)]), 76, "before the first look");
        assert_eq!(evicted(&[(0, 0), (1, 1_100), (2, 1_100), (3, 1_110)]), 86);
        // Even if what was added is removed again, and comes back.
        assert_eq!(evicted(&[(0, 0), (1, 1_100), (2, 0), (3, 1_000)]), 76);
    }

    #[test]
    fn slow_growth_evicts_only_what_is_silent() {
        let slow: Vec<(u64, i64)> = (0..1_000)
            .map(|second| (second, second as i64 * 30))
            .collect();
        assert_eq!(evicted(&slow), 0);
        let fast: Vec<(u64, i64)> = (0..1_000)
            .map(|second| (second, second as i64 * 40))
            .collect();
        assert!(evicted(&fast) > 5_000);
    }

    proptest! {
        /// Never more than was added.
        #[test]
        fn any_growth(steps in prop::collection::vec((0u64..40, -2_000i64..2_000), 0..50)) {
            let (mut second, mut total, mut added) = (0, 0, 0);
            let mut at = Vec::new();
            for (passed, by) in steps {
                second += passed;
                total += by;
                added += by.max(0) as u64;
                at.push((second, total));
            }
            prop_assert!(evicted(&at) <= added);
        }
    }
}
