//! Which processes are so busy with TLS that a trap at each write would slow them, and when they are
//! observed nevertheless. Only arithmetic, so that every course of events can be tested.
//!
//! A busy process rests: nothing is attached to it. It is observed for a while when it connects, as
//! long as its allowance lasts, and at regular intervals.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Interval between looks at the hits of all processes: one system call on a quiet node.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Interval while a busy process is observed: its window must end in time.
pub const WINDOW_LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// What traps may cost a process, as a share of one processor.
const PROCESS_SHARE: f64 = 0.01;
/// Above this share, one look is enough.
const EXTREME_SHARE: f64 = 0.1;
/// Looks in a row until a process counts as busy: a burst is no reason.
const LOOKS_UNTIL_BUSY: u32 = 4;
/// Processes whose traps cost less are left alone, whatever all of them cost together.
const NEGLIGIBLE_SHARE: f64 = 0.001;
/// What the traps of all processes may cost together, as a share of one processor.
const TOTAL_SHARE: f64 = 0.05;
/// A busy process is observed at this interval, also if it does not connect.
pub const WINDOW_INTERVAL: Duration = Duration::from_secs(10);
/// What its traps may cost in a regular window, and in one after a connect.
const WINDOW_COST: Duration = Duration::from_millis(5);
const CONNECT_COST: Duration = Duration::from_millis(20);
const WINDOW_LEAST: Duration = Duration::from_millis(50);
const WINDOW_MOST: Duration = Duration::from_secs(1);
/// A handshake with a distant server takes some of it.
const CONNECT_MOST: Duration = Duration::from_secs(2);
/// What a busy process saves up at most for windows after connects.
const ALLOWANCE_MOST: Duration = Duration::from_millis(100);
/// Regular windows in a row with a tolerable rate, until it is not busy any more.
const WINDOWS_UNTIL_CALM: u32 = 3;

/// A busy process.
#[derive(Debug)]
pub struct BusyProcess {
    /// When it is observed again.
    next: Instant,
    window: Option<Window>,
    /// What may be spent on windows after connects, and when that was computed.
    allowance: Duration,
    computed: Instant,
    calm: u32,
    /// Connects that were not observed, because the allowance was spent.
    pub unread: u64,
}

/// A time in which a busy process is observed.
#[derive(Debug)]
struct Window {
    began: Instant,
    after_connect: bool,
    hits: u64,
}

/// What is to be done about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyChange {
    /// It is busy: nothing may be attached to it.
    Rest(u32),
    /// A window begins: everything that it has mapped is attached to it.
    Observe(u32),
    /// The window ends.
    RestAgain(u32),
    /// It is not busy any more, and to be forgotten.
    Calm(u32),
}

/// Busy processes, and those that may become so.
#[derive(Debug)]
pub struct BusyProcesses {
    /// What a trap costs.
    trap: Duration,
    /// Looks in a row at which a process was above its share.
    suspicious: HashMap<u32, u32>,
    busy: HashMap<u32, BusyProcess>,
    looked: Instant,
    /// Hits of the processes that are not busy, and since when.
    others: HashMap<u32, u64>,
    judged: Instant,
}

impl BusyProcesses {
    pub fn new(trap: Duration, now: Instant) -> Self {
        Self {
            trap,
            suspicious: HashMap::new(),
            busy: HashMap::new(),
            looked: now,
            others: HashMap::new(),
            judged: now,
        }
    }

    pub fn set_trap(&mut self, trap: Duration) {
        self.trap = trap;
    }

    /// Whether nothing may be attached to a process now.
    pub fn rests(&self, pid: u32) -> bool {
        self.busy
            .get(&pid)
            .is_some_and(|process| process.window.is_none())
    }

