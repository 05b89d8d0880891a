//! Sessions that only observed and are over, with members that run on: what they hold in the kernel stays until the last
//! member is gone, because a label must not come to mean another session.

use tipstaff_common::{
    label::SessionRef,
    session::{MODE_OBSERVE, SessionConfig},
};

use super::{Engine, complain};
use crate::{
    enforce::SessionCgroup,
    kernel::{KernelError, boot_now},
    session::SessionId,
    store::Kept,
};

/// How often it is looked whether members are left.
const GLANCE_NS: u64 = 1_000_000_000;

/// One such session.
pub(super) struct Lingering {
    id: SessionId,
    reference: SessionRef,
    cgroup: SessionCgroup,
}

impl Engine {
    /// Holds what a session that is over still needs.
    pub(super) fn linger(&mut self, id: SessionId, reference: SessionRef, cgroup: SessionCgroup) {
        self.lingering.push(Lingering { id, reference, cgroup });
        self.linger_due.get_or_insert_with(|| boot_now() + GLANCE_NS);
    }

    /// Lets the members of a session that only observed, and whose pins are gone, go on as they are: without an entry, the
    /// programs would take their cgroup for one whose session is gone.
    ///
    /// # Errors
    /// The slots are used up or the maps cannot be written.
    pub fn shelter(&mut self, kept: &Kept) -> Result<(), KernelError> {
        let Some(cgroup) = SessionCgroup::existing(kept.cgroup.clone()) else { return Ok(()) };
        let reference = self.slots.take()?;
        let config = SessionConfig { mode: MODE_OBSERVE, deadline: boot_now(), ..SessionConfig::default() };
        self.parts.kernel.begin(reference, config, cgroup.id())?;
        self.parts.kernel.mark_ended(reference)?;
        let SessionRef { slot, generation } = reference;
        let kept = Kept { over: true, slot, generation, ..kept.clone() };
        complain("keeping a session", self.parts.store.keep(&kept));
        self.linger(kept.start.session, reference, cgroup);
        Ok(())
    }

    /// Whether a session is over and members of it run on.
    pub(super) fn lingers(&self, id: SessionId) -> bool {
        self.lingering.iter().any(|l| l.id == id)
    }

    /// Frees what nobody needs any more.
    pub(super) fn look_after(&mut self) {
        self.linger_due = None;
        if let Some(members) = complain("counting members", self.parts.kernel.members()) {
            let lives = |l: &Lingering| {
                let labelled =
                    members.iter().any(|m| m.slot == l.reference.slot && m.generation == l.reference.generation);
                // a sheltered one has no labels any more
                labelled || l.cgroup.is_populated()
            };
            let (left, gone): (Vec<_>, Vec<_>) = self.lingering.drain(..).partition(lives);
            self.lingering = left;
            if !gone.is_empty() {
                self.forget_all(&gone.iter().map(|session| session.id).collect::<Vec<_>>());
                let places: Vec<_> = gone.iter().map(|session| (session.reference, session.cgroup.id())).collect();
                complain("releasing sessions", self.parts.kernel.release(&places));
            }
            for session in gone {
                self.slots.free(session.reference);
                self.leaving.push(session.cgroup);
            }
            self.remove_cgroups();
        }
        self.linger_due = (!self.lingering.is_empty()).then(|| boot_now() + GLANCE_NS);
    }
}
