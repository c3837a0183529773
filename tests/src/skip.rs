//! Tests that cannot run here: counted and shown by `cargo xtask test`, and an error in CI.

use anyhow::{Result, bail};
use std::io::Write as _;

/// The file to which skipped tests are appended, set by `cargo xtask`.
pub const SKIPPED: &str = "KEYTRAIL_SKIPPED";

/// Records that a test, or a part of it, cannot run because something is missing.
pub fn skip(test: &str, missing: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        bail!("{test} cannot run: {missing}; in CI nothing is skipped");
    }
    note(&format!("skipped {test}: {missing}"))
}

/// Records that a test runs only in `cargo xtask test --all`.
pub fn defer(test: &str) -> Result<()> {
    note(&format!("deferred {test} to `cargo xtask test --all`"))
}

fn note(line: &str) -> Result<()> {
    eprintln!("{line}");
    if let Some(file) = std::env::var_os(SKIPPED) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)?;
        writeln!(file, "{line}")?;
    }
    Ok(())
}
