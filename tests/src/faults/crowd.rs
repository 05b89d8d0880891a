//! Too much of everything, and too little: sessions, rules, connects, memory; and a session's cgroup that goes.

use std::{fs, time::Instant};

use nix::sys::signal::Signal;

use super::{Asked, By, Fault, Form};
use crate::{
    harness::{
        mounts,
        prelude::*,
        server::Server,
        wait::{all_gone, gone, in_guest},
    },
    suites::scene::{Fifo, Wall, attach_to, only},
};

#[rustfmt::skip]
pub(super) const ROWS: &[Fault] = &[
    Fault { promise: "refused", name: "cgroup-removed",
        what: "root moves a member out of its session's cgroup, and removes that",
        holds: "it is a member still; the next agent ends its session, and says why",
        by: By::Row { run: cgroup_removed, lasts: 60, guests: None, long: false } },
    Fault { promise: "recorded", name: "connect-storm",
        what: "members of four sessions send as fast as they can to whom they may not",
        holds: "nothing arrives; produced is written and counted as lost, exactly",
        by: By::Row { run: connect_storm, lasts: 240, guests: None, long: false } },
    Fault { promise: "restart", name: "out-of-memory",
        what: "the agent has no memory left, and the kernel kills it",
        holds: "what was refused is refused, the session goes on",
        by: By::Row { run: out_of_memory, lasts: 60, guests: Some("turns the memory controller on for the whole tree"), long: false } },
    Fault { promise: "input", name: "rules-100000",
        what: "a policy of 100,000 rules",
        holds: "it is refused with what a policy may have at most, and what is in force holds",
        by: By::Row { run: rules, lasts: 60, guests: None, long: false } },
    Fault { promise: "input", name: "every-slot",
        what: "as many sessions at a time as there may be (1,023), and one more",
        holds: "the one more is refused, the others are held; with room it starts",
        by: By::Row { run: every_slot, lasts: 600, guests: None, long: true } },
    Fault { promise: "end", name: "sessions-10000",
        what: "10,000 sessions, eight at a time (in guests 200)",
        holds: "each has its end, none leaves anything",
        by: By::Row { run: many_sessions, lasts: 3000, guests: None, long: true } },
];

fn cgroup_removed(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    // in tier no-lsm what a member makes elsewhere is seen from the root only
    attach_to(s, "root")?;
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    wall.holds(s)?;
    // one that is only observed beside it
    let (member, bad, mark, mut fifo) = (s.program("watched")?, s.program("other")?, s.file("mark"), Fifo::new(s)?);
    let line = format!("fifo {} spawn {bad} --work mark {mark}", fifo.path);
    let observed = s.run(&s.policy(&only(&member).observe())?, &member, &line)?;
    let seen = observed.session(s)?;
    let cgroups = s.part("sessions").descendants();
    s.part("elsewhere").take(wall.running.pid())?;
    s.part("elsewhere").take(observed.pid())?;
    for cgroup in &cgroups {
        until("the session's cgroup to be removed", patience(), || Ok(fs::remove_dir(cgroup.path()).ok()))?;
    }
    ensure!(!cgroups.is_empty(), "the session has no cgroup");
    wall.holds(s)?;
    s.kill_agent()?;
    wall.holds(s)?;
    s.start()?;
    s.session_ended(&wall.session, "agent-loss")?;
    all_gone(&[wall.running.pid()])?;
    s.wait_evidence("why it is ended", |r| {
        let says = |d: &str| d.contains(&wall.session) && d.contains("its cgroup is gone");
        r["type"] == "gap" && r["detail"].as_str().is_some_and(says)
    })?;
    wall.bad.untouched()?;
    // it goes on as it was, whoever comes after it
    s.wait_evidence("the end of the watch", |r| {
        r["type"] == "session-end" && r["session"] == seen && r["reason"] == "agent-loss" && r["members_left"] == 1
    })?;
    let policy = s.policy(&only(&member))?;
    let others = (0..3).map(|_| s.run(&policy, &member, "idle")).collect::<Result<Vec<_>>>()?;
    others.iter().try_for_each(|running| running.session(s).map(drop))?;
    fifo.wake()?;
    observed.wait()?.said("exit 0")?;
    ensure!(fs::exists(&mark)?, "who is only observed was refused a program");
    others.iter().try_for_each(|running| s.cli(&["end", &running.session(s)?])?.ended(0).map(drop))?;
    Ok(Vec::new())
}

fn connect_storm(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    s.start()?;
    let (member, bad) = (s.program("member")?, Server::udp("127.0.0.1")?);
    let policy = s.policy(&only(&member))?;
    let each: u64 = if in_guest() { 2_000 } else { 30_000 };
    let begun = Instant::now();
    let all = (0..4)
        .map(|_| s.run(&policy, &member, &format!("flood {each} {}", bad.words())))
        .collect::<Result<Vec<_>>>()?;
    let sessions = all.iter().map(|running| s.session_of(running.pid())).collect::<Result<Vec<_>>>()?;
    for running in all {
        running.wait_for(8 * patience())?.ended(0)?.said(&format!("0 of {each}"))?;
    }
    let took = begun.elapsed();
    for session in &sessions {
        let end = s.session_ended(session, "completed")?;
        let produced = end["produced"]["connect"].as_u64();
        ensure!(produced == Some(each), "{produced:?} refusals were produced of {each}: {end}");
    }
    s.healed(begun + took);
    bad.untouched()?;
    Ok(vec![format!("{} sends in {} ms", 4 * each, took.as_millis())])
}

