//! Faults that are brought about on purpose: a label that is not found, a mirror without room, a tracepoint that does not
//! fire. A member stays a member, or does nothing more.

use std::{fs, os::fd::AsFd as _};

use super::{
    privileges::tried,
    scene::{Fifo, attempt, only, refusal, refused_calls, refused_exec},
};
use crate::harness::{
    bpf::{Map, find, pidfd},
    launch::bare,
    prelude::*,
    server::Server,
    wait::in_guest,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("faults::what-is-skipped-is-counted", WHEREVER, skipped).each_kernel(),
    Test::new("faults::label-not-found", WHEREVER, unlabelled),
    Test::new("faults::mirror-without-room", WHEREVER, full_mirror),
    Test::new("faults::birth-not-seen", WHEREVER, unseen_birth),
    Test::new("faults::exec-not-seen", WHEREVER, unseen_exec),
    Test::new("faults::label-of-an-earlier-session", WHEREVER, stale),
];

/// What the agent answers a member.
const AS_A_MEMBER: &str = r#"{"error":"dev.tipstaff.Member","parameters":{}}"#;

/// The label is taken out of task storage, then the mirror's entry too: "no label" is not "outside", for the kernel's programs
/// and for the agent.
fn unlabelled(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (open, closed) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let policy = only(&member).allow("good", &good).to("open", "127.0.0.1/32", open.port());
    let socket = s.runtime().join("operate.sock").display().to_string();
    let policy = s.policy(&policy.scope(format!("unix: {{ allow: [{socket}] }}")))?;
    // first, before anything gives the label back
    let call = format!("call {socket} dev.tipstaff.Ps");
    let (labels, mirror, mark) = (Map::of(s, "TASK_LABELS")?, Map::of(s, "MIRROR")?, s.file("mark"));
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?, Fifo::new(s)?];
    let tries = |fifo: &Fifo| {
        format!(
            "fifo {} {call} + connect tcp {} + connect tcp {} + spawn {bad} --work mark {mark} + spawn {good} --work nothing",
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
        expected += &format!("{AS_A_MEMBER}\nerrno 1\nok\n{}\nexit 0\n", refused_exec(s));
        let said = until("the member to have tried all", patience(), || {
            Ok((running.said().len() >= expected.len()).then(|| running.said()))
        })?;
        ensure!(said == expected, "round {round}: the member was answered {said:?}");
    }
    ensure!(!fs::exists(&mark)?, "a program out of scope ran");
    closed.untouched()?;
    running.wait()?.ended(0)?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    s.session_ended(&session, "completed")?;
    // known by its cgroup
    let (records, calls) = refused_calls(s, &session)?;
    ensure!(calls == fifos.len() as u64, "{calls} calls were refused: {records:?}");
    elsewhere_and_unlabelled(s, (&policy, &member), &call)
}

