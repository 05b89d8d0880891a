//! Nothing is lost silently: what the kernel produced is in the evidence, or counted there by whoever could not keep it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    control::freeze_still,
    scene::{Fifo, SmallDisk, Wall, bulky, only},
};
use crate::harness::{prelude::*, server::Server};

pub(super) const TESTS: &[Test] = &[
    Test::new("losses::flood-adds-up", WHEREVER, flood),
    Test::new("losses::full-disk", WHEREVER, full_disk).agents_own(),
    Test::new("losses::full-store", WHEREVER, full_store).agents_own(),
];

/// More refusals than the ring of verdicts has room for.
pub(super) const REFUSALS: u64 = 20_000;
const ALLOWED: u64 = 200;

fn sum(kinds: &Value) -> u64 {
    kinds.as_object().map_or(0, |kinds| kinds.values().filter_map(Value::as_u64).sum())
}

/// How the agent is kept from reading its rings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Away {
    Not,
    Stopped,
    Killed,
}

/// Three counts that know nothing of each other must add up: what the kernel produced, the records in the file, and
/// what the ring's own counter says it had no room for, which is what the gap records speak of.
fn flood(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let (good, bad) = (Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = s.policy(&only(&member).to("good", "127.0.0.1/32", good.port()))?;
    for away in [Away::Not, Away::Stopped, Away::Killed] {
        let (mut fifo, mut last) = (Fifo::new(s)?, Fifo::new(s)?);
        let line = format!(
            "fifo {} flood {ALLOWED} {} + flood {REFUSALS} {} + fifo {} say done",
            fifo.path,
            good.words(),
            bad.words(),
            last.path
        );
        let running = s.run(&policy, &member, &line)?;
        let session = running.session(s)?;
        match away {
            Away::Not => {}
            Away::Stopped => s.signal_agent(Signal::SIGSTOP)?,
            Away::Killed => s.kill_agent()?,
        }
        fifo.wake()?;
        let said = format!("{ALLOWED} of {ALLOWED}\n0 of {REFUSALS}\n");
        until("the flood to be over", 4 * patience(), || Ok((running.said() == said).then_some(())))
            .with_context(|| format!("agent {away:?}: {:?} instead of {said:?}", running.said()))?;
        match away {
            Away::Not => {}
            Away::Stopped => {
                std::thread::sleep(Duration::from_secs(1));
                s.signal_agent(Signal::SIGCONT)?;
            }
            Away::Killed => s.start()?,
        }
        last.wake()?;
        running.wait_for(4 * patience())?.ended(0)?;
        let end = s.session_ended(&session, "completed").with_context(|| format!("{away:?}"))?;
        adds_up(s, &session, &end, away).with_context(|| format!("agent {away:?}"))?;
    }
    bad.untouched()?;
    s.cli(&["status"])?.ended(4)?.told(&["records were lost"])?;
    s.cli(&["verify"])?.ended(0)?.told(&["intact, with", "ring-full"])?;
    Ok(())
}

fn adds_up(s: &Sandbox, session: &str, end: &Value, away: Away) -> Result<()> {
    let count = |part: &str| end[part]["connect"].as_u64().unwrap_or(0);
    ensure!(count("produced") == REFUSALS + ALLOWED, "{} connects were produced", count("produced"));
    let written = s.records(session, "connect")?;
    let lines = u64::try_from(written.len())?;
    ensure!(lines == count("consumed"), "{lines} connects in the evidence, {} consumed", count("consumed"));
    let allowed = written.iter().filter(|r| r["verdict"] == "allow").count();
    ensure!(u64::try_from(allowed)? == ALLOWED, "{allowed} connects that were allowed are in the evidence");
    let gaps: Vec<Value> = s.records(session, "gap")?.into_iter().filter(|r| r["cause"] == "ring-full").collect();
    let told: u64 = gaps.iter().filter_map(|gap| gap["kinds"]["connect"].as_u64()).sum();
    ensure!(lines + told == REFUSALS + ALLOWED, "{lines} written and {told} told of do not make what was produced");
    ensure!(sum(&end["lost"]) == told, "the end speaks of {} lost, the gaps of {told}", sum(&end["lost"]));
    ensure!(away == Away::Not || told > 0, "the ring was never full");
    for gap in gaps {
        ensure!(gap["since"]["boot"] == gap["boot"] && gap["lost"] == sum(&gap["kinds"]), "{gap}");
    }
    Ok(())
}

/// With no room for evidence the session is held as before; what was not written is counted, shown, and told when there
/// is room again.
fn full_disk(s: &mut Sandbox) -> Result<()> {
    let disk = SmallDisk::over(s, "evidence", 128)?;
    s.start()?;
    let (member, bad) = (s.program("member")?, s.program("bad")?);
    let (server, refused) = (Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = s.policy(&only(&member).to("server", "127.0.0.1/32", server.port()))?;
    let (mut fifo, mark) = (Fifo::new(s)?, s.file("mark"));
    let line = format!(
        "flood 1000 {} + spawn {bad} --work mark {mark} + connect udp {} + fifo {} connect udp {}",
        refused.words(),
        server.words(),
        fifo.path,
        server.words()
    );
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    until("the member to have tried", patience(), || Ok((running.said().lines().count() >= 3).then_some(())))?;
    let said = running.said();
    ensure!(said.starts_with("0 of 1000\n") && said.ends_with("\nok\n"), "the member was answered {said:?}");
    ensure!(!Path::new(&mark).exists(), "a program out of scope ran");
    until("status to be degraded", patience(), || {
        let status = s.cli(&["status"])?;
        Ok((status.code == 4 && status.stdout.contains("could not be written")).then_some(()))
    })?;
    let before = fs::metadata(s.evidence_file())?.len();
    ensure!(before <= 128 * 1024, "the disk was not full: {before} bytes");
    disk.enlarge()?;
    fifo.wake()?;
    running.wait()?.ended(0)?;
    s.session_ended(&session, "completed")?;
    s.wait_evidence("what was not written", |r| r["type"] == "gap" && r["cause"] == "not-written")?;
    // a short record, such as the first gap, can find room where a longer one did not
    let all = s.evidence()?;
    let gaps: Vec<_> = all.iter().filter(|r| r["type"] == "gap" && r["cause"] == "not-written").collect();
    let each = |gap: &&Value| gap["lost"].as_u64() > Some(0) && gap["since"]["boot"] == gap["boot"];
    ensure!(gaps.iter().all(each), "{gaps:?}");
    let lost: u64 = gaps.iter().filter_map(|gap| gap["lost"].as_u64()).sum();
    let written = u64::try_from(s.records(&session, "connect")?.len())?;
    ensure!(written < 1002 && written + lost >= 1002, "{written} connects were written and {lost} records were not");
    s.cli(&["verify"])?.ended(0)?.told(&["intact, with", "not-written"])?;
    Ok(())
}

/// With no room for what the next agent must know, nothing new starts and what runs is held as before; it is shown, and
/// over when there is room again, without another agent. What changed meanwhile is kept then.
fn full_store(s: &mut Sandbox) -> Result<()> {
    let disk = SmallDisk::over(s, "state", 4096)?;
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    let member = s.program("other")?;
    let policy = bulky(s, &only(&member))?;
    let starts = || s.run(&policy, &member, "say in")?.wait();
    disk.fill()?;
    let refused = starts()?;
    refused.ended(125)?.said("")?.complained(&["cannot use ", "store.redb", "No space left", "its free space"])?;
    ensure!(refused.stderr.trim_end().lines().count() == 1, "more than one line: {}", refused.stderr);
    let degraded =
        || s.cli(&["status"])?.ended(4)?.told(&["store.redb", "No space left", "no session starts"]).map(drop);
    degraded()?;
    // a stay that a restart would forget is none, and nothing is ended for it
    let long = "x".repeat(100_000);
    s.cli(&["revoke", "--policy", &long, "--stay", "1h"])?.ended(1)?.complained(&["store.redb", "No space left"])?;
    ensure!(s.json(&["revoke", "--list"])?["stays"] == serde_json::json!([]), "a stay that was not kept is listed");
    wall.holds(s)?;
    freeze_still(s, &wall.session, &[])?;
    // it stays so while the agent asks again whether there is room, which it does each second
    let begun = Instant::now();
    until("the agent to have asked again", patience(), || {
        degraded()?;
        Ok((begun.elapsed() > Duration::from_millis(1_500)).then_some(()))
    })?;
    disk.make_room()?;
    until("status to be whole again", patience(), || Ok((s.cli(&["status"])?.code == 0).then_some(())))?;
    ensure!(s.json(&["status"])?["store"]["refused"].as_u64() > Some(0), "no refused write is counted");
    starts()?.ended(0)?.said("in")?;
    s.kill_agent()?;
    s.start()?;
    let state = s.json(&["inspect", &wall.session])?["session"]["state"].clone();
    ensure!(state == "frozen", "what changed on the full disk was not kept: it is {state}");
    s.cli(&["thaw", &wall.session])?.ended(0)?;
    wall.holds(s)?;
    s.cli(&["end", &wall.session])?.ended(0)?;
    Ok(())
}
