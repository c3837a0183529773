//! Prometheus metrics, with bounded labels.

use super::family::BoundedFamily;
use monitor_common::record::{Probe, Stage};
use monitor_core::model::{Credential, Finding, Hop, Use, Verdict, Workload};
use prometheus::{
    Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
};
use std::{collections::HashMap, sync::Mutex};

/// The label value for the remainder.
const OTHER: &str = "other";

/// The registered families, and their descriptions.
#[derive(Debug, Default)]
struct MetricFamilies {
    registry: Registry,
    described: Vec<Desc>,
}

impl MetricFamilies {
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
}

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    families: MetricFamilies,
    uses: BoundedFamily,
    hops: BoundedFamily,
    findings: BoundedFamily,
    info: BoundedFamily,
    expiry: BoundedFamily,
    first_seen: BoundedFamily,
    last_used: BoundedFamily,
    events: IntCounterVec,
    lost: IntCounterVec,
    lost_by: BoundedFamily,
    attached: IntGaugeVec,
    unattributed: IntCounterVec,
    pub latency: Histogram,
    folded: IntCounterVec,
    pub reload_success: IntGauge,
    totals: Mutex<HashMap<(&'static str, String), u64>>,
    /// When credentials were first seen according to previous runs, by label.
    before: Mutex<HashMap<Box<str>, f64>>,
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut families = MetricFamilies::default();
        // CPU time, memory and descriptors of the agent itself, under their conventional names.
        families
            .registry
            .register(Box::new(ProcessCollector::for_self()))?;
        let attached = IntGaugeVec::new(
            Opts::new(
                "keytrail_probe_attached",
                "1 if the probe is attached by this mechanism.",
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
            "1 if the last load of the configuration succeeded.",
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
            uses: BoundedFamily::counter(
                "keytrail_credential_uses_total",
                "Credentials picked up or presented.",
                &["namespace", "workload", "credential", "class", "source"],
            ),
            hops: BoundedFamily::counter(
                "keytrail_hops_total",
                "Credentials used at a destination.",
                &[
                    "namespace",
                    "workload",
                    "credential",
                    "destination",
                    "evidence",
                    "verdict",
                ],
            ),
            findings: BoundedFamily::counter(
                "keytrail_findings_total",
                "Uses and hops that violate an expectation or a rule.",
                &["rule", "severity", "namespace", "workload"],
            ),
            expiry: BoundedFamily::gauge(
                "keytrail_credential_expiry_timestamp_seconds",
                "When the credential expires, if known.",
                &["credential", "class"],
            ),
            first_seen: BoundedFamily::gauge(
                "keytrail_credential_first_seen_timestamp_seconds",
                "When the credential was first seen.",
                &["credential", "class"],
            ),
            last_used: BoundedFamily::gauge(
                "keytrail_credential_last_used_timestamp_seconds",
                "When the credential was last used.",
                &["credential", "class"],
            ),
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
                "Records lost because a ring was full, by workload.",
                &["probe", "workload"],
            ),
            unattributed: families.counter(
                "keytrail_unattributed_total",
                "Processes and files that could not be attributed.",
                &["reason"],
            )?,
            info: BoundedFamily::gauge(
                "keytrail_credential_info",
                "Always 1; the properties of a credential, by the label used in other families.",
                &["id", "credential", "class", "role", "lifetime", "owner"],
            ),
            attached,
            latency,
            folded,
            reload_success,
            families,
            totals: Mutex::default(),
            before: Mutex::default(),
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

    /// Adds to a series of a family, or to its remainder if there are too many.
    fn add(&self, family: &BoundedFamily, short: &str, labels: &[&str], rest: &[&str], by: u64) {
        if !family.add(labels, rest, by) {
            self.folded.with_label_values(&[short]).inc();
        }
    }

    pub fn count_use(&self, used: &Use) {
        let source = used.place.source.as_str();
        let class = &used.credential.class;
        let labels = [
            used.workload.namespace.as_deref().unwrap_or_default(),
            &used.workload.name,
            credential_label(&used.credential),
            class,
            source,
        ];
        let rest = [OTHER, OTHER, OTHER, class, source];
        self.add(&self.uses, "uses", &labels, &rest, used.count);
        self.set_credential(&used.credential, used.time);
    }

    pub fn count_hop(&self, hop: &Hop, verdict: Verdict) {
        let destination = hop.destination.label();
        let (evidence, verdict) = (hop.evidence.as_str(), verdict.as_str());
        let labels = [
            hop.workload.namespace.as_deref().unwrap_or_default(),
            &hop.workload.name,
            credential_label(&hop.credential),
            &destination,
            evidence,
            verdict,
        ];
        let rest = [OTHER, OTHER, OTHER, OTHER, evidence, verdict];
        self.add(&self.hops, "hops", &labels, &rest, 1);
        self.set_credential(&hop.credential, hop.time);
    }

    pub fn count_finding(&self, finding: &Finding) {
        let (rule, severity) = (finding.rule.as_str(), finding.severity.as_str());
        let labels = [
            rule,
            severity,
            finding.workload.namespace.as_deref().unwrap_or_default(),
            &finding.workload.name,
        ];
        let rest = [rule, severity, OTHER, OTHER];
        self.add(&self.findings, "findings", &labels, &rest, 1);
    }

    /// Restores when a credential was first seen; exported once it is seen again.
    pub fn restore_first_seen(&self, credential: &Credential, first_seen: jiff::Timestamp) {
        let Ok(mut before) = self.before.lock() else {
            return;
        };
        let first_seen = seconds(first_seen);
        // The earliest of those that share a name.
        before
            .entry(credential_label(credential).into())
            .and_modify(|known| *known = known.min(first_seen))
            .or_insert(first_seen);
    }

    /// A workload was renamed: moves its counts to the new name.
    pub fn rename(&self, old: &Workload, new: &Workload) {
        let namespace = |workload: &Workload| workload.namespace.clone().unwrap_or_default();
        let (old_namespace, new_namespace) = (namespace(old), namespace(new));
        if (&old_namespace, &old.name) != (&new_namespace, &new.name) {
            for family in [&self.uses, &self.hops, &self.findings] {
                family.rename(&[
                    ("namespace", &old_namespace, &new_namespace),
                    ("workload", &old.name, &new.name),
                ]);
            }
        }
        let (old, new) = (old.key(), new.key());
        if old != new {
            self.lost_by.rename(&[("workload", &old, &new)]);
        }
    }

    fn set_credential(&self, credential: &Credential, time: jiff::Timestamp) {
        let labels = [credential_label(credential), &credential.class];
        let seconds = seconds(time);
        let before = self.before.lock().ok();
        let first_seen = before
            .and_then(|before| before.get(labels[0]).copied())
            .unwrap_or(seconds);
        if !self.first_seen.set_first(&labels, first_seen) {
            self.folded.with_label_values(&["credentials"]).inc();
            return;
        }
        self.last_used.set(&labels, seconds);
        self.update_credential_info(credential);
        if let Some(expiry) = credential.expires_at {
            self.expiry.set(&labels, expiry.as_second() as f64);
        }
    }

    /// One series per credential, by id: a change replaces the previous series.
    fn update_credential_info(&self, credential: &Credential) {
        let labels = [
            &credential.id.0,
            credential_label(credential),
            &credential.class,
            credential.role.as_str(),
            credential.lifetime.as_str(),
            credential.owner.as_deref().unwrap_or_default(),
        ];
        if !self.info.set_alone(&labels, 1.0) {
            self.folded.with_label_values(&["info"]).inc();
        }
    }

    pub fn set_probe_attached(&self, probe: &str, mechanism: &str, attached: bool) {
        self.attached
            .with_label_values(&[probe, mechanism])
            .set(i64::from(attached));
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

    /// Records of a workload that were lost because a ring was full.
    pub fn count_workload_loss(&self, probe: Probe, workload: &str, count: u64) {
        let name = probe.name();
        self.add(
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

    /// The exposition text.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = String::new();
        let encoder = TextEncoder::new();
        encoder.encode_utf8(&self.families.registry.gather(), &mut text)?;
        // One family at a time: the library's representation is much larger than the text.
        for family in self.is_large() {
            if let Some(family) = family.collect() {
                encoder.encode_utf8(&[family], &mut text)?;
            }
        }
        Ok(text)
    }

    /// Families that may have many series.
    fn is_large(&self) -> [&BoundedFamily; 8] {
        [
            &self.uses,
            &self.hops,
            &self.findings,
            &self.info,
            &self.expiry,
            &self.first_seen,
            &self.last_used,
            &self.lost_by,
        ]
    }
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A credential's label: its policy name, or its id.
fn credential_label(credential: &Credential) -> &str {
    credential.name.as_deref().unwrap_or(&credential.id.0)
}

#[cfg(test)]
impl Metrics {
    /// Name, labels and description of each of Keytrail's own families, by name.
    pub fn family_docs(&self) -> Vec<(String, String, String)> {
        let own = self.families.described.iter().map(|one| {
            (
                one.fq_name.clone(),
                one.variable_labels.join(", "),
                one.help.clone(),
            )
        });
        let large = self.is_large().into_iter().map(|one| {
            (
                one.name.to_owned(),
                one.labels.join(", "),
                one.help.to_owned(),
            )
        });
        let mut all: Vec<_> = own.chain(large).collect();
        all.sort();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_credential_is_told_once() {
        let metrics = Metrics::new().expect("registers");
        let mut credential: Credential = serde_json::from_value(serde_json::json!({
            "id": "kt-1", "class": "jwt", "role": "access", "lifetime": "static", "sources": [],
        }))
        .expect("a credential");
        let time = jiff::Timestamp::UNIX_EPOCH;
        metrics.set_credential(&credential, time);
        credential.name = Some("payments".to_owned());
        metrics.set_credential(&credential, time);
        let text = metrics.render().expect("renders");
        let told: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("keytrail_credential_info{"))
            .collect();
        assert_eq!(
            told,
            [
                "keytrail_credential_info{id=\"kt-1\",credential=\"payments\",class=\"jwt\",role=\"access\",lifetime=\"static\",owner=\"\"} 1"
            ]
        );
    }

    #[test]
    fn counters_kept_elsewhere_only_grow() {
        let metrics = Metrics::new().expect("registers");
        assert_eq!(metrics.set_events(Probe::File, Stage::Ring, 5), 5);
        assert_eq!(metrics.set_events(Probe::File, Stage::Ring, 7), 2);
        let text = metrics.render().expect("renders");
        assert!(
            text.contains("keytrail_events_lost_total{probe=\"file\",stage=\"ring\"} 7"),
            "{text}"
        );
    }

    /// Losses are counted when the rings overflow, which is often before the pod has a name.
    #[test]
    fn losses_of_a_workload_follow_its_late_name() {
        let metrics = Metrics::new().expect("registers");
        let unnamed = Workload {
            partial: true,
            ..Workload::host("cgroup-7")
        };
        let named = Workload::host("/usr/bin/api");
        metrics.count_workload_loss(Probe::Environ, &unnamed.key(), 3);
        metrics.count_workload_loss(Probe::Environ, &named.key(), 4);
        metrics.rename(&unnamed, &named);
        let text = metrics.render().expect("renders");
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("keytrail_workload_events_lost_total{"))
            .collect();
        let expected = format!(
            "keytrail_workload_events_lost_total{{probe=\"environ\",workload=\"{}\"}} 7",
            named.key()
        );
        assert_eq!(series, [expected]);
    }
}
