//! Tests that cannot run here: counted and shown by `cargo xtask test`, and an error in CI.

use anyhow::{Result, bail};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

/// The file to which skipped tests are appended, set by `cargo xtask`.
pub const SKIPPED: &str = "KEYTRAIL_SKIPPED";

/// Records that a test, or a part of it, cannot run because something is missing.
pub fn skip(test: &str, missing: &str) -> Result<()> {
    skip_into(record().as_deref(), test, missing)
}

/// As [`skip`], into a given file.
pub fn skip_into(record: Option<&Path>, test: &str, missing: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        bail!("{test} cannot run: {missing}; in CI nothing is skipped");
    }
    note(record, &format!("skipped {test}: {missing}"))
}

/// Records that a test runs only in `cargo xtask test --all`.
pub fn defer(test: &str) -> Result<()> {
    note(
        record().as_deref(),
        &format!("deferred {test} to `cargo xtask test --all`"),
    )
}

fn record() -> Option<PathBuf> {
    std::env::var_os(SKIPPED).map(PathBuf::from)
}

fn note(record: Option<&Path>, line: &str) -> Result<()> {
    eprintln!("{line}");
    if let Some(file) = record {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)?;
        writeln!(file, "{line}")?;
    }
    Ok(())
}
