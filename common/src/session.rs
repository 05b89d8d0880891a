//! What the kernel knows of a session, in three arrays by who writes them, and of the agent that loaded it.

use crate::{event::KINDS, fingerprint::SECRETS, pod, rule};

/// The slot is free.
pub const STATE_FREE: u32 = 0;
/// Members run in their scope until the deadline.
pub const STATE_ACTIVE: u32 = 1;
/// The session is over: every hook denies.
pub const STATE_ENDED: u32 = 2;
/// The session never came to be: the walk over trees takes its labels off again. Its mode is `MODE_OBSERVE` meanwhile.
pub const STATE_UNDONE: u32 = 3;

/// Decide and record, refuse nothing.
pub const MODE_OBSERVE: u32 = 0;
/// Decide and refuse.
pub const MODE_ENFORCE: u32 = 1;

/// `SESSION_CONFIG`: written by the agent before the session's state becomes active. Afterwards the agent changes
/// single words of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionConfig {
    /// `MODE_OBSERVE` or `MODE_ENFORCE`.
    pub mode: u32,
    /// Index into `POLICIES`; the one word that is flipped when the session is narrowed. An entry of `POLICIES` does not
    /// change while a session uses it.
    pub policy: u32,
    /// `CLOCK_BOOTTIME` nanoseconds after which nothing starts and nothing is sent.
    pub deadline: u64,
    /// What the session may use up.
    pub budgets: Budgets,
    /// The wall clock at the start, nanoseconds of the epoch, or what it would have been then by one that was set back since: a
    /// file with this ctime or a later one may be a member's work.
    pub written_since: u64,
    /// `CLOCK_BOOTTIME` nanoseconds at that start.
    pub written_since_boot: u64,
    /// `ROOT_WRITES`
    pub flags: u32,
    /// How many scopes the session has had: one more with each narrowing, written after the policy's word. What is kept of
    /// a session must know of as many, or it is older than what is enforced.
    pub scopes: u32,
    /// The session that it is within; a generation of 0: none.
    pub outer_slot: u32,
    /// As above.
    pub outer_generation: u32,
}
const _: () = assert!(size_of::<SessionConfig>() == 48 + size_of::<Budgets>());

/// The session was started by root: files that only root can write may be its work too.
pub const ROOT_WRITES: u32 = 1;

/// What all members of a session together may use up; 0: no such budget. A second is one of `CLOCK_BOOTTIME`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Connects, and sends to another address than the socket's last, that were allowed.
    pub connects: u64,
    /// The same in a second.
    pub connects_per_second: u64,
    /// Distinct addresses that were connected or sent to.
    pub destinations: u64,
    /// Bytes of packets out, headers of the network layer included.
    pub egress_bytes: u64,
    /// The same in a second.
    pub egress_bytes_per_second: u64,
}
const _: () = assert!(size_of::<Budgets>() == 40);

/// A second's count in one word (`SessionCounters::connect_window`): the second in the upper 24 bits, the count below.
pub const WINDOW_COUNT_BITS: u32 = 40;

/// `SESSION_STATE`: generation in the upper half, `STATE_*` in the lower, so that one read says whether a label is of
/// this session and whether the session lives.
#[must_use]
pub const fn state_word(generation: u32, state: u32) -> u64 {
    ((generation as u64) << 32) | state as u64
}

/// Budgets that a session can have.
pub const BUDGETS: usize = (rule::REASON_BUDGET_EGRESS_RATE - rule::REASON_BUDGET_CONNECTS + 1) as usize;

/// `SESSION_COUNTERS`: written by the kernel programs only (atomic adds).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Records produced, by `event::KIND_*`; their sum is the last sequence number given.
    pub produced: [u64; KINDS],
    /// Records that found no room in their ring, by `event::KIND_*`.
    pub lost: [u64; KINDS],
    /// The next record's sequence number less one.
    pub sequence: u64,
    /// Packets dropped in either direction.
    pub packets_dropped: u64,
    /// Decisions that ended in a fault (see `rule::REASON_UNRESOLVED` and the fault table in the kernel programs).
    pub faults: u64,
    /// Signals that the kernel did not take (`bpf_send_signal` failed); the task was marked instead.
    pub signals_failed: u64,
    /// Connects, and sends to another address than the socket's last, that were allowed.
    pub connects: u64,
    /// Distinct addresses that they went to; counted only where there is a budget for it.
    pub destinations: u64,
    /// Bytes of packets out, headers of the network layer included.
    pub egress_bytes: u64,
    /// Bytes of packets in, as above.
    pub ingress_bytes: u64,
    /// Connects in one second (see `WINDOW_COUNT_BITS`); kept only where there is a budget for it.
    pub connect_window: u64,
    /// Bytes out in one second, as above.
    pub egress_window: u64,
    /// What each budget refused, by how far its `rule::REASON_BUDGET_*` is from the first of them. Of packets the first of
    /// each kind is recorded.
    pub used_up: [u64; BUDGETS],
    /// What was refused against the policy (`rule::is_violation`), by `event::KIND_*`; of moves: those out of the cgroup.
    pub violations: [u64; KINDS],
    /// Packets that went although a budget of bytes was used up, because nothing is refused; the first is recorded.
    pub over_budget: u64,
}
const _: () = assert!(size_of::<SessionCounters>() == 344);

