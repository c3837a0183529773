//! What the agent costs services: real servers and clients, alone and beside the agent, empty programs
//! and other tools, in alternation. `cargo xtask bench --services` runs it, and writes the tables of
//! `docs/benchmarks.md`.

mod contender;
mod load;
mod report;
mod service;

use anyhow::{Result, ensure};
use clap::Parser;
use contender::{BARE, ServiceContender, contenders};
use load::LoadFigures;
use report::ServiceResult;
use service::{SERVICES, Service};
use std::path::PathBuf;

#[derive(Debug, Parser)]
struct ServicesArguments {
    /// The probes' object file, for the empty programs
    #[arg(long)]
    probes: PathBuf,
    /// Number of rounds, of which medians are taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Duration of each load in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only services whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// Also other tools
    #[arg(long)]
    peers: bool,
    /// A file in which the tables replace what is between the marks
    #[arg(long)]
    write: Option<PathBuf>,
}

fn main() -> Result<()> {
    ensure!(
        lab::is_root(),
        "the benchmarks attach probes to the kernel and need root"
    );
    let arguments = ServicesArguments::parse();
    let only = arguments.only.clone().unwrap_or_default();
    let mut results = Vec::new();
    for service in SERVICES
        .iter()
        .filter(|service| service.name.contains(&only))
    {
        let result = measure(&arguments, service)?;
        print!("{}", report::rows(&result));
        results.push(result);
    }
    if let Some(file) = &arguments.write {
        report::write(file, &results, arguments.rounds, arguments.seconds)?;
    }
    Ok(())
}

/// Each round measures every contender between two measurements of the service alone, so that other
/// activity on the machine affects both alike.
fn measure(arguments: &ServicesArguments, service: &Service) -> Result<ServiceResult> {
    let contenders: Vec<ServiceContender> = contenders(service, arguments.peers);
    let mut result = ServiceResult::new(service.name, &contenders);
    let Some(mut running) = (service.start)()? else {
        return Ok(result);
    };
    let mut load = |warm_up: bool| -> Result<LoadFigures> {
        // The agent learns within seconds which processes are busy; connections are opened anew.
        if warm_up {
            running.load(arguments.seconds)?;
        }
        running.load(arguments.seconds)
    };
    load(true)?;
    for round in 0..arguments.rounds {
        let mut before = load(false)?;
        result.add(BARE, before, before);
        for contender in &contenders {
            let Some(beside) = (contender.start)(arguments)? else {
                continue;
            };
            let with = load(true)?;
            drop(beside);
            let after = load(false)?;
            result.add(contender.name, with, before.mean(&after));
            before = after;
        }
        eprintln!("{}: round {}", service.name, round + 1);
    }
    Ok(result)
}
