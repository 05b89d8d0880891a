//! The closed lists: states, modes, end reasons, and the causes of a change of state, each with the one name that the
//! evidence, the command line and the API use.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The name is not in its closed list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not {what}; use one of: {known}")]
pub struct UnknownName {
    name: String,
    what: &'static str,
    known: String,
}

fn find<T: Copy + fmt::Display>(all: &[T], name: &str, what: &'static str) -> Result<T, UnknownName> {
    all.iter().copied().find(|item| item.to_string() == name).ok_or_else(|| UnknownName {
        name: name.to_owned(),
        what,
        known: all.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    })
}

/// Where a session is in its life. It never leaves `Ended`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has an entry in the kernel; its first task is not known to be labelled yet.
    Starting,
    /// Members run in their scope.
    Active,
    /// Members are stopped.
    Frozen,
    /// Members wait for a decision.
    Held,
    /// The kernel refuses everything; what is left is being removed.
    Ending,
    /// Over.
    Ended,
}

impl State {
    /// Every state, in the order of a session's life.
    pub const ALL: [Self; 6] = [Self::Starting, Self::Active, Self::Frozen, Self::Held, Self::Ending, Self::Ended];

    /// The state's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Held => "held",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        find(&Self::ALL, name, "a state")
    }
}

/// Whether a session's scope is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What is out of scope is refused; at the end nothing is left.
    Enforce,
    /// What would have been refused is recorded; nothing is refused and nobody is killed.
    Observe,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Observe];

    /// The mode's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        find(&Self::ALL, name, "a mode")
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// Its first process ended.
    Completed,
    /// Its time to live passed.
    Ttl,
    /// Nothing happened in it for too long.
    Idle,
    /// The calendar window in which it may run closed.
    Window,
    /// The credential that it was started with expired.
    CredentialExpired,
    /// It was revoked.
    Revoked,
    /// Its principal or credential is locked.
    Locked,
    /// It did what its policy answers with the end.
    Violation,
    /// A budget is used up.
    Budget,
    /// What it was started on no longer holds.
    ContextChanged,
    /// Nobody approved in time.
    ApprovalTimeout,
    /// The agent was gone, and the policy ends the session for that.
    AgentLoss,
    /// An operator ended it.
    Operator,
    /// Another session took its place.
    Superseded,
    /// It never became active.
    StartFailed,
    /// The host was started again.
    Reboot,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Completed,
        Self::Ttl,
        Self::Idle,
        Self::Window,
        Self::CredentialExpired,
        Self::Revoked,
        Self::Locked,
        Self::Violation,
        Self::Budget,
        Self::ContextChanged,
        Self::ApprovalTimeout,
        Self::AgentLoss,
        Self::Operator,
        Self::Superseded,
        Self::StartFailed,
        Self::Reboot,
    ];

    /// The reason's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Ttl => "ttl",
            Self::Idle => "idle",
            Self::Window => "window",
            Self::CredentialExpired => "credential-expired",
            Self::Revoked => "revoked",
            Self::Locked => "locked",
            Self::Violation => "violation",
            Self::Budget => "budget",
            Self::ContextChanged => "context-changed",
            Self::ApprovalTimeout => "approval-timeout",
            Self::AgentLoss => "agent-loss",
            Self::Operator => "operator",
            Self::Superseded => "superseded",
            Self::StartFailed => "start-failed",
            Self::Reboot => "reboot",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EndReason {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        find(&Self::ALL, name, "an end reason")
    }
}

/// What moved a session from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Cause {
    /// The first task carries the label: it was read back.
    Labelled,
    /// The end began, for this reason.
    End(EndReason),
    /// Its members were stopped, because an operator asked for it.
    Frozen,
    /// They were let go again.
    Thawed,
    /// What is left of the session was counted: nothing, or in mode `observe` what was left to run on.
    Measured,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Labelled => "labelled",
            Self::End(reason) => reason.as_str(),
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
            Self::Measured => "measured",
        })
    }
}

impl FromStr for Cause {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "labelled" => Ok(Self::Labelled),
            "frozen" => Ok(Self::Frozen),
            "thawed" => Ok(Self::Thawed),
            "measured" => Ok(Self::Measured),
            _ => find(&EndReason::ALL, name, "a cause").map(Self::End),
        }
    }
}

impl TryFrom<String> for Cause {
    type Error = UnknownName;

    fn try_from(name: String) -> Result<Self, UnknownName> {
        name.parse()
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.to_string()
    }
}
