//! Deadlines and endings: afterwards nothing is left, and the kernel needs no agent for what it promises alone.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::scene::{only, report, settled, stamps};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, boot_ns, gone, in_guest, pass, slack},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("time::ttl-ends-everything", WHEREVER, ttl).waiting().agents_own(),
    Test::sharing("time::shorter-ttl-wins", WHEREVER, shorter_wins).waiting().agents_own(),
    Test::sharing("time::flow-stops-at-the-deadline", WHEREVER, flow_stops).waiting(),
    Test::sharing("time::end-by-operator", WHEREVER, by_operator),
    Test::sharing("time::main-process-ends-the-session", WHEREVER, completed),
    Test::sharing("time::crowd-ends-to-zero", WHEREVER, crowd),
];

/// Long enough for a session to get going, short enough to wait for.
fn short() -> &'static str {
    if in_guest() { "25s" } else { "5s" }
}

pub(super) fn deadline(s: &Sandbox, session: &str) -> Result<u64> {
    let start = s.records(session, "session-start")?;
    start.first().and_then(|r| r["deadline_boot_ns"].as_u64()).context("session-start without a deadline")
}

/// A session with one process of each sort; its first process and the ids of all.
fn company(s: &Sandbox, ttl: &str) -> Result<(Running, Vec<u32>)> {
    let member = s.program("member")?;
    let files = [s.file("pid"), s.file("pid"), s.file("pid"), s.file("pid")];
    let [main, spinner, sleeper, daemon] = &files;
    let line = format!(
        "background pid {spinner} spin + background pid {sleeper} idle + daemonise pid {daemon} idle + pid {main} idle"
    );
    let running = s.launch(&s.policy(&only(&member))?, &member, &line).ttl(ttl).start()?;
    let pids = files.iter().map(|file| s.pid_in(file)).collect::<Result<_>>()?;
    Ok((running, pids))
}

/// What an end must say: nobody is left, and each process was seen to go: by a receipt, or, where the kernel was faster
/// than the agent with one that computes, by the record of its exit.
fn accounts_for(s: &Sandbox, session: &str, end: &Value, pids: &[u32]) -> Result<()> {
    let rounds = end["rounds"].as_array().context("session-end without rounds")?;
    ensure!(rounds.last().is_some_and(|round| round["left"] == 0), "the last round leaves members: {end}");
    let receipts = end["receipts"].as_array().context("session-end without receipts")?;
    let exits = s.records(session, "exit")?;
    for pid in pids {
        let receipt = receipts.iter().any(|r| r["pid"] == *pid && r["gone"] == true);
        let exit = exits.iter().any(|r| r["pid"] == *pid && r["status"] == 9);
        ensure!(receipt || exit, "nothing says that process {pid} is gone: {end}");
    }
    let most = pids.len().saturating_sub(1);
    ensure!(receipts.len() >= most, "{} receipts for {} processes: {end}", receipts.len(), pids.len());
    Ok(())
}

fn ttl(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (running, pids) = company(s, short())?;
    let session = running.session(s)?;
    ensure!(pids.iter().all(|pid| !gone(*pid)), "a member died before the deadline");
    pass(deadline(s, &session)?, slack())?;
    all_gone(&pids)?;
    running.wait()?.ended(137)?;
    let end = s.session_ended(&session, "ttl")?;
    accounts_for(s, &session, &end, &pids)?;
    let state = s.records(&session, "state")?;
    ensure!(state.last().is_some_and(|r| r["to"] == "ended"), "the last state is not ended: {state:?}");
    Ok(())
}

