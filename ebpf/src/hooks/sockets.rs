//! Sockets by who uses them (tier full): a socket's cgroup is fixed when it is made, so the programs on Tipstaff's cgroup
//! never see one that was made elsewhere – before its user joined, passed in, accepted from an outside listener – or by a
//! member that was moved away. These hooks run in the task that uses the socket, and judge by that task's label.
//!
//! A refusal is recorded here. What goes on is recorded and counted by the cgroup program that comes after, or here where
//! none will come.

use core::ffi::c_void;

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::{
    event::{ACT_CREATE, ACT_OPTION, ACT_USE, VIA_BIND, VIA_CONNECT, VIA_LISTEN, VIA_SEND},
    label::TREE,
    rule::{DENY, REASON_DEFAULT, REASON_FAMILY, REASON_NARROWED, REASON_OPTION},
    session::{HAS_LISTEN_RULES, MODE_ENFORCE},
    socket::{SOCKET_BEFORE, SOCKET_OF_CLASS, SOCKET_PASSIVE, SPENT_DATA, SocketLabel},
};

use super::{
    class,
    crossed::{crossed, is_judged, peer},
    record::{describe, report, report_act},
};
use crate::{
    budget,
    kernel::{self, Address, INET, INET6, Sock, sock_of},
    rules::{self, Scope, Target},
    session::{self, Session},
    socket::{self, CLOSED, LISTEN},
    verdict::{Decision, Fault, of_fault, settle},
};

/// `SOCK_STREAM`
const STREAM: u16 = 1;
/// `SOCK_RAW`
pub const RAW: u16 = 3;

/// HOOK: `socket_create(int family, int type, int protocol, int kern)`, LSM since 5.7.
#[lsm(hook = "socket_create")]
pub fn socket_create(context: LsmContext) -> i32 {
    kernel::answer(refuse_create(context.arg(0), context.arg(1), context.arg(2), context.arg(3)))
}

/// HOOK: `socket_post_create(struct socket *sock, int family, int type, int protocol, int kern)`, LSM since 5.7.
#[lsm(hook = "socket_post_create")]
pub fn socket_post_create(context: LsmContext) -> i32 {
    kernel::answer(refuse_label(context.arg(0), context.arg(4)))
}

/// HOOK: `sock_graft(struct sock *sk, struct socket *parent)`, LSM since 5.7; an accepted socket gets its descriptor. Those
/// of TCP have their listener's label by then, those of other families have none.
#[lsm(hook = "sock_graft")]
pub fn sock_graft(context: LsmContext) -> i32 {
    adopt_accepted(context.arg(0));
    0
}

/// HOOK: `socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`, LSM since 5.7. Not called for TCP
/// Fast Open; called twice for one connect of io_uring.
#[lsm(hook = "socket_connect")]
pub fn socket_connect(context: LsmContext) -> i32 {
    kernel::answer(refuse_address(context.arg(0), address(&context), VIA_CONNECT))
}

/// HOOK: `socket_bind(struct socket *sock, struct sockaddr *address, int addrlen)`, LSM since 5.7.
#[lsm(hook = "socket_bind")]
pub fn socket_bind(context: LsmContext) -> i32 {
    kernel::answer(refuse_address(context.arg(0), address(&context), VIA_BIND))
}

/// HOOK: `socket_listen(struct socket *sock, int backlog)`, LSM since 5.7.
#[lsm(hook = "socket_listen")]
pub fn socket_listen(context: LsmContext) -> i32 {
    kernel::answer(refuse_listen(context.arg(0)))
}

/// HOOK: `socket_accept(struct socket *sock, struct socket *newsock)`, LSM since 5.7.
#[lsm(hook = "socket_accept")]
pub fn socket_accept(context: LsmContext) -> i32 {
    kernel::answer(refuse_use(context.arg(0)))
}

/// HOOK: `socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`, LSM since 5.7. Not called for sendfile and
/// splice before 6.5.
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(context: LsmContext) -> i32 {
    kernel::answer(refuse_message(context.arg(0), context.arg(1), context.arg(2)))
}

