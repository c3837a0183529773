//! Checks what is provided for Prometheus and Grafana: rules that promtool accepts and has tested, a
//! runbook section for each alert, and dashboards that match their generator.

use crate::{commands::run_checked, root, setup};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::PathBuf, process::Command};

/// The rules, which are generated. A unit test of the agent compares them, and the chart's copy.
const RULES: &str = "dashboards/rules/keytrail.rules.yaml";

/// Checks the rules and runs their tests.
pub fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(RULES))?;
    let runbook = fs::read_to_string(root().join("docs/runbook.md"))?;
    let mut alerts = 0;
    for line in text.lines() {
        let Some(page) = line.trim().strip_prefix("runbook: ") else {
            continue;
        };
        let (_, section) = page
            .split_once("runbook.md#")
            .with_context(|| format!("{RULES}: the runbook has no section `{page}`"))?;
        if !runbook.lines().any(|line| line == format!("## {section}")) {
            bail!("docs/runbook.md has no section `## {section}`");
        }
        alerts += 1;
    }
    let promtool = setup::prometheus()?.map_or_else(
        || PathBuf::from("promtool"),
        |programs| programs.join("promtool"),
    );
    let directory = root().join("dashboards/rules");
    let tool = || {
        let mut command = Command::new(&promtool);
        command.current_dir(&directory);
        command
    };
    run_checked(tool().args(["check", "rules", "keytrail.rules.yaml"]))?;
    run_checked(tool().args([
        "test",
        "rules",
        "keytrail.test.yaml",
        "agent.test.yaml",
        "expiry.test.yaml",
    ]))?;
    println!("{alerts} alerts have a section in the runbook");
    grafana()
}

/// Generates the dashboards, and compares them with the committed ones.
fn grafana() -> Result<()> {
    let work = tempfile::tempdir()?;
    run_checked(
        Command::new(setup::python()?.join("python3"))
            .arg(root().join("dashboards/build.py"))
            .arg(work.path()),
    )?;
    let mut count = 0;
    for built in fs::read_dir(work.path())?.flatten() {
        let committed = root().join("dashboards/grafana").join(built.file_name());
        if fs::read(&committed).unwrap_or_default() != fs::read(built.path())? {
            bail!(
                "{} differs from the output of dashboards/build.py: run it",
                committed.display()
            );
        }
        count += 1;
    }
    println!("{count} dashboards match their generator");
    Ok(())
}
