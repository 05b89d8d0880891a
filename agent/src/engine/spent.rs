//! Streams of which data was dropped because the session's bytes out are used up. The kernel sends the same data again and
//! nothing before it, so whoever waits for room waits for nothing: it is destroyed, and both ends learn of it.

use std::collections::BTreeSet;

use tipstaff_common::rule::{REASON_BUDGET_CONNECTS, REASON_BUDGET_EGRESS};

use super::{Engine, Live, complain, flows};
use crate::{
    enforce::{Found, Look},
    evidence::CutCause,
    session::{Mode, SessionId},
};

/// How often it is looked for them, while a session with such a budget lives. What is found by two looks is destroyed: in tier
/// full the next call is told before that, and the program may close.
const LOOK_NS: u64 = 1_000_000_000;
/// Where the kernel counts what that budget refused.
const PLACE: usize = (REASON_BUDGET_EGRESS - REASON_BUDGET_CONNECTS) as usize;

impl Live {
    fn can_spend_all(&self) -> bool {
        let enforces = self.machine.mode() == Mode::Enforce && self.machine.reason().is_none();
        enforces && self.policy.budgets.egress_bytes.is_some()
    }
}

impl Engine {
    /// When it is to be looked for them next.
    pub(super) fn spent_due(&self) -> Option<u64> {
        self.sessions.values().any(Live::can_spend_all).then_some(self.spent_looked + LOOK_NS)
    }

    /// Destroys the streams that were found by the last look too.
    pub(super) fn look_for_spent(&mut self, now_boot_ns: u64) {
        if self.spent_due().is_none_or(|due| due > now_boot_ns) {
            return;
        }
        self.spent_looked = now_boot_ns;
        let kernel = &self.parts.kernel;
        let refused = |live: &Live| {
            let counters = complain("reading counters", kernel.counters(live.reference.slot));
            counters.is_some_and(|counters| counters.used_up[PLACE] > 0)
        };
        let able = self.sessions.iter().filter(|(_, live)| live.can_spend_all() && refused(live));
        let ids: Vec<SessionId> = able.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return;
        }
        let all = flows::labelled(&mut self.parts.kernel);
        for id in ids {
            let Some(live) = self.sessions.get_mut(&id) else { continue };
            let spent = all.iter().filter(|socket| socket.spent && socket.session == live.reference);
            let spent: BTreeSet<u64> = spent.map(|socket| socket.cookie).collect();
            let both: BTreeSet<u64> = live.spent.intersection(&spent).copied().collect();
            live.spent = spent;
            if !both.is_empty() {
                self.cut_spent(id, &both);
            }
        }
    }

    fn cut_spent(&mut self, id: SessionId, cookies: &BTreeSet<u64>) {
        self.see_again(&[id]);
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let fails = |found: &Found| {
            i32::from(found.socket.protocol) == libc::IPPROTO_TCP && cookies.contains(&found.socket.cookie)
        };
        let whose = flows::whose(live.reference, &live.cgroup);
        let mut labels = || flows::labelled(&mut self.parts.kernel);
        let mut look = Look::new(whose.cgroups.clone(), &mut labels);
        live.flows.cut(&mut self.namespaces, &mut look, &whose, fails);
        look.again();
        live.flows.confirm(&mut self.namespaces, &mut look, &whose, fails);
        let (receipts, revision) = (flows::receipts(live.flows.take()), Some(live.revision));
        let records = flows::records(id, CutCause::Budget, revision, &receipts);
        records.iter().for_each(|record| self.append_durable(record));
    }
}
