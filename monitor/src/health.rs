//! Whether the agent works: threads that are stalled, and what else is known to be wrong. The health
//! checks and the gaps are made from it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A thread that works on one thing for longer is stalled.
const STALL: Duration = Duration::from_secs(30);
/// The same for threads that may have to wait for what is not the agent's: the longest request to a
/// reader takes a minute.
const ENVIRONMENT_STALL: Duration = Duration::from_secs(120);

/// When this process first asked; times below are milliseconds since then, and 0 means idle.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The pulses of all threads of this process. Like the log, there is one for the process.
static PULSES: Mutex<Vec<PulseEntry>> = Mutex::new(Vec::new());
/// What a thread that panicked leaves in its pulse.
const DEAD: u64 = u64::MAX;

struct PulseEntry {
    name: &'static str,
    /// Whether a new agent would not be stalled.
    restart_helps: bool,
    since: Weak<AtomicU64>,
}

/// Proves that a thread is alive: it says when it begins and ends to work on something.
#[derive(Debug)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The pulse of the current thread.
    pub fn of_thread(name: &'static str) -> Self {
        Self::new(name, true)
    }

    /// The pulse of a thread that may have to wait for what a new agent would wait for as well.
    pub fn of_environment(name: &'static str) -> Self {
        Self::new(name, false)
    }

    fn new(name: &'static str, restart_helps: bool) -> Self {
        let since = Arc::new(AtomicU64::new(0));
        let mut pulses = pulses();
        pulses.retain(|pulse| pulse.since.strong_count() > 0);
        pulses.push(PulseEntry {
            name,
            restart_helps,
            since: Arc::downgrade(&since),
        });
        Self(since)
    }

    /// The thread begins something new, or begins again.
    pub fn busy(&self) {
        self.0.store(milliseconds().max(1), Ordering::Relaxed);
    }

    /// The thread waits for something to do.
    pub fn idle(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(DEAD, Ordering::Relaxed);
            // The list must not forget it.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// A thread that does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalledThread {
    pub name: &'static str,
    /// For how long; `None` if it panicked.
    pub since: Option<Duration>,
    pub restart_helps: bool,
}

impl std::fmt::Display for StalledThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.since {
            Some(since) => write!(
                f,
                "thread {} has been stalled for {} s",
                self.name,
                since.as_secs()
            ),
            None => write!(f, "thread {} ended unexpectedly", self.name),
        }
    }
}

/// The threads that are stalled.
pub fn stalled() -> Vec<StalledThread> {
    stalled_at(milliseconds())
}

fn stalled_at(now: u64) -> Vec<StalledThread> {
    let pulses = pulses();
    let found = pulses.iter().filter_map(|pulse| {
        let since = match pulse.since.upgrade()?.load(Ordering::Relaxed) {
            0 => return None,
            DEAD => None,
            busy => Some(Duration::from_millis(now.saturating_sub(busy))),
        };
        let limit = if pulse.restart_helps {
            STALL
        } else {
            ENVIRONMENT_STALL
        };
        let stalled = since.is_none_or(|since| since >= limit);
        stalled.then_some(StalledThread {
            name: pulse.name,
            since,
            restart_helps: pulse.restart_helps,
        })
    });
    found.collect()
}

fn pulses() -> MutexGuard<'static, Vec<PulseEntry>> {
    PULSES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds() -> u64 {
    START.elapsed().as_millis() as u64
}

/// What is known to be wrong, by what it is about; shared by the threads that find out and the
/// health checks.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Problem>>>);

/// A problem of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub text: String,
    /// A new agent would not have it.
    pub restart_helps: bool,
    /// Answers would be wrong, rather than incomplete with a gap.
    pub answers_wrong: bool,
}

impl Health {
    pub fn set(&self, about: &str, problem: Problem) {
        self.lock().insert(about.to_owned(), problem);
    }

    pub fn clear(&self, about: &str) {
        self.lock().remove(about);
    }

    /// Why a restart would help; empty if it would not.
    pub fn reasons_to_restart(&self) -> Vec<String> {
        self.reasons(
            |thread| thread.restart_helps,
            |problem| problem.restart_helps,
        )
    }

    /// Why answers would be wrong; empty if they are not.
    pub fn reasons_to_distrust(&self) -> Vec<String> {
        self.reasons(|_| true, |problem| problem.answers_wrong)
    }

    /// The stalled threads and the problems that count.
    fn reasons(
        &self,
        of_thread: impl Fn(&StalledThread) -> bool,
        of_problem: impl Fn(&Problem) -> bool,
    ) -> Vec<String> {
        let stalled = stalled();
        let threads = stalled.iter().filter(|thread| of_thread(thread));
        let problems = self.lock();
        let known = problems.values().filter(|problem| of_problem(problem));
        threads
            .map(StalledThread::to_string)
            .chain(known.map(|problem| problem.text.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Problem>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_stalled(name: &str) -> bool {
        stalled().iter().any(|thread| thread.name == name)
    }

    #[test]
    fn a_thread_that_is_busy_for_too_long_is_stalled() {
        let pulse = Pulse::of_thread("test-busy");
        assert!(!is_stalled("test-busy"), "idle");
        pulse.busy();
        assert!(!is_stalled("test-busy"), "just begun");
        let since = pulse.0.load(Ordering::Relaxed);
        let at = |after: Duration| stalled_at(since + after.as_millis() as u64);
        let has = |found: Vec<StalledThread>| found.iter().any(|thread| thread.name == "test-busy");
        assert!(!has(at(STALL / 2)));
        assert!(has(at(STALL)));
    }

    #[test]
    fn a_thread_that_panicked_is_reported_and_one_that_ended_is_not() {
        for (name, panics) in [("test-panics", true), ("test-ends", false)] {
            let ended = std::thread::spawn(move || {
                let pulse = Pulse::of_thread(name);
                pulse.busy();
                assert!(!panics, "as the test wants");
            })
            .join();
            assert_eq!(ended.is_err(), panics);
            assert_eq!(is_stalled(name), panics, "{name}");
        }
    }

    #[test]
    fn a_problem_is_reported_where_it_matters_until_it_is_cleared() {
        let health = Health::default();
        let problem = Problem {
            text: "the ledger was deleted".to_owned(),
            restart_helps: false,
            answers_wrong: true,
        };
        health.set("ledger", problem.clone());
        assert_eq!(health.reasons_to_distrust(), [problem.text]);
        health.clear("ledger");
        assert!(health.reasons_to_distrust().is_empty());
    }
}
