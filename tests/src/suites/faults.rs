//! The agent goes away and comes back: what it built holds without it.

use serde_json::Value;

use super::scene::{Wall, only};
use crate::harness::{prelude::*, wait::all_gone};

pub(super) const TESTS: &[Test] = &[
    Test::new("faults::killed-twice", WHEREVER, killed_twice),
    Test::new("faults::killed-while-a-session-starts", WHEREVER, killed_in_start),
    Test::new("faults::disarm-ends-all", WHEREVER, disarm),
];

fn killed_twice(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    s.kill_agent()?;
    // the second agent may be anywhere in its start when it dies
    let second = s.start_unready()?;
    second.kill()?;
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    s.cli(&["end", &wall.session])?.ended(0)?;
    s.session_ended(&wall.session, "operator")?;
    all_gone(&[wall.running.pid()])
}

/// Wherever between the first record of a session and its first instruction the agent dies: the session goes on whole, or
/// it has an end and its command never ran or is gone.
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
        let answer = s.cli(&["end", &session])?.code;
        ensure!(matches!(answer, 0 | 5), "end answered {answer}");
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
    s.cli(&["disarm", "--yes"])?.ended(0)?.told(&["disarmed: ", "removed "])?;
    s.agent_ends()?;
    all_gone(&[wall.running.pid()])?;
    s.wait_evidence("the end of the session", |r| r["type"] == "session-end" && r["session"] == wall.session)?;
    s.wait_evidence("the disarming", |r| r["type"] == "disarm").map(drop)
}
