//! Records about the agent and about the log itself.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Mark, Principal};
use crate::session::SessionId;

/// The agent is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStart {
    /// Its version.
    pub version: String,
    /// The kernel's release, as uname(2) gives it.
    pub kernel: String,
    /// What this kernel allows.
    pub tier: Tier,
    /// Which sockets the programs on cgroups see: `sessions` or `root`; none: of an agent that had no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
    /// Every control with its state.
    pub controls: Vec<Control>,
}

/// What the kernel lets the agent use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// LSM programs are usable.
    Full,
    /// They are not.
    NoLsm,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::NoLsm => "no-lsm",
        })
    }
}

/// One kind of enforcement and what was found of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Its name.
    pub control: String,
    /// What it does on this host.
    pub state: ControlState,
    /// Why it is not `enforced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a control does on this host; proven, not assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlState {
    /// A canary was denied.
    Enforced,
    /// It denies, with known holes.
    BestEffort,
    /// It records, and denies nothing.
    Observe,
    /// It does nothing here.
    Unavailable,
}

impl fmt::Display for ControlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enforced => "enforced",
            Self::BestEffort => "best-effort",
            Self::Observe => "observe",
            Self::Unavailable => "unavailable",
        })
    }
}

/// The agent leaves; enforcement stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStop {
    /// Why: a signal's name, or an error.
    pub reason: String,
}

/// Something is not in this log. The gap ends where this record stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Why.
    pub cause: GapCause,
    /// How many records, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Where it begins, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Mark>,
    /// The session whose records are missing, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// How many of which type, where that is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, u64>,
    /// More, for a reader: the file that holds what was set aside, an error's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Gap {
    /// A gap of which no more is known.
    #[must_use]
    pub const fn new(cause: GapCause) -> Self {
        Self { cause, lost: None, since: None, session: None, kinds: BTreeMap::new(), detail: None }
    }
}

/// Why something is not in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapCause {
    /// The last line was unfinished when the agent started: a crash. It was set aside.
    Torn,
    /// The head file knows of records that the log does not have, or there was none to ask.
    Cut,
    /// The end of the log did not bear the hashes that it states. It was set aside.
    Altered,
    /// Records could not be written, for want of space as a rule.
    NotWritten,
    /// No agent ran.
    AgentAbsent,
    /// The kernel's ring had no room.
    RingFull,
}

impl fmt::Display for GapCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Torn => "torn",
            Self::Cut => "cut",
            Self::Altered => "altered",
            Self::NotWritten => "not-written",
            Self::AgentAbsent => "agent-absent",
            Self::RingFull => "ring-full",
        })
    }
}

/// Enforcement was taken off this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disarm {
    /// Who asked.
    pub principal: Principal,
    /// The sessions that were live.
    pub sessions: Vec<SessionId>,
}
