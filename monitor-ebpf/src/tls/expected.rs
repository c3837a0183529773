//! Responses that are expected on TLS objects after a request with a credential.

use crate::support::maps::{insert_counted, remove_counted};
use aya_ebpf::{macros::map, maps::LruHashMap};
use monitor_common::map::{EvictingMap, LastRequest, StreamKey};

/// Reads that may precede the issued credential: a client may read line by line.
const READS_MAX: u64 = 64;

#[map]
pub static LAST_REQUESTS: LruHashMap<StreamKey, LastRequest> =
    LruHashMap::with_max_entries(EvictingMap::LastRequests.capacity(1), 0);

/// A request with a credential of this TLS object was sent on a socket: expect a response.
#[inline(always)]
pub fn expect_response(object: StreamKey, cookie: u64) {
    let request = LastRequest {
        cookie,
        reads: READS_MAX,
    };
    insert_counted(&LAST_REQUESTS, EvictingMap::LastRequests, object, &request);
}

/// Whether a write with a credential of this TLS object is known to have been sent: until then, a
/// library may be passed the same bytes again.
#[inline(always)]
pub fn has_sent(object: StreamKey) -> bool {
    LAST_REQUESTS.get_ptr(object).is_some()
}

/// A TLS object was freed; another may get the same address.
#[inline(always)]
pub fn forget_expected(object: StreamKey) {
    remove_counted(&LAST_REQUESTS, EvictingMap::LastRequests, object);
}
