//! Connects: TCP, and UDP sends to an address.

use crate::{
    net::socket,
    support::{
        agent::is_agent,
        kernel::boot_time_ns,
        maps::insert_counted,
        ring::Ring,
        task::{HookContext, current_owner, fill_header, standard_stream},
    },
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::{cgroup_sock_addr, map},
    maps::{HashMap, LruHashMap},
    programs::SockAddrContext,
};
use core::mem::MaybeUninit;
use monitor_common::{
    map::{EvictingMap, ExpectedResponse, PeerAddress, UdpPeer},
    record::{ConnectRecord, OwnerFields, Probe, kind},
};

/// Who connects, by cookie, until the outcome of the connect is known. Of an evicted entry a refusal
/// is reported as of an unknown owner.
#[map]
pub static CONNECTING: LruHashMap<u64, OwnerFields> =
    LruHashMap::with_max_entries(EvictingMap::Connecting.capacity(1), 0);

/// Addresses of authenticators, set by the agent.
#[map]
static AUTHENTICATORS: HashMap<PeerAddress, u32> = HashMap::with_max_entries(1024, 0);

/// A UDP socket that sends repeatedly is reported once per [`UDP_QUIET_NS`].
#[map]
static UDP_SENDS: LruHashMap<UdpPeer, u64> =
    LruHashMap::with_max_entries(EvictingMap::UdpSends.capacity(1), 0);

/// Whether a UDP socket has sent to an address and port.
#[inline(always)]
pub fn has_sent(cookie: u64, address: PeerAddress, port: u16) -> bool {
    let datagram = UdpPeer {
        cookie,
        address,
        port: u64::from(port),
    };
    UDP_SENDS.get_ptr(datagram).is_some()
}

const UDP_QUIET_NS: u64 = 10_000_000_000;

/// Payloads of a connection that are checked for a ClientHello: after a proxy's CONNECT or a
/// STARTTLS it is not the first.
const PAYLOADS_MAX: u32 = 8;

const IPPROTO_TCP: u32 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Hook: `cgroup/connect4` at the cgroup v2 root. First kernel: 4.17. TCP fast open passes it too.
/// Missed: connects made inside the kernel. Never rejects a connect.
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
    // SAFETY: the context is valid while the program runs; the kernel checks each access.
    let ip = unsafe { (*ctx.sock_addr).user_ip4 };
    let words = [ip, 0, 0, 0];
    record_connect(ctx, AF_INET, PeerAddress { words });
}

#[inline(always)]
fn address_v6(ctx: &SockAddrContext) {
    // SAFETY: as above; read word by word, because the kernel rejects wider loads here.
    let words = unsafe {
        let ip = &raw const (*ctx.sock_addr).user_ip6;
        [
            core::ptr::read_volatile(&raw const (*ip)[0]),
            core::ptr::read_volatile(&raw const (*ip)[1]),
            core::ptr::read_volatile(&raw const (*ip)[2]),
            core::ptr::read_volatile(&raw const (*ip)[3]),
        ]
    };
    record_connect(ctx, AF_INET6, PeerAddress { words });
}

#[inline(always)]
fn record_connect(ctx: &SockAddrContext, family: u16, address: PeerAddress) {
    // SAFETY: as above.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    // SAFETY: the context belongs to a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let port = u16::from_be(port as u16);
    if protocol == IPPROTO_TCP {
        let expected = ExpectedResponse {
            payloads_left: PAYLOADS_MAX,
            is_authenticator: u32::from(AUTHENTICATORS.get_ptr(address).is_some()),
            ..ExpectedResponse::NONE
        };
        socket::expect(ctx, expected);
        let owner = current_owner();
        insert_counted(&CONNECTING, EvictingMap::Connecting, cookie, &owner);
    } else {
        let datagram = UdpPeer {
            cookie,
            address,
            port: u64::from(port),
        };
        let time = boot_time_ns();
        // SAFETY: the value is copied at once.
        if let Some(last) = unsafe { UDP_SENDS.get(datagram) }
            && time.wrapping_sub(*last) < UDP_QUIET_NS
        {
            return;
        }
        insert_counted(&UDP_SENDS, EvictingMap::UdpSends, datagram, &time);
    }
    let mut record = MaybeUninit::<ConnectRecord>::uninit();
    // SAFETY: every field is written before it is read, and a ConnectRecord has no padding. It is
    // on the stack, because this program can be preempted by another on the same CPU.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::CONNECT, HookContext::Socket);
    if is_agent(record.header.pid, HookContext::Socket) {
        return;
    }
    record.cookie = cookie;
    // SAFETY: the context belongs to a socket. The helper is there since Linux 5.7.
    record.network = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    record.stdin = standard_stream(0, HookContext::Socket);
    record.family = family;
    record.port = port;
    record.protocol = protocol;
    for (place, word) in record.address.chunks_exact_mut(4).zip(address.words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Ring::Credentials.send(Probe::Connect, record.header.owner(), record);
}
