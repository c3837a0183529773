//! A metric family with many series: labels are stored once and compactly, and the number of series
//! is limited.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Maximum series per family, apart from those that count the remainder.
pub const SERIES_MAX: usize = 5_000;
/// Separates the labels of a series; no label contains it.
const LABEL_SEPARATOR: char = '\0';

/// What those are told of a family who may not know which credential it is about: the label
/// `credential` is left out, and series that differ only in it become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    Sum,
    Min,
    Max,
    /// Nothing: the family says something about single credentials only.
    Omit,
}

impl Redaction {
    fn merge(self, one: f64, other: f64) -> f64 {
        match self {
            Self::Sum => one + other,
            Self::Min => one.min(other),
            Self::Max | Self::Omit => one.max(other),
        }
    }
}

/// The label that only those see who present the token.
const SECRET_LABEL: &str = "credential";

/// A family's description, and its series.
#[derive(Debug)]
pub struct BoundedFamily {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    kind: MetricType,
    redaction: Redaction,
    /// Values, by the concatenated labels of each series.
    series: Mutex<BTreeMap<Box<str>, f64>>,
}

impl BoundedFamily {
    pub fn counter(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            help,
            labels,
            kind: MetricType::COUNTER,
            redaction: Redaction::Sum,
            series: Mutex::default(),
        }
    }

    pub fn gauge(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        redaction: Redaction,
    ) -> Self {
        Self {
            kind: MetricType::GAUGE,
            redaction,
            ..Self::counter(name, help, labels)
        }
    }

    /// A value is a single number: a panic elsewhere cannot leave it half-written.
    fn series(&self) -> MutexGuard<'_, BTreeMap<Box<str>, f64>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a series, or to the remainder if the family is full; returns whether the series is
    /// new.
    pub fn add(&self, labels: &[&str], rest: &[&str], by: u64) -> bool {
        let mut series = self.series();
        let key = join_labels(labels);
        if let Some(value) = series.get_mut(&*key) {
            *value += by as f64;
            return true;
        }
        let room = series.len() < SERIES_MAX;
        let key = if room { key } else { join_labels(rest) };
        *series.entry(key.into()).or_default() += by as f64;
        room
    }

    /// Sets a series unless the family is full; returns whether it was set.
    pub fn set(&self, labels: &[&str], value: f64) -> bool {
        self.set_value(labels, |_| value)
    }

    /// Sets a series if it does not exist and the family is not full; returns whether it exists
    /// now.
    pub fn set_first(&self, labels: &[&str], value: f64) -> bool {
        self.set_value(labels, |known| known.unwrap_or(value))
    }

    fn set_value(&self, labels: &[&str], value: impl FnOnce(Option<f64>) -> f64) -> bool {
        let mut series = self.series();
        let key = join_labels(labels);
        if let Some(known) = series.get_mut(&*key) {
            *known = value(Some(*known));
            return true;
        }
        let room = series.len() < SERIES_MAX;
        if room {
            series.insert(key.into(), value(None));
        }
        room
    }

    /// Moves what was counted under some label values to others; adds the values where both exist.
    /// Each label comes with its old and its new value.
    pub fn rename(&self, labels: &[(&str, &str, &str)]) {
        let place = |label: &str| self.labels.iter().position(|known| *known == label);
        let places: Option<Vec<usize>> = labels.iter().map(|(label, ..)| place(label)).collect();
        let Some(places) = places else { return };
        let changes: Vec<(usize, &(&str, &str, &str))> = places.into_iter().zip(labels).collect();
        let mut series = self.series();
        let is_old = |key: &str| {
            let values: Vec<&str> = key.split(LABEL_SEPARATOR).collect();
            changes
                .iter()
                .all(|(place, (_, old, _))| values.get(*place) == Some(old))
        };
        let renamed: Vec<Box<str>> = series.keys().filter(|key| is_old(key)).cloned().collect();
        for key in renamed {
            let value = series.remove(&key).unwrap_or_default();
            let mut values: Vec<&str> = key.split(LABEL_SEPARATOR).collect();
            for (place, (_, _, new)) in &changes {
                values[*place] = new;
            }
            *series.entry(join_labels(&values).into()).or_default() += value;
        }
    }

    /// Sets a series in place of all others with the same first label, unless the family is full;
    /// returns whether it was set.
    pub fn set_alone(&self, labels: &[&str], value: f64) -> bool {
        let key = join_labels(labels);
        let same = format!("{}{LABEL_SEPARATOR}", join_labels(&labels[..1]));
        let mut series = self.series();
        let from = (Bound::Included(&*same), Bound::Unbounded);
        let others: Vec<Box<str>> = series
            .range::<str, _>(from)
            .map(|(known, _)| known)
            .take_while(|known| known.starts_with(&same))
            .filter(|known| ***known != *key)
            .cloned()
            .collect();
        for other in others {
            series.remove(&other);
        }
        drop(series);
        self.set(labels, value)
    }

    /// In the prometheus library's form; `None` without series.
    pub fn collect(&self) -> Option<MetricFamily> {
        let series = self.series();
        self.family(
            self.labels,
            series.iter().map(|(labels, value)| (&**labels, *value)),
        )
    }

    /// As [`collect`](Self::collect), without saying which credential a series is about.
    pub fn collect_redacted(&self) -> Option<MetricFamily> {
        let Some(secret) = self.labels.iter().position(|name| *name == SECRET_LABEL) else {
            return self.collect();
        };
        if self.redaction == Redaction::Omit {
            return None;
        }
        let mut names = self.labels.to_vec();
        names.remove(secret);
        let series = self.series();
        let mut merged: BTreeMap<String, f64> = BTreeMap::new();
        for (labels, value) in series.iter() {
            let mut labels: Vec<&str> = labels.split(LABEL_SEPARATOR).collect();
            labels.remove(secret);
            merged
                .entry(join_labels(&labels))
                .and_modify(|known| *known = self.redaction.merge(*known, *value))
                .or_insert(*value);
        }
        let series = merged.iter();
        self.family(&names, series.map(|(labels, value)| (&**labels, *value)))
    }

    fn family<'a>(
        &self,
        names: &[&'static str],
        series: impl Iterator<Item = (&'a str, f64)>,
    ) -> Option<MetricFamily> {
        let metrics: Vec<Metric> = series
            .map(|(labels, value)| self.metric(names, labels, value))
            .collect();
        if metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(metrics);
        Some(family)
    }

    fn metric(&self, names: &[&'static str], labels: &str, value: f64) -> Metric {
        let pairs = names.iter().zip(labels.split(LABEL_SEPARATOR));
        let pairs = pairs.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

fn join_labels(labels: &[&str]) -> String {
    let mut joined = String::with_capacity(labels.iter().map(|label| label.len() + 1).sum());
    for (number, label) in labels.iter().enumerate() {
        if number > 0 {
            joined.push(LABEL_SEPARATOR);
        }
        joined.extend(label.chars().filter(|letter| *letter != LABEL_SEPARATOR));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered_series(family: &BoundedFamily) -> String {
        let families: Vec<MetricFamily> = family.collect().into_iter().collect();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .expect("encoded")
    }

    #[test]
    fn a_family_has_a_limit() {
        let family = BoundedFamily::counter("n_total", "Help.", &["a", "b"]);
        for number in 0..SERIES_MAX + 10 {
            let label = number.to_string();
            let own = family.add(&[&label, "x"], &["other", "x"], 2);
            assert_eq!(own, number < SERIES_MAX);
        }
        assert!(
            family.add(&["3", "x"], &["other", "x"], 1),
            "a known one stays"
        );
        let text = rendered_series(&family);
        assert!(text.starts_with("# HELP n_total Help.\n# TYPE n_total counter\n"));
        for line in [
            "n_total{a=\"3\",b=\"x\"} 3",
            "n_total{a=\"other\",b=\"x\"} 20",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}");
        }
    }

    #[test]
    fn counts_move_from_an_id_to_its_name() {
        let family =
            BoundedFamily::counter("n_total", "Help.", &["namespace", "workload", "class"]);
        family.add(&["", "pod-1", "a"], &[], 2);
        family.add(&["", "pod-1", "b"], &[], 3);
        family.add(&["", "pod-2", "a"], &[], 5);
        family.add(&["shop", "api", "a"], &[], 7);
        family.rename(&[("namespace", "", "shop"), ("workload", "pod-1", "api")]);
        let text = rendered_series(&family);
        let series: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            series,
            [
                "n_total{namespace=\"\",workload=\"pod-2\",class=\"a\"} 5",
                "n_total{namespace=\"shop\",workload=\"api\",class=\"a\"} 9",
                "n_total{namespace=\"shop\",workload=\"api\",class=\"b\"} 3",
            ]
        );
    }

    #[test]
    fn without_the_credential_series_are_merged() {
        let redacted = |family: &BoundedFamily| -> Vec<String> {
            let families: Vec<MetricFamily> = family.collect_redacted().into_iter().collect();
            let text = prometheus::TextEncoder::new().encode_to_string(&families);
            let text = text.expect("encoded");
            text.lines().skip(2).map(str::to_owned).collect()
        };
        let labels = &["workload", "credential", "class"];
        let counter = BoundedFamily::counter("n_total", "Help.", labels);
        counter.add(&["api", "kt-1", "jwt"], &[], 2);
        counter.add(&["api", "kt-2", "jwt"], &[], 3);
        counter.add(&["web", "kt-2", "jwt"], &[], 4);
        assert_eq!(
            redacted(&counter),
            [
                "n_total{workload=\"api\",class=\"jwt\"} 5",
                "n_total{workload=\"web\",class=\"jwt\"} 4"
            ]
        );
        for (redaction, expected) in [
            (Redaction::Min, vec!["g{workload=\"api\",class=\"jwt\"} 2"]),
            (Redaction::Max, vec!["g{workload=\"api\",class=\"jwt\"} 3"]),
            (Redaction::Omit, vec![]),
        ] {
            let gauge = BoundedFamily::gauge("g", "Help.", labels, redaction);
            gauge.set(&["api", "kt-1", "jwt"], 3.0);
            gauge.set(&["api", "kt-2", "jwt"], 2.0);
            assert_eq!(redacted(&gauge), expected);
        }
        let open = BoundedFamily::counter("m_total", "Help.", &["rule"]);
        open.add(&["blind"], &[], 1);
        assert_eq!(redacted(&open), ["m_total{rule=\"blind\"} 1"]);
    }

    #[test]
    fn a_gauge_is_set_once_repeatedly_or_exclusively() {
        let family = BoundedFamily::gauge("g", "Help.", &["a", "b"], Redaction::Omit);
        assert_eq!(rendered_series(&family), "");
        assert!(family.set_first(&["\0x\"y\n", ""], 1.5) && family.set_first(&["x\"y\n", ""], 2.5));
        let series = |text: &str| text.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            series(&rendered_series(&family)),
            ["g{a=\"x\\\"y\\n\",b=\"\"} 1.5"]
        );
        family.set(&["x\"y\n", ""], 3.0);
        family.set(&["x", "1"], 4.0);
        assert!(family.set_alone(&["x", "2"], 5.0));
        assert_eq!(
            series(&rendered_series(&family)),
            ["g{a=\"x\",b=\"2\"} 5", "g{a=\"x\\\"y\\n\",b=\"\"} 3"]
        );
    }
}
