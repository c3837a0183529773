//! The registered families, and their descriptions.

use super::family::BoundedFamily;
use prometheus::{
    IntCounterVec, Opts, Registry,
    core::{Collector, Desc},
};

/// The families of the Prometheus library.
#[derive(Debug, Default)]
pub struct MetricFamilies {
    pub registry: Registry,
    pub described: Vec<Desc>,
}

impl MetricFamilies {
    pub fn register<T: Collector + Clone + 'static>(
        &mut self,
        family: &T,
    ) -> Result<(), prometheus::Error> {
        self.described.extend(family.desc().into_iter().cloned());
        self.registry.register(Box::new(family.clone()))
    }

    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(&family)?;
        Ok(family)
    }
}

/// Counts updates of families that have too many series.
#[derive(Clone, Debug)]
pub struct FoldedSeries(IntCounterVec);

impl FoldedSeries {
    /// Every family starts at zero: an alert on an increase needs the value before it.
    const FAMILIES: [&str; 6] = ["uses", "hops", "findings", "losses", "credentials", "info"];

    pub fn new(families: &mut MetricFamilies) -> Result<Self, prometheus::Error> {
        let folded = families.counter(
            "keytrail_series_folded_total",
            "Updates counted under `other` because a family had too many series.",
            &["family"],
        )?;
        for family in Self::FAMILIES {
            folded.with_label_values(&[family]).inc_by(0);
        }
        Ok(Self(folded))
    }

    pub fn count(&self, family: &str) {
        self.0.with_label_values(&[family]).inc();
    }

    /// Adds to a series of a family, or to its remainder if there are too many.
    pub fn add(
        &self,
        family: &BoundedFamily,
        short: &str,
        labels: &[&str],
        rest: &[&str],
        by: u64,
    ) {
        if !family.add(labels, rest, by) {
            self.count(short);
        }
    }
}
