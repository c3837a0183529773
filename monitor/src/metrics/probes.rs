//! The probes and what they lost.

use super::{
    OTHER,
    family::BoundedFamily,
    registry::{FoldedSeries, MetricFamilies},
};
use crate::reader::ReadFailure;
use monitor_common::{
    map::LimitedMap,
    record::{Probe, Stage},
};
use monitor_core::model::Workload;
use prometheus::{Gauge, IntCounterVec, IntGaugeVec, Opts};
use std::{collections::HashMap, sync::Mutex};

#[derive(Debug)]
pub struct ProbeMetrics {
    events: IntCounterVec,
    lost: IntCounterVec,
    lost_by: BoundedFamily,
    attached: IntGaugeVec,
    cost: Gauge,
    unattributed: IntCounterVec,
    reader_failures: IntCounterVec,
    full_maps: IntCounterVec,
    folded: FoldedSeries,
    totals: Mutex<HashMap<(&'static str, String), u64>>,
}

impl ProbeMetrics {
    pub fn new(
        families: &mut MetricFamilies,
        folded: FoldedSeries,
    ) -> Result<Self, prometheus::Error> {
        let attached = IntGaugeVec::new(
            Opts::new(
                "keytrail_probe_attached",
                "1 if the probe is attached by this mechanism.",
            ),
            &["probe", "mechanism"],
        )?;
        families.register(&attached)?;
        let cost = Gauge::new(
            "keytrail_probe_cpu_ratio",
            "What the probes cost, as a share of the time of all processors.",
        )?;
        families.register(&cost)?;
        let metrics = Self {
            events: families.counter(
                "keytrail_events_total",
                "Records that a probe sent.",
                &["probe"],
            )?,
            lost: families.counter(
                "keytrail_events_lost_total",
                "Events lost, by the stage that lost them.",
                &["probe", "stage"],
            )?,
            lost_by: BoundedFamily::counter(
                "keytrail_workload_events_lost_total",
                "Records lost because they came too fast, by workload.",
                &["probe", "workload"],
            ),
            unattributed: families.counter(
                "keytrail_unattributed_total",
                "Processes and files that could not be attributed.",
                &["reason"],
            )?,
            reader_failures: families.counter(
                "keytrail_reader_failures_total",
                "Files, programs and processes that the reader could not read.",
                &["reason"],
            )?,
            full_maps: families.counter(
                "keytrail_map_full_total",
                "Entries that a full map of the probes, or table of the agent, refused or evicted.",
                &["map"],
            )?,
            attached,
            cost,
            folded,
            totals: Mutex::default(),
        };
        for probe in Probe::ALL {
            metrics.events.with_label_values(&[probe.name()]).inc_by(0);
            for stage in ["ring", "read", "queue"] {
                metrics
                    .lost
                    .with_label_values(&[probe.name(), stage])
                    .inc_by(0);
            }
        }
        for map in LimitedMap::ALL {
            metrics.count_full(map.name(), 0);
        }
        for failure in ReadFailure::ALL {
            metrics.count_reader_failures(failure, 0);
        }
        Ok(metrics)
    }

    pub fn set_probe_attached(&self, probe: &str, mechanism: &str, attached: bool) {
        self.attached
            .with_label_values(&[probe, mechanism])
            .set(i64::from(attached));
    }

    /// What the probes cost, as a share of the time of all processors.
    pub fn set_cost(&self, share: f64) {
        self.cost.set(share);
    }

    /// Sets a counter that is kept elsewhere; returns its increase.
    pub fn set_events(&self, probe: Probe, stage: Stage, total: u64) -> u64 {
        match stage {
            Stage::Sent => self.add_growth(&self.events, "events", &[probe.name()], total),
            Stage::Ring => self.add_growth(&self.lost, "lost", &[probe.name(), "ring"], total),
            Stage::Read => self.add_growth(&self.lost, "lost", &[probe.name(), "read"], total),
        }
    }

    /// Records lost after the rings: not decoded, not written.
    pub fn count_lost(&self, probe: &'static str, stage: &'static str, total: u64) -> u64 {
        self.add_growth(&self.lost, "lost", &[probe, stage], total)
    }

    /// Records of a workload that were dropped between the ring and their evaluation.
    pub fn count_dropped(&self, probe: Probe, workload: &str, count: u64) {
        let labels = [probe.name(), "queue"];
        self.lost.with_label_values(&labels).inc_by(count);
        self.count_workload_loss(probe, workload, count);
    }

    /// Records of a workload that were lost because they came too fast.
    pub fn count_workload_loss(&self, probe: Probe, workload: &str, count: u64) {
        let name = probe.name();
        self.folded.add(
            &self.lost_by,
            "losses",
            &[name, workload],
            &[name, OTHER],
            count,
        );
    }

    pub fn count_unattributed(&self, reason: &'static str, total: u64) {
        self.add_growth(&self.unattributed, "unattributed", &[reason], total);
    }

    /// Requests to readers without an answer; returns the increase.
    pub fn count_reader_failures(&self, failure: ReadFailure, total: u64) -> u64 {
        self.add_growth(&self.reader_failures, "reader", &[failure.name()], total)
    }

    /// Entries that a full map of the probes or table of the agent refused or evicted; returns the
    /// increase.
    pub fn count_full(&self, name: &str, total: u64) -> u64 {
        self.add_growth(&self.full_maps, "map", &[name], total)
    }

    /// A workload was renamed: moves its losses to the new name.
    pub fn rename(&self, old: &Workload, new: &Workload) {
        let (old, new) = (old.key(), new.key());
        if old != new {
            self.lost_by.rename(&[("workload", &old, &new)]);
        }
    }

    /// Families that may have many series.
    pub fn families(&self) -> [&BoundedFamily; 1] {
        [&self.lost_by]
    }

    fn add_growth(
        &self,
        family: &IntCounterVec,
        name: &'static str,
        labels: &[&str],
        total: u64,
    ) -> u64 {
        let Ok(mut totals) = self.totals.lock() else {
            return 0;
        };
        let known = totals.entry((name, labels.join("/"))).or_default();
        let growth = total.saturating_sub(*known);
        *known = total;
        family.with_label_values(labels).inc_by(growth);
        growth
    }
}
