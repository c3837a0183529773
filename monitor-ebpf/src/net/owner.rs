//! Whose a socket is.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_uid, bpf_skb_cgroup_id},
    programs::SkBuffContext,
};
use monitor_common::record::OwnerFields;

/// Whose a packet's socket is.
#[inline(always)]
pub fn socket_owner(ctx: &SkBuffContext) -> OwnerFields {
    OwnerFields {
        // SAFETY: the helper accepts any skb of a socket.
        cgroup: unsafe { bpf_skb_cgroup_id(ctx.as_ptr().cast()) },
        // SAFETY: as above.
        user: unsafe { bpf_get_socket_uid(ctx.as_ptr().cast()) },
        reserved: 0,
    }
}
