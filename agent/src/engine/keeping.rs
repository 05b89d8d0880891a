//! What the next agent has to know of the sessions, kept as it changes. What the disk refuses is owed, and tried again.

use std::collections::BTreeSet;

use super::{Engine, Live, complain};
use crate::{
    kernel::boot_now,
    session::SessionId,
    store::{Kept, Named, StoreError},
};

/// Sessions that are kept by one commit: each has the text of its policy.
const AT_ONCE: usize = 64;
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
            start_policy: Kept::beside(&live.policy_text, &live.start_text),
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
            self.owe("keeping a session", &[id], kept);
        }
    }

    /// As [`Engine::keep`], for many at once.
    pub(super) fn keep_all(&mut self, ids: &[SessionId]) {
        for ids in ids.chunks(AT_ONCE) {
            let live: Vec<&Live> = ids.iter().filter_map(|id| self.sessions.get(id)).collect();
            let kept: Vec<Kept> = live.into_iter().map(|live| self.kept(live)).collect();
            let done = self.parts.store.keep_all(&kept);
            let ids: Vec<SessionId> = kept.iter().map(|kept| kept.start.session).collect();
            self.owe("keeping sessions", &ids, done);
        }
    }

    /// Forgets a session that is over.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.forget_all(&[id]);
    }

    /// As [`Engine::forget`], for many at once.
    pub(super) fn forget_all(&mut self, ids: &[SessionId]) {
        let forgotten = self.parts.store.forget_all(ids);
        self.owe("forgetting sessions", ids, forgotten);
    }

    fn owe(&mut self, what: &str, ids: &[SessionId], done: Result<(), StoreError>) {
        match complain(what, done) {
            Some(()) => self.owed.sessions.retain(|id| !ids.contains(id)),
            None => self.owed.sessions.extend(ids),
        }
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
