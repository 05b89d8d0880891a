//! Membership by every way to make a task, and what does not make a member: a process id that was one's.

use std::fs;

use super::{
    attach::kill_all,
    privileges::tried,
    scene::{Fifo, attempt, only, reach, refusal, refused_exec, report},
    taken::is_enforced,
};
use crate::harness::{
    cgroup::Cgroup,
    launch::bare,
    mounts::Mounted,
    prelude::*,
    server::Server,
    wait::{all_gone, gone},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("members::every-system-call-that-makes-a-task", WHEREVER, calls).since((5, 3), "clone3"),
    Test::sharing("members::process-id-that-was-a-members", WHEREVER, reused).since((5, 5), "clone3 with a process id"),
    Test::sharing("members::moved-ends-where-asked", WHEREVER, moved_ends),
    Test::sharing("members::no-session-within-a-session", WHEREVER, within),
    Test::sharing("members::in-another-sessions-cgroup", WHEREVER, swapped),
    Test::sharing("members::cgroups-of-version-1", WHEREVER, first_version).guests_only("mounts a hierarchy"),
];

/// clone, clone3, and a child that is its parent's sibling.
fn calls(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    // without BPF LSM what lets nobody make a namespace leaves nobody clone3(2)
    let policy = only(&member).allow("good", &good).privileges("namespaces");
    for how in ["cloned clone", "cloned clone3"] {
        attempt(s, &policy, &member, &format!("{how} spawn"), &bad)?.was_refused(s, "default")?;
        attempt(s, &policy, &member, &format!("{how} spawn"), &good)?.ran(s, "good")?;
    }
    let (answers, mark, pid) = (s.file("answers"), s.file("mark"), s.file("pid"));
    let tries = format!("report {answers} pid {pid} fork spawn {bad} --work mark {mark}");
    // the child of a child, so that its parent is the first process and not the test
    let running = s.run(
        &s.policy(&policy)?,
        &member,
        &format!("fork cloned parent {tries} + spawn {good} --work nothing + idle"),
    )?;
    let session = running.session(s)?;
    let answer = report(&answers, 1)?;
    ensure!(answer[0] == refused_exec(s), "a sibling ran a program out of scope: {answer:?}");
    ensure!(!fs::exists(&mark)?, "a sibling ran a program out of scope");
    let sibling = s.pid_in(&pid)?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    s.saw_exec(&session, &good, "allow", "good")?;
    s.wait_evidence("the sibling's birth", |r| {
        r["type"] == "fork" && r["session"] == session && r["child"] == sibling
    })?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    all_gone(&[running.pid()])
}

