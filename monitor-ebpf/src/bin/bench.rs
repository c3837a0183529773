//! Programs that do nothing: the baseline of every budget. Built into an object of their own, and
//! loaded by the benchmarks only.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{cgroup_skb, fentry, lsm, raw_tracepoint, tracepoint, uprobe},
    programs::{
        FEntryContext, LsmContext, ProbeContext, RawTracePointContext, SkBuffContext,
        TracePointContext,
    },
};

/// The baseline of every budget: the cost of a program that does nothing. Attached by benchmarks
/// only.
#[tracepoint]
pub fn empty_tracepoint(_: TracePointContext) -> u32 {
    0
}

/// As [`empty_tracepoint`], on the hook of `file_open_fentry`.
#[fentry(function = "security_file_open")]
pub fn empty_fentry(_: FEntryContext) -> i32 {
    0
}

/// As [`empty_tracepoint`], on the hook of `file_open_lsm`.
#[lsm(hook = "file_open")]
pub fn empty_lsm(_: LsmContext) -> i32 {
    0
}

/// As [`empty_tracepoint`], on the hooks of the process probes.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn empty_raw(_: RawTracePointContext) -> i32 {
    0
}

/// As [`empty_tracepoint`], on the hook of the `hello` probe.
#[cgroup_skb(egress)]
pub fn empty_egress(_: SkBuffContext) -> i32 {
    1
}

/// As [`empty_egress`], for the packets that the host receives.
#[cgroup_skb(ingress)]
pub fn empty_ingress(_: SkBuffContext) -> i32 {
    1
}

/// As [`empty_tracepoint`], at a function of a TLS library.
#[uprobe]
pub fn empty_uprobe(_: ProbeContext) -> u32 {
    0
}

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
