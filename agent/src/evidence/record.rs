//! The records: one type each, gathered in [`Body`], and [`Record`], a body with its place in the chain.
//!
//! Owns the names of the fields, which are a public format (`docs/evidence.md`): fields may be added, none changes its
//! meaning. What a record says is the business of whoever makes it.

mod activity;
mod agent;
mod attach;
mod calls;
mod control;
mod flows;
mod life;
mod narrow;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use activity::{Act, Connect, Exec, Exit, FileRef, Fork, Move, Privilege, Socket, Unix, Verdict, Via};
pub use agent::{AgentStart, AgentStop, Control, ControlState, Disarm, Gap, GapCause, Tier};
pub use attach::{Attached, Attachment, InheritedDescriptor, InheritedSocket, InheritedUnix};
pub use calls::{CallRefusal, CallsRefused, ControlSocket};
pub use control::{Command, CredentialReuse, Lift, Revoke, StayRef, Stuck, StuckTask, Terminate, Warning};
pub use flows::{CutCause, CutOutcome, FlowsCut, SocketReceipt};
pub use life::{
    Context, PolicyRef, Principal, PrincipalGone, RECEIPTS_MAX, Receipt, Receipts, Refused, SessionEnd, SessionStart,
    StartLimits, Taken, Transition, User,
};
pub use narrow::SessionNarrowed;

use super::chain::Hash;
use crate::session::SessionId;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format: 1.
    pub v: u32,
    /// Number in the log, from 1 without a gap.
    pub n: u64,
    /// Wall clock, UTC.
    #[serde(with = "timestamp")]
    pub time: Timestamp,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// Name of the host.
    pub host: String,
    /// The kernel's boot id.
    pub boot: String,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
    /// Hash of the record before; zeros in the first.
    pub prev: Hash,
    /// Hash of this record.
    pub hash: Hash,
}

impl Record {
    /// When what it tells of happened, where it says so: as the kernel's records do, and those of refused calls. Else when it
    /// was written.
    #[must_use]
    pub fn happened(&self) -> Moment {
        let written = Moment { time: self.time, boot_ns: self.boot_ns };
        self.body.at_boot_ns().map_or(written, |at| written.back_to(at))
    }
}

/// What happened, by type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Body {
    /// The agent is in force.
    AgentStart(AgentStart),
    /// The agent leaves; enforcement stays.
    AgentStop(AgentStop),
    /// Something is not in this log, or was cut out of it.
    Gap(Gap),
    /// A session has an entry in the kernel.
    SessionStart(Box<SessionStart>),
    /// Running processes became a session's members.
    Attached(Box<Attached>),
    /// A session changed its state.
    State(Transition),
    /// A live session got a stricter scope.
    SessionNarrowed(SessionNarrowed),
    /// A member started a program, or tried to.
    Exec(Exec),
    /// A member connected, or sent without connecting, or tried to.
    Connect(Connect),
    /// A member made a task.
    Fork(Fork),
    /// A member ended.
    Exit(Exit),
    /// A task was labelled on first sight, or a member was moved to another cgroup.
    Move(Move),
    /// A member made, used or changed a socket that it may not.
    Socket(Socket),
    /// A member connected or sent to a unix socket, or tried to.
    Unix(Unix),
    /// A member tried what takes a privilege that it may not use.
    Privilege(Privilege),
    /// A session was told that it ends soon.
    Warning(Warning),
    /// The members of a session were asked to end.
    Terminate(Terminate),
    /// Members of a session were killed and cannot die yet.
    Stuck(Stuck),
    /// An operator's command on a session.
    Command(Command),
    /// The user that a session acts for is gone.
    PrincipalGone(PrincipalGone),
    /// Two sessions live that act with one credential.
    CredentialReuse(CredentialReuse),
    /// Sessions were revoked.
    Revoke(Revoke),
    /// A stay was lifted.
    Lift(Lift),
    /// A session was asked for and refused.
    Refused(Refused),
    /// The agent did not speak to who called it.
    CallsRefused(CallsRefused),
    /// Receipts of a session's end that have no room in its last record.
    Receipts(Receipts),
    /// Sockets of a session were cut.
    FlowsCut(FlowsCut),
    /// A session is over.
    SessionEnd(SessionEnd),
    /// Enforcement was taken off this host.
    Disarm(Disarm),
}

