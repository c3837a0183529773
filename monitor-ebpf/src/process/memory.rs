//! Reads of another process's environment or memory.

use crate::support::{
    foreign::report_foreign_read,
    maps::{insert_counted, remove_counted},
    task::subject_of,
    view::CopyAccess,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, kprobe, lsm, map, tracepoint},
    maps::LruHashMap,
    programs::{FEntryContext, LsmContext, ProbeContext, TracePointContext},
};
use monitor_common::{
    map::{EvictingMap, ReadCall},
    record::foreign,
};

const PTRACE_MODE_ATTACH: u32 = 2;

/// Hook: `lsm/ptrace_access_check(child, mode)`: tracing, `process_vm_readv`, `/proc/PID/mem`,
/// `pidfd_getfd`. First kernel: 5.7, with `bpf` in the list of active LSMs.
/// Fallback: [`memory_fentry`]. Missed: a process that asks to be traced by its parent.
#[lsm(hook = "ptrace_access_check")]
pub fn memory_lsm(ctx: LsmContext) -> i32 {
    is_attach(ctx.arg(0), ctx.arg(1));
    0
}

/// Hook: `fentry/security_ptrace_access_check(child, mode)`. Fallback: [`memory_kprobe`].
#[fentry(function = "security_ptrace_access_check")]
pub fn memory_fentry(ctx: FEntryContext) -> i32 {
    is_attach(ctx.arg(0), ctx.arg(1));
    0
}

/// Hook: `kprobe/security_ptrace_access_check(child, mode)`. Fallback: [`memory_enter`].
#[kprobe]
pub fn memory_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(child), Some(mode)) = (ctx.arg(0), ctx.arg(1)) {
        is_attach(child, mode);
    }
    0
}

/// Reading memory is an attach; what `ps` does is not.
#[inline(always)]
fn is_attach(child: u64, mode: u32) {
    if mode & PTRACE_MODE_ATTACH != 0 {
        report_foreign_read(subject_of::<CopyAccess>(child), foreign::TRACE);
    }
}

/// Calls in progress, by thread: the pid that the call names, and what it does.
#[map]
static CALLS: LruHashMap<u64, ReadCall> =
    LruHashMap::with_max_entries(EvictingMap::Calls.capacity(1), 0);

const PTRACE_ATTACH: u64 = 16;
const PTRACE_SEIZE: u64 = 0x4206;

/// Hook: `syscalls:sys_enter_ptrace(request, pid, …)`. First kernel: any with
/// `CONFIG_FTRACE_SYSCALLS`; together with the other syscall hooks it is the last resort for this
/// observation. Missed: `pidfd_getfd`.
#[tracepoint]
pub fn memory_ptrace(ctx: TracePointContext) -> u32 {
    let (request, pid) = (syscall_argument(&ctx, 0), syscall_argument(&ctx, 1));
    if request == PTRACE_ATTACH || request == PTRACE_SEIZE {
        handle_enter(pid as u32, foreign::TRACE);
    }
    0
}

/// Hook: `syscalls:sys_enter_process_vm_readv(pid, …)`, as [`memory_ptrace`].
#[tracepoint]
pub fn memory_vm_readv(ctx: TracePointContext) -> u32 {
    handle_enter(syscall_argument(&ctx, 0) as u32, foreign::VM_READ);
    0
}

/// Hook: `syscalls:sys_exit_ptrace`, `_process_vm_readv`: checks whether the call succeeded.
#[tracepoint]
pub fn memory_exit(ctx: TracePointContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied at once.
    let Some(ReadCall { pid, how }) = (unsafe { CALLS.get(thread) }).copied() else {
        return 0;
    };
    remove_counted(&CALLS, EvictingMap::Calls, thread);
    // SAFETY: a syscall exit record has its return value at offset 16.
    let result = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if result >= 0 {
        report_foreign_read((pid, 0), how);
    }
    0
}

/// An argument of a system call: eight bytes each, starting at offset 16 of the record.
#[inline(always)]
fn syscall_argument(ctx: &TracePointContext, number: usize) -> u64 {
    // SAFETY: the verifier checks the access against the record's size.
    unsafe { *ctx.as_ptr().byte_add(16 + number * 8).cast::<u64>() }
}

#[inline(always)]
fn handle_enter(pid: u32, how: u32) {
    insert_counted(
        &CALLS,
        EvictingMap::Calls,
        bpf_get_current_pid_tgid(),
        &ReadCall { pid, how },
    );
}
