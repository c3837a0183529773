//! Until when everything observed is stored: an agent that is killed knows nothing of what was still
//! in its queues, so the time without an agent begins there, not at the last write.

use jiff::Timestamp;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Maximum marks; with more, the latest of them moves on.
const MARKS_MAX: usize = 256;

/// Times until which everything observed is among so many entries. Both ends count the entries.
#[derive(Debug, Default)]
pub struct SettledTimes(Mutex<VecDeque<SettledMark>>);

/// Everything observed until a time is among the first `sent` entries.
#[derive(Clone, Copy, Debug)]
struct SettledMark {
    sent: u64,
    until: Timestamp,
}

impl SettledTimes {
    pub fn mark(&self, sent: u64, until: Timestamp) {
        let mark = SettledMark { sent, until };
        let mut marks = self.marks();
        let is_full = marks.len() >= MARKS_MAX;
        match marks.back_mut() {
            Some(last) if is_full || last.sent == sent => *last = mark,
            _ => marks.push_back(mark),
        }
    }

    /// Until when everything observed is among the entries received so far; `None` if that is not
    /// known to have changed.
    pub fn take(&self, received: u64) -> Option<Timestamp> {
        let mut marks = self.marks();
        let mut until = None;
        while let Some(mark) = marks.pop_front_if(|mark| mark.sent <= received) {
            until = Some(mark.until);
        }
        until
    }

    /// A panic elsewhere leaves whole marks.
    fn marks(&self) -> MutexGuard<'_, VecDeque<SettledMark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::at;

    #[test]
    fn a_time_counts_when_the_entries_before_it_have_arrived() {
        let times = SettledTimes::default();
        assert_eq!(times.take(0), None);
        times.mark(0, at(1));
        times.mark(0, at(2));
        assert_eq!(times.take(0), Some(at(2)));
        assert_eq!(times.take(0), None);
        times.mark(5, at(3));
        times.mark(9, at(4));
        assert_eq!(times.take(4), None);
        assert_eq!(times.take(8), Some(at(3)));
        assert_eq!(times.take(9), Some(at(4)));
        // While nothing can be written.
        for number in 10..10_000u32 {
            times.mark(number.into(), at(number.into()));
        }
        assert!(times.marks().len() <= MARKS_MAX);
        assert_eq!(times.take(10), Some(at(10)));
        assert_eq!(times.take(10_000), Some(at(9_999)));
    }
}
