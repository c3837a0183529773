//! The files that configure how names are resolved.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor_parse::{peak, resolvers};

/// Bytes for the longest file.
const PEAK: usize = 16 << 20;

fuzz_target!(|text: &str| {
    let peak = peak::of(|| {
        drop(resolvers::name_servers(text));
        drop(resolvers::host_names(text));
    });
    assert!(peak < PEAK, "{peak} bytes");
});
