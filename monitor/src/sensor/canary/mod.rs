//! Checks that the probes still report: a process of the agent, the canary, regularly does what each
//! of them must report. A probe that does not was detached, or is kept from reporting.

mod action;
mod mark;
mod process;
mod step;
mod target;

use super::{
    AttachedProgram,
    observation::{Observation, RecordOwner, TaskInfo},
    report::{ProbeSilence, RingLoss, SilenceReason},
};
use jiff::Timestamp;
use mark::CanaryMark;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::model::{Subject, Transport};
use process::{CanaryEvent, CanaryRequest, CanaryThread};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::Path,
    time::{Duration, Instant},
};
use step::CanaryStep;

pub use action::serve;
pub use action::trap_time;
pub use target::canary_function;

/// Interval between rounds.
const INTERVAL: Duration = Duration::from_secs(10);
/// Interval between rounds while something was not reported.
const SUSPICION_INTERVAL: Duration = Duration::from_secs(3);
/// Maximum time until a record arrives.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds in a row that are not reported until the probe counts as silent: one can be lost.
const MISSED_MAX: u32 = 2;
/// A node on which no process starts or ends for this long is unlikely: the canary is started again.
const QUIET_TIMEOUT: Duration = Duration::from_secs(15);
/// Rounds in a row in which a step could not be done until that is reported.
const UNDONE_MAX: u32 = 3;
/// Number of rounds and connections that are remembered.
const MARKS: usize = 4;
const COOKIES: usize = 64;

/// The checks, and what is expected of the probes.
#[derive(Debug)]
pub struct Canary {
    thread: CanaryThread,
    key: FingerprintKey,
    /// Steps for which a probe is attached, and where.
    expectable: BTreeMap<CanaryStep, Vec<String>>,
    states: BTreeMap<CanaryStep, StepState>,
    round: Option<CanaryRound>,
    next: Instant,
    /// The last rounds, with the fingerprints of their secrets.
    marks: VecDeque<(CanaryMark, u64)>,
    /// The agent, as the probes report it: only the canary is its child and reported.
    agent: Subject,
    /// The last canaries.
    subjects: VecDeque<Subject>,
    /// Whose their records are.
    owner: Option<RecordOwner>,
    /// Sockets of the canary.
    cookies: VecDeque<u64>,
    processes_seen: Instant,
    started: Timestamp,
}

/// What is known of a step.
#[derive(Clone, Copy, Debug, Default)]
struct StepState {
    /// When it was last reported.
    seen: Option<Timestamp>,
    missed: u32,
    /// Rounds in a row in which the canary could not do it.
    undone: u32,
    silent: bool,
}

/// A round under way.
#[derive(Debug, Default)]
struct CanaryRound {
    seen: BTreeSet<CanaryStep>,
    /// The steps that the canary could do, and when it was done.
    done: Option<(BTreeSet<CanaryStep>, Instant)>,
    /// Records were lost meanwhile, which is reported elsewhere.
    lossy: bool,
}

impl Canary {
    /// Starts the thread. `directory` is the agent's own, and `agent` its main process.
    pub fn start(
        directory: &Path,
        agent: Subject,
        key: FingerprintKey,
        attached: &[AttachedProgram],
    ) -> io::Result<Self> {
        let expectable = expectable(attached.iter());
        let with_variable = expectable.contains_key(&CanaryStep::Variable);
        Ok(Self {
            thread: CanaryThread::start(directory, with_variable)?,
            key,
            expectable,
            states: BTreeMap::new(),
            round: None,
            next: Instant::now(),
            marks: VecDeque::new(),
            agent,
            subjects: VecDeque::new(),
            owner: None,
            cookies: VecDeque::new(),
            processes_seen: Instant::now(),
            started: Timestamp::now(),
        })
    }

