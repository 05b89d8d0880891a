//! Membership: who is a member, and that nothing sheds it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;

use super::{
    attach::{members, threads_of, workload},
    control::freeze_still,
    scene::{Fifo, attempt, only, reach, refusal, refused_exec, report},
};
use crate::harness::{cgroup::Cgroup, launch::bare, mounts, prelude::*, server::Server, wait::all_gone};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("members::daemonised-child", WHEREVER, daemonised),
    Test::sharing("members::vfork", WHEREVER, vfork),
    Test::sharing("members::threads", WHEREVER, threads),
    Test::sharing("members::exec-from-another-thread", WHEREVER, exec_from_thread),
    Test::sharing("members::nested-cgroup", WHEREVER, nested),
    Test::sharing("members::moved-by-itself", WHEREVER, moved_by_itself),
    Test::sharing("members::moved-by-root", WHEREVER, moved_by_root),
    Test::sharing("members::born-in-another-cgroup", WHEREVER, clone_into).since((5, 7), "CLONE_INTO_CGROUP"),
    Test::sharing("members::moved-in-becomes-member", WHEREVER, moved_in),
    Test::sharing("members::new-namespaces", WHEREVER, namespaces),
    Test::sharing("members::two-sessions-of-one-user", WHEREVER, two_sessions),
    Test::sharing("members::outsiders-pay-nothing", WHEREVER, outsiders),
    Test::new("members::callers-outside-the-confinement", WHEREVER, confinement),
    Test::new("members::agent-that-is-taken-in", WHEREVER, agent_taken_in),
];

fn daemonised(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let (mark, answers, pid) = (s.file("mark"), s.file("answers"), s.file("pid"));
    let mut fifo = Fifo::new(s)?;
    let tries = format!("spawn {bad} --work mark {mark}");
    let line = format!("daemonise report {answers} pid {pid} fifo {} {tries} + idle", fifo.path);
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    let daemon = s.pid_in(&pid)?;
    fifo.wake()?;
    ensure!(report(&answers, 1)?[0] == refused_exec(s), "a daemonised child ran a program out of scope");
    ensure!(!fs::exists(&mark)?, "a daemonised child ran a program out of scope");
    let seen = s.saw_exec(&session, &bad, refusal(s), "default")?;
    ensure!(seen["pid"] != running.pid(), "the exec is recorded as the session's first process's");
    s.wait_evidence("the daemon's birth", |r| r["type"] == "fork" && r["session"] == session && r["child"] == daemon)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    let line = format!("daemonise report {answers} spawn {good} --work mark {mark} + await {mark} nothing");
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?;
    s.saw_exec(&session, &good, "allow", "good").map(drop)
}

fn vfork(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "vspawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "vspawn", &good)?.ran(s, "good")
}

fn threads(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let server = Server::tcp("127.0.0.1")?;
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "thread spawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "thread spawn", &good)?.ran(s, "good")?;
    let connect = format!("thread connect tcp {}", server.words());
    let open = policy.clone().to("server", "127.0.0.1/32", server.port());
    reach(s, &open, &member, &connect)?.arrived(s, &server, "server")?;
    let closed = Server::tcp("127.0.0.1")?;
    let connect = format!("thread connect tcp {}", closed.words());
    reach(s, &open, &member, &connect)?.was_refused(s, &closed, "default")
}

fn exec_from_thread(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let mark = s.file("mark");
    // the new program is still a member
    let line = format!("thread exec {good} --work spawn {bad} --work mark {mark}");
    let running = s.run(&policy, &member, &line)?;
    let (pid, session) = (running.pid(), running.session(s)?);
    running.wait()?.ended(0)?.said(refused_exec(s))?;
    ensure!(!fs::exists(&mark)?, "an exec from another thread left the session");
    s.session_ended(&session, "completed")?;
    let record = s.saw_exec(&session, &good, "allow", "good")?;
    ensure!(record["pid"] == pid, "the exec is recorded for process {} and not {pid}", record["pid"]);
    let records = s.records(&session, "exec")?.iter().filter(|r| r["path"] == good).count();
    ensure!(records == 1, "{records} records of one exec");
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    // and from such a thread a program out of scope does not run
    let running = s.run(&policy, &member, &format!("fork thread exec {bad} --work mark {mark}"))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    let expected = if s.tier == Tier::Full { "errno 1\nexit 0" } else { "signal 9" };
    finished.said(expected)?;
    ensure!(!fs::exists(&mark)?, "a program out of scope ran from another thread");
    s.saw_exec(&session, &bad, refusal(s), "default").map(drop)
}

