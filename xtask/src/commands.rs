//! Runs cargo and other commands.

use crate::root;
use anyhow::{Context as _, Result, bail};
use std::process::Command;

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
