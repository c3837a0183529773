//! Counts how often a credential is presented on a connection, instead of sending a record for each
//! time: a client sends it with every request.

use crate::support::{kernel::boot_time_ns, maps::count_full};
use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::map, maps::HashMap};
use monitor_common::{
    map::{LimitedMap, PRESENTATIONS_MAX, PresentationKey, REPEAT_NS, StreamKey},
    record::{PlaintextRecord, PresentationRecord, PresentedRecord},
};

/// The last record sent of each credential and TLS object. Its count is of what was not sent since; the
/// agent sweeps them. If the map is full, everything is sent.
#[map]
static TLS_PRESENTATIONS: HashMap<PresentationKey, PresentedRecord> =
    HashMap::with_max_entries(PRESENTATIONS_MAX, 0);

/// The same of sockets outside TLS.
#[map]
static PLAINTEXT_PRESENTATIONS: HashMap<PresentationKey, PlaintextRecord> =
    HashMap::with_max_entries(PRESENTATIONS_MAX, 0);

/// A record whose repeats are counted.
pub trait CountedRecord: PresentationRecord + 'static {
    fn repeats() -> &'static HashMap<PresentationKey, Self>;
}

impl CountedRecord for PresentedRecord {
    #[inline(always)]
    fn repeats() -> &'static HashMap<PresentationKey, Self> {
        &TLS_PRESENTATIONS
    }
}

impl CountedRecord for PlaintextRecord {
    #[inline(always)]
    fn repeats() -> &'static HashMap<PresentationKey, Self> {
        &PLAINTEXT_PRESENTATIONS
    }
}

/// Whether a record is sent now, and with which count; otherwise it was counted.
#[inline(never)]
pub fn is_due<R: CountedRecord>(object: StreamKey, record: &mut R) -> bool {
    let key = PresentationKey {
        object,
        fingerprint: record.secret().fingerprint,
        host: record.secret().host,
    };
    record.secret().count = 0;
    let Some(known) = R::repeats().get_ptr_mut(key) else {
        // Not a copy, which would be on the stack.
        let first: &R = record;
        if R::repeats().insert(key, first, 0).is_err() {
            count_full(LimitedMap::Presentations);
        }
        record.secret().count = 1;
        return true;
    };
    // SAFETY: the pointer is into the map; threads that use one connection may race for a count, and
    // then one of them is sent with the other's.
    let known = unsafe { &mut *known };
    known.secret().count += 1;
    if boot_time_ns().wrapping_sub(*known.time()) < REPEAT_NS {
        return false;
    }
    let count = known.secret().count;
    // SAFETY: both are in maps. By a helper: the compiler's copy goes by way of the stack.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(known).cast(),
            size_of::<R>() as u32,
            core::ptr::from_ref(record).cast(),
        );
    }
    record.secret().count = count;
    true
}
