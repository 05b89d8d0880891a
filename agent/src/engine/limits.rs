//! The limits of a live session: what it is held to at its start, whether it does anything, what the wall clock says,
//! and the renewal of its time to live.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp, fmt::temporal::DateTimeParser};
use nix::sys::signal::Signal;
use tracing::debug;

use super::{Engine, Live, complain, now};
use crate::{
    api::wire::{self, ApiError},
    duration,
    enforce::signal_members,
    evidence::{Body, Moment, StartLimits, Terminate, Warning},
    host_events::Processors,
    kernel::{boot_now, signal_pidfd},
    policy::{Mode, Policy, next_opening, open_until},
    session::{Due, Idle, Input, Limits, SessionId, State},
    store::Kept,
};

/// The wall clock against `CLOCK_BOOTTIME` is not told anew for less: clocks are slewed all the time.
const DRIFT_NS: u64 = 100_000_000;
const MS: u64 = 1_000_000;
/// Labels of one session, and the bytes of a key and of a value.
const LABELS: usize = 32;
const KEY: usize = 63;
const VALUE: usize = 255;

/// What a session is held to at its start.
pub(super) struct Held {
    /// For the machine.
    pub(super) limits: Limits,
    /// For the evidence.
    pub(super) start: StartLimits,
}

/// The limits of a session that starts now. `Err`: what the caller is told.
pub(super) fn at_start(policy: &Policy, run: &wire::Run, ttl: Duration, at: Moment) -> Result<Held, ApiError> {
    let rules = &policy.limits;
    let window_closes = if rules.windows.is_empty() { None } else { Some(window_at(policy, at.time)?) };
    let credential_expires = run.credential_expires.as_deref().map(|text| credential(text, at.time)).transpose()?;
    let start = StartLimits {
        idle_ms: rules.idle.as_ref().map(|idle| millis(idle.after)),
        windows: rules.windows.iter().map(ToString::to_string).collect(),
        window_closes,
        credential_expires,
    };
    let limits = Limits {
        ttl_boot_ns: at.boot_ns.saturating_add(nanos(ttl)),
        idle: rules.idle.as_ref().map(|idle| Idle::new(nanos(idle.after), at.boot_ns)),
        window_boot_ns: window_closes.map(|closes| on_boot_clock(closes, at)),
        credential_boot_ns: credential_expires.map(|expires| on_boot_clock(expires, at)),
        term_ns: nanos(rules.term),
        leftovers_ns: nanos(rules.leftovers),
    };
    // it would be told to end as it begins
    let left = limits.first(false).at_boot_ns.saturating_sub(at.boot_ns);
    if policy.mode == Mode::Enforce && limits.term_ns > 0 && left <= limits.term_ns {
        let (left, term) = (duration::format(Duration::from_nanos(left)), duration::format(rules.term));
        let message =
            format!("the session would last {left}, and policy {} tells it to end {term} before", policy.name);
        let remedy = "let it last longer, or shorten on.expiry.term".into();
        return Err(ApiError::Refused { message, rule: None, remedy });
    }
    Ok(Held { limits, start })
}

fn window_at(policy: &Policy, time: Timestamp) -> Result<Timestamp, ApiError> {
    open_until(&policy.limits.windows, time).ok_or_else(|| {
        let list: Vec<String> = policy.limits.windows.iter().map(ToString::to_string).collect();
        let message = format!("policy {} lets sessions run only at {}", policy.name, list.join(", "));
        let next = next_opening(&policy.limits.windows, time);
        let remedy = next.map_or_else(|| "none opens soon".into(), |next| format!("the next window opens at {next}"));
        ApiError::Refused { message, rule: None, remedy }
    })
}

/// A credential's end: RFC 3339, and not past.
fn credential(text: &str, time: Timestamp) -> Result<Timestamp, ApiError> {
    let expires = DateTimeParser::new().parse_timestamp(text).map_err(|_form| ApiError::BadRequest {
        message: format!(
            "--credential-expires {text:?} is no time: write RFC 3339, before 9999-12-30, such as 2026-11-21T22:00:00Z"
        ),
    })?;
    if expires > time {
        return Ok(expires);
    }
    let message = format!("the credential expired at {expires}");
    Err(ApiError::Refused { message, rule: None, remedy: "get a new one".into() })
}

/// Where a wall-clock moment lies on `CLOCK_BOOTTIME`, as both clocks stand now.
fn on_boot_clock(moment: Timestamp, at: Moment) -> u64 {
    let left = moment.duration_since(at.time).as_nanos().max(0);
    at.boot_ns.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
}

