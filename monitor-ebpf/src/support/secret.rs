//! The fingerprint key, and the recognition of secrets by their first bytes.

use crate::support::maps::{BloomFilter, rule};
use monitor_common::{
    filter::{self, JWT_VALUE},
    fingerprint::FingerprintKey,
};

/// The host's fingerprint key, set by the agent before load.
#[unsafe(no_mangle)]
static KEY: [u64; 2] = [0; 2];

/// The host's fingerprint key.
#[inline(always)]
pub fn secret_key() -> FingerprintKey {
    // SAFETY: both reads are inside the array; volatile, because the agent sets the key.
    unsafe {
        FingerprintKey {
            k0: core::ptr::read_volatile(&raw const KEY[0]),
            k1: core::ptr::read_volatile(&raw const KEY[1]),
        }
    }
}

/// Finds the rule for the longest matching prefix (3 to 8 bytes) of a value. Returns the rule's
/// value plus 1, and whether to check for a JWT.
#[inline(always)]
pub fn value_prefix_rule(first: u64, bloom: BloomFilter) -> (u32, u32) {
    let (mut prefix, mut jwt) = (0, 0);
    for len in 3..9 {
        let key = filter::value_key(first, len);
        if bloom.contains(key)
            && let Some(value) = rule(key)
        {
            prefix = (value & !JWT_VALUE) + 1;
            jwt = value & JWT_VALUE;
        }
    }
    (prefix, jwt)
}
