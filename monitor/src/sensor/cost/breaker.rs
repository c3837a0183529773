//! The circuit breaker: decides from measurements what is turned off, and when it is tried again.
//! Only arithmetic, so that every course of events can be tested.

use super::unit::{COST_UNITS, CostUnit};
use std::time::{Duration, Instant};

/// Measurements above the budget in a row until something is turned off: a burst is no reason.
const ROUNDS_UNTIL_SHED: u32 = 5;
/// The same for what is turned off next, to see what the last one saved.
const ROUNDS_UNTIL_NEXT: u32 = 2;
/// A unit that costs less than this share of the budget is left alone: turning it off saves nothing.
const WORTHWHILE: f64 = 0.1;
/// Measurements below this share of the budget in a row until what was turned off is tried again. It
/// costs something again then, which cannot be foreseen: if it is too much, it is turned off again.
const RELAXED: f64 = 0.8;
const ROUNDS_UNTIL_RESTORE: u32 = 3;
/// How long it stays off at first; twice as long each time that this was too short.
const OFF_AT_FIRST: Duration = Duration::from_secs(600);
const OFF_AT_MOST: Duration = Duration::from_secs(4 * 3600);

/// What the probes cost, as a share of the time of all processors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CostSample {
    pub total: f64,
    /// In the order of [`CostUnit::ORDER`].
    pub units: [f64; COST_UNITS],
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostChange {
    Shed(CostUnit),
    Restore(CostUnit),
}

/// The state of the breaker.
#[derive(Debug)]
pub struct Breaker {
    /// Share of the time of all processors.
    budget: f64,
    over: u32,
    /// Measurements in a row that allow to try again.
    relaxed: u32,
    /// In the order in which they were turned off.
    shed: Vec<CostUnit>,
    /// When a unit was last turned off or on.
    changed: Option<Instant>,
    /// Whether the last change was that a unit was turned on.
    restored: bool,
    off_for: Duration,
}

impl Breaker {
    pub fn new(budget: f64) -> Self {
        Self {
            budget,
            over: 0,
            relaxed: 0,
            shed: Vec::new(),
            changed: None,
            restored: false,
            off_for: OFF_AT_FIRST,
        }
    }

    /// Takes a measurement into account.
    pub fn update(&mut self, sample: &CostSample, now: Instant) -> Option<CostChange> {
        let since_change = self.changed.map(|changed| now.duration_since(changed));
        if sample.total <= self.budget {
            self.over = 0;
            let waited = since_change.is_some_and(|since| since >= self.off_for);
            if self.shed.is_empty() {
                // It lasts: the next time begins as the first did.
                if waited {
                    self.off_for = OFF_AT_FIRST;
                }
                return None;
            }
            if sample.total > self.budget * RELAXED {
                self.relaxed = 0;
                return None;
            }
            self.relaxed += 1;
            if !waited || self.relaxed < ROUNDS_UNTIL_RESTORE {
                return None;
            }
            let unit = self.shed.pop()?;
            self.note_change(now, true);
            return Some(CostChange::Restore(unit));
        }
        self.over += 1;
        self.relaxed = 0;
        let needed = if self.shed.is_empty() {
            ROUNDS_UNTIL_SHED
        } else {
            ROUNDS_UNTIL_NEXT
        };
        if self.over < needed {
            return None;
        }
        let unit = self.next_to_shed(sample)?;
        // It was turned on too early.
        if self.restored && since_change.is_some_and(|since| since < self.off_for) {
            self.off_for = (self.off_for * 2).min(OFF_AT_MOST);
        }
        self.shed.push(unit);
        self.note_change(now, false);
        Some(CostChange::Shed(unit))
    }

    /// A change could not be made.
    pub fn revert(&mut self, change: CostChange) {
        match change {
            CostChange::Shed(unit) => self.shed.retain(|shed| *shed != unit),
            CostChange::Restore(unit) => self.shed.push(unit),
        }
        self.restored = false;
    }

    fn note_change(&mut self, now: Instant, restored: bool) {
        self.over = 0;
        self.relaxed = 0;
        self.changed = Some(now);
        self.restored = restored;
    }

    fn next_to_shed(&self, sample: &CostSample) -> Option<CostUnit> {
        let costs = CostUnit::ORDER.into_iter().zip(sample.units);
        costs
            .filter(|(unit, _)| !self.shed.contains(unit))
            .find(|(_, cost)| *cost >= self.budget * WORTHWHILE)
            .map(|(unit, _)| unit)
    }

    /// Whether the last measurement was above the budget.
    pub fn is_suspicious(&self) -> bool {
        self.over > 0
    }

