//! Builds and runs the agent.

use crate::{root, setup};
use anyhow::{Context as _, Result, bail};
use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

/// A cargo command in the workspace root, without the outer cargo's environment.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    clear_cargo_environment(&mut cargo);
    cargo
}

/// Removes the outer cargo's environment variables: build scripts that depend on them would run
/// again each time, and rebuild their dependents.
pub fn clear_cargo_environment(command: &mut Command) {
    const NAMES: [&str; 4] = [
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name == "OUT_DIR" || NAMES.iter().any(|start| name.starts_with(start)) {
            command.env_remove(&*name);
        }
    }
}

/// Runs a command; a failure names it.
pub fn run_checked(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        bail!(
            "`{} {}` ended with {status}",
            command.get_program().display(),
            arguments.join(" ")
        );
    }
    Ok(())
}

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
