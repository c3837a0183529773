//! The end-to-end tests on other kernels, in virtual machines.

mod image;
mod kernels;
mod qemu;

use crate::{build, root};
use anyhow::{Result, bail};
use qemu::Qemu;
use std::time::Duration;

/// How one machine of the matrix is booted.
#[derive(Clone, Copy, Debug)]
struct Variant {
    name: &'static str,
    parameters: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "lsm",
        parameters: "lsm=lockdown,capability,landlock,yama,bpf",
    },
    Variant {
        name: "no-lsm",
        parameters: "lsm=lockdown,capability,landlock,yama",
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
}

/// The longest that one machine may run.
const LIMIT: Duration = Duration::from_secs(600);

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
    image::build(&programs, &image)?;
    let script = choice.script.clone().unwrap_or_else(tests);
    let mut failed = Vec::new();
    for kernel in &kernels {
        for variant in VARIANTS {
            if choice
                .variant
                .as_ref()
                .is_some_and(|wanted| wanted != variant.name)
            {
                continue;
            }
            let name = format!("{} {}", kernel.short(), variant.name);
            let outcome = qemu.run(kernel, variant.parameters, &image, &script, LIMIT)?;
            println!("── {name}: {:.1} s", outcome.took.as_secs_f64());
            if choice.script.is_some() {
                println!("{}", outcome.console);
                continue;
            }
            if let Err(error) = outcome.check(&name) {
                eprintln!("{error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

fn tests() -> String {
    format!("cd {} && ./keytrail doctor", image::PROGRAMS)
}
