//! `cargo xtask`: every routine command of Keytrail.

mod bench;
mod build;
mod cluster;
mod dashboards;
mod debian;
mod demo;
mod deploy;
mod setup;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Every routine command of Keytrail
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put in place what the build needs: the sources of `core`, bpf-linker
    Setup,
    /// Build the probes and the agent, as they ship
    Build,
    /// Build, and run the agent with the arguments given (root)
    Run {
        /// Arguments of `keytrail run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show the main job on real processes, on this machine (root)
    Demo,
    /// Everything that must hold: format, lints, unit, property and end-to-end tests
    Test {
        /// Every combination of programs and a real Kubernetes as well: an hour or more
        #[arg(long)]
        all: bool,
    },
    /// The end-to-end tests on this machine, as a part of `test` (root)
    Scenarios {
        /// Files of them, such as `present`; all where none is named
        files: Vec<String>,
        /// Every combination of programs
        #[arg(long)]
        all: bool,
    },
    /// Check the rules of Prometheus, run their tests, and check Grafana's dashboards
    Dashboards,
    /// Write the reference in docs/ again, from what the code says of itself
    Reference,
    /// Check the Helm chart and the systemd unit
    Deploy,
    /// The chart on a real Kubernetes, which is built first where it is not yet (root)
    Cluster,
    /// The end-to-end tests on other kernels, in virtual machines
    Vm {
        /// Only this series, such as 6.1; can be given again
        #[arg(long = "kernel")]
        kernels: Vec<String>,
        /// Only this variant: `lsm` (bpf in the LSM list) or `no-lsm`
        #[arg(long)]
        variant: Option<String>,
        /// Run this shell script there instead of the tests, and show the console
        #[arg(long)]
        script: Option<String>,
        /// Write the tables of what is seen to docs/coverage.md
        #[arg(long)]
        write: bool,
    },
    /// Measure what the probes cost, beside empty programs and other tools (root)
    Bench {
        /// Rounds, of which medians are taken
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Seconds of each test under load
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// In a virtual machine with this series of kernels, and not here
        #[arg(long)]
        kernel: Option<String>,
        /// How the virtual machine is booted: `lsm` or `no-lsm`
        #[arg(long)]
        variant: Option<String>,
        /// The questions to a ledger of ten million records, and nothing else
        #[arg(long)]
        ledger: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::run(),
        Command::Build => build::run().map(drop),
        Command::Run { arguments } => build::run_agent(&arguments),
        Command::Demo => demo::run(),
        Command::Test { all } => test::run(all),
        Command::Scenarios { files, all } => {
            build::run()?;
            test::scenarios(&files, all)
        }
        Command::Dashboards => dashboards::check(),
        Command::Reference => test::write_reference(),
        Command::Deploy => deploy::check(),
        Command::Cluster => cluster::run(),
        Command::Vm {
            kernels,
            variant,
            script,
            write,
        } => vm::run(&vm::Choice {
            kernels,
            variant,
            script,
            write,
        }),
        Command::Bench {
            rounds,
            seconds,
            kernel,
            variant,
            ledger: false,
        } => bench::run(rounds, seconds, kernel, variant),
        Command::Bench { .. } => bench::ledger(),
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
