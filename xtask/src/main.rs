//! `cargo xtask`: every routine command of Keytrail.

mod bench;
mod build;
mod cluster;
mod commands;
mod dashboards;
mod debian;
mod demo;
mod dependencies;
mod deploy;
mod downloads;
mod fuzz;
mod lint;
mod scenarios;
mod setup;
mod shard;
mod skips;
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
struct XtaskCli {
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Debug, Subcommand)]
enum XtaskCommand {
    /// Install what the build needs: the sources of `core`, bpf-linker
    Setup,
    /// Build the probes and the agent, as shipped
    Build,
    /// Build and run the agent with the given arguments (root)
    Run {
        /// Arguments of `keytrail run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Demonstrate the main job on real processes, on this machine (root)
    Demo,
    /// Run all checks: format, lints, unit, property and end-to-end tests
    Test {
        /// Also every combination of programs and a real Kubernetes: an hour or more
        #[arg(long)]
        all: bool,
    },
    /// Run the fuzz targets of the parsers, one hour each
    Fuzz {
        /// Only this one
        target: Option<String>,
        /// Seconds for each
        #[arg(long, default_value_t = 3600)]
        seconds: u64,
    },
    /// Run the end-to-end tests on this machine, a part of `test` (root)
    Scenarios {
        /// Their files, such as `present`; all by default
        files: Vec<String>,
        /// Every combination of programs
        #[arg(long)]
        all: bool,
    },
    /// Check the Prometheus rules, run their tests, and check the Grafana dashboards
    Dashboards,
    /// Regenerate the reference in docs/ from the code
    Reference,
    /// Check the Helm chart and the systemd unit
    Deploy,
    /// Check the licences and sources of the dependencies
    Deny,
    /// Write the agent's bill of materials (CycloneDX) to target/keytrail.cdx.json
    Sbom,
    /// Check the structure of the code: cycles, layers, names, sizes; and the age of tables in docs
    Lint {
        /// Another checkout
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Run the chart on a real Kubernetes, which is built first if needed (root)
    Cluster,
    /// Run the end-to-end tests on other kernels, in virtual machines
    Vm {
        /// Only this series, such as 6.1; can be repeated
        #[arg(long = "kernel")]
        kernels: Vec<String>,
        /// Only this variant: `lsm` (bpf in the LSM list) or `no-lsm`
        #[arg(long)]
        variant: Option<String>,
        /// Run this shell script there instead of the tests, and show the console
        #[arg(long)]
        script: Option<String>,
        /// Write the coverage tables to docs/coverage.md
        #[arg(long)]
        write: bool,
    },
    /// Measure the cost of the probes, compared with empty programs and other tools (root)
    Bench {
        /// Number of rounds, of which medians are taken
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Duration of each load test in seconds
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// In a virtual machine with this kernel series instead of here
        #[arg(long)]
        kernel: Option<String>,
        /// Boot variant of the virtual machine: `lsm` or `no-lsm`
        #[arg(long)]
        variant: Option<String>,
        /// Only the queries on a ledger of ten million records
        #[arg(long)]
        ledger: bool,
        #[command(flatten)]
        services: bench::ServiceOptions,
    },
}

fn main() -> ExitCode {
    match run(XtaskCli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: XtaskCommand) -> Result<()> {
    match command {
        XtaskCommand::Setup => setup::run(),
        XtaskCommand::Build => build::run().map(drop),
        XtaskCommand::Run { arguments } => build::run_agent(&arguments),
        XtaskCommand::Demo => demo::run(),
        XtaskCommand::Test { all } => test::run(all),
        XtaskCommand::Deny => dependencies::check(),
        XtaskCommand::Sbom => dependencies::bill_of_materials().map(|path| {
            println!("{}", path.display());
        }),
        XtaskCommand::Scenarios { files, all } => {
            build::run()?;
            let skips = skips::SkipLog::start()?;
            scenarios::run(&files, all)?;
            skips.show();
            Ok(())
        }
        XtaskCommand::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        XtaskCommand::Dashboards => dashboards::check(),
        XtaskCommand::Reference => test::write_reference(),
        XtaskCommand::Deploy => deploy::check(),
        XtaskCommand::Lint { root: other } => {
            lint::run(&other.unwrap_or_else(root), lint::LintMode::Complete)
        }
        XtaskCommand::Cluster => cluster::run(),
        XtaskCommand::Vm {
            kernels,
            variant,
            script,
            write,
        } => vm::run(&vm::VmSelection {
            cells: vm::VmCells::All,
            kernels,
            variant,
            script,
            write,
        }),
        XtaskCommand::Bench {
            rounds,
            seconds,
            services,
            ..
        } if services.is_chosen() => bench::services(rounds, seconds, &services),
        XtaskCommand::Bench {
            rounds,
            seconds,
            kernel,
            variant,
            ledger: false,
            ..
        } => bench::run(rounds, seconds, kernel, variant),
        XtaskCommand::Bench { .. } => bench::ledger(),
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
