//! Where the threat model says that an attempt succeeds.

use super::attempt::{EVERYBODY, Known, Who};
use crate::harness::registry::{FULL, NO_LSM, Tier, WHEREVER};

const fn known(o: u32, tiers: &'static [Tier], who: &'static [Who]) -> Known {
    Known { o, tiers, who, before: None }
}

const ROOT: &[Who] = &[Who::Bare, Who::Capable];
const CAPABLE: &[Who] = &[Who::Capable];

/// Root's own files.
pub(super) const ROOTS_FILES: Known = known(1, NO_LSM, ROOT);
/// What the capabilities of root give it, where a policy leaves them.
pub(super) const ROOTS_RIGHTS: Known = known(1, NO_LSM, CAPABLE);
pub(super) const SCRIPT: Known = known(2, NO_LSM, &EVERYBODY);
pub(super) const CROSSED: Known = known(3, NO_LSM, &EVERYBODY);
pub(super) const SPECIAL: Known = known(4, NO_LSM, &EVERYBODY);
/// Unix sockets, where there is no hook for them.
pub(super) const UNIX: Known = Known { o: 5, tiers: NO_LSM, who: &EVERYBODY, before: Some((6, 7)) };
/// A program in scope runs what it is given.
pub(super) const GIVEN: Known = known(7, WHEREVER, &EVERYBODY);
/// Signals to processes of the same user, before Landlock keeps them in.
pub(super) const SIGNALS: Known = Known { o: 10, tiers: NO_LSM, who: &EVERYBODY, before: Some((6, 12)) };

/// Signals to root's processes, the agent too, as above.
pub(super) const ROOTS_SIGNALS: Known = Known { o: 1, tiers: NO_LSM, who: ROOT, before: Some((6, 12)) };
/// A limit or a priority of another process of the same user.
pub(super) const STANDING: Known = known(19, NO_LSM, &EVERYBODY);
/// That such a process is killed first where memory runs out.
pub(super) const MEMORY: Known = known(19, WHEREVER, &EVERYBODY);
/// `cgroup.kill` and `cgroup.freeze`, of whoever may write them.
pub(super) const CGROUPS: Known = known(20, NO_LSM, &EVERYBODY);
/// To take a process into the session's cgroup.
pub(super) const TAKING_IN: Known = known(20, WHEREVER, ROOT);
/// Calls of who has the capability, which no hook sees.
pub(super) const UNSEEN: Known = known(21, FULL, CAPABLE);
pub(super) const GROUPS: Known = known(22, WHEREVER, &EVERYBODY);
pub(super) const INTERFACES: Known = known(23, WHEREVER, CAPABLE);
/// Descriptors that somebody outside passes in a message.
pub(super) const PASSED: Known = known(25, NO_LSM, &EVERYBODY);
/// On file systems in memory, as all of a guest's are.
pub(super) const MAPPED: Known = known(29, WHEREVER, &EVERYBODY);