impl Body {
    /// The `type` field's value.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AgentStart(_) => "agent-start",
            Self::AgentStop(_) => "agent-stop",
            Self::Gap(_) => "gap",
            Self::SessionStart(_) => "session-start",
            Self::Attached(_) => "attached",
            Self::State(_) => "state",
            Self::SessionNarrowed(_) => "session-narrowed",
            Self::Exec(_) => "exec",
            Self::Connect(_) => "connect",
            Self::Fork(_) => "fork",
            Self::Exit(_) => "exit",
            Self::Move(_) => "move",
            Self::Socket(_) => "socket",
            Self::Unix(_) => "unix",
            Self::Privilege(_) => "privilege",
            Self::Warning(_) => "warning",
            Self::Terminate(_) => "terminate",
            Self::Stuck(_) => "stuck",
            Self::Command(_) => "command",
            Self::PrincipalGone(_) => "principal-gone",
            Self::CredentialReuse(_) => "credential-reuse",
            Self::Revoke(_) => "revoke",
            Self::Lift(_) => "lift",
            Self::Refused(_) => "refused",
            Self::CallsRefused(_) => "calls-refused",
            Self::Receipts(_) => "receipts",
            Self::FlowsCut(_) => "flows-cut",
            Self::SessionEnd(_) => "session-end",
            Self::Disarm(_) => "disarm",
        }
    }

    /// When it happened, `CLOCK_BOOTTIME` nanoseconds, where that may be before it was written.
    fn at_boot_ns(&self) -> Option<u64> {
        let at = match self {
            Self::Exec(body) => body.at_boot_ns,
            Self::Connect(body) => body.at_boot_ns,
            Self::Fork(body) => body.at_boot_ns,
            Self::Exit(body) => body.at_boot_ns,
            Self::Move(body) => body.at_boot_ns,
            Self::Socket(body) => body.at_boot_ns,
            Self::Unix(body) => body.at_boot_ns,
            Self::Privilege(body) => body.at_boot_ns,
            Self::CallsRefused(body) => body.at_boot_ns,
            _ => 0,
        };
        (at != 0).then_some(at)
    }

    /// The session that the record is about, if it is about one.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::SessionStart(body) => Some(body.session),
            Self::Attached(body) => Some(body.session),
            Self::State(body) => Some(body.session),
            Self::SessionNarrowed(body) => Some(body.session),
            Self::Exec(body) => Some(body.session),
            Self::Connect(body) => Some(body.session),
            Self::Fork(body) => Some(body.session),
            Self::Exit(body) => Some(body.session),
            Self::Move(body) => Some(body.session),
            Self::Socket(body) => Some(body.session),
            Self::Unix(body) => Some(body.session),
            Self::Privilege(body) => Some(body.session),
            Self::Receipts(body) => Some(body.session),
            Self::FlowsCut(body) => Some(body.session),
            Self::SessionEnd(body) => Some(body.session),
            Self::Warning(body) => Some(body.session),
            Self::Terminate(body) => Some(body.session),
            Self::Stuck(body) => Some(body.session),
            Self::Command(body) => Some(body.session),
            Self::PrincipalGone(body) => Some(body.session),
            Self::CredentialReuse(body) => Some(body.session),
            Self::Gap(body) => body.session,
            Self::CallsRefused(body) => body.session,
            Self::AgentStart(_) | Self::AgentStop(_) | Self::Refused(_) | Self::Disarm(_) => None,
            Self::Revoke(_) | Self::Lift(_) => None,
        }
    }
}

/// When: both clocks, read by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock.
    pub time: Timestamp,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
}

impl Moment {
    /// An earlier moment of this boot: right by the wall clock too where that was not set in between.
    #[must_use]
    pub fn back_to(self, boot_ns: u64) -> Self {
        let ago = Duration::from_nanos(self.boot_ns.saturating_sub(boot_ns));
        Self { time: self.time.checked_sub(ago).unwrap_or(self.time), boot_ns: boot_ns.min(self.boot_ns) }
    }
}

/// A moment that still means something after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Wall clock, UTC.
    #[serde(with = "timestamp")]
    pub time: Timestamp,
    /// `CLOCK_BOOTTIME` of that boot, nanoseconds.
    pub boot_ns: u64,
    /// The kernel's boot id.
    pub boot: String,
}

/// RFC 3339 in UTC, always with nine decimals, so that lines sort as text.
pub(super) mod timestamp {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(in crate::evidence) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.9}"))
    }

    pub(in crate::evidence) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
