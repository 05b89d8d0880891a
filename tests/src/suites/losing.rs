//! Faults that are brought about on purpose: a label that is not found, a mirror without room, a tracepoint that does not
//! fire. A member stays a member, or does nothing more.

use std::{fs, os::fd::AsFd as _};

use super::scene::{Fifo, attempt, only, refusal, refused_exec};
use crate::harness::{
    bpf::{Map, find, pidfd},
    prelude::*,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("faults::what-is-skipped-is-counted", WHEREVER, skipped),
    Test::new("faults::label-not-found", WHEREVER, unlabelled),
    Test::new("faults::mirror-without-room", WHEREVER, full_mirror),
    Test::new("faults::birth-not-seen", WHEREVER, unseen_birth),
];

/// The label is taken out of task storage, then the mirror's entry too: "no label" is not "outside".
fn unlabelled(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (open, closed) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let policy = s.policy(&only(&member).allow("good", &good).to("open", "127.0.0.1/32", open.port()))?;
    let (labels, mirror, mark) = (Map::of(s, "TASK_LABELS")?, Map::of(s, "MIRROR")?, s.file("mark"));
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?, Fifo::new(s)?];
    let tries = |fifo: &Fifo| {
        format!(
            "fifo {} connect tcp {} + connect tcp {} + spawn {bad} --work mark {mark} + spawn {good} --work nothing",
            fifo.path,
            closed.words(),
            open.words()
        )
    };
    let line = fifos.iter().map(tries).collect::<Vec<_>>().join(" + ");
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    let process = pidfd(running.pid())?;
    let mut expected = String::new();
    for (round, fifo) in fifos.iter_mut().enumerate() {
        ensure!(labels.has(process.as_fd()), "round {round}: the member has no label");
        labels.remove_of(process.as_fd())?;
        if round > 0 {
            ensure!(mirror.remove_where_last_is(running.pid())? == 1, "the member has no entry in the mirror");
        }
        fifo.wake()?;
        expected += &format!("errno 1\nok\n{}\nexit 0\n", refused_exec(s));
        let said = until("the member to have tried all", patience(), || {
            Ok((running.said().len() >= expected.len()).then(|| running.said()))
        })?;
        ensure!(said == expected, "round {round}: the member was answered {said:?}");
    }
    ensure!(!fs::exists(&mark)?, "a program out of scope ran");
    closed.untouched()?;
    running.wait()?.ended(0)?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    let end = s.session_ended(&session, "completed")?;
    ensure!(end["members_left"] == 0, "{end}");
    Ok(())
}

/// A child that has no room in the mirror does not live, and neither does who made it; with room both do.
fn full_mirror(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let policy = only(&member).allow("good", &good);
    let mirror = Map::of(s, "MIRROR")?;
    let (mark, mut fifo) = (s.file("mark"), Fifo::new(s)?);
    let running =
        s.run(&s.policy(&policy)?, &member, &format!("fifo {} spawn {good} --work mark {mark}", fifo.path))?;
    let session = running.session(s)?;
    let keys: Vec<u64> = (1..=65_536).collect();
    let filled = mirror.fill(&keys)?;
    fifo.wake()?;
    let ended = s.session_ended(&session, "completed");
    mirror.empty(&keys[..filled as usize])?;
    let ended = ended?;
    ensure!(!fs::exists(&mark)?, "a child without a place in the mirror ran");
    ensure!(ended["members_left"] == 0 && ended["faults"].as_u64() > Some(0), "{ended}");
    running.wait()?.ended(137)?;
    s.wait_evidence("the fork", |r| r["type"] == "fork" && r["session"] == session && r["rule"] == "unlabelled")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")
}

/// With one of the two programs that see births, nothing is missing; with none, a child is still judged when it starts a
/// program.
fn unseen_birth(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    for (link, seen) in [("link_newtask", true), ("link_newtask_again", false)] {
        let pin = find(s.pins(), link).with_context(|| format!("{link} is not pinned"))?;
        fs::remove_file(&pin)?;
        let refused = attempt(s, &policy, &member, "spawn", &bad)?;
        refused.was_refused(s, "default")?;
        attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")?;
        let births = s.records(&refused.session, "fork")?.len();
        ensure!((births > 0) == seen, "without {link}: {births} births are recorded");
    }
    Ok(())
}

/// Members that make tasks, and start programs in them, at the same time: no more births and execs are missing than runs of
/// either program were skipped, and of programs that are out of scope no more run.
fn skipped(s: &mut Sandbox) -> Result<()> {
    const EACH: u64 = 100;
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let counts = || -> Result<[u64; 4]> {
        let status = s.json(&["status"])?;
        let count = |name: &str| {
            status["skipped"][name].as_u64().with_context(|| format!("no count of {name}: {}", status["skipped"]))
        };
        Ok([count("newtask")?, count("newtask_again")?, count("exec")?, count("exec_again")?])
    };
    let before = counts()?;
    let line = |program: &str| format!("many {EACH} {program} --work nothing");
    let programs = [&good, &good, &good, &bad];
    let running = programs.map(|program| s.run(&policy, &member, &line(program)));
    let (mut born, mut started, mut escaped) = (0, 0, 0);
    for (one, program) in running.into_iter().zip(programs) {
        let one = one?;
        let session = one.session(s)?;
        let said = one.wait_for(4 * patience())?.stdout;
        if program == &bad {
            let ran = said.strip_suffix(&format!(" of {EACH}")).and_then(|ran| ran.parse::<u64>().ok());
            escaped = ran.with_context(|| format!("the member said {said:?}"))?;
        } else {
            ensure!(said == format!("{EACH} of {EACH}"), "of programs in scope: {said}");
        }
        let end = s.session_ended(&session, "completed")?;
        let produced = |kind: &str| end["produced"][kind].as_u64().with_context(|| format!("no count of {kind}"));
        born += produced("fork")?;
        // the member's own start is one
        started += produced("exec")?.saturating_sub(1);
    }
    let after = counts()?;
    let skipped = |program: usize| after[program] - before[program];
    let all = 4 * EACH;
    // what one program of a pair missed the other saw
    let (births, execs) = (skipped(0).min(skipped(1)), skipped(2).min(skipped(3)));
    for (what, seen, skipped) in [("births", born, births), ("execs", started, execs)] {
        ensure!(seen <= all && seen + skipped >= all, "{seen} of {all} {what}, {skipped} skipped");
    }
    let missed = if s.tier == Tier::Full { 0 } else { execs };
    ensure!(escaped <= missed, "{escaped} of {EACH} programs out of scope ran, {missed} execs were skipped");
    let probe = s.json(&["probe"])?;
    for name in ["membership", "exec-deny"] {
        let control = probe["controls"].as_array().into_iter().flatten().find(|c| c["control"] == name);
        let state = control.context("no control")?["state"].clone();
        ensure!(state == if s.tier == Tier::Full { "enforced" } else { "best-effort" }, "{name} is {state}");
    }
    Ok(())
}
