//! Sends the record of a credential found outside TLS, or in a response.

use crate::support::ring::Ring;
use monitor_common::{
    map::{FoundCredential, SearchScratch},
    record::Probe,
};

/// Prepares the record of a credential found in a packet.
#[inline(always)]
pub fn set_plaintext_record(
    scratch: &mut SearchScratch,
    known: &FoundCredential,
    kind: u32,
    time: u64,
) {
    let secret = known.as_record(scratch.host);
    let record = &mut scratch.clear;
    record.kind = kind;
    record.time = time;
    record.cookie = scratch.object.address;
    record.owner = scratch.owner;
    record.secret = secret;
}

/// Sends the prepared record.
#[inline(always)]
pub fn send_plaintext_record(scratch: &mut SearchScratch) {
    let record = &mut scratch.clear;
    Ring::Credentials.send(Probe::Clear, record.owner, record);
}
