//! Records of a session's life: its start or refusal, its changes of state, its end.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    super::text::Text,
    attach::{Attachment, InheritedDescriptor},
};
use crate::session::{Cause, EndReason, Mode, Round, SessionId, State, Took};

/// A session has an entry in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStart {
    /// Its id.
    pub session: SessionId,
    /// The policy's kind of work: `ci`, `agent` and so on.
    pub kind: String,
    /// The policy that holds.
    pub policy: PolicyRef,
    /// Whether it is enforced.
    pub mode: Mode,
    /// Who started it.
    pub principal: Principal,
    /// What was started, and where.
    pub context: Context,
    /// Time to live, milliseconds.
    pub ttl_ms: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at which it ends at the latest, as limits stood at its start.
    pub deadline_boot_ns: u64,
    /// Its other limits.
    #[serde(default)]
    pub limits: Box<StartLimits>,
    /// The labels that it was started with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The users of the host that it acts for, as they were called at its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// The fingerprint of the credential that it acts with, as its caller named it: SHA-256, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The session whose member started it, and with which it ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<SessionId>,
    /// How it came to be, where its members ran before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attachment>,
    /// Sockets that the command inherits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherited: Vec<InheritedDescriptor>,
    /// What its first process was told to give up before its first program; none: nothing, or kernel programs judge it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
}

/// What a session can do no more, whatever it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// No program gives its caller more than the caller has.
    pub no_new_privs: bool,
    /// Capabilities that were left to it, as far as it had them.
    pub kept: Vec<String>,
    /// Classes of privileges whose system calls are refused.
    pub calls: Vec<String>,
    /// Signals and looks reach nothing outside.
    pub apart: bool,
}

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub uid: u32,
    /// Its name in the host's file of users.
    pub name: String,
}

/// The user that a session acts for is not a user of the host any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalGone {
    /// The session.
    pub session: SessionId,
    /// Who it was.
    pub user: User,
    /// Whether the session ends for it.
    pub ends: bool,
}

/// What a session is held to beside its time to live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartLimits {
    /// How long it may do nothing, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// The windows in which it may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
    /// When the window that is open closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_closes: Option<Timestamp>,
    /// When its credential expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expires: Option<Timestamp>,
}

/// Which policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// The digest of its text.
    pub digest: String,
    /// Where it came from.
    pub source: String,
}

/// Who: as the kernel says, not as the workload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The user id of the login that it descends from (`/proc/PID/loginuid`); none outside a login.
    pub login_uid: Option<u32>,
}

/// What a session was started on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Its first process.
    pub pid: u32,
    /// The command.
    pub command: Vec<Text>,
    /// Whether the command is longer than that.
    pub command_cut: bool,
    /// Working directory.
    pub cwd: Text,
    /// Controlling terminal.
    pub tty: Option<Text>,
    /// Control group.
    pub cgroup: Text,
    /// Inode numbers of the namespaces, by their names in `/proc/PID/ns`.
    pub namespaces: BTreeMap<String, u64>,
}

/// A session changed its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Its id.
    pub session: SessionId,
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// A session was asked for and refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Who asked.
    pub principal: Principal,
    /// The command.
    pub command: Vec<Text>,
    /// The policy, as the caller named it.
    pub policy: String,
    /// The rule that refused, if it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What the caller was told.
    pub message: String,
}

/// Receipts that one record may hold. A session with more writes [`Receipts`] before its [`SessionEnd`].
pub const RECEIPTS_MAX: usize = 1024;

/// Receipts of a session's end, [`RECEIPTS_MAX`] at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    /// The session.
    pub session: SessionId,
    /// One for each process that was killed.
    pub receipts: Vec<Receipt>,
}

/// A process was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Its name as the kernel has it.
    pub name: Text,
    /// Whether the kernel confirmed that it is gone.
    pub gone: bool,
}

/// A session is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// Its id.
    pub session: SessionId,
    /// Why.
    pub reason: EndReason,
    /// How long it took; none where no agent saw it through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
    /// The rounds that it took.
    pub rounds: Vec<Round>,
    /// The last [`RECEIPTS_MAX`] receipts at most; others stand in [`Receipts`] before.
    pub receipts: Vec<Receipt>,
    /// Labelled tasks that run on: 0 but in mode `observe`.
    pub members_left: u64,
    /// Sockets that were cut at the end; each has a receipt in [`super::FlowsCut`].
    #[serde(default)]
    pub flows_cut: u64,
    /// Those of them that are still open: their packets are dropped.
    #[serde(default)]
    pub flows_left: u64,
    /// Records that the kernel produced, by type.
    pub produced: BTreeMap<String, u64>,
    /// Records that reached the agent, by type.
    pub consumed: BTreeMap<String, u64>,
    /// Records that did not, by type: `produced` less `consumed`.
    pub lost: BTreeMap<String, u64>,
    /// Packets that were dropped, in both directions.
    pub packets_dropped: u64,
    /// Decisions that could not be made by a rule, and were denials.
    pub faults: u64,
    /// Kills that the kernel did not take at once.
    pub signals_failed: u64,
}
