//! Streams of which packets are dropped because the session's bytes out are used up. The kernel sends the same data again and
//! nothing before it, and what comes in is not acknowledged, so whoever waits for room or for more waits for nothing: it is
//! destroyed, and both ends learn of it.

use std::collections::BTreeSet;

use tipstaff_common::rule::{REASON_BUDGET_CONNECTS, REASON_BUDGET_EGRESS};

use super::{Engine, Live, complain, flows};
use crate::{
    enforce::{Found, Look},
    evidence::CutCause,
    kernel::Socket,
    session::{Mode, SessionId},
};

/// How often it is looked for them, while a session with such a budget lives. What is found by two looks is destroyed: in tier
/// full the next call is told before that, and the program may close.
const LOOK_NS: u64 = 1_000_000_000;
/// Where the kernel counts what that budget refused.
const PLACE: usize = (REASON_BUDGET_EGRESS - REASON_BUDGET_CONNECTS) as usize;

/// `TCP_CLOSE` (`include/net/tcp_states.h`)
const CLOSED: u16 = 7;

/// What the last look found, by the sockets' cookies.
#[derive(Debug, Default)]
pub(super) struct Spent {
    waiting: BTreeSet<u64>,
    /// What was to be destroyed; each is tried once.
    tried: BTreeSet<u64>,
}

impl Spent {
    /// Takes what is found now; what was found by the last look as well, and not tried yet.
    fn look(&mut self, found: BTreeSet<u64>) -> BTreeSet<u64> {
        self.tried.retain(|cookie| found.contains(cookie));
        let both: BTreeSet<u64> = self.waiting.intersection(&found).copied().collect();
        self.waiting = found;
        let fresh: BTreeSet<u64> = both.difference(&self.tried).copied().collect();
        self.tried.extend(&fresh);
        fresh
    }
}

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
            let waits = |socket: &&Socket| {
                let stream = i32::from(socket.protocol) == libc::IPPROTO_TCP && socket.state != CLOSED;
                stream && socket.spent && socket.session == live.reference
            };
            let found = live.spent.look(all.iter().filter(waits).map(|socket| socket.cookie).collect());
            if !found.is_empty() {
                self.cut_spent(id, &found);
            }
        }
    }

    fn cut_spent(&mut self, id: SessionId, cookies: &BTreeSet<u64>) {
        self.see_again(&[id]);
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let fails = |found: &Found| cookies.contains(&found.socket.cookie);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_over_two_looks_is_tried_once() {
        let mut spent = Spent::default();
        let set = |cookies: &[u64]| cookies.iter().copied().collect::<BTreeSet<u64>>();
        assert_eq!(spent.look(set(&[1, 2])), set(&[]));
        assert_eq!(spent.look(set(&[2, 3])), set(&[2]));
        // it could not be destroyed
        assert_eq!(spent.look(set(&[2, 3])), set(&[3]));
        assert_eq!(spent.look(set(&[2, 3])), set(&[]));
        // another packet left by it meanwhile
        assert_eq!(spent.look(set(&[3])), set(&[]));
        assert_eq!(spent.look(set(&[2, 3])), set(&[]));
        assert_eq!(spent.look(set(&[2, 3])), set(&[2]));
    }
}
