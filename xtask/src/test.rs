//! Runs all checks.

use crate::{
    build, cluster,
    commands::{cargo, run_checked},
    dashboards, deploy, scenarios, setup,
    shard::Shard,
    skips::SkipLog,
    vm::{self, VmCells},
};
use anyhow::Result;

/// The end-to-end scenarios need root. Without it they are skipped and counted; in CI that is an
/// error. With `all`, every combination of programs and every kernel is tested, which takes an hour
/// or more; otherwise a selection, and one shard of the rest that the commit determines.
pub fn run(all: bool) -> Result<()> {
    let root = lab::is_root();
    let skips = SkipLog::start()?;
    if !root {
        skips.skip("the end-to-end scenarios", "they need root")?;
        skips.skip("a real Kubernetes and other kernels", "they need root")?;
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
    // The agent's dependencies are built already with these features. Alone, the other crates would
    // have fewer, and this program has others: each would rebuild what they share.
    let agent = [
        "keytrail",
        "monitor-common",
        "monitor-core",
        "monitor-parse",
    ];
    for packages in [agent.as_slice(), &["xtask"]] {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        run_checked(cargo().args(["test", "--release"]).args(packages))?;
    }
    if root {
        step("end-to-end scenarios");
        scenarios::run(&[], all)?;
        step("a real Kubernetes");
        cluster::run()?;
        step("other kernels");
        vm::run_cells(if all { VmCells::All } else { VmCells::Ordinary })?;
        if !all {
            Shard::of_commit()?.run()?;
        }
    }
    skips.show();
    Ok(())
}

/// Has the reference test write its expected text.
pub fn write_reference() -> Result<()> {
    run_checked(
        cargo()
            .args(["test", "--release", "--package", "keytrail", "reference::"])
            .env("KEYTRAIL_WRITE_REFERENCE", "1"),
    )
}

fn step(name: &str) {
    eprintln!("\n── {name}");
}
