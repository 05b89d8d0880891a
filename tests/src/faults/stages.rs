//! SIGKILL at every stage: at each system call with which the agent changes anything outside of itself, as it starts and as it
//! carries out each order. Whatever it had done by then: what is refused stays refused, and the next agent makes it whole.

use std::{os::unix::net::UnixStream, time::Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Asked, By, Fault, Form, watch::Watch};
use crate::{
    harness::{
        prelude::*,
        wait::{all_gone, gone, in_guest},
    },
    suites::{
        attach::workload,
        scene::{Wall, only},
    },
};

#[rustfmt::skip]
pub(super) const ROWS: &[Fault] = &[Fault {
    promise: "restart",
    name: "every-stage",
    what: "SIGKILL at each system call that changes something: of a start, a run, an attachment, a narrowing, a freeze, a thaw, a renewal, a revocation, an end, a stop",
    holds: "what is refused stays refused; the session is whole or ended; the next agent does the rest",
    by: By::Row { run: every_stage, lasts: 3000, guests: None, long: false },
}];

/// What the agent is doing when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Start,
    Run,
    Attach,
    Narrow,
    Freeze,
    Thaw,
    Renew,
    Revoke,
    End,
    Stop,
}

const DEEDS: [Deed; 10] = [
    Deed::Start,
    Deed::Run,
    Deed::Attach,
    Deed::Narrow,
    Deed::Freeze,
    Deed::Thaw,
    Deed::Renew,
    Deed::Revoke,
    Deed::End,
    Deed::Stop,
];
/// The name of the policy that is revoked.
const REVOKED: &str = "red";
/// How often one member is woken before it gives way to another.
const WAKES: usize = 40;

/// What all rounds have.
struct Scene {
    member: String,
    policy: String,
    /// As `policy`, but for its name.
    red: String,
    wall: Wall,
    wakes: usize,
    watch: Watch,
    /// How often it was killed where it was to be: a deed can take fewer calls than when they were counted.
    kills: usize,
}

fn every_stage(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    let member = s.program("member")?;
    let other = s.program("other")?;
    let policy = only(&member).allow("other", &other);
    let (policy, red) = (s.policy(&policy)?, s.policy(&policy.clone().name(REVOKED))?);
    let (agent, watch) = Watch::start(s, None)?;
    s.ready(agent)?;
    let wall = Wall::new(s, WAKES)?;
    let mut scene = Scene { member, policy, red, wall, wakes: 0, watch, kills: 0 };
    let mut notes = Vec::new();
    for deed in DEEDS {
        let calls = scene.round(s, deed, None)?;
        let points = points(calls, asked.form);
        scene.kills = 0;
        for at in &points {
            scene.round(s, deed, Some(*at)).with_context(|| format!("{deed:?}, killed at call {at} of {calls}"))?;
        }
        let kills = scene.kills;
        ensure!(kills * 2 > points.len(), "{deed:?}: killed {kills} times where {} were asked for", points.len());
        notes.push(format!("{deed:?}: killed at {kills} of {calls} calls"));
    }
    scene.wall.is_ended(s)?;
    Ok(notes)
}

/// At which of so many calls the agent is killed: at each of them, or at some, the first among them.
fn points(calls: u64, form: Form) -> Vec<u64> {
    let some = if in_guest() { 1 } else { 3 };
    match form {
        Form::Long if !in_guest() => (1..=calls).collect(),
        Form::Long => (1..=calls).step_by(usize::try_from(calls / 6).unwrap_or(1).max(1)).collect(),
        Form::Short => (0..some.min(calls)).map(|n| 1 + n * calls / some).collect(),
    }
}

impl Scene {
    /// The agent is killed at a call of its deed, or, where none is named, after it. How many calls the deed took.
    fn round(&mut self, s: &mut Sandbox, deed: Deed, at: Option<u64>) -> Result<u64> {
        let made = match deed {
            Deed::Start => self.killed_in_a_start(s, at)?,
            _ => 0,
        };
        let subject = (deed != Deed::Start).then(|| self.begin(s, deed)).transpose()?;
        let before = self.watch.made();
        if let (Some(at), true) = (at, deed != Deed::Start) {
            self.watch.kill_at(at);
        }
        let subject = match subject {
            Some(Some((running, session))) => {
                self.order(s, deed, (&running, &session))?;
                Some(running)
            }
            Some(None) => Some(self.run_one(s, &self.policy)?),
            None => None,
        };
        let made = if deed == Deed::Start { made } else { self.watch.made() - before };
        if deed != Deed::Start {
            let killed = self.watch.killed();
            self.kills += usize::from(killed);
            if deed == Deed::Stop && !killed { s.agent_ends()? } else { s.kill_agent()? }
        }
        self.holds(s)?;
        self.next_agent(s)?;
        self.holds(s)?;
        if let Some(running) = subject {
            is_over(s, deed, running)?;
        }
        if deed == Deed::Revoke {
            lift_all(s)?;
        }
        if self.wakes + 2 > WAKES {
            self.wall.is_ended(s)?;
            self.wall = Wall::new(s, WAKES)?;
            self.wakes = 0;
        }
        Ok(made)
    }

