//! Ingress packets: DNS responses, and a tail call to the search of authenticators' responses.

use crate::{
    net::{
        connect::has_sent, owner::socket_owner, plaintext::may_get_response,
        response::is_within_quota, socket::expected_of, tcp::TCP,
    },
    support::{
        kernel::{boot_time_ns, bound_length},
        maps::{count, count_run},
        ring::Ring,
    },
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::ProgramArray,
    programs::SkBuffContext,
};
use monitor_common::{
    map::PeerAddress,
    record::{DNS_RESPONSE_MAX, PayloadRecord, Probe, RunCounter, Stage, kind},
};

#[repr(C)]
struct DnsRecordSlot<const N: usize> {
    record: PayloadRecord,
    bytes: [u8; N],
}

const UDP: u8 = 17;
const DNS_PORT: u16 = 53;
/// Ring space for a response of the classic maximum size.
const CLASSIC_MAX: usize = 512;

/// Hook: `cgroup_skb/ingress` at the cgroup v2 root. First kernel: 4.10. Fallback: none, a declared
/// gap. Captures non-empty responses that arrive over UDP from port 53 of a server to which the
/// socket has sent. Missed: DNS over TCP, TLS or HTTPS, mDNS, sockets connected before the agent
/// started, responses behind IPv6 extension headers. Never drops packets.
#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    count_run(RunCounter::Ingress);
    inspect_ingress(&ctx);
    1
}

#[inline(always)]
fn inspect_ingress(ctx: &SkBuffContext) -> Option<()> {
    // Most packets take this path.
    if is_tcp(ctx) {
        return search_response(ctx);
    }
    let start: [u8; 10] = ctx.load(0).ok()?;
    let (protocol, at) = match start[0] >> 4 {
        4 => (start[9], usize::from(start[0] & 15) * 4),
        6 => (start[6], 40),
        _ => return None,
    };
    if protocol == TCP {
        return search_response(ctx);
    }
    if protocol != UDP {
        return None;
    }
    // UDP ports, length and checksum; then the DNS message's id, flags and record counts.
    let head: [u16; 8] = ctx.load(at).ok()?;
    const DNS_RESPONSE_FLAG: u16 = 1 << 15;
    let (flags, answers) = (u16::from_be(head[5]), u16::from_be(head[7]));
    if u16::from_be(head[0]) != DNS_PORT || flags & DNS_RESPONSE_FLAG == 0 || answers == 0 {
        return None;
    }
    // Responses from servers that were not asked are ignored.
    let words: [u32; 4] = if start[0] >> 4 == 4 {
        [ctx.load(12).ok()?, 0, 0, 0]
    } else {
        ctx.load(8).ok()?
    };
    // SAFETY: the helper accepts any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if !has_sent(cookie, PeerAddress { words }, DNS_PORT) {
        return None;
    }
    let message = at as u32 + 8;
    let len = ctx.len().checked_sub(message)?;
    if len <= CLASSIC_MAX as u32 {
        copy_payload::<CLASSIC_MAX>(ctx, cookie, message, len);
    } else {
        copy_payload::<DNS_RESPONSE_MAX>(ctx, cookie, message, len);
    }
    Some(())
}

/// Whether an IPv4 packet carries TCP. Reads the packet directly: a helper call costs more than the
/// rest of the function.
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

/// Index 0: the program that searches the response to a plaintext request.
#[map]
static RESPONSE_SEARCH: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[inline(always)]
fn search_response(ctx: &SkBuffContext) -> Option<()> {
    if !may_get_response() {
        return None;
    }
    if is_within_quota(expected_of(ctx)?) {
        // SAFETY: the program has the same type; the call returns only if the slot is empty.
        unsafe { RESPONSE_SEARCH.tail_call(ctx, 0) };
    }
    None
}

#[inline(always)]
fn copy_payload<const N: usize>(ctx: &SkBuffContext, cookie: u64, message: u32, len: u32) {
    let owner = socket_owner(ctx);
    let Some(mut place) = Ring::Names.reserve::<DnsRecordSlot<N>>(Probe::Dns, owner) else {
        return;
    };
    let taken = bound_length(len, N as u32);
    let answer = place.as_mut_ptr();
    // SAFETY: the ring reserved space for a DnsRecordSlot<N>, and at most N bytes are loaded.
    let status = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            message,
            (&raw mut (*answer).bytes).cast(),
            taken,
        )
    };
    let record = PayloadRecord {
        kind: kind::DNS_RESPONSE,
        len: if status == 0 { taken } else { 0 },
        time: boot_time_ns(),
        cookie,
        payload_len: len,
        sequence: 0,
        owner,
    };
    // SAFETY: as above.
    unsafe { (*answer).record = record };
    place.submit(0);
    count(Probe::Dns, Stage::Sent);
}
