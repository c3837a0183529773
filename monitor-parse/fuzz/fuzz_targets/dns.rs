//! DNS responses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor_parse::{dns, peak};

/// Bytes for the longest message.
const PEAK: usize = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let peak = peak::of(|| drop(dns::parse_response(bytes, 0)));
    assert!(peak < PEAK, "{peak} bytes");
});
