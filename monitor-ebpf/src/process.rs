//! Processes: exec, fork, exit.

use crate::{
    file,
    kernel::{field, fill_header},
    maps::{PROCESS_RING, count, current_cgroup, lost, send},
    path::Walk,
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use monitor_common::{
    fields::F,
    record::{Header, Probe, Process, Stage, TRUNCATED, UNLINKED, kind},
};

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.10 and before. Fallback: none needed.
/// Missed: an executable's path below 90 components or 1,024 bytes (flagged as cut).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    exec(ctx.arg(0), ctx.arg(2));
    0
}

/// Hook: as [`process_exec`], and after it: what the new program has open already.
/// Missed: descriptors above 7, and files that are not known as credentials.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn file_inherited(ctx: RawTracePointContext) -> i32 {
    file::inherited(ctx.arg(0));
    0
}

/// A record with room for its path, in the ring.
#[repr(C)]
struct Slot {
    record: Process,
    walk: Walk,
}

#[inline(always)]
fn exec(task: u64, bprm: u64) {
    let Some(mut slot) = PROCESS_RING.reserve::<Slot>(0) else {
        lost(Probe::Process, current_cgroup());
        return;
    };
    let place = slot.as_mut_ptr();
    let file: u64 = field(bprm, F::BprmFile);
    let inode: u64 = field(file, F::FileInode);
    let sb: u64 = field(inode, F::InodeSb);
    let mut flags = 0;
    if field::<u32>(inode, F::InodeNlink) == 0 {
        flags |= UNLINKED;
    }
    // SAFETY: the ring gave room for a Slot; every field is written before it is sent, except
    // bytes of the path past its length, which user space does not look at.
    unsafe {
        let walk = &raw mut (*place).walk;
        Walk::write(walk, field(file, F::FileMnt), field(file, F::FileDentry));
        if (&raw const (*walk).cut).read_volatile() != 0 {
            flags |= TRUNCATED;
        }
        let record = &mut (*place).record;
        fill_header(&mut record.header, kind::EXEC, task);
        record.exe_inode = field(inode, F::InodeIno);
        record.exe_device = field(sb, F::SbDev);
        record.flags = flags;
        record.path_len = (&raw const (*walk).path).read_volatile();
        record.reserved = 0;
    }
    slot.submit(0);
    count(Probe::Process, Stage::Sent);
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
            current_cgroup(),
            header.as_ptr().cast(),
            size_of::<Header>() as u64,
        );
    }
}
