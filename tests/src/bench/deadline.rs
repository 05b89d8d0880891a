//! `deadline`: what happens at a session's deadline with the agent alive, stopped and killed, and what the agent needs that
//! comes afterwards.

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use super::{
    Ground, place,
    report::{Bound, Figures, Row, Target},
    watch::{Receiver, Watch},
    worker::Worker,
};
use crate::harness::wait::{boot_ns, pass, patience};

/// Connections on which the time is sent each millisecond.
const FLOWS: u32 = 100;
/// How long is waited for what computes, with no agent to help.
const ALONE: Duration = Duration::from_secs(5);

/// How long an agent may take to start beside a crowd that computes.
const LATE: Duration = Duration::from_secs(120);

/// How the agent is at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    Alive,
    Stopped,
    Killed,
}

/// One session: its members, of which every second one computes and the others sleep; the agent; its ttl, long enough to
/// start them all; and what its target is for the last death of what computes, in milliseconds.
struct Scene {
    members: u32,
    agent: Agent,
    ttl: &'static str,
    bound: Option<f64>,
}

const SCENES: [Scene; 14] = [
    Scene { members: 1, agent: Agent::Alive, ttl: "2s", bound: Some(2.0) },
    Scene { members: 10, agent: Agent::Alive, ttl: "2s", bound: None },
    Scene { members: 100, agent: Agent::Alive, ttl: "3s", bound: None },
    Scene { members: 1_000, agent: Agent::Alive, ttl: "6s", bound: Some(30.0) },
    // by the clock alone, which ends one member a tick and processor
    Scene { members: 1, agent: Agent::Stopped, ttl: "2s", bound: Some(250.0) },
    Scene { members: 1, agent: Agent::Killed, ttl: "2s", bound: Some(250.0) },
    Scene { members: 2, agent: Agent::Stopped, ttl: "2s", bound: Some(250.0) },
    Scene { members: 2, agent: Agent::Killed, ttl: "2s", bound: Some(250.0) },
    Scene { members: 10, agent: Agent::Stopped, ttl: "2s", bound: None },
    Scene { members: 10, agent: Agent::Killed, ttl: "2s", bound: None },
    Scene { members: 100, agent: Agent::Stopped, ttl: "3s", bound: None },
    Scene { members: 100, agent: Agent::Killed, ttl: "3s", bound: None },
    Scene { members: 1_000, agent: Agent::Stopped, ttl: "6s", bound: None },
    Scene { members: 1_000, agent: Agent::Killed, ttl: "6s", bound: None },
];

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    place::unpin()?;
    // what computes must not keep the driver from seeing it die
    place::hurry(false);
    let mut rows = Vec::new();
    for scene in SCENES {
        eprintln!("bench: deadline: {} members, agent {:?}", scene.members, scene.agent);
        ground.start()?;
        rows.extend(scene.play(ground).with_context(|| format!("{} members, agent {:?}", scene.members, scene.agent))?);
        ground.stop()?;
    }
    place::ordinary()?;
    Ok(rows)
}

impl Scene {
    fn play(&self, ground: &mut Ground) -> Result<Vec<Row>> {
        let receiver = Receiver::start()?;
        let policy = ground.sandbox.policy(&ground.programs.policy(1))?;
        let mut worker = Worker::inside_for(&ground.programs, &ground.sandbox, &policy, self.ttl)?;
        let deadline = deadline(ground, &worker)?;
        let sender = worker.ask(&format!("flows {FLOWS} {}", receiver.port))?;
        receiver.opened(u64::from(FLOWS))?;
        let sleepers = self.members / 2;
        let crowd = worker.ask(&format!("crowd {sleepers} {}", self.members - sleepers))?;
        let cut = crowd.match_indices(' ').nth((sleepers as usize).wrapping_sub(1)).map_or(0, |(at, _)| at);
        let mut computing = Watch::over(&crowd[cut..])?;
        let mut others = Watch::over(&format!("{} {sender} {}", &crowd[..cut], worker.pid()))?;
        ensure!(boot_ns()? < deadline, "the deadline came before the members were there");
        match self.agent {
            Agent::Alive => {}
            Agent::Stopped => ground.sandbox.signal_agent(Signal::SIGSTOP)?,
            Agent::Killed => ground.sandbox.kill_agent()?,
        }
        let limit = if self.agent == Agent::Alive { patience() } else { ALONE };
        let rest = Duration::from_nanos(deadline.saturating_sub(boot_ns()?));
        let ((left, last), asleep) = thread::scope(|scope| {
            // without an agent they stay
            let others = (self.agent == Agent::Alive).then(|| scope.spawn(|| others.wait(rest + limit)));
            let computing = computing.wait(rest + limit)?;
            let others = others.map(|thread| thread.join().map_err(|_panic| anyhow!("the watch broke down"))?);
            Ok::<_, anyhow::Error>((computing, others.transpose()?.map_or(0, |(_, last)| last)))
        })?;
        pass(deadline, Duration::from_millis(100))?;
        let mut rows = vec![self.row("last byte at a peer", Some(4.0), after(receiver.last_sent_ns(), deadline))];
        if left == 0 {
            rows.push(self.row("last death of what computes", self.bound, after(last, deadline)));
        } else {
            rows.push(self.row(&format!("computes still after {} s", limit.as_secs()), None, left as f64));
        }
        let (since, whence) = match self.agent {
            Agent::Alive => (deadline, "last death of all"),
            Agent::Stopped => {
                let now = boot_ns()?;
                ground.sandbox.signal_agent(Signal::SIGCONT)?;
                (now, "SIGCONT to last death of all")
            }
            Agent::Killed => {
                let now = boot_ns()?;
                ground.sandbox.start_within(LATE)?;
                (now, "start of the next agent to last death of all")
            }
        };
        let ended = (computing.wait(patience())?, others.wait(patience())?);
        ensure!(ended.0.0 == 0 && ended.1.0 == 0, "members outlived the end of their session");
        let last = [last, asleep, ended.0.1, ended.1.1].into_iter().fold(0, u64::max);
        rows.push(self.row(whence, None, after(last, since)));
        Ok(rows)
    }

    fn row(&self, what: &str, bound: Option<f64>, value: f64) -> Row {
        let agent = match self.agent {
            Agent::Alive => "alive",
            Agent::Stopped => "stopped",
            Agent::Killed => "killed",
        };
        let plural = if self.members == 1 { "" } else { "s" };
        Row {
            bench: "deadline",
            what: format!("{} member{plural}, {FLOWS} flows, agent {agent}: {what}", self.members),
            unit: if what.starts_with("computes") { "" } else { "ms" },
            target: bound.map(|bound| Target { name: "P8", bound: Bound::AtMost(bound) }),
            figures: Figures::Single(value),
        }
    }
}

/// Milliseconds.
fn after(ns: u64, since: u64) -> f64 {
    ns.saturating_sub(since) as f64 / 1e6
}

fn deadline(ground: &Ground, worker: &Worker) -> Result<u64> {
    let session = ground.sandbox.session_of(worker.pid())?;
    let start = ground.sandbox.records(&session, "session-start")?;
    let found = start.first().and_then(|record| record["deadline_boot_ns"].as_u64());
    found.context("session-start without a deadline")
}
