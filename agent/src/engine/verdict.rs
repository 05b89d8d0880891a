//! The verdict on each live session: asked for by whoever looks, and held to at every turn of its clock.

use super::{Engine, Live};
use crate::session::{Facts, Input, SessionId, Verdict, verdict};

impl Engine {
    /// What is to become of a session.
    pub(super) fn verdict(&self, live: &Live, now_boot_ns: u64) -> Verdict {
        let credential = live.start.credential.as_deref();
        // a narrowed session has another policy now than at its start
        let policies = [&live.policy.name, &live.start.policy.name];
        let stayed = policies.iter().any(|name| self.stay_over(&live.start.principal, name, credential).is_some());
        verdict(&live.machine, Facts { narrowed: live.revision > 1, stayed, now_boot_ns })
    }

    /// Ends sessions that are to end where nothing has begun it: an agent that kept a stay may have died before it ended
    /// those that the stay is over.
    pub(super) fn hold_to_verdicts(&mut self, ids: &[SessionId], now_boot_ns: u64) {
        let due = |id: &SessionId| {
            let live = self.sessions.get(id)?;
            match (self.verdict(live, now_boot_ns), live.machine.reason()) {
                (Verdict::End(reason), None) => Some((*id, Input::End { reason })),
                _ => None,
            }
        };
        let inputs: Vec<_> = ids.iter().filter_map(due).collect();
        self.feed_all(inputs);
    }
}
