//! Prometheus metrics, with bounded labels.

use crate::model::{Credential, Finding, Hop, Use, Verdict};
use monitor_common::record::{Probe, Stage};
use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

/// Series of one family; what comes after them is counted under `other`.
const SERIES: usize = 5_000;
/// The label under which the rest is counted.
const OTHER: &str = "other";

/// Families as they are registered, and what is said of each.
#[derive(Debug, Default)]
struct Families {
    registry: Registry,
    described: Vec<Desc>,
}

impl Families {
    fn take<T: Collector + Clone + 'static>(
        &mut self,
        family: &T,
    ) -> Result<(), prometheus::Error> {
        self.described.extend(family.desc().into_iter().cloned());
        self.registry.register(Box::new(family.clone()))
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.take(&family)?;
        Ok(family)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, prometheus::Error> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        self.take(&family)?;
        Ok(family)
    }
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    families: Families,
    uses: IntCounterVec,
    hops: IntCounterVec,
    findings: IntCounterVec,
    info: GaugeVec,
    expiry: GaugeVec,
    first_seen: GaugeVec,
    last_used: GaugeVec,
    events: IntCounterVec,
    lost: IntCounterVec,
    lost_by: IntCounterVec,
    attached: IntGaugeVec,
    unattributed: IntCounterVec,
    pub latency: Histogram,
    folded: IntCounterVec,
    pub reload_success: IntGauge,
    series: Mutex<HashMap<&'static str, HashSet<Vec<String>>>>,
    totals: Mutex<HashMap<(&'static str, String), u64>>,
    /// The labels of `info`, by id.
    told: Mutex<HashMap<String, [String; 6]>>,
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut families = Families::default();
        // Processor time, memory and descriptors of the agent itself, by the names that everybody knows.
        families
            .registry
            .register(Box::new(ProcessCollector::for_self()))?;
        let attached = IntGaugeVec::new(
            Opts::new(
                "keytrail_probe_attached",
                "1 where the probe is attached by this mechanism.",
            ),
            &["probe", "mechanism"],
        )?;
        families.take(&attached)?;
        let latency = Histogram::with_opts(
            HistogramOpts::new(
                "keytrail_detection_latency_seconds",
                "From the event in the kernel to the finding or record.",
            )
            .buckets(vec![
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
            ]),
        )?;
        families.take(&latency)?;
        let reload_success = IntGauge::new(
            "keytrail_config_reload_success",
            "1 where the last load of the configuration succeeded.",
        )?;
        families.take(&reload_success)?;
        let build = IntGaugeVec::new(
            Opts::new(
                "keytrail_build_info",
                "Always 1; the version is in the label.",
            ),
            &["version"],
        )?;
        families.take(&build)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let folded = families.counter(
            "keytrail_series_folded_total",
            "Updates counted under `other` because a family had too many series.",
            &["family"],
        )?;
        for family in ["uses", "hops", "findings", "losses", "credentials", "info"] {
            folded.with_label_values(&[family]).inc_by(0);
        }
        let metrics = Self {
            uses: families.counter(
                "keytrail_credential_uses_total",
                "Credentials picked up or presented.",
                &["namespace", "workload", "credential", "class", "source"],
            )?,
            hops: families.counter(
                "keytrail_hops_total",
                "Credentials taken to a destination.",
                &[
                    "namespace",
                    "workload",
                    "credential",
                    "destination",
                    "evidence",
                    "verdict",
                ],
            )?,
            findings: families.counter(
                "keytrail_findings_total",
                "Uses and hops that break an expectation or a rule.",
                &["rule", "severity", "namespace", "workload"],
            )?,
            expiry: families.gauge(
                "keytrail_credential_expiry_timestamp_seconds",
                "When the credential expires, where that is known.", &["credential", "class"],
            )?,
            first_seen: families.gauge(
                "keytrail_credential_first_seen_timestamp_seconds",
                "When the credential was first seen.", &["credential", "class"],
            )?,
            last_used: families.gauge(
                "keytrail_credential_last_used_timestamp_seconds",
                "When the credential was last used.", &["credential", "class"],
            )?,
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
            lost_by: families.counter(
                "keytrail_workload_events_lost_total",
                "Records that found a ring full, by the workload that they were of.",
                &["probe", "workload"],
            )?,
            unattributed: families.counter(
                "keytrail_unattributed_total",
                "Processes and files that could not be told any more.",
                &["reason"],
            )?,
            info: families.gauge(
                "keytrail_credential_info",
                "Always 1; what is known of a credential, by the label that the other families have.",
                &["credential", "id", "class", "role", "lifetime", "owner"],
            )?,
            attached,
            latency,
            folded,
            reload_success,
            families,
            series: Mutex::default(),
            totals: Mutex::default(),
            told: Mutex::default(),
        };
        for probe in Probe::ALL {
            metrics.events.with_label_values(&[probe.name()]).inc_by(0);
            for stage in ["ring", "read"] {
                metrics
                    .lost
                    .with_label_values(&[probe.name(), stage])
                    .inc_by(0);
            }
        }
        Ok(metrics)
    }

    /// Whether a family may have these labels, or must count them under `other`.
    fn admit(&self, family: &'static str, labels: &[&str]) -> bool {
        let Ok(mut series) = self.series.lock() else {
            return false;
        };
        let known = series.entry(family).or_default();
        let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
        if known.contains(&labels) {
            return true;
        }
        if known.len() < SERIES {
            known.insert(labels);
            return true;
        }
        self.folded.with_label_values(&[family]).inc();
        false
    }

    pub fn used(&self, used: &Use) {
        let namespace = used.workload.namespace.as_deref().unwrap_or_default();
        let labels = [
            namespace,
            &used.workload.name,
            shown(&used.credential),
            &used.credential.class,
            used.place.source.as_str(),
        ];
        let labels = if self.admit("uses", &labels) {
            labels
        } else {
            [
                OTHER,
                OTHER,
                OTHER,
                &used.credential.class,
                used.place.source.as_str(),
            ]
        };
        self.uses.with_label_values(&labels).inc_by(used.count);
        self.credential(&used.credential, used.time);
    }

    pub fn hop(&self, hop: &Hop, verdict: Verdict) {
        let destination = hop.destination.label();
        let labels = [
            hop.workload.namespace.as_deref().unwrap_or_default(),
            &hop.workload.name,
            shown(&hop.credential),
            &destination,
            hop.evidence.as_str(),
            verdict.as_str(),
        ];
        let labels = if self.admit("hops", &labels) {
            labels
        } else {
            [
                OTHER,
                OTHER,
                OTHER,
                OTHER,
                hop.evidence.as_str(),
                verdict.as_str(),
            ]
        };
        self.hops.with_label_values(&labels).inc();
        self.credential(&hop.credential, hop.time);
    }

    pub fn found(&self, finding: &Finding) {
        let labels = [
            finding.rule.as_str(),
            finding.severity.as_str(),
            finding.workload.namespace.as_deref().unwrap_or_default(),
            &finding.workload.name,
        ];
        let labels = if self.admit("findings", &labels) {
            labels
        } else {
            [
                finding.rule.as_str(),
                finding.severity.as_str(),
                OTHER,
                OTHER,
            ]
        };
        self.findings.with_label_values(&labels).inc();
    }

    fn credential(&self, credential: &Credential, time: jiff::Timestamp) {
        let labels = [shown(credential), &credential.class];
        if !self.admit("credentials", &labels) {
            return;
        }
        let seconds = time.as_millisecond() as f64 / 1000.0;
        let first = self.first_seen.with_label_values(&labels);
        if first.get() == 0.0 {
            first.set(seconds);
        }
        self.last_used.with_label_values(&labels).set(seconds);
        self.tell(credential);
        if let Some(expiry) = credential.expires_at {
            self.expiry
                .with_label_values(&labels)
                .set(expiry.as_second() as f64);
        }
    }

    /// One series a credential, by its id: where what is known of it changed, the one before goes.
    fn tell(&self, credential: &Credential) {
        if !self.admit("info", &[&credential.id.0]) {
            return;
        }
        let labels = [
            shown(credential),
            &credential.id.0,
            &credential.class,
            credential.role.as_str(),
            credential.lifetime.as_str(),
            credential.owner.as_deref().unwrap_or_default(),
        ]
        .map(str::to_owned);
        let Ok(mut told) = self.told.lock() else {
            return;
        };
        let before = told.insert(credential.id.0.clone(), labels.clone());
        if let Some(before) = before.filter(|before| *before != labels) {
            // It is there: it was set by whoever put it into the map.
            let _ = self.info.remove_label_values(&before);
        }
        self.info.with_label_values(&labels).set(1.0);
    }

    pub fn attached(&self, probe: &str, mechanism: &str, attached: bool) {
        self.attached
            .with_label_values(&[probe, mechanism])
            .set(i64::from(attached));
    }

    /// Takes in a counter that is kept elsewhere; gives how much it grew.
    pub fn events(&self, probe: Probe, stage: Stage, total: u64) -> u64 {
        match stage {
            Stage::Sent => self.grow(&self.events, "events", &[probe.name()], total),
            Stage::Ring => self.grow(&self.lost, "lost", &[probe.name(), "ring"], total),
            Stage::Read => self.grow(&self.lost, "lost", &[probe.name(), "read"], total),
        }
    }

    /// Records lost after the rings: not decoded, not written.
    pub fn lost(&self, probe: &'static str, stage: &'static str, total: u64) -> u64 {
        self.grow(&self.lost, "lost", &[probe, stage], total)
    }

    /// Records of a workload that found a ring full.
    pub fn lost_by(&self, probe: Probe, workload: &str, count: u64) {
        let labels = if self.admit("losses", &[probe.name(), workload]) {
            [probe.name(), workload]
        } else {
            [probe.name(), OTHER]
        };
        self.lost_by.with_label_values(&labels).inc_by(count);
    }

    pub fn unattributed(&self, reason: &'static str, total: u64) {
        self.grow(&self.unattributed, "unattributed", &[reason], total);
    }

    fn grow(&self, family: &IntCounterVec, name: &'static str, labels: &[&str], total: u64) -> u64 {
        let Ok(mut totals) = self.totals.lock() else {
            return 0;
        };
        let known = totals.entry((name, labels.join("/"))).or_default();
        let growth = total.saturating_sub(*known);
        *known = total;
        family.with_label_values(labels).inc_by(growth);
        growth
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.families.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A credential's label: the name that people gave it, or its id.
fn shown(credential: &Credential) -> &str {
    credential.name.as_deref().unwrap_or(&credential.id.0)
}

#[cfg(test)]
impl Metrics {
    /// Name, labels and meaning of every family that is Keytrail's own, by name.
    pub fn described(&self) -> Vec<(String, String, String)> {
        let mut all: Vec<_> = self
            .families
            .described
            .iter()
            .map(|one| {
                (
                    one.fq_name.clone(),
                    one.variable_labels.join(", "),
                    one.help.clone(),
                )
            })
            .collect();
        all.sort();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_a_limit() {
        let metrics = Metrics::new().expect("registers");
        for i in 0..SERIES + 10 {
            let label = i.to_string();
            assert_eq!(metrics.admit("uses", &[&label]), i < SERIES);
        }
        assert!(metrics.admit("uses", &["3"]), "a known series stays");
        let text = metrics.render().expect("renders");
        assert!(
            text.contains("keytrail_series_folded_total{family=\"uses\"} 10"),
            "{text}"
        );
    }

    #[test]
    fn counters_kept_elsewhere_only_grow() {
        let metrics = Metrics::new().expect("registers");
        assert_eq!(metrics.events(Probe::File, Stage::Ring, 5), 5);
        assert_eq!(metrics.events(Probe::File, Stage::Ring, 7), 2);
        let text = metrics.render().expect("renders");
        assert!(
            text.contains("keytrail_events_lost_total{probe=\"file\",stage=\"ring\"} 7"),
            "{text}"
        );
    }
}
