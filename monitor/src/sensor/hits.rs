//! How often the probes of TLS libraries were hit, by process.

use super::{SensorError, maps::open_map};
use aya::{
    Ebpf,
    maps::{HashMap as ProbeMap, MapData},
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
pub struct HitCounters(ProbeMap<MapData, u32, u64>);

impl HitCounters {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self(open_map(ebpf, "PROCESS_HITS")?))
    }

    /// Hits by process since the last call. On a node without any, this is one system call.
    pub fn take(&mut self) -> HashMap<u32, u64> {
        let pids: Vec<u32> = self.0.keys().filter_map(Result::ok).collect();
        pids.into_iter()
            .filter_map(|pid| {
                let hits = self.0.get(&pid, 0).ok()?;
                // Hits between these two calls are lost: they do not matter.
                self.0.remove(&pid).ok()?;
                Some((pid, hits))
            })
            .collect()
    }
}
