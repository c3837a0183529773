//! Counters of the probes: records sent and lost.

use super::{
    SensorError,
    map_growth::MapGrowthTotals,
    maps::{Plain, failed, open_map},
    observation::RecordOwner,
    report::{FullMaps, ProbeCounters, RingLoss},
};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
};
use monitor_common::{
    map::{EvictingMap, LimitedMap, LossKey},
    record::{COUNTERS, Probe},
};

/// The counters in the kernel.
pub struct KernelCounters {
    counts: PerCpuArray<MapData, u64>,
    losses: HashMap<MapData, Plain<LossKey>, u64>,
    full: PerCpuArray<MapData, u64>,
    growth: PerCpuArray<MapData, u64>,
    unsearched: PerCpuArray<MapData, u64>,
    /// Up to which total they were taken.
    taken: u64,
}

impl KernelCounters {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        Ok(Self {
            counts: open_map(ebpf, "COUNTS")?,
            losses: open_map(ebpf, "LOSSES")?,
            full: open_map(ebpf, "MAPS_FULL")?,
            growth: open_map(ebpf, "MAPS_GROWTH")?,
            unsearched: open_map(ebpf, "UNSEARCHED")?,
            taken: 0,
        })
    }

    /// Counters since the start, by probe and stage.
    pub fn totals(&self) -> Result<ProbeCounters, SensorError> {
        let mut counters = ProbeCounters::default();
        for index in 0..COUNTERS {
            let values = self
                .counts
                .get(&(index as u32), 0)
                .map_err(failed("COUNTS"))?;
            counters.0[index] = values.iter().sum();
        }
        Ok(counters)
    }

    /// Entries that the probes could not store because a map was full, since the start.
    pub fn full_maps(&self) -> Result<FullMaps, SensorError> {
        let mut full = FullMaps::default();
        for map in LimitedMap::ALL {
            let values = self
                .full
                .get(&(map as u32), 0)
                .map_err(failed("MAPS_FULL"))?;
            full.add(map, values.iter().sum());
        }
        Ok(full)
    }

    /// How the maps grew that evict by themselves, since the start.
    pub fn map_growth(&self) -> Result<MapGrowthTotals, SensorError> {
        let mut totals = MapGrowthTotals::default();
        for map in EvictingMap::ALL {
            let values = self
                .growth
                .get(&(map as u32), 0)
                .map_err(failed("MAPS_GROWTH"))?;
            // One processor may remove what another added.
            totals[map as usize] = values.iter().copied().fold(0, u64::wrapping_add) as i64;
        }
        Ok(totals)
    }

    /// Requests on busy connections that were not searched since the last call.
    pub fn take_unsearched(&mut self) -> Result<u64, SensorError> {
        let values = self.unsearched.get(&0, 0).map_err(failed("UNSEARCHED"))?;
        let total = values.iter().sum();
        Ok(total - std::mem::replace(&mut self.taken, total))
    }

    /// Returns and clears the losses of the rings, by owner and probe.
    pub fn take_losses(&mut self) -> Vec<RingLoss> {
        let entries: Vec<(Plain<LossKey>, u64)> =
            self.losses.iter().filter_map(Result::ok).collect();
        let mut taken = Vec::new();
        for (key, lost) in entries {
            // What is counted between this read and the removal is still in the total counters.
            let _ = self.losses.remove(&key);
            let probe = Probe::ALL
                .into_iter()
                .find(|known| *known as u32 == key.0.probe);
            taken.extend(probe.map(|probe| RingLoss {
                owner: RecordOwner {
                    cgroup: key.0.cgroup,
                    user: key.0.user,
                },
                probe,
                count: lost,
            }));
        }
        taken
    }
}
