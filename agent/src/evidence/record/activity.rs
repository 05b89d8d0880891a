//! Records of what members did, one for each record of the kernel. Process ids are those of the root pid namespace.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::super::text::Text;
use crate::session::SessionId;

/// A member started a program, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// What was asked for; of what was judged late the last part.
    pub path: Text,
    /// The first arguments.
    pub args: Vec<Text>,
    /// Whether there are more, or the last is longer.
    pub args_cut: bool,
    /// The program that was judged.
    pub file: FileRef,
    /// What was decided.
    pub verdict: Verdict,
    /// The rule's id, or `default`, `expired`, `ended`, `unresolved`, `unlabelled`, `leaves`, `fault`.
    pub rule: String,
    /// The kernel told nobody of the start: the program was judged when it did something.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// Which file, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// The superblock's device number.
    pub device: u32,
    /// Inode number.
    pub inode: u64,
    /// Inode generation.
    pub generation: u32,
}

/// What was decided on one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It went on.
    Allow,
    /// It was refused.
    Deny,
    /// The task was killed before its next instruction.
    Kill,
    /// It went on, and would have been refused: mode `observe`.
    WouldDeny,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Kill => "kill",
            Self::WouldDeny => "would-deny",
        })
    }
}

/// A member connected, or sent without connecting, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// Where to: `1.2.3.4:80` or `[::1]:80`.
    pub to: SocketAddr,
    /// `tcp`, `udp`, or the protocol's number.
    pub protocol: String,
    /// How the address came.
    pub via: Via,
    /// What was decided.
    pub verdict: Verdict,
    /// As in [`Exec`], or `dns-denied` for a query to port 53 that no rule names.
    pub rule: String,
    /// What to add to the policy, where it is likely to be missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How an address reached the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// By connect(2).
    Connect,
    /// With a message.
    Send,
    /// A local address, by bind(2).
    Bind,
    /// A local address, by listen(2) or by a connection to a port that may not be listened on.
    Listen,
    /// A peer that came in, and the local port that it came to.
    Accept,
    /// In a packet that no hook before had judged; the first that was dropped.
    Packet,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Packet => "packet",
        })
    }
}

/// A member made a socket of a kind that it may not make, used one that is not its session's, or set an option that it
/// may not set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// What it tried.
    pub act: Act,
    /// `AF_*`
    pub family: u16,
    /// `SOCK_*`
    pub kind: u16,
    /// `IPPROTO_*` and the like.
    pub protocol: u16,
    /// `SOL_*` of an option, else 0.
    pub level: u32,
    /// The option's number, else 0.
    pub option: u32,
    /// What was decided.
    pub verdict: Verdict,
    /// As in [`Exec`].
    pub rule: String,
}

/// What was tried with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// To make it.
    Create,
    /// To take it over from another process.
    Receive,
    /// To use it, though it was made outside the session.
    Use,
    /// To set an option.
    Option,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Receive => "receive",
            Self::Use => "use",
            Self::Option => "option",
        })
    }
}

/// A member connected or sent to a unix socket, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unix {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// What the socket is bound to; `@` stands before an abstract name.
    pub to: Text,
    /// The socket's file; all 0 where it has none.
    pub file: FileRef,
    /// How it was reached.
    pub via: Via,
    /// What was decided.
    pub verdict: Verdict,
    /// As in [`Exec`].
    pub rule: String,
}

/// A member tried what takes a privilege that its policy does not let it use, or what no policy allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privilege {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds.
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// The class, as a policy names it.
    pub class: String,
    /// Process id of whom it was tried on, if it was a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    /// Of class `delegation`: the place of whoever starts programs, as the list of such places has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The signal, or the command of bpf(2); else 0.
    pub detail: u32,
    /// What was decided.
    pub verdict: Verdict,
    /// As in [`Exec`].
    pub rule: String,
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class)?;
        self.place.as_ref().map_or(Ok(()), |place| write!(f, " {place}"))?;
        self.target.map_or(Ok(()), |target| write!(f, " process {target}"))
    }
}

/// A member made a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// The parent's process id.
    pub pid: u32,
    /// The new task's thread id; of a new process this is its process id; 0 where it was refused before it had one.
    pub child: u32,
    /// What was decided: a session that is over starts nothing.
    pub verdict: Verdict,
    /// As in [`Exec`].
    pub rule: String,
}

/// A member ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// As wait(2) reports it: the exit status in bits 8 to 15, or the signal in bits 0 to 6.
    pub status: u32,
}

/// A task was labelled on first sight, or a member was moved to another cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Its session.
    pub session: SessionId,
    /// The kernel's sequence number in the session.
    pub seq: u64,
    /// When it happened, `CLOCK_BOOTTIME` nanoseconds; 0 in a log of before there was this field.
    #[serde(default)]
    pub at_boot_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Id of the cgroup that it is in now.
    pub cgroup: u64,
    /// Whether this made it a member; it was one already if not.
    pub joined: bool,
}
