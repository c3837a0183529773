//! The first payload of a TCP connection: a ClientHello, or evidence that there will be none.

use crate::{
    net::{
        owner::socket_owner,
        plaintext::{front_word, may_hold_credential},
        socket::{self, expected_of},
        tcp::TcpPacket,
    },
    support::{
        kernel::{boot_time_ns, bound_length},
        maps::{count, count_run, count_unsearched},
        ring::Ring,
        task::HookContext,
    },
    tls::{expected::expect_response, pending::PendingWrite},
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::ProgramArray,
    programs::SkBuffContext,
};
use monitor_common::{
    map::{ExpectedResponse, TlsWrite},
    record::{ASKS_FOR_TUNNEL, PAYLOAD_MAX, PayloadRecord, Probe, RunCounter, Stage, kind},
    scan,
};

#[repr(C)]
struct PayloadRecordSlot<const N: usize> {
    record: PayloadRecord,
    bytes: [u8; N],
}

/// Ring space for a ClientHello without a post-quantum key share.
const SMALL_HELLO: usize = 1024;

/// Hook: `cgroup_skb/egress` at the cgroup v2 root. First kernel: 4.10. It runs before
/// segmentation, so a ClientHello of several segments arrives as one packet; one that is split over
/// several writes arrives as several, and the agent assembles them. Missed: IPv6 with extension
/// headers, QUIC. Never drops packets.
#[cgroup_skb(egress)]
pub fn hello_egress(ctx: SkBuffContext) -> i32 {
    count_run(RunCounter::Egress);
    tie_write_to_socket(&ctx);
    inspect_egress(&ctx);
    1
}

/// Associates a TLS write with its socket: a packet that leaves while the current task passes a
/// credential to its TLS library carries it if it is a TLS record of matching length. Missed: data
/// that leaves later, because the send queue is full or the program buffers it.
#[inline(always)]
fn tie_write_to_socket(ctx: &SkBuffContext) -> Option<()> {
    if !HookContext::Packet.typed() {
        return None;
    }
    let under_way = PendingWrite::current()?;
    let tcp = TcpPacket::parse(ctx)?;
    if !has_matching_record(ctx, tcp.payload, &under_way.write) {
        return None;
    }
    // SAFETY: the helper accepts any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    expect_response(under_way.write.object, cookie);
    under_way.finish_write(kind::WRITE_SENT, cookie);
    Some(())
}

/// TLS records examined in a packet: the end of a handshake may precede the first data.
const RECORDS_MAX: usize = 4;

/// Whether one of the TLS records at the start of a packet may carry the write.
#[inline(always)]
fn has_matching_record(ctx: &SkBuffContext, mut at: usize, write: &TlsWrite) -> bool {
    for _ in 0..RECORDS_MAX {
        let Ok(record) = ctx.load::<[u8; 5]>(at) else {
            return false;
        };
        if may_hold_write(record, write) {
            return true;
        }
        at += 5 + (usize::from(record[3]) << 8 | usize::from(record[4]));
    }
    false
}

/// Whether a TLS record, judged by its five-byte header, may carry the write.
#[inline(always)]
fn may_hold_write(record: [u8; 5], write: &TlsWrite) -> bool {
    const APPLICATION_DATA: u8 = 23;
    let length = u32::from(record[3]) << 8 | u32::from(record[4]);
    record[0] == APPLICATION_DATA
        && record[1] == 3
        && length >= write.min_len
        && length <= write.max_len
}

