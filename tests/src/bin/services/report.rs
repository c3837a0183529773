//! The tables of the results.

use crate::{
    contender::{BARE, ServiceContender},
    load::LoadFigures,
};
use anyhow::{Context as _, Result};
use lab::baseline::median;
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

/// The marks in the document between which the tables are.
const BEGIN: &str = "<!-- services: begin -->\n";
const END: &str = "<!-- services: end -->\n";

/// The results of a service.
pub struct ServiceResult {
    service: &'static str,
    contenders: Vec<&'static str>,
    /// By contender: the figures beside it, and those of the service alone at the same time.
    figures: BTreeMap<&'static str, Vec<(LoadFigures, LoadFigures)>>,
}

impl ServiceResult {
    pub fn new(service: &'static str, contenders: &[ServiceContender]) -> Self {
        let names = contenders.iter().map(|contender| contender.name);
        Self {
            service,
            contenders: std::iter::once(BARE).chain(names).collect(),
            figures: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, contender: &'static str, with: LoadFigures, alone: LoadFigures) {
        self.figures
            .entry(contender)
            .or_default()
            .push((with, alone));
    }
}

/// The rows of a service: medians, and the median and range of the changes of the rate.
pub fn rows(result: &ServiceResult) -> String {
    let mut out = String::new();
    for (number, contender) in result.contenders.iter().enumerate() {
        let service = if number == 0 { result.service } else { "" };
        let Some(figures) = result.figures.get(contender) else {
            out += &format!("| {service} | {contender} | not here | | | | |\n");
            continue;
        };
        let of = |field: fn(&LoadFigures) -> f64| {
            median(
                &mut figures
                    .iter()
                    .map(|(with, _)| field(with))
                    .collect::<Vec<_>>(),
            )
        };
        let mut changes: Vec<f64> = figures
            .iter()
            .map(|(with, alone)| (with.rate / alone.rate - 1.0) * 100.0)
            .collect();
        let change = if *contender == BARE {
            String::new()
        } else {
            let middle = median(&mut changes);
            let (least, most) = (changes[0], changes[changes.len() - 1]);
            format!("**{middle:+.1} %** ({least:+.1} to {most:+.1})")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {service} | {contender} | {:.0} | {change} | {} | {} | {:.1} |",
            of(|figures| figures.rate),
            latency(of(|figures| figures.p50)),
            latency(of(|figures| figures.p99)),
            of(|figures| figures.processor),
        );
    }
    out
}

/// `6.12` of `6.12.107+deb13-cloud-amd64`.
fn kernel_series(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn latency(milliseconds: f64) -> String {
    if milliseconds.is_nan() {
        "–".to_owned()
    } else {
        format!("{milliseconds:.2}")
    }
}

/// Writes the tables into the document.
pub fn write(file: &Path, results: &[ServiceResult], rounds: usize, seconds: u64) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("no begin mark")?;
    let (_, after) = rest.split_once(END).context("no end mark")?;
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let output = Command::new(program).args(arguments).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let mut tables = format!(
        "Measured at {} on {}: Linux {}, {} processors, {rounds} rounds of {seconds} seconds.\n\n",
        said("git", &["rev-parse", "--short", "HEAD"])?,
        said("date", &["+%Y-%m-%d"])?,
        kernel_series(&said("uname", &["-r"])?),
        said("nproc", &[])?,
    );
    tables += "| service | beside it | per second | change (least, most) | p50, ms | p99, ms | processor time each, µs |\n";
    tables += "|---|---|---:|---:|---:|---:|---:|\n";
    for result in results {
        tables += &rows(result);
    }
    fs::write(file, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?;
    Ok(())
}
