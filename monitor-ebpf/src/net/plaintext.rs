//! Credentials in packets outside TLS.

use crate::{
    net::{owner::socket_owner, socket::expected_of, tcp::TcpPacket},
    support::{
        kernel::{boot_time_ns, bound_length, can_repeat},
        maps::count,
        presentations::is_due,
        ring::Ring,
        search::{
            carried::{AFTER_CARRIED, after_carried, continue_after_carried, restore_carried},
            plaintext_record::{send_plaintext_record, set_plaintext_record},
            search,
            source::{PlaintextSource, begin_search, bounded, end_search, scratch},
            stream::{WriteFormat, expects_more, write_format},
            value::asks_for_tunnel,
            value::emit_values,
        },
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
    http2, login,
    map::{ExpectedResponse, FoundCredential, SearchScratch, StreamKey},
    record::{ASKS_FOR_TUNNEL, PayloadRecord, Probe, Stage, kind},
    response::requests_imds_token,
    scan::{self, CARRIED_MAX, HOST_MAX, WINDOW},
};

/// The first eight bytes of a payload, or the first byte alone if it is shorter.
#[inline(always)]
pub fn front_word(ctx: &SkBuffContext, payload: usize) -> Option<u64> {
    ctx.load(payload)
        .ok()
        .or_else(|| ctx.load::<u8>(payload).ok().map(scan::single_byte_word))
}

/// Whether a payload may begin a request or login that carries a credential.
#[inline(always)]
pub fn may_hold_credential(ctx: &SkBuffContext, payload: usize, first: u64) -> bool {
    if scan::may_begin_request(first) {
        return true;
    }
    can_repeat()
        && (first == http2::PREFACE
            || login::detect_protocol(first, || second_word(ctx, payload)) != 0)
}

#[inline(always)]
fn second_word(ctx: &SkBuffContext, payload: usize) -> u64 {
    ctx.load(payload + 8).unwrap_or(0)
}

/// Hook: tail-called by `hello_egress` for a payload that may hold a credential. First kernel:
/// 5.17, for `bpf_loop`. Fallback: none, a declared gap. Missed: bytes after the first 8 KiB of a
/// packet, connections opened before the agent started, UDP. A retransmitted packet is counted
/// again. Never drops packets.
#[cgroup_skb(egress)]
pub fn clear_egress(ctx: SkBuffContext) -> i32 {
    inspect_payload(&ctx);
    1
}

#[repr(C)]
struct HostRecordSlot {
    record: PayloadRecord,
    name: [u8; HOST_MAX],
}

/// Plaintext in packets that the host sends.
struct SentPlaintext;

impl PlaintextSource for SentPlaintext {
    const SCRATCH: u32 = 1;
    const PROBE: Probe = Probe::Clear;
    const LOOPS: bool = true;

    #[inline(always)]
    fn emit(scratch: &mut SearchScratch, known: &FoundCredential) {
        set_plaintext_record(scratch, known, kind::PLAINTEXT, boot_time_ns());
        if is_due(scratch.object, &mut scratch.clear) {
            send_plaintext_record(scratch);
        }
    }

    /// The server name in a plaintext request is not secret: anyone on the path can read it.
    #[inline(always)]
    fn emit_host(scratch: &mut SearchScratch) {
        // The same as in the last request of the connection.
        if host_of(scratch) == scratch.known_host {
            return;
        }
        let Some(mut place) =
            Ring::Credentials.reserve::<HostRecordSlot>(Probe::Clear, scratch.owner)
        else {
            return;
        };
        let host = place.as_mut_ptr();
        let len = bounded(scratch.host_len) as u32;
        // SAFETY: the ring reserved space for a HostRecordSlot; at most HOST_MAX bytes are read
        // from the text, which is much larger.
        unsafe {
            // The slot holds something else if there is no name.
            if len > 0 {
                bpf_probe_read_kernel(
                    (&raw mut (*host).name).cast(),
                    bound_length(len, HOST_MAX as u32),
                    scratch
                        .text
                        .as_ptr()
                        .add(scratch.secret.at as usize & (HOST_MAX - 1))
                        .cast(),
                );
            }
            (*host).record = PayloadRecord {
                kind: kind::HOST,
                len,
                time: boot_time_ns(),
                cookie: scratch.object.address,
                payload_len: u32::from(asks_for_tunnel(scratch)) * ASKS_FOR_TUNNEL,
                sequence: 0,
                owner: scratch.owner,
            };
        }
        place.submit(0);
        count(Probe::Clear, Stage::Sent);
    }
}

/// The server name of a request, as a connection remembers it.
#[inline(always)]
fn host_of(scratch: &SearchScratch) -> u64 {
    const NAMELESS: u64 = 1;
    if scratch.host == 0 {
        NAMELESS
    } else {
        scratch.host
    }
}

#[inline(always)]
fn inspect_payload(ctx: &SkBuffContext) -> Option<()> {
    let expected = expected_of(ctx)?;
    let tcp = TcpPacket::parse(ctx)?;
    let len = u64::from(ctx.len().checked_sub(tcp.payload as u32)?);
    expected.payloads_left = expected.payloads_left.saturating_sub(1);
    let first_payload = core::mem::replace(&mut expected.reported, 1) == 0;
    // SAFETY: the helper accepts any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let object = StreamKey::of_socket(cookie);
    let read = search_payload(ctx, expected, object, tcp.payload, len);
    expected.continues = u32::from(expects_more(object));
    let PlaintextSearch { found, number } = read?;
    let scratch = scratch::<SentPlaintext>()?;
    if first_payload || found > 0 {
        scratch.known_host = expected.host;
        scratch.clear.to_loopback = u32::from(tcp.to_loopback);
        emit_values::<SentPlaintext>(scratch, found, number);
        expected.host = host_of(scratch);
    }
    end_search::<SentPlaintext>();
    Some(())
}

/// Packets with payload that may arrive before the response with an issued credential.
const RESPONSE_PACKETS: u32 = 8;

/// The result of searching a payload.
struct PlaintextSearch {
    /// Number of values found.
    found: u64,
    /// The owner mark of the search.
    number: u64,
}

/// Index 0: set to 1 after a plaintext request, then incremented by the agent, which resets it to 0
/// when no response can be pending any more.
#[map]
static RESPONSES_PENDING: Array<u64> = Array::with_max_entries(1, 0);

/// Whether any ingress packet may have to be searched.
#[inline(always)]
pub fn may_get_response() -> bool {
    RESPONSES_PENDING.get(0).copied().unwrap_or(0) != 0
}

/// A plaintext request was sent; its response may contain an issued credential.
#[inline(always)]
fn expect_response(expected: &mut ExpectedResponse, scratch: &SearchScratch) {
    if scratch.is_request() {
        expected.responses_left = RESPONSE_PACKETS;
        expected.whole_body = u32::from(is_imds_token_request(scratch));
        let _ = RESPONSES_PENDING.set(0, 1, 0);
    }
}

#[inline(never)]
fn is_imds_token_request(scratch: &SearchScratch) -> bool {
    requests_imds_token(
        scan::word_at(&scratch.window, 0),
        scan::word_at(&scratch.window, 8),
    )
}

/// Copies a payload and searches it.
#[inline(always)]
fn search_payload(
    ctx: &SkBuffContext,
    expected: &mut ExpectedResponse,
    object: StreamKey,
    payload: usize,
    len: u64,
) -> Option<PlaintextSearch> {
    let first = front_word(ctx, payload).unwrap_or(0);
    let second = || second_word(ctx, payload);
    let WriteFormat { format, skip } = write_format::<SentPlaintext>(object, first, len, second)?;
    let scratch = scratch::<SentPlaintext>()?;
    let len = len - skip;
    let number = begin_search(scratch, object, len, format);
    scratch.owner = socket_owner(ctx);
    let before = restore_carried(scratch);
    if before > 0 {
        continue_after_carried(scratch, len);
    }
    let at = (payload as u64 + skip) as u32;
    let loaded = if before > 0 {
        let len = after_carried(len) as u32;
        // SAFETY: at most WINDOW bytes in total.
        unsafe {
            bpf_skb_load_bytes(
                ctx.as_ptr().cast(),
                at,
                scratch
                    .window
                    .as_mut_ptr()
                    .add(before as usize & (CARRIED_MAX - 1))
                    .cast(),
                bound_length(len, AFTER_CARRIED),
            )
        }
    } else {
        // SAFETY: at most WINDOW bytes, and the window has SLACK bytes more.
        unsafe {
            bpf_skb_load_bytes(
                ctx.as_ptr().cast(),
                at,
                scratch.window.as_mut_ptr().cast(),
                bound_length(bounded(len) as u32, WINDOW as u32),
            )
        }
    };
    if loaded != 0 {
        end_search::<SentPlaintext>();
        count(Probe::Clear, Stage::Read);
        return None;
    }
    expect_response(expected, scratch);
    Some(PlaintextSearch {
        found: search::<SentPlaintext>(scratch),
        number,
    })
}
