//! Processes: exec, fork, exit.

use crate::support::{
    kernel::field,
    maps::count,
    path::PathWalk,
    ring::Ring,
    task::{self, HookContext, current_owner, fill_header},
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use core::mem::MaybeUninit;
use monitor_common::{
    fields::FieldId,
    record::{Probe, ProcessRecord, RecordHeader, Stage, TRUNCATED, UNLINKED, kind},
};

/// Hook: raw tracepoint `sched_process_exec(task, old_pid, bprm)`, in the new program's context.
/// First kernel: 5.10 and before. Fallback: none needed. Missed: the rest of an executable's path
/// beyond 90 components or 1,024 bytes (flagged as truncated).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    exec(ctx.arg(2));
    0
}

/// A record with room for its path, in the ring.
#[repr(C)]
struct ProcessRecordSlot {
    record: ProcessRecord,
    walk: PathWalk,
}

#[inline(always)]
fn exec(bprm: u64) {
    let Some(mut slot) =
        Ring::Processes.reserve::<ProcessRecordSlot>(Probe::Process, current_owner())
    else {
        return;
    };
    let place = slot.as_mut_ptr();
    let file: u64 = field(bprm, FieldId::BprmFile);
    let inode: u64 = field(file, FieldId::FileInode);
    let sb: u64 = field(inode, FieldId::InodeSb);
    let mut flags = 0;
    if field::<u32>(inode, FieldId::InodeNlink) == 0 {
        flags |= UNLINKED;
    }
    // SAFETY: the ring reserved space for a ProcessRecordSlot; every field is written before it is
    // sent, except bytes of the path past its length, which user space ignores.
    unsafe {
        let walk = &raw mut (*place).walk;
        PathWalk::write(
            walk,
            field(file, FieldId::FileMnt),
            field(file, FieldId::FileDentry),
        );
        if (&raw const (*walk).cut).read_volatile() != 0 {
            flags |= TRUNCATED;
        }
        let record = &mut (*place).record;
        fill_header(&mut record.header, kind::EXEC, HookContext::Tracing);
        record.exe_inode = field(inode, FieldId::InodeIno);
        record.exe_device = field(sb, FieldId::SbDev);
        record.flags = flags;
        record.path_len = (&raw const (*walk).path).read_volatile();
        record.exe_generation = field(inode, FieldId::InodeGeneration);
    }
    slot.submit(0);
    count(Probe::Process, Stage::Sent);
}

/// Hook: raw tracepoint `sched_process_fork(parent, child)`, in the parent's context. First kernel:
/// 5.10 and before. Threads are not reported.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg(1);
    if field::<u32>(child, FieldId::TaskPid) != field::<u32>(child, FieldId::TaskTgid) {
        return 0;
    }
    let mut header = MaybeUninit::<RecordHeader>::uninit();
    // SAFETY: every field is written before it is read, and a RecordHeader has no padding.
    let header = unsafe { &mut *header.as_mut_ptr() };
    task::fill_forked(header, kind::FORK, child);
    send_record(header);
    0
}

/// Hook: raw tracepoint `sched_process_exit(task)`, in the exiting thread's context. First kernel:
/// 5.10 and before. Only the last thread of a process is reported.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let signal = field::<u64>(ctx.arg(0), FieldId::TaskSignal);
    if field::<u32>(signal, FieldId::SignalLive) != 0 {
        return 0;
    }
    let mut header = MaybeUninit::<RecordHeader>::uninit();
    // SAFETY: as above.
    let header = unsafe { &mut *header.as_mut_ptr() };
    fill_header(header, kind::EXIT, HookContext::Tracing);
    send_record(header);
    0
}

#[inline(always)]
fn send_record(header: &RecordHeader) {
    Ring::Processes.send(Probe::Process, header.owner(), header);
}
