//! Says what the rings had no room for: the programs count it, and `gap` records tell it.

use tipstaff_common::event::KINDS;

use super::{Engine, complain, now};
use crate::{
    evidence::{Body, Gap, GapCause, Mark},
    session::SessionId,
};

impl Engine {
    /// This moment, in this boot.
    pub(super) fn mark(&self) -> Mark {
        let moment = now();
        Mark { time: moment.time, boot_ns: moment.boot_ns, boot: self.parts.store.boot().to_owned() }
    }

    /// Says what rings had no room for since it was last said.
    pub(super) fn account(&mut self) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.account_for(id);
        }
    }

    /// As [`Engine::account`], for one session.
    pub(super) fn account_for(&mut self, id: SessionId) {
        let mark = self.mark();
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let Some(counters) = complain("reading counters", self.parts.kernel.counters(live.reference.slot)) else {
            return;
        };
        let since = live.reported_at.replace(mark);
        let fresh: [u64; KINDS] = std::array::from_fn(|k| counters.lost[k].saturating_sub(live.reported[k]));
        live.reported = counters.lost;
        let lost = fresh.iter().sum();
        if lost > 0 {
            let mut kinds = super::finish::named(fresh);
            kinds.retain(|_, count| *count > 0);
            let gap = Gap { lost: Some(lost), since, session: Some(id), kinds, ..Gap::new(GapCause::RingFull) };
            self.append(&Body::Gap(gap));
        }
    }
}
