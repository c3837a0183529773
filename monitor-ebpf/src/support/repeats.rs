//! Counts repeated reads of a file by a process, instead of sending a record for each.

use crate::support::{kernel::boot_time_ns, maps::count_full};
use aya_ebpf::{macros::map, maps::HashMap};
use monitor_common::map::{LimitedMap, REPEAT_NS, ReadCount, ReadKey};

/// Counts of repeated reads, which are not sent individually; the agent sweeps them. If the map is
/// full, every read is sent.
#[map]
static READS: HashMap<ReadKey, ReadCount> = HashMap::with_max_entries(16384, 0);

/// How often a read was repeated since it was last sent, or `None` if it is not sent now.
#[inline(always)]
pub fn repeat_count(read: ReadKey) -> Option<u32> {
    let time = boot_time_ns();
    let Some(seen) = READS.get_ptr_mut(read) else {
        let first = ReadCount {
            sent: time,
            count: 0,
            reserved: 0,
        };
        // If the map is full, this read and the next are sent.
        if READS.insert(read, first, 0).is_err() {
            count_full(LimitedMap::Reads);
        }
        return Some(1);
    };
    // SAFETY: the pointer is into the map; threads of one process may race for a count, and then
    // one of them is sent with the other's.
    unsafe {
        (*seen).count += 1;
        if time.wrapping_sub((*seen).sent) < REPEAT_NS {
            return None;
        }
        let repeats = (*seen).count;
        (*seen).count = 0;
        (*seen).sent = time;
        Some(repeats)
    }
}
