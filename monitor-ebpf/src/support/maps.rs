//! Maps shared by the probes and the agent, and the counters.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_probe_read_kernel,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use monitor_common::{
    filter::{BLOOM_WORDS, bloom_position, seen_tag},
    map::{EVICTING_MAPS, EvictingMap, InodeKey, LIMITED_MAPS, LimitedMap, RULES_MAX},
    record::{COUNTED_RUNS, COUNTERS, Probe, RunCounter, STAGES, Stage},
};

/// [`COUNTERS`] per CPU: records sent and lost, by probe and stage.
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS as u32, 0);

/// [`LIMITED_MAPS`] per CPU: entries that a full map refused.
#[map]
static MAPS_FULL: PerCpuArray<u64> = PerCpuArray::with_max_entries(LIMITED_MAPS as u32, 0);

/// Counts an entry that a full map refused.
#[inline(always)]
pub fn count_full(map: LimitedMap) {
    if let Some(refused) = MAPS_FULL.get_ptr_mut(map as u32) {
        // SAFETY: the pointer is into this CPU's counter; a program that preempts another may lose
        // one.
        unsafe { *refused += 1 };
    }
}

/// [`EVICTING_MAPS`] per CPU: entries added to maps that evict, less those removed.
#[map]
static MAPS_GROWTH: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVICTING_MAPS as u32, 0);

#[inline(always)]
fn count_growth(map: EvictingMap, by: i64) {
    if let Some(growth) = MAPS_GROWTH.get_ptr_mut(map as u32) {
        // SAFETY: the pointer is into this CPU's counter; a program that preempts another may lose
        // one.
        unsafe { *growth = (*growth).wrapping_add_signed(by) };
    }
}

/// Inserts into a map that evicts, and counts a new entry.
#[inline(always)]
pub fn insert_counted<K, V>(map: &LruHashMap<K, V>, which: EvictingMap, key: K, value: &V) {
    if map.insert(&key, value, u64::from(BPF_NOEXIST)).is_ok() {
        count_growth(which, 1);
    } else {
        // Cannot fail: an LRU map finds room.
        let _ = map.insert(&key, value, 0);
    }
}

/// Removes from a map that evicts, and counts it if the entry was there.
#[inline(always)]
pub fn remove_counted<K, V>(map: &LruHashMap<K, V>, which: EvictingMap, key: K) {
    if map.remove(&key).is_ok() {
        count_growth(which, -1);
    }
}

/// Index 0: the Bloom filter over [`RULES`]. Index 1: the one over the inode numbers of [`INODES`].
#[map]
static BLOOM: Array<[u64; BLOOM_WORDS]> = Array::with_max_entries(2, 0);

/// The compiled catalog: from key to rule value. Filled before the probes attach; values are
/// replaced as a whole.
#[map]
static RULES: HashMap<u64, u32> = HashMap::with_max_entries(RULES_MAX as u32, 0);

/// The value of the rule for a key.
#[inline(always)]
pub fn rule(key: u64) -> Option<u32> {
    // SAFETY: the value is copied at once.
    unsafe { RULES.get(key) }.copied()
}

/// Files recognised by inode, whatever name they are opened by.
#[map]
pub static INODES: HashMap<InodeKey, u32> = HashMap::with_max_entries(65536, 0);

/// Tags of files and variable names that were examined and match no rule. A tag combines identity
/// and epoch. It is one word, so that two CPUs cannot produce a mixed tag.
#[map]
static SEEN: Array<u64> = Array::with_max_entries(SEEN_SLOTS, 0);

const SEEN_SLOTS: u32 = 1 << 16;

/// Index 0: the epoch. The agent begins a new one each second and whenever the rules or known
/// inodes change, so that everything is examined again.
#[map]
static EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// The slot of a file or name among those examined in this epoch.
#[derive(Clone, Copy)]
pub struct SeenSlot {
    tag: u64,
    slot: *mut u64,
}

impl SeenSlot {
    /// Finds the slot for a file or name, from the parts that identify it. `parts` receives a
    /// kernel address that stays the same while the probes are loaded.
    #[inline(always)]
    pub fn find(parts: impl FnOnce(u64) -> [u64; 5]) -> Option<Self> {
        let epoch = EPOCH.get(0)?;
        let tag = seen_tag(*epoch, parts(core::ptr::from_ref(epoch) as u64));
        let slot = SEEN.get_ptr_mut(tag as u32 & (SEEN_SLOTS - 1))?;
        Some(Self { tag, slot })
    }

    #[inline(always)]
    pub fn is_seen(self) -> bool {
        // SAFETY: a map value lives as long as the program runs, and a word is read atomically.
        unsafe { self.slot.read_volatile() == self.tag }
    }

