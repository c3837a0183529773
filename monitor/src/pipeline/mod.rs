//! From observations to outputs, in one direction: enrich, join, evaluate. What it asks of the
//! probes is returned as [`Effects`]; it knows neither the kernel nor the clock.

mod counters;
mod enricher;
mod evaluator;
mod gaps;
mod notices;
mod sinks;
#[cfg(test)]
mod tests;

use crate::{
    attribution::Attribution,
    config::exclude::ExcludePattern,
    credential::Credentials,
    reader::{ReadId, ReadResult},
    sensor::{
        effects::Effects,
        exclude::ExclusionRules,
        observation::Observation,
        report::{SensorReport, SilenceReason},
    },
};
use enricher::Enricher;
pub use evaluator::Evaluator;
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    baseline::KnownUser,
    catalog::Catalog,
    model::{Credential, Gap},
    policy::expectation::Expectations,
    trail::TrailEvent,
};
use notices::NoticeGaps;
pub use sinks::{EventRecorder, Sinks};
use std::{net::IpAddr, sync::Arc};

/// Observations in time order.
#[derive(Debug)]
pub struct Batch {
    pub observations: Vec<Observation>,
    /// Answers of the reader.
    pub answers: Vec<(ReadId, ReadResult)>,
    /// All records sent before this time were read.
    pub read_until: Timestamp,
}

impl Batch {
    /// Without observations and answers.
    pub fn empty(read_until: Timestamp) -> Self {
        Self {
            observations: Vec::new(),
            answers: Vec::new(),
            read_until,
        }
    }

    /// One answer only.
    pub fn of_answer(answer: (ReadId, ReadResult), read_until: Timestamp) -> Self {
        Self {
            answers: vec![answer],
            ..Self::empty(read_until)
        }
    }
}

/// What the pipeline needs to know about the sensor.
#[derive(Clone, Copy, Debug)]
pub struct SensorFacts {
    /// The agent's pid, as the probes report it.
    pub own_pid: u32,
    /// No probe reads the environment at exec.
    pub environ_is_read: bool,
    /// Cookie of the agent's network namespace, if the kernel tells it.
    pub own_network: Option<u64>,
}

/// The pipeline's stages and the events between them.
#[derive(Debug)]
pub struct Pipeline {
    enricher: Enricher,
    evaluator: Evaluator,
    notices: NoticeGaps,
    exclude: Vec<ExcludePattern>,
    events: Vec<TrailEvent>,
    /// When the sensor's counters were last collected.
    counted: Timestamp,
    /// When the host's users were last read.
    homes_read: Timestamp,
}

/// Interval at which the host's users are read again.
const HOMES_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

impl Pipeline {
    pub fn new(
        attribution: Attribution,
        credentials: Credentials,
        evaluator: Evaluator,
        exclude: Vec<ExcludePattern>,
        sensor: SensorFacts,
    ) -> Self {
        Self {
            enricher: Enricher::new(attribution, credentials, sensor),
            evaluator,
            notices: NoticeGaps::default(),
            exclude,
            events: Vec::new(),
            counted: Timestamp::UNIX_EPOCH,
            homes_read: Timestamp::UNIX_EPOCH,
        }
    }

    /// Restores the credentials known from previous runs, when they were first seen, and who used
    /// them.
    pub fn restore(&mut self, known: Vec<(Credential, Timestamp)>, users: &[KnownUser]) {
        self.evaluator.policy.restore(users);
        for (credential, first_seen) in &known {
            let mut named = credential.clone();
            // Names come from the expectations in force now.
            (named.name, named.owner) = (None, None);
            self.evaluator.policy.apply_name(&mut named);
            self.evaluator
                .sinks
                .metrics
                .credentials
                .restore_first_seen(&named, *first_seen);
        }
        self.enricher.credentials.remember(known);
    }

    /// Restores the names that addresses had in previous runs.
    pub fn restore_names(&mut self, known: Vec<(String, IpAddr)>, now: Timestamp) {
        if !known.is_empty() {
            self.events.push(TrailEvent::Names { time: now, known });
        }
    }

    /// Resolvers to believe besides those that the host and its containers are configured with.
    pub fn set_resolvers(&mut self, configured: Vec<IpAddr>) {
        self.enricher.set_resolvers(configured);
    }

    /// Processes what existed before the probes: the gaps of this start, and what is running. `known`
    /// are the places of credential files of an earlier run.
    pub fn start(&mut self, gaps: Vec<TrailEvent>, known: Vec<String>, now: Timestamp) -> Effects {
        (self.counted, self.homes_read) = (now, now);
        self.events.extend(gaps);
        self.evaluator.process(&mut self.events);
        // Nothing can prevent the start any more. Its gaps are written with it: an agent that is killed
        // a moment later would hide the time without any.
        if let Some(ledger) = &self.evaluator.sinks.ledger {
            ledger.started(now);
        }
        self.enricher.scan_running(now, &mut self.events);
        self.enricher.request_background(known);
        self.evaluator.process(&mut self.events);
        self.effects(false)
    }

    /// Whether an observation waits for an answer of the reader.
    pub fn is_waiting(&self) -> bool {
        self.enricher.is_waiting()
    }

