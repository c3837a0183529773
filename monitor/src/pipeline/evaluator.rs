//! Runs the trail and the policy, and distributes their outputs.

use super::sinks::Sinks;
use crate::{ledger::LedgerEntry, metrics::Metrics};
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    model::{Evidence, Finding, Gap, Hop, Mint, NOT_COVERED, NameSource, Use, Workload},
    policy::{Policy, decision::Decision},
    trail::{Trail, TrailEvent, TrailOutput},
};
use std::{collections::VecDeque, net::IpAddr};

/// Maximum uses and mints waiting for a name, and workloads remembered as unnamed.
const DEFERRED_MAX: usize = 4096;
/// How long to wait for a name where a decision is possible without one.
const NAME_TIMEOUT: SignedDuration = SignedDuration::from_secs(5);
/// How long to wait where it is not: about as long as names are queried. Then the finding is raised
/// with a note.
const PENDING_TIMEOUT: SignedDuration = SignedDuration::from_mins(11);

/// A decision that depends on the actor's name.
#[derive(Debug)]
enum DeferredDecision {
    Use(Box<Use>),
    Mint(Box<Mint>),
    Hop(Box<Hop>),
}

impl DeferredDecision {
    fn workload(&mut self) -> &mut Workload {
        match self {
            Self::Use(used) => &mut used.workload,
            Self::Mint(mint) => &mut mint.workload,
            Self::Hop(hop) => &mut hop.workload,
        }
    }

    fn time(&self) -> Timestamp {
        match self {
            Self::Use(used) => used.time,
            Self::Mint(mint) => mint.time,
            Self::Hop(hop) => hop.time,
        }
    }
}

/// Runs the trail and the policy, and distributes their outputs.
#[derive(Debug)]
pub struct Evaluator {
    pub(super) trail: Trail,
    pub(super) policy: Policy,
    pub(super) sinks: Sinks,
    /// Processes that talk to an authenticator, since this was last drained.
    pub(super) authenticator_clients: Vec<u32>,
    /// Decisions waiting for a workload that is likely to be named soon.
    deferred: VecDeque<DeferredDecision>,
    /// Decisions waiting for a name that did not arrive soon.
    pending: VecDeque<DeferredDecision>,
    /// Workloads for which no name exists.
    unnamed: LruCache<Workload, ()>,
    /// Recent gaps, to attach to findings near them.
    gaps: VecDeque<Gap>,
    /// Whether events happen now rather than in a replay.
    live: bool,
}

/// Maximum gaps remembered.
const RECENT_GAPS_MAX: usize = 16;

impl Evaluator {
    pub fn new(policy: Policy, sinks: Sinks, live: bool) -> Self {
        Self {
            trail: Trail::new(),
            policy,
            sinks,
            authenticator_clients: Vec::new(),
            deferred: VecDeque::new(),
            pending: VecDeque::new(),
            unnamed: LruCache::new(DEFERRED_MAX),
            gaps: VecDeque::new(),
            live,
        }
    }

    /// The addresses of authenticators that the expectations name.
    pub fn authenticators(&self) -> Vec<IpAddr> {
        self.policy.minting_addresses()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.sinks.metrics
    }

    /// Processes events, and distributes the outputs.
    pub fn process(&mut self, events: &mut Vec<TrailEvent>) {
        let mut outcomes = Vec::new();
        for event in events.drain(..) {
            if let Some(recorder) = &self.sinks.record {
                recorder.record(&event);
            }
            if let TrailEvent::Tick { time } = &event {
                self.release_deferred(*time);
            }
            self.trail.process(event, &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.evaluate(outcome);
            }
        }
    }

