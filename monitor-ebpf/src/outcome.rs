//! What became of a TCP connect.

use crate::{
    kernel::{field, now},
    maps::{CREDENTIAL_RING, send},
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use monitor_common::{
    fields::F,
    record::{Probe, Refused, kind},
};

const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Hook: raw tracepoint `inet_sock_set_state(sk, old, new)`. First kernel: 4.16.
/// It tells of connects that came to nothing, so that nobody is said to have been where he was
/// refused. Missed: a refusal before the socket has a cookie, which the connect probe gives it.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn connect_outcome(ctx: RawTracePointContext) -> i32 {
    let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    if old == TCP_SYN_SENT && new == TCP_CLOSE {
        refused(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn refused(sock: u64) {
    let family: u16 = field(sock, F::SockFamily);
    let cookie: u64 = field(sock, F::SockCookie);
    if (family != AF_INET && family != AF_INET6) || cookie == 0 {
        return;
    }
    let record = Refused {
        kind: kind::REFUSED,
        reserved: 0,
        time: now(),
        cookie,
    };
    // SAFETY: a plain record on the stack.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Connect,
            0,
            core::ptr::from_ref(&record).cast(),
            size_of::<Refused>() as u64,
        );
    }
}
