//! What is shown of sessions and of the agent: replies that change nothing, and what they hold. Public under
//! [`super::wire`].
//!
//! Field names are what `-o json` prints, so they only ever grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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

/// How long ends took, each from when it was due, as in [`Took`](super::wire::Took).
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
