//! The last line: packets of a session's sockets, in both directions, stop when the session is over, whatever was
//! connected before and whether or not the agent lives.

use aya_ebpf::{EbpfContext as _, helpers::bpf_skb_ancestor_cgroup_id, macros::cgroup_skb, programs::SkBuffContext};
use tipstaff_common::session::MODE_OBSERVE;

use crate::{
    kernel,
    session::{self, Phase},
    verdict::CANARY,
};

const DROP: i32 = 0;
const PASS: i32 = 1;

/// HOOK: `cgroup_skb/egress(struct __sk_buff *)`, since 4.10; on 6.1 only where the packet's socket is the sender's.
#[cgroup_skb]
pub fn egress(context: SkBuffContext) -> i32 {
    if drop(&context) { DROP } else { PASS }
}

/// HOOK: `cgroup_skb/ingress(struct __sk_buff *)`, since 4.10.
#[cgroup_skb]
pub fn ingress(context: SkBuffContext) -> i32 {
    if drop(&context) { DROP } else { PASS }
}

#[inline(always)]
fn drop(context: &SkBuffContext) -> bool {
    let level = kernel::settings().session_level.cast_signed();
    // SAFETY: the helper takes the context.
    let id = unsafe { bpf_skb_ancestor_cgroup_id(context.as_ptr().cast(), level) };
    match session::of_subtree(id) {
        Ok(None) => false,
        Ok(Some(session)) if session.phase == Phase::Live || session.mode == MODE_OBSERVE => false,
        // as in `settle`
        Ok(Some(session)) if session.slot == CANARY && !kernel::speaks() => false,
        Ok(Some(session)) => {
            session.count_dropped_packet();
            true
        }
        // the socket outlived its session; a confined agent drops nothing that is nobody's
        Err(_) => kernel::settings().confine_cgroup == 0,
    }
}
