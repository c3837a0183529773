//! What the probes cost: the time of each program, as the kernel accounts it, for a second at a
//! time.
//!
//! Accounting (`bpf_stats`) needs `CAP_SYS_ADMIN`. Without it, the programs that can be turned off
//! count their runs, which are multiplied with what a run takes on a common machine; the others are
//! not measured.

use super::{
    breaker::CostSample,
    unit::{COST_UNITS, CostUnit, is_uprobe},
};
use crate::sensor::hits::trap_time;
use aya::{
    maps::{MapData, PerCpuArray},
    sys::{Stats, enable_stats},
};
use monitor_common::record::{COUNTED_RUNS, RunCounter};
use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Whether the kernel accounts the time of programs for this process.
pub static ACCOUNTS: LazyLock<bool> = LazyLock::new(|| enable_stats(Stats::RunTime).is_ok());

/// A loaded program.
#[derive(Debug)]
pub struct MeasuredProgram {
    pub name: &'static str,
    pub fd: OwnedFd,
}

/// Time and runs of a program since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProgramTime {
    ns: u64,
    runs: u64,
}

/// Measures the cost of programs.
pub struct CostMeter {
    pub programs: Vec<MeasuredProgram>,
    pub runs: PerCpuArray<MapData, u64>,
    pub processors: usize,
}

impl CostMeter {
    /// Measures for `window`, during which `wait` is called; `None` if it returns `false`, or if
    /// the counters cannot be read.
    pub fn measure(
        &self,
        window: Duration,
        wait: impl FnOnce(Duration) -> bool,
    ) -> Option<CostSample> {
        // The kernel accounts as long as this is open.
        let _accounting = if *ACCOUNTS {
            Some(enable_stats(Stats::RunTime).ok()?)
        } else {
            None
        };
        let began = Instant::now();
        let before = self.times();
        if !wait(window) {
            return None;
        }
        let after = self.times();
        let available = began.elapsed().as_nanos() as f64 * self.processors as f64;
        let mut sample = CostSample::default();
        for ((name, before), (_, after)) in before.into_iter().zip(after) {
            let (Some(before), Some(after)) = (before, after) else {
                continue;
            };
            let ns = after.ns.saturating_sub(before.ns);
            let runs = after.runs.saturating_sub(before.runs);
            let traps = if is_uprobe(name) {
                trap_time().as_nanos() as f64 * runs as f64
            } else {
                0.0
            };
            add(&mut sample, name, (ns as f64 + traps) / available);
        }
        Some(sample)
    }

    /// `None` for what cannot be read.
    fn times(&self) -> Vec<(&'static str, Option<ProgramTime>)> {
        if *ACCOUNTS {
            let programs = self.programs.iter();
            let timed = programs.map(|program| (program.name, time_of(&program.fd)));
            return timed.collect();
        }
        let counted = RunCounter::ALL.into_iter().map(|counter| {
            let values = self.runs.get(&(counter as u32), 0).ok();
            let runs = values.map(|values| values.iter().sum::<u64>());
            let time = runs.map(|runs| ProgramTime {
                ns: runs * usual_ns(counter),
                runs,
            });
            (program_of(counter), time)
        });
        counted.collect::<Vec<_>>()
    }
}

const _: () = assert!(COUNTED_RUNS == RunCounter::ALL.len());

fn add(sample: &mut CostSample, program: &str, share: f64) {
    sample.total += share;
    let units: [CostUnit; COST_UNITS] = CostUnit::ORDER;
    for (unit, cost) in units.into_iter().zip(&mut sample.units) {
        if unit.is_paid_by(program) {
            *cost += share;
        }
    }
}

/// The name of a program under which a counter is accounted.
fn program_of(counter: RunCounter) -> &'static str {
    match counter {
        RunCounter::Egress => "hello_egress",
        RunCounter::Ingress => "dns_ingress",
        RunCounter::Uprobe => monitor_parse::tls_functions::WRITE,
    }
}

/// What a run takes on a common machine, in nanoseconds (`docs/benchmarks.md`).
fn usual_ns(counter: RunCounter) -> u64 {
    match counter {
        RunCounter::Egress => 230,
        RunCounter::Ingress => 130,
        RunCounter::Uprobe => 1_000,
    }
}

/// What the kernel accounted for a program: the information on its descriptor needs no privilege.
fn time_of(program: &OwnedFd) -> Option<ProgramTime> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()));
    parse(&text.ok()?)
}

fn parse(text: &str) -> Option<ProgramTime> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some(ProgramTime {
        ns: field("run_time_ns:")?,
        runs: field("run_cnt:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_time_and_runs() {
        let text = "pos:\t0\nflags:\t02000002\nprog_type:\t6\nprog_jited:\t1\nrun_time_ns:\t1234\nrun_cnt:\t7\nrecursion_misses:\t0\n";
        assert_eq!(parse(text), Some(ProgramTime { ns: 1234, runs: 7 }));
        assert_eq!(parse(""), None);
        assert_eq!(parse("run_time_ns:\tmuch\n"), None);
    }

    #[test]
    fn the_time_of_a_program_is_that_of_its_units() {
        let mut sample = CostSample::default();
        add(&mut sample, "hello_egress", 0.01);
        add(&mut sample, "file_open_lsm", 0.02);
        for name in [monitor_parse::tls_functions::WRITE, "present_go_short"] {
            add(&mut sample, name, 0.25);
        }
        assert_eq!(sample.units, [0.0, 0.01, 0.5, 0.0, 0.01]);
        assert!((sample.total - 0.53).abs() < 1e-9);
    }
}
