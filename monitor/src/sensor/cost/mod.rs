//! The circuit breaker: what the probes cost the node is measured, and where it exceeds the budget,
//! probes are turned off in a declared order and later tried again.

mod breaker;
mod meter;
mod switch;
mod unit;

use crate::health::Pulse;
use breaker::{Breaker, CostChange, CostSample};
use jiff::Timestamp;
pub use meter::{ACCOUNTS, CostMeter, MeasuredProgram};
use std::{
    collections::BTreeMap,
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};
pub use switch::{CalledProgram, CostSwitches};
pub use unit::{CostUnit, is_uprobe};

/// Interval between measurements, and how long each takes: accounting itself costs something.
const INTERVAL: Duration = Duration::from_secs(10);
/// The interval while the budget is exceeded.
const SUSPICION_INTERVAL: Duration = Duration::from_secs(3);
const WINDOW: Duration = Duration::from_secs(1);

/// A unit that was turned off, or is on again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShedNotice {
    pub unit: CostUnit,
    pub since: Timestamp,
    /// When it was turned on again.
    pub until: Option<Timestamp>,
    /// What the probes cost when it was turned off, as a share of the time of all processors.
    pub cost: f64,
    pub budget: f64,
}

/// What the thread reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CostReport {
    /// A measurement: the share of the time of all processors.
    Measured(f64),
    Shed(ShedNotice),
}

/// The thread that measures and decides. It owns the links that it may undo.
#[derive(Debug)]
pub struct CostGuard {
    /// Dropped to stop the thread.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pub reports: Receiver<CostReport>,
}

impl CostGuard {
    /// `budget` is a share of the time of all processors.
    pub fn start(meter: CostMeter, switches: CostSwitches, budget: f64) -> io::Result<Self> {
        let (running, stopped) = channel();
        let (report, reports) = channel();
        let thread = std::thread::Builder::new()
            .name("cost".to_owned())
            .spawn(move || {
                let mut guard = GuardState {
                    meter,
                    switches,
                    budget,
                    breaker: Breaker::new(budget),
                    shed: BTreeMap::new(),
                    helpless: false,
                    report,
                };
                guard.run(&stopped);
            })?;
        Ok(Self {
            running: Some(running),
            thread: Some(thread),
            reports,
        })
    }
}

impl Drop for CostGuard {
    /// Detaches what the thread owns.
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that measures the cost of the probes panicked");
        }
    }
}

/// The state of the thread.
struct GuardState {
    meter: CostMeter,
    switches: CostSwitches,
    budget: f64,
    breaker: Breaker,
    shed: BTreeMap<CostUnit, ShedNotice>,
    helpless: bool,
    report: Sender<CostReport>,
}

impl GuardState {
    fn run(&mut self, stopped: &Receiver<()>) {
        // Whether the thread goes on.
        let wait = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let pulse = Pulse::of_environment("cost");
        let mut unmeasured = false;
        loop {
            pulse.idle();
            let interval = if self.breaker.is_suspicious() && !self.helpless {
                SUSPICION_INTERVAL
            } else {
                INTERVAL
            };
            if !wait(interval - WINDOW) {
                return;
            }
            pulse.busy();
            match self.meter.measure(WINDOW, wait) {
                Some(sample) => {
                    unmeasured = false;
                    self.judge(&sample);
                }
                None if !wait(Duration::ZERO) => return,
                None => {
                    if !std::mem::replace(&mut unmeasured, true) {
                        tracing::warn!("what the probes cost cannot be measured; retrying");
                    }
                }
            }
        }
    }

    fn judge(&mut self, sample: &CostSample) {
        self.tell(CostReport::Measured(sample.total));
        let change = self.breaker.update(sample, Instant::now());
        let helpless = self.breaker.is_helpless(sample);
        if helpless && !self.helpless {
            tracing::warn!(
                percent = percent(sample.total),
                budget = percent(self.budget),
                "the probes cost more than `inspect.budget`, and what is left of them is never turned off"
            );
        }
        self.helpless = helpless;
        let Some(change) = change else { return };
        let (unit, on) = match change {
            CostChange::Shed(unit) => (unit, false),
            CostChange::Restore(unit) => (unit, true),
        };
        if let Err(error) = self.switches.switch(unit, on) {
            tracing::error!(unit = unit.name(), on, %error, "a probe cannot be switched");
            // What is still off remains a gap, and is tried again.
            self.breaker.revert(change);
            return;
        }
        let now = Timestamp::now();
        let notice = if on {
            tracing::info!(
                unit = unit.name(),
                "turned on again, to see whether the node can afford it"
            );
            self.shed.remove(&unit).map(|notice| ShedNotice {
                until: Some(now),
                ..notice
            })
        } else {
            tracing::error!(
                unit = unit.name(),
                percent = percent(sample.total),
                budget = percent(self.budget),
                "turned off: the probes cost more than `inspect.budget`"
            );
            let notice = ShedNotice {
                unit,
                since: now,
                until: None,
                cost: sample.total,
                budget: self.budget,
            };
            self.shed.insert(unit, notice);
            Some(notice)
        };
        if let Some(notice) = notice {
            self.tell(CostReport::Shed(notice));
        }
    }

    fn tell(&self, report: CostReport) {
        // The receiver ends only with this thread's owner.
        let _ = self.report.send(report);
    }
}

/// A share in percent, with two digits after the point.
pub fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}
