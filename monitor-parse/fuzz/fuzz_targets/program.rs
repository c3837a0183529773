//! ELF files, with their symbols, unwind tables and Go's tables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monitor_parse::{elf::SymbolTable, peak, tls_functions::inspect};

/// Bytes for any program, as in the crate's own test.
const PEAK: usize = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    for symbols in [SymbolTable::Dynamic, SymbolTable::Static] {
        // A file that is not a program has nothing.
        let peak = peak::of(|| drop(inspect(bytes, symbols)));
        assert!(peak < PEAK, "{peak} bytes");
    }
});
