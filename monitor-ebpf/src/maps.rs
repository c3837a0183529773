//! The maps that probes share with each other and with the agent, and the counters.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_cgroup_id, bpf_probe_read_kernel, bpf_ringbuf_output},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use core::ffi::c_void;
use monitor_common::{
    filter::{BLOOM_WORDS, bloom_position, tag_of},
    record::{COUNTERS, InodeKey, LossKey, Probe, STAGES, Stage},
};

/// Credential hits, connects and payloads: a ring of their own, so that no flood of forks can
/// push them out.
#[map]
pub static CREDENTIAL_RING: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Execs, forks and exits.
#[map]
pub static PROCESS_RING: RingBuf = RingBuf::with_byte_size(2 << 20, 0);

/// [`COUNTERS`] per CPU: what was sent, and what was lost where.
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS as u32, 0);

/// Index 0: the filter over [`RULES`]. Index 1: the filter over the inode numbers of [`INODES`].
#[map]
static BLOOM: Array<[u64; BLOOM_WORDS]> = Array::with_max_entries(2, 0);

/// The compiled catalog: key to the value of the rule. Written before the probes attach, and
/// replaced whole values at a time.
#[map]
static RULES: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// The value of the rule about a key.
#[inline(always)]
pub fn rule(key: u64) -> Option<u32> {
    // SAFETY: the value is copied at once.
    unsafe { RULES.get(key) }.copied()
}

/// Files known by inode, whatever name they are opened by.
#[map]
pub static INODES: HashMap<InodeKey, u32> = HashMap::with_max_entries(65536, 0);

/// Index 0: the agent's own thread group, which is never reported.
#[map]
static AGENT: Array<u32> = Array::with_max_entries(1, 0);

/// Files that were looked at and are no credential's, and names of variables that are of no rule,
/// as tags: what tells one from another, and the epoch in which it was looked at. A word is written and read at once, so that two processors
/// cannot make a tag that neither meant.
#[map]
static LOOKED_AT: Array<u64> = Array::with_max_entries(LOOKED_AT_SLOTS, 0);

const LOOKED_AT_SLOTS: u32 = 1 << 16;

/// Index 0: the epoch. The agent begins another each second, and whenever the rules or the known
/// inodes change: what was looked at before is looked at again.
#[map]
static EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// The place of a file among those that were looked at in this epoch.
#[derive(Clone, Copy)]
pub struct Looked {
    tag: u64,
    slot: *mut u64,
}

impl Looked {
    /// From what tells one open file, or one name, from another. It is asked for with an address
    /// in the kernel that stays the same while the probes are loaded.
    #[inline(always)]
    pub fn at(parts: impl FnOnce(u64) -> [u64; 5]) -> Option<Self> {
        let epoch = EPOCH.get(0)?;
        let tag = tag_of(*epoch, parts(core::ptr::from_ref(epoch) as u64));
        let slot = LOOKED_AT.get_ptr_mut(tag as u32 & (LOOKED_AT_SLOTS - 1))?;
        Some(Self { tag, slot })
    }

    #[inline(always)]
    pub fn before(self) -> bool {
        // SAFETY: a map value lives as long as the program runs, and a word is read at once.
        unsafe { self.slot.read_volatile() == self.tag }
    }

    #[inline(always)]
    pub fn remember(self) {
        // SAFETY: as above.
        unsafe { self.slot.write_volatile(self.tag) }
    }
}

/// Bytes that one call of [`wipe`] can take.
pub const WIPED: usize = 8192;

/// Index 0: nothing but zeros.
#[map]
static ZEROS: Array<[u8; WIPED]> = Array::with_max_entries(1, 0);

/// Overwrites what was copied from a process: a per-CPU buffer can be read by whoever may read maps.
#[inline(always)]
pub fn wipe(place: *mut u8, len: u64) {
    let Some(zeros) = ZEROS.get_ptr(0) else {
        return;
    };
    let len = if len > WIPED as u64 {
        WIPED as u64
    } else {
        len
    };
    // SAFETY: the verifier checks that the place has room for WIPED bytes and more; the helper
    // copies at native speed, where a loop would not.
    unsafe {
        bpf_probe_read_kernel(
            place.cast(),
            len as u32 & (2 * WIPED as u32 - 1),
            zeros.cast(),
        );
    }
}

/// Overwrites the `N` bytes at a place, at most [`WIPED`].
///
/// # Safety
/// The place must be of a map and have `N` bytes.
#[inline(always)]
pub unsafe fn wipe_whole<const N: usize>(place: *mut [u8; N]) {
    const { assert!(N <= WIPED) };
    if let Some(zeros) = ZEROS.get_ptr(0) {
        // SAFETY: the caller vouches for the place.
        unsafe { bpf_probe_read_kernel(place.cast(), N as u32, zeros.cast()) };
    }
}

/// Counts one of `stage` for `probe`.
#[inline(always)]
pub fn count(probe: Probe, stage: Stage) {
    let index = probe as u32 * STAGES as u32 + stage as u32;
    if let Some(counter) = COUNTS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and a program is not preempted by itself.
        unsafe { *counter += 1 };
    }
}

/// Sends `len` bytes at `record`, and counts them as sent, or as lost by a control group.
///
/// # Safety
/// `record` must point to `len` initialised bytes.
#[inline(always)]
pub unsafe fn send(ring: &RingBuf, probe: Probe, cgroup: u64, record: *const c_void, len: u64) {
    // SAFETY: the caller vouches for the bytes; the ring is a map, whose address is its handle.
    let status = unsafe {
        bpf_ringbuf_output(
            core::ptr::from_ref(ring).cast_mut().cast(),
            record.cast_mut(),
            len,
            0,
        )
    };
    if status == 0 {
        count(probe, Stage::Sent);
    } else {
        lost(probe, cgroup);
    }
}

/// Records that found a ring full, by workload; the agent sweeps it. An evicted entry is still
/// in [`COUNTS`].
#[map]
static LOSSES: LruHashMap<LossKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// The control group of the current process.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Counts a record that found a ring full.
#[inline(always)]
pub fn lost(probe: Probe, cgroup: u64) {
    count(probe, Stage::Ring);
    let key = LossKey {
        cgroup,
        probe: probe as u32,
        reserved: 0,
    };
    if let Some(lost) = LOSSES.get_ptr_mut(key) {
        // SAFETY: the pointer is into the map; two CPUs may race for one count of a hint: the
        // sum is in the counters.
        unsafe { *lost += 1 };
    } else {
        let _ = LOSSES.insert(key, 1, 0);
    }
}

/// One of the two Bloom filters, held for several tests.
#[derive(Clone, Copy)]
pub struct Bloom(*const [u64; BLOOM_WORDS]);

impl Bloom {
    #[inline(always)]
    pub fn rules() -> Option<Self> {
        BLOOM.get_ptr(0).map(Self)
    }

    #[inline(always)]
    pub fn inodes() -> Option<Self> {
        BLOOM.get_ptr(1).map(Self)
    }

    /// Whether the key may be among the rules.
    #[inline(always)]
    pub fn has(self, key: u64) -> bool {
        let (word, mask) = bloom_position(key);
        // SAFETY: a map value lives as long as the program runs, and the index is masked to the
        // filter's size.
        unsafe { (*self.0)[word & (BLOOM_WORDS - 1)] & mask != 0 }
    }
}

/// Whether the current process is the agent.
#[inline(always)]
pub fn is_agent(pid: u32) -> bool {
    AGENT.get(0).is_some_and(|agent| *agent == pid)
}
