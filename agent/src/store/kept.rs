//! A session as it is kept for the next agent.

use std::{net::IpAddr, path::PathBuf, rc::Rc};

use serde::{Deserialize, Serialize};
use tipstaff_common::rule::FileId;

use super::PolicyText;
use crate::{
    evidence::SessionStart,
    policy::Resolved,
    session::{Ending, Session},
};

/// All that the next agent cannot ask the kernel or the evidence for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The kernel's boot id.
    pub boot: String,
    /// Slot in the kernel's arrays.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// Its policy's number in `POLICIES`.
    pub policy_slot: u32,
    /// The revision that stands under that number: numbers are used again, revisions are not. 0: not known.
    #[serde(default)]
    pub policy_revision: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// It has ended, and members of it run on: it only observed.
    pub over: bool,
    /// Where it is in its life.
    pub machine: Session,
    /// Its first record.
    pub start: SessionStart,
    /// The text of the policy that holds. Empty, in what was kept before a narrowing: the same as after it.
    pub policy: PolicyText,
    /// The text of the policy that it was started under, whose limits stay. Empty: that of the policy that holds, or as above. See
    /// [`Kept::start_text`].
    pub start_policy: PolicyText,
    /// What became of its scope since then; none: it was never narrowed.
    #[serde(default)]
    pub narrowed: Option<Narrowed>,
    /// What its rules named, as far as the kernel cannot tell.
    pub named: Named,
    /// Whose limit is the shortest.
    pub winner: String,
    /// `CLOCK_BOOTTIME` nanoseconds at which it started.
    pub started: u64,
    /// Its first process.
    pub first: First,
    /// Its end is under way; none: it is not, or it was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// A narrowing is under way: the session as it was kept before it.
    #[serde(default)]
    pub before: Option<Box<Kept>>,
}

impl Kept {
    /// The text of the policy that it was started under.
    #[must_use]
    pub fn start_text(&self) -> &PolicyText {
        if self.start_policy.is_empty() { &self.policy } else { &self.start_policy }
    }

    /// As `start_policy` has it beside the text of the policy that holds: texts take the room and the time, and most sessions have one.
    #[must_use]
    pub fn beside(policy: &PolicyText, start: &PolicyText) -> PolicyText {
        if policy == start { PolicyText::default() } else { start.clone() }
    }

    /// The session as it is kept while a narrowing to `self` is under way. What is the same before and after is written once of
    /// the texts of policies: they are what takes the room and the time.
    #[must_use]
    pub fn begun(mut self, mut before: Self) -> Self {
        if before.start_policy == self.start_policy {
            before.start_policy = PolicyText::default();
        }
        if before.policy == self.policy {
            before.policy = PolicyText::default();
        }
        self.before = Some(Box::new(before));
        self
    }

    /// How many scopes it has had.
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.narrowed.as_ref().map_or(1, |narrowed| narrowed.revision)
    }

    /// What of a narrowing that was under way holds, and whether the kernel has still to be told. `in_force` is the
    /// policy's number that the kernel has for the session, `revision` what stands there under a number. The kernel's word
    /// wins: it is moved only from the very policy before to the very one that was kept.
    ///
    /// # Errors
    /// Those of `revision`.
    pub fn settled<E>(mut self, in_force: u32, revision: impl Fn(u32) -> Result<u32, E>) -> Result<(Self, bool), E> {
        let Some(mut before) = self.before.take() else { return Ok((self, false)) };
        if before.policy.is_empty() {
            before.policy.clone_from(&self.policy);
        }
        if before.start_policy.is_empty() {
            before.start_policy.clone_from(&self.start_policy);
        }
        let stands = |kept: &Self| Ok(kept.policy_revision != 0 && revision(kept.policy_slot)? == kept.policy_revision);
        if in_force != before.policy_slot || !stands(&before)? {
            return Ok((self, false));
        }
        Ok(if stands(&self)? { (self, true) } else { (*before, false) })
    }
}

/// A scope that is not the one that the session started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Narrowed {
    /// How many scopes the session has had.
    pub revision: u32,
    /// Where its policy was read.
    pub source: String,
    /// The digest of its policy.
    pub digest: String,
    /// The rules of the text that it does not have.
    pub removed: Vec<String>,
    /// The id of each rule number in the kernel.
    pub rules: Rc<[String]>,
    /// The longest time to live that its policies gave it, milliseconds.
    #[serde(default)]
    pub longest_ms: u64,
    /// Whether it may be renewed.
    #[serde(default)]
    pub renew: bool,
    /// The phase of its policy that it is in.
    #[serde(default)]
    pub phase: Option<String>,
}

/// What rules named on this host when they were looked at: the next agent holds the session to the same, whatever the host's
/// files say by then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The host's resolvers.
    resolvers: Vec<IpAddr>,
    /// The host's own addresses; none in what was kept before there was this field.
    #[serde(default)]
    own: Vec<IpAddr>,
    /// In the order of the policy's rules for unix sockets.
    unix: Vec<NamedUnix>,
}

/// What one rule for unix sockets named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedUnix {
    files: Vec<FileNumber>,
    place: Option<(FileNumber, Vec<u8>)>,
    trusted: bool,
}

/// Inode, device, generation.
type FileNumber = (u64, u32, u32);

impl Named {
    /// What the rules of a policy named.
    #[must_use]
    pub fn of(host: &Resolved) -> Self {
        let number = |file: &FileId| (file.inode, file.device, file.generation);
        let unix = host.unix.iter().map(|found| NamedUnix {
            files: found.files.iter().map(number).collect(),
            place: found.place.as_ref().map(|(directory, name)| (number(directory), name.clone())),
            trusted: found.trusted,
        });
        Self { resolvers: host.resolvers.clone(), own: host.own.clone(), unix: unix.collect() }
    }

    /// Takes it for what the rules name now. False: there are other rules than those that it is of.
    #[must_use]
    pub fn put(&self, host: &mut Resolved) -> bool {
        if self.unix.len() != host.unix.len() {
            return false;
        }
        let file = |(inode, device, generation): &FileNumber| FileId {
            inode: *inode,
            device: *device,
            generation: *generation,
        };
        host.resolvers.clone_from(&self.resolvers);
        host.own.clone_from(&self.own);
        for (found, named) in host.unix.iter_mut().zip(&self.unix) {
            found.files = named.files.iter().map(file).collect();
            found.place = named.place.as_ref().map(|(directory, name)| (file(directory), name.clone()));
            found.trusted = named.trusted;
        }
        true
    }
}

/// A process by number and start: no other has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct First {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22); 0: unknown.
    pub started: u64,
}