    fn evaluate(&mut self, outcome: TrailOutput) {
        let (time, found) = match outcome {
            TrailOutput::Use(mut used) => {
                self.policy.apply_shared_name(&mut used.credential);
                self.sinks.metrics.credentials.count_use(&used);
                let time = used.time;
                self.sinks.write(LedgerEntry::Use(used.clone()));
                self.decide_when_named(DeferredDecision::Use(used));
                (time, Vec::new())
            }
            TrailOutput::Hop(mut hop) => {
                self.policy.apply_shared_name(&mut hop.credential);
                let (verdict, found) = self.policy.judge_hop(&hop);
                self.sinks.metrics.credentials.count_hop(&hop, verdict);
                let time = hop.time;
                // A plaintext response is observed anyway.
                let inside_tls = hop.destination.name_source == NameSource::Sni
                    || hop.evidence == Evidence::Presented && !hop.clear;
                if self.live && inside_tls && self.policy.is_authenticator(&hop.destination) {
                    self.authenticator_clients.push(hop.process.pid);
                }
                if let Some(mint) = self.policy.proof_of_identity(&hop) {
                    self.sinks.write(LedgerEntry::Mint(Box::new(mint)));
                }
                let found = self.judge_user(&hop, found);
                self.sinks.write(LedgerEntry::Hop(hop, verdict));
                (time, found)
            }
            TrailOutput::Foreign(mut read) => {
                for credential in &mut read.credentials {
                    self.policy.apply_shared_name(credential);
                }
                let found = self.policy.judge_foreign(&read);
                (read.time, found.into_iter().collect())
            }
            TrailOutput::Mint(mut mint) => {
                self.policy.apply_mint_names(&mut mint);
                let time = mint.time;
                self.sinks.write(LedgerEntry::Mint(mint.clone()));
                self.decide_when_named(DeferredDecision::Mint(mint));
                (time, Vec::new())
            }
            TrailOutput::Renamed(both) => {
                self.rename(*both);
                return;
            }
            TrailOutput::Gateways(declared) => {
                self.policy.set_gateways(*declared);
                return;
            }
            TrailOutput::Gap(gap) => {
                self.note_gap(&gap);
                let found = self.policy.judge_gap(&gap);
                self.raise(found);
                self.sinks.write(LedgerEntry::Gap(Box::new(gap)));
                return;
            }
        };
        self.raise(Finding::merged(found));
        if self.live {
            let latency = Timestamp::now().duration_since(time).as_secs_f64();
            self.sinks.metrics.latency.observe(latency.max(0.0));
        }
    }

    fn raise(&mut self, found: impl IntoIterator<Item = Finding>) {
        for mut finding in found {
            self.sinks.metrics.credentials.count_finding(&finding);
            if finding.gaps.is_empty() {
                let near = |gap: &&Gap| gap.touches(finding.time, finding.time);
                finding.gaps = self.gaps.iter().filter(near).cloned().collect();
            }
            let finding = self.sinks.stream.record(finding);
            self.sinks.write(LedgerEntry::Finding(Box::new(finding)));
        }
    }

    /// Remembers a gap, for the findings that it touches.
    fn note_gap(&mut self, gap: &Gap) {
        if gap.kind == NOT_COVERED {
            return;
        }
        if self.gaps.len() >= RECENT_GAPS_MAX {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap.clone());
    }

    /// Renames a workload in what was stored, and decides what waited for the name.
    fn rename(&mut self, [old, new]: [Workload; 2]) {
        if old == new {
            self.unnamed.insert(old.clone(), ());
        } else {
            self.policy.rename(&old, &new);
            self.sinks.metrics.rename(&old, &new);
            self.sinks
                .write(LedgerEntry::Renamed(Box::new([old.clone(), new.clone()])));
        }
        for mut deferred in take_deferred_of(&mut self.deferred, &old) {
            deferred.workload().clone_from(&new);
            if new.partial && old != new {
                self.deferred.push_back(deferred);
            } else {
                self.decide(deferred);
            }
        }
        for mut deferred in take_deferred_of(&mut self.pending, &old) {
            deferred.workload().clone_from(&new);
            self.decide_actor(deferred, Vec::new());
        }
    }

    /// Adds what the presenter of a credential violates to what the hop does; later, if its name may
    /// arrive soon.
    fn judge_user(&mut self, hop: &Hop, mut found: Vec<Finding>) -> Vec<Finding> {
        if hop.evidence != Evidence::Presented {
            return found;
        }
        if self.is_name_expected(&hop.workload) {
            let deferred = DeferredDecision::Hop(Box::new(hop.clone()));
            self.deferred.push_back(deferred);
        } else {
            found.extend(self.policy.judge_user(hop).into_finding());
        }
        found
    }

