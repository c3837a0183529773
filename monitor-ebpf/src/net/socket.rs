//! What is expected from each connection, kept in its socket: a packet of a connection that is no
//! longer examined, or never was, costs one load.

use crate::support::maps::count_full;
use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
    programs::{SkBuffContext, SockAddrContext},
};
use core::ffi::c_void;
use monitor_common::map::{ExpectedResponse, LimitedMap};

/// Of connections that are examined: the first payloads of every one that the host opens, and later
/// ones if it is not TLS. The kernel removes a value with its socket.
#[btf_map]
static SOCKETS: SkStorage<ExpectedResponse> = SkStorage::new();

/// The type of the library takes the socket of one kind of context only.
#[inline(always)]
fn map() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

/// The socket of a packet.
#[inline(always)]
fn socket_of(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid while the program runs; the kernel checks the access.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    (!socket.is_null()).then_some(socket)
}

/// What is expected from the connection of a packet, if it is examined.
#[inline(always)]
pub fn expected_of(ctx: &SkBuffContext) -> Option<&'static mut ExpectedResponse> {
    let socket = socket_of(ctx)?;
    // SAFETY: the helper checks the socket. The value lives as long as the program runs; programs on
    // several CPUs may see the packets of one socket, and a lost count only means that one more
    // payload is examined.
    unsafe {
        bpf_sk_storage_get(map(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<ExpectedResponse>()
            .as_mut()
    }
}

/// Begins to examine a connection.
#[inline(always)]
pub fn expect(ctx: &SockAddrContext, mut expected: ExpectedResponse) {
    // SAFETY: as above; the helper copies the value into a new entry.
    let place = unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        bpf_sk_storage_get(
            map(),
            socket.cast(),
            (&raw mut expected).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast::<ExpectedResponse>()
        .as_mut()
    };
    match place {
        // A socket may be connected again.
        Some(place) => *place = expected,
        None => count_full(LimitedMap::Sockets),
    }
}

/// Stops examining the connection of a packet.
#[inline(always)]
pub fn forget(ctx: &SkBuffContext) {
    if let Some(socket) = socket_of(ctx) {
        // SAFETY: the helper checks the socket.
        unsafe { bpf_sk_storage_delete(map(), socket.cast()) };
    }
}