/// Labels as a session may have them.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bad = |message: String| Err(ApiError::BadRequest { message });
    if labels.len() > LABELS {
        return bad(format!("{} labels are too many: a session has at most {LABELS}", labels.len()));
    }
    for (key, value) in labels {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if key.is_empty() || key.len() > KEY || !key.chars().all(fits) {
            return bad(format!("label key {key:?} is not 1 to {KEY} letters, digits and . _ - /"));
        }
        if value.len() > VALUE || value.chars().any(char::is_control) {
            return bad(format!("the value of label {key} has more than {VALUE} bytes, or control characters"));
        }
    }
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What caps a renewal.
fn in_words(capper: &str, cap: u64) -> String {
    match capper {
        "outer session" => "the session that it is within".to_owned(),
        _ => format!("the host's max_ttl of {}", duration::format(Duration::from_nanos(cap))),
    }
}

/// Whose time to live it is, as it was kept.
pub(super) fn winner(kept: &str) -> &'static str {
    ["policy", "--ttl", "host cap", "outer session", "renew"].into_iter().find(|name| *name == kept).unwrap_or("policy")
}

impl Live {
    /// The limit that ends it first, as `inspect` names it.
    pub(super) fn winner(&self) -> &'static str {
        match self.machine.over_at().reason {
            crate::session::EndReason::Ttl => self.winner,
            other => other.as_str(),
        }
    }

    /// Its limits for `inspect`.
    pub(super) fn limits_info(&self) -> wire::LimitsInfo {
        let (start, limits) = (&self.start, self.machine.limits());
        let idle = self.rules.idle.as_ref();
        // one that is open around the clock is followed for a year
        let closes = |at: &Timestamp| at.duration_since(Timestamp::now()) < SignedDuration::from_hours(365 * 24);
        wire::LimitsInfo {
            ttl_ms: limits.ttl_boot_ns.saturating_sub(self.started) / MS,
            winner: self.winner().into(),
            deadline_boot_ns: self.machine.armed().at_boot_ns,
            left_ms: self.left_ms(),
            idle_ms: start.limits.idle_ms,
            activity: idle.map(|idle| idle.activity.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            windows: start.limits.windows.clone(),
            window_closes: open_until(&self.rules.windows, Timestamp::now()).filter(closes).map(|t| t.to_string()),
            credential_expires: start.limits.credential_expires.map(|t| t.to_string()),
            renew: self.rules.renew,
        }
    }

    pub(super) fn left_ms(&self) -> u64 {
        self.machine.over_at().at_boot_ns.saturating_sub(boot_now()) / MS
    }

    fn is_on_wall_clock(&self) -> bool {
        let limits = self.machine.limits();
        limits.window_boot_ns.is_some() || limits.credential_boot_ns.is_some()
    }
}

impl Engine {
    /// It is later than it was for one session.
    pub(super) fn tick_session(&mut self, id: SessionId, now_boot_ns: u64) {
        self.tick_sessions(&[id], now_boot_ns);
    }

    /// It is later than it was: what a session's limit asks for is looked at first.
    pub(super) fn tick_sessions(&mut self, ids: &[SessionId], now_boot_ns: u64) {
        for id in ids {
            let Some(live) = self.sessions.get(id) else { continue };
            let due = live.machine.wakes_at().is_some_and(|at| at <= now_boot_ns);
            if due && live.is_on_wall_clock() {
                self.rearm(*id);
            }
            self.look(*id, now_boot_ns);
        }
        self.feed_all(ids.iter().map(|id| (*id, Input::Tick { now_boot_ns })));
        self.hold_to_verdicts(ids, now_boot_ns);
    }

    /// Tells the machine when the session last did something, where it wants to know.
    fn look(&mut self, id: SessionId, now_boot_ns: u64) {
        if self.sessions.get(&id).is_some_and(|live| live.machine.wants_look(now_boot_ns)) {
            self.look_within(id, now_boot_ns);
        }
        let Some(live) = self.sessions.get_mut(&id).filter(|live| live.machine.wants_look(now_boot_ns)) else { return };
        let last_boot_ns = match complain("reading counters", self.parts.kernel.counters(live.reference.slot)) {
            Some(counters) => live.doings.look(&counters, &live.consumed, now_boot_ns),
            // what cannot be looked at may be busy
            None => Some(now_boot_ns),
        };
        self.feed(id, Input::Looked { now_boot_ns, last_boot_ns });
    }