/// HOOK: `socket_recvmsg(struct socket *sock, struct msghdr *msg, int size, int flags)`, LSM since 5.7.
#[lsm(hook = "socket_recvmsg")]
pub fn socket_recvmsg(context: LsmContext) -> i32 {
    kernel::answer(refuse_use(context.arg(0)))
}

/// HOOK: `socket_shutdown(struct socket *sock, int how)`, LSM since 5.7; it would end a connection for all who have it.
#[lsm(hook = "socket_shutdown")]
pub fn socket_shutdown(context: LsmContext) -> i32 {
    kernel::answer(refuse_use(context.arg(0)))
}

/// HOOK: `socket_setsockopt(struct socket *sock, int level, int optname)`, LSM since 5.7.
#[lsm(hook = "socket_setsockopt")]
pub fn socket_setsockopt(context: LsmContext) -> i32 {
    kernel::answer(refuse_option(context.arg(0), context.arg(1), context.arg(2)))
}

/// The address and length that `socket_connect` and `socket_bind` are given.
#[inline(always)]
fn address(context: &LsmContext) -> Address {
    let place = context.arg::<*const u8>(1) as u64;
    Address::at(place, context.arg::<u64>(2) as u32)
}

#[inline(always)]
fn refuse_create(family: u64, kind: u64, protocol: u64, kernels: u64) -> bool {
    if kernels as u32 != 0 {
        return false;
    }
    let Some(session) = session::of_current() else { return false };
    // the low bits are the type, the others are flags
    let (family, kind, protocol) = (family as u32, kind as u32 & 0xf, protocol as u32);
    let decision = class::judge(&session, family, kind, protocol);
    if decision.is_allow() {
        return false;
    }
    let decision = settle(decision, &session);
    report_act(&session, ACT_CREATE, (family, kind, protocol), (0, 0), decision);
    decision.refuses()
}

#[inline(always)]
fn refuse_label(socket: *mut c_void, kernels: u64) -> bool {
    if kernels as u32 != 0 {
        return false;
    }
    let Some(session) = session::of_current_often() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() || !socket::give(sock, sock, &session, unseen_by_packets(&session, sock)).is_null() {
        return false;
    }
    let decision = settle(of_fault(Fault::Unlabelled, &session), &session);
    report_act(&session, ACT_CREATE, describe(sock), (0, 0), decision);
    decision.refuses()
}

/// The flag for a socket that no program on Tipstaff's cgroup sees, because who made it had been moved away: each use is judged
/// by whom it is connected to. A session that observes is told of each connect once.
#[inline(always)]
fn unseen_by_packets(session: &Session, sock: *mut c_void) -> u32 {
    let seen = session.mode != MODE_ENFORCE
        || kernel::sees_others()
        || Sock(sock as u64).cgroup().is_ok_and(|cgroup| session::of_cgroup(cgroup).is_some());
    if seen { 0 } else { SOCKET_BEFORE }
}

#[inline(always)]
fn adopt_accepted(sock: *mut c_void) {
    if sock.is_null() {
        return;
    }
    if !socket::label(sock).is_null() {
        // a copy of its listener's label, which came without a cookie
        kernel::cookie(sock);
        return;
    }
    let Some(session) = session::of_current_often() else { return };
    // of a listener from before an attachment: its peer came in, and each use asks whether it may
    let before = if session.flags & TREE != 0 { SOCKET_BEFORE } else { unseen_by_packets(&session, sock) };
    let (family, kind, protocol) = describe(sock);
    let of_class = if class::class(family, kind, protocol) == 0 { 0 } else { SOCKET_OF_CLASS };
    if socket::give(sock, sock, &session, SOCKET_PASSIVE | before | of_class).is_null() {
        session.count_fault();
    }
}

/// A session that is over uses no socket; and none uses what crossed.
#[inline(always)]
fn refuse_use(socket: *mut c_void) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() {
        return false;
    }
    match crossed(&session, sock, socket::label(sock), ACT_USE) {
        Some(refused) => refused,
        None => refuse_after_end(&session, sock),
    }
}