/// `--ttl` narrows a policy and never widens it; `inspect` says which of them won.
fn shorter_wins(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).ttl(short()))?;
    let wider = s.launch(&policy, &member, "idle").ttl("10m").start()?;
    let session = wider.session(s)?;
    let winner = |session: &str| Ok::<_, anyhow::Error>(s.json(&["inspect", session])?["limits"]["winner"].clone());
    ensure!(winner(&session)? == "policy", "the winner is {}", winner(&session)?);
    pass(deadline(s, &session)?, slack())?;
    wider.wait()?.ended(137)?;
    s.session_ended(&session, "ttl")?;
    let ms = |session: &str| Ok::<_, anyhow::Error>(s.records(session, "session-start")?[0]["ttl_ms"].clone());
    ensure!(ms(&session)? == if in_guest() { 25_000 } else { 5_000 }, "--ttl widened: {}", ms(&session)?);
    let policy = s.policy(&only(&member))?;
    let narrower = s.launch(&policy, &member, "idle").ttl("33s").start()?;
    let session = narrower.session(s)?;
    ensure!(winner(&session)? == "--ttl", "the winner is {}", winner(&session)?);
    s.cli(&["end", &session])?.ended(0)?;
    ensure!(ms(&session)? == 33_000, "--ttl did not narrow: {}", ms(&session)?);
    Ok(())
}

