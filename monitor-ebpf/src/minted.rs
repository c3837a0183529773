//! Credentials that come back in clear: the answers of authenticators.

use crate::{
    clear::tell_clear,
    connect::{AWAITED, Awaited},
    hello::Tcp,
    kernel::{bounded as at_least_one, now},
    maps::count,
    search::{
        Known, Object, Scratch, Searcher, begin, bounded, fields, forget, scratch, tell, whole,
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
    record::{Probe, Stage, kind},
    scan::WINDOW,
};

/// Packets of one second, on this CPU, that came from nobody who is known to mint.
#[repr(C)]
struct Second {
    begun: u64,
    searched: u64,
}

#[map]
static SECOND: PerCpuArray<Second> = PerCpuArray::with_max_entries(1, 0);

const SECOND_NS: u64 = 1_000_000_000;
/// So many of them are searched in a second: a search takes some ten microseconds.
const OF_ONE_SECOND: u64 = 200;

/// Whether a packet is one of those that are searched. A server that answers more requests in clear
/// than there is time for is no authenticator, or is one that the agent was told of.
#[inline(always)]
pub fn is_searched(awaited: &Awaited) -> bool {
    if awaited.answers == 0 {
        return false;
    }
    if awaited.mints != 0 {
        return true;
    }
    let Some(second) = SECOND.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the slot is this CPU's own; a race costs a few more or fewer.
    let second = unsafe { &mut *second };
    let time = now();
    if time.wrapping_sub(second.begun) > SECOND_NS {
        second.begun = time;
        second.searched = 0;
    }
    second.searched += 1;
    second.searched <= OF_ONE_SECOND
}

/// Hook: called by `answer_ingress` for what comes back after a request in clear. First kernel: 5.17,
/// which has `bpf_loop`. Fallback: none, a declared gap. Missed: fields that are cut between two
/// packets, answers that are compressed, and those of servers with many. Never drops.
#[cgroup_skb(ingress)]
pub fn minted_ingress(ctx: SkBuffContext) -> i32 {
    look(&ctx);
    1
}

/// What packets bring.
struct Received;

impl Searcher for Received {
    const SCRATCH: u32 = 2;
    const PROBE: Probe = Probe::Clear;
    const LOOPS: bool = true;

    /// What is in one answer belongs together, and has one time.
    #[inline(always)]
    fn show(scratch: &mut Scratch, known: &Known) {
        let time = scratch.mark;
        tell_clear(scratch, known, kind::MINTED, time);
    }

    /// An answer has none.
    #[inline(always)]
    fn show_host(_: &mut Scratch) {}
}

#[inline(always)]
fn look(ctx: &SkBuffContext) -> Option<()> {
    // SAFETY: the helper takes any skb.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let awaited = AWAITED.get_ptr_mut(cookie)?;
    let payload = Tcp::of(ctx)?.payload;
    let len = u64::from(ctx.len().checked_sub(payload as u32)?);
    if len == 0 {
        return None;
    }
    // SAFETY: the pointer is into the map; a lost count only looks at one packet more.
    let is_whole = unsafe {
        (*awaited).answers = (*awaited).answers.saturating_sub(1);
        (*awaited).whole != 0
    };
    let scratch = scratch::<Received>()?;
    let object = Object::of_socket(cookie);
    let number = begin(scratch, object, len, 0);
    // SAFETY: at most WINDOW bytes, and the window has SLACK more.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            payload as u32,
            scratch.window.as_mut_ptr().cast(),
            at_least_one(bounded(len) as u32, WINDOW as u32),
        )
    };
    if loaded != 0 {
        forget::<Received>();
        count(Probe::Clear, Stage::Read);
        return None;
    }
    let found = if is_whole {
        whole::<Received>(scratch)
    } else {
        fields::<Received>(scratch)
    };
    if found > 0 {
        // SAFETY: as above.
        unsafe { (*awaited).whole = 0 };
        tell::<Received>(scratch, found, number);
    }
    forget::<Received>();
    Some(())
}