/// A process outside gets the number of a member that ended: it is nobody's, and the session's end does not reach it.
fn reused(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (number, ready, mark, stop) = (s.file("pid"), s.file("pid"), s.file("mark"), Fifo::new(s)?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let running = s.run(&policy, &member, &format!("spawn {good} --work pid {number} nothing + idle"))?;
    let session = running.session(s)?;
    let number = s.pid_in(&number)?;
    s.wait_evidence("the member's exit", |r| r["type"] == "exit" && r["session"] == session && r["pid"] == number)?;
    until("the member to be reaped", patience(), || Ok((running.said() == "exit 0\n").then_some(())))?;
    let mut outsider = bare(member.as_ref());
    let line = format!(
        "--work numbered {number} pid {ready} exec {member} --work spawn {bad} --work mark {mark} + fifo {} nothing",
        stop.path
    );
    outsider.args(line.split_whitespace());
    let mut stop = stop;
    let outsider = Running::spawn(s, outsider, None)?;
    ensure!(s.pid_in(&ready)? == number, "it got another number");
    until("the mark", patience(), || Ok(fs::exists(&mark)?.then_some(())))?;
    s.cli(&["end", &session])?.ended(0)?;
    let end = s.session_ended(&session, "operator")?;
    let killed = end["receipts"].as_array().into_iter().flatten().any(|receipt| receipt["pid"] == number);
    ensure!(!killed, "the end reached process {number}: {end}");
    let about = s.evidence()?.into_iter().filter(|r| r["path"] == bad).count();
    ensure!(about == 0, "{about} records about a process that is in no session");
    ensure!(!gone(outsider.pid()), "who waits for it is gone");
    stop.wake()?;
    outsider.wait()?.ended(0)?;
    Ok(())
}

/// A member that is moved ends its session where the policy says so and is enforced, and only there.
fn moved_ends(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let elsewhere = s.part("elsewhere");
    let on = |what: &str| only(&member).spec(format!("on: {{ moved: {what} }}"));
    let cases = [("end", on("end")), ("record", on("record")), ("end, observed", on("end").observe())];
    for (what, policy) in cases {
        let pid = s.file("pid");
        let line = format!("background cgroup {} pid {pid} idle + idle", elsewhere.path().display());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        s.wait_evidence("the move", |r| r["type"] == "move" && r["session"] == session && r["joined"] == false)?;
        if what == "end" {
            let end = s.session_ended(&session, "context-changed")?;
            ensure!(end["members_left"] == 0, "{end}");
            all_gone(&[running.pid()])?;
            continue;
        }
        let moved = s.pid_in(&pid)?;
        s.cli(&["inspect", &session])?.ended(0)?;
        ensure!(!gone(running.pid()) && !gone(moved), "a move that is only recorded ended its session: {what}");
        // an observed session would leave them
        kill_all(&[moved])?;
        all_gone(&[moved])?;
        kill_all(&[running.pid()])?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

/// Hierarchies of version 1 are nobody's sessions: a move there is none, whatever the numbers of their cgroups are.
fn first_version(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, at) = (s.program("member")?, s.fresh("v1"));
    fs::create_dir(&at)?;
    let mut mounts = Mounted::default();
    mounts.add(("none", Some("cgroup")), &at, Some("none,name=tipstaff"))?;
    let there = Cgroup::create(at.join("there"))?;
    let running = s.run(&s.policy(&only(&member).spec("on: { moved: end }"))?, &member, "idle")?;
    let session = running.session(s)?;
    there.take(running.pid())?;
    s.cli(&["inspect", &session])?.ended(0)?;
    let moves = s.records(&session, "move")?;
    ensure!(moves.iter().all(|r| r["joined"] == true), "a move in version 1 is recorded: {moves:?}");
    // one in version 2 comes after it
    s.part("elsewhere").take(running.pid())?;
    s.session_ended(&session, "context-changed")?;
    all_gone(&[running.pid()])?;
    there.remove()
}

/// A member that asks for a session of its own gets none; who is in none does.
fn within(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, mark) = (s.program("member")?, s.program("good")?, s.file("mark"));
    let tipstaff = s.tipstaff_for_members()?;
    let inner = s.policy(&only(&good))?;
    let words = ["run", "--policy", &inner, "--", &good, "--work", "mark", &mark];
    // it may speak to the agent: what refuses is the agent
    let unix = format!("unix: {{ allow: [{}] }}", s.runtime().join("operate.sock").display());
    let policy = s.policy(&only(&member).allow("tipstaff", &tipstaff).allow("good", &good).scope(unix))?;
    let running = s.run(&policy, &member, &format!("spawn {tipstaff} {}", words.join(" ")))?;
    let session = running.session(s)?;
    running.wait()?.said("exit 125")?.complained(&["a member of a session"])?;
    s.session_ended(&session, "completed")?;
    ensure!(!fs::exists(&mark)?, "a member started a session");
    let started = s.evidence()?.iter().filter(|r| r["type"] == "session-start").count();
    ensure!(started == 1, "{started} sessions were started");
    s.cli(&words)?.ended(0)?;
    ensure!(fs::exists(&mark)?, "who is in no session started none");
    Ok(())
}

/// Nor does it set the limits of the other's members, or freeze them (tier full).
fn apart(s: &Sandbox, member: &str, policy: &Policy, other: &Running, cgroup: &str) -> Result<()> {
    if s.tier == Tier::NoLsm {
        return Ok(());
    }
    let acts = format!("act limit {0} same + act schedule {0} same + act write {cgroup}/cgroup.freeze 0", other.pid());
    let (said, session) = tried(s, policy, member, &acts)?;
    said.said("errno 1\nerrno 1\nerrno 1")?;
    let records = s.records(&session, "privilege")?;
    ensure!(records.len() == 3 && records.iter().all(|r| r["class"] == "signal"), "recorded: {records:?}");
    tried(s, &only(member).privileges("signal"), member, &acts)?.0.said("ok\nok\nok").map(drop)
}

/// A member that moves itself into the cgroup of another session of its user is held to its own scope.
fn swapped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, first, second) = (s.program("member")?, s.program("first")?, s.program("second")?);
    let (server, own) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let there = only(&member).allow("second", &second).to("server", "127.0.0.1/32", server.port());
    let other = s.run(&s.policy(&there)?, &member, "idle")?;
    let other_session = other.session(s)?;
    let inspected = s.json(&["inspect", &other_session])?;
    let cgroup = inspected["context"]["cgroup"].as_str().context("no cgroup")?.to_owned();
    let policy = only(&member).allow("first", &first);
    let how = format!("cgroup {cgroup} spawn");
    let refused = attempt(s, &policy, &member, &how, &second)?;
    refused.was_refused(s, "default")?;
    ensure!(s.records(&refused.session, "move")?.iter().any(|r| r["joined"] == false), "the move is not recorded");
    attempt(s, &policy, &member, &how, &first)?.ran(s, "first")?;
    let line = |to: &Server| format!("cgroup {cgroup} connect tcp {}", to.words());
    let policy = policy.to("own", "127.0.0.1/32", own.port());
    reach(s, &policy, &member, &line(&server))?.was_refused(s, &server, "default")?;
    reach(s, &policy, &member, &line(&own))?.arrived(s, &own, "own")?;
    apart(s, &member, &policy, &other, &cgroup)?;
    // a member of another session of the user is no more its own than an outsider
    let acts = format!("privilege signal {0} + privilege ptrace {0}", other.pid());
    let keeps = s.tier == Tier::Full || is_enforced(s, "landlock")?;
    let signal = if keeps { "errno 1" } else { "ok" };
    s.run(&s.policy(&policy)?, &member, &acts)?.wait()?.said(&format!("{signal}\nerrno 1"))?;
    s.run(&s.policy(&only(&member).privileges("signal, ptrace"))?, &member, &acts)?.wait()?.said("ok\nerrno 14")?;
    ensure!(!gone(other.pid()), "the other session's end came with the first's");
    let exec = |r: &serde_json::Value| r["type"] == "exec" && r["session"] == other_session && r["path"] != member;
    ensure!(!s.evidence()?.iter().any(exec), "the other session has records of what was not its member's");
    s.cli(&["end", &other_session])?.ended(0)?;
    s.session_ended(&other_session, "operator").map(drop)
}
