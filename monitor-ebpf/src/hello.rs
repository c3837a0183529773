//! The first payload of a TCP connection: a ClientHello, or the sign that there will be none.

use crate::{
    connect::AWAITED,
    kernel::{bounded, now},
    maps::{CREDENTIAL_RING, count, send},
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use monitor_common::record::{PAYLOAD_MAX, Payload, Probe, Stage, kind};

#[repr(C)]
struct Hello<const N: usize> {
    record: Payload,
    bytes: [u8; N],
}

const TCP: u8 = 6;
/// Room for the ClientHello of a client without a post-quantum key share.
const SHORT: usize = 1024;

/// Hook: `cgroup_skb/egress` at the cgroup v2 root. First kernel: 4.10.
/// It runs before segmentation, so a ClientHello of several segments comes as one packet.
/// Missed: a ClientHello cut over several writes, IPv6 with extension headers, QUIC. Never drops.
#[cgroup_skb(egress)]
pub fn hello_egress(ctx: SkBuffContext) -> i32 {
    look(&ctx);
    1
}

#[inline(always)]
fn look(ctx: &SkBuffContext) -> Option<()> {
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let left = AWAITED.get_ptr_mut(cookie)?;
    let start: [u8; 20] = ctx.load(0).ok()?;
    let tcp = match start[0] >> 4 {
        4 if start[9] == TCP => usize::from(start[0] & 15) * 4,
        6 if start[6] == TCP => 40,
        _ => return None,
    };
    let data_offset: u8 = ctx.load(tcp + 12).ok()?;
    let payload = tcp + usize::from(data_offset >> 4) * 4;
    let payload_len = ctx.len().checked_sub(payload as u32)?;
    if payload_len == 0 {
        return None;
    }
    let is_hello = payload_len > 6
        && ctx
            .load::<[u8; 6]>(payload)
            .is_ok_and(|bytes| bytes[0] == 22 && bytes[1] == 3 && bytes[5] == 1);
    // SAFETY: the pointer is into the map; a lost count only looks at one payload more.
    let first = unsafe {
        let first = (*left & FIRST_SEEN) == 0;
        let remaining = (*left & !FIRST_SEEN).wrapping_sub(1);
        *left = remaining | FIRST_SEEN;
        if is_hello || remaining == 0 {
            let _ = AWAITED.remove(cookie);
        }
        first
    };
    if !is_hello && !first {
        return None;
    }
    let record = Payload {
        kind: kind::PAYLOAD,
        len: 0,
        time: now(),
        cookie,
        payload_len,
        reserved: 0,
    };
    if !is_hello {
        // SAFETY: a plain record on the stack.
        unsafe {
            send(
                &CREDENTIAL_RING,
                Probe::Hello,
                core::ptr::from_ref(&record).cast(),
                size_of::<Payload>() as u64,
            );
        }
    } else if payload_len <= SHORT as u32 {
        take::<SHORT>(ctx, payload as u32, record);
    } else {
        take::<PAYLOAD_MAX>(ctx, payload as u32, record);
    }
    Some(())
}

/// Takes up to `N` bytes of payload straight into the ring: this program can be preempted, so a
/// per-CPU buffer would not be its own.
#[inline(always)]
fn take<const N: usize>(ctx: &SkBuffContext, payload: u32, mut record: Payload) {
    let Some(mut place) = CREDENTIAL_RING.reserve::<Hello<N>>(0) else {
        count(Probe::Hello, Stage::Ring);
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

/// Set in a count of [`AWAITED`] once the first payload was reported.
const FIRST_SEEN: u32 = 1 << 31;