/// `POLICIES`: a policy that is in force. An entry does not change while a session uses it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyEntry {
    /// Key of the inner maps in `EXEC_RULES`, `NET_RULES`, `LISTEN_RULES`, `INBOUND_RULES`, `PORT_LISTS` and `UNIX_RULES`; 0 is no revision: everything is denied.
    pub revision: u32,
    /// `rule::ALLOW` or `rule::DENY` for a program that no rule names.
    pub exec_default: u32,
    /// `rule::ALLOW` or `rule::DENY` for an address that no rule names.
    pub net_default: u32,
    /// `HAS_*`
    pub flags: u32,
    /// `rule::ALLOW` or `rule::DENY` for a bind or listen that no rule names.
    pub listen_default: u32,
    /// `rule::ALLOW` or `rule::DENY` for a peer that comes in and that no rule names.
    pub inbound_default: u32,
    /// `rule::ALLOW` or `rule::DENY` for a unix socket that no rule names.
    pub unix_default: u32,
    /// Classes of sockets that may be made: `socket::SOCKET_*`.
    pub sockets: u32,
    /// Classes of privileges that may be used: `privilege::PRIVILEGE_*`.
    pub privileges: u32,
    /// Those of `privilege::PRIVILEGE_ON_OTHERS` that may be used on members of other sessions too.
    pub neighbours: u32,
}
const _: () = assert!(size_of::<PolicyEntry>() == 40);

/// Some rule names a directory: an exec walks up from the program.
pub const HAS_DIRECTORIES: u32 = 1;
/// Some rule for unix sockets names a directory: a connect walks up from the socket.
pub const HAS_UNIX_DIRECTORIES: u32 = 2;
/// There is an inner map in `LISTEN_RULES`; without it the default decides. (Each update of an outer map waits for RCU, 10
/// to 34 ms on 6.1 to 6.18, so an empty one is not put there.)
pub const HAS_LISTEN_RULES: u32 = 4;
/// There is an inner map in `INBOUND_RULES`, as above.
pub const HAS_INBOUND_RULES: u32 = 8;
/// There is an inner map in `PORT_LISTS`, as above.
pub const HAS_PORT_LISTS: u32 = 256;
/// There is an inner map in `UNIX_RULES`, as above.
pub const HAS_UNIX_RULES: u32 = 16;
/// Some rule denies unix sockets by file, place or directory: a path by itself does not tell whether it is of these.
pub const HAS_UNIX_DENIALS: u32 = 32;
/// Some rule is about a place: an exec walks up from the program for the names that lead to it.
pub const HAS_PLACES: u32 = 64;
/// Some rule is about the place of a directory.
pub const HAS_PLACE_DIRECTORIES: u32 = 128;

/// Constants of one load, injected into the programs' read-only data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Id of the cgroup below which this agent may deny, kill and drop; 0: no confinement.
    pub confine_cgroup: u64,
    /// Depth in the cgroup tree at which session cgroups stand (the root is 0).
    pub session_level: u32,
    /// The agent's own process id, for the iterator over its file descriptors.
    pub agent: u32,
    /// Number of this load, from 1. While two loads are attached, the one that `GENERATION` names speaks.
    pub generation: u32,
    /// Always 0.
    pub pad: u32,
    /// Random numbers that only this load knows; see `fingerprint`.
    pub secrets: [u64; SECRETS],
    /// Id of the cgroup that session cgroups stand in, where the programs on cgroups are attached above it
    /// (`attach = "root"`) and see others' sockets too; 0: they are attached to it.
    pub sessions_cgroup: u64,
}
const _: () = assert!(size_of::<Settings>() == 32 + 8 * SECRETS);

/// Where the agent's paths begin, injected as [`Settings`]: a task whose paths begin there too means by one what the agent
/// means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRoot {
    /// Inode number of the agent's root directory.
    pub inode: u64,
    /// `mount.mnt_id` of the mount that it is in; 0: not known, and no path is trusted.
    pub mount: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<HostRoot>() == 16);

pod!(SessionConfig, Budgets, SessionCounters, PolicyEntry, Settings, HostRoot);
