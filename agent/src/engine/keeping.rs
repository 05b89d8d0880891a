//! What the next agent has to know of the sessions, kept as it changes. What the disk refuses is owed, and tried again.

use std::collections::BTreeSet;

use super::{Engine, Live, complain};
use crate::{
    kernel::boot_now,
    session::SessionId,
    store::{Kept, Named, StoreError},
};

/// Between two tries.
const PAUSE_NS: u64 = 1_000_000_000;

/// What is not on disk as it is.
#[derive(Debug, Default)]
pub(super) struct Owed {
    sessions: BTreeSet<SessionId>,
    due: Option<u64>,
}

impl Engine {
    /// A session as the next agent has to know it.
    pub(super) fn kept(&self, live: &Live) -> Kept {
        Kept {
            boot: self.parts.store.boot().to_owned(),
            slot: live.reference.slot,
            generation: live.reference.generation,
            policy_slot: live.policy_slot,
            policy_revision: self.policies.revision(live.policy_slot),
            cgroup: live.cgroup.path().to_owned(),
            over: false,
            machine: live.machine.clone(),
            start: live.start.clone(),
            policy: live.policy_text.clone(),
            start_policy: live.start_text.clone(),
            narrowed: live.narrowed(),
            named: Named::of(&live.host),
            winner: live.winner.to_owned(),
            started: live.started,
            first: live.first_process,
            ending: live.ending,
            before: None,
        }
    }

    /// Keeps a session as it is now, for the next agent.
    pub(super) fn keep(&mut self, id: SessionId) {
        if let Some(live) = self.sessions.get(&id) {
            let kept = self.parts.store.keep(&self.kept(live));
            self.owe("keeping a session", id, kept);
        }
    }

    /// Forgets a session that is over.
    pub(super) fn forget(&mut self, id: SessionId) {
        let forgotten = self.parts.store.forget(id);
        self.owe("forgetting a session", id, forgotten);
    }

    fn owe(&mut self, what: &str, id: SessionId, done: Result<(), StoreError>) {
        match complain(what, done) {
            Some(()) => self.owed.sessions.remove(&id),
            None => self.owed.sessions.insert(id),
        };
    }

    /// When the disk is asked again; none: it has taken all.
    pub(super) fn owed_due(&mut self) -> Option<u64> {
        if self.owed.sessions.is_empty() && self.parts.store.trouble().is_none() {
            self.owed.due = None;
            return None;
        }
        Some(*self.owed.due.get_or_insert_with(|| boot_now() + PAUSE_NS))
    }

    /// Asks the disk again, once it is time.
    pub(super) fn pay(&mut self, now: u64) {
        if self.owed.due.take_if(|due| *due <= now).is_none() || !self.parts.store.try_again() {
            return;
        }
        for id in self.owed.sessions.clone() {
            if self.sessions.contains_key(&id) {
                self.keep(id);
            } else if self.lingers(id) {
                self.owed.sessions.remove(&id);
            } else {
                self.forget(id);
            }
        }
    }

    /// What is wrong with the store, for `status`.
    pub(super) fn store_trouble(&self) -> Vec<String> {
        let mut why = Vec::new();
        if let Some(trouble) = self.parts.store.trouble() {
            why.push(format!("{trouble}; until then no session starts"));
        }
        let owed = self.owed.sessions.len();
        if owed > 0 {
            why.push(format!(
                "{owed} sessions could not be kept as they are: another agent would know them as they were"
            ));
        }
        why
    }
}
