//! Runs all checks.

use crate::{
    build::{self, cargo, run_checked},
    cluster, dashboards, deploy, setup, vm,
};
use anyhow::{Result, bail};

/// Set to test everything in the scenarios, not only what fits an ordinary run.
const ALL: &str = "KEYTRAIL_TEST_ALL";

/// The end-to-end scenarios need root. Without it they are skipped, and counted; in CI nothing
/// is skipped. With `all` every combination of programs is tested, which takes an hour or more.
pub fn run(all: bool) -> Result<()> {
    let root = lab::is_root();
    if !root && std::env::var_os("CI").is_some() {
        bail!("the end-to-end scenarios need root, and in CI nothing is skipped");
    }
    setup::run()?;
    step("format");
    run_checked(cargo().args(["fmt", "--all", "--check"]))?;
    step("build");
    build::run()?;
    step("lints");
    run_checked(cargo().args([
        "clippy",
        "--release",
        "--workspace",
        "--exclude",
        "monitor-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("lints of the probes");
    run_checked(
        cargo()
            .args(["clippy", "--release", "--package", "monitor-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .args(["--target-dir", "target/bpf-lints", "--", "-D", "warnings"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\""),
    )?;
    step("chart and unit");
    deploy::check()?;
    step("rules of Prometheus");
    dashboards::check()?;
    step("unit and property tests");
    // One by one: the agent and this program are built already for their package alone; a common
    // build would unify features and rebuild them.
    for package in ["keytrail", "xtask", "monitor-common", "monitor-core"] {
        run_checked(cargo().args(["test", "--release", "--package", package]))?;
    }
    step("end-to-end scenarios");
    if root {
        scenarios(&[], all)?;
    } else {
        let listed = cargo()
            .args([
                "test",
                "--release",
                "--quiet",
                "--package",
                "lab",
                "--",
                "--list",
            ])
            .output()?;
        let count = String::from_utf8_lossy(&listed.stdout)
            .lines()
            .filter(|line| line.ends_with(": test"))
            .count();
        println!("{count} end-to-end scenarios skipped: they need root");
    }
    step("a real Kubernetes");
    if root && (all || cluster::is_built()) {
        cluster::run()?;
    } else {
        println!(
            "1 scenario skipped: it needs root, and a Kubernetes, which `cargo xtask cluster` builds"
        );
    }
    step("other kernels");
    if root && cfg!(target_arch = "x86_64") {
        vm::run(&vm::VmSelection::default())
    } else {
        println!("12 virtual machines skipped: they need root, and are of x86_64");
        Ok(())
    }
}

/// Has the reference test write its expected text.
pub fn write_reference() -> Result<()> {
    run_checked(
        cargo()
            .args(["test", "--release", "--package", "keytrail", "reference::"])
            .env("KEYTRAIL_WRITE_REFERENCE", "1"),
    )
}

/// Runs the end-to-end scenarios on this machine, of the given files or all.
pub fn scenarios(files: &[String], all: bool) -> Result<()> {
    let mut scenarios = cargo();
    let mut path = std::env::var("PATH").unwrap_or_default();
    match setup::go() {
        Ok(Some(programs)) => path = format!("{path}:{}", programs.display()),
        Ok(None) => {}
        Err(error) => println!("the clients in Go are skipped: {error:#}"),
    }
    match setup::newest_go() {
        Ok(go) => {
            scenarios.env("KEYTRAIL_GO_NEWEST", go);
            scenarios.env("KEYTRAIL_GO_CACHE", setup::tools().join("go-cache"));
        }
        Err(error) => println!("the newest Go is not here: {error:#}"),
    }
    if all {
        scenarios.env(ALL, "1");
        let programs = setup::go_programs()?;
        scenarios.env("KEYTRAIL_GO_PROGRAMS", std::env::join_paths(programs)?);
    }
    match setup::python() {
        Ok(programs) => path = format!("{}:{path}", programs.display()),
        Err(error) => println!("Python's requests and httpx are skipped: {error:#}"),
    }
    match setup::prometheus() {
        Ok(Some(programs)) => path = format!("{path}:{}", programs.display()),
        Ok(None) => {}
        Err(error) => println!("the scenario with Prometheus is skipped: {error:#}"),
    }
    match setup::browser() {
        Ok(browser) => {
            scenarios
                .env("KEYTRAIL_CHROMIUM", &browser.program)
                .env("KEYTRAIL_PLAYWRIGHT", &browser.driver);
            scenarios.envs(browser.environment);
        }
        Err(error) => println!("the scenario with a browser is skipped: {error:#}"),
    }
    match setup::panels() {
        Ok(page) => {
            scenarios.env("KEYTRAIL_RENDER", page);
        }
        Err(error) => println!("the dashboards are not drawn: {error:#}"),
    }
    match setup::containerd() {
        Ok(programs) => {
            for directory in programs {
                path = format!("{path}:{}", directory.display());
            }
            scenarios.env("KEYTRAIL_BUSYBOX", vm::busybox()?);
        }
        Err(error) => println!("the scenarios with containers are skipped: {error:#}"),
    }
    scenarios.env("PATH", path);
    // One at a time: concurrent agents would observe each other's reads.
    scenarios.args(["test", "--release", "--package", "lab"]);
    for file in files {
        scenarios.args(["--test", file]);
    }
    run_checked(scenarios.args(["--", "--test-threads=1"]))
}

fn step(name: &str) {
    eprintln!("\n── {name}");
}
