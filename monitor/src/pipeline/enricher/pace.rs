//! How many observations can be evaluated in a time, measured from turn to turn: a machine may be
//! slow, or busy with other things.

use jiff::{SignedDuration, Timestamp};
use std::ops::RangeInclusive;

/// The pace of the last full turn.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the running turn began, and how many observations it enriched, if it is a full one.
    turn: Option<(Timestamp, usize)>,
    /// Observations, and the time that it took to enrich and evaluate them.
    last: Option<(usize, SignedDuration)>,
}

impl Pace {
    /// A turn begins; the one before has ended.
    pub fn begin_turn(&mut self, now: Timestamp) {
        if let Some((began, enriched)) = self.turn.take() {
            // The clock may have been set back.
            self.last = Some((enriched, now.duration_since(began).abs()));
        }
    }

    /// The turn leaves observations for the next one.
    pub fn leave_rest(&mut self, now: Timestamp, enriched: usize) {
        self.turn = Some((now, enriched));
    }

    /// Number of observations that can be evaluated within a time, but within these bounds.
    pub fn within(&self, time: SignedDuration, bounds: RangeInclusive<usize>) -> usize {
        let Some((enriched, taken)) = self.last else {
            return *bounds.end();
        };
        let possible = enriched as u128 * time.as_micros().unsigned_abs()
            / taken.as_micros().unsigned_abs().max(1);
        usize::try_from(possible)
            .unwrap_or(usize::MAX)
            .clamp(*bounds.start(), *bounds.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_machine_evaluates_less() {
        let mut pace = Pace::default();
        let at = |milliseconds| Timestamp::UNIX_EPOCH + SignedDuration::from_millis(milliseconds);
        let time = SignedDuration::from_millis(200);
        assert_eq!(pace.within(time, 10..=4_000), 4_000);
        pace.begin_turn(at(0));
        pace.leave_rest(at(0), 1_000);
        pace.begin_turn(at(1_000));
        assert_eq!(pace.within(time, 10..=4_000), 200);
        // A turn that leaves nothing says nothing about what would be possible.
        pace.begin_turn(at(9_000));
        assert_eq!(pace.within(time, 10..=4_000), 200);
        assert_eq!(pace.within(time, 500..=4_000), 500);
        // The clock was set back; a turn took no time.
        pace.leave_rest(at(9_000), 1_000);
        pace.begin_turn(at(7_000));
        assert_eq!(pace.within(time, 10..=4_000), 100);
        pace.leave_rest(at(7_000), 1_000);
        pace.begin_turn(at(7_000));
        assert_eq!(pace.within(time, 10..=4_000), 4_000);
    }
}
