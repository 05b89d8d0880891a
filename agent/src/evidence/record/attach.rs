//! Records of workloads that ran before they were a session's.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{super::text::Text, life::Principal};
use crate::session::SessionId;

/// How a session came to be whose members ran before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Who had it attached.
    pub by: Principal,
    /// The cgroup that the first process was in.
    pub home: Text,
    /// The cgroup whose processes it was; none: the first process, with all that descends from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Text>,
}

/// Running processes became a session's members. What they did before this record's time is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The session.
    pub session: SessionId,
    /// How.
    #[serde(flatten)]
    pub how: Attachment,
    /// What is known of the time before: `unknown`.
    pub history: String,
    /// Processes that became members.
    pub processes: u64,
    /// Threads of them; each has its label.
    pub threads: u64,
    /// Walks over all tasks until one found nobody.
    pub walks: u64,
    /// Internet sockets that they held, but for those that listen.
    pub open: Vec<InheritedSocket>,
    /// Sockets that they listened on.
    pub listening: Vec<InheritedSocket>,
    /// Unix sockets that they held.
    pub unix: Vec<InheritedUnix>,
    /// Sockets of other kinds, and those that were made and not used.
    pub others: u64,
    /// Sockets that these lists, of [`super::RECEIPTS_MAX`] each, have no room for.
    pub unlisted: u64,
}

/// An internet socket that was made before its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedSocket {
    /// A process that holds it.
    pub pid: u32,
    /// As in a receipt.
    pub protocol: String,
    /// Inode number of its network namespace.
    pub netns: u64,
    /// The end on this host.
    pub from: SocketAddr,
    /// The other end, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Whether it was destroyed: its receipt is in the record `flows-cut`.
    pub destroyed: bool,
}

/// A socket that a command inherited as one of its descriptors 0 to 2, but for unix sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedDescriptor {
    /// Its number.
    pub descriptor: i32,
    /// As in a receipt, or the number of its family where that is none of the internet's.
    pub protocol: String,
    /// The end on this host, of the internet's families.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
    /// The other end, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Whether the command was to find `/dev/null` in its place.
    pub closed: bool,
}

/// A unix socket that was made before its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedUnix {
    /// A process that holds it.
    pub pid: u32,
    /// `stream`, `dgram` or `seqpacket`.
    pub kind: String,
    /// `listening`, `connected` or `unconnected`.
    pub state: String,
    /// What it is bound to, with `@` before an abstract name; empty: nothing.
    pub name: Text,
}
