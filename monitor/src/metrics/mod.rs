//! Prometheus metrics, with bounded labels.

mod credentials;
mod family;
mod probes;
mod registry;

use credentials::CredentialMetrics;
use family::BoundedFamily;
use monitor_core::model::Workload;
use probes::ProbeMetrics;
use prometheus::{
    Histogram, HistogramOpts, IntGauge, IntGaugeVec, Opts, TextEncoder,
    process_collector::ProcessCollector, proto::MetricFamily,
};
use registry::{FoldedSeries, MetricFamilies};

/// The label value for the remainder.
const OTHER: &str = "other";

/// Every metric of the agent.
#[derive(Debug)]
pub struct Metrics {
    families: MetricFamilies,
    pub credentials: CredentialMetrics,
    pub probes: ProbeMetrics,
    pub latency: Histogram,
    pub reload_success: IntGauge,
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Result<Self, prometheus::Error> {
        let mut families = MetricFamilies::default();
        // CPU time, memory and descriptors of the agent itself, under their conventional names.
        families
            .registry
            .register(Box::new(ProcessCollector::for_self()))?;
        let latency = Histogram::with_opts(
            HistogramOpts::new(
                "keytrail_detection_latency_seconds",
                "From the event in the kernel to the finding or record.",
            )
            .buckets(vec![
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
            ]),
        )?;
        families.register(&latency)?;
        let reload_success = IntGauge::new(
            "keytrail_config_reload_success",
            "1 if the last load of the configuration succeeded.",
        )?;
        families.register(&reload_success)?;
        let build = IntGaugeVec::new(
            Opts::new(
                "keytrail_build_info",
                "Always 1; the version is in the label.",
            ),
            &["version"],
        )?;
        families.register(&build)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let folded = FoldedSeries::new(&mut families)?;
        Ok(Self {
            credentials: CredentialMetrics::new(folded.clone()),
            probes: ProbeMetrics::new(&mut families, folded)?,
            latency,
            reload_success,
            families,
        })
    }

    /// A workload was renamed: moves its counts to the new name.
    pub fn rename(&self, old: &Workload, new: &Workload) {
        self.credentials.rename(old, new);
        self.probes.rename(old, new);
    }

    /// The exposition text, for those who may know which credentials there are.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.render_families(BoundedFamily::collect)
    }

    /// The exposition text without the label `credential`: with exposed ids anyone could test
    /// guesses.
    pub fn render_redacted(&self) -> Result<String, prometheus::Error> {
        self.render_families(BoundedFamily::collect_redacted)
    }

    fn render_families(
        &self,
        collect: impl Fn(&BoundedFamily) -> Option<MetricFamily>,
    ) -> Result<String, prometheus::Error> {
        let mut text = String::new();
        let encoder = TextEncoder::new();
        encoder.encode_utf8(&self.families.registry.gather(), &mut text)?;
        // One family at a time: the library's representation is much larger than the text.
        for family in self.bounded_families() {
            if let Some(family) = collect(family) {
                encoder.encode_utf8(&[family], &mut text)?;
            }
        }
        Ok(text)
    }

    /// Families that may have many series.
    fn bounded_families(&self) -> impl Iterator<Item = &BoundedFamily> {
        let credentials = self.credentials.families();
        credentials.into_iter().chain(self.probes.families())
    }
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
        let large = self.bounded_families().map(|one| {
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
    use monitor_common::record::{Probe, Stage};
    use monitor_core::model::Credential;

    #[test]
    fn a_credential_has_one_info_series() {
        let metrics = Metrics::new().expect("registers");
        let mut credential: Credential = serde_json::from_value(serde_json::json!({
            "id": "kt-1", "class": "jwt", "role": "access", "lifetime": "static", "sources": [],
        }))
        .expect("a credential");
        let time = jiff::Timestamp::UNIX_EPOCH;
        metrics.credentials.set_credential(&credential, time);
        credential.name = Some("payments".to_owned());
        metrics.credentials.set_credential(&credential, time);
        let text = metrics.render().expect("renders");
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("keytrail_credential_info{"))
            .collect();
        assert_eq!(
            series,
            [
                "keytrail_credential_info{id=\"kt-1\",credential=\"payments\",class=\"jwt\",role=\"access\",lifetime=\"static\",owner=\"\"} 1"
            ]
        );
    }

    #[test]
    fn external_counters_only_grow() {
        let metrics = Metrics::new().expect("registers");
        assert_eq!(metrics.probes.set_events(Probe::File, Stage::Ring, 5), 5);
        assert_eq!(metrics.probes.set_events(Probe::File, Stage::Ring, 7), 2);
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
        metrics
            .probes
            .count_workload_loss(Probe::Environ, &unnamed.key(), 3);
        metrics
            .probes
            .count_workload_loss(Probe::Environ, &named.key(), 4);
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
