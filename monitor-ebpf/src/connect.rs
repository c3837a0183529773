//! Connections: TCP connects, and UDP to an address.

use crate::{
    kernel::now,
    maps::{CREDENTIAL_RING, is_agent, send},
    task::{Hooked, fill_header, stream},
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::{HashMap, LruHashMap},
    programs::SockAddrContext,
};
use core::mem::MaybeUninit;
use monitor_common::record::{Connect, Probe, kind};

/// TCP sockets whose payloads are looked at, by cookie: the first ones of all, and those that follow
/// where it is not TLS. An entry that is evicted costs a name, or what is presented in clear, not a
/// connection.
#[map]
pub static AWAITED: LruHashMap<u64, Awaited> = LruHashMap::with_max_entries(16384, 0);

/// What is awaited of a socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Awaited {
    /// Payloads still to be looked at for a ClientHello.
    pub left: u32,
    /// 1 once the agent was told of a payload.
    pub told: u32,
    /// 1 once the first bytes of a ClientHello were sent.
    pub begun: u32,
    /// The sequence number behind it.
    pub end: u32,
    /// 1 where the next payload is searched whatever it begins with.
    pub goes_on: u32,
    /// Packets that come back and are searched for what was minted.
    pub answers: u32,
    /// 1 where the whole answer is a secret.
    pub whole: u32,
    /// 1 where the address is an authenticator's.
    pub mints: u32,
}

/// Addresses of authenticators. Set by the agent.
#[map]
static AUTHENTICATORS: HashMap<[u32; 4], u32> = HashMap::with_max_entries(1024, 0);

/// Where a UDP socket sends again and again, one record in [`UDP_QUIET_NS`] is enough.
#[map]
static DATAGRAMS: LruHashMap<Datagram, u64> = LruHashMap::with_max_entries(4096, 0);

/// Whether a UDP socket has sent to an address and port.
#[inline(always)]
pub fn has_sent(cookie: u64, address: [u32; 4], port: u16) -> bool {
    let datagram = Datagram {
        cookie,
        address,
        port: u64::from(port),
    };
    DATAGRAMS.get_ptr(datagram).is_some()
}

const UDP_QUIET_NS: u64 = 10_000_000_000;

#[derive(Clone, Copy)]
#[repr(C)]
struct Datagram {
    cookie: u64,
    address: [u32; 4],
    port: u64,
}

/// Payloads of a connection that are looked at for a ClientHello: one behind a proxy's CONNECT
/// or a STARTTLS is not the first.
const PAYLOADS: u32 = 8;

const IPPROTO_TCP: u32 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Hook: `cgroup/connect4` at the cgroup v2 root. First kernel: 4.17.
/// TCP fast open passes it too. Missed: connects made in the kernel. Never refuses.
#[cgroup_sock_addr(connect4)]
pub fn connect_v4(ctx: SockAddrContext) -> i32 {
    address_v4(&ctx);
    1
}

/// Hook: `cgroup/connect6`, as [`connect_v4`].
#[cgroup_sock_addr(connect6)]
pub fn connect_v6(ctx: SockAddrContext) -> i32 {
    address_v6(&ctx);
    1
}

/// Hook: `cgroup/sendmsg4`, UDP sends that name an address. First kernel: 4.18.
#[cgroup_sock_addr(sendmsg4)]
pub fn connect_udp_v4(ctx: SockAddrContext) -> i32 {
    address_v4(&ctx);
    1
}

/// Hook: `cgroup/sendmsg6`, as [`connect_udp_v4`].
#[cgroup_sock_addr(sendmsg6)]
pub fn connect_udp_v6(ctx: SockAddrContext) -> i32 {
    address_v6(&ctx);
    1
}

#[inline(always)]
fn address_v4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid for the run of the program; the kernel checks each access.
    let ip = unsafe { (*ctx.sock_addr).user_ip4 };
    connected(ctx, AF_INET, [ip, 0, 0, 0]);
}

#[inline(always)]
fn address_v6(ctx: &SockAddrContext) {
    // SAFETY: as above; read word by word, as the kernel allows no wider load here.
    let ip = unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        [
            core::ptr::read_volatile(&raw const (*words)[0]),
            core::ptr::read_volatile(&raw const (*words)[1]),
            core::ptr::read_volatile(&raw const (*words)[2]),
            core::ptr::read_volatile(&raw const (*words)[3]),
        ]
    };
    connected(ctx, AF_INET6, ip);
}

#[inline(always)]
fn connected(ctx: &SockAddrContext, family: u16, address: [u32; 4]) {
    // SAFETY: as above.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    // SAFETY: the context is a socket's.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let port = u16::from_be(port as u16);
    if protocol == IPPROTO_TCP {
        // A full LRU map makes room by itself.
        let awaited = Awaited {
            left: PAYLOADS,
            told: 0,
            begun: 0,
            end: 0,
            goes_on: 0,
            answers: 0,
            whole: 0,
            mints: u32::from(AUTHENTICATORS.get_ptr(address).is_some()),
        };
        let _ = AWAITED.insert(cookie, awaited, 0);
    } else {
        let datagram = Datagram {
            cookie,
            address,
            port: u64::from(port),
        };
        let time = now();
        // SAFETY: the value is copied at once.
        if let Some(last) = unsafe { DATAGRAMS.get(datagram) }
            && time.wrapping_sub(*last) < UDP_QUIET_NS
        {
            return;
        }
        let _ = DATAGRAMS.insert(datagram, time, 0);
    }
    let mut record = MaybeUninit::<Connect>::uninit();
    // SAFETY: every field is written before it is read, and a Connect has no padding. On the
    // stack, because this program can be preempted and another can run on the same CPU.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::CONNECT, Hooked::Socket);
    if is_agent(record.header.pid) {
        return;
    }
    record.cookie = cookie;
    record.stdin = stream(0, Hooked::Socket);
    record.family = family;
    record.port = port;
    record.protocol = protocol;
    for (place, word) in record.address.chunks_exact_mut(4).zip(address) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    // SAFETY: the record is initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Connect,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<Connect>() as u64,
        );
    }
}
