//! Turns what does not work into gaps and answers of the health checks: stalled threads, an agent
//! that did not run, silent probes.

use crate::{
    health::{Health, Problem, Pulse, StalledThread, stalled},
    sensor::report::{ProbeSilence, SilenceReason},
};
use jiff::Timestamp;
use monitor_core::model::Gap;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The pipeline begins its loop several times per second: after this time it was stopped.
const PAUSE: Duration = Duration::from_secs(10);

/// Owned by the pipeline's thread.
pub(super) struct Watchdog {
    health: Health,
    pulse: Pulse,
    last: (Instant, Timestamp),
    /// Stalled threads, with the gaps that were reported for them.
    stalled: BTreeMap<&'static str, Gap>,
}

impl Watchdog {
    pub fn new(health: Health) -> Self {
        Self {
            health,
            pulse: Pulse::of_thread("pipeline"),
            last: (Instant::now(), Timestamp::now()),
            stalled: BTreeMap::new(),
        }
    }

    /// Called in every loop of the pipeline: a gap if it did not run for a while, because the process
    /// was stopped or got no processor. The time that a suspended machine sleeps does not count.
    pub fn beat(&mut self) -> Option<Gap> {
        self.pulse.busy();
        let now = (Instant::now(), Timestamp::now());
        let (before, since) = std::mem::replace(&mut self.last, now);
        let paused = now.0.duration_since(before);
        (paused >= PAUSE).then(|| {
            tracing::error!(seconds = paused.as_secs(), "the agent did not run");
            let detail = "the agent did not run for a while: it was stopped, or got no processor; findings are late by that, and what did not fit into the rings is lost";
            gap("agent-stalled", detail.to_owned(), since, Some(now.1), true)
        })
    }

    /// Called every second: gaps for threads that are stalled now, and the ends of such gaps.
    pub fn stalled_threads(&mut self, now: Timestamp) -> Vec<Gap> {
        let found = stalled();
        let mut gaps = Vec::new();
        self.stalled.retain(|name, open| {
            let ended = !found.iter().any(|thread| thread.name == *name);
            if ended {
                gaps.push(Gap {
                    until: Some(now),
                    blind: false,
                    ..open.clone()
                });
            }
            !ended
        });
        for StalledThread { name, since, .. } in found {
            self.stalled.entry(name).or_insert_with(|| {
                let detail = format!("the agent's thread `{name}` is stalled");
                let since = now - since.unwrap_or_default();
                let new = gap("thread-stalled", detail, since, None, true);
                tracing::error!(thread = name, "a thread of the agent is stalled");
                gaps.push(new.clone());
                new
            });
        }
        gaps
    }

    /// Has the health checks say which probes are silent.
    pub fn note_silences(&self, silences: &[ProbeSilence]) {
        for silence in silences {
            let hooks = silence.mechanisms.join(", ");
            let name = silence.probe.name();
            let about = format!("{name} probe {hooks}");
            if silence.reason == SilenceReason::Untested {
                let tested = silence.until.is_some();
                tracing::warn!(
                    probe = name,
                    hooks,
                    tested,
                    "whether the probe can be tested has changed"
                );
                continue;
            }
            if silence.until.is_some() {
                tracing::info!(probe = name, hooks, "the probe reports again");
                self.health.clear(&about);
                continue;
            }
            tracing::error!(probe = name, hooks, "the probe is silent");
            let problem = Problem {
                text: format!("the {name} probe ({hooks}) is silent"),
                // Otherwise it does not work on this machine.
                restart_helps: silence.was_heard,
                answers_wrong: false,
            };
            self.health.set(&about, problem);
        }
    }
}

fn gap(kind: &str, detail: String, since: Timestamp, until: Option<Timestamp>, blind: bool) -> Gap {
    Gap {
        kind: kind.to_owned(),
        probe: None,
        detail,
        since,
        until,
        count: 0,
        blind,
    }
}
