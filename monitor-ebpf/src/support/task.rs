//! The current task: its identity, and its open files.

use crate::support::kernel::read;
use crate::support::{
    kernel::{boot_time_ns, offset},
    view::{CopyAccess, DirectAccess, KernelMemory},
};
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::bpf_get_current_cgroup_id,
};
use monitor_common::{
    fields::{ABSENT, FieldId},
    record::{NO_LOGIN, OwnerFields, RecordHeader},
};

/// Whether this kernel passes programs the current task as a typed pointer (5.11 and later; socket
/// programs later than that), and packet programs the current task at all. Set by the agent before
/// load, after probing; indexed by [`HookContext`]. The check is made once for a whole function, so
/// that the verifier sees only one of the two variants.
#[unsafe(no_mangle)]
static TYPED: [u32; 3] = [0; 3];

/// The kind of hook that a program is attached to.
#[derive(Clone, Copy)]
pub enum HookContext {
    Tracing = 0,
    Socket = 1,
    Packet = 2,
}

impl HookContext {
    #[inline(always)]
    pub fn typed(self) -> bool {
        // SAFETY: the read is inside the array; volatile, because the agent overrides it.
        unsafe { core::ptr::read_volatile(&raw const TYPED[self as usize]) != 0 }
    }
}

#[inline(always)]
pub fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// `(thread group, start of its leader)` of a task.
#[inline(always)]
pub fn subject_of<M: KernelMemory>(task: u64) -> (u32, u64) {
    let pid = M::field(task, FieldId::TaskTgid);
    let leader = M::field(task, FieldId::TaskLeader);
    (pid, M::field(leader, FieldId::TaskStart))
}

/// Start time of the current process.
#[inline(always)]
pub fn current_start(hooked: HookContext) -> u64 {
    if hooked.typed() {
        subject_of::<DirectAccess>(DirectAccess::task()).1
    } else {
        subject_of::<CopyAccess>(CopyAccess::task()).1
    }
}

/// Fills the header of a record about the current process.
#[inline(always)]
pub fn fill_header(header: &mut RecordHeader, record: u32, hooked: HookContext) {
    if hooked.typed() {
        about_current::<DirectAccess>(header);
    } else {
        about_current::<CopyAccess>(header);
    }
    fill_rest(header, record);
}

#[inline(always)]
fn about_current<M: KernelMemory>(header: &mut RecordHeader) {
    let task = M::task();
    (header.pid, header.start) = subject_of::<M>(task);
    (header.parent, header.parent_start) = subject_of::<M>(M::field(task, FieldId::TaskParent));
    fill_session::<M>(header, task);
}

/// Fills the header of a record about a process that the current one has just forked. It inherits
/// the parent's session.
#[inline(always)]
pub fn fill_forked(header: &mut RecordHeader, record: u32, child: u64) {
    if HookContext::Tracing.typed() {
        fill_session::<DirectAccess>(header, DirectAccess::task());
    } else {
        fill_session::<CopyAccess>(header, CopyAccess::task());
    }
    header.pid = CopyAccess::field(child, FieldId::TaskTgid);
    header.start = CopyAccess::field(child, FieldId::TaskStart);
    (header.parent, header.parent_start) =
        subject_of::<CopyAccess>(CopyAccess::field(child, FieldId::TaskParent));
    fill_rest(header, record);
}

#[inline(always)]
fn fill_session<M: KernelMemory>(header: &mut RecordHeader, task: u64) {
    let signal: u64 = M::field(task, FieldId::TaskSignal);
    header.tty = u32::from(M::field::<u64>(signal, FieldId::SignalTty) != 0);
    header.loginuid = if offset(FieldId::TaskLoginuid) == u64::from(ABSENT) {
        NO_LOGIN
    } else {
        M::field(task, FieldId::TaskLoginuid)
    };
}

#[inline(always)]
fn fill_rest(header: &mut RecordHeader, record: u32) {
    header.kind = record;
    header.time = boot_time_ns();
    // SAFETY: the helper has no preconditions.
    header.cgroup = unsafe { bpf_get_current_cgroup_id() };
    header.uid = bpf_get_current_uid_gid() as u32;
    header.comm = bpf_get_current_comm().unwrap_or([0; 16]);
}

/// Whose the sockets are that the current task makes.
#[inline(always)]
pub fn current_owner() -> OwnerFields {
    OwnerFields {
        // SAFETY: the helper has no preconditions.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        user: bpf_get_current_uid_gid() as u32,
        reserved: 0,
    }
}

const S_IFMT: u32 = 0xf000;
const S_IFIFO: u32 = 0x1000;
const S_IFSOCK: u32 = 0xc000;

/// The descriptor table of the current process.
#[inline(always)]
pub fn descriptors(hooked: HookContext) -> u64 {
    if hooked.typed() {
        table::<DirectAccess>()
    } else {
        table::<CopyAccess>()
    }
}

#[inline(always)]
pub fn table<M: KernelMemory>() -> u64 {
    let files = M::field(M::task(), FieldId::TaskFiles);
    let table = M::field(files, FieldId::FilesFdt);
    M::field(table, FieldId::FdtFd)
}

/// The `struct file` of an open descriptor of the current process, or 0. The bounds of the table
/// are not checked, because the descriptor is open.
#[inline(always)]
pub fn file_of(fd: u64, hooked: HookContext) -> u64 {
    let array = descriptors(hooked);
    read(array.wrapping_add(fd << 3))
}

/// The inode number of the pipe or socket at a standard descriptor; 0 if it is neither. It links a
/// helper's output to the process that reads it.
#[inline(always)]
pub fn standard_stream(fd: u64, hooked: HookContext) -> u64 {
    stream_inode(file_of(fd, hooked))
}

/// As [`standard_stream`], for the parent of the current process.
#[inline(always)]
pub fn parent_stream(fd: u64) -> u64 {
    let files = CopyAccess::field(
        CopyAccess::field(CopyAccess::task(), FieldId::TaskParent),
        FieldId::TaskFiles,
    );
    let array: u64 = CopyAccess::field(CopyAccess::field(files, FieldId::FilesFdt), FieldId::FdtFd);
    stream_inode(read(array.wrapping_add(fd << 3)))
}

#[inline(always)]
fn stream_inode(file: u64) -> u64 {
    let inode = CopyAccess::field(file, FieldId::FileInode);
    let mode = u32::from(CopyAccess::field::<u16>(inode, FieldId::InodeMode)) & S_IFMT;
    if mode == S_IFIFO || mode == S_IFSOCK {
        CopyAccess::field(inode, FieldId::InodeIno)
    } else {
        0
    }
}
