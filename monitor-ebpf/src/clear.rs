//! Credentials in packets outside TLS.

use crate::{
    connect::AWAITED,
    hello::Tcp,
    kernel::{bounded as at_least_one, can_repeat, now},
    maps::{CREDENTIAL_RING, count, lost, send},
    search::{
        AFTER_CARRIED, Known, Object, Reading, Scratch, Searcher, after_carried, begin, bounded,
        carried, carry_on, forget, goes_on, reading, scratch, search, tell,
    },
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::Array,
    programs::SkBuffContext,
};
use monitor_common::{
    answer::asks_for_whole,
    http2, login,
    record::{Clear, Payload, Probe, Stage, kind},
    scan::{self, CARRIED_MAX, HOST_MAX, WINDOW},
};

/// The first eight bytes of a payload; of a shorter one, its first byte alone.
#[inline(always)]
pub fn front(ctx: &SkBuffContext, payload: usize) -> Option<u64> {
    ctx.load(payload)
        .ok()
        .or_else(|| ctx.load::<u8>(payload).ok().map(scan::alone))
}

/// Whether a payload may begin something with a credential in it.
#[inline(always)]
pub fn begins(ctx: &SkBuffContext, payload: usize, first: u64) -> bool {
    if scan::may_begin_request(first) {
        return true;
    }
    can_repeat() && (first == http2::PREFACE || login::begins(first, || second(ctx, payload)) != 0)
}

#[inline(always)]
fn second(ctx: &SkBuffContext, payload: usize) -> u64 {
    ctx.load(payload + 8).unwrap_or(0)
}

/// Hook: called by `hello_egress` for a payload that may have a credential in it. First kernel: 5.17,
/// for `bpf_loop`. Fallback: none, a declared gap. Missed: what is behind the first 8 KiB of a packet, connections
/// that began before the agent, UDP. A packet that is sent again counts again. Never drops.
#[cgroup_skb(egress)]
pub fn clear_egress(ctx: SkBuffContext) -> i32 {
    look(&ctx);
    1
}

/// Sends a credential that was found in a packet.
#[inline(always)]
pub fn tell_clear(scratch: &mut Scratch, known: &Known, kind: u32, time: u64) {
    let shown = known.shown(scratch.host);
    let record = &mut scratch.clear;
    record.kind = kind;
    record.reserved = 0;
    record.time = time;
    record.cookie = scratch.object.address;
    record.shown = shown;
    // SAFETY: the record is inside the scratch and initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::Clear,
            0,
            core::ptr::from_ref(record).cast(),
            size_of::<Clear>() as u64,
        );
    }
}

#[repr(C)]
struct Host {
    record: Payload,
    name: [u8; HOST_MAX],
}

/// What packets carry.
struct Sent;

impl Searcher for Sent {
    const SCRATCH: u32 = 1;
    const PROBE: Probe = Probe::Clear;
    const LOOPS: bool = true;

    #[inline(always)]
    fn show(scratch: &mut Scratch, known: &Known) {
        tell_clear(scratch, known, kind::CLEAR, now());
    }

    /// The server's name is no secret here: anybody on the way can read it.
    #[inline(always)]
    fn show_host(scratch: &mut Scratch) {
        let Some(mut place) = CREDENTIAL_RING.reserve::<Host>(0) else {
            lost(Probe::Clear, 0);
            return;
        };
        let host = place.as_mut_ptr();
        let len = bounded(scratch.host_len) as u32;
        // SAFETY: the ring gave room for a Host; at most HOST_MAX bytes are read from the text,
        // which has many more behind the place.
        unsafe {
            // Where there is no name, something else is there.
            if len > 0 {
                bpf_probe_read_kernel(
                    (&raw mut (*host).name).cast(),
                    at_least_one(len, HOST_MAX as u32),
                    scratch
                        .text
                        .as_ptr()
                        .add(scratch.secret.at as usize & (HOST_MAX - 1))
                        .cast(),
                );
            }
            (*host).record = Payload {
                kind: kind::HOST,
                len,
                time: now(),
                cookie: scratch.object.address,
                payload_len: 0,
                sequence: 0,
            };
        }
        place.submit(0);
        count(Probe::Clear, Stage::Sent);
    }
}

