//! What the dependencies are: whether each may be one, and the list of them that is shipped.

use crate::{
    commands::{cargo, clear_cargo_environment, run_checked},
    root, setup,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const CARGO_DENY: &str = "0.20.2";
const CARGO_CYCLONEDX: &str = "0.5.9";

/// Checks licences, bans and sources of the dependencies against `deny.toml`, of those of the fuzz
/// targets too.
pub fn check() -> Result<()> {
    let deny = setup::cargo_tool("cargo-deny", CARGO_DENY)?;
    for manifest in ["Cargo.toml", "monitor-parse/fuzz/Cargo.toml"] {
        let mut command = Command::new(&deny);
        clear_cargo_environment(&mut command);
        run_checked(
            command
                .arg("--manifest-path")
                .arg(root().join(manifest))
                .arg("--config")
                .arg(root().join("deny.toml"))
                .args(["--locked", "check", "--hide-inclusion-graph"])
                .args(["bans", "licenses", "sources"])
                .current_dir(root()),
        )
        .with_context(|| format!("the dependencies of {manifest} against deny.toml"))?;
    }
    Ok(())
}

/// Writes the bill of materials of the agent (CycloneDX, JSON) to `target/keytrail.cdx.json`; returns
/// its path.
pub fn bill_of_materials() -> Result<PathBuf> {
    let cyclonedx = setup::cargo_tool("cargo-cyclonedx", CARGO_CYCLONEDX)?;
    let mut command = Command::new(cyclonedx);
    clear_cargo_environment(&mut command);
    run_checked(
        command
            .args(["cyclonedx", "--quiet", "--format", "json"])
            .args(["--override-filename", "keytrail.cdx"])
            .arg("--manifest-path")
            .arg(root().join("monitor/Cargo.toml"))
            .current_dir(root()),
    )?;
    // It writes one beside each manifest of the workspace.
    let into = root().join("target/keytrail.cdx.json");
    for member in members()? {
        let written = member.join("keytrail.cdx.json");
        if member.ends_with("monitor") {
            check_bill(&written)?;
            fs::rename(&written, &into)?;
        } else if written.exists() {
            fs::remove_file(&written)?;
        }
    }
    Ok(into)
}

/// The directories of the workspace's members.
fn members() -> Result<Vec<PathBuf>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    Ok(packages
        .iter()
        .filter_map(|package| Path::new(package["manifest_path"].as_str()?).parent())
        .map(Path::to_owned)
        .collect())
}

/// A bill without what everybody knows is in the agent is worth nothing.
fn check_bill(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cargo-cyclonedx did not write {}", path.display()))?;
    let bill: serde_json::Value = serde_json::from_str(&text)?;
    let components = bill["components"].as_array().cloned().unwrap_or_default();
    for known in ["aya", "rusqlite", "monitor-core"] {
        if !components
            .iter()
            .any(|component| component["name"] == known)
        {
            bail!("the bill of materials lacks {known}");
        }
    }
    println!("{} components", components.len());
    Ok(())
}
