//! Receipts for sockets: what was open when a session ended, or fell out of its scope, and what the kernel made of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::session::SessionId;

/// Sockets of a session were cut, [`super::RECEIPTS_MAX`] at most in one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsCut {
    /// The session.
    pub session: SessionId,
    /// Why they were cut.
    pub cause: CutCause,
    /// Which of its scopes it had then; none where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u32>,
    /// One for each socket.
    pub sockets: Vec<SocketReceipt>,
}

/// Why sockets are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutCause {
    /// The session ended.
    End,
    /// Its scope was narrowed, and they are not in it any more.
    Narrow,
    /// They were made before their holders became the session's, and the scope does not allow them.
    Attach,
    /// They were made outside the session, and came to members that may not use them.
    Crossed,
    /// Their packets are dropped because the session's bytes out are used up: nothing more leaves by them.
    Budget,
}

/// A socket was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketReceipt {
    /// The kernel's number for it, never used twice in a boot.
    pub cookie: u64,
    /// `tcp`, `udp`, `udplite`, `sctp`, `dccp`, `raw` or the protocol's number.
    pub protocol: String,
    /// Inode number of its network namespace.
    pub netns: u64,
    /// The end on this host. The port of a raw socket is its IP protocol.
    pub from: SocketAddr,
    /// The other end; none where it has none: a listener, an unconnected datagram socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Bytes received: of payload for TCP; of packets, headers included, for others that carry a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// Bytes sent, as above; for TCP without what was repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// When it was cut, `CLOCK_BOOTTIME` nanoseconds.
    pub at_boot_ns: u64,
    /// What the kernel did.
    pub outcome: CutOutcome,
    /// Whether the kernel, asked again, did not list it any more.
    pub gone: bool,
    /// Why it was not destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What the kernel did with a socket that was to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutOutcome {
    /// Destroyed: both ends were told.
    Destroyed,
    /// It was closed before it could be destroyed, or with its listener.
    Closed,
    /// It could not be destroyed: its packets are dropped, the other end is not told.
    Silenced,
}
