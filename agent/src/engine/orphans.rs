//! What a new agent finds in the kernel and no kept session explains: it is ended, and what it held is freed.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use tipstaff_common::{label::SessionRef, session::STATE_FREE};

use super::{
    Engine,
    history::History,
    recover::{RecoverError, end_orphan, end_unknown, end_without_cgroup, members},
};
use crate::{enforce::SessionCgroup, kernel::KernelError, store::Kept};

impl Engine {
    /// Ends what the kernel holds and no kept session explains, and frees what it held.
    pub(super) fn end_orphans(&mut self, kept: &[Kept], history: &mut History) -> Result<(), RecoverError> {
        let known: Vec<Kept> = kept.iter().filter(|k| self.slots.is_taken(k.slot)).cloned().collect();
        let unknown = |reference: &SessionRef| {
            known.iter().all(|k| k.slot != reference.slot || k.generation != reference.generation)
        };
        for (inode, reference) in self.parts.kernel.session_cgroups() {
            if !unknown(&reference) {
                continue;
            }
            let Some(cgroup) = find_cgroup(&self.parts.root.path, inode) else {
                let same = |k: &&Kept| (k.slot, k.generation) == (reference.slot, reference.generation);
                if let Some(id) = kept.iter().find(same).map(|k| k.start.session) {
                    end_without_cgroup(&mut self.parts.kernel, reference, id, &mut self.parts.log, history)?;
                }
                // who still has its label would be refused everything once the slot is another's: it stays theirs, and the
                // next agent looks again
                let left = members(&mut self.parts.kernel, reference)?;
                if left.is_empty() || !self.slots.claim(reference) {
                    self.parts.kernel.release(&[(reference, inode)])?;
                }
                continue;
            };
            let id = end_orphan(&mut self.parts.kernel, reference, &cgroup, &mut self.parts.log, history)?;
            match id {
                // it only observed: what is left of it runs on
                Some(id) if cgroup.is_populated() && self.slots.claim(reference) => {
                    self.linger(id, reference, cgroup);
                }
                _ => {
                    self.parts.kernel.release(&[(reference, inode)])?;
                    self.leaving.push(cgroup);
                }
            }
        }
        end_unknown(&mut self.parts.kernel, &known, &mut self.parts.log)?;
        if !self.parts.kernel.is_first() {
            self.sweep_tables()?;
        }
        self.remove_cgroups();
        Ok(())
    }

    /// Takes out of the kernel's tables what an earlier agent left there and nobody uses.
    fn sweep_tables(&mut self) -> Result<(), KernelError> {
        let mut left = Vec::new();
        for slot in (1..tipstaff_common::limits::SESSIONS).filter(|slot| !self.slots.is_taken(*slot)) {
            let (generation, state) = self.parts.kernel.state(slot)?;
            if state != STATE_FREE {
                left.push((SessionRef { slot, generation }, 0));
            }
        }
        if !left.is_empty() {
            self.parts.kernel.release(&left)?;
        }
        self.policies.sweep(&mut self.parts.kernel)
    }
}

/// The cgroup below `root` with this id.
fn find_cgroup(root: &Path, id: u64) -> Option<SessionCgroup> {
    let entries = fs::read_dir(root).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_dir());
    let found = entries.into_iter().find(|p| fs::metadata(p).is_ok_and(|m| m.ino() == id));
    found.and_then(SessionCgroup::existing)
}
