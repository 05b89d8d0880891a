//! Datagrams that answer: whoever a rule lets come in to a port may be sent to from there, though no rule names it as a
//! destination.

use tipstaff_common::{
    rule::{DENY, REASON_DEFAULT},
    session::HAS_INBOUND_RULES,
};

use crate::{
    headers::{UDP, UDPLITE},
    kernel::Sock,
    maps::POLICIES,
    rules::{self, Scope, Target},
    session::Session,
    verdict::{Decision, Fault},
};

/// `SOCK_DGRAM`
const DATAGRAM: u16 = 2;

/// What becomes of a destination that the rules were asked about and `said` this of: where none speaks of it, the rule by
/// which it may be answered.
#[inline(always)]
pub fn or_answer(
    session: &Session,
    sock: impl FnOnce() -> Result<Sock, Fault>,
    target: &Target,
    said: Decision,
) -> Decision {
    if said.verdict != DENY || said.rule != REASON_DEFAULT || !(target.protocol == UDP || target.protocol == UDPLITE) {
        return said;
    }
    let Ok(sock) = sock() else { return said };
    let asked = Asked { sock: sock.0, policy: session.policy, protocol: target.protocol.into() };
    let rule = rule_of_answer(&raw const asked, &raw const target.address);
    if rule == REASON_DEFAULT { said } else { Decision::allow(rule) }
}

/// The socket that is to answer.
///
/// VERIFIER: in memory, because such a function takes numbers and 6.1 knows a socket's address for what it is.
#[repr(C)]
pub struct Asked {
    /// Its `struct sock`.
    sock: u64,
    /// The session's policy.
    policy: u32,
    /// `IPPROTO_*`
    protocol: u32,
}

/// The rule that lets `peer` come in to the port that the socket is bound to, where that may be listened on;
/// `REASON_DEFAULT`: there is none. A default that lets everybody in lets nobody be talked to.
///
/// VERIFIER: as `rules::rules_on_address`: verified by itself, once for each program, with a stack that is not there while
/// others are asked.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rule_of_answer(asked: *const Asked, peer: *const [u8; 16]) -> u32 {
    if asked.is_null() || peer.is_null() {
        return REASON_DEFAULT;
    }
    // SAFETY: not null; the callers pass their own. VERIFIER: volatile, so that the key is on the stack.
    let (sock, policy, protocol) =
        unsafe { ((*asked).sock, core::ptr::read_volatile(&raw const (*asked).policy), (*asked).protocol) };
    let Some(policy) = POLICIES.get(policy) else { return REASON_DEFAULT };
    if policy.flags & HAS_INBOUND_RULES == 0 {
        return REASON_DEFAULT;
    }
    let sock = Sock(sock);
    let (Ok(kind), Ok(port), Ok(address)) = (sock.kind(), sock.local_port(), sock.local()) else {
        return REASON_DEFAULT;
    };
    if kind != DATAGRAM || port == 0 {
        return REASON_DEFAULT;
    }
    let mut target = Target { address, port, protocol: protocol as u8 };
    if !rules::by_rules(policy, Scope::Listen, &target).is_ok_and(Decision::is_allow) {
        return REASON_DEFAULT;
    }
    // SAFETY: as above.
    target.address = unsafe { *peer };
    match rules::by_rules(policy, Scope::Inbound, &target) {
        Ok(decision) if decision.is_allow() => decision.rule,
        _ => REASON_DEFAULT,
    }
}
