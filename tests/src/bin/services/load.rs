//! Figures of a load, and how they are read from what the tools print.

use anyhow::{Context as _, Result, ensure};
use std::{fs, process::Command};

/// The figures of one load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadFigures {
    /// Requests, transactions or builds per second.
    pub rate: f64,
    /// Milliseconds; not a number where the tool does not tell.
    pub p50: f64,
    pub p99: f64,
    /// Microseconds of processor time for each, of the whole machine.
    pub processor: f64,
}

impl LoadFigures {
    pub fn mean(&self, other: &Self) -> Self {
        Self {
            rate: f64::midpoint(self.rate, other.rate),
            p50: f64::midpoint(self.p50, other.p50),
            p99: f64::midpoint(self.p99, other.p99),
            processor: f64::midpoint(self.processor, other.processor),
        }
    }
}

/// Runs a load tool for some seconds, and parses what it prints: rate, p50 and p99.
pub fn run(
    command: &mut Command,
    seconds: u64,
    parse: impl FnOnce(&str) -> Option<(f64, f64, f64)>,
) -> Result<LoadFigures> {
    let mut latencies = (f64::NAN, f64::NAN);
    let mut figures = measured(seconds, || {
        let output = command
            .output()
            .with_context(|| format!("cannot run {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{command:?} failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (rate, p50, p99) =
            parse(&text).with_context(|| format!("{command:?} printed other figures: {text}"))?;
        latencies = (p50, p99);
        Ok(rate)
    })?;
    (figures.p50, figures.p99) = latencies;
    Ok(figures)
}

/// The rate that `work` returns after some seconds, and what the machine did meanwhile.
pub fn measured(seconds: u64, work: impl FnOnce() -> Result<f64>) -> Result<LoadFigures> {
    let before = busy_ticks()?;
    let rate = work()?;
    let busy = busy_ticks()? - before;
    Ok(LoadFigures {
        rate,
        p50: f64::NAN,
        p99: f64::NAN,
        // A tick is a hundredth of a second on every supported architecture.
        processor: busy as f64 * 10_000.0 / (rate * seconds as f64),
    })
}

/// Time of all processors that was not idle.
fn busy_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no line in /proc/stat")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // User, nice, system; not idle and iowait; then interrupts and steal.
    let part = |range: std::ops::Range<usize>| fields.get(range).into_iter().flatten().sum::<u64>();
    Ok(part(0..3) + part(5..8))
}

/// `Requests/sec:`, and the distribution of latencies, as wrk prints them.
pub fn wrk(text: &str) -> Option<(f64, f64, f64)> {
    let after = |label: &str| {
        let at = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(label));
        at.map(str::trim)
    };
    Some((
        after("Requests/sec:")?.parse().ok()?,
        milliseconds(after("50%")?)?,
        milliseconds(after("99%")?)?,
    ))
}

/// A duration with its unit: `1.23ms`, `870.00us`, `1.02s`.
fn milliseconds(text: &str) -> Option<f64> {
    let split = text.find(|char: char| char.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    match &text[split..] {
        "us" => Some(number / 1000.0),
        "ms" => Some(number),
        "s" => Some(number * 1000.0),
        _ => None,
    }
}

/// pgbench prints the mean latency alone.
pub fn pgbench(text: &str) -> Option<(f64, f64, f64)> {
    let after = |label: &str| text.lines().find_map(|line| line.strip_prefix(label));
    let first = |line: &str| line.split_whitespace().next()?.parse::<f64>().ok();
    let rate = first(after("tps = ")?)?;
    let latency = first(after("latency average = ")?)?;
    Some((rate, latency, f64::NAN))
}

/// redis-benchmark with `--csv`: name, rate, then mean, least, median, p95, p99 and longest latency.
pub fn redis(text: &str) -> Option<(f64, f64, f64)> {
    let line = text.lines().find(|line| line.starts_with("\"GET\""))?;
    let fields: Vec<f64> = line
        .split(',')
        .skip(1)
        .filter_map(|field| field.trim_matches('"').parse().ok())
        .collect();
    Some((*fields.first()?, *fields.get(3)?, *fields.get(5)?))
}

/// Three numbers in a line: rate, and the latencies in milliseconds.
pub fn numbers(text: &str) -> Option<(f64, f64, f64)> {
    let line = text.lines().last()?;
    let mut fields = line.split_whitespace().map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??, fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_print() {
        let text = "  Latency Distribution\n     50%  870.00us\n     75%    1.00ms\n     99%    1.02s\n  1 requests in 1s\nRequests/sec:  12345.67\n";
        assert_eq!(wrk(text), Some((12_345.67, 0.87, 1020.0)));
        let text = "latency average = 0.321 ms\ntps = 12441.5 (without initial connection time)\n";
        let (rate, mean, none) = pgbench(text).expect("figures");
        assert_eq!((rate, mean, none.is_nan()), (12_441.5, 0.321, true));
        let text = "\"test\",\"rps\"\n\"GET\",\"79113.92\",\"0.329\",\"0.096\",\"0.311\",\"0.479\",\"0.687\",\"3.263\"\n";
        assert_eq!(redis(text), Some((79_113.92, 0.311, 0.687)));
        assert_eq!(numbers("x\n1 2.5 3\n"), Some((1.0, 2.5, 3.0)));
        assert_eq!(wrk(""), None);
    }
}