fn out_of_memory(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    let agent = s.part("agent");
    let own = agent.path().parent().context("the sandbox has a cgroup")?;
    for cgroup in [mounts::cgroup2()?.as_path(), own] {
        let path = cgroup.join("cgroup.subtree_control");
        if let Err(error) = fs::write(&path, "+memory") {
            return Err(Lacking(format!("no memory controller for cgroup2: {}: {error}", path.display())).into());
        }
    }
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    wall.holds(s)?;
    // the kernel frees what it can, and kills where that is not enough
    fs::write(agent.path().join("memory.max"), "1M")?;
    let pid = s.agent_pid()?;
    until("the kernel to have killed the agent", patience(), || Ok(gone(pid).then_some(())))?;
    let events = fs::read_to_string(agent.path().join("memory.events"))?;
    ensure!(events.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0"), "{events}");
    wall.holds(s)?;
    s.kill_agent()?;
    fs::write(agent.path().join("memory.max"), "max")?;
    s.start()?;
    wall.holds(s)?;
    wall.is_ended(s)?;
    Ok(Vec::new())
}

fn rules(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    wall.holds(s)?;
    let member = s.program("other")?;
    let address = |n: u32| format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255);
    let many = (0..100_000).fold(only(&member), |policy, n| policy.to(&format!("r{n}"), &address(n), 443));
    let begun = Instant::now();
    let refused = s.run(&s.policy(&many)?, &member, "say in")?.wait_for(4 * patience())?;
    let took = begun.elapsed();
    ensure!(matches!(refused.code, 2 | 125) && refused.stdout.is_empty(), "it was answered {refused:?}");
    ensure!(refused.stderr.contains("at most") || refused.stderr.contains("more than"), "{}", refused.stderr);
    wall.holds(s)?;
    s.run(&s.policy(&only(&member))?, &member, "say in")?.wait()?.ended(0)?.said("in")?;
    wall.is_ended(s)?;
    let why = refused.stderr.rsplit(": ").next().unwrap_or_default();
    Ok(vec![format!("refused after {} ms: {why}", took.as_millis())])
}

fn every_slot(s: &mut Sandbox, _asked: Asked) -> Result<Vec<String>> {
    // one slot is the canary's, one the wall's
    const SESSIONS: usize = 1_022;
    if in_guest() {
        return Err(Lacking("a guest has no memory for a thousand processes".to_owned()).into());
    }
    s.start()?;
    let mut wall = Wall::new(s, 2)?;
    let member = s.program("other")?;
    let policy = s.policy(&only(&member))?;
    let mut crowd = Vec::new();
    for _ in 0..SESSIONS {
        let running = s.run(&policy, &member, "idle")?;
        let executed = || !running.is_a_caller(s);
        until("a session to start", patience(), || Ok(executed().then_some(())))?;
        crowd.push(running);
    }
    wall.holds(s)?;
    let refused = s.run(&policy, &member, "say in")?.wait()?;
    refused.ended(125)?.said("")?.complained(&["tipstaff: "])?;
    wall.holds(s)?;
    let since = Instant::now();
    let last = crowd.pop().context("there is a crowd")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(last.pid().cast_signed()), Signal::SIGKILL)?;
    last.wait()?.ended(137)?;
    until("room for another", patience(), || Ok((s.run(&policy, &member, "say in")?.wait()?.code == 0).then_some(())))?;
    s.healed(since);
    let begun = Instant::now();
    let mut revoke = s.tipstaff();
    revoke.args(["revoke", "--policy", "test"]);
    Running::spawn(s, revoke, None)?.wait_for(20 * patience())?.ended(0)?;
    let revoked = begun.elapsed().as_millis();
    for running in crowd {
        running.wait_for(4 * patience())?.ended(137)?;
    }
    wall.running.wait()?.ended(137)?;
    let said = refused.stderr.lines().next().unwrap_or_default();
    Ok(vec![said.to_owned(), format!("all were revoked in {revoked} ms")])
}

fn many_sessions(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    const AT_ONCE: usize = 8;
    let count = if asked.form == Form::Long && !in_guest() { 10_000 } else { 200 };
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let begun = Instant::now();
    let mut running = Vec::new();
    for _ in 0..count {
        if running.len() == AT_ONCE {
            let first: Running = running.remove(0);
            first.wait_for(2 * patience())?.ended(0)?;
        }
        running.push(s.run(&policy, &member, "nothing")?);
    }
    for one in running {
        one.wait_for(2 * patience())?.ended(0)?;
    }
    let took = begun.elapsed();
    until("every end to be written", 2 * patience(), || Ok((s.json(&["status"])?["sessions"] == 0).then_some(())))?;
    let ends = s.evidence()?.iter().filter(|r| r["type"] == "session-end" && r["members_left"] == 0).count();
    ensure!(ends == count, "{ends} of {count} sessions have an end with nobody left");
    Ok(vec![format!("{count} sessions in {} ms", took.as_millis())])
}