fn nested(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "nest spawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "nest spawn", &good)?.ran(s, "good")
}

fn moved_by_itself(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    let how = format!("cgroup {} spawn", s.part("elsewhere").path().display());
    let refused = attempt(s, &policy, &member, &how, &bad)?;
    refused.was_refused(s, "default")?;
    ensure!(s.records(&refused.session, "move")?.iter().any(|r| r["joined"] == false), "the move is not recorded");
    attempt(s, &policy, &member, &how, &good)?.ran(s, "good")
}

/// A member that is root moves the agent to its session's cgroup, awake and stopped: it is no member, is out of it again, and what
/// ends or stops the session does not reach it.
fn agent_taken_in(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let agent = s.agent_pid()?;
    let home = || fs::read_to_string(format!("/proc/{agent}/cgroup")).context("where the agent is");
    let before = home()?;
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?];
    let take = format!("act join {agent}");
    let line = format!("{take} + fifo {} {take} + fifo {} {take} + idle", fifos[0].path, fifos[1].path);
    let running = s.run(&s.policy(&only(&member))?, &member, &line)?;
    let session = running.session(s)?;
    let told = |times: usize| {
        until("the agent to be told", patience(), || {
            let moves = s.records(&session, "move")?;
            let own = moves.iter().filter(|r| r["pid"] == agent && r["joined"] == false);
            Ok((own.count() >= times && home()? == before).then_some(()))
        })
        .with_context(|| format!("it is in {:?}, and was in {before:?}", home()))
    };
    told(1)?;
    let listed = s.json(&["inspect", &session])?["members"].to_string();
    ensure!(!listed.contains(&format!("\"pid\":{agent},")), "the agent is a member: {listed}");
    for (fifo, order) in fifos.iter_mut().zip(["freeze", "end"]) {
        s.signal_agent(Signal::SIGSTOP)?;
        let moved = fifo
            .wake()
            .and_then(|()| until("the agent to be moved", patience(), || Ok((home()? != before).then_some(()))));
        s.signal_agent(Signal::SIGCONT)?;
        moved?;
        if order == "freeze" {
            freeze_still(s, &session, &[])?;
        } else {
            s.cli(&[order, &session])?.ended(0)?;
        }
        ensure!(home()? == before, "{order}: the agent is in {}", home()?);
        if order == "freeze" {
            told(2)?;
            s.cli(&["thaw", &session])?.ended(0)?;
        }
    }
    s.session_ended(&session, "operator")?;
    all_gone(&[running.pid()])?;
    ensure!(s.agent_pid()? == agent && s.cli(&["status"])?.code == 0, "the agent is another, or answers no more");
    Ok(())
}

fn moved_by_root(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    let (mark, mut fifo) = (s.file("mark"), Fifo::new(s)?);
    let line = format!("fifo {} spawn {bad} --work mark {mark} + spawn {good} --work nothing", fifo.path);
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let (pid, session) = (running.pid(), running.session(s)?);
    s.part("elsewhere").take(pid)?;
    fifo.wake()?;
    running.wait()?.ended(0)?.said(&format!("{}\nexit 0", refused_exec(s)))?;
    ensure!(!fs::exists(&mark)?, "a member that was moved ran a program out of scope");
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    s.wait_evidence("the move", |r| {
        r["type"] == "move" && r["session"] == session && r["pid"] == pid && r["joined"] == false
    })?;
    s.session_ended(&session, "completed").map(drop)
}

