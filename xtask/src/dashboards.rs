//! What Prometheus and Grafana are given: rules that promtool knows and has tested, a copy of them in the chart, a page
//! for each alert, and dashboards that are what their code builds.

use crate::{build::succeed, root, setup};
use anyhow::{Context as _, Result, bail};
use std::{fs, path::PathBuf, process::Command};

/// The rules, and the chart's copy of them: a chart is a folder of its own.
const RULES: &str = "dashboards/rules/keytrail.rules.yaml";
const COPY: &str = "deploy/helm/keytrail/files/keytrail.rules.yaml";

/// Checks rules and runs their tests.
pub fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(RULES))?;
    if fs::read_to_string(root().join(COPY)).unwrap_or_default() != text {
        bail!("{COPY} is not what {RULES} is: copy it");
    }
    let runbook = fs::read_to_string(root().join("docs/runbook.md"))?;
    let mut alerts = 0;
    for line in text.lines() {
        let Some(page) = line.trim().strip_prefix("runbook: ") else {
            continue;
        };
        let (_, section) = page
            .split_once("runbook.md#")
            .with_context(|| format!("{RULES}: `{page}` is no section of the runbook"))?;
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
    succeed(tool().args(["check", "rules", "keytrail.rules.yaml"]))?;
    succeed(tool().args(["test", "rules", "keytrail.test.yaml"]))?;
    println!("{alerts} alerts have a section in the runbook");
    grafana()
}

/// Builds the dashboards again, and compares them with those that are there.
fn grafana() -> Result<()> {
    let work = tempfile::tempdir()?;
    succeed(
        Command::new(setup::python()?.join("python3"))
            .arg(root().join("dashboards/build.py"))
            .arg(work.path()),
    )?;
    let mut count = 0;
    for built in fs::read_dir(work.path())?.flatten() {
        let there = root().join("dashboards/grafana").join(built.file_name());
        if fs::read(&there).unwrap_or_default() != fs::read(built.path())? {
            bail!(
                "{} is not what dashboards/build.py makes: run it",
                there.display()
            );
        }
        count += 1;
    }
    println!("{count} dashboards are what their code builds");
    Ok(())
}
