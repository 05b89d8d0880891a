//! The last line: each packet of a session's sockets is judged by its own destination, whatever hook it slipped past – a
//! source route, a routing header, a socket that changed its protocol, a raw socket, `sendfile` before 6.5 – and what comes
//! in by who sent it. Whatever was connected before, and whether or not the agent lives: when the session is over, packets
//! stop.
//!
//! The verdict on a socket's last address is kept in the socket's label, under the revision that gave it: a flow costs one
//! look-up in the storage and a compare.

use aya_ebpf::{EbpfContext as _, helpers::bpf_skb_ancestor_cgroup_id, macros::cgroup_skb, programs::SkBuffContext};
use tipstaff_common::{
    event::{Connect, KIND_CONNECT, VIA_ACCEPT, VIA_LISTEN, VIA_PACKET},
    rule::{ALLOW, DENY, REASON_BUDGET_EGRESS, REASON_DEFAULT, REASON_NARROWED, REASON_OPTION},
    session::{MODE_OBSERVE, PolicyEntry},
    socket::{SOCKET_BEFORE, SOCKET_OF_CLASS, SOCKET_PASSIVE, SOCKET_SERVES, SPENT_ANY, SPENT_DATA, SocketLabel},
};

use super::{class, connect::write, packet_socket};
use crate::{
    budget,
    emit::{self, Who, add},
    headers::{Packet, TCP, parse},
    kernel,
    rules::{self, Scope, Target},
    session::{self, Phase, Session},
    socket,
    verdict::{CANARY, Decision, Fault, of_fault, settle},
};

const DROP: i32 = 0;
const PASS: i32 = 1;

/// `LOOPBACK_IFINDEX` (`include/net/flow.h`): the same in every network namespace.
const LOOPBACK: u32 = 1;
/// `SOCK_STREAM`
const STREAM: u32 = 1;
/// `SOCK_RAW`
const RAW: u32 = 3;

/// HOOK: `cgroup_skb/egress(struct __sk_buff *)`, since 4.10; on 6.1 only where the packet's socket is the sender's.
#[cgroup_skb]
pub fn egress(context: SkBuffContext) -> i32 {
    if drop(&context, true) { DROP } else { PASS }
}

/// HOOK: `cgroup_skb/ingress(struct __sk_buff *)`, since 4.10.
#[cgroup_skb]
pub fn ingress(context: SkBuffContext) -> i32 {
    if drop(&context, false) { DROP } else { PASS }
}

/// A packet and whose it is.
struct Flow<'a> {
    context: &'a SkBuffContext,
    session: Session,
    /// Null: there was no room for one, or the session is over.
    label: *mut SocketLabel,
    out: bool,
}

#[inline(always)]
fn drop(context: &SkBuffContext, out: bool) -> bool {
    let pointer = packet_socket::pointer(context);
    let mut label = if pointer.is_null() { core::ptr::null_mut() } else { socket::label(pointer.cast()) };
    let session = if label.is_null() {
        // SAFETY: the helper takes the context.
        let ancestor = |level| unsafe { bpf_skb_ancestor_cgroup_id(context.as_ptr().cast(), level) };
        // never by the task that runs: it is anybody's here
        if !kernel::is_beneath(ancestor) {
            return false;
        }
        let session = match session::of_subtree(ancestor(kernel::session_level().cast_signed())) {
            Ok(None) => return false,
            Ok(Some(session)) => session,
            // the socket outlived its session; a confined agent drops nothing that is nobody's
            Err(_) => return !kernel::is_confined(),
        };
        // the kernel makes the sockets under one of MPTCP itself, and connects and listens with them where no program
        // that labels is asked: a worker's connect, a listener on a port that the kernel chose
        if !pointer.is_null() && session.phase == Phase::Live {
            label = socket::give(pointer.cast(), context.as_ptr(), &session, packet_socket::of_class(context));
        }
        session
    } else {
        socket::session_of(label)
    };
    let flow = Flow { context, session, label, out };
    // neither IPv4 nor IPv6 comes here (`cgroup_skb` sits in those two), so what cannot be read is cut short
    let Some(packet) = parse(context) else {
        let refused = settle(of_fault(Fault::Unreadable, &flow.session), &flow.session).refuses();
        if refused {
            flow.session.count_dropped_packet();
        }
        return refused;
    };
    if flow.session.phase != Phase::Live || socket::has_crossed(label) {
        flow.drop_after_end(&packet)
    } else {
        flow.drop_in_scope(&packet)
    }
}

