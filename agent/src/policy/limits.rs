//! `spec.limits` and `spec.on`: how long a session may last, and how it ends. Owns those keys.

use std::{fmt, time::Duration};

use nix::sys::signal::Signal;
use tipstaff_common::{event::Header, rule::is_violation};

use super::{
    budgets,
    problem::{Problems, quote},
    types::{AgentLoss, reason_name},
    violations,
    walk::{At, Field, Fields, Keys, boolean, fields, list, text, word},
    window::Window,
    yaml,
};
use crate::duration;

const LIMITS: Keys = Keys { known: &["ttl", "idle", "windows", "renew", "warn", "leftovers"], later: &[] };
const IDLE: Keys = Keys { known: &["after", "activity"], later: &[] };
const ON: Keys = Keys { known: &["expiry", "agentLoss", "moved", "principalGone", "budget", "violation"], later: &[] };
const AGENT_LOSS: [(&str, AgentLoss); 2] = [("continue", AgentLoss::Continue), ("end", AgentLoss::End)];
const MOVED: [(&str, bool); 2] = [("record", false), ("end", true)];
const PRINCIPAL_GONE: [(&str, bool); 2] = [("continue", false), ("end", true)];
const EXPIRY: Keys = Keys { known: &["term"], later: &[] };
/// Windows of one policy.
const WINDOWS: usize = 32;
/// The shortest idle limit: it is looked after a few times while it passes.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// What counts as doing something, against an idle limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// A member started a program, or tried to.
    Exec,
    /// A member connected, or sent without connecting, or tried to.
    Connect,
    /// A packet of a session's socket went or came.
    Bytes,
    /// Something was read from or written to the terminal of the first process.
    Terminal,
}

impl Activity {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Exec, Self::Connect, Self::Bytes, Self::Terminal];

    /// As policies spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Connect => "connect",
            Self::Bytes => "bytes",
            Self::Terminal => "terminal",
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long a session may do nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleLimit {
    /// So long.
    pub after: Duration,
    /// What counts as doing something; not empty.
    pub activity: Vec<Activity>,
}

/// The limits of a policy beside its time to live, and what comes at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a session may do nothing.
    pub idle: Option<IdleLimit>,
    /// When sessions may run; empty: always.
    pub windows: Vec<Window>,
    /// Whether an operator may renew the time to live.
    pub renew: bool,
    /// The signal that the first process gets with each warning.
    pub warn: Option<Signal>,
    /// How long what the first process leaves behind may run on.
    pub leftovers: Duration,
    /// How long before a limit ends the session its members get `SIGTERM`; zero: they do not.
    pub term: Duration,
    /// What a new agent does with a session of an earlier one.
    pub agent_loss: AgentLoss,
    /// A member that was moved out of the session's cgroup ends the session.
    pub moved_ends: bool,
    /// That its user is not a user of the host any more ends the session.
    pub principal_gone_ends: bool,
    /// Budgets whose first refusal ends the session, by the codes of their refusals (`rule::REASON_BUDGET_…`).
    pub used_up_ends: Vec<u32>,
    /// Kinds of records (`event::KIND_…`) of which the first refusal against the policy ends the session.
    pub violation_ends: Vec<u16>,
    /// How many refusals against the policy a session goes on after: the next one ends it.
    pub denials: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: None,
            windows: Vec::new(),
            renew: true,
            warn: None,
            leftovers: Duration::ZERO,
            term: Duration::ZERO,
            agent_loss: AgentLoss::Continue,
            moved_ends: false,
            principal_gone_ends: false,
            used_up_ends: Vec::new(),
            violation_ends: Vec::new(),
            denials: None,
        }
    }
}

impl Limits {
    /// Whether a refusal with such a record can end a session. What a packet is refused is nobody's violation.
    pub(crate) fn ends_at(&self, refused: &Header) -> bool {
        let counts = || self.denials.is_some() || self.violation_ends.contains(&refused.kind);
        self.used_up_ends.contains(&refused.rule) || refused.tgid != 0 && is_violation(refused.rule) && counts()
    }