/// A session that is over uses no socket. Where a program on Tipstaff's cgroup drops the packets, that one does it, so that
/// the other end is told.
#[inline(always)]
fn refuse_after_end(session: &Session, sock: *mut c_void) -> bool {
    let Some(over) = rules::over(session) else { return false };
    if !is_judged(sock) || seen_by_cgroup(sock, VIA_SEND) {
        return false;
    }
    let decision = settle(over, session);
    report_act(session, ACT_USE, describe(sock), (0, 0), decision);
    decision.refuses()
}

/// What the rules are to be asked about an address that a program gave. False: nothing that they speak of.
#[inline(always)]
fn read_target(sock: *mut c_void, address: Address, target: &mut Target) -> Result<bool, Fault> {
    let sock = Sock(sock as u64);
    let mut family = address.family()?;
    if family == 0 {
        // on a socket of IPv4, `AF_UNSPEC` with an address is IPv4 (`inet_bind`, `udp_sendmsg`); on a raw one of IPv6 it is
        // IPv6 (`rawv6_sendmsg`, 6.18)
        family = sock.family()?;
        if family != INET && !(family == INET6 && sock.kind()? == RAW) {
            return Ok(false);
        }
    }
    if family != INET && family != INET6 {
        return Ok(false);
    }
    target.protocol = sock.protocol()? as u8;
    if !address.internet(family, &mut target.port, &mut target.address)? {
        return Ok(false);
    }
    if sock.kind()? == RAW {
        target.port = 0; // the number beside a raw socket's address is no port
    }
    Ok(true)
}

/// Whether a program on a cgroup sees this connect, send or bind of the Internet families: by where the socket was made, unless it sees all of them, and
/// its type and protocol (measured: raw, of whatever protocol, and SCTP are not seen). Of UDP-Lite a connect is not, of ping only that
/// is (`pre_connect` of `udplite_prot` and `ping_prot`, since 6.1).
#[inline(always)]
fn seen_by_cgroup(sock: *mut c_void, via: u8) -> bool {
    const TCP: u16 = 6;
    const UDP: u16 = 17;
    const UDP_LITE: u16 = 136;
    const MPTCP: u16 = 262;
    const PING: [u16; 2] = [1, 58];
    let sock = Sock(sock as u64);
    let (Ok(family), Ok(kind), Ok(protocol)) = (sock.family(), sock.kind(), sock.protocol()) else { return false };
    // other families have numbers of their own
    if family != INET && family != INET6 {
        return false;
    }
    let connects = via == VIA_CONNECT;
    let seen = protocol == TCP || protocol == UDP || protocol == MPTCP || (protocol == UDP_LITE && !connects);
    if kind == RAW || !(seen || (connects && (protocol == PING[0] || protocol == PING[1]))) {
        return false;
    }
    kernel::sees_others() || sock.cgroup().is_ok_and(|cgroup| session::of_cgroup(cgroup).is_some())
}

#[inline(always)]
fn refuse_address(socket: *mut c_void, address: Address, via: u8) -> bool {
    let Some(session) = session::of_current() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() {
        return false;
    }
    let label = socket::label(sock);
    // whom its own socket is connected to is of no account any more, and the new address is judged below
    let leaves = via == VIA_CONNECT && socket::is_own(label, &session) && !socket::has_crossed(label);
    if !leaves && let Some(refused) = crossed(&session, sock, label, ACT_USE) {
        return refused;
    }
    if via == VIA_CONNECT && address.family() == Ok(0) {
        return false; // takes a connection apart
    }
    refuse_target(&session, sock, label, address, via)
}

/// Judges the address of a connect, bind or message of the session's own socket.
#[inline(always)]
pub(super) fn refuse_target(
    session: &Session,
    sock: *mut c_void,
    label: *mut SocketLabel,
    address: Address,
    via: u8,
) -> bool {
    let mut target = Target { address: [0; 16], port: 0, protocol: 0 };
    let found = match read_target(sock, address, &mut target) {
        Ok(false) => return false,
        Ok(true) if via == VIA_BIND && target.port == 0 => return false,
        Ok(true) => match by_rules(session, label, &target, via) {
            None => return false,
            Some(found) => found,
        },
        Err(fault) => (of_fault(fault, session), 0),
    };
    let (mut decision, mark) = found;
    if decision.is_allow() {
        if seen_by_cgroup(sock, via) {
            return false;
        }
        if via != VIA_BIND && kernel::speaks() {
            decision = budget::charge_connect(session, &target, decision);
            if decision.is_allow() && !label.is_null() {
                // SAFETY: points into the socket's storage: it is the session's own.
                unsafe { (*label).judged = mark };
            }
        }
    }
    let decision = settle(decision, session);
    // what listens or is connected does not connect, whatever address it is given
    if !decision.refuses() && via != VIA_BIND && Sock(sock as u64).state() == Ok(CLOSED) {
        socket::goes_out(label);
    }
    // what the mode lets through, the cgroup program records
    if !decision.refuses() && !decision.is_allow() && seen_by_cgroup(sock, via) {
        return false;
    }
    report(session, &target, via, decision, sock);
    decision.refuses()
}

