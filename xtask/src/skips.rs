//! What a test run skips: counted, shown at its end, and an error in CI.

use crate::root;
use anyhow::{Context as _, Result};
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
        lab::skip::skip_into(Some(&self.0), what, missing)
    }

    /// Prints what was skipped, and how much.
    pub fn show(&self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let skipped = text.lines().filter(|line| line.starts_with("skipped"));
        println!("\n{} tests skipped", skipped.count());
        print!("{text}");
    }
}
