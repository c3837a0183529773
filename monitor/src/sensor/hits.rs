//! How often the probes of TLS libraries were hit, by process.

use super::{
    SensorError,
    maps::{failed, open_map},
};
use aya::{
    Ebpf,
    maps::{HashMap as ProbeMap, MapData, PerCpuArray},
};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What the kernel's way to a probe of a TLS library costs, in nanoseconds: a trap, which is not part
/// of the program's time. Between one microsecond and nine on machines in the cloud; measured when the
/// agent starts.
static TRAP_NS: AtomicU64 = AtomicU64::new(2_000);

/// What a trap costs on this machine.
pub fn trap_time() -> Duration {
    Duration::from_nanos(TRAP_NS.load(Ordering::Relaxed))
}

pub fn set_trap_time(measured: Duration) {
    /// What cannot be: a processor's own way to a trap takes longer, and a busy machine is no reason.
    const LEAST: u128 = 300;
    const MOST: u128 = 20_000;
    let measured = measured.as_nanos().clamp(LEAST, MOST) as u64;
    TRAP_NS.store(measured, Ordering::Relaxed);
    tracing::debug!(nanoseconds = measured, "measured what a trap costs");
}

/// The counters of the probes.
pub struct HitCounters {
    total: PerCpuArray<MapData, u64>,
    by_process: ProbeMap<MapData, u32, u64>,
    last_total: u64,
}

impl HitCounters {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let total: PerCpuArray<MapData, u64> = open_map(ebpf, "HITS")?;
        // What cannot be read now cannot be read later either.
        total.get(&0, 0).map_err(failed("HITS"))?;
        Ok(Self {
            total,
            by_process: open_map(ebpf, "PROCESS_HITS")?,
            last_total: 0,
        })
    }

    /// Hits by process since the last call. On a node without any, this is one system call.
    pub fn take(&mut self) -> HashMap<u32, u64> {
        let Ok(values) = self.total.get(&0, 0) else {
            return HashMap::new();
        };
        let total = values.iter().sum();
        if total == std::mem::replace(&mut self.last_total, total) {
            return HashMap::new();
        }
        let pids: Vec<u32> = self.by_process.keys().filter_map(Result::ok).collect();
        pids.into_iter()
            .filter_map(|pid| {
                let hits = self.by_process.get(&pid, 0).ok()?;
                // Hits between these two calls are lost: they do not matter.
                self.by_process.remove(&pid).ok()?;
                Some((pid, hits))
            })
            .collect()
    }
}
