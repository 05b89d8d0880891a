//! What the rules say of an address. IPv4 and IPv6 are one path: an IPv4 address is judged as `::ffff:a.b.c.d`, and so is
//! a mapped address that a program gave to an IPv6 socket.

use core::ffi::c_void;

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_loop};
use tipstaff_common::{
    limits::{PORT_RULES, PORT_RULES_INLINE},
    rule::{NetEntry, PortList, PortRule, REASON_DEFAULT, REASON_ENDED, REASON_EXPIRED},
    session::{HAS_INBOUND_RULES, HAS_LISTEN_RULES, PolicyEntry},
};

use crate::{
    maps::{INBOUND_RULES, LISTEN_RULES, NET_RULES, NetRules, POLICIES, PORT_LISTS, PortLists},
    remembered,
    session::{Phase, Session},
    verdict::{Decision, Fault, of_fault},
};

/// An address as the rules know it. Aligned, so that the address is compared and copied by words.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Target {
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// Host order; 0 where the protocol has none.
    pub port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
}

/// Where a session may go to, may be reached at, or may be reached from.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// A peer's address and port.
    Destination,
    /// A local address and port that is listened on.
    Listen,
    /// A peer's address, and the local port that it came to.
    Inbound,
}

/// The policy of a session.
#[inline(always)]
pub fn policy(session: &Session) -> Result<&'static PolicyEntry, Fault> {
    POLICIES.get(session.policy).ok_or(Fault::NoEntry)
}

/// Over is over: whatever the rules say.
#[inline(always)]
pub fn over(session: &Session) -> Option<Decision> {
    match session.phase {
        Phase::Ended => Some(Decision::deny(REASON_ENDED)),
        Phase::Expired => Some(Decision::deny(REASON_EXPIRED)),
        Phase::Live => None,
    }
}

/// What a session's policy says of an address.
#[inline(always)]
pub fn judge(session: &Session, scope: Scope, target: &Target) -> Decision {
    if let Some(decision) = over(session) {
        return decision;
    }
    let found = match policy(session) {
        Ok(policy) => by_rules(policy, scope, target),
        Err(fault) => Err(fault),
    };
    match found {
        Ok(decision) => decision,
        Err(fault) => of_fault(fault, session),
    }
}

/// What the rules say of a destination, whose fingerprint `mark` is; from memory, if they were asked of late.
#[inline(always)]
pub fn to_destination(policy: &PolicyEntry, target: &Target, mark: u64) -> Result<Decision, Fault> {
    if let Some(decision) = remembered::answer(mark) {
        return Ok(decision);
    }
    let decision = by_rules(policy, Scope::Destination, target)?;
    remembered::keep(mark, decision);
    Ok(decision)
}

/// The longest matching prefix carries the rules of all that cover it, denials first: the first that fits decides.
#[inline(always)]
pub fn by_rules(policy: &PolicyEntry, scope: Scope, target: &Target) -> Result<Decision, Fault> {
    let (default, given) = match scope {
        Scope::Destination => (policy.net_default, true),
        Scope::Listen => (policy.listen_default, policy.flags & HAS_LISTEN_RULES != 0),
        Scope::Inbound => (policy.inbound_default, policy.flags & HAS_INBOUND_RULES != 0),
    };
    let default = Decision { verdict: default, rule: REASON_DEFAULT };
    if !given {
        return Ok(default);
    }
    let asked = u32::from(target.protocol) << 16 | u32::from(target.port);
    let found = rules_on_address(policy.revision, scope as u32, &raw const target.address, asked);
    if found == FAULT {
        return Err(Fault::NoEntry);
    }
    Ok(if found == NONE { default } else { Decision { verdict: (found >> 32) as u32, rule: found as u32 } })
}

/// No rule of the entry fits.
const NONE: u64 = u64::MAX;
/// There is no inner map, or not the list that an entry names.
const FAULT: u64 = u64::MAX - 1;

