//! What a test run skips: counted, shown at its end, and an error in CI.

use crate::root;
use anyhow::{Context as _, Result, bail};
use std::{fs, path::PathBuf};

/// The record of one run.
#[derive(Debug)]
pub struct SkipLog(PathBuf);

impl SkipLog {
    /// Starts an empty record.
    pub fn start() -> Result<Self> {
        let log = Self::of_run();
        fs::write(&log.0, "").with_context(|| format!("cannot write {}", log.0.display()))?;
        Ok(log)
    }

    /// The record of the run in progress.
    pub fn of_run() -> Self {
        Self(root().join("target/skipped-tests"))
    }

    /// The environment variable by which tests find it.
    pub fn variable(&self) -> (&'static str, &PathBuf) {
        (lab::skip::SKIPPED, &self.0)
    }

    /// Records that something cannot run here.
    pub fn skip(&self, what: &str, missing: &str) -> Result<()> {
        if is_ci() {
            bail!("{what} cannot run: {missing}; in CI nothing is skipped");
        }
        let mut text = fs::read_to_string(&self.0).unwrap_or_default();
        text.push_str(&format!("skipped {what}: {missing}\n"));
        Ok(fs::write(&self.0, text)?)
    }

    /// Prints what was skipped, and how much.
    pub fn show(&self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let skipped = text.lines().filter(|line| line.starts_with("skipped"));
        println!("\n{} tests skipped", skipped.count());
        print!("{text}");
    }
}

fn is_ci() -> bool {
    std::env::var_os("CI").is_some()
}
