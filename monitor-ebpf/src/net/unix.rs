//! Connects to unix sockets at which credentials are issued: the agents of SPIRE, Vault and SSH.

use crate::{
    file::open::match_file,
    support::{
        kernel::{field, offset},
        maps::{insert_counted, remove_counted},
        task::{HookContext, file_of},
        view::{CopyAccess, FileFields},
    },
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_current_task, bpf_probe_read_user},
    macros::{map, tracepoint},
    maps::LruHashMap,
    programs::TracePointContext,
};
use core::ffi::c_void;
use monitor_common::{
    fields::{ABSENT, FieldId},
    map::EvictingMap,
    record::CONNECTED,
};

/// Descriptors of connects in progress, by task. An entry whose call never returns is evicted.
#[map]
static PENDING_CONNECTS: LruHashMap<u64, u64> =
    LruHashMap::with_max_entries(EvictingMap::PendingConnects.capacity(1), 0);

const AF_UNIX: u16 = 1;
/// Treated as an open for reading: the process expects data.
const FMODE_READ: u32 = 1;

/// Hook: `syscalls:sys_enter_connect`. First kernel: any with `CONFIG_FTRACE_SYSCALLS`. Fallback:
/// none, a declared gap. Together with [`unix_connected`] it reports the socket that was reached,
/// not the requested path. Missed: abstract sockets, io_uring, datagrams, kernels with unix sockets
/// in a module.
#[tracepoint]
pub fn unix_connect(ctx: TracePointContext) -> u32 {
    // SAFETY: number, descriptor, address and length are eight bytes each in the record, from
    // offset 8 on; the verifier checks the access against its size.
    let (fd, address) = unsafe {
        (
            *ctx.as_ptr().byte_add(16).cast::<u64>(),
            *ctx.as_ptr().byte_add(24).cast::<u64>(),
        )
    };
    let mut family = 0u16;
    // SAFETY: two bytes on the stack; the helper checks the source.
    let read = unsafe {
        bpf_probe_read_user(
            (&raw mut family).cast(),
            size_of::<u16>() as u32,
            address as *const c_void,
        )
    };
    if read == 0 && family == AF_UNIX {
        insert_counted(&PENDING_CONNECTS, EvictingMap::PendingConnects, task(), &fd);
    }
    0
}

#[inline(always)]
pub fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Hook: `syscalls:sys_exit_connect`, together with [`unix_connect`].
#[tracepoint]
pub fn unix_connected(ctx: TracePointContext) -> u32 {
    let task = task();
    // SAFETY: the value is copied at once.
    let Some(fd) = unsafe { PENDING_CONNECTS.get(task) }.copied() else {
        return 0;
    };
    remove_counted(&PENDING_CONNECTS, EvictingMap::PendingConnects, task);
    // SAFETY: a syscall exit record has its return value at offset 16.
    let result = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if result == 0 {
        report_peer(fd & u64::from(u32::MAX));
    }
    0
}

/// The peer socket has the path of the listening socket.
#[inline(always)]
fn report_peer(fd: u64) {
    if [FieldId::UnixPeer, FieldId::UnixMnt, FieldId::UnixDentry]
        .into_iter()
        .any(|part| offset(part) == u64::from(ABSENT))
    {
        return;
    }
    let socket: u64 = field(file_of(fd, HookContext::Tracing), FieldId::FilePrivate);
    let sock: u64 = field(socket, FieldId::SocketSk);
    if field::<u16>(sock, FieldId::SockFamily) != AF_UNIX {
        return;
    }
    let peer: u64 = field(sock, FieldId::UnixPeer);
    let dentry: u64 = field(peer, FieldId::UnixDentry);
    if dentry == 0 {
        return;
    }
    let inode: u64 = field(dentry, FieldId::DentryInode);
    let file = FileFields {
        mode: FMODE_READ,
        inode,
        mount: field(peer, FieldId::UnixMnt),
        dentry,
    };
    match_file::<CopyAccess>(&file, field(inode, FieldId::InodeIno), CONNECTED);
}
