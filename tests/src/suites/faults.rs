//! The agent goes away and comes back: what it built holds without it.

use serde_json::Value;

use super::scene::{Fifo, only, refused_exec};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, gone},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("faults::killed-agent-is-no-hole", WHEREVER, killed),
    Test::new("faults::stopped-service-is-no-hole", WHEREVER, stopped),
    Test::new("faults::killed-twice", WHEREVER, killed_twice),
    Test::new("faults::killed-while-a-session-starts", WHEREVER, killed_in_start),
    Test::new("faults::disarm-ends-all", WHEREVER, disarm),
];

/// A session whose member, each time it is woken, tries a program and an address that are out of scope and a program
/// and an address in scope.
struct Wall {
    running: Running,
    session: String,
    fifos: Vec<Fifo>,
    bad: Server,
    woken: usize,
}

impl Wall {
    fn new(s: &Sandbox, times: usize) -> Result<Self> {
        let (member, good, out) = (s.program("member")?, s.program("good")?, s.program("bad")?);
        let (server, bad) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
        let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
        let fifos = (0..times).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
        let tries = |fifo: &Fifo| {
            format!(
                "fifo {} spawn {out} --work nothing + spawn {good} --work nothing + connect tcp {} + connect tcp {}",
                fifo.path,
                bad.words(),
                server.words()
            )
        };
        let line = fifos.iter().map(tries).chain(["idle".to_owned()]).collect::<Vec<_>>().join(" + ");
        let pid = s.file("pid");
        let running = s.run(&s.policy(&policy)?, &member, &format!("pid {pid} say there + {line}"))?;
        let session = running.session(s)?;
        s.pid_in(&pid)?;
        Ok(Self { running, session, fifos, bad, woken: 0 })
    }

    /// Wakes the member and checks each answer.
    fn holds(&mut self, s: &Sandbox) -> Result<()> {
        self.fifos[self.woken].wake()?;
        self.woken += 1;
        let answers = format!("{}\nexit 0\nerrno 1\nok\n", refused_exec(s));
        let expected = format!("there\n{}", answers.repeat(self.woken));
        let said = until("the member to have tried all", patience(), || {
            let said = self.running.said();
            Ok((said.len() >= expected.len() || gone(self.running.pid())).then_some(said))
        })?;
        ensure!(said == expected, "the member was answered {said:?} where {expected:?} was expected");
        Ok(())
    }
}

fn killed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    wall.holds(s)?;
    s.kill_agent()?;
    wall.holds(s)?;
    s.start()?;
    s.session_ended(&wall.session, "agent-loss")?;
    all_gone(&[wall.running.pid()])?;
    wall.bad.untouched()?;
    // and the new agent takes new sessions
    let member = s.program("again")?;
    s.run(&s.policy(&only(&member))?, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    Ok(())
}

fn stopped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    wall.holds(s)?;
    s.stop_agent()?;
    wall.holds(s)?;
    wall.bad.untouched()?;
    s.start()?;
    s.wait_evidence("the end of the session", |r| r["type"] == "session-end" && r["session"] == wall.session)?;
    all_gone(&[wall.running.pid()])
}

fn killed_twice(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let wall = Wall::new(s, 1)?;
    s.kill_agent()?;
    // the second agent may be anywhere in its start when it dies
    let second = s.start_unready()?;
    second.kill()?;
    s.start()?;
    s.session_ended(&wall.session, "agent-loss")?;
    all_gone(&[wall.running.pid()])
}

/// Wherever between the first record of a session and its first instruction the agent dies: the session has an end, and
/// its command either never ran or is gone.
fn killed_in_start(s: &mut Sandbox) -> Result<()> {
    const ROUNDS: usize = 3;
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    for _ in 0..ROUNDS {
        let running = s.run(&policy, &member, "idle")?;
        let session = s.session_of(running.pid())?;
        s.kill_agent()?;
        s.start()?;
        let end = |r: &Value| r["type"] == "session-end" && r["session"] == session;
        let end = s.wait_evidence("the end of a session whose start was cut short", end)?;
        ensure!(end["members_left"] == 0, "the session ended with members left: {end}");
        let code = running.wait()?.code;
        ensure!(matches!(code, 125 | 137), "the command ended with {code}");
    }
    s.run(&policy, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    Ok(())
}

fn disarm(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let wall = Wall::new(s, 1)?;
    let before = s.pins().exists();
    ensure!(before, "{} is not there while the agent runs", s.pins().display());
    s.cli(&["disarm", "--yes"])?.ended(0)?;
    s.agent_ends()?;
    all_gone(&[wall.running.pid()])?;
    s.wait_evidence("the end of the session", |r| r["type"] == "session-end" && r["session"] == wall.session)?;
    s.wait_evidence("the disarming", |r| r["type"] == "disarm").map(drop)
}
