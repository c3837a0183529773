//! The counters of all probes and stages. Losses become gaps.

use super::{
    EventRecorder, Pipeline,
    enricher::DroppedOfGroup,
    gaps::{dropped, evicted_entries, full_map, full_table, lost, lost_events, unread},
};
use crate::{ledger::LedgerWriter, reader::ReadFailure, sensor::report::SensorReport};
use jiff::Timestamp;
use monitor_common::{
    map::{EvictingMap, LimitedMap},
    record::{Probe, Stage},
};
use monitor_core::{model::Gap, trail::TrailEvent};
use std::{collections::HashMap, sync::atomic::Ordering};

impl Pipeline {
    /// Updates the metrics; losses since the last call become gaps.
    pub(super) fn count(&mut self, report: &SensorReport, now: Timestamp) {
        // The clock may have been set back.
        let since = self.counted.min(now);
        self.counted = now;
        self.count_ring_losses(report, since, now);
        self.count_dropped(since, now);
        self.count_stage_losses(report, since, now);
        self.count_unattributed();
        self.count_reader_failures(report, since, now);
        self.count_full(report, since, now);
        let ledger = self.evaluator.sinks.ledger.iter();
        let gaps = ledger.flat_map(LedgerWriter::gaps);
        self.events.extend(gaps.map(|gap| TrailEvent::Gap { gap }));
    }

    /// Counts what is full: maps of the probes, and tables of the agent.
    fn count_full(&mut self, report: &SensorReport, since: Timestamp, until: Timestamp) {
        let sinks = &self.evaluator.sinks;
        let mut add = |name: &str, total, gap: &dyn Fn(u64) -> Gap| {
            let count = sinks.metrics.probes.count_full(name, total);
            if count > 0 {
                self.events.push(TrailEvent::Gap { gap: gap(count) });
            }
        };
        for map in LimitedMap::ALL {
            let gap = |count| full_map(map, count, since, until);
            add(map.name(), report.full_maps.get(map), &gap);
        }
        for map in EvictingMap::ALL {
            let gap = |count| evicted_entries(map, count, since, until);
            add(map.name(), report.evicted.get(map), &gap);
        }
        let others = [
            ("findings", sinks.stream.forgotten()),
            ("name_mask", report.forgotten_secrets),
        ];
        let tables = self.enricher.forgotten().into_iter();
        for (table, total) in tables
            .chain(self.evaluator.trail.forgotten())
            .chain(self.evaluator.policy.forgotten())
            .chain(others)
        {
            add(table, total, &|count| {
                full_table(table, count, since, until)
            });
        }
    }

    fn count_reader_failures(&mut self, report: &SensorReport, since: Timestamp, until: Timestamp) {
        for (failure, total) in &report.reader_failures {
            let metrics = &self.evaluator.sinks.metrics;
            let count = metrics.probes.count_reader_failures(*failure, *total);
            // A file that is gone before it can be read is usual.
            if count > 0 && *failure != ReadFailure::Unreadable {
                let gap = unread(*failure, count, since, until);
                self.events.push(TrailEvent::Gap { gap });
            }
        }
    }

    fn count_ring_losses(&mut self, report: &SensorReport, since: Timestamp, until: Timestamp) {
        let metrics = &self.evaluator.sinks.metrics;
        let mut attributed: HashMap<&str, u64> = HashMap::new();
        for loss in &report.losses {
            let attribution = &mut self.enricher.attribution;
            let workload = attribution.owner_name(loss.owner.cgroup, loss.owner.known_user());
            metrics
                .probes
                .count_workload_loss(loss.probe, &workload, loss.count);
            *attributed.entry(loss.probe.name()).or_default() += loss.count;
            let gap = lost_events(
                loss.probe,
                Stage::Ring,
                Some(&workload),
                loss.count,
                since,
                until,
            );
            self.events.push(TrailEvent::Gap { gap });
        }
        for probe in Probe::ALL {
            let total = |stage| report.counters.get(probe, stage);
            metrics
                .probes
                .set_events(probe, Stage::Sent, total(Stage::Sent));
            let of_workloads = attributed.get(probe.name()).copied().unwrap_or_default();
            let ring = metrics
                .probes
                .set_events(probe, Stage::Ring, total(Stage::Ring));
            let read = metrics
                .probes
                .set_events(probe, Stage::Read, total(Stage::Read));
            // Those of workloads are gaps already.
            let ring = ring.saturating_sub(of_workloads);
            if probe == Probe::Process && ring + read + of_workloads > 0 {
                self.enricher.attribution.note_lost_records();
            }
            for (stage, count) in [(Stage::Ring, ring), (Stage::Read, read)] {
                if count > 0 {
                    let gap = lost_events(probe, stage, None, count, since, until);
                    self.events.push(TrailEvent::Gap { gap });
                }
            }
        }
    }

    /// Observations that were dropped because they came too fast.
    fn count_dropped(&mut self, since: Timestamp, until: Timestamp) {
        for ((cgroup, probe), DroppedOfGroup { count, user }) in self.enricher.take_dropped() {
            let workload = self.enricher.attribution.owner_name(cgroup, user);
            let metrics = &self.evaluator.sinks.metrics;
            metrics.probes.count_dropped(probe, &workload, count);
            let gap = dropped(probe, &workload, count, since, until);
            self.events.push(TrailEvent::Gap { gap });
        }
    }

    /// Losses after the rings.
    fn count_stage_losses(&mut self, report: &SensorReport, since: Timestamp, until: Timestamp) {
        let sinks = &self.evaluator.sinks;
        let metrics = &sinks.metrics;
        // A payload that is not a ClientHello is not a loss.
        metrics
            .probes
            .count_lost("hello", "parse", self.enricher.malformed);
        let ledger = sinks.ledger.as_ref();
        let unwritten = ledger.map_or(0, |ledger| ledger.lost.load(Ordering::Relaxed));
        for (stage, total, detail) in [
            (
                "decode",
                report.undecoded,
                "probe records could not be decoded",
            ),
            (
                "stream",
                sinks.stream.lost(),
                "findings could not be written to the findings stream",
            ),
            (
                "recording",
                sinks.record.as_ref().map_or(0, EventRecorder::lost),
                "events could not be written to the recording",
            ),
            (
                "ledger",
                unwritten,
                "records could not be written to the ledger",
            ),
        ] {
            let count = metrics.probes.count_lost("all", stage, total);
            if count == 0 {
                continue;
            }
            let gap = lost(None, detail.to_owned(), false, count, since, until);
            self.events.push(TrailEvent::Gap { gap });
        }
    }

    fn count_unattributed(&self) {
        let metrics = &self.evaluator.sinks.metrics;
        let attribution = &self.enricher.attribution;
        let credentials = &self.enricher.credentials;
        for (reason, total) in [
            ("process-gone", attribution.unattributed),
            ("file-unreadable", credentials.unreadable),
            ("pointer-not-followed", credentials.unfollowed),
            ("connection-unknown", self.evaluator.trail.unmatched),
        ] {
            metrics.probes.count_unattributed(reason, total);
        }
        for (reason, total) in attribution.take_unnamed() {
            metrics.probes.count_unattributed(reason, total);
        }
    }
}
