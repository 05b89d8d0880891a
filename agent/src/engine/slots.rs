//! Numbers in the kernel's tables: slots of sessions with a generation that is never used twice, and policies, which
//! equal plans share.

use std::rc::Rc;

use tipstaff_common::{label::SessionRef, limits, rule::PortRule};

use crate::{
    kernel::{AddressRules, Kernel, KernelError, Revision},
    policy::{NetTable, Plan},
};

/// Free and taken session slots.
#[derive(Debug)]
pub(super) struct Slots {
    taken: Vec<bool>,
    generation: u32,
}

impl Slots {
    /// `seed` makes generations differ from those of an earlier agent: boottime nanoseconds.
    pub(super) fn new(seed: u64) -> Self {
        let mut taken = vec![false; limits::SESSIONS as usize];
        taken[0] = true; // the canary's
        Self { taken, generation: stamp(seed) }
    }

    /// A free slot with a fresh generation.
    pub(super) fn take(&mut self) -> Result<SessionRef, KernelError> {
        let free = self.taken.iter().position(|taken| !taken);
        let slot = free.ok_or(KernelError::Full { what: "session slots", limit: limits::SESSIONS - 1 })?;
        self.taken[slot] = true;
        self.generation = self.generation.wrapping_add(1).max(1);
        Ok(SessionRef { slot: u32::try_from(slot).unwrap_or(0), generation: self.generation })
    }

    /// Takes the slot of a session that an earlier agent began. False: it is taken, or none.
    pub(super) fn claim(&mut self, session: SessionRef) -> bool {
        let Some(taken) = self.taken.get_mut(session.slot as usize) else { return false };
        !std::mem::replace(taken, true)
    }

    /// Whether a session has the slot.
    pub(super) fn is_taken(&self, slot: u32) -> bool {
        self.taken.get(slot as usize).copied().unwrap_or(false)
    }

    /// Gives a slot back, once nothing carries its label.
    pub(super) fn free(&mut self, session: SessionRef) {
        if let Some(taken) = self.taken.get_mut(session.slot as usize) {
            *taken = session.slot == 0;
        }
    }
}

/// A plan in the kernel.
struct Installed {
    /// `None`: an earlier agent put it there, and no new session shares it.
    plan: Option<Rc<Plan>>,
    slot: u32,
    revision: u32,
    users: usize,
}

/// Where in the kernel a plan is, or will be.
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) revision: u32,
    pub(super) plan: Rc<Plan>,
}

/// The plans in the kernel.
pub(super) struct Policies {
    installed: Vec<Installed>,
    revisions: u32,
}

impl Policies {
    /// `seed` makes revisions differ from those of an earlier agent, also from those that it kept and that the kernel has
    /// no more: boottime nanoseconds.
    pub(super) fn new(seed: u64) -> Self {
        Self { installed: Vec::new(), revisions: stamp(seed) }
    }

    /// The revision that stands under a number; 0: none.
    pub(super) fn revision(&self, slot: u32) -> u32 {
        self.installed.iter().find(|i| i.slot == slot).map_or(0, |i| i.revision)
    }

    /// Where a plan is in force, or would be next.
    pub(super) fn place(&self, plan: Plan) -> Result<Place, KernelError> {
        let same = |i: &&Installed| i.plan.as_ref().is_some_and(|shared| **shared == plan);
        if let Some(Installed { plan: Some(shared), slot, revision, .. }) = self.installed.iter().find(same) {
            return Ok(Place { slot: *slot, revision: *revision, plan: Rc::clone(shared) });
        }
        let free = (1..limits::POLICIES).find(|slot| self.installed.iter().all(|i| i.slot != *slot));
        let slot = free.ok_or(KernelError::Full { what: "policies", limit: limits::POLICIES - 1 })?;
        Ok(Place { slot, revision: self.revisions.wrapping_add(1).max(1), plan: Rc::new(plan) })
    }

    /// Puts a plan in force, or finds an equal one that is. Its number in `POLICIES`.
    pub(super) fn acquire(&mut self, kernel: &mut Kernel, plan: Plan) -> Result<(u32, Rc<Plan>), KernelError> {
        let place = self.place(plan)?;
        self.take(kernel, &place, || ())?;
        Ok((place.slot, place.plan))
    }

    /// As [`Policies::acquire`], of the place that was just asked for. `meanwhile` is done while the kernel lets the tables wait.
    pub(super) fn take<R>(
        &mut self,
        kernel: &mut Kernel,
        Place { slot, revision, plan }: &Place,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, KernelError> {
        if let Some(same) = self.installed.iter_mut().find(|i| i.slot == *slot) {
            same.users += 1;
            return Ok(meanwhile());
        }
        let (slot, revision) = (*slot, *revision);
        self.revisions = revision;
        let exec: Vec<_> = plan.exec.iter().map(|(k, v)| (*k, *v)).collect();
        let unix: Vec<_> = plan.unix.iter().map(|(k, v)| (*k, *v)).collect();
        let [net, listen, inbound] = [&plan.net, &plan.listen, &plan.inbound].map(trie);
        let entry = plan.entry(revision);
        let rules = Revision { exec: &exec, net: &net, listen: &listen, inbound: &inbound, unix: &unix, entry };
        let done = kernel.install(slot, &rules, meanwhile)?;
        self.installed.push(Installed { plan: Some(Rc::clone(plan)), slot, revision, users: 1 });
        Ok(done)
    }

    /// Counts a session of an earlier agent as a user of the policy that it left in the kernel.
    pub(super) fn adopt(&mut self, slot: u32, revision: u32) {
        self.revisions = self.revisions.max(revision);
        match self.installed.iter_mut().find(|i| i.slot == slot) {
            Some(known) => known.users += 1,
            None => self.installed.push(Installed { plan: None, slot, revision, users: 1 }),
        }
    }

    /// Takes out of the kernel what an earlier agent left there and no session uses.
    pub(super) fn sweep(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        for slot in (0..limits::POLICIES).filter(|slot| self.installed.iter().all(|i| i.slot != *slot)) {
            let revision = kernel.revision(slot)?;
            if revision != 0 {
                kernel.uninstall(slot, revision)?;
            }
        }
        Ok(())
    }

    /// One session less uses the policy; without users it leaves the kernel.
    pub(super) fn release(&mut self, kernel: &mut Kernel, slot: u32) -> Result<(), KernelError> {
        let Some(index) = self.installed.iter().position(|i| i.slot == slot) else { return Ok(()) };
        self.installed[index].users -= 1;
        if self.installed[index].users > 0 {
            return Ok(());
        }
        let gone = self.installed.swap_remove(index);
        kernel.uninstall(gone.slot, gone.revision)
    }
}

/// About a thousand a second: no agent makes sessions or policies as fast as that for long.
fn stamp(boot_ns: u64) -> u32 {
    u32::try_from((boot_ns >> 20) & 0xffff_ffff).unwrap_or(0)
}

fn trie(table: &NetTable) -> Vec<AddressRules<&[PortRule]>> {
    table.iter().map(|(key, rules)| (key.prefix_len, key.address, rules.as_slice())).collect()
}
