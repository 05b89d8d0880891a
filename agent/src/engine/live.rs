//! What the engine holds of each session that lives, and of a disarm that waits for their ends.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use tipstaff_common::{event::KINDS, label::SessionRef};

use super::{crossed::Seen, idle::Doings, spent::Spent, stale::LastSeen};
use crate::{
    api::{answer::Answer, wire},
    enforce::{Flows, SessionCgroup, Sweep},
    evidence::{Mark, Principal, SessionStart},
    policy::{Limits, Plan, Policy, Resolved, Shed},
    session::{Ending, Session, SessionId},
    store::{First, PolicyText},
};

/// A disarm that waits for the last session's end.
pub(super) struct Disarming {
    pub(super) reply: Answer,
    pub(super) sessions: Vec<SessionId>,
    pub(super) principal: Principal,
}

/// A session with what the host holds for it.
pub(super) struct Live {
    pub(super) machine: Session,
    pub(super) reference: SessionRef,
    pub(super) cgroup: SessionCgroup,
    pub(super) policy: Policy,
    /// The text that `policy` was read from.
    pub(super) policy_text: PolicyText,
    /// The text of the policy that it was started under.
    pub(super) start_text: PolicyText,
    /// Where the policy was read.
    pub(super) source: String,
    /// The rules of the text that were removed.
    pub(super) removed: Vec<String>,
    /// The phase of its policy that it was narrowed to.
    pub(super) phase: Option<String>,
    /// What the policy's rules name on this host.
    pub(super) host: Resolved,
    pub(super) plan: Rc<Plan>,
    pub(super) policy_slot: u32,
    /// Policies that the session used before and that a program may still read.
    pub(super) retired: Vec<u32>,
    /// How many scopes it has had.
    pub(super) revision: u32,
    pub(super) start: SessionStart,
    /// Its limits at the start: they stay what they were, whatever becomes of its policy.
    pub(super) rules: Limits,
    /// The longest time to live that its policy gave it.
    pub(super) longest: Duration,
    /// Whose time to live is the shortest.
    pub(super) winner: &'static str,
    pub(super) started: u64,
    /// Records read, by kind.
    pub(super) consumed: [u64; KINDS],
    pub(super) denied: u64,
    pub(super) verdicts: VecDeque<wire::Verdict>,
    /// What it did, for its idle limit.
    pub(super) doings: Doings,
    /// The same of the sessions within it.
    pub(super) doings_within: BTreeMap<SessionId, Doings>,
    /// When it last did anything.
    pub(super) last_seen: LastSeen,
    /// The user that it acts for is gone, and that was recorded.
    pub(super) user_gone: bool,
    /// Frozen: whether the kernel says that all of it stands still.
    pub(super) still: Option<bool>,
    pub(super) sweep: Sweep,
    pub(super) flows: Flows,
    /// Which of its members' sockets were looked at.
    pub(super) crossed: Seen,
    /// Streams that waited at the last look because all bytes out are used up.
    pub(super) spent: Spent,
    /// Processes that ended after the session did and before a round reached them, with their names.
    pub(super) confirmed: BTreeMap<u32, Vec<u8>>,
    /// When the next round of the end is due.
    pub(super) next_round: Option<u64>,
    /// When its end was due, and when the kernel was told that it is over.
    pub(super) ending: Option<Ending>,
    /// When no member was left, `CLOCK_BOOTTIME` nanoseconds.
    pub(super) empty: Option<u64>,
    /// Processes that were reported as killed and still there.
    pub(super) stuck: Vec<u32>,
    /// An earlier agent wrote that it is over.
    pub(super) said_over: bool,
    /// Callers of `end` that wait.
    pub(super) waiting: Vec<Answer>,
    /// Records that their ring had no room for, as far as the evidence says so.
    pub(super) reported: [u64; KINDS],
    /// When that was looked at last.
    pub(super) reported_at: Option<Mark>,
    /// The first process, which the label was given to, by number and start.
    pub(super) first_process: First,
    /// The same as a descriptor; `None`: it is gone.
    pub(super) first: Option<OwnedFd>,
    /// What it was told to lay down before its first program, until that was looked at.
    pub(super) to_lay_down: Option<Shed>,
}