    /// The wall clock was stepped: what is on it lies elsewhere on `CLOCK_BOOTTIME` now. Or the machine slept: all processors
    /// but the first were taken away meanwhile, and no event tells that they are back.
    pub fn clock_stepped(&mut self) {
        self.processor_online(&Processors::Any);
        let ids: Vec<SessionId> =
            self.sessions.iter().filter(|(_, live)| live.is_on_wall_clock()).map(|(id, _)| *id).collect();
        debug!("the wall clock was stepped: {} sessions are held to it", ids.len());
        for id in ids {
            self.rearm(id);
        }
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.see_set_back(id);
        }
        self.tick();
    }

    /// Says where what a session is held to on the wall clock lies now.
    pub(super) fn rearm(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get(&id).filter(|live| live.is_on_wall_clock()) else { return };
        let (at, limits) = (now(), live.machine.limits());
        let windows = &live.rules.windows;
        // outside every window its time is over now
        let closes = || open_until(windows, at.time).map_or(at.boot_ns, |closes| on_boot_clock(closes, at));
        let window_boot_ns = limits.window_boot_ns.map(|_| closes());
        let credential_boot_ns = live.start.limits.credential_expires.map(|expires| on_boot_clock(expires, at));
        let near = |a: Option<u64>, b: Option<u64>| a.zip(b).is_none_or(|(a, b)| a.abs_diff(b) < DRIFT_NS);
        if near(window_boot_ns, limits.window_boot_ns) && near(credential_boot_ns, limits.credential_boot_ns) {
            return;
        }
        self.feed(id, Input::Rearm { now_boot_ns: at.boot_ns, window_boot_ns, credential_boot_ns });
    }

    /// Moves the end of a session's time to live.
    pub(super) fn renew(&mut self, renew: &wire::Renew) -> Result<wire::Renewed, ApiError> {
        let id = self.find(&renew.id)?;
        let now_boot_ns = boot_now();
        self.tick_session(id, now_boot_ns);
        let cap = nanos(self.parts.config.limits.max_ttl);
        let Some(live) = self.sessions.get(&id) else { return Err(over(&id.to_string())) };
        if !matches!(live.machine.state(), State::Active | State::Frozen) {
            return Err(ending(id, live));
        }
        let policy = &live.policy;
        let refused = |message: String, remedy: &str| ApiError::Refused { message, rule: None, remedy: remedy.into() };
        if !live.rules.renew {
            let message = format!("policy {} forbids to renew a session (limits.renew)", policy.name);
            return Err(refused(message, "start another one"));
        }
        let asked = match renew.ttl.as_deref() {
            None => Duration::from_millis(live.start.ttl_ms),
            Some(text) => duration::parse(text)
                .map_err(|error| ApiError::BadRequest { message: format!("--ttl {text:?} {error}") })?,
        };
        if asked > live.longest {
            let most = duration::format(live.longest);
            let message = format!("--ttl {} is longer than policy {} allows", duration::format(asked), policy.name);
            return Err(refused(message, &format!("ask for {most} at most")));
        }
        let before = live.machine.limits().ttl_boot_ns;
        let (capped, capper) = self.capped(live, cap);
        let ttl_boot_ns = now_boot_ns.saturating_add(nanos(asked)).min(capped);
        if ttl_boot_ns <= before {
            let message = match ttl_boot_ns == capped {
                true => format!("session {id:.8} cannot last longer: {} ends it", in_words(capper, cap)),
                false => format!("session {id:.8} has longer to live than {} already", duration::format(asked)),
            };
            let remedy = "start another one when it has ended";
            let more = format!("{remedy}, or ask for more");
            return Err(refused(message, if ttl_boot_ns == capped { remedy } else { &more }));
        }
        let winner = if ttl_boot_ns == capped { capper } else { "renew" };
        let renewed = Input::Renew { now_boot_ns, ttl_boot_ns };
        let mut machine = live.machine.clone();
        let _ = machine.step(renewed);
        // kept before it holds: the next agent would not know of it
        let kept = Kept { machine, winner: winner.to_owned(), ..self.kept(live) };
        if let Err(problem) = self.parts.store.keep(&kept) {
            self.keep(id);
            let message =
                format!("session {id:.8} ends when it would have: that it is renewed cannot be kept: {problem}");
            return Err(ApiError::Failed { message });
        }
        let Some(live) = self.sessions.get_mut(&id) else { return Err(over(&id.to_string())) };
        live.winner = winner;
        self.feed(id, renewed);
        // also where another limit comes first and the kernel's deadline stays
        self.keep(id);
        let Some(live) = self.sessions.get(&id) else { return Err(over(&id.to_string())) };
        let mut notes = Vec::new();
        if live.winner == capper {
            notes.push(format!("{} ends it before that", in_words(capper, cap)));
        }
        if live.winner() != live.winner {
            notes.push(format!("its limit {} ends it before its time to live does", live.winner()));
        }
        let ttl_ms = ttl_boot_ns.saturating_sub(live.started) / MS;
        Ok(wire::Renewed {
            session: id.to_string(),
            ttl_ms,
            left_ms: live.left_ms(),
            winner: live.winner().into(),
            notes,
        })
    }

    /// The last moment that a session can be given, and whose: the host's, or that of the session that it is within.
    fn capped(&self, live: &Live, cap: u64) -> (u64, &'static str) {
        let host = (live.started.saturating_add(cap), "host cap");
        let outer = live.start.within.as_ref().and_then(|outer| self.sessions.get(outer));
        let outer = outer.map(|outer| (outer.machine.limits().first(true).at_boot_ns, "outer session"));
        outer.filter(|outer| outer.0 < host.0).unwrap_or(host)
    }

    /// Tells a session's first process and the evidence that it ends soon.
    pub(super) fn warn(&mut self, id: SessionId, due: Due, left_ns: u64) {
        let Some(live) = self.sessions.get(&id) else { return };
        let signal = live.rules.warn;
        let delivered = signal.map(|signal| {
            use std::os::fd::AsFd as _;
            let first = live.first.as_ref();
            first.is_some_and(|f| complain("warning a session", signal_pidfd(f.as_fd(), signal)).is_some())
        });
        let signal = signal.map(|signal| signal.as_str().to_owned());
        let left_ms = left_ns / MS;
        self.append(&Body::Warning(Warning { session: id, limit: due.reason, left_ms, signal, delivered }));
    }

    /// Asks every member of these sessions to end, each until a moment.
    pub(super) fn terminate(&mut self, told: &[(SessionId, u64)]) {
        if told.is_empty() {
            return;
        }
        let there = |(id, until): &(SessionId, u64)| Some((*id, *until, self.sessions.get(id)?.reference));
        let told: Vec<_> = told.iter().filter_map(there).collect();
        let sessions: Vec<_> = told.iter().map(|(.., reference)| *reference).collect();
        let sent = signal_members(&mut self.parts.kernel, &sessions, Signal::SIGTERM, |_| true);
        let signalled = complain("asking members to end", sent).unwrap_or_else(|| vec![0; sessions.len()]);
        for ((id, until_boot_ns, _), signalled) in told.into_iter().zip(signalled) {
            let grace_ms = until_boot_ns.saturating_sub(boot_now()) / MS;
            self.append(&Body::Terminate(Terminate { session: id, signalled, grace_ms }));
            // an agent that is killed before this leaves it to the next: rather twice than never
            self.feed(id, Input::Asked);
            self.keep(id);
        }
    }
}

