//! Sockets that were made outside the session that uses them.

use core::ffi::c_void;

use tipstaff_common::{
    event::{ACT_RECEIVE, ACT_USE},
    label::TREE,
    rule::{REASON_CROSSED, REASON_DEFAULT},
    socket::{SOCKET_BEFORE, SOCKET_CROSSED, SOCKET_PASSIVE, SocketLabel},
};

use super::{
    class,
    record::{describe, report_act},
    sockets::RAW,
};
use crate::{
    headers::TCP,
    kernel::{self, INET, INET6, Sock, sock_of},
    maps::POLICIES,
    rules::{self, Scope, Target},
    session::{Phase, Session},
    socket::{self, LISTEN},
    verdict::{Decision, settle},
};

/// `AF_UNIX`
const UNIX: u16 = 1;

/// A member's socket that is judged: not the kernel's own, not one that a disk is behind (a member that reads a file may be
/// the task that sends there), not of the unix family (a pair of those, or a standard stream
/// that leads to a log, crosses by design; whom they connect to is judged in `unix.rs`).
#[inline(always)]
pub fn is_judged(sock: *mut c_void) -> bool {
    let sock = Sock(sock as u64);
    sock.family() != Ok(UNIX) && sock.is_kernels() != Ok(true) && sock.is_for_storage() != Ok(true)
}

/// Whether the socket was made outside the session, and the refusal that follows. What a workload held when it was
/// attached, and what comes in over that, is used as far as the rules let it.
#[inline(always)]
pub fn crossed(session: &Session, sock: *mut c_void, label: *const SocketLabel, act: u16) -> Option<bool> {
    let own = socket::is_own(label, session);
    // SAFETY: points into the socket's storage: it is the session's own.
    let flags = if own { unsafe { (*label).flags } } else { 0 };
    // of its own in a session that is over, that is what is said
    if own && flags & SOCKET_CROSSED == 0 && (flags & SOCKET_BEFORE == 0 || session.phase != Phase::Live) {
        return None;
    }
    if !is_judged(sock) {
        return Some(false);
    }
    let before = flags & SOCKET_CROSSED == 0 && (own || (label.is_null() && session.flags & TREE != 0));
    if before && session.phase == Phase::Live {
        let came_in = u32::from(flags & SOCKET_PASSIVE != 0);
        let held = Held { sock: sock as u64, policy: session.policy, came_in };
        if scope_has_socket(&raw const held) == 1 {
            return None;
        }
    }
    let decision = settle(Decision::deny(REASON_CROSSED), session);
    report_act(session, act, describe(sock), (0, 0), decision);
    if act == ACT_USE && decision.refuses() && label.is_null() {
        // the agent destroys it, and what it has queued is silent from here on where its packets are seen; a listener has nothing
        // queued, and others may listen with it
        silence(session, sock);
    }
    Some(decision.refuses())
}

/// Marks an internet socket that a member was refused, unless it listens.
#[inline(always)]
fn silence(session: &Session, sock: *mut c_void) {
    let place = Sock(sock as u64);
    let family = place.family();
    if (family == Ok(INET) || family == Ok(INET6)) && place.state() != Ok(LISTEN) {
        socket::give(sock, sock, session, SOCKET_CROSSED);
    }
}

/// A socket that was made outside the session, and may be used in it as far as the rules let it.
#[repr(C)]
pub struct Held {
    /// Its `struct sock`.
    sock: u64,
    /// The session's policy.
    policy: u32,
    /// 1: its peer is known to have come in.
    came_in: u32,
}

/// 1: the session could make such a socket, and it is connected to nobody, or to whom the rules let a member go or, by TCP, let
/// come in. Where it is not known that the peer came in, a rule must say so: a default that lets everybody in lets nobody be
/// talked to.
///
/// VERIFIER: as `rules::rules_on_address`: verified by itself, once for each program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scope_has_socket(held: *const Held) -> u32 {
    if held.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own. VERIFIER: volatile, so that the key is on the stack.
    let (sock, policy, came_in) =
        unsafe { ((*held).sock, core::ptr::read_volatile(&raw const (*held).policy), (*held).came_in) };
    let Some(policy) = POLICIES.get(policy) else { return 0 };
    let sock = Sock(sock);
    let (Ok(family), Ok(kind), Ok(protocol)) = (sock.family(), sock.kind(), sock.protocol()) else { return 0 };
    let class = class::class(u32::from(family), u32::from(kind), u32::from(protocol));
    if class != 0 && policy.sockets & class == 0 {
        return 0;
    }
    let mut to = peer(sock);
    if kind == RAW {
        to.port = 0; // the number beside a raw socket's address is no port
    }
    // TCP keeps the address of a connection that is no more, and not its port; a raw socket of that protocol has none ever
    let is_stream = kind != RAW && to.protocol == TCP;
    if to.port == 0 && (is_stream || to.address == [0; 16] || to.address == kernel::mapped([0; 4])) {
        return 1;
    }
    if rules::by_rules(policy, Scope::Destination, &to).is_ok_and(Decision::is_allow) {
        return 1;
    }
    // who came in by anything else is answered by who may go there
    if to.protocol != TCP {
        return 0;
    }
    to.port = sock.local_port().unwrap_or(0);
    let found = rules::by_rules(policy, Scope::Inbound, &to);
    u32::from(found.is_ok_and(|found| found.is_allow() && (came_in != 0 || found.rule != REASON_DEFAULT)))
}

/// What a socket is connected to.
#[inline(always)]
pub fn peer(sock: Sock) -> Target {
    Target {
        address: sock.remote().unwrap_or_default(),
        port: sock.remote_port().unwrap_or(0),
        protocol: sock.protocol().unwrap_or(0) as u8,
    }
}

/// A member's socket that comes from another process does not arrive where it was made outside the session.
#[inline(always)]
pub fn refuse_passed(session: &Session, socket: *mut c_void) -> bool {
    let sock = sock_of(socket);
    !sock.is_null() && crossed(session, sock, socket::label(sock), ACT_RECEIVE) == Some(true)
}
