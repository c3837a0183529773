//! What the probes cost, as ratios in one run.

use crate::{build, root};
use anyhow::{Context as _, Result, bail};
use aya::{EbpfLoader, programs::TracePoint};
use lab::agent::Agent;
use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

/// Opens of one round.
const OPENS: u32 = 100_000;

pub fn run(rounds: usize) -> Result<()> {
    if !lab::is_root() {
        bail!("the benchmarks attach probes to the kernel and need root");
    }
    build::run()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("ordinary-file.txt");
    fs::write(&file, b"nothing secret")?;
    // Each round has all three, so that what else the machine does falls on them alike; the
    // medians are of the differences within a round.
    let (mut bare, mut empty, mut ours, mut ready) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let without = opens(&file)?;
        bare.push(without);
        let attached = EmptyProgram::attach()?;
        empty.push(opens(&file)? - without);
        drop(attached);
        let state = tempfile::tempdir()?;
        let before = Instant::now();
        let agent = Agent::start(state.path(), &[])?;
        ready.push(before.elapsed().as_secs_f64() * 1000.0);
        ours.push(opens(&file)? - without);
        drop(agent);
    }
    let (empty, ours) = (median(&mut empty), median(&mut ours));
    println!("open and close of an ordinary file, medians of {rounds} rounds of {OPENS}:");
    println!(
        "  bare                         {:8.1} ns",
        median(&mut bare)
    );
    println!("  empty program on the hook  + {empty:8.1} ns");
    println!("  keytrail as shipped        + {ours:8.1} ns");
    println!("  ratio                        {:8.2}", ours / empty);
    println!(
        "start of the agent to its readiness: {:.0} ms",
        median(&mut ready)
    );
    load(&file)
}

/// Nanoseconds of one open and close.
fn opens(path: &Path) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..OPENS {
        drop(File::open(path)?);
    }
    Ok(begin.elapsed().as_nanos() as f64 / f64::from(OPENS))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The program that does nothing, on the hook of the file probe.
struct EmptyProgram {
    _ebpf: aya::Ebpf,
}

impl EmptyProgram {
    fn attach() -> Result<Self> {
        let object = root().join("target/bpf/bpfel-unknown-none/release/keytrail-probes");
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .load_file(&object)
            .with_context(|| format!("cannot load {}", object.display()))?;
        let program: &mut TracePoint = ebpf
            .program_mut("empty_tracepoint")
            .context("no empty program in the probes")?
            .try_into()?;
        program.load()?;
        program.attach("syscalls", "sys_exit_openat")?;
        Ok(Self { _ebpf: ebpf })
    }
}

/// CPU and memory of the agent, idle and under a steady load of opens.
fn load(file: &Path) -> Result<()> {
    const RATE: u32 = 20_000;
    const SECONDS: u64 = 10;
    let state = tempfile::tempdir()?;
    let agent = Agent::start(state.path(), &[])?;
    let idle = cpu(agent.pid(), Duration::from_secs(5), || Ok(()))?;
    let mut opened = 0u64;
    let busy = cpu(agent.pid(), Duration::from_secs(SECONDS), || {
        // A slice of 10 ms: its share of opens, and then its rest.
        let slice = Instant::now();
        for _ in 0..RATE / 100 {
            drop(File::open(file)?);
            opened += 1;
        }
        if let Some(rest) = Duration::from_millis(10).checked_sub(slice.elapsed()) {
            std::thread::sleep(rest);
        }
        Ok(())
    })?;
    println!(
        "agent idle: {:.2} % of a core, {} KiB resident",
        idle * 100.0,
        resident(agent.pid())?
    );
    println!(
        "agent at {} opens/s of ordinary files: {:.2} % of a core, {} KiB resident",
        opened / SECONDS,
        busy * 100.0,
        resident(agent.pid())?
    );
    println!(
        "events lost: {}",
        agent.metric("keytrail_events_lost_total", &[])?
    );
    Ok(())
}

/// The share of a core that a process takes while `work` goes on.
fn cpu(pid: u32, length: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let before = ticks(pid)?;
    let begin = Instant::now();
    while begin.elapsed() < length {
        work()?;
        if length > Duration::from_secs(5) {
            continue;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let passed = begin.elapsed().as_secs_f64();
    // A tick is a hundredth of a second on every architecture that Keytrail runs on.
    Ok((ticks(pid)? - before) as f64 / 100.0 / passed)
}

fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().context("no stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("short stat")?.parse()?) };
    Ok(number(11)? + number(12)?)
}

fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
