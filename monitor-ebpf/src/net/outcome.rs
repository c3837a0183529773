//! The outcome of a TCP connect.

use crate::{
    net::connect::CONNECTING,
    support::{
        kernel::{boot_time_ns, field},
        maps::remove_counted,
        ring::Ring,
    },
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use monitor_common::{
    fields::FieldId,
    map::EvictingMap,
    record::{OwnerFields, Probe, RefusedRecord, kind},
};

const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Hook: raw tracepoint `inet_sock_set_state(sk, old, new)`. First kernel: 4.16. It reports
/// connects that failed, so that no process is reported at a destination that refused it. Missed: a
/// refusal before the connect probe has given the socket its cookie.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn connect_outcome(ctx: RawTracePointContext) -> i32 {
    let (old, new): (u32, u32) = (ctx.arg(1), ctx.arg(2));
    if old == TCP_SYN_SENT {
        end_connect(ctx.arg(0), new);
    }
    0
}

#[inline(always)]
fn end_connect(sock: u64, state: u32) {
    let family: u16 = field(sock, FieldId::SockFamily);
    let cookie: u64 = field(sock, FieldId::SockCookie);
    if (family != AF_INET && family != AF_INET6) || cookie == 0 {
        return;
    }
    // Two statements, because old verifiers do not follow what an option holds.
    let mut owner = OwnerFields::UNKNOWN;
    // SAFETY: the value is copied at once.
    if let Some(known) = unsafe { CONNECTING.get(cookie) } {
        owner = *known;
    }
    remove_counted(&CONNECTING, EvictingMap::Connecting, cookie);
    if state != TCP_CLOSE {
        return;
    }
    let record = RefusedRecord {
        kind: kind::REFUSED,
        reserved: 0,
        time: boot_time_ns(),
        cookie,
        owner,
    };
    Ring::Credentials.send(Probe::Connect, owner, &record);
}