/// A child that is said to be born in another cgroup; which one it is the program that could refuse it is not told, so that
/// of the session's own it is refused too. Where it is made, it is a member that moved if it is born elsewhere.
fn clone_into(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    // without BPF LSM what lets nobody make a namespace leaves nobody clone3(2)
    let policy = only(&member).allow("good", &good).privileges("namespaces");
    let elsewhere = s.part("elsewhere").path().display().to_string();
    for place in [&elsewhere, "own"] {
        let mark = s.file("mark");
        let line = |program: &str| format!("clone-into {place} spawn {program} --work mark {mark}");
        let running = s.run(&s.policy(&policy)?, &member, &line(&bad))?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        ensure!(!fs::exists(&mark)?, "a child that was born in {place} ran a program out of scope");
        if s.tier == Tier::Full {
            finished.said("errno 1")?;
            let refused =
                |r: &serde_json::Value| r["type"] == "fork" && r["verdict"] == "deny" && r["rule"] == "leaves";
            s.wait_evidence("the refusal", |r| r["session"] == session && refused(r))?;
            no_birth_elsewhere(s, &session)?;
        } else {
            finished.said("signal 9\nexit 0")?;
            s.saw_exec(&session, &bad, "kill", "default")?;
            born(s, &session, place == elsewhere)?;
            s.run(&s.policy(&policy)?, &member, &line(&good))?.wait()?.said("exit 0\nexit 0")?;
        }
        clone_into_where_that_ends(s, (&policy, &member), place, place == elsewhere)?;
        clone_into_observed(s, (&policy, &member), &line(&bad), place == elsewhere)?;
    }
    if s.tier == Tier::Full {
        // without that flag it is made
        s.run(&s.policy(&policy)?, &member, &format!("cloned clone3 spawn {good} --work nothing"))?
            .wait()?
            .said("exit 0\nexit 0")?;
    }
    Ok(())
}

/// Under a policy that a move ends, a child that is born in another cgroup does; one that is refused or born at home does not.
fn clone_into_where_that_ends(
    s: &Sandbox,
    (policy, member): (&Policy, &str),
    place: &str,
    elsewhere: bool,
) -> Result<()> {
    let policy = policy.clone().spec("on: { moved: end }");
    let pid = s.file("pid");
    let running = s.run(&s.policy(&policy)?, member, &format!("clone-into {place} say born + pid {pid} idle"))?;
    let session = running.session(s)?;
    if s.tier == Tier::NoLsm && elsewhere {
        s.session_ended(&session, "context-changed")?;
        return running.wait()?.ended(137).map(drop);
    }
    s.pid_in(&pid)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    no_birth_elsewhere(s, &session)
}

/// Where the policy only observes, the child is made, a member, and what would have been refused is recorded.
fn clone_into_observed(s: &Sandbox, (policy, member): (&Policy, &str), line: &str, elsewhere: bool) -> Result<()> {
    let running = s.run(&s.policy(&policy.clone().observe())?, member, line)?;
    let session = running.session(s)?;
    running.wait()?.said("exit 0\nexit 0")?;
    born(s, &session, elsewhere)?;
    let forks = s.records(&session, "fork")?;
    let would = forks.iter().filter(|r| r["verdict"] == "would-deny" && r["rule"] == "leaves").count();
    ensure!(would == usize::from(s.tier == Tier::Full), "{would} of the forks would have been refused: {forks:?}");
    Ok(())
}

/// The session's first child is recorded, and as one that moved if it was born `elsewhere`.
fn born(s: &Sandbox, session: &str, elsewhere: bool) -> Result<()> {
    s.session_ended(session, "completed")?;
    let forks = s.records(session, "fork")?;
    let child = forks.iter().find(|r| r["child"] != 0).context("no birth is recorded")?["child"].clone();
    let moves = s.records(session, "move")?;
    let moved = moves.iter().filter(|r| r["joined"] == false && r["pid"] == child).count();
    ensure!(moved == usize::from(elsewhere), "{moved} moves of child {child}: {moves:?}");
    Ok(())
}

