//! Records of what was done to a session while it lived: warnings, signals, operators' commands.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{super::text::Text, Principal, timestamp};
use crate::session::{EndReason, SessionId};

/// A session was told that it ends soon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Its id.
    pub session: SessionId,
    /// The limit that will end it.
    pub limit: EndReason,
    /// Milliseconds until then.
    pub left_ms: u64,
    /// The signal that its first process was sent, where the policy names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Whether the kernel took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<bool>,
}

/// The members of a session were asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminate {
    /// Its id.
    pub session: SessionId,
    /// Processes that were sent `SIGTERM`.
    pub signalled: u64,
    /// Milliseconds until those that are left are killed.
    pub grace_ms: u64,
}

/// Processes of a session that were killed and cannot die yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The session.
    pub session: SessionId,
    /// The processes.
    pub tasks: Vec<StuckTask>,
}

/// A process that was killed and is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckTask {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Its name.
    pub name: Text,
    /// What the kernel says it does, as `/proc/PID/status` has it: `D (disk sleep)` is uninterruptible sleep.
    pub state: String,
}

/// An operator's command on a session that lived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The session.
    pub session: SessionId,
    /// `end`, `renew`, `freeze` or `thaw`.
    pub verb: String,
    /// Who gave it.
    pub principal: Principal,
    /// What came of it.
    pub detail: String,
}

/// Sessions live that act with one credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialReuse {
    /// The session that began last.
    pub session: SessionId,
    /// The name of its policy.
    pub policy: String,
    /// The fingerprint: SHA-256, hexadecimal.
    pub credential: String,
    /// Those that were there before it.
    pub others: Vec<SessionId>,
}

/// Sessions were revoked, and perhaps what may not start for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// Who gave the command.
    pub principal: Principal,
    /// What was revoked: `session`, `principal`, `policy`, `label` or `credential`.
    pub by: String,
    /// Its value.
    pub value: String,
    /// The sessions that it hit.
    pub sessions: Vec<SessionId>,
    /// Until when it cannot start again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stay: Option<StayRef>,
}

/// A stay as evidence names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StayRef {
    /// Its id.
    pub id: String,
    /// Wall clock, UTC.
    #[serde(with = "timestamp")]
    pub until: Timestamp,
}

/// A stay was lifted before its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lift {
    /// Who lifted it.
    pub principal: Principal,
    /// The stay's id.
    pub stay: String,
}
