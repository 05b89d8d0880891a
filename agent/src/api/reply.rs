//! Replies, one type a method. Public under [`super::wire`].
//!
//! Field names are what `-o json` prints, so they only ever grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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

/// Reply to `Ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ps {
    /// The sessions that live, oldest first.
    pub sessions: Vec<SessionRow>,
}

/// One session in a few words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// The policy's name.
    pub name: String,
    /// `service`, `ci`, `agent`, `operator` or `breakglass`.
    pub kind: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// `starting`, `active`, `frozen`, `ending` or `ended`.
    pub state: String,
    /// What is to become of it: `continue`, `narrow`, `hold` or `end`.
    #[serde(default)]
    pub verdict: String,
    /// What led to that: `narrowed`, `frozen` or the end reason; empty: nothing is held against it.
    #[serde(default)]
    pub why: String,
    /// The principal's user id.
    pub uid: u32,
    /// The first member's process id.
    pub pid: u32,
    /// The first member's command; may be cut.
    pub command: Vec<String>,
    /// Labelled threads.
    pub members: u64,
    /// Milliseconds since the start.
    pub age_ms: u64,
    /// Milliseconds to the deadline; 0 after it.
    pub left_ms: u64,
    /// Operations denied or killed so far (in mode `observe`: that would have been).
    pub denied: u64,
    /// Records lost so far.
    pub lost: u64,
    /// Milliseconds since it last did anything, as far as that was seen.
    #[serde(default)]
    pub idle_ms: u64,
    /// Why it is stale: `principal-gone`, `review-past`; `ps` adds `idle`.
    #[serde(default)]
    pub stale: Vec<String>,
}

/// Reply to `Inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// What `ps` shows of it.
    pub session: SessionRow,
    /// The policy in force.
    pub policy: PolicyInfo,
    /// Its limits.
    pub limits: LimitsInfo,
    /// Who it acts for.
    pub principal: Principal,
    /// How it was started.
    pub context: Context,
    /// Records, by kind.
    pub counters: Counters,
    /// How long its end takes; none: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<EndingInfo>,
    /// As in [`Status`].
    #[serde(default)]
    pub attach: String,
    /// The controls that its policy asks for.
    pub controls: Vec<Control>,
    /// Labelled threads; the list may be cut, `session.members` counts them all.
    pub members: Vec<Member>,
    /// The last verdicts that were not to allow, oldest first.
    pub verdicts: Vec<Verdict>,
}

/// An end that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingInfo {
    /// Milliseconds since it was due.
    pub since_ms: u64,
    /// Milliseconds from then until the kernel was told, rounded up.
    pub mark_ms: u64,
}

/// A session's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// `metadata.name`
    pub name: String,
    /// SHA-256 of the policy's text, hexadecimal.
    pub digest: String,
    /// Where it was read.
    pub source: String,
    /// How many scopes the session has had; more than 1: it was narrowed.
    #[serde(default)]
    pub revision: u32,
    /// The phase that it was narrowed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The phases that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<String>,
    /// What it allows and denies, one line each.
    pub summary: Vec<String>,
}

/// A session's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsInfo {
    /// Time to live in milliseconds.
    pub ttl_ms: u64,
    /// The limit that ends it first: the time to live by `policy`, `--ttl`, `host cap` or `renew`, or `idle`, `window`,
    /// `credential-expired`.
    pub winner: String,
    /// The deadline that the kernel holds, `CLOCK_BOOTTIME` nanoseconds.
    pub deadline_boot_ns: u64,
    /// Milliseconds until the limit that ends it first.
    #[serde(default)]
    pub left_ms: u64,
    /// How long it may do nothing, in milliseconds.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// What counts as doing something.
    #[serde(default)]
    pub activity: Vec<String>,
    /// The windows in which it may run.
    #[serde(default)]
    pub windows: Vec<String>,
    /// When the window that is open closes: RFC 3339, UTC.
    #[serde(default)]
    pub window_closes: Option<String>,
    /// When its credential expires: RFC 3339, UTC.
    #[serde(default)]
    pub credential_expires: Option<String>,
    /// Whether its time to live may be renewed.
    #[serde(default)]
    pub renew: bool,
}

/// Who a session acts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Login user id, where one is set.
    pub login_uid: Option<u32>,
}

/// How a session was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The first member's process id.
    pub pid: u32,
    /// Its command.
    pub command: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Its terminal, where it has one.
    pub tty: Option<String>,
    /// The labels that it was started with.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The fingerprint of the credential that it acts with, where its caller named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The session's cgroup.
    pub cgroup: String,
    /// Inode numbers of its namespaces, by name.
    pub namespaces: BTreeMap<String, u64>,
    /// What ran before it was the session's: a process or a cgroup. What it did before is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<String>,
}