    /// Number of running processes whose environment and files are not read yet.
    pub fn unexamined(&self) -> usize {
        self.enricher.unexamined()
    }

    /// Whether there is something to process without any new input.
    pub fn has_more(&self) -> bool {
        self.enricher.has_more()
    }

    /// Takes over a batch of observations, and leaves it empty. Processes the oldest ones: if there
    /// are very many, only a part of them.
    pub fn process(&mut self, batch: &mut Batch, now: Timestamp) -> Effects {
        let answers = std::mem::take(&mut batch.answers);
        self.enricher
            .process(&mut batch.observations, answers, now, &mut self.events);
        let renamed = self.enricher.rename(now, &mut self.events);
        let enriched_until = self.enricher.enriched_until(batch.read_until);
        self.enricher
            .release_unmatched(enriched_until, &mut self.events);
        self.evaluator.process(&mut self.events);
        if let Some(ledger) = &self.evaluator.sinks.ledger {
            ledger.settled_until(enriched_until);
        }
        self.effects(renamed)
    }

    /// Enriches and evaluates in turns everything that can be enriched.
    fn evaluate_the_rest(&mut self, now: Timestamp) {
        loop {
            self.enricher.advance(now, &mut self.events);
            self.evaluator.process(&mut self.events);
            if !self.has_more() {
                return;
            }
        }
    }

    /// Does what is due every second: counters, gaps, timeouts.
    pub fn tick(&mut self, report: SensorReport, now: Timestamp) -> Effects {
        self.count(&report, now);
        let gaps = self.notices.gaps(report.notices, now);
        let silent = report.silences.iter().map(|silence| {
            let probes = &self.evaluator.sinks.metrics.probes;
            let mechanisms = silence.mechanisms.iter();
            for mechanism in mechanisms.filter(|_| silence.reason == SilenceReason::Silent) {
                let heard = silence.until.is_some();
                probes.set_probe_attached(silence.probe.name(), mechanism, heard);
            }
            gaps::silent_probe(silence)
        });
        if let Some(cost) = report.cost {
            self.evaluator.sinks.metrics.probes.set_cost(cost);
        }
        let shed = report.shed.iter().map(gaps::shed_probe);
        let gaps = gaps.into_iter().chain(silent).chain(shed);
        self.events.extend(gaps.map(|gap| TrailEvent::Gap { gap }));
        self.enricher.add_object_names(now, &mut self.events);
        // The clock may have been set back.
        if now.duration_since(self.homes_read).abs() >= HOMES_INTERVAL {
            self.homes_read = now;
            self.enricher.request_host_facts();
        }
        self.enricher.report_overdue(now, &mut self.events);
        let time = self.enricher.enriched_until(now);
        self.events.push(TrailEvent::Tick { time });
        self.enricher.evict_exited(now, &mut self.events);
        self.evaluator.process(&mut self.events);
        self.effects(false)
    }

    /// Adds a gap that the agent found in itself, to be processed with what comes next.
    pub fn add_gap(&mut self, gap: Gap) {
        self.events.push(TrailEvent::Gap { gap });
    }

    /// Replaces the expectations, the catalog and the exclusions.
    pub fn reload(
        &mut self,
        expectations: Expectations,
        catalog: Arc<Catalog>,
        exclude: Vec<ExcludePattern>,
    ) -> Effects {
        let credentials = &mut self.enricher.credentials;
        credentials.set_catalog(Arc::clone(&catalog));
        let marks = credentials.marks().clone();
        self.enricher.attribution.set_marks(marks);
        self.enricher.attribution.set_catalog(Arc::clone(&catalog));
        let credentials = &self.enricher.credentials;
        let rules = credentials.rules();
        self.evaluator
            .policy
            .replace(expectations, Arc::clone(&catalog));
        let exclusion = (self.exclude != exclude).then(|| {
            let images = Arc::clone(self.enricher.attribution.images());
            ExclusionRules::new(exclude.clone(), images)
        });
        self.exclude = exclude;
        Effects {
            rules: Some(rules),
            authenticators: Some(self.evaluator.authenticators()),
            exclusion,
            catalog: Some(catalog),
            ..Effects::default()
        }
    }

    /// Decides everything that is waiting, because no more input will come.
    pub fn finish(&mut self, now: Timestamp) {
        self.enricher.end_waiting();
        self.evaluate_the_rest(now);
        self.enricher.report_unread(&mut self.events);
        self.evaluator.process(&mut self.events);
        self.evaluator.finish();
    }

    pub fn sinks_mut(&mut self) -> &mut Sinks {
        &mut self.evaluator.sinks
    }

    fn effects(&mut self, renamed: bool) -> Effects {
        let wanted = self.enricher.take_wanted();
        let rules = wanted
            .places_changed
            .then(|| self.enricher.credentials.rules());
        Effects {
            rules,
            learn: wanted.learn,
            ignore: wanted.ignore,
            secrets: self.enricher.credentials.take_new_secrets(),
            reads: self.enricher.take_read_requests(),
            inspect_responses: std::mem::take(&mut self.evaluator.authenticator_clients),
            reconsider_exclusion: renamed && !self.exclude.is_empty(),
            ..Effects::default()
        }
    }
}
