//! The rings to the agent, and how much of them one owner may fill.

use super::{kernel::boot_time_ns, maps::count};
use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::generated::bpf_ringbuf_output,
    macros::map,
    maps::{LruHashMap, RingBuf, ring_buf::RingBufEntry},
};
use monitor_common::{
    map::{LossKey, OwnerKey, RingShare},
    record::{OwnerFields, Probe, Stage},
};

/// Credential hits, connects and payloads have a separate ring, so that a flood of forks cannot
/// displace them.
#[map]
static CREDENTIAL_RING: RingBuf = RingBuf::with_byte_size(Ring::Credentials.size(), 0);

/// Execs, forks and exits.
#[map]
static PROCESS_RING: RingBuf = RingBuf::with_byte_size(Ring::Processes.size(), 0);

/// DNS responses: a flood of them displaces nothing else.
#[map]
static NAME_RING: RingBuf = RingBuf::with_byte_size(Ring::Names.size(), 0);

/// What was sent into a ring that is half full, by owner. An evicted owner may send its share again.
#[map]
static SHARES: LruHashMap<OwnerKey, RingShare> = LruHashMap::with_max_entries(4096, 0);

/// Records lost because they found no room in a ring, by owner; the agent sweeps it. An evicted entry
/// is still counted with those of all probes.
#[map]
static LOSSES: LruHashMap<LossKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// A ring to the agent.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Ring {
    Credentials = 0,
    Processes = 1,
    Names = 2,
}

impl Ring {
    /// In bytes.
    #[inline(always)]
    const fn size(self) -> u32 {
        match self {
            Self::Credentials => 4 << 20,
            Self::Processes => 2 << 20,
            Self::Names => 1 << 20,
        }
    }

    #[inline(always)]
    fn buffer(self) -> &'static RingBuf {
        match self {
            Self::Credentials => &CREDENTIAL_RING,
            Self::Processes => &PROCESS_RING,
            Self::Names => &NAME_RING,
        }
    }

    /// Whether a record of this owner may be sent. As long as a ring is at most half full, any may:
    /// then the agent keeps up, or a burst has room. After that each owner has a share, so that
    /// whoever sends the most leaves room for others.
    #[inline(always)]
    fn admits(self, owner: OwnerFields) -> bool {
        let OwnerFields { cgroup, user, .. } = owner;
        match self {
            Self::Credentials => has_room::<0>(cgroup, user),
            Self::Processes => has_room::<1>(cgroup, user),
            Self::Names => has_room::<2>(cgroup, user),
        }
    }

    /// Sends a record, and counts it as sent, or as lost for its owner.
    #[inline(always)]
    pub fn send<T>(self, probe: Probe, owner: OwnerFields, record: &T) {
        // SAFETY: a reference is to initialised memory, and records have no padding, as the
        // conversions prove that the agent derives.
        let sent = self.admits(owner)
            && unsafe {
                bpf_ringbuf_output(
                    core::ptr::from_ref(self.buffer()).cast_mut().cast(),
                    core::ptr::from_ref(record).cast_mut().cast(),
                    size_of::<T>() as u64,
                    0,
                )
            } == 0;
        if sent {
            count(probe, Stage::Sent);
        } else {
            count_lost(probe, owner);
        }
    }

    /// Room for a record; if there is none, it is counted as lost for its owner.
    #[inline(always)]
    pub fn reserve<T: 'static>(self, probe: Probe, owner: OwnerFields) -> Option<RingBufEntry<T>> {
        if self.admits(owner)
            && let Some(room) = self.buffer().reserve::<T>(0)
        {
            return Some(room);
        }
        count_lost(probe, owner);
        None
    }
}

/// Whether an owner may send into the ring with a number. A separate function: the verifier would
/// follow the rest of the program once for each of its ways.
#[inline(never)]
fn has_room<const RING: u32>(cgroup: u64, user: u32) -> bool {
    let ring = match RING {
        0 => Ring::Credentials,
        1 => Ring::Processes,
        _ => Ring::Names,
    };
    let waiting = ring.buffer().query(u64::from(BPF_RB_AVAIL_DATA));
    if waiting <= u64::from(ring.size()) / 2 {
        return true;
    }
    let key = OwnerKey {
        cgroup,
        user,
        ring: RING,
    };
    // CPUs may race for a share: one may send a few records more.
    if let Some(share) = SHARES.get_ptr_mut(key) {
        // SAFETY: the pointer is into the map.
        return unsafe { (*share).admits(boot_time_ns()) };
    }
    let _ = SHARES.insert(key, RingShare::begun(boot_time_ns()), 0);
    true
}

#[inline(always)]
fn count_lost(probe: Probe, owner: OwnerFields) {
    count(probe, Stage::Ring);
    let key = LossKey {
        cgroup: owner.cgroup,
        user: owner.user,
        probe: probe as u32,
    };
    if let Some(lost) = LOSSES.get_ptr_mut(key) {
        // SAFETY: the pointer is into the map; CPUs may race for this count, the exact sum is in
        // the counters.
        unsafe { *lost += 1 };
    } else {
        let _ = LOSSES.insert(key, 1, 0);
    }
}
