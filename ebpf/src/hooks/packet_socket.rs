//! What a packet's socket says of itself.

use aya_ebpf::{bindings::bpf_sock, helpers::bpf_sk_fullsock, programs::SkBuffContext};
use tipstaff_common::socket::SOCKET_OF_CLASS;

use super::class;
use crate::{
    headers::Packet,
    kernel::{self, INET, INET6},
    rules::Target,
};

/// `BPF_TCP_LISTEN`
const LISTEN: u32 = 10;

/// The socket; null: the packet has none.
#[inline(always)]
pub fn pointer(context: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the field's own width.
    unsafe { core::ptr::read_volatile(&raw const (*context.skb.skb).__bindgen_anon_2.sk) }
}

/// Type and protocol of the packet's socket; zeros where there is no full one.
#[inline(always)]
pub fn kind(context: &SkBuffContext) -> (u32, u32) {
    let pointer = pointer(context);
    if pointer.is_null() {
        return (0, 0);
    }
    // SAFETY: the helper takes what the verifier knows as a socket; null where it is no full one.
    let full = unsafe { bpf_sk_fullsock(pointer) };
    if full.is_null() {
        return (0, 0);
    }
    // SAFETY: not null. VERIFIER: as in [`pointer`].
    unsafe {
        (core::ptr::read_volatile(&raw const (*full).type_), core::ptr::read_volatile(&raw const (*full).protocol))
    }
}

/// The flag for a socket that was accepted by SCTP or DCCP. Those that the kernel makes for a namespace are bound to no port: they
/// tell others that nobody is there, whatever members may make.
#[inline(always)]
pub fn of_class(context: &SkBuffContext) -> u32 {
    let pointer = pointer(context);
    if pointer.is_null() {
        return 0;
    }
    // SAFETY: not null. VERIFIER: as in [`pointer`].
    if unsafe { core::ptr::read_volatile(&raw const (*pointer).src_port) } == 0 {
        return 0;
    }
    match kind(context) {
        (class::STREAM | class::SEQUENCED | class::DCCP_TYPE, class::SCTP | class::DCCP) => SOCKET_OF_CLASS,
        _ => 0,
    }
}

/// Whether the packet's socket listens.
#[inline(always)]
pub fn listens(context: &SkBuffContext) -> bool {
    let pointer = pointer(context);
    if pointer.is_null() {
        return false;
    }
    // SAFETY: not null. VERIFIER: as in [`pointer`].
    unsafe { core::ptr::read_volatile(&raw const (*pointer).state) == LISTEN }
}

/// What the packet's socket is bound to, as `bind` and `listen` are judged: all addresses are one of their own.
#[inline(always)]
pub fn place(context: &SkBuffContext, packet: &Packet) -> Target {
    let mut own = packet.destination();
    let pointer = pointer(context);
    if pointer.is_null() {
        return own;
    }
    // SAFETY: not null. VERIFIER: as in [`pointer`].
    let (family, four, six) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*pointer).family),
            core::ptr::read_volatile(&raw const (*pointer).src_ip4),
            core::ptr::read_volatile(&raw const (*pointer).src_ip6[0])
                | core::ptr::read_volatile(&raw const (*pointer).src_ip6[1])
                | core::ptr::read_volatile(&raw const (*pointer).src_ip6[2])
                | core::ptr::read_volatile(&raw const (*pointer).src_ip6[3]),
        )
    };
    if family == u32::from(INET6) && six == 0 {
        own.address = [0; 16];
    } else if family == u32::from(INET) && four == 0 {
        own.address = kernel::mapped([0; 4]);
    }
    own
}