/// The search for the first rule of a list that fits.
#[repr(C)]
struct Search {
    list: *const PortList,
    /// As `rules_on_address` takes it.
    asked: u32,
    pad: u32,
    /// Verdict and rule in one word.
    found: u64,
}

/// Verdict and rule in one word, or `NONE`, or `FAULT`. `asked` is the protocol and, in the low 16 bits, the port.
///
/// VERIFIER: a function that other objects could call too, so that it is verified by itself and once for each program,
/// whatever is known where it is called; and a helper's loop whose body is verified once. Inlined and unrolled, 6.1 takes
/// minutes for each program that asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rules_on_address(revision: u32, scope: u32, address: *const [u8; 16], asked: u32) -> u64 {
    // VERIFIER: of a pointer that it is given, such a function knows the size, and no more.
    if address.is_null() {
        return FAULT;
    }
    // SAFETY: the inner map lives at least until the program ends (RCU).
    let rules: Option<&NetRules> = unsafe {
        if scope == Scope::Destination as u32 {
            NET_RULES.get(&revision)
        } else if scope == Scope::Listen as u32 {
            LISTEN_RULES.get(&revision)
        } else {
            INBOUND_RULES.get(&revision)
        }
    };
    let Some(rules) = rules else { return FAULT };
    // SAFETY: not null; the callers pass their own.
    let Some(entry) = rules.get(&Key::new(128, unsafe { *address })) else { return NONE };
    // SAFETY: as many bytes, which the agent wrote as a `NetEntry`, integers only and of lesser alignment
    let entry = unsafe { &*core::ptr::from_ref(entry).cast::<NetEntry>() };
    if entry.count > PORT_RULES_INLINE as u32 {
        return rules_in_list(revision, entry, asked);
    }
    for (index, rule) in entry.ports.iter().enumerate() {
        if index as u32 >= entry.count {
            break;
        }
        if fits(rule, asked) {
            return in_one_word(rule);
        }
    }
    NONE
}

/// The same where the rules stand in a list of their own.
#[inline(always)]
fn rules_in_list(revision: u32, entry: &NetEntry, asked: u32) -> u64 {
    // SAFETY: as above.
    let lists: Option<&PortLists> = unsafe { PORT_LISTS.get(&revision) };
    // SAFETY: as above: an inner map does not change once it is there.
    let Some(list) = lists.and_then(|lists| unsafe { lists.get(entry.list) }) else { return FAULT };
    let mut search = Search { list: core::ptr::from_ref(list).cast::<PortList>(), asked, pad: 0, found: NONE };
    let context = core::ptr::from_mut(&mut search).cast::<c_void>();
    // SAFETY: the callback takes what it is given here, and the search outlives the call.
    unsafe { bpf_loop(entry.count.min(PORT_RULES as u32), try_rule as *mut c_void, context, 0) };
    search.found
}

/// One step of the search. 0: go on, 1: stop.
#[inline(never)]
extern "C" fn try_rule(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `rules_in_list` passes its `Search`, which nothing else holds meanwhile.
    let search = unsafe { &mut *context.cast::<Search>() };
    // VERIFIER: the bound once more.
    if index >= PORT_RULES as u32 {
        return 1;
    }
    // SAFETY: not null, and as long as the program runs (RCU).
    let rule = unsafe { &(*search.list).ports[index as usize] };
    if fits(rule, search.asked) {
        search.found = in_one_word(rule);
        return 1;
    }
    0
}

#[inline(always)]
const fn fits(rule: &PortRule, asked: u32) -> bool {
    let (port, protocol) = (asked as u16, (asked >> 16) as u8);
    rule.low <= port && port <= rule.high && (rule.protocol == 0 || rule.protocol == protocol)
}

#[inline(always)]
const fn in_one_word(rule: &PortRule) -> u64 {
    let decision = Decision::of_port_rule(*rule);
    (decision.verdict as u64) << 32 | decision.rule as u64
}
