//! `cargo xtask lint`: the structure of the code, which neither the compiler nor clippy checks.
//!
//! It parses every file, and reports module cycles, dependencies on higher layers, type names with
//! two meanings, and files, `impl` blocks and functions that are too large.

mod modules;
mod names;
mod sizes;
mod source;
mod tables;

use anyhow::{Result, bail};
use source::Workspace;
use std::path::Path;

/// What is an error besides cycles, upward dependencies and repeated names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LintMode {
    /// Tables that are too old are an error.
    Complete,
    /// Only the code can be wrong: the date of the test does not matter.
    Code,
}

/// Checks the workspace below a directory; lists everything found, and fails if any of it is not
/// allowed.
pub fn run(root: &Path, mode: LintMode) -> Result<()> {
    let workspace = Workspace::read(root)?;
    let cycles = modules::cycles(&workspace);
    let upward = modules::upward_dependencies(&workspace);
    let repeated = names::repeated_types(&workspace);
    let large = sizes::large(&workspace);
    let stale = tables::stale(root)?;
    for (title, found) in [
        ("module cycles", &cycles),
        ("dependencies on a higher layer", &upward),
        ("type names with two meanings", &repeated),
        ("files above 600 lines", &large.files),
        ("impl blocks above 300 lines", &large.impls),
        ("functions above 80 lines", &large.functions),
        ("tables in docs older than 30 days", &stale),
    ] {
        println!("{}: {}", title, found.len());
        for line in found {
            println!("  {line}");
        }
    }
    let too_old = mode == LintMode::Complete && !stale.is_empty();
    if !cycles.is_empty() || !upward.is_empty() || !repeated.is_empty() || too_old {
        bail!("the structure of the code has errors, listed above");
    }
    Ok(())
}
