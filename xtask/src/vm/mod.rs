//! The end-to-end tests on other kernels, in virtual machines.

mod image;
mod kernels;
mod qemu;
mod table;

pub use image::{PROGRAMS, busybox};

use crate::{bench, build, root};
use anyhow::{Result, bail};
use kernels::Kernel;
use qemu::Qemu;
use std::time::Duration;
use table::{Costs, Coverage};

/// How one machine of the matrix is booted, and what the agent does without.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    parameters: &'static str,
    skipped_hooks: &'static str,
    /// Series of kernels that it is run on; all where empty.
    only: &'static [&'static str],
}

const WITH_BPF: &str = "lsm=lockdown,capability,landlock,yama,bpf";
const WITHOUT_BPF: &str = "lsm=lockdown,capability,landlock,yama";

const VARIANTS: [Variant; 4] = [
    Variant {
        name: "lsm",
        parameters: WITH_BPF,
        skipped_hooks: "",
        only: &[],
    },
    Variant {
        name: "no-lsm",
        parameters: WITHOUT_BPF,
        skipped_hooks: "",
        only: &[],
    },
    Variant {
        name: "kprobe",
        parameters: WITHOUT_BPF,
        skipped_hooks: "lsm,fentry",
        only: &["5.10", "7"],
    },
    Variant {
        name: "tracepoint",
        parameters: WITHOUT_BPF,
        skipped_hooks: "lsm,fentry,kprobe",
        only: &["5.10", "6.1"],
    },
];

/// What is asked of the matrix.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Series of kernels; all where empty.
    pub kernels: Vec<String>,
    /// Only this variant.
    pub variant: Option<String>,
    /// A script to run instead of the tests; its output is shown.
    pub script: Option<String>,
    /// Write the tables to `docs/coverage.md`.
    pub write: bool,
}

/// The longest that one machine may run.
const LIMIT: Duration = Duration::from_secs(420);
/// The same for a script of the user's own.
const SCRIPT_LIMIT: Duration = Duration::from_secs(3600);

/// Boots every machine that is wanted, one after the other.
pub fn run(choice: &Choice) -> Result<()> {
    for wanted in &choice.kernels {
        if !kernels::series().contains(&wanted.as_str()) {
            bail!(
                "no kernel {wanted} in the matrix; there are {}",
                kernels::series().join(", ")
            );
        }
    }
    let kernels = kernels::fetch(&choice.kernels)?;
    let qemu = Qemu::find()?;
    let programs = build::programs()?;
    let image = root().join("target/vm-root.img");
    image::build(&programs, &bench::probes(), &image)?;
    let machines = kernels
        .iter()
        .flat_map(|kernel| VARIANTS.map(|variant| (kernel, variant)))
        .filter(|(kernel, variant)| match &choice.variant {
            Some(wanted) => wanted == variant.name,
            None => variant.only.is_empty() || variant.only.contains(&kernel.series),
        });
    if let Some(script) = &choice.script {
        for (kernel, variant) in machines {
            let outcome = qemu.run(kernel, variant.parameters, &image, script, SCRIPT_LIMIT)?;
            println!("── {}\n{}", title(kernel, variant), outcome.console);
        }
        return Ok(());
    }
    let mut coverage = Coverage::here()?;
    let mut costs = Costs::default();
    let mut failed = Vec::new();
    for (kernel, variant) in machines {
        let name = title(kernel, variant);
        let outcome = qemu.run(kernel, variant.parameters, &image, &tests(variant), LIMIT)?;
        let seconds = outcome.took.as_secs_f64();
        match outcome.check(&name) {
            Ok(()) => println!("{name}: ok in {seconds:.0} s"),
            Err(error) => {
                eprintln!("{error:#}");
                failed.push(name.clone());
            }
        }
        coverage.add(&name, &outcome.report);
        costs.add(&name, &outcome.report);
    }
    println!("\n{coverage}\n{costs}");
    if choice.write {
        table::write(&coverage, &costs)?;
    }
    failed.extend(costs.above_budget());
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

fn title(kernel: &Kernel, variant: Variant) -> String {
    format!("{} {}", kernel.short(), variant.name)
}

/// What runs in each machine: what `doctor` says goes to the report, and then what comes of every
/// scenario.
fn tests(variant: Variant) -> String {
    format!(
        "cd {} || exit 1
export KEYTRAIL_COVERAGE=/dev/ttyS1 KEYTRAIL_SKIP_HOOKS={skipped}
./keytrail doctor --output json | tr -d '\\n' > /dev/ttyS1 || exit 1
echo > /dev/ttyS1
./evasions --test-threads=1 && ./kernel --test-threads=1",
        image::PROGRAMS,
        skipped = variant.skipped_hooks
    )
}