    /// What they say, one line each, for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(idle) = &self.idle {
            let activity: Vec<&str> = idle.activity.iter().map(|activity| activity.as_str()).collect();
            lines.push(format!("idle {} without {}", duration::format(idle.after), activity.join(" or ")));
        }
        lines.extend(self.windows.iter().map(|window| format!("window {window}")));
        lines.extend((!self.renew).then(|| "not to be renewed".to_owned()));
        lines.extend(self.warn.map(|signal| format!("warned with {signal}")));
        if !self.leftovers.is_zero() {
            lines.push(format!("leftovers end after {}", duration::format(self.leftovers)));
        }
        if !self.term.is_zero() {
            lines.push(format!("SIGTERM {} before a limit ends it", duration::format(self.term)));
        }
        if self.agent_loss == AgentLoss::End {
            lines.push("ends when its agent was lost".to_owned());
        }
        if self.moved_ends {
            lines.push("ends when a member is moved out of its cgroup".to_owned());
        }
        if self.principal_gone_ends {
            lines.push("ends when its user is gone".to_owned());
        }
        lines.extend(self.used_up_ends.iter().map(|reason| format!("ends at the refusal {}", reason_name(*reason))));
        lines.extend(violations::line(&self.violation_ends));
        lines.extend(self.denials.map(|most| format!("ends at the refusal after {most} that are against it")));
        lines
    }
}

/// Reads `spec.limits` and `spec.on`: the time to live, and the rest.
pub(super) fn read(spec: &Fields<'_>, problems: &mut Problems) -> Option<(Duration, Limits)> {
    let mut found = Limits::default();
    if let Some(on) = spec.get("on").and_then(|on| fields(on.at(), ON, problems)) {
        found.term = on.get("expiry").and_then(|expiry| read_expiry(&expiry, problems)).unwrap_or_default();
        found.moved_ends = on.get("moved").and_then(|f| word(f.at(), &MOVED, problems)).unwrap_or_default();
        let gone = on.get("principalGone").and_then(|f| word(f.at(), &PRINCIPAL_GONE, problems));
        found.principal_gone_ends = gone.unwrap_or_default();
        found.used_up_ends = on.get("budget").map(|field| budgets::ends(spec, &field, problems)).unwrap_or_default();
        found.violation_ends = on.get("violation").map(|f| violations::read(&f, problems)).unwrap_or_default();
        found.agent_loss = on.get("agentLoss").and_then(|f| word(f.at(), &AGENT_LOSS, problems)).unwrap_or_default();
    }
    found.denials = budgets::denials(spec, problems);
    let Some(limits) = spec.get("limits") else {
        problems.add(spec.at, "spec.limits.ttl", "is missing: every session ends; add limits: { ttl: 15m }");
        return None;
    };
    let limits = fields(limits.at(), LIMITS, problems)?;
    let ttl = limits.require("ttl", "15m", problems).and_then(|field| length(field.at(), problems));
    found.idle = limits.get("idle").and_then(|field| idle(&field, problems));
    found.windows = limits.get("windows").map(|field| windows(&field, problems)).unwrap_or_default();
    found.renew = limits.get("renew").and_then(|field| boolean(field.at(), problems)).unwrap_or(true);
    found.warn = limits.get("warn").and_then(|field| signal(&field, problems));
    found.leftovers = limits.get("leftovers").and_then(|field| length(field.at(), problems)).unwrap_or_default();
    let ttl = ttl?;
    if found.term >= ttl {
        let message = "the time to end in is not shorter than limits.ttl: shorten it, or give a longer ttl";
        problems.add(spec.at, "spec.on.expiry.term", message);
    }
    if found.idle.as_ref().is_some_and(|idle| found.term >= idle.after) {
        let message = "the time to end in is not shorter than limits.idle: shorten it, or give a longer idle";
        problems.add(spec.at, "spec.on.expiry.term", message);
    }
    Some((ttl, found))
}

