//! Where a member may connect or send without connecting, and what it may bind, as cgroup programs see it: those on
//! Tipstaff's own cgroup see the sockets that were created below it, TCP Fast Open and io_uring included; they also see
//! what a socket's creator handed to somebody else.
//!
//! They record and count what they let through. In tier full the LSM hooks judge before them, by the user's label; they
//! record what they refuse, and what no program here will see.
//!
//! While one load replaces another, the programs of both run, whatever the first one said: only the one that speaks counts.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use tipstaff_common::{
    event::{ACT_CREATE, Connect, KIND_CONNECT, KIND_SOCKET, Socket, VIA_BIND, VIA_CONNECT, VIA_SEND},
    label::TREE,
    rule::REASON_CROSSED,
    session::MODE_ENFORCE,
    socket::{SOCKET_BEFORE, SOCKET_CROSSED, SOCKET_OF_CLASS, SocketLabel},
};

use crate::{
    budget, emit,
    hooks::class,
    kernel::{self, Sock},
    rules::{self, Scope, Target},
    session::{self, Session},
    socket::{self, LISTEN, Origin},
    unseen,
    verdict::{Decision, Fault, of_fault, settle},
};

/// Verdicts of cgroup programs.
const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// HOOK: `cgroup/connect4(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    if refuse(&context, &target4(&context), VIA_CONNECT) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/connect6(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    if refuse(&context, &target6(&context), VIA_CONNECT) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sendmsg4(struct bpf_sock_addr *)`, since 4.18; UDP with an address in the message.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    if refuse(&context, &target4(&context), VIA_SEND) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sendmsg6(struct bpf_sock_addr *)`, since 4.18; UDP with an address in the message.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    if refuse(&context, &target6(&context), VIA_SEND) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/bind4(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(bind4)]
pub fn bind4(context: SockAddrContext) -> i32 {
    if refuse(&context, &target4(&context), VIA_BIND) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/bind6(struct bpf_sock_addr *)`, since 4.17.
#[cgroup_sock_addr(bind6)]
pub fn bind6(context: SockAddrContext) -> i32 {
    if refuse(&context, &target6(&context), VIA_BIND) { REFUSE } else { PASS }
}

/// HOOK: `cgroup/sock_create(struct bpf_sock *)`, since 4.10; sockets of the Internet families that programs make.
#[cgroup_sock(sock_create)]
pub fn sock_create(context: SockContext) -> i32 {
    if refuse_create(&context) { REFUSE } else { PASS }
}

#[inline(always)]
fn target4(context: &SockAddrContext) -> Target {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, one access of the field's own width each.
    let (address, port, protocol) = unsafe {
        let raw = context.sock_addr;
        (
            core::ptr::read_volatile(&raw const (*raw).user_ip4),
            core::ptr::read_volatile(&raw const (*raw).user_port),
            core::ptr::read_volatile(&raw const (*raw).protocol),
        )
    };
    Target { address: kernel::mapped(address.to_ne_bytes()), port: u16::from_be(port as u16), protocol: protocol as u8 }
}

#[inline(always)]
fn target6(context: &SockAddrContext) -> Target {
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
    // MPTCP's number is TCP's with another byte above it, and is judged as TCP
    Target { address, port: u16::from_be(port as u16), protocol: protocol as u8 }
}

#[inline(always)]
fn refuse(context: &SockAddrContext, target: &Target, via: u8) -> bool {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the field's own width.
    let pointer = unsafe { core::ptr::read_volatile(&raw const (*context.sock_addr).__bindgen_anon_1.sk) };
    let (session, judged) = match session::of_current_in_cgroup_program() {
        Ok(Some(found)) => found,
        // who got a session's socket does not reach elsewhere with it; where only sockets of sessions are seen, that is told
        // by where they are used
        Ok(None) if kernel::sees_others() && !pointer.is_null() => {
            return refuse_stranger(socket::label(pointer.cast()));
        }
        Ok(None) => return false,
        // below Tipstaff's cgroup, in no live session: nothing may leave from there; but a confined agent refuses nobody
        // whom it did not label
        Err(_) => return !kernel::is_confined(),
    };
    if via == VIA_BIND && target.port == 0 {
        return false; // the kernel chooses a port: that is how a client begins, and a listener is judged when it listens
    }
    let (mut flags, mut gives) = (0, true);
    if kernel::sees_others() && !pointer.is_null() && socket::label(pointer.cast()).is_null() {
        match origin(context, &session, via) {
            Origin::Session => {}
            Origin::Kernel => return false,
            // it is somebody else's too, and a session that observes, as one does that is being attached, refuses nobody
            Origin::Elsewhere if session.flags & TREE != 0 && session.mode == MODE_ENFORCE => flags = SOCKET_BEFORE,
            Origin::Elsewhere if session.flags & TREE != 0 => gives = false,
            Origin::Elsewhere => {
                let decision = rules::over(&session).unwrap_or(Decision::deny(REASON_CROSSED));
                let decision = settle(decision, &session);
                report(&session, target, via, decision, context.as_ptr());
                if decision.refuses() && !listens(context) {
                    // what it has queued is silent from here on
                    socket::give(pointer.cast(), context.as_ptr(), &session, SOCKET_CROSSED);
                }
                return decision.refuses();
            }
        }
    }
    let label = match pointer.is_null() || !gives {
        true => core::ptr::null_mut(),
        false => socket::give(pointer.cast(), context.as_ptr(), &session, flags),
    };
    let decision = if unseen::is_unseen(&session, judged) {
        unseen::refusal()
    } else {
        let Some(decision) = judge(&session, label, target, via) else { return false };
        decision
    };
    let decision = settle(decision, &session);
    if via != VIA_BIND && !decision.refuses() {
        socket::goes_out(label);
    }
    report(&session, target, via, decision, context.as_ptr());
    decision.refuses()
}

/// Whether a process in no session is refused an address by a socket with this label. One that was there before its session
/// is its own too: each packet of it is judged.
#[inline(always)]
fn refuse_stranger(label: *mut SocketLabel) -> bool {
    // SAFETY: points into the socket's storage.
    if label.is_null() || kernel::is_confined() || unsafe { (*label).flags } & SOCKET_BEFORE != 0 {
        return false;
    }
    settle(Decision::deny(REASON_CROSSED), &socket::session_of(label)).refuses()
}

/// Whether the socket listens: who holds it with others does not take their callers from them.
#[inline(always)]
fn listens(context: &SockAddrContext) -> bool {
    Sock::of_context(context.as_ptr() as u64).and_then(Sock::state) == Ok(LISTEN)
}

/// Where the socket comes from that a program on addresses is asked about. One that cannot be read is taken for another's.
#[inline(always)]
fn origin(context: &SockAddrContext, session: &Session, via: u8) -> Origin {
    match Sock::of_context(context.as_ptr() as u64) {
        Ok(sock) => socket::origin(sock, session, via == VIA_CONNECT),
        Err(_) => Origin::Elsewhere,
    }
}

/// What is to be recorded of it; `None`: it goes where the last one went, which was.
#[inline(always)]
fn judge(session: &Session, label: *mut SocketLabel, target: &Target, via: u8) -> Option<Decision> {
    if let Some(over) = rules::over(session) {
        return Some(over);
    }
    if !label.is_null() && (!socket::is_own(label, session) || socket::has_crossed(label)) {
        return Some(Decision::deny(REASON_CROSSED));
    }
    let policy = match rules::policy(session) {
        Ok(policy) => policy,
        Err(fault) => return Some(of_fault(fault, session)),
    };
    // a message of a connected socket that says how to send it, and not where: the kernel takes none to port 0, and asks with
    // zeros where there is no address (net/ipv4/udp.c and net/ipv6/udp.c, Linux 6.1). Its packet is judged
    if via == VIA_SEND && target.port == 0 {
        return None;
    }
    let mark = socket::fingerprint(target, policy.revision);
    // SAFETY: points into the socket's storage.
    if via == VIA_SEND && !label.is_null() && unsafe { (*label).judged } == mark {
        return None;
    }
    let found = if via == VIA_BIND {
        rules::by_rules(policy, Scope::Listen, target)
    } else {
        rules::to_destination(policy, target, mark)
    };
    let decision = match found {
        Ok(decision) => decision,
        Err(fault) => of_fault(fault, session),
    };
    if via == VIA_BIND && decision.is_allow() {
        socket::serves(label);
    }
    // the load that does not speak neither counts nor remembers: its marks would be of another secret
    if via == VIA_BIND || !decision.is_allow() || !kernel::speaks() {
        return Some(decision);
    }
    let decision = budget::charge_connect(session, target, decision);
    if decision.is_allow() && !label.is_null() {
        // SAFETY: points into the socket's storage.
        unsafe { (*label).judged = mark };
        if via == VIA_CONNECT {
            // what was dropped was of another connection
            // SAFETY: as above.
            unsafe { (*label).spent = 0 };
        }
    }
    Some(decision)
}

/// Records a connect, send or bind.
#[inline(always)]
fn report(session: &Session, target: &Target, via: u8, decision: Decision, context: *mut c_void) {
    let cookie = kernel::cookie(context);
    emit::record::<Connect>(session, KIND_CONNECT, decision, |place| {
        write(place, target, via, cookie);
    });
}

/// Writes what follows the header.
#[inline(always)]
pub fn write(place: *mut Connect, target: &Target, via: u8, cookie: u64) {
    // SAFETY: `place` has room for a `Connect`.
    unsafe {
        (&raw mut (*place).address).write(target.address);
        (&raw mut (*place).port).write(target.port);
        (&raw mut (*place).protocol).write(target.protocol);
        (&raw mut (*place).via).write(via);
        (&raw mut (*place).pad).write(0);
        (&raw mut (*place).cookie).write(cookie);
    }
}

#[inline(always)]
fn refuse_create(context: &SockContext) -> bool {
    let (session, judged) = match session::of_current_in_cgroup_program() {
        Ok(Some(found)) => found,
        Ok(None) => return false,
        Err(_) => return !kernel::is_confined(),
    };
    // SAFETY: the context is valid for the program's run. VERIFIER: as in `target4`.
    let (family, kind, protocol) = unsafe {
        let raw = context.sock;
        (
            core::ptr::read_volatile(&raw const (*raw).family),
            core::ptr::read_volatile(&raw const (*raw).type_),
            core::ptr::read_volatile(&raw const (*raw).protocol),
        )
    };
    let decision = if unseen::refuse_current(&session, judged) {
        unseen::refusal()
    } else {
        class::judge(&session, family, kind, protocol)
    };
    let of_class = if class::class(family, kind, protocol) == 0 { 0 } else { SOCKET_OF_CLASS };
    let pointer = context.as_ptr();
    let decision = if decision.is_allow() && socket::give(pointer, pointer, &session, of_class).is_null() {
        of_fault(Fault::Unlabelled, &session)
    } else {
        decision
    };
    if decision.is_allow() {
        return false;
    }
    let decision = settle(decision, &session);
    emit::record::<Socket>(&session, KIND_SOCKET, decision, |place| {
        write_act(place, ACT_CREATE, (family, kind, protocol), (0, 0));
    });
    decision.refuses()
}

/// Writes what was tried with a socket of such a family, type and protocol; `option` is level and name.
#[inline(always)]
pub fn write_act(place: *mut Socket, act: u16, socket: (u32, u32, u32), option: (u32, u32)) {
    // SAFETY: `place` has room for a `Socket`.
    unsafe {
        (&raw mut (*place).act).write(act);
        (&raw mut (*place).family).write(socket.0 as u16);
        (&raw mut (*place).kind).write(socket.1 as u16);
        (&raw mut (*place).protocol).write(socket.2 as u16);
        (&raw mut (*place).level).write(option.0);
        (&raw mut (*place).option).write(option.1);
    }
}
