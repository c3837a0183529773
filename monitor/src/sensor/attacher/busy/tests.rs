use super::*;
use proptest::prelude::*;

const TRAP: Duration = Duration::from_micros(5);
const SERVER: u32 = 7;

/// Processes with a steady rate of hits per second, which are traps only while they are observed.
struct Node {
    busy: BusyProcesses,
    now: Instant,
    rates: HashMap<u32, u64>,
    trapped: HashMap<u32, u64>,
}

impl Node {
    fn new(rates: &[(u32, u64)]) -> Self {
        let now = Instant::now();
        Self {
            busy: BusyProcesses::new(TRAP, now),
            now,
            rates: rates.iter().copied().collect(),
            trapped: HashMap::new(),
        }
    }

    /// Looks when it is due, for a time; returns what was changed.
    fn run(&mut self, time: Duration) -> Vec<BusyChange> {
        let end = self.now + time;
        let mut changes = Vec::new();
        while self.now < end {
            let next = self.busy.next_look();
            let passed = next.duration_since(self.now);
            self.now = next;
            let mut hits = HashMap::new();
            for (pid, rate) in &self.rates {
                if !self.busy.rests(*pid) {
                    let count = passed.mul_f64(*rate as f64).as_secs();
                    hits.insert(*pid, count);
                    *self.trapped.entry(*pid).or_default() += count;
                }
            }
            for change in self.busy.look(&hits, self.now) {
                if let Calm(pid) = change {
                    self.busy.forget(pid);
                }
                changes.push(change);
            }
        }
        changes
    }
}

use BusyChange::{Calm, Observe, Rest, RestAgain};

#[test]
fn a_busy_server_rests_at_once_and_is_observed_every_ten_seconds() {
    let mut node = Node::new(&[(SERVER, 40_000), (8, 100)]);
    assert_eq!(node.run(Duration::from_secs(1)), [Rest(SERVER)]);
    let changes = node.run(Duration::from_secs(60));
    assert_eq!(changes.len(), 12, "{changes:?}");
    assert_eq!(changes[..2], [Observe(SERVER), RestAgain(SERVER)]);
    // Until the first look, and six windows of 50 ms in sixty seconds.
    let cost = TRAP.mul_f64(node.trapped[&SERVER] as f64 - 10_000.0);
    assert!(cost < Duration::from_millis(80), "{cost:?}");
}

#[test]
fn a_burst_is_no_reason() {
    let mut node = Node::new(&[(SERVER, 5_000)]);
    assert_eq!(node.run(Duration::from_millis(750)), []);
    node.rates.insert(SERVER, 10);
    assert_eq!(node.run(Duration::from_secs(5)), []);
    node.rates.insert(SERVER, 5_000);
    assert_eq!(node.run(Duration::from_secs(1)), [Rest(SERVER)]);
}

#[test]
fn many_that_are_cheap_one_by_one_are_not_cheap_together() {
    // Each costs 0.5 %.
    let workers: Vec<(u32, u64)> = (1..=20).map(|pid| (pid, 1_000)).collect();
    let mut node = Node::new(&workers);
    let rested = node.run(Duration::from_secs(1)).len();
    assert!((10..=12).contains(&rested), "{rested}");
}

#[test]
fn a_connect_is_observed_as_long_as_it_can_be_afforded() {
    let mut node = Node::new(&[(SERVER, 40_000)]);
    node.run(Duration::from_secs(1));
    assert_eq!(node.busy.connected(SERVER, node.now), Some(Observe(SERVER)));
    // 20 ms of traps are 100 ms.
    assert_eq!(node.run(Duration::from_millis(50)), []);
    assert_eq!(node.run(Duration::from_millis(100)), [RestAgain(SERVER)]);
    let mut observed = 0;
    for _ in 0..20 {
        observed += u32::from(node.busy.connected(SERVER, node.now).is_some());
        node.run(Duration::from_millis(300));
    }
    assert!((4..=9).contains(&observed), "{observed}");
    let unread = node.busy.forget(SERVER).expect("it is busy").unread;
    assert!(unread + u64::from(observed) <= 20 && unread > 0, "{unread}");
}

#[test]
fn one_that_is_busy_no_more_is_observed_again() {
    let mut node = Node::new(&[(SERVER, 40_000)]);
    node.run(Duration::from_secs(1));
    node.rates.insert(SERVER, 50);
    let changes = node.run(Duration::from_secs(60));
    assert_eq!(changes.last(), Some(&Calm(SERVER)), "{changes:?}");
    assert!(node.busy.is_empty());
}

#[test]
fn a_handshake_with_a_distant_server_fits_into_a_window() {
    let mut node = Node::new(&[(SERVER, 40_000)]);
    node.run(Duration::from_secs(1));
    node.rates.insert(SERVER, 10);
    node.busy.connected(SERVER, node.now);
    assert_eq!(node.run(Duration::from_millis(1_900)), []);
    assert_eq!(node.run(Duration::from_millis(200)), [RestAgain(SERVER)]);
}

proptest! {
    /// Whatever happens, a process is observed only after it rests, and rests only after it was
    /// observed.
    #[test]
    fn changes_alternate(steps in prop::collection::vec((0u64..3_000, 1u32..4, 0u64..30_000, any::<bool>()), 1..100)) {
        let mut now = Instant::now();
        let mut busy = BusyProcesses::new(TRAP, now);
        let mut resting = std::collections::HashSet::new();
        for (passed, pid, hits, connects) in steps {
            now += Duration::from_millis(passed);
            let mut changes = Vec::new();
            if connects {
                changes.extend(busy.connected(pid, now));
            }
            changes.extend(busy.look(&HashMap::from([(pid, hits)]), now));
            for change in changes {
                match change {
                    Rest(pid) | RestAgain(pid) => prop_assert!(resting.insert(pid)),
                    Observe(pid) => prop_assert!(resting.remove(&pid)),
                    Calm(pid) => {
                        prop_assert!(!resting.contains(&pid));
                        busy.forget(pid);
                    }
                }
            }
        }
    }
}