pub(super) fn over(id: &str) -> ApiError {
    ApiError::NotFound { message: format!("session {id} is over") }
}

/// The answer to a command that a session in its end does not take.
pub(super) fn ending(id: SessionId, live: &Live) -> ApiError {
    let why = live.machine.reason().map_or_else(String::new, |reason| format!(" ({reason})"));
    let message = format!("session {id:.8} is {}{why}", live.machine.state());
    ApiError::Refused { message, rule: None, remedy: "start another one".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        let check = |key: &str, value: &str| check_labels(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
        assert!(check("team", "a b").is_ok() && check("x.y/z", "").is_ok());
        assert!(check("", "v").is_err() && check("a b", "v").is_err() && check("k", "a\nb").is_err());
        let many = (0..=LABELS).map(|n| (n.to_string(), String::new())).collect();
        assert!(check_labels(&many).is_err());
    }

    #[test]
    fn a_moment_on_the_other_clock() {
        let at = Moment { time: "2026-11-22T00:00:00Z".parse().expect("a time"), boot_ns: 7 };
        let on = |text: &str| on_boot_clock(text.parse().expect("a time"), at);
        assert_eq!(on("2026-11-22T00:00:02Z"), 2_000_000_007);
        assert_eq!(on("2026-11-21T00:00:00Z"), 7, "what is past is now");
    }
}
