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

    /// Ends a session that is to end where nothing has begun it: an agent that kept a stay may have died before it ended
    /// those that the stay is over.
    pub(super) fn hold_to_verdict(&mut self, id: SessionId, now_boot_ns: u64) {
        let Some(live) = self.sessions.get(&id) else { return };
        if let (Verdict::End(reason), None) = (self.verdict(live, now_boot_ns), live.machine.reason()) {
            self.feed(id, Input::End { reason });
        }
    }
}