#[inline(always)]
fn look(ctx: &SkBuffContext) -> Option<()> {
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let awaited = AWAITED.get_ptr_mut(cookie)?;
    let tcp = Tcp::of(ctx)?;
    let len = u64::from(ctx.len().checked_sub(tcp.payload as u32)?);
    // SAFETY: the pointer is into the map; one socket sends one packet at a time.
    let first_payload = unsafe {
        (*awaited).left = (*awaited).left.saturating_sub(1);
        core::mem::replace(&mut (*awaited).told, 1) == 0
    };
    let object = Object::of_socket(cookie);
    let read = read(ctx, object, tcp.payload, len);
    // SAFETY: as above.
    unsafe { (*awaited).goes_on = u32::from(goes_on(object)) };
    let Found { found, number } = read?;
    let scratch = scratch::<Sent>()?;
    if first_payload || found > 0 {
        tell::<Sent>(scratch, found, number);
    }
    forget::<Sent>();
    Some(())
}

/// Packets with payload that may come back before what was minted.
const ANSWERS: u32 = 8;

/// What a payload is, and holds.
struct Found {
    /// How many values.
    found: u64,
    /// The mark of the search.
    number: u64,
}

/// Index 0: 1 after a request in clear, and then counted up by the agent, which sets it to 0 when
/// nobody can wait for an answer any more.
#[map]
static ANSWERED: Array<u64> = Array::with_max_entries(1, 0);

/// Whether any packet that comes back may have to be searched.
#[inline(always)]
pub fn may_be_answered() -> bool {
    ANSWERED.get(0).copied().unwrap_or(0) != 0
}

/// A request in clear may be answered with something that was minted.
#[inline(never)]
fn expect_answer(scratch: &Scratch, cookie: u64) {
    if scratch.is_request()
        && let Some(awaited) = AWAITED.get_ptr_mut(cookie)
    {
        // SAFETY: the pointer is into the map; one socket sends one packet at a time.
        unsafe {
            (*awaited).answers = ANSWERS;
            (*awaited).whole = u32::from(asks_for_whole(
                scan::word(&scratch.window, 0),
                scan::word(&scratch.window, 8),
            ));
        }
        let _ = ANSWERED.set(0, 1, 0);
    }
}

/// Copies a payload and searches it.
#[inline(always)]
fn read(ctx: &SkBuffContext, object: Object, payload: usize, len: u64) -> Option<Found> {
    let first = front(ctx, payload).unwrap_or(0);
    let second = || second(ctx, payload);
    let Reading { speaks, skip } = reading::<Sent>(object, first, len, second)?;
    let scratch = scratch::<Sent>()?;
    let len = len - skip;
    let number = begin(scratch, object, len, speaks);
    let before = carried(scratch);
    if before > 0 {
        carry_on(scratch, len);
    }
    let at = (payload as u64 + skip) as u32;
    let loaded = if before > 0 {
        let len = after_carried(len) as u32;
        // SAFETY: at most WINDOW bytes in all.
        unsafe {
            bpf_skb_load_bytes(
                ctx.as_ptr().cast(),
                at,
                scratch
                    .window
                    .as_mut_ptr()
                    .add(before as usize & (CARRIED_MAX - 1))
                    .cast(),
                at_least_one(len, AFTER_CARRIED),
            )
        }
    } else {
        // SAFETY: at most WINDOW bytes, and the window has SLACK more.
        unsafe {
            bpf_skb_load_bytes(
                ctx.as_ptr().cast(),
                at,
                scratch.window.as_mut_ptr().cast(),
                at_least_one(bounded(len) as u32, WINDOW as u32),
            )
        }
    };
    if loaded != 0 {
        forget::<Sent>();
        count(Probe::Clear, Stage::Read);
        return None;
    }
    expect_answer(scratch, object.address);
    Some(Found {
        found: search::<Sent>(scratch),
        number,
    })
}
