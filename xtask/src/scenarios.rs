//! The end-to-end scenarios on this machine.

use crate::{
    commands::{cargo, run_checked},
    setup,
    skips::SkipLog,
    vm,
};
use anyhow::Result;
use std::process::Command;

/// Set to test everything in the scenarios, not only what fits an ordinary run.
pub const ALL: &str = "KEYTRAIL_TEST_ALL";

/// Runs the end-to-end scenarios on this machine, of the given files or all.
pub fn run(files: &[String], all: bool) -> Result<()> {
    let mut scenarios = scenario_command(&SkipLog::of_run())?;
    if all {
        scenarios.env(ALL, "1");
        let programs = setup::go_programs()?;
        scenarios.env("KEYTRAIL_GO_PROGRAMS", std::env::join_paths(programs)?);
    }
    let files = if files.is_empty() {
        scenario_files()?
    } else {
        files.to_vec()
    };
    run_scenarios(scenarios, &files)
}

/// Every file of scenarios, apart from the one that `cluster::run` runs in namespaces of its own.
fn scenario_files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(crate::root().join("tests/tests"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|extension| extension == "rs") && name != "cluster" {
            files.push(name.into_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// Runs files of scenarios with a prepared command.
pub fn run_scenarios(mut scenarios: Command, files: &[String]) -> Result<()> {
    scenarios.args(["test", "--release", "--package", "lab", "--no-fail-fast"]);
    for file in files {
        scenarios.args(["--test", file]);
    }
    // One at a time: concurrent agents would observe each other's reads.
    run_checked(scenarios.args(["--", "--test-threads=1"]))
}

/// A cargo command with the clients, servers and browsers that the scenarios use.
pub fn scenario_command(skips: &SkipLog) -> Result<Command> {
    let mut scenarios = cargo();
    let (variable, file) = skips.variable();
    scenarios.env(variable, file);
    let mut path = Vec::new();
    match setup::python() {
        Ok(programs) => path.push(programs),
        Err(error) => skips.skip("Python's requests and httpx", &format!("{error:#}"))?,
    }
    let own = std::env::var_os("PATH").unwrap_or_default();
    path.extend(std::env::split_paths(&own));
    match setup::go() {
        Ok(programs) => path.extend(programs),
        Err(error) => skips.skip("clients in Go", &format!("{error:#}"))?,
    }
    match setup::newest_go() {
        Ok(go) => {
            scenarios.env("KEYTRAIL_GO_NEWEST", go);
            scenarios.env("KEYTRAIL_GO_CACHE", setup::tools().join("go-cache"));
        }
        Err(error) => skips.skip("clients of the newest Go", &format!("{error:#}"))?,
    }
    match setup::prometheus() {
        Ok(programs) => path.extend(programs),
        Err(error) => skips.skip("Prometheus", &format!("{error:#}"))?,
    }
    match setup::browser() {
        Ok(browser) => {
            scenarios
                .env("KEYTRAIL_CHROMIUM", &browser.program)
                .env("KEYTRAIL_PLAYWRIGHT", &browser.driver);
            scenarios.envs(browser.environment);
        }
        Err(error) => skips.skip("a browser", &format!("{error:#}"))?,
    }
    match setup::panels() {
        Ok(page) => {
            scenarios.env("KEYTRAIL_RENDER", page);
        }
        Err(error) => skips.skip("drawing the dashboards", &format!("{error:#}"))?,
    }
    match setup::web_load() {
        Ok(Some(load)) => {
            path.extend(load.programs);
            scenarios.env("KEYTRAIL_WEB_LIBRARIES", load.libraries);
        }
        Ok(None) => {}
        Err(error) => skips.skip("nginx and wrk", &format!("{error:#}"))?,
    }
    match setup::containerd() {
        Ok(programs) => {
            path.extend(programs);
            scenarios.env("KEYTRAIL_BUSYBOX", vm::busybox()?);
        }
        Err(error) => skips.skip("containers", &format!("{error:#}"))?,
    }
    scenarios.env("PATH", std::env::join_paths(path)?);
    Ok(scenarios)
}
