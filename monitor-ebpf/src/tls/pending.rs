//! Writes with a credential that have not reached a socket yet.

use crate::support::{
    kernel::boot_time_ns,
    maps::{CREDENTIAL_RING, send},
    search::stream::StreamKey,
};
use aya_ebpf::{
    helpers::generated::bpf_get_current_task,
    macros::map,
    maps::{Array, HashMap},
};
use monitor_common::record::{Probe, WriteSocketRecord};

/// Writes with a credential that have not reached a socket yet, by task. The agent sweeps those
/// that never do.
#[map]
pub static PENDING_WRITES: HashMap<u64, TlsWrite> = HashMap::with_max_entries(4096, 0);

/// A write that contains a credential.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TlsWrite {
    /// Its number, which is also its time.
    pub number: u64,
    /// Minimum length of the TLS record that carries the write, or its first part.
    pub min_len: u32,
    /// Maximum length of that record.
    pub max_len: u32,
    pub object: StreamKey,
}

/// A write is sent within this time, or not by the same task.
const SEND_WITHIN_NS: u64 = 100_000_000;

/// A function that restarts does so within this time.
const RESTART_WITHIN_NS: u64 = 1_000_000;

impl TlsWrite {
    /// `cuts`: the library begins a connection with short records, which are sent one by one.
    #[inline(always)]
    pub fn new(number: u64, object: StreamKey, len: u64, cuts: bool) -> Self {
        /// A longer write is sent in several records.
        const RECORD_MAX: u32 = 16_384;
        /// The tag alone, and the maximum that initialisation vector, tag and padding add.
        const TAG: u32 = 16;
        const OVERHEAD_MAX: u32 = 96;
        /// The first records of Go fill a packet of a common size.
        const SMALL_RECORD: u32 = 1024;
        let len = if len > u64::from(RECORD_MAX) {
            RECORD_MAX
        } else {
            len as u32
        };
        Self {
            number,
            object,
            min_len: TAG
                + if cuts && len > SMALL_RECORD {
                    SMALL_RECORD
                } else {
                    len
                },
            max_len: len + OVERHEAD_MAX,
        }
    }

    /// Whether this is the same write, observed a second time.
    #[inline(always)]
    pub fn is_repeat(&self, write: &Self) -> bool {
        self.object.address == write.object.address
            && self.max_len == write.max_len
            && write.number.wrapping_sub(self.number) < RESTART_WITHIN_NS
    }
}

/// Index 0: whether [`WRITES`] may hold any entry, so that most packets need no lookup.
#[map]
pub static WRITES_PENDING: Array<u64> = Array::with_max_entries(1, 0);

/// The write of the current task that has not reached a socket yet.
pub struct PendingWrite {
    task: u64,
    pub write: TlsWrite,
}

impl PendingWrite {
    #[inline(always)]
    pub fn current() -> Option<Self> {
        if WRITES_PENDING.get(0).copied().unwrap_or(0) == 0 {
            return None;
        }
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        // SAFETY: the value is copied at once.
        let write = unsafe { PENDING_WRITES.get(task) }.copied()?;
        // A write that was not sent at once is sent later, by another path.
        (boot_time_ns().wrapping_sub(write.number) < SEND_WITHIN_NS).then_some(Self { task, write })
    }

    /// Reports what became of the write, and forgets it.
    #[inline(always)]
    pub fn finish_write(self, kind: u32, cookie: u64, cgroup: u64) {
        let _ = PENDING_WRITES.remove(self.task);
        let record = WriteSocketRecord {
            kind,
            reserved: 0,
            time: boot_time_ns(),
            write: self.write.number,
            cookie,
        };
        // SAFETY: a plain record on the stack.
        unsafe {
            send(
                &CREDENTIAL_RING,
                Probe::Present,
                cgroup,
                core::ptr::from_ref(&record).cast(),
                size_of::<WriteSocketRecord>() as u64,
            );
        }
    }
}