    /// An agent that follows another, killed at a call of its start. Nobody is there then.
    fn killed_in_a_start(&mut self, s: &mut Sandbox, at: Option<u64>) -> Result<u64> {
        s.kill_agent()?;
        let (mut agent, watch) = Watch::start(s, at)?;
        let socket = s.runtime().join("read.sock");
        until("the agent to be killed or to answer", 2 * patience(), || {
            let answers = UnixStream::connect(&socket).is_ok() && s.cli(&["status"])?.code != 7;
            if !watch.killed() && !answers {
                agent.alive().or_else(|error| if watch.killed() { Ok(()) } else { Err(error) })?;
            }
            Ok((watch.killed() || answers).then_some(()))
        })?;
        let made = watch.made();
        self.kills += usize::from(watch.killed());
        agent.kill()?;
        Ok(made)
    }

    fn next_agent(&mut self, s: &mut Sandbox) -> Result<()> {
        let since = Instant::now();
        let (agent, watch) = Watch::start(s, None)?;
        s.ready(agent)?;
        s.healed(since);
        self.watch = watch;
        Ok(())
    }

    fn holds(&mut self, s: &Sandbox) -> Result<()> {
        self.wakes += 1;
        self.wall.holds(s)
    }

    /// The session that an order is about, or the workload that is in none; none where the order is to start one.
    fn begin(&self, s: &Sandbox, deed: Deed) -> Result<Option<(Running, String)>> {
        let running = match deed {
            Deed::Run => return Ok(None),
            Deed::Attach => return Ok(Some((workload(s, &self.member, "idle")?, String::new()))),
            Deed::Revoke => self.run_one(s, &self.red)?,
            _ => self.run_one(s, &self.policy)?,
        };
        let session = running.session(s)?;
        if deed == Deed::Thaw {
            s.cli(&["freeze", &session])?.ended(0)?;
        }
        Ok(Some((running, session)))
    }

    fn run_one(&self, s: &Sandbox, policy: &str) -> Result<Running> {
        let running = s.run(policy, &self.member, "idle")?;
        let answered = || gone(running.pid()) || !running.is_a_caller(s);
        until("the start to be answered", 2 * patience(), || Ok((self.watch.killed() || answered()).then_some(())))?;
        Ok(running)
    }

    /// Gives the order; an agent that dies over it does not answer.
    fn order(&self, s: &Sandbox, deed: Deed, (running, session): (&Running, &str)) -> Result<()> {
        let pid = running.pid().to_string();
        let words: &[&str] = match deed {
            Deed::Attach => &["attach", "--policy", &self.policy, "--pid", &pid],
            Deed::Narrow => &["narrow", session, "--remove", "other"],
            Deed::Freeze => &["freeze", session],
            Deed::Thaw => &["thaw", session],
            Deed::Renew => &["renew", session],
            Deed::Revoke => &["revoke", "--policy", REVOKED],
            Deed::End => &["end", session],
            Deed::Start | Deed::Run => return Ok(()),
            Deed::Stop => {
                let agent = s.agent_pid()?;
                s.signal_agent(Signal::SIGTERM)?;
                return until("the agent to stop", 2 * patience(), || Ok(gone(agent).then_some(())));
            }
        };
        let told = s.cli(words)?;
        ensure!(matches!(told.code, 0 | 1 | 7), "{deed:?} was answered {told:?}");
        Ok(())
    }
}

/// Takes back what keeps a revoked policy from starting again.
fn lift_all(s: &Sandbox) -> Result<()> {
    let stays = s.json(&["revoke", "--list"])?;
    let mut ids = stays["stays"].as_array().into_iter().flatten().filter_map(|stay| stay["id"].as_str());
    ids.try_for_each(|id| s.cli(&["revoke", "--lift", id])?.ended(0).map(drop))
}

/// Ends what the deed was about, wherever it was cut short: nobody is left, and the evidence has one end of it. A workload that was
/// not attached goes on, in no session: it is ended too.
fn is_over(s: &Sandbox, deed: Deed, running: Running) -> Result<()> {
    let pid = running.pid();
    let all = s.evidence()?;
    let start = all.iter().rfind(|r| r["type"] == "session-start" && r["context"]["pid"] == pid);
    if let Some(session) = start.and_then(|start| start["session"].as_str()) {
        let told = s.cli(&["end", session])?.code;
        ensure!(matches!(told, 0 | 5), "end was answered {told}");
        let end = s.wait_evidence("the end of a session that was cut short", |r| {
            r["type"] == "session-end" && r["session"] == session
        })?;
        ensure!(end["members_left"] == 0, "members are left: {end}");
    }
    if deed == Deed::Attach && !gone(pid) {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
    }
    let code = running.wait()?.code;
    ensure!(matches!(code, 125 | 137), "the command ended with {code}");
    all_gone(&[pid])
}