#[inline(always)]
fn inspect_egress(ctx: &SkBuffContext) -> Option<()> {
    let expected = expected_of(ctx)?;
    let TcpPacket {
        sequence, payload, ..
    } = TcpPacket::parse(ctx)?;
    let payload_len = ctx.len().checked_sub(payload as u32)?;
    if payload_len == 0 {
        return None;
    }
    if expected.hello_begun == 0 {
        match hello_length(ctx, payload, payload_len) {
            Some(length) if expected.payloads_left > 0 => {
                expected.hello_begun = 1;
                expected.end = sequence.wrapping_add(length);
            }
            _ if is_searched(ctx, payload, expected) => {
                // SAFETY: the program has the same type; the call returns only if the slot is
                // empty.
                unsafe { PLAINTEXT_SEARCH.tail_call(ctx, 0) };
            }
            _ => {}
        }
    }
    expected.payloads_left = expected.payloads_left.saturating_sub(1);
    let first = expected.reported == 0;
    expected.reported = 1;
    let begun = expected.hello_begun != 0;
    let rest = expected.end.wrapping_sub(sequence) as i32;
    if begun && payload_len as i32 >= rest {
        socket::forget(ctx);
    }
    let in_hello = begun && rest > 0;
    if !in_hello && !first {
        return None;
    }
    let (kind, payload_len) = if !in_hello && is_socks_greeting(ctx, payload, payload_len) {
        (kind::HOST, ASKS_FOR_TUNNEL)
    } else {
        (kind::PAYLOAD, payload_len)
    };
    let record = PayloadRecord {
        kind,
        len: 0,
        time: boot_time_ns(),
        // SAFETY: the helper accepts any skb.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        payload_len,
        sequence,
        owner: socket_owner(ctx),
    };
    if in_hello {
        if payload_len <= SMALL_HELLO as u32 {
            copy_payload::<SMALL_HELLO>(ctx, payload as u32, record);
        } else {
            copy_payload::<PAYLOAD_MAX>(ctx, payload as u32, record);
        }
    } else {
        Ring::Credentials.send(Probe::Hello, record.owner, &record);
    }
    Some(())
}

/// Index 0: the program that searches a packet outside TLS.
#[map]
static PLAINTEXT_SEARCH: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Whether a payload is searched: it continues what was searched before, or may hold a credential, judged
/// by its first bytes. Of the requests on a busy connection a part is only counted; protocols whose
/// payloads depend on each other are searched in any case.
#[inline(always)]
fn is_searched(ctx: &SkBuffContext, payload: usize, expected: &mut ExpectedResponse) -> bool {
    if expected.continues != 0 {
        return true;
    }
    let Some(first) = front_word(ctx, payload) else {
        return false;
    };
    if !may_hold_credential(ctx, payload, first) {
        return false;
    }
    let searched = !scan::may_begin_request(first) || expected.is_searched(boot_time_ns());
    if !searched {
        count_unsearched();
    }
    searched
}

/// Whether a first payload asks a SOCKS proxy for a connection. The name of the server follows in the
/// ClientHello.
#[inline(always)]
fn is_socks_greeting(ctx: &SkBuffContext, payload: usize, payload_len: u32) -> bool {
    /// Version, command, port and address.
    const VERSION_4_MIN: u32 = 9;
    /// Version, number of methods, methods.
    const VERSION_5_MAX: u32 = 2 + 8;
    let Ok([version, second]) = ctx.load::<[u8; 2]>(payload) else {
        return false;
    };
    match version {
        4 => second == 1 && payload_len >= VERSION_4_MIN,
        5 => second > 0 && u32::from(second) + 2 == payload_len && payload_len <= VERSION_5_MAX,
        _ => false,
    }
}

/// The length of the TLS record at the start of a payload, if it may be a ClientHello. For a
/// payload too short to tell, the maximum that is assembled.
#[inline(always)]
fn hello_length(ctx: &SkBuffContext, payload: usize, payload_len: u32) -> Option<u32> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    if payload_len >= 6 {
        let bytes: [u8; 6] = ctx.load(payload).ok()?;
        let length = u32::from(bytes[3]) << 8 | u32::from(bytes[4]);
        return (bytes[0] == HANDSHAKE && bytes[1] == 3 && bytes[5] == CLIENT_HELLO)
            .then_some(length + 5);
    }
    let first: u8 = ctx.load(payload).ok()?;
    (first == HANDSHAKE).then_some(PAYLOAD_MAX as u32)
}

/// Copies up to `N` bytes of payload directly into the ring: this program can be preempted, so it
/// cannot use a per-CPU buffer.
#[inline(always)]
fn copy_payload<const N: usize>(ctx: &SkBuffContext, payload: u32, mut record: PayloadRecord) {
    let Some(mut place) =
        Ring::Credentials.reserve::<PayloadRecordSlot<N>>(Probe::Hello, record.owner)
    else {
        return;
    };
    let len = bound_length(record.payload_len, N as u32);
    let hello = place.as_mut_ptr();
    // SAFETY: the ring reserved space for a PayloadRecordSlot<N>, and at most N bytes are loaded.
    let status = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            payload,
            (&raw mut (*hello).bytes).cast(),
            len,
        )
    };
    record.len = if status == 0 { len } else { 0 };
    // SAFETY: as above.
    unsafe { (*hello).record = record };
    place.submit(0);
    count(Probe::Hello, Stage::Sent);
}
