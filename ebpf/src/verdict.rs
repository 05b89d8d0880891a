//! A verdict is not a fault. What a rule says is a [`Decision`]; what kept the program from asking the rules is a
//! [`Fault`]. One function turns a fault into a decision, one turns a decision into what the session's mode makes of it.

use tipstaff_common::{
    label::CONFINED,
    rule::{
        ALLOW, DENY, PORT_REASONS, PortRule, REASON_FAULT, REASON_UNLABELLED, REASON_UNRESOLVED, REASONS, WOULD_DENY,
    },
    session::MODE_OBSERVE,
};

use crate::{kernel, maps, session::Session};

/// Slot of the canary's session.
pub const CANARY: u32 = 0;

/// Why a decision could not be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A kernel structure could not be read.
    Unreadable,
    /// A map that must have an entry has none: no such slot, policy, or revision.
    NoEntry,
    /// A program lies deeper than `limits::DEPTH` directories.
    TooDeep,
    /// The label of a child or of a socket found no memory.
    Unlabelled,
    /// A preallocated map is full.
    Full,
    /// Too many processors changed one word at the same moment.
    Contended,
}

/// What is to happen to one operation, and which rule says so.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Decision {
    /// `rule::ALLOW`, `DENY`, `KILL` or `WOULD_DENY`.
    pub verdict: u32,
    /// Index of a rule, or `rule::REASON_*`.
    pub rule: u32,
}

impl Decision {
    /// The operation goes on.
    #[inline(always)]
    pub const fn allow(rule: u32) -> Self {
        Self { verdict: ALLOW, rule }
    }

    /// The operation is refused.
    #[inline(always)]
    pub const fn deny(rule: u32) -> Self {
        Self { verdict: DENY, rule }
    }

    /// What a port rule says.
    #[inline(always)]
    pub const fn of_port_rule(rule: PortRule) -> Self {
        let code = rule.rule as u32;
        let reason = code.wrapping_sub(PORT_REASONS as u32);
        let rule_or_reason = if rule.rule >= PORT_REASONS { REASONS + reason } else { code };
        Self { verdict: rule.verdict as u32, rule: rule_or_reason }
    }

    /// No rule refuses it, not even in mode `observe`.
    #[inline(always)]
    pub const fn is_allow(self) -> bool {
        self.verdict == ALLOW
    }

    /// Neither forbidden nor merely observed.
    #[inline(always)]
    pub const fn refuses(self) -> bool {
        self.verdict == DENY
    }
}

/// The fault table: every fault of a member's operation is a denial, with its reason. (Mode `observe` then lets it
/// pass, as it does with any denial; a task that is in no session never comes here.)
#[inline(always)]
pub fn of_fault(fault: Fault, session: &Session) -> Decision {
    session.count_fault();
    Decision::deny(match fault {
        Fault::Unreadable | Fault::TooDeep => REASON_UNRESOLVED,
        Fault::Unlabelled => REASON_UNLABELLED,
        Fault::NoEntry | Fault::Full | Fault::Contended => REASON_FAULT,
    })
}

/// Applies the session's mode, and the confinement of an agent that may only touch what it was first to label.
#[inline(always)]
pub fn settle(decision: Decision, session: &Session) -> Decision {
    Decision { verdict: settled(decision.verdict, session.mode, session.slot, session.flags), rule: decision.rule }
}

/// The verdict that is carried out, for a session's mode, slot and label's flags.
///
/// VERIFIER: as `session::session_of_current`: what follows is verified once for all verdicts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settled(verdict: u32, mode: u32, slot: u32, flags: u32) -> u32 {
    if verdict == ALLOW {
        return ALLOW;
    }
    if mode == MODE_OBSERVE {
        return WOULD_DENY;
    }
    if slot == CANARY && !kernel::speaks() {
        // an earlier load must not answer for the one that is being proven
        return ALLOW;
    }
    if kernel::is_confined() && flags & CONFINED == 0 {
        if let (true, Some(foreign)) = (kernel::speaks(), maps::FOREIGN.get_ptr_mut(0)) {
            crate::emit::add(foreign, 1);
        }
        return WOULD_DENY;
    }
    verdict
}