impl Flow<'_> {
    /// Whether the packet is of a stream of TCP, and says no more than that the connection is gone.
    #[inline(always)]
    fn is_reset(&self, packet: &Packet) -> bool {
        // a raw socket has the protocol too, and its packets are the member's own making
        self.out && packet.is_bare_reset() && packet_socket::kind(self.context) == (STREAM, u32::from(TCP))
    }

    /// A session that is over, or a socket that no member may use: nothing but the news that a connection is gone, so that
    /// the peer learns of it.
    #[inline(always)]
    fn drop_after_end(&self, packet: &Packet) -> bool {
        // as in `settle`
        let silent = self.session.slot == CANARY && !kernel::speaks();
        if silent || self.session.mode == MODE_OBSERVE || self.is_reset(packet) {
            return false;
        }
        self.session.count_dropped_packet();
        true
    }

    #[inline(always)]
    fn drop_in_scope(&self, packet: &Packet) -> bool {
        let Some(counters) = self.session.counters() else { return true };
        let policy = match rules::policy(&self.session) {
            Ok(policy) => policy,
            Err(fault) => {
                let decision = settle(of_fault(fault, &self.session), &self.session);
                return decision.refuses();
            }
        };
        if self.refused_by_scope(policy, packet) {
            return true;
        }
        if !kernel::speaks() {
            return false;
        }
        let bytes = self.bytes(packet);
        if self.out {
            if let Err((decision, first)) = budget::charge_bytes(&self.session, counters, bytes, kernel::coarse_now)
                && self.over_budget(packet, decision, first)
            {
                return true;
            }
        } else {
            // SAFETY: points into the map.
            add(unsafe { &raw mut (*counters).ingress_bytes }, bytes);
        }
        if !self.label.is_null() {
            // SAFETY: points into the socket's storage.
            unsafe {
                let place = if self.out { &raw mut (*self.label).sent } else { &raw mut (*self.label).received };
                add(place, bytes);
                // another's packet may have been in the way for a moment, or a smaller one fits
                if self.out && self.is_spent() {
                    let left = if packet.carries_data() { 0 } else { SPENT_DATA };
                    (*self.label).spent &= left;
                }
            }
        }
        false
    }

    /// What it is on the wire: one that is cut into segments later has its headers in each.
    #[inline(always)]
    fn bytes(&self, packet: &Packet) -> u64 {
        // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the fields' own width.
        let (length, segments) = unsafe {
            let skb = self.context.skb.skb;
            (core::ptr::read_volatile(&raw const (*skb).len), core::ptr::read_volatile(&raw const (*skb).gso_segs))
        };
        u64::from(length) + u64::from(segments.saturating_sub(1)) * u64::from(packet.headers)
    }

    #[inline(always)]
    fn over_budget(&self, packet: &Packet, decision: Decision, first: bool) -> bool {
        if first {
            self.report(&packet.destination(), VIA_PACKET, decision);
        }
        if decision.refuses() {
            // the agent takes down who waits for nothing, and both ends are to learn of it
            if self.is_spent() && self.is_reset(packet) {
                return false;
            }
            self.session.count_dropped_packet();
            // not of a listener: who comes in gets a copy of its label
            if decision.rule == REASON_BUDGET_EGRESS
                && !self.label.is_null()
                && packet.protocol == TCP
                && !packet_socket::listens(self.context)
            {
                // the agent knows by its cookie whom to take down, and may look where nothing gives it one
                kernel::cookie(self.context.as_ptr());
                let data = if packet.carries_data() { SPENT_DATA } else { 0 };
                // SAFETY: points into the socket's storage.
                unsafe { (*self.label).spent |= SPENT_ANY | data };
            }
        }
        decision.refuses()
    }

    /// Whether the last packet of the stream, or the last that carried data, was dropped because all bytes out are used up.
    #[inline(always)]
    fn is_spent(&self) -> bool {
        // SAFETY: points into the socket's storage.
        !self.label.is_null() && unsafe { (*self.label).spent } != 0
    }

    /// The rules on addresses, both ways.
    #[inline(always)]
    fn refused_by_scope(&self, policy: &PolicyEntry, packet: &Packet) -> bool {
        let peer = if self.out { packet.destination() } else { packet.source() };
        if self.out && self.is_beyond_loopback(packet) {
            let mark = socket::fingerprint(&Target { port: 0, ..peer }, policy.revision);
            return self.refuse(packet, &peer, VIA_PACKET, Decision::deny(REASON_OPTION), mark);
        }
        if packet.protocol == TCP {
            let passive = self.is_passive();
            if !self.out && packet_socket::listens(self.context) && (packet.opens() || !passive) {
                // what is of no connection yet, the kernel answers
                return packet.opens() && self.refuse_caller(policy, packet);
            }
            if passive {
                if !self.out || !packet.opens() {
                    return self.refuse_visitor(policy, packet, self.out);
                }
                // a connection that begins here is none that came in
                socket::goes_out(self.label);
            }
        }
        let mark = socket::fingerprint(&peer, policy.revision);
        // before what is remembered: a message with an address was judged by that alone
        if self.is_of_class_no_more(policy) {
            // it is told once of a socket, whomever it sends to
            let mark = socket::fingerprint(&Target { address: [0; 16], port: 0, ..peer }, policy.revision);
            return self.refuse(packet, &peer, VIA_PACKET, Decision::deny(REASON_NARROWED), mark);
        }
        // SAFETY: points into the socket's storage.
        if !self.label.is_null() && unsafe { (*self.label).judged } == mark {
            return false;
        }
        if self.is_called(packet) {
            return self.refuse_unless_visitor(policy, packet, Decision::deny(REASON_DEFAULT), mark);
        }
        match rules::to_destination(policy, &peer, mark) {
            Ok(decision) if decision.verdict == ALLOW => {
                if self.label.is_null() || !self.out || !kernel::speaks() {
                    return false;
                }
                if packet.begins()
                    && self.begins_unseen(packet, &peer, policy.revision)
                    && self.refuse_path(&peer, decision)
                {
                    return true;
                }
                // SAFETY: as above.
                unsafe { (*self.label).judged = mark };
                false
            }
            Ok(decision) => self.refuse_unless_visitor(policy, packet, decision, mark),
            Err(fault) => settle(of_fault(fault, &self.session), &self.session).refuses(),
        }
    }

    /// Whether it goes to an address of loopback by another interface, or comes from one by one. A socket that is told to leave by some
    /// interface (`SO_BINDTODEVICE`, `IP_PKTINFO`) goes by the routes of that one. 0: a packet that was asked about when it came in, and
    /// is asked about once more (`net/dccp/ipv6.c`, Linux 6.1, `dccp_v6_do_rcv`), has none any more.
    #[inline(always)]
    fn is_beyond_loopback(&self, packet: &Packet) -> bool {
        if !packet.is_for_loopback(self.out) {
            return false;
        }
        // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the field's own width.
        let interface = unsafe { core::ptr::read_volatile(&raw const (*self.context.skb.skb).ifindex) };
        interface != LOOPBACK && (self.out || interface != 0)
    }

    #[inline(always)]
    fn has(&self, flag: u32) -> bool {
        // SAFETY: points into the socket's storage.
        !self.label.is_null() && unsafe { (*self.label).flags } & flag != 0
    }

    /// Whether somebody comes to the socket, be it one that a member may go to: with the first packet of an association, or with a
    /// datagram to where it was bound so that others come. Whom it talked to last is answered by and is nobody who comes.
    #[inline(always)]
    fn is_called(&self, packet: &Packet) -> bool {
        !self.out && (packet.calls() || packet.is_datagram() && self.has(SOCKET_SERVES))
    }

    /// Whether the socket sends although no such socket may be made any more: the scope was narrowed since.
    #[inline(always)]
    fn is_of_class_no_more(&self, policy: &PolicyEntry) -> bool {
        if !self.out || !self.has(SOCKET_OF_CLASS) {
            return false;
        }
        let (kind, protocol) = packet_socket::kind(self.context);
        kind != 0 && class::class(class::INET, kind, protocol) & !policy.sockets != 0
    }

    /// Whether no program was asked about what a packet begins: there was no connect, and of a raw socket no message to this
    /// address, whatever the packet says of itself.
    #[inline(always)]
    fn begins_unseen(&self, packet: &Packet, peer: &Target, revision: u32) -> bool {
        // SAFETY: points into the socket's storage: the caller asked.
        let judged = unsafe { (*self.label).judged };
        if judged == 0 || !packet.opens() {
            return judged == 0;
        }
        let (kind, protocol) = packet_socket::kind(self.context);
        let told = Target { port: 0, protocol: protocol as u8, ..*peer };
        kind == RAW && judged != socket::fingerprint(&told, revision)
    }

    /// A connection that no program saw begin: a further path of MPTCP, which a worker of the kernel connects, or a raw socket's; in
    /// tier no-lsm those of SCTP and DCCP, and the first echo of a socket that is not connected. It is recorded and counted here.
    #[inline(always)]
    fn refuse_path(&self, peer: &Target, allowed: Decision) -> bool {
        let decision = settle(budget::charge_connect(&self.session, peer, allowed), &self.session);
        self.report(peer, VIA_PACKET, decision);
        if decision.refuses() {
            self.session.count_dropped_packet();
        }
        decision.refuses()
    }

    #[inline(always)]
    fn is_passive(&self) -> bool {
        self.has(SOCKET_PASSIVE)
    }

    /// Somebody calls: the port must be one to listen on, and the caller one who may come.
    #[inline(always)]
    fn refuse_caller(&self, policy: &PolicyEntry, packet: &Packet) -> bool {
        // what a neighbour sends in the name of this host
        if self.is_beyond_loopback(packet) {
            return self.refuse_silently(Decision::deny(REASON_OPTION));
        }
        let own = packet_socket::place(self.context, packet);
        let listened = rules::by_rules(policy, Scope::Listen, &own);
        let (target, via, found) = match listened {
            Ok(decision) if decision.verdict == ALLOW => {
                let visitor = packet.visitor(false);
                let found = rules::by_rules(policy, Scope::Inbound, &visitor);
                (visitor, VIA_ACCEPT, found)
            }
            other => (own, VIA_LISTEN, other),
        };
        let decision = match found {
            Ok(decision) => settle(decision, &self.session),
            Err(fault) => settle(of_fault(fault, &self.session), &self.session),
        };
        self.report(&target, via, decision);
        if decision.refuses() {
            self.session.count_dropped_packet();
        } else if packet_socket::listens(self.context) {
            // the connection's own socket will be a copy, which the kernel makes after this packet
            socket::lets_in(self.label);
            // it may go somewhere by now
            if !packet_socket::listens(self.context) {
                socket::goes_out(self.label);
            }
        }
        decision.refuses()
    }

    /// A packet of a connection that came in, either way: its peer must still be one who may come.
    #[inline(always)]
    fn refuse_visitor(&self, policy: &PolicyEntry, packet: &Packet, out: bool) -> bool {
        let visitor = packet.visitor(out);
        let mark = socket::fingerprint(&visitor, policy.revision);
        // SAFETY: points into the socket's storage: only a socket with a label is passive.
        if unsafe { (*self.label).admitted } == mark {
            return false;
        }
        match rules::by_rules(policy, Scope::Inbound, &visitor) {
            Ok(decision) if decision.verdict == ALLOW => {
                if kernel::speaks() {
                    // SAFETY: as above.
                    unsafe { (*self.label).admitted = mark };
                }
                false
            }
            Ok(decision) => self.refuse(packet, &visitor, VIA_ACCEPT, decision, mark),
            Err(fault) => settle(of_fault(fault, &self.session), &self.session).refuses(),
        }
    }

    /// Not a place to go to: nothing goes there, whoever may come in. Datagrams are taken from whoever a rule lets come, where
    /// they may be listened for: a socket that was bound to no port was never asked.
    #[inline(always)]
    fn refuse_unless_visitor(&self, policy: &PolicyEntry, packet: &Packet, refusal: Decision, mark: u64) -> bool {
        if self.out {
            return self.refuse(packet, &packet.destination(), VIA_PACKET, refusal, mark);
        }
        // what a neighbour sends in the name of this host; and of a connection that went where nobody may go by now its own packets tell
        if self.is_beyond_loopback(packet) || (packet.protocol == TCP && packet_socket::kind(self.context).0 != RAW) {
            return self.refuse_silently(refusal);
        }
        let own = packet_socket::place(self.context, packet);
        let visitor = packet.visitor(false);
        let (target, via, found) = match rules::by_rules(policy, Scope::Listen, &own) {
            Ok(decision) if decision.verdict == ALLOW => {
                (visitor, VIA_ACCEPT, rules::by_rules(policy, Scope::Inbound, &visitor))
            }
            other => (own, VIA_LISTEN, other),
        };
        match found {
            Ok(decision) if decision.verdict == ALLOW => false,
            // a raw socket is shown everybody's segments
            Ok(decision) if packet.protocol == TCP => self.refuse_silently(decision),
            Ok(decision) => self.refuse(packet, &target, via, decision, mark),
            Err(fault) => settle(of_fault(fault, &self.session), &self.session).refuses(),
        }
    }

    /// Refuses, and records the first packet to or from such an address. A connection that is taken down says so.
    #[inline(always)]
    fn refuse(&self, packet: &Packet, target: &Target, via: u8, decision: Decision, mark: u64) -> bool {
        let decision = settle(decision, &self.session);
        // who does not speak does not write its mark over the other's
        let known = !kernel::speaks()
            || !self.label.is_null() && {
                // SAFETY: points into the socket's storage.
                let before = unsafe { (*self.label).refused };
                // SAFETY: as above.
                unsafe { (*self.label).refused = mark };
                before == mark
            };
        if !known && decision.verdict != ALLOW {
            self.report(target, via, decision);
        }
        if decision.verdict != DENY || (self.had_flow() && self.is_reset(packet)) {
            return false;
        }
        self.session.count_dropped_packet();
        true
    }

    /// Refuses without a record.
    #[inline(always)]
    fn refuse_silently(&self, decision: Decision) -> bool {
        let refused = settle(decision, &self.session).refuses();
        if refused {
            self.session.count_dropped_packet();
        }
        refused
    }

    /// Whether something was once allowed on this socket, or it is from before anything was asked.
    #[inline(always)]
    fn had_flow(&self) -> bool {
        if self.label.is_null() {
            return false;
        }
        // SAFETY: points into the socket's storage.
        unsafe { (*self.label).flags & SOCKET_BEFORE != 0 || (*self.label).judged | (*self.label).admitted != 0 }
    }

    #[inline(always)]
    fn report(&self, target: &Target, via: u8, decision: Decision) {
        let cookie = kernel::cookie(self.context.as_ptr());
        if kernel::speaks() {
            emit::produce_of::<Connect>(&self.session, KIND_CONNECT, Who::NOBODY, decision, |place| {
                write(place, target, via, cookie);
            });
        }
    }
}
