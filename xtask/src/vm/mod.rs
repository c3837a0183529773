//! The end-to-end tests on other kernels, in virtual machines.

mod image;
mod kernels;
mod qemu;
mod table;

pub use image::{PROGRAMS, busybox};

use crate::{build, root, skips::SkipLog};
use anyhow::{Result, bail};
use kernels::KernelImage;
use qemu::Qemu;
use std::time::Duration;
use table::{CoverageTable, VerifierCosts};

/// How one machine of the matrix is booted, and what the agent has to do without.
#[derive(Clone, Copy, Debug)]
struct VmVariant {
    name: &'static str,
    parameters: &'static str,
    skipped_hooks: &'static str,
    /// Kernel series to run it on; all if empty.
    only: &'static [&'static str],
}

const WITH_BPF: &str = "lsm=lockdown,capability,landlock,yama,bpf";
const WITHOUT_BPF: &str = "lsm=lockdown,capability,landlock,yama";

const VARIANTS: [VmVariant; 4] = [
    VmVariant {
        name: "lsm",
        parameters: WITH_BPF,
        skipped_hooks: "",
        only: &[],
    },
    VmVariant {
        name: "no-lsm",
        parameters: WITHOUT_BPF,
        skipped_hooks: "",
        only: &[],
    },
    VmVariant {
        name: "kprobe",
        parameters: WITHOUT_BPF,
        skipped_hooks: "lsm,fentry",
        only: &["5.10", "7"],
    },
    VmVariant {
        name: "tracepoint",
        parameters: WITHOUT_BPF,
        skipped_hooks: "lsm,fentry,kprobe",
        only: &["5.10", "6.1"],
    },
];

/// Cells of the matrix that an ordinary test run boots: the oldest kernel with the fewest hooks, and
/// the newest.
const ORDINARY: [(&str, &str); 2] = [("5.10", "tracepoint"), ("7", "lsm")];
/// Parts into which the other cells are divided.
const PARTS: usize = 4;

/// Which cells of the matrix to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmCells {
    #[default]
    All,
    /// Two of them.
    Ordinary,
    /// One part of the others, below `PARTS`.
    Part(usize),
}

impl VmCells {
    /// Whether it contains a cell; `number` is the cell's index among those that are not
    /// [`ORDINARY`].
    fn contains(self, is_ordinary: bool, number: usize) -> bool {
        match self {
            Self::All => true,
            Self::Ordinary => is_ordinary,
            Self::Part(part) => !is_ordinary && number % PARTS == part,
        }
    }
}

/// The requested part of the matrix.
#[derive(Clone, Debug, Default)]
pub struct VmSelection {
    pub cells: VmCells,
    /// Kernel series; all if empty.
    pub kernels: Vec<String>,
    /// Only this variant.
    pub variant: Option<String>,
    /// A script to run instead of the tests; its output is shown.
    pub script: Option<String>,
    /// Write the tables to `docs/coverage.md`.
    pub write: bool,
}

/// Time limit of one machine.
const LIMIT: Duration = Duration::from_secs(420);
/// Time limit of a user's own script.
const SCRIPT_LIMIT: Duration = Duration::from_secs(3600);

/// Boots some cells of the matrix; on another architecture they are skipped.
pub fn run_cells(cells: VmCells) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return SkipLog::of_run().skip("virtual machines", "their kernels are of x86_64");
    }
    run(&VmSelection {
        cells,
        ..VmSelection::default()
    })
}

/// Fetches every kernel of the matrix.
pub fn fetch_kernels() -> Result<()> {
    if cfg!(target_arch = "x86_64") {
        kernels::fetch(&[])?;
    }
    Ok(())
}

/// Boots every requested machine, one after the other.
pub fn run(choice: &VmSelection) -> Result<()> {
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
    image::build(&programs, &build::bench_probes(), &image)?;
    let mut rest = 0;
    let machines = kernels
        .iter()
        .flat_map(|kernel| VARIANTS.map(|variant| (kernel, variant)))
        .filter(|(kernel, variant)| match &choice.variant {
            Some(wanted) => wanted == variant.name,
            None => variant.only.is_empty() || variant.only.contains(&kernel.series),
        })
        .filter(|(kernel, variant)| {
            let is_ordinary = ORDINARY.contains(&(kernel.series, variant.name));
            rest += usize::from(!is_ordinary);
            choice.cells.contains(is_ordinary, rest)
        });
    if let Some(script) = &choice.script {
        for (kernel, variant) in machines {
            let outcome = qemu.run(kernel, variant.parameters, &image, script, SCRIPT_LIMIT)?;
            println!("── {}\n{}", title(kernel, variant), outcome.console);
        }
        return Ok(());
    }
    let mut coverage = CoverageTable::this_machine()?;
    let mut costs = VerifierCosts::default();
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

fn title(kernel: &KernelImage, variant: VmVariant) -> String {
    format!("{} {}", kernel.short(), variant.name)
}

/// The job of each machine: the output of `doctor` goes to the report, followed by the result of
/// every scenario.
fn tests(variant: VmVariant) -> String {
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
