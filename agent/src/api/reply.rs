//! Replies, one type a method; those that only show something are in `shown.rs`. Public under [`super::wire`].
//!
//! Field names are what `-o json` prints, so they only ever grow.

use serde::{Deserialize, Serialize};

use super::shown::{Event, Inspect, Probe, Ps, Status};
use crate::policy::Shed;

/// What a call is answered with.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `Ps`.
    Ps(Ps),
    /// To `Inspect`.
    Inspect(Box<Inspect>),
    /// To `Events`, one at a time.
    Event(Event),
    /// To `Events`, at the end of the history when the caller does not follow.
    EndOfEvents {},
    /// To `Status`.
    Status(Box<Status>),
    /// To `Probe`.
    Probe(Probe),
    /// To `Run`.
    Started(Started),
    /// To `Attach`.
    Attached(Box<Attached>),
    /// To `End`.
    Ended(Ended),
    /// To `Renew`.
    Renewed(Renewed),
    /// To `Freeze` and `Thaw`.
    Frozen(Frozen),
    /// To `Revoke`.
    Revoked(Revoked),
    /// To `Stays` and `Lift`.
    Stays(Stays),
    /// To `Narrow`.
    Narrowed(Narrowed),
    /// To `Disarm`.
    Disarmed(Disarmed),
}

/// Reply to `Narrow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowed {
    /// The session's id.
    pub session: String,
    /// How many scopes it has had, this one included.
    pub revision: u32,
    /// Digest of the policy before.
    pub from: String,
    /// Digest of the policy that holds now.
    pub to: String,
    /// The rules that were removed.
    pub removed: Vec<String>,
    /// The phase that it is in now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What the caller should know.
    pub notes: Vec<String>,
    /// Until the new scope held, milliseconds.
    pub ms: u64,
    /// Of these, how long the kernel let the agent wait before it could hold: until no program used a map as it was before.
    pub waited_ms: u64,
}

/// Reply to `Run`: the caller is a member now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The session's id.
    pub session: String,
    /// The deadline, `CLOCK_BOOTTIME` nanoseconds.
    pub deadline_boot_ns: u64,
    /// Time to live in milliseconds.
    pub ttl_ms: u64,
    /// What the caller should know, one line each (a control that is best-effort here, a ttl that was capped).
    pub notes: Vec<String>,
    /// Descriptors that the command must not find: `/dev/null` takes their place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub close: Vec<i32>,
    /// What the caller lays down before the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shed: Option<Shed>,
}

/// Reply to `Attach`: who was meant is a member now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The session's id.
    pub session: String,
    /// The deadline, `CLOCK_BOOTTIME` nanoseconds.
    pub deadline_boot_ns: u64,
    /// Time to live in milliseconds.
    pub ttl_ms: u64,
    /// Processes that became members.
    pub processes: u64,
    /// Threads of them.
    pub threads: u64,
    /// Internet sockets that they held, but for those that listen.
    pub open: Vec<InheritedSocket>,
    /// Sockets that they listened on.
    pub listening: Vec<InheritedSocket>,
    /// Unix sockets that they held.
    pub unix: Vec<InheritedUnix>,
    /// Sockets of other kinds, and those that were made and not used.
    pub others: u64,
    /// What the caller should know, one line each.
    pub notes: Vec<String>,
}

/// An internet socket that was made before its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedSocket {
    /// A process that holds it.
    pub pid: u32,
    /// `tcp`, `udp` and so on.
    pub protocol: String,
    /// The end on this host.
    pub from: String,
    /// The other end, where it has one.
    pub to: Option<String>,
    /// Whether it was destroyed.
    pub destroyed: bool,
}

/// A unix socket that was made before its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InheritedUnix {
    /// A process that holds it.
    pub pid: u32,
    /// `stream`, `dgram` or `seqpacket`.
    pub kind: String,
    /// `listening`, `connected` or `unconnected`.
    pub state: String,
    /// What it is bound to, with `@` before an abstract name; empty: nothing.
    pub name: String,
}

/// Reply to `End`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The session's id.
    pub session: String,
    /// The end reason that was recorded.
    pub reason: String,
    /// Tasks that were killed and seen dead.
    pub killed: u64,
    /// Tasks that are still there.
    pub members_left: u64,
    /// Milliseconds that it took.
    pub ms: u64,
    /// The same from when it was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
}

/// How long an end took from when it was due: the request, or the moment of the limit. Milliseconds, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Until the kernel was told, and refuses everything.
    pub mark_ms: u64,
    /// Until no member was left; none: some are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_ms: Option<u64>,
    /// Until the last flow was closed; none: there was none, or one is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_ms: Option<u64>,
}

/// Reply to `Renew`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The session's id.
    pub session: String,
    /// Its time to live from its start to its new end, in milliseconds.
    pub ttl_ms: u64,
    /// Milliseconds until the limit that ends it first.
    pub left_ms: u64,
    /// Which limit that is, as in `Inspect`.
    pub winner: String,
    /// What the caller should know, one line each.
    pub notes: Vec<String>,
}

/// Reply to `Freeze` and `Thaw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// The session's id.
    pub session: String,
    /// Its state now.
    pub state: String,
    /// Processes of the session.
    pub members: u64,
    /// Those that are not in its cgroup, and so are stopped and let go by a signal.
    pub outside: Vec<u32>,
    /// Whether the kernel says that all of them stand still; after `Thaw` always false.
    pub still: bool,
}

/// Reply to `Revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Nothing was done: these sessions would be hit.
    pub dry_run: bool,
    /// The sessions.
    pub sessions: Vec<RevokedRow>,
    /// What cannot start for a while now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stay: Option<Stay>,
}

/// A session that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRow {
    /// Its id.
    pub id: String,
    /// Its policy's name.
    pub policy: String,
    /// The principal's user id.
    pub uid: u32,
    /// Its first process.
    pub pid: u32,
    /// Its command; may be cut.
    pub command: Vec<String>,
    /// Tasks that are still there: those of a session that only observed.
    pub members_left: u64,
}

/// Reply to `Stays`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stays {
    /// What cannot start, the next to end first.
    pub stays: Vec<Stay>,
}

/// What cannot start for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// Its id: 32 lower-case hexadecimal digits.
    pub id: String,
    /// `principal`, `policy` or `credential`.
    pub by: String,
    /// The user id, the policy's name or the fingerprint.
    pub value: String,
    /// Until when: RFC 3339, UTC.
    pub until: String,
}

/// Reply to `Disarm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disarmed {
    /// Sessions that were ended by it.
    pub sessions: u64,
    /// What was removed (pins, cgroups), by path.
    pub removed: Vec<String>,
    /// What could not be removed and why, one line each.
    pub left: Vec<String>,
}
