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

/// Runs a command, and prints the most memory that it ever had.
const PEAK: &str = "import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)";

/// Asks every question of a ledger of ten million records, and prints how long that took, and how much memory a
/// process took for it that did nothing else.
pub fn ledger() -> Result<()> {
    let programs = build::programs()?;
    let (_, keytrail) = programs
        .iter()
        .find(|(name, _)| name == "keytrail")
        .context("no agent was built")?;
    let directory = tempfile::tempdir()?;
    succeed(
        cargo()
            .args(["test", "--release", "--package", "keytrail"])
            .args(["ten_million_records", "--", "--ignored", "--nocapture"])
            .env("KEYTRAIL_BENCH_LEDGER", directory.path()),
    )?;
    println!("\n| command | MB at most |\n|---|---:|");
    for question in [
        "query who kt-0000000000000007",
        "query where kt-0000000000001387",
        "query blast-radius ns7/app-7",
        "query chain kt-0000000000001387",
        "query first-use kt-0000000000001387 --after 30d",
        "query timeline",
        "findings",
        "inventory",
    ] {
        let output = Command::new("python3")
            .args(["-c", PEAK])
            .arg(keytrail)
            .args(question.split(' '))
            .arg("--state-dir")
            .arg(directory.path())
            .output()?;
        if !output.status.success() {
            bail!("{question}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let most = String::from_utf8_lossy(&output.stdout);
        println!("| `keytrail {question}` | {} |", most.trim());
    }
    Ok(())
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