    /// Other programs run now: the round under way is not judged, for it began with others. A probe
    /// that was turned off is not silent any more, which is returned.
    pub fn expect<'a>(
        &mut self,
        running: impl Iterator<Item = &'a AttachedProgram> + Clone,
    ) -> Vec<ProbeSilence> {
        let before = std::mem::replace(&mut self.expectable, expectable(running));
        self.round = None;
        let now = Timestamp::now();
        let mut ended = Vec::new();
        for (step, mechanisms) in before {
            if self.expectable.contains_key(&step) {
                continue;
            }
            let Some(state) = self.states.get_mut(&step) else {
                continue;
            };
            if state.silent {
                ended.push(ProbeSilence {
                    probe: step.probe(),
                    mechanisms,
                    reason: SilenceReason::Silent,
                    since: state.seen.unwrap_or(self.started),
                    until: Some(now),
                    was_heard: state.seen.is_some(),
                });
            }
            *state = StepState {
                seen: state.seen,
                ..StepState::default()
            };
        }
        ended
    }

    /// Begins and judges rounds; called every second with the losses since the last call. Returns the
    /// probes that fell silent or cannot be tested, and those that are heard again.
    pub fn beat(&mut self, losses: &[RingLoss]) -> Vec<ProbeSilence> {
        self.take_events();
        // What others lost proves nothing about the canary.
        let is_own = |loss: &RingLoss| {
            loss.owner == RecordOwner::UNKNOWN || self.owner.is_none_or(|own| own == loss.owner)
        };
        let lossy = losses.iter().any(is_own);
        let now = Instant::now();
        let mut changes = Vec::new();
        if let Some(round) = &mut self.round {
            round.lossy |= lossy;
            let is_over = |(_, done): &(_, Instant)| now.duration_since(*done) > REPORT_TIMEOUT;
            if round.done.as_ref().is_some_and(is_over)
                && let Some(round) = self.round.take()
            {
                let is_first = self.states.is_empty();
                changes = self.judge(round, Timestamp::now());
                if is_first {
                    let heard = self.states.values().filter(|state| state.seen.is_some());
                    let (heard, tested) = (heard.count(), self.states.len());
                    tracing::info!(heard, tested, "the probes were tested");
                }
                if self.states.values().any(|state| state.missed > 0) {
                    self.next = now + SUSPICION_INTERVAL;
                }
            }
        }
        if self.round.is_none() && now >= self.next {
            self.next = now + INTERVAL;
            self.begin(now);
        }
        changes
    }

    fn begin(&mut self, now: Instant) {
        let start_missed = self
            .states
            .iter()
            .any(|(step, state)| step.is_start() && state.missed > 0);
        let quiet = now.duration_since(self.processes_seen) > QUIET_TIMEOUT;
        let request = if start_missed || quiet {
            CanaryRequest::StartAndRound
        } else {
            CanaryRequest::Round
        };
        // A directory that does not respond keeps the thread waiting.
        if self.thread.request(request) {
            self.round = Some(CanaryRound::default());
        }
    }

    /// The changes after a round.
    fn judge(&mut self, round: CanaryRound, now: Timestamp) -> Vec<ProbeSilence> {
        let mut changes = Vec::new();
        let (done, _) = round.done.unwrap_or((BTreeSet::new(), Instant::now()));
        for (step, mechanisms) in &self.expectable {
            let state = self.states.entry(*step).or_default();
            let change = |reason, since, until| ProbeSilence {
                probe: step.probe(),
                mechanisms: mechanisms.clone(),
                reason,
                since,
                until,
                was_heard: state.seen.is_some(),
            };
            let since = state.seen.unwrap_or(self.started);
            if !done.contains(step) {
                // The start is not part of every round.
                if !step.is_start() {
                    state.undone += 1;
                    if state.undone == UNDONE_MAX {
                        changes.push(change(SilenceReason::Untested, since, None));
                    }
                }
                continue;
            }
            if state.undone >= UNDONE_MAX {
                changes.push(change(SilenceReason::Untested, since, Some(now)));
            }
            state.undone = 0;
            // Whose refused connection it is, only the connect probe says.
            if *step == CanaryStep::Refused && !round.seen.contains(&CanaryStep::ConnectV4) {
                continue;
            }
            if round.seen.contains(step) {
                if state.silent {
                    changes.push(change(SilenceReason::Silent, since, Some(now)));
                }
                *state = StepState {
                    seen: Some(now),
                    ..StepState::default()
                };
            } else if !round.lossy {
                state.missed += 1;
                if state.missed >= MISSED_MAX && !state.silent {
                    changes.push(change(SilenceReason::Silent, since, None));
                    state.silent = true;
                }
            }
        }
        changes
    }

    fn take_events(&mut self) {
        while let Some(event) = self.thread.event() {
            match event {
                CanaryEvent::Mark(mark) => {
                    push_bounded(&mut self.marks, (mark, mark.fingerprint(self.key)), MARKS);
                }
                CanaryEvent::Done(steps) => {
                    if let Some(round) = &mut self.round {
                        round.done = Some((steps, Instant::now()));
                    }
                }
            }
        }
    }

    /// Removes what the canary does from the observations.
    pub fn remove_own(&mut self, observations: &mut Vec<Observation>) {
        // They arrive before what they announce.
        self.take_events();
        observations.retain(|observation| !self.is_own(observation));
    }

    /// Whether the canary caused an observation; if so, its step was reported.
    fn is_own(&mut self, observation: &Observation) -> bool {
        let of_canary = observation.task().is_some_and(|task| self.is_canary(task));
        let own = match observation {
            // Attribution must know every process.
            Observation::Exec(_) | Observation::Fork(_) | Observation::Exit(_) => {
                self.processes_seen = Instant::now();
                // A reader is a child as well, and proves the same.
                if of_canary && matches!(observation, Observation::Exec(_)) {
                    self.saw(CanaryStep::Exec);
                }
                return false;
            }
            Observation::FileRepeated(opens) => self.subjects.contains(&opens.key.subject),
            Observation::Refused { cookie, .. } => self.cookies.contains(cookie),
            Observation::Payload(_, payload) => self.cookies.contains(&payload.cookie),
            Observation::PlaintextHost(host) => self.cookies.contains(&host.cookie),
            Observation::Plaintext(secret) => self.cookies.contains(&secret.cookie),
            Observation::DnsResponse(_, _, answer) => self.cookies.contains(&answer.cookie),
            Observation::Minted(_)
            | Observation::WriteRejected { .. }
            | Observation::WriteSent { .. } => false,
            _ => of_canary,
        };
        if own {
            if let Observation::Connected(connection) = observation {
                push_bounded(&mut self.cookies, connection.cookie, COOKIES);
            }
            if let Some(step) = self.step_of(observation) {
                self.saw(step);
            }
        }
        own
    }

    /// Whether a task is a canary: the only child of the agent that is reported.
    fn is_canary(&mut self, task: &TaskInfo) -> bool {
        if self.subjects.contains(&task.subject) {
            return true;
        }
        let is_child = task.parent == Some(self.agent);
        if is_child {
            push_bounded(&mut self.subjects, task.subject, MARKS);
            self.owner = Some(task.owner());
        }
        is_child
    }

    /// The step of which an observation of the canary is the report.
    fn step_of(&self, observation: &Observation) -> Option<CanaryStep> {
        let (step, holds) = match observation {
            Observation::Variable(_, variable) => {
                (CanaryStep::Variable, self.is_secret(variable.fingerprint))
            }
            Observation::FileOpened(open) => {
                let is_marked = |mark: &CanaryMark| {
                    let directory = mark.directory();
                    open.path.iter().any(|part| part == directory.as_str())
                };
                (CanaryStep::Open, self.any_mark(is_marked))
            }
            Observation::ForeignRead(_) => (CanaryStep::Memory, true),
            Observation::Connected(connection) => {
                let datagram = connection.transport == Transport::Udp;
                let step = match (datagram, connection.address.is_ipv4()) {
                    (false, true) => CanaryStep::ConnectV4,
                    (false, false) => CanaryStep::ConnectV6,
                    (true, true) => CanaryStep::DatagramV4,
                    (true, false) => CanaryStep::DatagramV6,
                };
                (step, true)
            }
            Observation::Refused { .. } => (CanaryStep::Refused, true),
            Observation::Payload(_, payload) => (CanaryStep::Hello, payload.hello.is_some()),
            Observation::Plaintext(secret) => (
                CanaryStep::Plaintext,
                self.is_secret(secret.secret.fingerprint),
            ),
            Observation::DnsResponse(_, _, answer) => {
                let is_named = |mark: &CanaryMark| answer.names.contains(&mark.host());
                (CanaryStep::Dns, self.any_mark(is_named))
            }
            Observation::Presented(presentation) => (
                CanaryStep::TlsWrite,
                self.is_secret(presentation.secret.fingerprint),
            ),
            _ => return None,
        };
        holds.then_some(step)
    }

    fn any_mark(&self, is_it: impl Fn(&CanaryMark) -> bool) -> bool {
        self.marks.iter().any(|(mark, _)| is_it(mark))
    }

    fn saw(&mut self, step: CanaryStep) {
        if let Some(round) = &mut self.round {
            round.seen.insert(step);
        }
    }

    fn is_secret(&self, fingerprint: u64) -> bool {
        self.marks.iter().any(|(_, known)| *known == fingerprint)
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, value: T, limit: usize) {
    if list.len() == limit {
        list.pop_front();
    }
    list.push_back(value);
}

/// The steps that an attached program must report, and the hooks of these programs.
fn expectable<'a>(
    attached: impl Iterator<Item = &'a AttachedProgram> + Clone,
) -> BTreeMap<CanaryStep, Vec<String>> {
    let hooks = |step: CanaryStep| -> Vec<String> {
        attached
            .clone()
            .filter(|line| line.error.is_none() && step.programs().contains(&line.program))
            .map(|line| line.mechanism.clone())
            .collect()
    };
    CanaryStep::ALL
        .into_iter()
        .map(|step| (step, hooks(step)))
        .filter(|(_, hooks)| !hooks.is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