/// What members do meanwhile is recorded with the kernel's time, however late the agent writes it down.
fn flow_stops(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let (server, other) = (Server::tcp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let policy = s.policy(&policy.to("other", "127.0.0.1/32", other.port()))?;
    for agent_sleeps in [false, true] {
        // a member that left its cgroup makes sockets that no program there sees
        let leaves = agent_sleeps && s.tier == Tier::Full;
        let elsewhere = s.part("elsewhere").path().display().to_string();
        let beside =
            if leaves { format!("background cgroup {elsewhere} flow {} + ", server.words()) } else { String::new() };
        let (go, ran, reached) = (s.file("go"), s.file("ran"), s.file("reached"));
        let late = format!(
            "background report {ran} await {go} spawn {good} --work nothing \
             + background report {reached} await {go} connect udp {} + ",
            other.words()
        );
        let line = format!("{beside}{late}flow {}", server.words());
        let running = s.launch(&policy, &member, &line).ttl(short()).start()?;
        let session = running.session(s)?;
        let before = stamps(&server.received()).len();
        until("the flow to flow", patience(), || Ok((stamps(&server.received()).len() > before + 5).then_some(())))?;
        if agent_sleeps {
            s.signal_agent(Signal::SIGSTOP)?;
            until("the agent to stand still", patience(), || Ok(stands_still(s.agent_pid()?).then_some(())))?;
        }
        let before = boot_ns()?;
        std::fs::write(&go, "now")?;
        ensure!(report(&ran, 1)? == ["exit 0"] && report(&reached, 1)? == ["ok"], "an act before the deadline failed");
        let (span, deadline) = (before..=boot_ns()?, deadline(s, &session)?);
        ensure!(*span.end() < deadline, "the acts took until the deadline");
        pass(deadline, 2 * slack())?;
        let count = settled(&server)?;
        let last = stamps(&server.received()).into_iter().max().unwrap_or(0);
        let late = last.saturating_sub(deadline);
        ensure!(u128::from(late) < slack().as_nanos(), "the last byte left {} ms after the deadline", late / 1_000_000);
        let woken = boot_ns()?;
        s.signal_agent(Signal::SIGCONT)?;
        running.wait()?.ended(137)?;
        let end = s.session_ended(&session, "ttl")?;
        // counted from the limit, however late the agent came
        let late = if agent_sleeps { (woken - deadline) / 1_000_000 } else { 0 };
        let (took, over) = (&end["took"], end["boot_ns"].as_u64().unwrap_or(0).saturating_sub(deadline) / 1_000_000);
        let span_ms = Some(late)..=Some(over + 1);
        let keys = ["mark_ms", "members_ms", "flows_ms"];
        // who was refused may have closed its sockets before they were cut
        let asked = keys.iter().filter(|key| **key != "flows_ms" || end["flows_cut"] != 0);
        ensure!(
            asked.map(|key| took[*key].as_u64()).all(|ms| span_ms.contains(&ms)),
            "an end between {late} and {over} ms late: {took}"
        );
        ensure!(stamps(&server.received()).len() == count, "bytes arrived after the flow had been cut");
        let exec = s.saw_exec(&session, &good, "allow", "good")?;
        let connect = s.saw_connect(&session, &other.address(), "allow", "other")?;
        for record in [exec, connect] {
            let clock = |field: &str| record[field].as_u64().unwrap_or(0);
            ensure!(span.contains(&clock("at_boot_ns")), "it happened within {span:?}: {record}");
            ensure!(!agent_sleeps || clock("boot_ns") > deadline, "it was written by {deadline}: {record}");
        }
    }
    Ok(())
}

/// Whether every thread of a process was stopped.
fn stands_still(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let state = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
    tasks.map(state).all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

fn by_operator(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (running, pids) = company(s, "10m")?;
    let session = running.session(s)?;
    // what is the agent's own finding is nobody's reason to give
    s.cli(&["end", &session, "--reason", "ttl"])?.ended(2)?.complained(&["\"ttl\" is no reason to give", "locked"])?;
    ensure!(pids.iter().all(|pid| !gone(*pid)), "a request that was refused ended a member");
    // an unambiguous prefix names it
    s.cli(&["end", &session[..12]])?.ended(0)?;
    ensure!(pids.iter().all(|pid| gone(*pid)), "end returned before all members were gone: {pids:?}");
    running.wait()?.ended(137)?;
    let end = s.session_ended(&session, "operator")?;
    accounts_for(s, &session, &end, &pids)?;
    s.cli(&["end", &session])?.ended(5)?;
    // the reason that was given is the one that is recorded
    let member = s.program("locked")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let session = running.session(s)?;
    s.cli(&["end", &session, "--reason", "locked"])?.ended(0)?.told(&["ended (locked)"])?;
    s.session_ended(&session, "locked")?;
    let causes: Vec<Value> = s.records(&session, "state")?.iter().map(|r| r["cause"].clone()).collect();
    ensure!(causes == ["labelled", "locked", "measured"], "the states passed: {causes:?}");
    let asked = s.records(&session, "command")?;
    ensure!(asked.len() == 1 && asked[0]["verb"] == "end" && asked[0]["detail"] == "reason locked", "{asked:?}");
    Ok(())
}

fn completed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, daemon, sleeper) = (s.program("member")?, s.file("pid"), s.file("pid"));
    let line = format!(
        "daemonise pid {daemon} idle + background pid {sleeper} idle + await {daemon} await {sleeper} status 7"
    );
    let running = s.run(&s.policy(&only(&member))?, &member, &line)?;
    let session = running.session(s)?;
    let pids = [s.pid_in(&daemon)?, s.pid_in(&sleeper)?];
    running.wait()?.ended(7)?;
    all_gone(&pids)?;
    let end = s.session_ended(&session, "completed")?;
    accounts_for(s, &session, &end, &pids)
}

fn crowd(s: &mut Sandbox) -> Result<()> {
    // emulated, a thousand take minutes
    let count: usize = if in_guest() { 200 } else { 1_000 };
    s.start()?;
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, &format!("tree {count}"))?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?.said(&format!("{count} made"))?;
    let end = s.session_ended(&session, "completed")?;
    let receipts = end["receipts"].as_array().map_or(0, Vec::len);
    ensure!(receipts == count, "{receipts} receipts for {count} processes");
    let births = end["produced"]["fork"].as_u64().unwrap_or(0);
    // half of them are daemons, each with a process in between
    let expected = (count + count / 2) as u64;
    ensure!(births == expected, "{births} births where {expected} were expected");
    until("the session's cgroup to be gone", patience(), || Ok(s.nothing_of_sessions_is_left().is_ok().then_some(())))
}
