//! Where a member may connect or send without connecting. IPv4 and IPv6 are one path: an IPv4 address is judged as
//! `::ffff:a.b.c.d`, and so is a mapped address that a program gave to an IPv6 socket.
//!
//! These programs sit on Tipstaff's own cgroup and see the sockets that were created below it, TCP Fast Open and
//! io_uring included; they also see what a socket's creator handed to somebody else.

use aya_ebpf::{
    EbpfContext as _, btf_maps::lpm_trie::Key, helpers::bpf_get_socket_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use tipstaff_common::{
    event::{Connect, KIND_CONNECT, VIA_CONNECT, VIA_SEND},
    limits::PORT_RULES,
    rule::{NetEntry, REASON_DEFAULT, REASON_ENDED, REASON_EXPIRED},
    session::PolicyEntry,
};

use crate::{
    emit,
    kernel::{self, Task},
    maps::{NET_RULES, NetRules, POLICIES},
    session::{self, Phase, Session},
    verdict::{Decision, Fault, of_fault, settle},
};

/// Verdicts of cgroup programs.
const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// An address as the rules know it.
#[derive(Clone, Copy)]
struct Target {
    address: [u8; 16],
    /// Host order.
    port: u16,
    protocol: u8,
    via: u8,
}

/// HOOK: `cgroup/connect4(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let target = target4(&context, VIA_CONNECT);
    if refuse(&context, target) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/connect6(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let target = target6(&context, VIA_CONNECT);
    if refuse(&context, target) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sendmsg4(struct bpf_sock_addr *)`, since 4.18; UDP with an address in the message.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    let target = target4(&context, VIA_SEND);
    if refuse(&context, target) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sendmsg6(struct bpf_sock_addr *)`, since 4.18; UDP with an address in the message.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    let target = target6(&context, VIA_SEND);
    if refuse(&context, target) { REFUSE } else { PASS }
}

#[inline(always)]
fn target4(context: &SockAddrContext, via: u8) -> Target {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, one access of the field's own width each.
    let (address, port, protocol) = unsafe {
        let raw = context.sock_addr;
        (
            core::ptr::read_volatile(&raw const (*raw).user_ip4),
            core::ptr::read_volatile(&raw const (*raw).user_port),
            core::ptr::read_volatile(&raw const (*raw).protocol),
        )
    };
    let v4 = address.to_ne_bytes();
    let mut mapped = [0u8; 16];
    mapped[10] = 0xff;
    mapped[11] = 0xff;
    mapped[12] = v4[0];
    mapped[13] = v4[1];
    mapped[14] = v4[2];
    mapped[15] = v4[3];
    Target { address: mapped, port: u16::from_be(port as u16), protocol: protocol as u8, via }
}

#[inline(always)]
fn target6(context: &SockAddrContext, via: u8) -> Target {
    // SAFETY: as in `target4`.
    let (words, port, protocol) = unsafe {
        let raw = context.sock_addr;
        (
            [
                core::ptr::read_volatile(&raw const (*raw).user_ip6[0]),
                core::ptr::read_volatile(&raw const (*raw).user_ip6[1]),
                core::ptr::read_volatile(&raw const (*raw).user_ip6[2]),
                core::ptr::read_volatile(&raw const (*raw).user_ip6[3]),
            ],
            core::ptr::read_volatile(&raw const (*raw).user_port),
            core::ptr::read_volatile(&raw const (*raw).protocol),
        )
    };
    // SAFETY: both are sixteen bytes in network order.
    let address = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
    Target { address, port: u16::from_be(port as u16), protocol: protocol as u8, via }
}

#[inline(always)]
fn refuse(context: &SockAddrContext, target: Target) -> bool {
    let session = match session::of_current_in_cgroup_program() {
        Ok(Some(session)) => session,
        Ok(None) => return false,
        // below Tipstaff's cgroup, in no live session: nothing may leave from there; but a confined agent refuses nobody
        // whom it did not label
        Err(_) => return kernel::settings().confine_cgroup == 0,
    };
    let decision = settle(judge(&session, target), &session);
    report(&session, context, target, decision);
    decision.refuses()
}

#[inline(always)]
fn judge(session: &Session, target: Target) -> Decision {
    match session.phase {
        Phase::Ended => return Decision::deny(REASON_ENDED),
        Phase::Expired => return Decision::deny(REASON_EXPIRED),
        Phase::Live => {}
    }
    match by_rules(session, target) {
        Ok(decision) => decision,
        Err(fault) => of_fault(fault, session),
    }
}

/// The longest matching prefix carries the rules of all that cover it, denials first: the first that fits decides.
#[inline(always)]
fn by_rules(session: &Session, target: Target) -> Result<Decision, Fault> {
    let policy: &PolicyEntry = POLICIES.get(session.policy).ok_or(Fault::NoEntry)?;
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: &NetRules = unsafe { NET_RULES.get(&policy.revision) }.ok_or(Fault::NoEntry)?;
    let default = Decision { verdict: policy.net_default, rule: REASON_DEFAULT };
    let Some(entry) = rules.get(&Key::new(128, target.address)) else { return Ok(default) };
    // SAFETY: as many bytes, which the agent wrote as a `NetEntry`, integers only and of lesser alignment.
    let entry = unsafe { &*core::ptr::from_ref(entry).cast::<NetEntry>() };
    Ok(by_ports(entry, target).unwrap_or(default))
}

#[inline(always)]
fn by_ports(entry: &NetEntry, target: Target) -> Option<Decision> {
    // VERIFIER: a constant bound, the real one inside.
    for index in 0..PORT_RULES {
        if index >= entry.count as usize {
            break;
        }
        let rule = entry.ports[index];
        let fits = rule.low <= target.port && target.port <= rule.high;
        if fits && (rule.protocol == 0 || rule.protocol == target.protocol) {
            return Some(Decision::of_port_rule(rule));
        }
    }
    None
}

#[inline(always)]
fn report(session: &Session, context: &SockAddrContext, target: Target, decision: Decision) {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    emit::record::<Connect>(session, KIND_CONNECT, Task::current(), decision, |place| {
        // SAFETY: `place` has room for a `Connect`.
        unsafe {
            (&raw mut (*place).address).write(target.address);
            (&raw mut (*place).port).write(target.port);
            (&raw mut (*place).protocol).write(target.protocol);
            (&raw mut (*place).via).write(target.via);
            (&raw mut (*place).pad).write(0);
            (&raw mut (*place).cookie).write(cookie);
        }
    });
}
