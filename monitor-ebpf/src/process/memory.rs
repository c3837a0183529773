//! Reads of another process's environment or memory.

use crate::support::{
    kernel::{self, field},
    maps::{CREDENTIAL_RING, is_agent, send},
    repeats::repeat_count,
    task::{HookContext, current_pid, fill_header, subject_of},
    view::CopyAccess,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, kprobe, lsm, map, tracepoint},
    maps::LruHashMap,
    programs::{FEntryContext, LsmContext, ProbeContext, TracePointContext},
};
use core::mem::MaybeUninit;
use monitor_common::{
    fields::FieldId,
    record::{ForeignReadRecord, Probe, ReadKey, foreign, kind},
};

const PTRACE_MODE_ATTACH: u32 = 2;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

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
        send_record(subject_of::<CopyAccess>(child), foreign::TRACE);
    }
}

/// Calls in progress, by thread: the pid that the call names, and what it does.
#[map]
static CALLS: LruHashMap<u64, [u32; 2]> = LruHashMap::with_max_entries(1024, 0);

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
    let Some([pid, how]) = (unsafe { CALLS.get(thread) }).copied() else {
        return 0;
    };
    let _ = CALLS.remove(thread);
    // SAFETY: a syscall exit record has its return value at offset 16.
    let result = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if result >= 0 {
        send_record((pid, 0), how);
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
    let _ = CALLS.insert(bpf_get_current_pid_tgid(), [pid, how], 0);
}

/// Handles an open of a procfs file named like one that exposes a process.
#[inline(always)]
pub fn is_process_file(inode: u64, first: u32) {
    let sb: u64 = field(inode, FieldId::InodeSb);
    if field::<u64>(sb, FieldId::SbMagic) != PROC_SUPER_MAGIC {
        return;
    }
    let node = inode.wrapping_sub(kernel::offset(FieldId::ProcInodeVfs));
    let pid: u64 = field(node, FieldId::ProcInodePid);
    if pid == 0 {
        return;
    }
    // The first thread with this pid: the head of a list that is linked through the task.
    let link: u64 = field(pid, FieldId::PidTasks);
    if link == 0 {
        return;
    }
    let task = link.wrapping_sub(kernel::offset(FieldId::TaskPidLinks));
    let how = if first == u32::from_le_bytes(*b"envi") {
        foreign::ENVIRON
    } else {
        foreign::MEMORY
    };
    send_record(subject_of::<CopyAccess>(task), how);
}

#[inline(always)]
fn send_record((target, target_start): (u32, u64), how: u32) {
    let pid = current_pid();
    if target == pid || target == 0 || is_agent(pid) {
        return;
    }
    let mut record = MaybeUninit::<ForeignReadRecord>::uninit();
    // SAFETY: every field is written before it is read, and a ForeignReadRecord has no padding.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::FOREIGN, HookContext::Tracing);
    record.target_start = target_start;
    record.target = target;
    record.how = how;
    let seen = ReadKey {
        start: record.header.start,
        inode: u64::from(target) << 32 | u64::from(how),
        pid,
        // No device has this number.
        device: u32::MAX,
    };
    if repeat_count(seen).is_none() {
        return;
    }
    // SAFETY: the record is initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Memory,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<ForeignReadRecord>() as u64,
        );
    }
}
