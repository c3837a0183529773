//! The current task: who it is, and what it has open.

use crate::{
    kernel::{now, offset},
    view::{Copied, Direct, Memory},
};
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::bpf_get_current_cgroup_id,
};
use monitor_common::{
    fields::{ABSENT, F},
    record::{Header, NO_LOGIN},
};

/// Whether this kernel gives programs the current task as a pointer whose type the verifier knows
/// (5.11 and later; socket programs later than that), and programs at packets the current task at
/// all. Set by the agent before load, after trying;
/// by [`Hooked`]. What hangs on it is decided once for a whole function, so that the verifier sees
/// one of its two forms.
#[unsafe(no_mangle)]
static TYPED: [u32; 3] = [0; 3];

/// What a program is attached to.
#[derive(Clone, Copy)]
pub enum Hooked {
    Tracing = 0,
    Socket = 1,
    Packet = 2,
}

impl Hooked {
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
pub fn subject<M: Memory>(task: u64) -> (u32, u64) {
    let pid = M::field(task, F::TaskTgid);
    let leader = M::field(task, F::TaskLeader);
    (pid, M::field(leader, F::TaskStart))
}

/// When the current process began.
#[inline(always)]
pub fn start(hooked: Hooked) -> u64 {
    if hooked.typed() {
        subject::<Direct>(Direct::task()).1
    } else {
        subject::<Copied>(Copied::task()).1
    }
}

/// Fills the header of a record about the current process.
#[inline(always)]
pub fn fill_header(header: &mut Header, record: u32, hooked: Hooked) {
    if hooked.typed() {
        about_current::<Direct>(header);
    } else {
        about_current::<Copied>(header);
    }
    fill_rest(header, record);
}

#[inline(always)]
fn about_current<M: Memory>(header: &mut Header) {
    let task = M::task();
    (header.pid, header.start) = subject::<M>(task);
    (header.parent, header.parent_start) = subject::<M>(M::field(task, F::TaskParent));
    fill_session::<M>(header, task);
}

/// Fills the header of a record about a process that the current one has just made. It has the
/// session of the one that made it.
#[inline(always)]
pub fn fill_forked(header: &mut Header, record: u32, child: u64) {
    if Hooked::Tracing.typed() {
        fill_session::<Direct>(header, Direct::task());
    } else {
        fill_session::<Copied>(header, Copied::task());
    }
    header.pid = Copied::field(child, F::TaskTgid);
    header.start = Copied::field(child, F::TaskStart);
    (header.parent, header.parent_start) = subject::<Copied>(Copied::field(child, F::TaskParent));
    fill_rest(header, record);
}

#[inline(always)]
fn fill_session<M: Memory>(header: &mut Header, task: u64) {
    let signal: u64 = M::field(task, F::TaskSignal);
    header.tty = u32::from(M::field::<u64>(signal, F::SignalTty) != 0);
    header.loginuid = if offset(F::TaskLoginuid) == u64::from(ABSENT) {
        NO_LOGIN
    } else {
        M::field(task, F::TaskLoginuid)
    };
}

#[inline(always)]
fn fill_rest(header: &mut Header, record: u32) {
    header.kind = record;
    header.time = now();
    // SAFETY: the helper has no preconditions.
    header.cgroup = unsafe { bpf_get_current_cgroup_id() };
    header.uid = bpf_get_current_uid_gid() as u32;
    header.comm = bpf_get_current_comm().unwrap_or([0; 16]);
}

const S_IFMT: u32 = 0xf000;
const S_IFIFO: u32 = 0x1000;
const S_IFSOCK: u32 = 0xc000;

/// Where the descriptors of the current process are.
#[inline(always)]
pub fn descriptors(hooked: Hooked) -> u64 {
    if hooked.typed() {
        table::<Direct>()
    } else {
        table::<Copied>()
    }
}

#[inline(always)]
fn table<M: Memory>() -> u64 {
    let files = M::field(M::task(), F::TaskFiles);
    let table = M::field(files, F::FilesFdt);
    M::field(table, F::FdtFd)
}

/// The `struct file` behind a descriptor of the current process, or 0. The descriptor is one that
/// is open: its place in the table is not checked.
#[inline(always)]
pub fn file_of(fd: u64, hooked: Hooked) -> u64 {
    let array = descriptors(hooked);
    crate::kernel::read(array.wrapping_add(fd << 3))
}

/// The inode number of the pipe or socket at a standard descriptor; 0 where it is neither. It
/// is how a helper's output is followed to the one that reads it.
#[inline(always)]
pub fn stream(fd: u64, hooked: Hooked) -> u64 {
    number_of_stream(file_of(fd, hooked))
}

/// The same of the parent of the current process.
#[inline(always)]
pub fn stream_of_parent(fd: u64) -> u64 {
    let files = Copied::field(Copied::field(Copied::task(), F::TaskParent), F::TaskFiles);
    let array: u64 = Copied::field(Copied::field(files, F::FilesFdt), F::FdtFd);
    number_of_stream(crate::kernel::read(array.wrapping_add(fd << 3)))
}

#[inline(always)]
fn number_of_stream(file: u64) -> u64 {
    let inode = Copied::field(file, F::FileInode);
    let mode = u32::from(Copied::field::<u16>(inode, F::InodeMode)) & S_IFMT;
    if mode == S_IFIFO || mode == S_IFSOCK {
        Copied::field(inode, F::InodeIno)
    } else {
        0
    }
}