    /// Whether a workload is likely to be named soon.
    fn is_name_expected(&self, workload: &Workload) -> bool {
        workload.partial
            && !workload.is_vanished()
            && !self.unnamed.contains_key(workload)
            && self.deferred.len() < DEFERRED_MAX
    }

    /// A reader is judged by name, and the name may arrive soon.
    fn decide_when_named(&mut self, mut deferred: DeferredDecision) {
        if self.is_name_expected(deferred.workload()) {
            self.deferred.push_back(deferred);
        } else {
            self.decide(deferred);
        }
    }

    fn decide(&mut self, deferred: DeferredDecision) {
        let found = match &deferred {
            DeferredDecision::Use(used) => self.policy.judge_use(used),
            DeferredDecision::Mint(_) | DeferredDecision::Hop(_) => Vec::new(),
        };
        self.decide_actor(deferred, found);
    }

    /// Decides about the actor; `found` is what the same event violates anyway.
    fn decide_actor(&mut self, deferred: DeferredDecision, mut found: Vec<Finding>) {
        let decision = self.decision(&deferred);
        let is_pending = matches!(decision, Decision::Pending(_));
        if let Decision::Violation(by_actor) = decision {
            found.insert(0, by_actor);
        }
        self.raise(Finding::merged(found));
        if is_pending {
            self.pending.push_back(deferred);
            if self.pending.len() > DEFERRED_MAX {
                self.raise_pending(Timestamp::MIN, 1);
            }
        }
    }

    fn decision(&mut self, deferred: &DeferredDecision) -> Decision {
        let (decision, workload) = match deferred {
            DeferredDecision::Use(used) => (self.policy.judge_reader(used), &used.workload),
            DeferredDecision::Mint(mint) => (self.policy.judge_mint(mint), &mint.workload),
            DeferredDecision::Hop(hop) => (self.policy.judge_user(hop), &hop.workload),
        };
        match decision {
            // No name will come that could decide otherwise.
            Decision::Pending(found) if workload.is_vanished() => Decision::Violation(found),
            decision => decision,
        }
    }

    /// Raises pending findings from before a time, and at least `at_least` of them.
    fn raise_pending(&mut self, before: Timestamp, at_least: usize) {
        let mut raised = 0;
        while let Some(deferred) = self
            .pending
            .pop_front_if(|deferred| raised < at_least || deferred.time() < before)
        {
            raised += 1;
            match self.decision(&deferred) {
                Decision::Allowed => {}
                Decision::Violation(found) | Decision::Pending(found) => self.raise([found]),
            }
        }
    }

    /// No more input will come: decides everything that is waiting.
    pub fn finish(&mut self) {
        while let Some(deferred) = self.deferred.pop_front() {
            self.decide(deferred);
        }
        self.raise_pending(Timestamp::MAX, 0);
        self.sinks.write(LedgerEntry::End);
    }

    /// Decides what has waited long enough for a name.
    fn release_deferred(&mut self, now: Timestamp) {
        // A recording may contain any time.
        let before = |wait| now.checked_sub(wait).unwrap_or(now);
        let end = before(NAME_TIMEOUT);
        while let Some(deferred) = self.deferred.pop_front_if(|deferred| deferred.time() < end) {
            self.decide(deferred);
        }
        self.raise_pending(before(PENDING_TIMEOUT), 0);
    }
}

/// Removes and returns the decisions about a workload.
fn take_deferred_of(
    decisions: &mut VecDeque<DeferredDecision>,
    workload: &Workload,
) -> VecDeque<DeferredDecision> {
    let (matching, rest) =
        std::mem::take(decisions)
            .into_iter()
            .partition(|deferred| match deferred {
                DeferredDecision::Use(used) => used.workload == *workload,
                DeferredDecision::Mint(mint) => mint.workload == *workload,
                DeferredDecision::Hop(hop) => hop.workload == *workload,
            });
    *decisions = rest;
    matching
}
