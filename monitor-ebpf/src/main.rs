//! The eBPF probes of Keytrail, one directory per family. Hook functions are thin over shared logic;
//! what several families need is in `support`.
#![no_std]
#![no_main]

mod environ;
mod file;
mod net;
mod process;
mod support;
mod tls;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects an endless loop, so code that could panic does not load.
    loop {}
}

/// Helpers that read kernel memory require a GPL-compatible license; these programs are
/// dual-licensed.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
