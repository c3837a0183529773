//! The environment and the memory of a process, looked at by another process.

use crate::{
    file::repeated,
    kernel::{self, field},
    maps::{CREDENTIAL_RING, is_agent, send},
    task::{Hooked, current_pid, fill_header, subject},
    view::Copied,
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
    fields::F,
    record::{Foreign, Probe, ReadKey, foreign, kind},
};

const PTRACE_MODE_ATTACH: u32 = 2;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Hook: `lsm/ptrace_access_check(child, mode)`: tracing, `process_vm_readv`, `/proc/PID/mem`,
/// `pidfd_getfd`. First kernel: 5.7, with `bpf` in the list of active LSMs.
/// Fallback: [`memory_fentry`]. Missed: a process that asks to be traced by its parent.
#[lsm(hook = "ptrace_access_check")]
pub fn memory_lsm(ctx: LsmContext) -> i32 {
    attach(ctx.arg(0), ctx.arg(1));
    0
}

/// Hook: `fentry/security_ptrace_access_check(child, mode)`. Fallback: [`memory_kprobe`].
#[fentry(function = "security_ptrace_access_check")]
pub fn memory_fentry(ctx: FEntryContext) -> i32 {
    attach(ctx.arg(0), ctx.arg(1));
    0
}

/// Hook: `kprobe/security_ptrace_access_check(child, mode)`. Fallback: [`memory_enter`].
#[kprobe]
pub fn memory_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(child), Some(mode)) = (ctx.arg(0), ctx.arg(1)) {
        attach(child, mode);
    }
    0
}

/// A look at memory is an attachment; what `ps` does is not.
#[inline(always)]
fn attach(child: u64, mode: u32) {
    if mode & PTRACE_MODE_ATTACH != 0 {
        looked_at(subject::<Copied>(child), foreign::TRACE);
    }
}

/// Number of the process that a call in progress names, with what it does: thread to both.
#[map]
static CALLS: LruHashMap<u64, [u32; 2]> = LruHashMap::with_max_entries(1024, 0);

const PTRACE_ATTACH: u64 = 16;
const PTRACE_SEIZE: u64 = 0x4206;

/// Hook: `syscalls:sys_enter_ptrace(request, pid, …)`. First kernel: any with
/// `CONFIG_FTRACE_SYSCALLS`; with the other hooks here it is the last resort of the ladder.
/// Missed: `pidfd_getfd`.
#[tracepoint]
pub fn memory_ptrace(ctx: TracePointContext) -> u32 {
    let (request, pid) = (argument(&ctx, 0), argument(&ctx, 1));
    if request == PTRACE_ATTACH || request == PTRACE_SEIZE {
        entered(pid as u32, foreign::TRACE);
    }
    0
}

/// Hook: `syscalls:sys_enter_process_vm_readv(pid, …)`, as [`memory_ptrace`].
#[tracepoint]
pub fn memory_vm_readv(ctx: TracePointContext) -> u32 {
    entered(argument(&ctx, 0) as u32, foreign::VM_READ);
    0
}

/// Hook: `syscalls:sys_exit_ptrace`, `_process_vm_readv`: whether the call succeeded.
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
        looked_at((pid, 0), how);
    }
    0
}

/// An argument of a system call: eight bytes each, from offset 16 of the record.
#[inline(always)]
fn argument(ctx: &TracePointContext, number: usize) -> u64 {
    // SAFETY: the verifier checks the access against the record's size.
    unsafe { *ctx.as_ptr().byte_add(16 + number * 8).cast::<u64>() }
}

#[inline(always)]
fn entered(pid: u32, how: u32) {
    let _ = CALLS.insert(bpf_get_current_pid_tgid(), [pid, how], 0);
}

/// A file of a procfs, named like one that shows a process from inside, was opened.
#[inline(always)]
pub fn of_process(inode: u64, first: u32) {
    let sb: u64 = field(inode, F::InodeSb);
    if field::<u64>(sb, F::SbMagic) != PROC_SUPER_MAGIC {
        return;
    }
    let node = inode.wrapping_sub(kernel::offset(F::ProcInodeVfs));
    let pid: u64 = field(node, F::ProcInodePid);
    if pid == 0 {
        return;
    }
    // The first thread with this number: the head of a list that is linked through the task.
    let link: u64 = field(pid, F::PidTasks);
    if link == 0 {
        return;
    }
    let task = link.wrapping_sub(kernel::offset(F::TaskPidLinks));
    let how = if first == u32::from_le_bytes(*b"envi") {
        foreign::ENVIRON
    } else {
        foreign::MEMORY
    };
    looked_at(subject::<Copied>(task), how);
}

#[inline(always)]
fn looked_at((target, target_start): (u32, u64), how: u32) {
    let pid = current_pid();
    if target == pid || target == 0 || is_agent(pid) {
        return;
    }
    let mut record = MaybeUninit::<Foreign>::uninit();
    // SAFETY: every field is written before it is read, and a Foreign has no padding.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::FOREIGN, Hooked::Tracing);
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
    if repeated(seen).is_none() {
        return;
    }
    // SAFETY: the record is initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Memory,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<Foreign>() as u64,
        );
    }
}
