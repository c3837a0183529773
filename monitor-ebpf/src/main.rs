//! The probes of Keytrail. One family a file; hooks are thin, what they share is in `kernel`,
//! `path` and `maps`.
#![no_std]
#![no_main]

mod connect;
mod environ;
mod file;
mod hello;
mod kernel;
mod maps;
mod path;
mod process;

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

/// The measure of every budget: what a program costs that does nothing. Attached by the
/// benchmarks only.
#[tracepoint]
pub fn empty_tracepoint(_: TracePointContext) -> u32 {
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses an endless loop, so code that could panic does not load.
    loop {}
}

/// Helpers that probe kernel memory are for GPL-compatible programs; these are dual-licensed.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
