//! Processes: exec, fork, exit.

use crate::{
    file,
    kernel::field,
    maps::{PROCESS_RING, count, current_cgroup, lost, send},
    path::Walk,
    task::{self, Hooked, fill_header},
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use core::mem::MaybeUninit;
use monitor_common::{
    fields::F,
    record::{Header, Probe, Process, Stage, TRUNCATED, UNLINKED, kind},
};

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.10 and before. Fallback: none needed.
/// Missed: an executable's path below 90 components or 1,024 bytes (flagged as cut).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    exec(ctx.arg(2));
    0
}

/// Hook: as [`process_exec`], and after it: what the new program has open already.
/// Missed: descriptors above 7, and files that are not known as credentials.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn file_inherited(_: RawTracePointContext) -> i32 {
    file::inherited();
    0
}

/// A record with room for its path, in the ring.
#[repr(C)]
struct Slot {
    record: Process,
    walk: Walk,
}

#[inline(always)]
fn exec(bprm: u64) {
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
        fill_header(&mut record.header, kind::EXEC, Hooked::Tracing);
        record.exe_inode = field(inode, F::InodeIno);
        record.exe_device = field(sb, F::SbDev);
        record.flags = flags;
        record.path_len = (&raw const (*walk).path).read_volatile();
        record.exe_generation = field(inode, F::InodeGeneration);
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
    let mut header = MaybeUninit::<Header>::uninit();
    // SAFETY: every field is written before it is read, and a Header has no padding.
    let header = unsafe { &mut *header.as_mut_ptr() };
    task::fill_forked(header, kind::FORK, child);
    tell(header);
    0
}

/// Hook: raw tracepoint `sched_process_exit(task)`, in the dying thread's context.
/// First kernel: 5.10 and before. Only the last thread of a process is reported.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let signal = field::<u64>(ctx.arg(0), F::TaskSignal);
    if field::<u32>(signal, F::SignalLive) != 0 {
        return 0;
    }
    let mut header = MaybeUninit::<Header>::uninit();
    // SAFETY: as above.
    let header = unsafe { &mut *header.as_mut_ptr() };
    fill_header(header, kind::EXIT, Hooked::Tracing);
    tell(header);
    0
}

#[inline(always)]
fn tell(header: &Header) {
    // SAFETY: the record is initialised, as it is a reference.
    unsafe {
        send(
            &PROCESS_RING,
            Probe::Process,
            header.cgroup,
            core::ptr::from_ref(header).cast(),
            size_of::<Header>() as u64,
        );
    }
}
