//! Runs all checks.

use crate::{
    build, cluster,
    commands::{cargo, run_checked},
    dashboards, dependencies, deploy,
    downloads::Downloads,
    fuzz, lint, scenarios, setup,
    shard::Shard,
    skips::SkipLog,
    vm::{self, VmCells},
};
use anyhow::Result;

/// Seconds for each fuzz target: a minute in total.
const FUZZ_SECONDS: u64 = 12;

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
    let downloads = Downloads::start(root);
    step("format");
    run_checked(cargo().args(["fmt", "--all", "--check"]))?;
    step("build");
    build::run()?;
    lints()?;
    // The next steps would fetch the same.
    drop(downloads);
    step("structure");
    lint::run(&crate::root(), lint::LintMode::Code)?;
    step("chart and unit");
    deploy::check()?;
    step("rules of Prometheus");
    dashboards::check()?;
    unit_tests()?;
    step("fuzz targets of the parsers");
    fuzz::run(None, FUZZ_SECONDS)?;
    if root {
        step("end-to-end scenarios");
        scenarios::run(&[], all)?;
        step("other kernels");
        if all {
            vm::run_cells(VmCells::All)?;
            step("a real Kubernetes");
            cluster::run()?;
            step("dependencies");
            dependencies::check()?;
            dependencies::bill_of_materials()?;
        } else {
            vm::run_cells(VmCells::Ordinary)?;
            Shard::of_commit()?.run()?;
        }
    }
    skips.show();
    Ok(())
}

/// Clippy, and the links in the comments.
fn lints() -> Result<()> {
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
    let of_probes = |command: &str| {
        const ARCH: &str = "--cfg=bpf_target_arch=\"x86_64\"";
        let mut cargo = cargo();
        cargo
            .args([command, "--release", "--package", "monitor-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .args(["--target-dir", "target/bpf-lints"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", ARCH)
            .env("RUSTDOCFLAGS", format!("{ARCH} -D warnings"));
        cargo
    };
    run_checked(of_probes("clippy").args(["--", "-D", "warnings"]))?;
    run_checked(of_probes("doc").args(["--no-deps", "--document-private-items"]))?;
    step("links in the comments");
    run_checked(
        cargo()
            .args([
                "doc",
                "--release",
                "--workspace",
                "--exclude",
                "monitor-ebpf",
            ])
            .args(["--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(())
}

fn unit_tests() -> Result<()> {
    step("unit and property tests");
    // In one build with the agent: otherwise all dependencies would be compiled again.
    let mut tests = cargo();
    tests.args(["test", "--release", "--package", "keytrail"]);
    tests.args(["--features", "monitor-common/user"]);
    for pure in ["monitor-common", "monitor-core", "monitor-parse"] {
        tests.args(["--package", pure]);
        for check in ["overflow-checks", "debug-assertions"] {
            let setting = format!("profile.release.package.{pure}.{check}=true");
            tests.args(["--config", &setting]);
        }
    }
    run_checked(&mut tests)?;
    step("unit tests of this program, and of the lab");
    run_checked(cargo().args(["test", "--release", "--package", "xtask"]))?;
    run_checked(cargo().args([
        "test",
        "--release",
        "--package",
        "lab",
        "--lib",
        "--bin",
        "lab-services",
    ]))
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
