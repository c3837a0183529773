//! Builds and runs the agent.

use crate::{
    commands::{cargo, run_checked},
    root, setup,
};
use anyhow::{Context as _, Result, bail};
use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

/// Builds the agent with its probes; returns its path.
pub fn run() -> Result<PathBuf> {
    setup::run()?;
    run_checked(cargo().args(["build", "--release", "--package", "keytrail"]))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release").join("keytrail"))
}

/// Builds the agent and the end-to-end tests; returns their names and paths.
pub fn programs() -> Result<Vec<(String, PathBuf)>> {
    let mut programs = vec![("keytrail".to_owned(), run()?)];
    let output = cargo()
        .args(["test", "--release", "--no-run", "--package", "lab"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the end-to-end tests do not build");
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let kind = &message["target"]["kind"][0];
        let wanted = kind == "test" || (kind == "bin" && message["profile"]["test"] == false);
        if wanted
            && let (Some(name), Some(path)) = (
                message["target"]["name"].as_str(),
                message["executable"].as_str(),
            )
        {
            programs.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(programs)
}

/// Builds the agent, and replaces this process with it.
pub fn run_agent(arguments: &[String]) -> Result<()> {
    let binary = run()?;
    let error = Command::new(&binary).arg("run").args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

/// The probes' object file: the benchmark loads the empty programs from it.
pub fn bench_probes() -> PathBuf {
    root().join("target/bpf/bpfel-unknown-none/release/keytrail-bench-probes")
}
