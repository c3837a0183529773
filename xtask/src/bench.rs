//! Measures the cost of the probes, on this machine and in a virtual machine.

use crate::{
    build,
    commands::{cargo, run_checked},
    setup, vm,
};
use anyhow::{Context as _, Result, bail};
use std::{path::PathBuf, process::Command};

/// Runs a command, and prints its peak memory use.
const PEAK: &str = "import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)";

/// Runs every query on a ledger of ten million records, and prints its duration, and the memory of
/// a process that did nothing else.
pub fn ledger() -> Result<()> {
    let keytrail = program("keytrail")?;
    let directory = tempfile::tempdir()?;
    run_checked(
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
            .arg(&keytrail)
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

/// What the cost for services is measured with, besides the defaults of the program.
#[derive(Debug, clap::Args)]
pub struct ServiceOptions {
    /// Real servers and clients beside the agent, instead of the probes
    #[arg(long)]
    services: bool,
    /// Only services whose names contain this
    #[arg(long, requires = "services")]
    only: Option<String>,
    /// Also beside other tools
    #[arg(long, requires = "services")]
    peers: bool,
    /// Write the tables into docs/benchmarks.md
    #[arg(long, requires = "services")]
    write: bool,
}

impl ServiceOptions {
    pub fn is_chosen(&self) -> bool {
        self.services
    }
}

/// Measures what services notice of the agent.
pub fn services(rounds: usize, seconds: u64, options: &ServiceOptions) -> Result<()> {
    if !lab::is_root() {
        bail!("the benchmarks attach probes to the kernel and need root");
    }
    let mut command = Command::new(program("lab-services")?);
    command
        .arg("--probes")
        .arg(build::bench_probes())
        .args(["--rounds", &rounds.to_string()])
        .args(["--seconds", &seconds.to_string()])
        .env("KEYTRAIL_GO", setup::newest_go()?);
    if let Some(load) = setup::web_load()? {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = load
            .programs
            .into_iter()
            .chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(programs)?);
        command.env("KEYTRAIL_WEB_LIBRARIES", load.libraries);
    }
    if let Some(only) = &options.only {
        command.args(["--only", only]);
    }
    if options.peers {
        command.arg("--peers");
    }
    if options.write {
        command
            .arg("--write")
            .arg(crate::root().join("docs/benchmarks.md"));
    }
    run_checked(&mut command)
}

/// A built program.
fn program(name: &str) -> Result<PathBuf> {
    let programs = build::programs()?;
    let found = programs.into_iter().find(|(known, _)| known == name);
    let (_, path) = found.with_context(|| format!("no {name} was built"))?;
    Ok(path)
}

/// Runs the benchmark here, or on another kernel if one is named.
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
        return run_checked(
            Command::new(program("lab-bench")?)
                .arg("--probes")
                .arg(build::bench_probes())
                .arg("--program")
                .arg(vm::busybox()?)
                .args(["--rounds", &rounds.to_string()])
                .args(["--seconds", &seconds.to_string()]),
        );
    };
    vm::run(&vm::VmSelection {
        cells: vm::VmCells::All,
        kernels: vec![kernel],
        variant: Some(variant.unwrap_or_else(|| "lsm".to_owned())),
        script: Some(format!(
            "cd {place} && ./lab-bench --probes keytrail-bench-probes --program /bin/busybox --rounds {rounds} --seconds {seconds}",
            place = vm::PROGRAMS
        )),
        write: false,
    })
}
