//! Issued credentials in plaintext responses of authenticators.

use crate::{
    net::{owner::socket_owner, socket::expected_of, tcp::TcpPacket},
    support::{
        kernel::{boot_time_ns, bound_length},
        maps::count,
        search::{
            plaintext_record::{send_plaintext_record, set_plaintext_record},
            response::{fields, take_whole_body},
            source::{PlaintextSource, begin_search, bounded, end_search, scratch},
            value::emit_values,
        },
    },
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    macros::{cgroup_skb, map},
    maps::PerCpuArray,
    programs::SkBuffContext,
};
use monitor_common::{
    map::{ExpectedResponse, FoundCredential, SearchQuota, SearchScratch, StreamKey},
    record::{Probe, Stage, kind},
    scan::WINDOW,
};

/// Packets searched in the current second, on this CPU.
#[map]
static SEARCH_QUOTA: PerCpuArray<SearchQuota> = PerCpuArray::with_max_entries(1, 0);

const SECOND_NS: u64 = 1_000_000_000;
/// Maximum searches per second and CPU: each takes about ten microseconds.
const SEARCHES_PER_SECOND: u64 = 200;

/// Whether this packet is to be searched. A server that sends more plaintext responses than the
/// quota is not an authenticator, or is one that the agent was told about.
#[inline(always)]
pub fn is_within_quota(expected: &ExpectedResponse) -> bool {
    if expected.responses_left == 0 {
        return false;
    }
    if expected.is_authenticator != 0 {
        return true;
    }
    let Some(second) = SEARCH_QUOTA.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the slot belongs to this CPU; a race costs a few searches more or fewer.
    let second = unsafe { &mut *second };
    let time = boot_time_ns();
    if time.wrapping_sub(second.begun) > SECOND_NS {
        second.begun = time;
        second.searched = 0;
    }
    second.searched += 1;
    second.searched <= SEARCHES_PER_SECOND
}

/// Hook: tail-called by `dns_ingress` for the response to a plaintext request. First kernel:
/// 5.17, for `bpf_loop`. Fallback: none, a declared gap. Missed: fields split between two packets,
/// compressed responses, and responses of busy servers beyond the quota. Never drops packets.
#[cgroup_skb(ingress)]
pub fn minted_ingress(ctx: SkBuffContext) -> i32 {
    inspect_response(&ctx);
    1
}

/// Plaintext in packets that the host receives.
struct ReceivedPlaintext;

impl PlaintextSource for ReceivedPlaintext {
    const SCRATCH: u32 = 2;
    const PROBE: Probe = Probe::Clear;
    const LOOPS: bool = true;

    /// All secrets of one response belong together and have the same time.
    #[inline(always)]
    fn emit(scratch: &mut SearchScratch, known: &FoundCredential) {
        let time = scratch.mark;
        set_plaintext_record(scratch, known, kind::ISSUED, time);
        send_plaintext_record(scratch);
    }

    /// A response has no server name.
    #[inline(always)]
    fn emit_host(_: &mut SearchScratch) {}
}

#[inline(always)]
fn inspect_response(ctx: &SkBuffContext) -> Option<()> {
    let expected = expected_of(ctx)?;
    let payload = TcpPacket::parse(ctx)?.payload;
    let len = u64::from(ctx.len().checked_sub(payload as u32)?);
    if len == 0 {
        return None;
    }
    expected.responses_left = expected.responses_left.saturating_sub(1);
    let is_whole = expected.whole_body != 0;
    let scratch = scratch::<ReceivedPlaintext>()?;
    // SAFETY: the helper accepts any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let object = StreamKey::of_socket(cookie);
    let number = begin_search(scratch, object, len, 0);
    scratch.owner = socket_owner(ctx);
    // SAFETY: at most WINDOW bytes, and the window has SLACK bytes more.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            payload as u32,
            scratch.window.as_mut_ptr().cast(),
            bound_length(bounded(len) as u32, WINDOW as u32),
        )
    };
    if loaded != 0 {
        end_search::<ReceivedPlaintext>();
        count(Probe::Clear, Stage::Read);
        return None;
    }
    let found = if is_whole {
        take_whole_body::<ReceivedPlaintext>(scratch)
    } else {
        fields::<ReceivedPlaintext>(scratch)
    };
    if found > 0 {
        expected.whole_body = 0;
        emit_values::<ReceivedPlaintext>(scratch, found, number);
    }
    end_search::<ReceivedPlaintext>();
    Some(())
}
