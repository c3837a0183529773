//! Paths of cgroups, which a container may name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor_parse::{cgroup, peak};

/// Bytes for the longest path.
const PEAK: usize = 1 << 20;

fuzz_target!(|path: &str| {
    let bytes = peak::of(|| drop(cgroup::parse(path)));
    assert!(bytes < PEAK, "{bytes} bytes");
});
