//! What the probes cost, on the machine at hand and in a virtual machine.

use crate::{
    build::{self, cargo, succeed},
    root, vm,
};
use anyhow::{Context as _, Result, bail};
use std::{path::PathBuf, process::Command};

/// The probes, as the build leaves them: the benchmark loads the programs that do nothing from it.
pub fn probes() -> PathBuf {
    root().join("target/bpf/bpfel-unknown-none/release/keytrail-probes")
}

/// Asks every question of a ledger of ten million records, and prints how long that took.
pub fn ledger() -> Result<()> {
    succeed(cargo().args([
        "test",
        "--release",
        "--package",
        "keytrail",
        "ten_million_records",
        "--",
        "--ignored",
        "--nocapture",
    ]))
}

/// Measures here, and then on a kernel of another kind where one is named.
pub fn run(
    rounds: usize,
    seconds: u64,
    kernel: Option<String>,
    variant: Option<String>,
) -> Result<()> {
    if !lab::is_root() {
        bail!("the benchmarks attach probes to the kernel and need root");
    }
    let Some(kernel) = kernel else {
        let programs = build::programs()?;
        let (_, bench) = programs
            .iter()
            .find(|(name, _)| name == "lab-bench")
            .context("no benchmark was built")?;
        return succeed(
            Command::new(bench)
                .arg("--probes")
                .arg(probes())
                .arg("--program")
                .arg(vm::busybox()?)
                .args(["--rounds", &rounds.to_string()])
                .args(["--seconds", &seconds.to_string()]),
        );
    };
    vm::run(&vm::Choice {
        kernels: vec![kernel],
        variant: Some(variant.unwrap_or_else(|| "lsm".to_owned())),
        script: Some(format!(
            "cd {place} && ./lab-bench --probes keytrail-probes --program /bin/busybox --rounds {rounds} --seconds {seconds}",
            place = vm::PROGRAMS
        )),
        write: false,
    })
}