    pub fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.busy.keys().copied()
    }

    /// When something is due at the latest.
    pub fn next_look(&self) -> Instant {
        let windows = self.busy.values().any(|process| process.window.is_some());
        let interval = if windows {
            WINDOW_LOOK_INTERVAL
        } else {
            LOOK_INTERVAL
        };
        self.looked + interval
    }

    /// A process ended, or executed another program; returns what is known about it.
    pub fn forget(&mut self, pid: u32) -> Option<BusyProcess> {
        self.suspicious.remove(&pid);
        self.busy.remove(&pid)
    }

    /// A process connects: it is observed if it can be afforded.
    pub fn connected(&mut self, pid: u32, now: Instant) -> Option<BusyChange> {
        let process = self.busy.get_mut(&pid)?;
        process.refill(now);
        if let Some(window) = &mut process.window {
            // What it presents there may come at the end of a regular window.
            window.after_connect |= process.allowance >= CONNECT_COST;
            return None;
        }
        if process.allowance < CONNECT_COST {
            process.unread += 1;
            return None;
        }
        process.window = Some(Window::new(now, true));
        Some(BusyChange::Observe(pid))
    }

    /// Takes the hits of each process since the last look.
    pub fn look(&mut self, hits: &HashMap<u32, u64>, now: Instant) -> Vec<BusyChange> {
        self.looked = now;
        let mut changes = Vec::new();
        let trap = self.trap;
        let cost = |hits: u64| trap.mul_f64(hits as f64);
        for (pid, process) in &mut self.busy {
            let hits = hits.get(pid).copied().unwrap_or(0);
            changes.extend(process.look(*pid, hits, cost(hits), trap, now));
        }
        for (pid, hits) in hits {
            if !self.busy.contains_key(pid) {
                *self.others.entry(*pid).or_default() += hits;
            }
        }
        // A look at a window comes earlier.
        let passed = now.duration_since(self.judged);
        if passed >= LOOK_INTERVAL {
            self.judged = now;
            let hits = std::mem::take(&mut self.others);
            self.find_busy(&hits, passed, now, &mut changes);
        }
        changes
    }

    fn find_busy(
        &mut self,
        hits: &HashMap<u32, u64>,
        passed: Duration,
        now: Instant,
        changes: &mut Vec<BusyChange>,
    ) {
        let share = |hits: u64| self.trap.as_secs_f64() * hits as f64 / passed.as_secs_f64();
        let mut shares: Vec<(u32, f64)> = hits
            .iter()
            .map(|(pid, hits)| (*pid, share(*hits)))
            .collect();
        shares.sort_by(|(a_pid, a), (b_pid, b)| b.total_cmp(a).then(a_pid.cmp(b_pid)));
        let mut total: f64 = shares.iter().map(|(_, share)| share).sum();
        let mut suspicious = HashMap::new();
        for (pid, share) in shares {
            let too_much =
                share > PROCESS_SHARE || (total > TOTAL_SHARE && share > NEGLIGIBLE_SHARE);
            let before = self.suspicious.get(&pid).copied().unwrap_or(0);
            if !too_much {
                // Of many that cost about the same, others may be the most expensive each time.
                if before > 0 && share > NEGLIGIBLE_SHARE {
                    suspicious.insert(pid, before);
                }
                continue;
            }
            total -= share;
            let looks = before + 1;
            if share > EXTREME_SHARE || looks >= LOOKS_UNTIL_BUSY {
                self.busy.insert(pid, BusyProcess::new(now));
                changes.push(BusyChange::Rest(pid));
            } else {
                suspicious.insert(pid, looks);
            }
        }
        self.suspicious = suspicious;
    }
}

impl BusyProcess {
    fn new(now: Instant) -> Self {
        Self {
            next: now + WINDOW_INTERVAL,
            window: None,
            allowance: ALLOWANCE_MOST,
            computed: now,
            calm: 0,
            unread: 0,
        }
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.duration_since(self.computed).mul_f64(PROCESS_SHARE);
        self.allowance = (self.allowance + earned).min(ALLOWANCE_MOST);
        self.computed = now;
    }

    fn look(
        &mut self,
        pid: u32,
        hits: u64,
        cost: Duration,
        trap: Duration,
        now: Instant,
    ) -> Option<BusyChange> {
        self.refill(now);
        let Some(window) = &mut self.window else {
            if now < self.next {
                return None;
            }
            self.window = Some(Window::new(now, false));
            return Some(BusyChange::Observe(pid));
        };
        window.hits += hits;
        if window.after_connect {
            self.allowance = self.allowance.saturating_sub(cost);
        }
        let open = now.duration_since(window.began);
        let spent = trap.mul_f64(window.hits as f64);
        let (most_cost, most) = if window.after_connect {
            (CONNECT_COST, CONNECT_MOST)
        } else {
            (WINDOW_COST, WINDOW_MOST)
        };
        if open < WINDOW_LEAST || (spent < most_cost && open < most) {
            return None;
        }
        let rate = spent.as_secs_f64() / open.as_secs_f64();
        self.calm = if rate < PROCESS_SHARE / 2.0 {
            self.calm + 1
        } else {
            0
        };
        if self.calm >= WINDOWS_UNTIL_CALM {
            return Some(BusyChange::Calm(pid));
        }
        self.window = None;
        self.next = now + WINDOW_INTERVAL;
        Some(BusyChange::RestAgain(pid))
    }
}

impl Window {
    fn new(began: Instant, after_connect: bool) -> Self {
        Self {
            began,
            after_connect,
            hits: 0,
        }
    }
}

#[cfg(test)]
mod tests;
