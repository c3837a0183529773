//! Connections to sockets at which credentials are handed out: agents of SPIRE, Vault, SSH.

use crate::{
    file::look_at,
    kernel::{field, offset},
    task::{Hooked, file_of},
    view::{Copied, OpenFile},
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
    fields::{ABSENT, F},
    record::CONNECTED,
};

/// Descriptors of the connects that are under way, by task. One that never ends is evicted.
#[map]
static CONNECTING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

const AF_UNIX: u16 = 1;
/// As an open for reading: something is to come.
const FMODE_READ: u32 = 1;

/// Hook: `syscalls:sys_enter_connect`. First kernel: any with `CONFIG_FTRACE_SYSCALLS`. Fallback:
/// none, a declared gap. With [`unix_connected`] it gives the socket that was reached, and not the
/// path that was asked for. Missed: abstract sockets, io_uring, datagrams, kernels with unix sockets in a
/// module.
#[tracepoint]
pub fn unix_connect(ctx: TracePointContext) -> u32 {
    // SAFETY: number, descriptor, address, length: the record has each as eight bytes from 8 on; the
    // verifier checks the access against its size.
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
        let _ = CONNECTING.insert(task(), fd, 0);
    }
    0
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Hook: `syscalls:sys_exit_connect`, beside [`unix_connect`].
#[tracepoint]
pub fn unix_connected(ctx: TracePointContext) -> u32 {
    let task = task();
    // SAFETY: the value is copied at once.
    let Some(fd) = unsafe { CONNECTING.get(task) }.copied() else {
        return 0;
    };
    let _ = CONNECTING.remove(task);
    // SAFETY: a syscall exit record has its return value at offset 16.
    let result = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if result == 0 {
        reached(fd & u64::from(u32::MAX));
    }
    0
}

/// The other end has the path of the one that listens.
#[inline(always)]
fn reached(fd: u64) {
    if [F::UnixPeer, F::UnixMnt, F::UnixDentry]
        .into_iter()
        .any(|part| offset(part) == u64::from(ABSENT))
    {
        return;
    }
    let socket: u64 = field(file_of(fd, Hooked::Tracing), F::FilePrivate);
    let sock: u64 = field(socket, F::SocketSk);
    if field::<u16>(sock, F::SockFamily) != AF_UNIX {
        return;
    }
    let peer: u64 = field(sock, F::UnixPeer);
    let dentry: u64 = field(peer, F::UnixDentry);
    if dentry == 0 {
        return;
    }
    let inode: u64 = field(dentry, F::DentryInode);
    let file = OpenFile {
        mode: FMODE_READ,
        inode,
        mount: field(peer, F::UnixMnt),
        dentry,
    };
    look_at::<Copied>(&file, field(inode, F::InodeIno), CONNECTED);
}