/// What the rules say, and the word for the address; `None`: a message that goes where the last one went.
#[inline(always)]
fn by_rules(session: &Session, label: *mut SocketLabel, target: &Target, via: u8) -> Option<(Decision, u64)> {
    if let Some(over) = rules::over(session) {
        return Some((over, 0));
    }
    let policy = match rules::policy(session) {
        Ok(policy) => policy,
        Err(fault) => return Some((of_fault(fault, session), 0)),
    };
    let mark = socket::fingerprint(target, policy.revision);
    // SAFETY: points into the socket's storage: it is the session's own.
    if via == VIA_SEND && !label.is_null() && unsafe { (*label).judged } == mark {
        return None;
    }
    let found = if via == VIA_BIND {
        rules::by_rules(policy, Scope::Listen, target)
    } else {
        rules::to_destination(policy, target, mark)
    };
    Some(match found {
        Ok(decision) => (decision, mark),
        Err(fault) => (of_fault(fault, session), 0),
    })
}

#[inline(always)]
fn refuse_message(socket: *mut c_void, message: *const c_void, size: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() {
        return false;
    }
    let label = socket::label(sock);
    if let Some(refused) = crossed(&session, sock, label, ACT_USE) {
        return refused;
    }
    if refuse_after_end(&session, sock) {
        return true;
    }
    let family = Sock(sock as u64).family();
    if family != Ok(INET) && family != Ok(INET6) {
        return refuse_class(&session, sock, label);
    }
    // SAFETY: points into the socket's storage.
    let spent =
        !label.is_null() && unsafe { (*label).spent } & SPENT_DATA != 0 && Sock(sock as u64).kind() == Ok(STREAM);
    let size = size & 0xffff_ffff;
    let decision = budget::judge_message(&session, size, spent);
    if decision.refuses() {
        report(&session, &peer(Sock(sock as u64)), VIA_SEND, decision, sock);
        return true;
    }
    match Address::of_message(message as u64) {
        Ok(None) => {}
        Ok(Some(address)) if refuse_target(&session, sock, label, address, VIA_SEND) => return true,
        Ok(Some(_)) => {}
        Err(fault) => return settle(of_fault(fault, &session), &session).refuses(),
    }
    // no program sees its packets: what is refused above uses nothing up
    if !budget::bounds_bytes(&session) || !kernel::speaks() || unseen_by_packets(&session, sock) == 0 {
        return false;
    }
    let decision = budget::charge_message(&session, size);
    if decision.refuses() {
        report(&session, &peer(Sock(sock as u64)), VIA_SEND, decision, sock);
    }
    decision.refuses()
}

/// A socket of another family than the Internet's sends no more where none of its class may be made any more, since the scope
/// was narrowed; those of the Internet are told by their packets.
#[inline(always)]
fn refuse_class(session: &Session, sock: *mut c_void, label: *mut SocketLabel) -> bool {
    if !is_judged(sock) {
        return false;
    }
    let (family, kind, protocol) = describe(sock);
    let mut decision = class::judge(session, family, kind, protocol);
    if decision.is_allow() {
        return false;
    }
    if decision.rule == REASON_FAMILY {
        decision.rule = REASON_NARROWED;
    }
    let decision = settle(decision, session);
    // what only observes lets each message go, and tells of one
    if decision.refuses() || is_news(session, label, protocol) {
        report_act(session, ACT_USE, (family, kind, protocol), (0, 0), decision);
    }
    decision.refuses()
}

