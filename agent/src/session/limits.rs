//! The limits of one session as moments on `CLOCK_BOOTTIME`, and which of them comes first.
//!
//! Calendar windows and credentials are wall-clock: whoever drives the machine says where on this clock they lie, and
//! says it again when the wall clock was stepped.

use serde::{Deserialize, Serialize};

use super::EndReason;

/// A session is warned this long before it ends, in nanoseconds, the longest first.
pub const WARNINGS_NS: [u64; 2] = [60_000_000_000, 10_000_000_000];
/// The kernel ends an idle session this much later than the agent would: while the agent runs it is the agent that
/// looks first, and no session that was busy a moment ago is cut.
pub const IDLE_MARGIN_NS: u64 = 1_000_000_000;
/// How often what a session with an idle limit did is looked at: this many times while the limit passes.
const LOOKS: u64 = 8;
/// No more often than this.
const LOOK_NS: u64 = 250_000_000;

/// What a session is held to. Times are `CLOCK_BOOTTIME`, lengths nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// End of its time to live.
    pub ttl_boot_ns: u64,
    /// How long it may do nothing.
    pub idle: Option<Idle>,
    /// The calendar window in which it runs closes.
    pub window_boot_ns: Option<u64>,
    /// The credential that it was started with expires.
    pub credential_boot_ns: Option<u64>,
    /// `SIGTERM` comes this long before a limit ends it; 0: it does not come.
    pub term_ns: u64,
    /// How long what the first process leaves behind may run on; 0: not at all.
    pub leftovers_ns: u64,
}

impl Limits {
    /// A time to live and nothing else.
    #[must_use]
    pub fn ttl(ttl_boot_ns: u64) -> Self {
        Self { ttl_boot_ns, idle: None, window_boot_ns: None, credential_boot_ns: None, term_ns: 0, leftovers_ns: 0 }
    }

    /// The limit that ends the session. A frozen one cannot do anything, so that it did nothing does not count.
    #[must_use]
    pub fn first(&self, frozen: bool) -> Due {
        self.earliest(self.idle.as_ref().filter(|_| !frozen).map(Idle::ends))
    }

    /// What the kernel is to hold without the agent.
    #[must_use]
    pub(super) fn for_kernel(&self, frozen: bool) -> Due {
        let idle = self.idle.as_ref().filter(|_| !frozen).map(|idle| idle.ends().saturating_add(IDLE_MARGIN_NS));
        self.earliest(idle)
    }

    /// The moment of the limit that ends a session for this reason; none: it has no such limit.
    #[must_use]
    pub fn moment(&self, reason: EndReason) -> Option<u64> {
        match reason {
            EndReason::Ttl => Some(self.ttl_boot_ns),
            EndReason::Window => self.window_boot_ns,
            EndReason::CredentialExpired => self.credential_boot_ns,
            EndReason::Idle => self.idle.as_ref().map(Idle::ends),
            _ => None,
        }
    }

    /// The longest warning before this limit. Whoever pauses for a moment is not idle: where a warning would come before
    /// half of an idle limit has passed, it is not given.
    pub(super) fn longest_warning(&self, reason: EndReason) -> u64 {
        let idle = self.idle.as_ref().filter(|_| reason == EndReason::Idle);
        idle.map_or(u64::MAX, |idle| idle.after_ns / 2)
    }

    fn earliest(&self, idle: Option<u64>) -> Due {
        let ttl = Due { at_boot_ns: self.ttl_boot_ns, reason: EndReason::Ttl };
        let others = [
            (self.window_boot_ns, EndReason::Window),
            (self.credential_boot_ns, EndReason::CredentialExpired),
            (idle, EndReason::Idle),
        ];
        let others = others.into_iter().filter_map(|(at, reason)| Some(Due { at_boot_ns: at?, reason }));
        others.fold(ttl, |first, other| if other.at_boot_ns < first.at_boot_ns { other } else { first })
    }
}

/// A limit and when it ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub at_boot_ns: u64,
    /// Which limit.
    pub reason: EndReason,
}

/// The idle limit, and when the session last did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    after_ns: u64,
    last_boot_ns: u64,
    looked_boot_ns: u64,
}

impl Idle {
    /// A limit of `after_ns`; its session did something just now.
    #[must_use]
    pub fn new(after_ns: u64, now_boot_ns: u64) -> Self {
        Self { after_ns, last_boot_ns: now_boot_ns, looked_boot_ns: now_boot_ns }
    }

    /// How long the session may do nothing.
    #[must_use]
    pub fn after_ns(&self) -> u64 {
        self.after_ns
    }

    fn ends(&self) -> u64 {
        self.last_boot_ns.saturating_add(self.after_ns)
    }

    pub(super) fn look_at(&self) -> u64 {
        self.looked_boot_ns.saturating_add((self.after_ns / LOOKS).max(LOOK_NS))
    }

    pub(super) fn seen(&mut self, now_boot_ns: u64, last_boot_ns: Option<u64>) {
        self.looked_boot_ns = self.looked_boot_ns.max(now_boot_ns);
        self.last_boot_ns = self.last_boot_ns.max(last_boot_ns.unwrap_or(0).min(now_boot_ns));
    }
}

/// The longest warning that is still to come `left_ns` before the end, and no longer than `longest_ns`.
pub(super) fn warning_below(left_ns: u64, longest_ns: u64) -> Option<u64> {
    WARNINGS_NS.into_iter().find(|warning| *warning < left_ns && *warning <= longest_ns)
}