fn length(at: At<'_, '_>, problems: &mut Problems) -> Option<Duration> {
    let written = match &at.node.value {
        yaml::Value::Number(number) => number,
        _ => text(at, problems)?,
    };
    let parsed = duration::parse(written);
    parsed.map_err(|error| problems.add(at.node.at, at.path, format!("{} {error}", quote(written)))).ok()
}

/// `end`, or `{ term: 5s }`.
fn read_expiry(field: &Field<'_>, problems: &mut Problems) -> Option<Duration> {
    if !matches!(field.at().node.value, yaml::Value::Map(_)) {
        return word(field.at(), &[("end", Duration::ZERO)], problems);
    }
    let expiry = fields(field.at(), EXPIRY, problems)?;
    length(expiry.require("term", "5s", problems)?.at(), problems)
}

/// `2m`, or `{ after: 2m, activity: [exec] }`.
fn idle(field: &Field<'_>, problems: &mut Problems) -> Option<IdleLimit> {
    let mut activity = Activity::ALL.to_vec();
    let map = matches!(field.at().node.value, yaml::Value::Map(_));
    let keys = if map { Some(fields(field.at(), IDLE, problems)?) } else { None };
    let after = match &keys {
        None => length(field.at(), problems)?,
        Some(keys) => {
            if let Some(listed) = keys.get("activity") {
                activity = activities(&listed, problems);
            }
            length(keys.require("after", "2m", problems)?.at(), problems)?
        }
    };
    if after < IDLE_MIN {
        let message = format!("{} is too short: an idle limit is at least 1s", duration::format(after));
        problems.add(field.at().node.at, &field.path, message);
        return None;
    }
    Some(IdleLimit { after, activity })
}

fn activities(field: &Field<'_>, problems: &mut Problems) -> Vec<Activity> {
    let words = Activity::ALL.map(|activity| (activity.as_str(), activity));
    let Some(nodes) = list(field.at(), problems) else { return Vec::new() };
    if nodes.is_empty() {
        problems.add(field.at().node.at, &field.path, "is empty: name what counts as activity, or remove the key");
    }
    let mut found: Vec<Activity> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let path = format!("{}[{index}]", field.path);
        found.extend(word(At { node, path: &path }, &words, problems));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn windows(field: &Field<'_>, problems: &mut Problems) -> Vec<Window> {
    let Some(nodes) = list(field.at(), problems) else { return Vec::new() };
    if nodes.is_empty() {
        let message = "is empty, and no session could ever start: name a window, or remove the key";
        problems.add(field.at().node.at, &field.path, message);
    }
    if nodes.len() > WINDOWS {
        let message = format!("has {} windows: at most {WINDOWS} are read", nodes.len());
        problems.add(field.at().node.at, &field.path, message);
        return Vec::new();
    }
    let mut found: Vec<Window> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let path = format!("{}[{index}]", field.path);
        let Some(written) = text(At { node, path: &path }, problems) else { continue };
        match Window::parse(written) {
            Err(error) => problems.add(node.at, &path, format!("{} {error}", quote(written))),
            Ok(window) => {
                if let Some(other) = found.iter().find(|other| other.overlaps(&window)) {
                    let message =
                        format!("{} overlaps {}: write one window", quote(written), quote(&other.to_string()));
                    problems.add(node.at, &path, message);
                }
                found.push(window);
            }
        }
    }
    found
}

/// `USR1` or `SIGUSR1`; one that a process can take notice of.
fn signal(field: &Field<'_>, problems: &mut Problems) -> Option<Signal> {
    let written = text(field.at(), problems)?;
    let name = written.strip_prefix("SIG").unwrap_or(written);
    let found = format!("SIG{name}").parse::<Signal>().ok();
    let found = found.filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP));
    if found.is_none() {
        let message = format!("{} is no signal to warn with: write USR1, HUP, TERM or another", quote(written));
        problems.add(field.at().node.at, &field.path, message);
    }
    found
}