/// Whether nothing was told yet of such a socket under this revision.
#[inline(always)]
fn is_news(session: &Session, label: *mut SocketLabel, protocol: u32) -> bool {
    let Ok(policy) = rules::policy(session) else { return true };
    if label.is_null() || !kernel::speaks() {
        return true;
    }
    let mark = socket::fingerprint(&Target { address: [0; 16], port: 0, protocol: protocol as u8 }, policy.revision);
    // SAFETY: points into the socket's storage.
    unsafe {
        let before = (*label).refused;
        (*label).refused = mark;
        before != mark
    }
}

#[inline(always)]
fn refuse_listen(socket: *mut c_void) -> bool {
    let Some(session) = session::of_current() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() {
        return false;
    }
    let label = socket::label(sock);
    if let Some(refused) = crossed(&session, sock, label, ACT_USE) {
        return refused;
    }
    let place = Sock(sock as u64);
    let family = place.family();
    if family != Ok(INET) && family != Ok(INET6) {
        return false;
    }
    let mut target = Target { address: [0; 16], port: 0, protocol: 0 };
    if let Err(fault) = read_place(place, &mut target) {
        return settle(of_fault(fault, &session), &session).refuses();
    }
    let decision =
        if target.port == 0 { without_port(&session) } else { rules::judge(&session, Scope::Listen, &target) };
    let decision = settle(decision, &session);
    // what is connected is refused by the kernel, and went where it went
    if !decision.refuses() && place.kind() == Ok(STREAM) && place.state() == Ok(CLOSED) {
        socket::lets_in(label);
        // it may be connected by another thread meanwhile
        if !matches!(place.state(), Ok(CLOSED | LISTEN)) {
            socket::goes_out(label);
        }
    }
    report(&session, &target, VIA_LISTEN, decision, sock);
    decision.refuses()
}

/// Where a socket is bound to. VERIFIER: written where it is used: of results in registers, 6.1 saw a byte of a pointer.
#[inline(always)]
fn read_place(sock: Sock, target: &mut Target) -> Result<(), Fault> {
    target.address = sock.local()?;
    target.port = sock.local_port()?;
    target.protocol = sock.protocol()? as u8;
    Ok(())
}

/// A listener that was bound to no port gets one later. It is judged when somebody comes; here only a policy without any
/// rule for it says no.
#[inline(always)]
fn without_port(session: &Session) -> Decision {
    if let Some(over) = rules::over(session) {
        return over;
    }
    match rules::policy(session) {
        Ok(policy) if policy.listen_default == DENY && policy.flags & HAS_LISTEN_RULES == 0 => {
            Decision::deny(REASON_DEFAULT)
        }
        Ok(_) => Decision::allow(REASON_DEFAULT),
        Err(fault) => of_fault(fault, session),
    }
}

/// Options that send packets another way than to the address that was judged, or change what the socket is.
const fn misleads(level: u32, option: u32) -> bool {
    const IP: u32 = 0;
    const TCP: u32 = 6;
    const IPV6: u32 = 41;
    matches!(
        (level, option),
        // IP_OPTIONS (source routes); IPV6_ADDRFORM, IPV6_2292RTHDR, IPV6_2292PKTOPTIONS, IPV6_RTHDR; TCP_REPAIR
        (IP, 4) | (IPV6, 1 | 5 | 6 | 57) | (TCP, 19)
    )
}

#[inline(always)]
fn refuse_option(socket: *mut c_void, level: u64, option: u64) -> bool {
    let (level, option) = (level as u32, option as u32);
    if !misleads(level, option) {
        return false;
    }
    let Some(session) = session::of_current() else { return false };
    let sock = sock_of(socket);
    if sock.is_null() || !is_judged(sock) {
        return false;
    }
    // who may go anywhere may go there by any way; each packet's own destination is judged all the same
    if let Ok(policy) = rules::policy(&session)
        && policy.net_default != DENY
    {
        return false;
    }
    let decision = settle(Decision::deny(REASON_OPTION), &session);
    report_act(&session, ACT_OPTION, describe(sock), (level, option), decision);
    decision.refuses()
}
