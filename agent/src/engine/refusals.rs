//! Ends a session that was refused something, or of which a member left the cgroup, where its policy says so. A record tells at
//! once; the kernel's counts tell also where the record was lost, or read by an agent that died.

use tipstaff_common::{event::KIND_MOVE, rule::REASON_BUDGET_CONNECTS, session::SessionCounters};

use super::{Engine, Live, complain};
use crate::{
    policy::Limits,
    session::{EndReason, Input, Mode, SessionId},
};

/// How often the counts are looked at, while a session lives that they could end.
const LOOK_NS: u64 = 1_000_000_000;

impl Live {
    fn ends_by_refusal(&self) -> bool {
        let rules = &self.rules;
        let refusals = !rules.used_up_ends.is_empty() || !rules.violation_ends.is_empty() || rules.denials.is_some();
        (rules.moved_ends || refusals) && self.machine.mode() == Mode::Enforce && self.machine.reason().is_none()
    }
}

impl Engine {
    /// When the counts are to be looked at next.
    pub(super) fn refusals_due(&self) -> Option<u64> {
        self.sessions.values().any(Live::ends_by_refusal).then_some(self.refusals_looked + LOOK_NS)
    }

    pub(super) fn look_at_refusals(&mut self, now_boot_ns: u64) {
        if self.refusals_due().is_none_or(|due| due > now_boot_ns) {
            return;
        }
        self.refusals_looked = now_boot_ns;
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end_if_refused(id));
    }

    /// Ends the session where something was refused that ends it.
    pub(super) fn end_if_refused(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get(&id).filter(|live| live.ends_by_refusal()) else { return };
        let counters = complain("reading counters", self.parts.kernel.counters(live.reference.slot));
        if let Some(reason) = counters.and_then(|counters| reason(&live.rules, &counters)) {
            self.feed(id, Input::End { reason });
        }
    }
}

/// Why what was counted ends a session with these limits.
fn reason(limits: &Limits, counted: &SessionCounters) -> Option<EndReason> {
    let over = |counts: &[u64], place: u32| {
        usize::try_from(place).ok().and_then(|place| counts.get(place)).is_some_and(|count| *count > 0)
    };
    if limits.violation_ends.iter().any(|kind| over(&counted.violations, (*kind).into())) {
        return Some(EndReason::Violation);
    }
    let refused = (0..).zip(&counted.violations).filter(|(kind, _)| *kind != KIND_MOVE);
    let refused = refused.fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    if limits.denials.is_some_and(|most| refused > most) {
        return Some(EndReason::Violation);
    }
    // counted among them, and no refusal: a member is not where the session was started
    if limits.moved_ends && over(&counted.violations, KIND_MOVE.into()) {
        return Some(EndReason::ContextChanged);
    }
    let budget = |refusal: &u32| refusal.checked_sub(REASON_BUDGET_CONNECTS);
    let used_up = limits.used_up_ends.iter().filter_map(budget).any(|place| over(&counted.used_up, place));
    used_up.then_some(EndReason::Budget)
}