fn no_birth_elsewhere(s: &Sandbox, session: &str) -> Result<()> {
    let moves = s.records(session, "move")?;
    ensure!(moves.iter().all(|r| r["joined"] == true), "a move is recorded: {moves:?}");
    Ok(())
}

/// Who is put into a session's cgroup from outside is a member from then on.
fn moved_in(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let running = s.run(&s.policy(&only(&member).allow("good", &good))?, &member, "idle")?;
    let session = running.session(s)?;
    let (before, after, pid, mut fifo) = (s.file("mark"), s.file("mark"), s.file("pid"), Fifo::new(s)?);
    let mut command = bare(member.as_ref());
    let line = format!(
        "--work spawn {bad} --work mark {before} + pid {pid} fifo {} spawn {bad} --work mark {after} + spawn {good} --work nothing",
        fifo.path
    );
    command.args(line.split_whitespace());
    let newcomer = Running::spawn(s, command, None)?;
    s.pid_in(&pid)?;
    ensure!(fs::exists(&before)?, "what is in no session was refused a program");
    let own = fs::read_to_string(format!("/proc/{}/cgroup", running.pid()))?;
    let home = s.part("sessions").descendants().into_iter().find(|cgroup| cgroup.processes().contains(&running.pid()));
    let home = home.with_context(|| format!("the session has no cgroup of its own: {own}"))?;
    home.take(newcomer.pid())?;
    fifo.wake()?;
    let newcomer_pid = newcomer.pid();
    newcomer.wait()?.said(&format!("exit 0\n{}\nexit 0", refused_exec(s)))?;
    ensure!(!fs::exists(&after)?, "a newcomer ran a program out of scope");
    s.wait_evidence("the newcomer", |r| {
        r["type"] == "move" && r["session"] == session && r["pid"] == newcomer_pid && r["joined"] == true
    })?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    moved_in_with_threads(s, &member, &session, &home)?;
    born_in(s, (&member, &good, &bad), &session, &home)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}

/// Whom an outsider makes there (`CLONE_INTO_CGROUP`) is a member from its birth.
fn born_in(s: &Sandbox, (member, good, bad): (&str, &str, &str), session: &str, home: &Cgroup) -> Result<()> {
    let (mark, there) = (s.file("mark"), home.path().display());
    let joined = || Ok::<_, anyhow::Error>(s.records(session, "move")?.iter().filter(|r| r["joined"] == true).count());
    let before = joined()?;
    let line = format!(
        "clone-into {there} spawn {bad} --work mark {mark} + clone-into {there} spawn {good} --work nothing \
         + spawn {bad} --work nothing"
    );
    workload(s, member, &line)?.wait()?.said(&format!("{}\nexit 0\nexit 0\nexit 0\nexit 0", refused_exec(s)))?;
    ensure!(!fs::exists(&mark)?, "who was born in the session ran a program out of scope");
    until("both newborns to be recorded", patience(), || Ok((joined()? >= before + 2).then_some(())))
}

/// The kernel tells of a process's first thread; the others are members too, before they do anything.
fn moved_in_with_threads(s: &Sandbox, member: &str, session: &str, home: &Cgroup) -> Result<()> {
    let (answers, pid, mut fifo) = (s.file("answers"), s.file("pid"), Fifo::new(s)?);
    let signal = format!("privilege signal {}", std::process::id());
    let line = format!("pid {pid} report {answers} thread fifo {} {signal}", fifo.path);
    let newcomer = workload(s, member, &line)?;
    s.pid_in(&pid)?;
    until("another thread", patience(), || Ok((threads_of(newcomer.pid()).len() == 2).then_some(())))?;
    home.take(newcomer.pid())?;
    until("each thread to be a member", patience(), || {
        let listed = members(s, session)?;
        let all = threads_of(newcomer.pid());
        Ok(all.iter().all(|tid| listed.contains(&(newcomer.pid(), *tid))).then_some(()))
    })?;
    fifo.wake()?;
    // from who was there before, nothing is taken away in tier no-lsm
    let expected = if s.tier == Tier::Full { "errno 1" } else { "ok" };
    ensure!(report(&answers, 1)?[0] == expected, "its thread was answered {:?}", report(&answers, 1)?);
    newcomer.wait()?.ended(0).map(drop)
}

