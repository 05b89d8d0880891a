//! The cut: a session's sockets are destroyed, and looked for once more. What is written about each is what the kernel
//! said, not what was asked of it.

use std::{collections::BTreeMap, io};

use super::{
    find::{Found, Hidden, Look, Which, Whose, find},
    namespaces::{Namespaces, Registry},
};
use crate::kernel::boot_now;

/// A socket that was to be cut, and what came of it.
#[derive(Debug)]
pub struct Cut {
    /// The socket as it was before.
    pub found: Found,
    /// When, on `CLOCK_BOOTTIME`.
    pub when: u64,
    /// Why the kernel did not destroy it; none where it did.
    pub failure: Option<Failure>,
    /// It is not listed any more.
    pub gone: bool,
}

/// Why a socket was not destroyed.
#[derive(Debug)]
pub enum Failure {
    /// The kernel was asked and did not; `ENOENT` where it was gone.
    Refused(io::Error),
    /// The kernel could not be asked.
    Hidden(Hidden),
}

/// The sockets of one session: where they are looked for, and those that were cut.
#[derive(Debug, Default)]
pub struct Flows {
    /// Where its members were seen.
    pub namespaces: Namespaces,
    cut: BTreeMap<Which, Cut>,
    waits: bool,
}

impl Flows {
    /// Destroys the session's sockets that `fails` is true for. Those in a namespace that was not seen yet wait.
    pub fn cut(&mut self, registry: &mut Registry, look: &mut Look<'_>, whose: &Whose, fails: impl Fn(&Found) -> bool) {
        self.waits = false;
        for found in find(&self.namespaces, registry, look, whose) {
            let waits = found.hidden == Some(Hidden::Unreachable);
            self.waits |= waits;
            if !waits && !self.cut.contains_key(&found.which()) && fails(&found) {
                self.destroy(registry, found);
            }
        }
    }

    /// Whether a socket was left at the last cut because nobody was seen where it lives.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// Destroys sockets that were found in another way, and looks for them once more.
    pub fn cut_these(
        &mut self,
        registry: &mut Registry,
        these: Vec<Found>,
        again: impl FnOnce(&Namespaces, &mut Registry) -> Vec<Found>,
    ) {
        these.into_iter().for_each(|found| self.destroy(registry, found));
        let left = again(&self.namespaces, registry);
        self.settle(&left);
    }

    /// Looks for them by a look that is later than the cut. What is new is destroyed too, and then looked for.
    pub fn confirm(
        &mut self,
        registry: &mut Registry,
        look: &mut Look<'_>,
        whose: &Whose,
        fails: impl Fn(&Found) -> bool,
    ) {
        let mut left = find(&self.namespaces, registry, look, whose);
        let is_new = |f: &&Found| !self.cut.contains_key(&f.which()) && fails(f);
        let news: Vec<Found> = left.iter().filter(is_new).cloned().collect();
        if !news.is_empty() {
            news.into_iter().for_each(|found| self.destroy(registry, found));
            look.again();
            left = find(&self.namespaces, registry, look, whose);
        }
        self.settle(&left);
    }

    fn settle(&mut self, left: &[Found]) {
        let left: BTreeMap<Which, &Found> = left.iter().map(|found| (found.which(), found)).collect();
        for (which, cut) in &mut self.cut {
            // a datagram socket that was destroyed stays open, bound to its port and connected to nobody
            cut.gone = left.get(which).is_none_or(|now| now.socket.remote != cut.found.socket.remote);
        }
    }

    /// What was cut since the last time that this was asked.
    pub fn take(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cut).into_values().collect()
    }

    fn destroy(&mut self, registry: &mut Registry, found: Found) {
        let failure = match (found.hidden, self.namespaces.reach(registry, found.namespace)) {
            (Some(hidden), _) => Some(Failure::Hidden(hidden)),
            (None, None) => Some(Failure::Hidden(Hidden::Unreachable)),
            (None, Some(diag)) => diag.borrow_mut().destroy(&found.socket).err().map(Failure::Refused),
        };
        self.cut.insert(found.which(), Cut { found, when: boot_now(), failure, gone: false });
    }
}