/// A session's counters, by kind of record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Records that the kernel produced.
    pub produced: BTreeMap<String, u64>,
    /// Records that found no room.
    pub lost: BTreeMap<String, u64>,
    /// Packets dropped in either direction.
    pub packets_dropped: u64,
}

/// A labelled thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// RFC 3339, UTC.
    pub time: String,
    /// `exec`, `connect` or `fork`.
    pub kind: String,
    /// Process id.
    pub pid: u32,
    /// The program or address.
    pub what: String,
    /// `allow`, `deny`, `kill` or `would-deny`.
    pub verdict: String,
    /// The rule's id, or a reason that is no rule (`default`, `expired` …).
    pub rule: String,
    /// What to add to the policy, where it is likely to be missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How far a control is in force, proven by a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlState {
    /// A canary was denied.
    Enforced,
    /// It holds but for what `why` says.
    BestEffort,
    /// It records and refuses nothing.
    Observe,
    /// It is not there.
    Unavailable,
}

impl ControlState {
    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::BestEffort => "best-effort",
            Self::Observe => "observe",
            Self::Unavailable => "unavailable",
        }
    }
}

/// One kind of enforcement and its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// `exec-deny`, `connect-deny` …
    pub control: String,
    /// Its state.
    pub state: ControlState,
    /// Why it is so; empty where there is nothing to say.
    pub why: String,
}

/// One record of the evidence, byte for byte as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// The record, without the line's end.
    pub record: Box<RawValue>,
}

/// Reply to `Status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// `full` or `no-lsm`.
    pub tier: String,
    /// Which sockets the programs on cgroups see: `sessions` or `root`.
    #[serde(default)]
    pub attach: String,
    /// Milliseconds since it was ready.
    pub uptime_ms: u64,
    /// Sessions that live.
    pub sessions: u64,
    /// How many of them each verdict is on: `continue`, `narrow`, `hold`, `end`.
    #[serde(default)]
    pub verdicts: BTreeMap<String, u64>,
    /// Every control and its state.
    pub controls: Vec<Control>,
    /// Records lost since the start, by kind.
    pub lost: BTreeMap<String, u64>,
    /// Decisions that were not carried out, because the task lies outside the confinement.
    pub foreign: u64,
    /// Runs of tracepoint programs that the kernel skipped since this agent's programs were loaded, by program. Those that
    /// see births and execs are attached twice, so that one sees what the other missed.
    #[serde(default)]
    pub skipped: BTreeMap<String, u64>,
    /// How long the ends of sessions took since the start.
    #[serde(default)]
    pub ends: Ends,
    /// How often all tasks of the host were walked for members since the start.
    #[serde(default)]
    pub walks: u64,
    /// How often a file was hashed for a rule with its digest since the start.
    #[serde(default)]
    pub hashed: u64,
    /// The evidence file.
    pub evidence: EvidenceInfo,
    /// What the next agent will know.
    pub store: StoreInfo,
    /// A control that a live session asked for is not in force, records were lost, or the disk refuses.
    pub degraded: bool,
    /// Why it is degraded, one line each.
    pub why: Vec<String>,
}

/// How long ends took, each from when it was due, as in [`Took`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The bounds by which they are counted, milliseconds.
    pub bounds_ms: Vec<u64>,
    /// Until the kernel was told.
    pub mark: Spread,
    /// Until no member was left.
    pub members: Spread,
    /// Until the last flow was closed.
    pub flows: Spread,
}

/// Durations, counted by bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// How many took at most the bound, and more than the one before; one more at the end: longer than all.
    pub counts: Vec<u64>,
    /// The longest, milliseconds.
    pub max_ms: u64,
}

/// The store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// Its path.
    pub path: String,
    /// Writes that the disk refused since the start. Those of sessions that live are tried again.
    pub refused: u64,
}

/// The evidence file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceInfo {
    /// Its path.
    pub path: String,
    /// Number of the last record.
    pub n: u64,
    /// Records that wait because they could not be written.
    pub unwritten: u64,
}

/// Reply to `Probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The kernel's release.
    pub kernel: String,
    /// `full` or `no-lsm`.
    pub tier: String,
    /// As in [`Status`].
    #[serde(default)]
    pub attach: String,
    /// Every control and its state.
    pub controls: Vec<Control>,
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