fn namespaces(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good).to("one", "127.0.0.1/32", 4001);
    // those that are no user namespace want a capability, which `mount` keeps where there is no BPF LSM
    let policy = policy.privileges("namespaces, mount");
    // the kernel makes no user namespaces in a chroot
    let user = if mounts::below(Path::new("/"))?.contains(&PathBuf::from("/")) { "user," } else { "" };
    let how = format!("unshare {user}pid,net,mount,cgroup");
    attempt(s, &policy, &member, &format!("{how} spawn"), &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, &format!("{how} spawn"), &good)?.ran(s, "good")?;
    // the child's answer is in a report, because the parent's comes last
    for (port, expected, verdict, rule) in [(4002, "errno 1", "deny", "default"), (4001, "errno 101", "allow", "one")] {
        let answers = s.file("answers");
        let line = format!("unshare {user}net report {answers} connect tcp 127.0.0.1 {port}");
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.ended(0)?;
        ensure!(report(&answers, 1)?[0] == expected, "to port {port} in a new network: {:?}", report(&answers, 1)?);
        s.saw_connect(&session, &format!("127.0.0.1:{port}"), verdict, rule)?;
    }
    Ok(())
}

fn two_sessions(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, first, second) = (s.program("member")?, s.program("first")?, s.program("second")?);
    let policies = [only(&member).allow("first", &first), only(&member).allow("second", &second)];
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?];
    let mut running = Vec::new();
    for (policy, fifo) in policies.iter().zip(&fifos) {
        let line = format!("fifo {} spawn {first} --work nothing + spawn {second} --work nothing", fifo.path);
        running.push(s.run(&s.policy(policy)?, &member, &line)?);
    }
    let sessions = running.iter().map(|run| run.session(s)).collect::<Result<Vec<_>>>()?;
    ensure!(sessions[0] != sessions[1], "two commands are one session");
    fifos.iter_mut().try_for_each(Fifo::wake)?;
    let refused = refused_exec(s);
    let expected = [format!("exit 0\n{refused}"), format!("{refused}\nexit 0")];
    for (run, expected) in running.into_iter().zip(&expected) {
        run.wait()?.said(expected)?;
    }
    s.saw_exec(&sessions[0], &first, "allow", "first")?;
    s.saw_exec(&sessions[0], &second, refusal(s), "default")?;
    s.saw_exec(&sessions[1], &first, refusal(s), "default")?;
    s.saw_exec(&sessions[1], &second, "allow", "second").map(drop)
}

/// While a session lives, a process beside it runs and reaches what it likes, and is in no record.
fn outsiders(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bad, server) = (s.program("member")?, s.program("bad")?, Server::tcp("127.0.0.1")?);
    let running = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let session = running.session(s)?;
    let mut command = bare(member.as_ref());
    let line = format!("--work spawn {bad} --work nothing + connect tcp {}", server.words());
    command.args(line.split_whitespace());
    let outsider = Running::spawn(s, command, None)?.wait()?;
    outsider.said("exit 0\nok")?;
    server.accepted(1)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    let about = s.evidence()?.into_iter().filter(|r| r["pid"] == outsider.pid || r["path"] == bad).count();
    ensure!(about == 0, "{about} records about a process that is in no session");
    Ok(())
}

fn confinement(s: &mut Sandbox) -> Result<()> {
    s.start_as(s.confined_daemon())?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let policy = s.policy(&only(&member))?;
    let words = ["run", "--policy", &policy, "--", &member, "--work", "mark", &mark];
    // this process is not in the confinement, and neither are its children until they move
    let outside = s.tipstaff().args(words).output()?;
    ensure!(outside.status.code() == Some(125), "a caller outside the confinement got {outside:?}");
    ensure!(!fs::exists(&mark)?, "a caller outside the confinement started a session");
    s.cli(&words)?.ended(0)?;
    ensure!(fs::exists(&mark)?, "a caller in the confinement started no session");
    Ok(())
}
