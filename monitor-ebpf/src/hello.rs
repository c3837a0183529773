//! The first payload of a TCP connection: a ClientHello, or the sign that there will be none.

use crate::{
    clear::{begins, front},
    connect::{AWAITED, Awaited},
    kernel::{bounded, now},
    maps::{CREDENTIAL_RING, count, lost, send},
    present::{UnderWay, Write},
    returned::expect_answer,
    task::Hooked,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::ProgramArray,
    programs::SkBuffContext,
};
use monitor_common::record::{PAYLOAD_MAX, Payload, Probe, Stage, kind};

#[repr(C)]
struct Hello<const N: usize> {
    record: Payload,
    bytes: [u8; N],
}

pub const TCP: u8 = 6;
/// Room for the ClientHello of a client without a post-quantum key share.
const SHORT: usize = 1024;

/// Hook: `cgroup_skb/egress` at the cgroup v2 root. First kernel: 4.10.
/// It runs before segmentation, so a ClientHello of several segments comes as one packet; one
/// that is cut over several writes comes as several, and is put together by the agent.
/// Missed: IPv6 with extension headers, QUIC. Never drops.
#[cgroup_skb(egress)]
pub fn hello_egress(ctx: SkBuffContext) -> i32 {
    tie(&ctx);
    look(&ctx);
    1
}

/// A packet that leaves while the current task hands a credential to its TLS library carries it,
/// where it is a TLS record of that length. Missed: what leaves later, as the send queue is full,
/// or from a buffer of the program's own.
#[inline(always)]
fn tie(ctx: &SkBuffContext) -> Option<()> {
    if !Hooked::Packet.typed() {
        return None;
    }
    let under_way = UnderWay::now()?;
    let tcp = Tcp::of(ctx)?;
    if !carries(ctx, tcp.payload, &under_way.write) {
        return None;
    }
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    expect_answer(under_way.write.object, cookie);
    under_way.end(kind::TIED, cookie, socket_cgroup(ctx));
    Some(())
}

/// What is looked at of a TCP packet.
pub struct Tcp {
    pub sequence: u32,
    /// Where the payload begins.
    pub payload: usize,
}

impl Tcp {
    #[inline(always)]
    pub fn of(ctx: &SkBuffContext) -> Option<Self> {
        let start: [u8; 20] = ctx.load(0).ok()?;
        let at = match start[0] >> 4 {
            4 if start[9] == TCP => usize::from(start[0] & 15) * 4,
            6 if start[6] == TCP => 40,
            _ => return None,
        };
        let header: [u32; 4] = ctx.load(at).ok()?;
        let words = u32::from_be(header[3]) >> 28;
        Some(Self {
            sequence: u32::from_be(header[1]),
            payload: at + words as usize * 4,
        })
    }
}

/// Records looked at in a packet: the end of a handshake goes before the first data.
const RECORDS: usize = 4;

/// Whether one of the TLS records at the front of a packet may carry a write.
#[inline(always)]
fn carries(ctx: &SkBuffContext, mut at: usize, write: &Write) -> bool {
    for _ in 0..RECORDS {
        let Ok(record) = ctx.load::<[u8; 5]>(at) else {
            return false;
        };
        if may_carry(record, write) {
            return true;
        }
        at += 5 + (usize::from(record[3]) << 8 | usize::from(record[4]));
    }
    false
}

/// Whether a TLS record, by its first five bytes, can be the one with a write.
#[inline(always)]
fn may_carry(record: [u8; 5], write: &Write) -> bool {
    const APPLICATION_DATA: u8 = 23;
    let length = u32::from(record[3]) << 8 | u32::from(record[4]);
    record[0] == APPLICATION_DATA && record[1] == 3 && length >= write.least && length <= write.most
}

#[inline(always)]
fn look(ctx: &SkBuffContext) -> Option<()> {
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let awaited = AWAITED.get_ptr_mut(cookie)?;
    let Tcp { sequence, payload } = Tcp::of(ctx)?;
    let payload_len = ctx.len().checked_sub(payload as u32)?;
    if payload_len == 0 {
        return None;
    }
    // SAFETY: the pointer is into the map; one socket sends one packet at a time, and a lost
    // count only looks at one payload more.
    let awaited = unsafe { &mut *awaited };
    if awaited.begun == 0 {
        match hello_length(ctx, payload, payload_len) {
            Some(length) if awaited.left > 0 => {
                awaited.begun = 1;
                awaited.end = sequence.wrapping_add(length);
            }
            _ if may_be_clear(ctx, payload, awaited) => {
                // SAFETY: the program there is of the same kind; it comes back only where there
                // is none.
                unsafe { CLEAR.tail_call(ctx, 0) };
            }
            _ => {}
        }
    }
    let record = Payload {
        kind: kind::PAYLOAD,
        len: 0,
        time: now(),
        cookie,
        payload_len,
        sequence,
    };
    awaited.left = awaited.left.saturating_sub(1);
    let first = awaited.told == 0;
    awaited.told = 1;
    let begun = awaited.begun != 0;
    let rest = awaited.end.wrapping_sub(sequence) as i32;
    if begun && payload_len as i32 >= rest {
        let _ = AWAITED.remove(cookie);
    }
    if begun && rest > 0 {
        if payload_len <= SHORT as u32 {
            take::<SHORT>(ctx, payload as u32, record);
        } else {
            take::<PAYLOAD_MAX>(ctx, payload as u32, record);
        }
    } else if first {
        // SAFETY: a plain record on the stack.
        unsafe {
            send(
                &CREDENTIAL_RING,
                Probe::Hello,
                socket_cgroup(ctx),
                core::ptr::from_ref(&record).cast(),
                size_of::<Payload>() as u64,
            );
        }
    }
    Some(())
}

/// Index 0: the program that searches a packet outside TLS.
#[map]
static CLEAR: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Whether a payload may have a credential in it, by its first bytes.
#[inline(always)]
fn may_be_clear(ctx: &SkBuffContext, payload: usize, awaited: &Awaited) -> bool {
    awaited.goes_on != 0 || front(ctx, payload).is_some_and(|first| begins(ctx, payload, first))
}

/// The control group of the socket: this program may run in another's context.
#[inline(always)]
pub fn socket_cgroup(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes any skb of a socket.
    unsafe { bpf_skb_cgroup_id(ctx.as_ptr().cast()) }
}

/// The length of the TLS record that begins a payload, where it may be a ClientHello. Of a
/// payload too short to tell it is the longest that is put together.
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

/// Takes up to `N` bytes of payload straight into the ring: this program can be preempted, so a
/// per-CPU buffer would not be its own.
#[inline(always)]
fn take<const N: usize>(ctx: &SkBuffContext, payload: u32, mut record: Payload) {
    let Some(mut place) = CREDENTIAL_RING.reserve::<Hello<N>>(0) else {
        lost(Probe::Hello, socket_cgroup(ctx));
        return;
    };
    let len = bounded(record.payload_len, N as u32);
    let hello = place.as_mut_ptr();
    // SAFETY: the ring gave room for a Hello<N>, and at most N bytes are loaded.
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
