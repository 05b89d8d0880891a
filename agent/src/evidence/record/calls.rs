//! The record of calls on the agent's own sockets that the agent refused.

use serde::{Deserialize, Serialize};

use crate::session::SessionId;

/// Calls were refused, since they came from a member or it could not be told whether they did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallsRefused {
    /// The session whose members called; none where it is not known, or was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// How many calls this record stands for: all that were refused since the one before, for this session.
    pub count: u64,
    /// When the first of them was, `CLOCK_BOOTTIME` nanoseconds.
    pub since_boot_ns: u64,
    /// When the last of them was; what follows is of that one.
    pub at_boot_ns: u64,
    /// The process that connected, in the root pid namespace; 0 where the agent does not see it.
    pub pid: u32,
    /// Its effective user id as it connected.
    pub uid: u32,
    /// Where it called.
    pub socket: ControlSocket,
    /// Why it was refused.
    pub reason: CallRefusal,
    /// What the caller was told.
    pub message: String,
}

/// One of the agent's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlSocket {
    /// `read.sock`
    Read,
    /// `operate.sock`
    Operate,
}

/// Why the agent does not speak to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallRefusal {
    /// It is a member.
    Member,
    /// It is a member that may ask for a session within its own, and asked for something else.
    Nesting,
    /// It could not be told what it is.
    Unknown,
}