    /// Whether the budget is exceeded and there is nothing left to turn off.
    pub fn is_helpless(&self, sample: &CostSample) -> bool {
        self.over >= ROUNDS_UNTIL_SHED && self.next_to_shed(sample).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUND: Duration = Duration::from_secs(10);

    /// A breaker with a budget of one percent, and what each unit costs.
    struct Node {
        breaker: Breaker,
        now: Instant,
        base: f64,
        units: [f64; COST_UNITS],
    }

    impl Node {
        fn new(base: f64, units: [f64; COST_UNITS]) -> Self {
            Self {
                breaker: Breaker::new(0.01),
                now: Instant::now(),
                base,
                units,
            }
        }

        /// Measures several times; returns what was changed.
        fn measure(&mut self, rounds: usize) -> Vec<CostChange> {
            (0..rounds)
                .filter_map(|_| {
                    self.now += ROUND;
                    let mut sample = CostSample {
                        total: self.base,
                        units: self.units,
                    };
                    for (unit, cost) in CostUnit::ORDER.into_iter().zip(&mut sample.units) {
                        if self.breaker.shed.contains(&unit) {
                            *cost = 0.0;
                        }
                        sample.total += *cost;
                    }
                    self.breaker.update(&sample, self.now)
                })
                .collect()
        }
    }

    use CostChange::{Restore, Shed};

    #[test]
    fn a_burst_turns_nothing_off() {
        let mut node = Node::new(0.0, [0.0, 0.0, 0.03, 0.0, 0.0]);
        assert_eq!(node.measure(4), []);
        node.units[2] = 0.001;
        assert_eq!(node.measure(1), []);
        node.units[2] = 0.03;
        assert_eq!(node.measure(4), []);
        assert_eq!(node.measure(1), [Shed(CostUnit::Tls)]);
    }

    #[test]
    fn what_costs_nothing_stays_on() {
        let mut node = Node::new(0.0, [0.0005, 0.0005, 0.03, 0.0005, 0.0005]);
        assert_eq!(
            node.measure(100),
            [
                Shed(CostUnit::Tls),
                Restore(CostUnit::Tls),
                Shed(CostUnit::Tls)
            ]
        );
        let mut node = Node::new(0.0, [0.003, 0.004, 0.002, 0.0, 0.003]);
        // In the declared order, until it is within the budget.
        assert_eq!(node.measure(10), [Shed(CostUnit::Responses)]);
    }

    #[test]
    fn what_never_is_turned_off_cannot_be_saved() {
        let mut node = Node::new(0.02, [0.0; COST_UNITS]);
        assert_eq!(node.measure(10), []);
        let sample = CostSample {
            total: 0.02,
            units: [0.0; COST_UNITS],
        };
        assert!(node.breaker.is_helpless(&sample));
    }

    #[test]
    fn what_could_not_be_changed_is_tried_again() {
        let mut node = Node::new(0.0, [0.0, 0.0, 0.03, 0.0, 0.0]);
        assert_eq!(node.measure(5), [Shed(CostUnit::Tls)]);
        node.breaker.revert(Shed(CostUnit::Tls));
        assert_eq!(node.measure(5), [Shed(CostUnit::Tls)]);
        node.units[2] = 0.0;
        assert_eq!(node.measure(70), [Restore(CostUnit::Tls)]);
        node.breaker.revert(Restore(CostUnit::Tls));
        assert_eq!(node.measure(70), [Restore(CostUnit::Tls)]);
    }

    #[test]
    fn it_is_tried_again_less_and_less_often_while_it_stays_too_expensive() {
        let mut node = Node::new(0.0, [0.0, 0.0, 0.03, 0.0, 0.0]);
        let mut changes: Vec<(CostChange, u64)> = Vec::new();
        let began = node.now;
        for _ in 0..6 * 3600 / 10 {
            for change in node.measure(1) {
                changes.push((change, node.now.duration_since(began).as_secs()));
            }
        }
        let restored: Vec<u64> = changes
            .iter()
            .filter(|(change, _)| *change == Restore(CostUnit::Tls))
            .map(|(_, at)| *at)
            .collect();
        let pauses: Vec<u64> = restored.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(restored[0] >= 600 && restored[0] <= 700, "{restored:?}");
        assert!(
            pauses.windows(2).all(|pair| pair[1] > pair[0]),
            "{pauses:?}"
        );
        // What was too much is over.
        node.units[2] = 0.001;
        let rounds = usize::try_from(OFF_AT_MOST.as_secs() / 10 + 1).expect("small");
        assert_eq!(node.measure(rounds), [Restore(CostUnit::Tls)]);
        assert_eq!(node.measure(rounds), []);
        assert_eq!(node.breaker.off_for, OFF_AT_FIRST);
    }

    proptest! {
        /// Whatever is measured, a unit is turned off once before it is turned on, and something is
        /// turned off only above the budget.
        #[test]
        fn changes_alternate(samples in prop::collection::vec((0.0f64..0.05, prop::array::uniform5(0.0f64..0.05), 0u64..2000), 1..200)) {
            let mut breaker = Breaker::new(0.01);
            let mut now = Instant::now();
            let mut off = Vec::new();
            for (total, units, seconds) in samples {
                now += Duration::from_secs(seconds);
                match breaker.update(&CostSample { total, units }, now) {
                    Some(Shed(unit)) => {
                        prop_assert!(total > 0.01 && !off.contains(&unit));
                        off.push(unit);
                    }
                    Some(Restore(unit)) => {
                        prop_assert!(total <= 0.008);
                        prop_assert_eq!(off.pop(), Some(unit));
                    }
                    None => {}
                }
            }
        }
    }
}
