//! Tables of scenario results and verifier costs by kernel.

use crate::{
    commands::{cargo, run_checked},
    root,
};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, fs, process::Command};

/// Maximum instructions that the verifier may process for one program, a third of the kernel's
/// limit.
const BUDGET: u64 = 400_000;

/// Results by scenario and machine.
#[derive(Debug, Default)]
pub struct CoverageTable {
    machines: Vec<String>,
    scenarios: Vec<String>,
    cells: BTreeMap<(String, String), String>,
}

impl CoverageTable {
    /// Runs the scenarios on this machine's kernel, if they can run.
    pub fn this_machine() -> Result<Self> {
        let mut coverage = Self::default();
        if !lab::is_root() {
            return Ok(coverage);
        }
        let report = tempfile::NamedTempFile::new()?;
        run_checked(
            cargo()
                .args(["test", "--release", "--quiet", "--package", "lab"])
                .args(["--test", "evasions", "--", "--test-threads=1"])
                .env("KEYTRAIL_COVERAGE", report.path()),
        )?;
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let short = release.split(['-', '+']).next().unwrap_or_default();
        coverage.add(
            &format!("{short} here"),
            &fs::read_to_string(report.path())?,
        );
        Ok(coverage)
    }

    /// Adds the report of one machine.
    pub fn add(&mut self, machine: &str, report: &str) {
        self.machines.push(machine.to_owned());
        for line in lines(report) {
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let scenario = text("scenario");
            if scenario.is_empty() {
                continue;
            }
            if !self.scenarios.contains(&scenario) {
                self.scenarios.push(scenario.clone());
            }
            let cell = match text("result").as_str() {
                "seen" => text("detail"),
                "gap" => "**gap**".to_owned(),
                other => format!("({other})"),
            };
            self.cells.insert((scenario, machine.to_owned()), cell);
        }
    }
}

impl fmt::Display for CoverageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| scenario | {} |", self.machines.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.machines.len()))?;
        for scenario in &self.scenarios {
            write!(f, "| {scenario} |")?;
            for machine in &self.machines {
                let cell = self.cells.get(&(scenario.clone(), machine.clone()));
                write!(f, " {} |", cell.map_or("failed", |cell| short(cell)))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A mechanism without the part that all of its kind share.
fn short(mechanism: &str) -> &str {
    mechanism
        .split_once("/sys_")
        .map_or(mechanism, |(kind, _)| kind)
        .trim_start_matches("tracepoint/")
}

/// Verifier costs by program and machine.
#[derive(Debug, Default)]
pub struct VerifierCosts {
    machines: Vec<String>,
    cells: BTreeMap<(String, String), u64>,
}

impl VerifierCosts {
    /// Adds the output of `doctor` on one machine.
    pub fn add(&mut self, machine: &str, report: &str) {
        self.machines.push(machine.to_owned());
        for line in lines(report) {
            for probe in line["probes"].as_array().into_iter().flatten() {
                if let (Some(program), Some(instructions)) =
                    (probe["program"].as_str(), probe["instructions"].as_u64())
                {
                    self.cells
                        .insert((program.to_owned(), machine.to_owned()), instructions);
                }
            }
        }
    }

    /// Programs that exceed the verifier budget on some machine.
    pub fn above_budget(&self) -> Vec<String> {
        self.cells
            .iter()
            .filter(|(_, instructions)| **instructions > BUDGET)
            .map(|((program, machine), instructions)| {
                format!("{machine}: the verifier processes {instructions} instructions for {program}; the limit is {BUDGET}")
            })
            .collect()
    }
}

impl fmt::Display for VerifierCosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Kernels before 5.16 do not report it.
        let machines: Vec<&String> = self
            .machines
            .iter()
            .filter(|machine| self.cells.keys().any(|(_, known)| known == *machine))
            .collect();
        write!(f, "| program |")?;
        for machine in &machines {
            write!(f, " {machine} |")?;
        }
        writeln!(f, "\n|---|{}", "---:|".repeat(machines.len()))?;
        let mut programs: Vec<&String> = self.cells.keys().map(|(program, _)| program).collect();
        programs.dedup();
        for program in programs {
            write!(f, "| {program} |")?;
            for machine in &machines {
                match self.cells.get(&(program.clone(), (*machine).clone())) {
                    Some(instructions) => write!(f, " {instructions} |")?,
                    None => write!(f, " – |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn lines(report: &str) -> impl Iterator<Item = Value> {
    report
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
}

/// Writes both tables to `docs/coverage.md`.
pub fn write(coverage: &CoverageTable, costs: &VerifierCosts) -> Result<()> {
    let path = root().join("docs/coverage.md");
    let text = format!(
        "# What is observed, by kernel

Measured at {commit} on {date}: `cargo xtask vm --write` generates this page from the results of `tests/tests/evasions.rs`.

Each cell names the hook that serves the observation on that kernel. **gap** means that the kernel has no suitable hook, and
that `keytrail doctor` declares the gap. Machines named `lsm` have `bpf` in the list of active LSMs, machines named `no-lsm`
do not; on `kprobe` and `tracepoint` the agent skips better hooks. `here` is the machine that generated this page.

{coverage}
## Verified instructions

By program, if the kernel reports them (5.16 and later). The test fails above {BUDGET}.

{costs}",
        commit = commit()?,
        date = jiff::Zoned::now().date(),
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

/// The checked-out commit, abbreviated.
fn commit() -> Result<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
