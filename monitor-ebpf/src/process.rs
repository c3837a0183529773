//! Processes: exec, fork, exit.

use crate::{
    kernel::{Block, bounded, field, fill_header, pick, read_to},
    maps::{PROCESS_RING, send},
    path,
};
use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use monitor_common::{
    fields::F,
    record::{Header, Probe, Process, TRUNCATED, UNLINKED, kind},
};

#[map]
static EXEC_FILE: PerCpuArray<Block> = PerCpuArray::with_max_entries(1, 0);

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.10 and before. Fallback: none needed.
/// Missed: an executable's path below 40 components (flagged as cut).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    exec(task, ctx.arg(2));
    0
}

#[inline(always)]
fn exec(task: u64, bprm: u64) {
    let Some(file) = EXEC_FILE.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the block is this CPU's own and not used by another program meanwhile.
    let file = unsafe { &mut *file };
    let mut flags = 0;
    let (mut exe_inode, mut exe_device) = (0, 0);
    let (mut path_len, mut cut) = (0, true);
    if read_to(file, field(bprm, F::BprmFile)) {
        let inode = pick(file, F::FileInode);
        exe_inode = field(inode, F::InodeIno);
        let sb = field(inode, F::InodeSb);
        exe_device = field(sb, F::SbDev);
        if field::<u32>(inode, F::InodeNlink) == 0 {
            flags |= UNLINKED;
        }
        (path_len, cut) = path::write(pick(file, F::FileMnt), pick(file, F::FileDentry));
    }
    if cut {
        flags |= TRUNCATED;
    }
    let Some(scratch) = path::scratch() else {
        return;
    };
    let record: &mut Process = scratch.record();
    fill_header(&mut record.header, kind::EXEC, task);
    record.exe_inode = exe_inode;
    record.exe_device = exe_device;
    record.flags = flags;
    record.path_len = path_len;
    record.reserved = 0;
    let size = size_of::<Process>() as u32 + path_len;
    // SAFETY: the record and the path after it are inside the scratch.
    unsafe {
        send(
            &PROCESS_RING,
            Probe::Process,
            core::ptr::from_ref(record).cast(),
            u64::from(bounded(size, 2048)),
        );
    }
}

/// Hook: raw tracepoint `sched_process_fork(parent, child)`, in the parent's context.
/// First kernel: 5.10 and before. Threads are not reported: their process is.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg(1);
    if field::<u32>(child, F::TaskPid) != field::<u32>(child, F::TaskTgid) {
        return 0;
    }
    task_event(child, kind::FORK);
    0
}

/// Hook: raw tracepoint `sched_process_exit(task)`, in the dying thread's context.
/// First kernel: 5.10 and before. Only the last thread of a process is reported.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let signal = field::<u64>(task, F::TaskSignal);
    if field::<u32>(signal, F::SignalLive) == 0 {
        task_event(task, kind::EXIT);
    }
    0
}

#[inline(always)]
fn task_event(task: u64, kind: u32) {
    let mut header = core::mem::MaybeUninit::<Header>::uninit();
    // SAFETY: fill_header writes every field before it is read, and a Header has no padding.
    unsafe {
        fill_header(&mut *header.as_mut_ptr(), kind, task);
        send(
            &PROCESS_RING,
            Probe::Process,
            header.as_ptr().cast(),
            size_of::<Header>() as u64,
        );
    }
}