    #[inline(always)]
    pub fn remember(self) {
        // SAFETY: as above.
        unsafe { self.slot.write_volatile(self.tag) }
    }
}

/// Maximum bytes for one call of [`wipe`].
pub const WIPE_MAX: usize = 8192;

/// Index 0: zeros only.
#[map]
static ZEROS: Array<[u8; WIPE_MAX]> = Array::with_max_entries(1, 0);

/// Overwrites bytes copied from a process: anyone who may read maps can read a per-CPU buffer.
#[inline(always)]
pub fn wipe(place: *mut u8, len: u64) {
    let Some(zeros) = ZEROS.get_ptr(0) else {
        return;
    };
    let len = if len > WIPE_MAX as u64 {
        WIPE_MAX as u64
    } else {
        len
    };
    // SAFETY: the verifier checks that the place has room for WIPE_MAX bytes; the helper copies at
    // native speed, unlike a loop.
    unsafe {
        bpf_probe_read_kernel(
            place.cast(),
            len as u32 & (2 * WIPE_MAX as u32 - 1),
            zeros.cast(),
        );
    }
}

/// Overwrites the `N` bytes at a place, at most [`WIPE_MAX`].
///
/// # Safety
/// The place must be in a map and have `N` bytes.
#[inline(always)]
pub unsafe fn wipe_whole<const N: usize>(place: *mut [u8; N]) {
    const { assert!(N <= WIPE_MAX) };
    if let Some(zeros) = ZEROS.get_ptr(0) {
        // SAFETY: guaranteed by the caller.
        unsafe { bpf_probe_read_kernel(place.cast(), N as u32, zeros.cast()) };
    }
}

/// Runs of the programs that the agent can turn off, by [`RunCounter`].
#[map]
static RUNS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTED_RUNS as u32, 0);

/// 1 if the kernel does not account the time of programs for the agent. Set before load.
#[unsafe(no_mangle)]
pub static COUNT_RUNS: u32 = 0;

/// Counts a run, if the agent has no other way to know what a program costs.
#[inline(always)]
pub fn count_run(counter: RunCounter) {
    // SAFETY: a plain read; volatile, because the agent overrides it.
    if unsafe { core::ptr::read_volatile(&raw const COUNT_RUNS) } == 0 {
        return;
    }
    if let Some(runs) = RUNS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU; what a nested run may lose does not matter.
        unsafe { *runs += 1 };
    }
}

/// Index 0: requests outside TLS that were not searched, because their connection is busy.
#[map]
static UNSEARCHED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Counts a request that is not searched.
#[inline(always)]
pub fn count_unsearched() {
    if let Some(unsearched) = UNSEARCHED.get_ptr_mut(0) {
        // SAFETY: the slot belongs to this CPU; what a nested run may lose does not matter.
        unsafe { *unsearched += 1 };
    }
}

/// Hits of the probes of TLS libraries by process, since the agent last took them. An evicted entry
/// lets a busy process pass as an idle one until the next look.
#[map]
static PROCESS_HITS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(PROCESS_HITS_MAX, 0);

const PROCESS_HITS_MAX: u32 = 4096;

/// Counts a hit of a probe of a TLS library: the agent spares processes that have many.
#[inline(always)]
pub fn count_hit(pid: u32) {
    count_run(RunCounter::Uprobe);
    match PROCESS_HITS.get_ptr_mut(pid) {
        // SAFETY: the pointer is into the map; what threads lose of each other's does not matter.
        Some(hits) => unsafe { *hits += 1 },
        // Cannot fail: an LRU map finds room.
        None => drop(PROCESS_HITS.insert(pid, 1, 0)),
    }
}

/// Increments the counter of a probe and stage.
#[inline(always)]
pub fn count(probe: Probe, stage: Stage) {
    let index = probe as u32 * STAGES as u32 + stage as u32;
    if let Some(counter) = COUNTS.get_ptr_mut(index) {
        // SAFETY: the slot belongs to this CPU, and a program does not preempt itself.
        unsafe { *counter += 1 };
    }
}

/// One of the two Bloom filters, looked up once for several tests.
#[derive(Clone, Copy)]
pub struct BloomFilter(*const [u64; BLOOM_WORDS]);

impl BloomFilter {
    #[inline(always)]
    pub fn rules() -> Option<Self> {
        BLOOM.get_ptr(0).map(Self)
    }

    #[inline(always)]
    pub fn inodes() -> Option<Self> {
        BLOOM.get_ptr(1).map(Self)
    }

    /// Whether the key may be in the filter.
    #[inline(always)]
    pub fn contains(self, key: u64) -> bool {
        let (word, mask) = bloom_position(key);
        // SAFETY: a map value lives as long as the program runs, and the index is masked to the
        // filter's size.
        unsafe { (*self.0)[word & (BLOOM_WORDS - 1)] & mask != 0 }
    }
}
