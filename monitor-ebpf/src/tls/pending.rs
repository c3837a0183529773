//! Writes with a credential that have not reached a socket yet.

use crate::support::{kernel::boot_time_ns, ring::Ring};
use aya_ebpf::{
    helpers::generated::bpf_get_current_task,
    macros::map,
    maps::{Array, HashMap},
};
use monitor_common::{
    map::TlsWrite,
    record::{Probe, WriteSocketRecord},
};

/// Writes with a credential that have not reached a socket yet, by task. The agent sweeps those
/// that never do.
#[map]
pub static PENDING_WRITES: HashMap<u64, TlsWrite> = HashMap::with_max_entries(4096, 0);

/// A write is sent within this time, or not by the same task.
const SEND_WITHIN_NS: u64 = 100_000_000;

/// Index 0: whether [`PENDING_WRITES`] may hold any entry, so that most packets need no lookup.
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
    pub fn finish_write(self, kind: u32, cookie: u64) {
        let _ = PENDING_WRITES.remove(self.task);
        let record = WriteSocketRecord {
            kind,
            reserved: 0,
            time: boot_time_ns(),
            write: self.write.number,
            cookie,
            owner: self.write.owner,
        };
        Ring::Credentials.send(Probe::Present, record.owner, &record);
    }
}