/// Of a member that is in another cgroup and has no label, only the mirror knows. Who is nobody's calls from there.
fn elsewhere_and_unlabelled(s: &Sandbox, (policy, member): (&str, &str), call: &str) -> Result<()> {
    let (elsewhere, mut fifo) = (s.part("elsewhere"), Fifo::new(s)?);
    let running = s.run(policy, member, &format!("fifo {} {call}", fifo.path))?;
    let session = running.session(s)?;
    let labels = Map::of(s, "TASK_LABELS")?;
    labels.remove_of(pidfd(running.pid())?.as_fd())?;
    elsewhere.take(running.pid())?;
    fifo.wake()?;
    running.wait()?.said(AS_A_MEMBER)?;
    s.session_ended(&session, "completed")?;
    let (records, calls) = refused_calls(s, &session)?;
    ensure!(calls == 1, "{calls} calls were refused: {records:?}");
    let mut outsider = bare(member.as_ref());
    outsider.arg("--work").args(format!("fifo {} {call}", fifo.path).split_whitespace());
    let outsider = Running::spawn(s, outsider, None)?;
    elsewhere.take(outsider.pid())?;
    fifo.wake()?;
    let answer = outsider.wait()?.stdout;
    ensure!(answer.contains(r#""sessions""#) && !answer.contains("error"), "an outsider was answered {answer:?}");
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
        // the kernel takes them off when it comes to it
        until("the programs to be away", patience(), || {
            let (_, session) = tried(s, &policy, &member, &format!("spawn {good} --work nothing"))?;
            Ok((seen || s.records(&session, "fork")?.is_empty()).then_some(()))
        })?;
        let refused = attempt(s, &policy, &member, "spawn", &bad)?;
        refused.was_refused(s, "default")?;
        attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")?;
        let births = s.records(&refused.session, "fork")?.len();
        ensure!((births > 0) == seen, "without {link}: {births} births are recorded");
    }
    Ok(())
}

/// With neither of the two programs that see execs, as where the kernel skips both: a program out of scope (tier no-lsm: it
/// runs) reaches nobody, and is killed when it makes a child or by the clock; one in scope is judged by what it does.
fn unseen_exec(s: &mut Sandbox) -> Result<()> {
    const TIMES: usize = 3;
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (server, mut fifo) = (Server::tcp("127.0.0.1")?, Fifo::new(s)?);
    let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let connect = format!("connect tcp {}", server.words());
    let spins = s.file("spins");
    fs::write(&spins, format!("#!\nmake 2 1 0 + connect-by 9 {} + spin\n", server.words()))?;
    let tries = [
        format!("spawn {good} --work {connect}"),
        format!("fifo {} {}", fifo.path, vec![format!("inherit 9 spawn {bad} --script {spins}"); TIMES].join(" + ")),
        format!("spawn {bad} --work fork {connect}"),
        format!("spawn {good} --work {connect}"),
        format!("spawn {good} --work fork {connect}"),
    ];
    let running = s.run(&s.policy(&policy)?, &member, &tries.join(" + "))?;
    let session = running.session(s)?;
    server.accepted(1)?;
    s.saw_exec(&session, &good, "allow", "good")?;
    for link in ["link_exec", "link_exec_again"] {
        let pin = find(s.pins(), link).with_context(|| format!("{link} is not pinned"))?;
        fs::remove_file(&pin)?;
    }
    // the kernel takes them off when it comes to it
    let probe = only(&member).allow("good", &good);
    until("the programs to be away", patience(), || {
        let (_, session) = tried(s, &probe, &member, &format!("spawn {good} --work make 2 1 0"))?;
        Ok(s.records(&session, "exec")?.iter().any(|exec| exec["late"] == true).then_some(()))
    })?;
    fifo.wake()?;
    let finished = running.wait()?;
    finished.ended(0)?;
    let (before, after) = ("ok\nexit 0\n", "ok\nexit 0\nok\nexit 0\nexit 0");
    let of_bad = finished.stdout.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    let of_bad = of_bad.with_context(|| format!("of what is in scope: {}", finished.stdout))?;
    // the clock can come before it asks for anything
    let (mut sockets, mut connects) = (0, 0);
    for one in of_bad.split_inclusive("signal 9\n").filter(|_| s.tier == Tier::NoLsm) {
        let asked = one.strip_suffix("signal 9\n").context("it was not killed")?;
        ensure!(["", "errno 1\n", "errno 1\nerrno 1\n"].contains(&asked), "out of scope: {of_bad}");
        sockets += usize::from(!asked.is_empty());
        connects += usize::from(asked.lines().count() == 2);
    }
    let killed = if s.tier == Tier::Full { "errno 1\n" } else { "signal 9\n" };
    ensure!(of_bad.matches(killed).count() == TIMES + 1, "out of scope: {of_bad}");
    ensure!(s.tier == Tier::Full || connects > 0 || in_guest(), "the clock was always first: {of_bad}");
    server.accepted(3)?;
    let end = s.session_ended(&session, "completed")?;
    ensure!(end["members_left"] == 0, "{end}");
    let mut late: Vec<String> = Vec::new();
    for exec in s.records(&session, "exec")?.iter().filter(|exec| exec["late"] == true) {
        late.push(format!("{} {} {}", exec["path"], exec["verdict"], exec["rule"]).replace('"', ""));
    }
    let of_bad = if s.tier == Tier::Full { 0 } else { TIMES + 1 };
    let expected = [vec!["bad kill default"; of_bad], vec!["good allow good"; 2]].concat();
    ensure!(late == expected, "judged late: {late:?}");
    for (kind, verdict, most, least) in
        [("socket", "deny", sockets, sockets), ("connect", "deny", connects, connects), ("fork", "kill", 1, 0)]
    {
        let all = s.records(&session, kind)?;
        let found = all.iter().filter(|r| r["verdict"] == verdict && r["rule"] == "unseen-program").count();
        ensure!((least..=most).contains(&found), "{found} of {kind} are recorded as of an unseen program");
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
    let marks = [&good, &good, &good, &bad].map(|program| (program, s.file("mark")));
    let line = |program: &str, mark: &str| format!("many {EACH} {program} --work mark {mark}");
    let running = marks.each_ref().map(|(program, mark)| s.run(&policy, &member, &line(program, mark)));
    let (mut born, mut started, mut escaped) = (0, 0, 0);
    for (one, (program, mark)) in running.into_iter().zip(marks) {
        let one = one?;
        let session = one.session(s)?;
        let said = one.wait_for(4 * patience())?.stdout;
        if program == &bad {
            let ran = said.strip_suffix(&format!(" of {EACH}")).and_then(|ran| ran.parse::<u64>().ok());
            escaped = ran.with_context(|| format!("the member said {said:?}"))?;
            ensure!(fs::exists(&mark)? == (escaped > 0), "{escaped} ran, and what they leave says something else");
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

/// A member whose label is of another session than the one that has the slot: it is held as a member of one that is over.
fn stale(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let open = Server::tcp("127.0.0.1")?;
    let policy = only(&member).allow("good", &good).to("open", "127.0.0.1/32", open.port());
    let states = Map::of(s, "SESSION_STATE")?;
    let slots = states.shape()?.entries;
    let all = || (0..slots).map(|slot| states.word(slot)).collect::<Result<Vec<u64>>>();
    let (before, mut fifos, marks) = (all()?, [Fifo::new(s)?, Fifo::new(s)?], [s.file("mark"), s.file("mark")]);
    let part = |n: usize| {
        format!("fifo {} connect tcp {} + spawn {good} --work mark {}", fifos[n].path, open.words(), marks[n])
    };
    let line = format!("{} + {}", part(0), part(1));
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    let (slot, word) = before
        .iter()
        .zip(all()?)
        .zip(0..)
        .find_map(|((before, now), slot)| (*before != now).then_some((slot, now)))
        .context("no slot is another than before")?;
    fifos[0].wake()?;
    until("what a member may do", patience(), || Ok((running.said() == "ok\nexit 0\n").then_some(())))?;
    open.accepted(1)?;
    states.set_word(slot, word + (1 << 32))?;
    fifos[1].wake()?;
    // it is refused, or killed, by whichever program sees it first
    let said = running.wait()?.stdout;
    states.set_word(slot, word)?;
    ensure!(!said["ok\nexit 0".len()..].contains("ok") && !said.ends_with("exit 0\nexit 0"), "{said:?}");
    open.accepted(1)?;
    ensure!(fs::exists(&marks[0])? && !fs::exists(&marks[1])?, "{said:?}");
    s.wait_evidence("the end", |r| r["type"] == "session-end" && r["session"] == session).map(drop)
}
