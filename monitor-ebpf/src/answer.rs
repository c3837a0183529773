//! What comes back: answers of name servers, and by another program those of authenticators.

use crate::{
    clear::may_be_answered,
    connect::{AWAITED, has_sent},
    hello::TCP,
    kernel::{bounded, now},
    maps::{PROCESS_RING, count, lost},
    minted::is_searched,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::ProgramArray,
    programs::SkBuffContext,
};
use monitor_common::record::{ANSWER_MAX, Payload, Probe, Stage, kind};

#[repr(C)]
struct Answer<const N: usize> {
    record: Payload,
    bytes: [u8; N],
}

const UDP: u8 = 17;
const NAME_SERVER: u16 = 53;
/// Room for an answer of the old size.
const SHORT: usize = 512;

/// Hook: `cgroup_skb/ingress` at the cgroup v2 root. First kernel: 4.10. Fallback: none, a declared
/// gap. Takes answers that come over UDP from port 53 of a server that the socket has sent to, and hold
/// something. Missed: DNS over TCP, TLS or HTTPS, mDNS, sockets that were connected before the agent
/// started, answers behind IPv6 extension headers. Never drops.
#[cgroup_skb(ingress)]
pub fn answer_ingress(ctx: SkBuffContext) -> i32 {
    look(&ctx);
    1
}

#[inline(always)]
fn look(ctx: &SkBuffContext) -> Option<()> {
    // Most packets are these.
    if is_tcp(ctx) {
        return minted(ctx);
    }
    let start: [u8; 10] = ctx.load(0).ok()?;
    let (protocol, at) = match start[0] >> 4 {
        4 => (start[9], usize::from(start[0] & 15) * 4),
        6 => (start[6], 40),
        _ => return None,
    };
    if protocol == TCP {
        return minted(ctx);
    }
    if protocol != UDP {
        return None;
    }
    // Ports, length and checksum; then number and flags of the message, and how much is in it.
    let head: [u16; 8] = ctx.load(at).ok()?;
    const ANSWER: u16 = 1 << 15;
    let (flags, answers) = (u16::from_be(head[5]), u16::from_be(head[7]));
    if u16::from_be(head[0]) != NAME_SERVER || flags & ANSWER == 0 || answers == 0 {
        return None;
    }
    // Whoever was not asked is not believed.
    let from: [u32; 4] = if start[0] >> 4 == 4 {
        [ctx.load(12).ok()?, 0, 0, 0]
    } else {
        ctx.load(8).ok()?
    };
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if !has_sent(cookie, from, NAME_SERVER) {
        return None;
    }
    let message = at as u32 + 8;
    let len = ctx.len().checked_sub(message)?;
    if len <= SHORT as u32 {
        take::<SHORT>(ctx, message, len);
    } else {
        take::<ANSWER_MAX>(ctx, message, len);
    }
    Some(())
}

/// Whether a packet of IPv4 is TCP's. It is read where it is: a helper costs more than all the rest.
#[inline(always)]
fn is_tcp(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context is valid for the run of the program; the kernel checks each access.
    let (data, end) = unsafe {
        (
            (*ctx.skb.skb).data as usize,
            (*ctx.skb.skb).data_end as usize,
        )
    };
    if data + 20 > end {
        return false;
    }
    let ip = data as *const u8;
    // SAFETY: inside the packet, as the verifier checks.
    unsafe { *ip >> 4 == 4 && *ip.add(9) == TCP }
}

/// Index 0: the program that searches what comes back after a request in clear.
#[map]
static MINTED: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[inline(always)]
fn minted(ctx: &SkBuffContext) -> Option<()> {
    if !may_be_answered() {
        return None;
    }
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: the pointer is into the map.
    let awaited = unsafe { &*AWAITED.get_ptr(cookie)? };
    if is_searched(awaited) {
        // SAFETY: the program there is of the same kind; it comes back only where there is none.
        unsafe { MINTED.tail_call(ctx, 0) };
    }
    None
}

#[inline(always)]
fn take<const N: usize>(ctx: &SkBuffContext, message: u32, len: u32) {
    let Some(mut place) = PROCESS_RING.reserve::<Answer<N>>(0) else {
        lost(Probe::Dns, 0);
        return;
    };
    let taken = bounded(len, N as u32);
    let answer = place.as_mut_ptr();
    // SAFETY: the ring gave room for an Answer<N>, and at most N bytes are loaded.
    let status = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            message,
            (&raw mut (*answer).bytes).cast(),
            taken,
        )
    };
    let record = Payload {
        kind: kind::ANSWER,
        len: if status == 0 { taken } else { 0 },
        time: now(),
        cookie: 0,
        payload_len: len,
        sequence: 0,
    };
    // SAFETY: as above.
    unsafe { (*answer).record = record };
    place.submit(0);
    count(Probe::Dns, Stage::Sent);
}
