//! Sessions within sessions: narrower, no longer, and gone with the one that they are in.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    control::freeze_still,
    scene::{Fifo, only, refused_calls, report},
};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, gone, in_guest},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("within::narrower-and-recorded", WHEREVER, narrower),
    Test::sharing("within::wider-is-refused", WHEREVER, wider),
    Test::sharing("within::what-the-outer-wrote", WHEREVER, written),
    Test::sharing("within::members-ask-for-nothing-else", WHEREVER, nothing_else),
    Test::sharing("within::the-outer-signals-it-and-lives-by-it", WHEREVER, lives_by).waiting(),
    Test::new("within::goes-with-the-outer", WHEREVER, goes_with),
];

/// What a member needs to start a session: the program, and the agent's socket.
fn nesting(s: &Sandbox, member: &str) -> Result<Policy> {
    Ok(flat(s, member)?.spec("nested: narrower"))
}

/// The same, of a session that starts none.
fn flat(s: &Sandbox, member: &str) -> Result<Policy> {
    let socket = s.runtime().join("operate.sock");
    let policy = only(member).allow("tipstaff", s.tipstaff_for_members()?);
    Ok(policy.scope(format!("unix: {{ allow: [{}] }}", socket.display())))
}

/// How a member starts a session within its own.
fn start(s: &Sandbox, policy: &Policy, command: &str) -> Result<String> {
    Ok(format!("{} run --policy {} -- {command}", s.tipstaff_for_members()?, s.policy(policy)?))
}

/// The sessions within `outer`, by the evidence.
fn inner(s: &Sandbox, outer: &str) -> Result<Vec<Value>> {
    let all = s.evidence()?;
    Ok(all.into_iter().filter(|r| r["type"] == "session-start" && r["within"] == outer).collect())
}

/// What a member starts within its session is held to the policy that it names, and is another session in all that is said;
/// the member itself is held to its own as before.
fn narrower(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::tcp("127.0.0.1")?);
    let outer = nesting(s, &member)?.allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let connect = format!("connect tcp {}", server.words());
    let to_good = start(s, &only(&good), &format!("{good} --work {connect}"))?;
    let same = only(&good).to("server", "127.0.0.1/32", server.port()).ttl("2h");
    let to_same = start(s, &same, &format!("{good} --work {connect}"))?;
    let line = format!("spawn {to_good} + spawn {to_same} + {connect}");
    let running = s.run(&s.policy(&outer)?, &member, &line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?.said("errno 1\nexit 0\nok\nexit 0\nok")?;
    ensure!(finished.stderr.contains("ends it after"), "nobody was told of the shorter life: {}", finished.stderr);
    s.session_ended(&session, "completed")?;
    let within = inner(s, &session)?;
    ensure!(within.len() == 2, "{} sessions were started within it", within.len());
    let outer_ends = s.records(&session, "session-start")?[0]["deadline_boot_ns"].as_u64();
    for start in &within {
        let id = start["session"].as_str().context("no id")?;
        s.session_ended(id, "completed")?;
        ensure!(start["deadline_boot_ns"].as_u64() <= outer_ends, "it outlasts {outer_ends:?}: {start}");
    }
    let refused = s.records(within[0]["session"].as_str().unwrap_or_default(), "connect")?;
    ensure!(refused.len() == 1 && refused[0]["verdict"] == "deny", "recorded in it: {refused:?}");
    ensure!(s.records(&session, "connect")?.iter().all(|r| r["verdict"] == "allow"), "the outer one was refused");
    Ok(())
}

/// More programs, more addresses, only observing, budgets that would be had twice.
fn wider(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, mark) = (s.program("member")?, s.program("good")?, s.file("mark"));
    let outer = nesting(s, &member)?;
    let command = format!("{good} --work mark {mark}");
    let policies = [
        only(&good),
        only(&member).to("more", "127.0.0.1/32", 9),
        only(&member).observe(),
        only(&member).kind("operator"),
    ];
    let lines = policies.iter().map(|policy| Ok(format!("spawn {}", start(s, policy, &command)?)));
    let line = lines.collect::<Result<Vec<_>>>()?.join(" + ");
    let running = s.run(&s.policy(&outer)?, &member, &line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.said("exit 125\nexit 125\nexit 125\nexit 125")?.complained(&["is wider than that of session"])?;
    s.session_ended(&session, "completed")?;
    ensure!(inner(s, &session)?.is_empty() && !Path::new(&mark).exists(), "a wider session was started");
    let refused = s.evidence()?.iter().filter(|r| r["type"] == "refused").count();
    ensure!(refused == 4, "{refused} refusals are recorded");
    let budgets = s.policy(&outer.spec("budgets: { connects: 5 }"))?;
    s.cli(&["policy", "check", &budgets])?.ended(2)?.told(&["spec.nested", "leave out one"])?;
    Ok(())
}

/// A file that a member wrote is no program, neither for it nor for a session that it starts.
fn written(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, mark) = (s.program("member")?, s.program("good")?, s.file("mark"));
    let (folder, fresh) = (s.bin(), format!("{}/fresh", s.bin()));
    let outer = nesting(s, &member)?.allow_dir("folder", &folder);
    let inner_policy = Policy::new().allow_dir("folder", &folder);
    let by_inner = start(s, &inner_policy, &format!("{fresh} --work mark {mark}"))?;
    let allowed = start(s, &inner_policy, &format!("{good} --work say there"))?;
    let line = format!("made copy {good} {fresh} --work mark {mark} + spawn {by_inner} + spawn {allowed}");
    let running = s.run(&s.policy(&outer)?, &member, &line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    ensure!(finished.stdout.ends_with("there\nexit 0"), "what was there before did not run: {finished:?}");
    ensure!(!Path::new(&mark).exists(), "what the session wrote ran: {finished:?}");
    s.session_ended(&session, "completed").map(drop)
}

/// The agent's socket is open for them to start a session, and for nothing else; in one that does not nest not for that.
fn nothing_else(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let tipstaff = s.tipstaff_for_members()?;
    let asks = |words: &str| format!("spawn {tipstaff} {words}");
    let attach = format!("attach --pid {} --policy {}", std::process::id(), s.policy(&only(&member))?);
    let all = ["ps", "status", "end 0 --reason operator", "disarm --yes", &attach];
    let line = all.map(asks).join(" + ");
    let running = s.run(&s.policy(&nesting(s, &member)?)?, &member, &line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    ensure!(!finished.stdout.contains("exit 0"), "a member was answered: {finished:?}");
    finished.complained(&["a member of a session"])?;
    s.session_ended(&session, "completed")?;
    // a verb may try both sockets, where the policy's rules on them do not hold
    let (records, calls) = refused_calls(s, &session)?;
    let all = calls >= 5 && records.iter().all(|r| r["reason"] == "nesting" && r["uid"] == 0);
    ensure!(all, "{calls} calls were refused: {records:?}");
    // a session within, whose policy does not say so, starts no third
    let third = start(s, &only(&member), &format!("{member} --work say third"))?;
    let second = nesting(s, &member)?.spec("reviewBy: 2099-01-01");
    let deeper = start(s, &second, &format!("{member} --work spawn {third}"))?;
    let no_deeper = start(s, &flat(s, &member)?, &format!("{member} --work spawn {third}"))?;
    let running = s.run(&s.policy(&nesting(s, &member)?)?, &member, &format!("spawn {deeper} + spawn {no_deeper}"))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.said("third\nexit 0\nexit 0\nexit 125\nexit 0")?.complained(&["a member of a session"])?;
    s.session_ended(&session, "completed").map(drop)
}

/// What its inner session does keeps the outer one from being idle, and no longer; its members signal those within, which do
/// not signal them.
fn lives_by(s: &mut Sandbox) -> Result<()> {
    const WAKES: usize = 7;
    s.start()?;
    let after = Duration::from_secs(if in_guest() { 12 } else { 4 });
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::udp("127.0.0.1")?);
    let to = |policy: Policy| policy.to("server", "127.0.0.1/32", server.port());
    let [of_outer, of_inner, answers, script] = [s.file("pid"), s.file("pid"), s.file("answers"), s.file("script")];
    let mut wakes = (0..WAKES).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
    let mut signals = [Fifo::new(s)?, Fifo::new(s)?];
    let connect: Vec<String> =
        wakes.iter().map(|fifo| format!("fifo {} connect udp {}", fifo.path, server.words())).collect();
    let lines = format!("{} + fifo {} signal-in {of_outer} + idle", connect.join(" + "), signals[1].path);
    fs::write(&script, format!("#!\npid {of_inner} report {answers} nothing + {lines}\n"))?;
    let inner_policy = to(only(&good));
    let start = start(s, &inner_policy, &format!("{good} --script {script}"))?;
    let limit = format!("idle: {{ after: {}s, activity: [connect] }}", after.as_secs());
    let outer = to(nesting(s, &member)?.allow("good", &good)).limit(limit);
    let line = format!("pid {of_outer} background exec {start} + fifo {} signal-in {of_inner} + idle", signals[0].path);
    let running = s.run(&s.policy(&outer)?, &member, &line)?;
    let session = running.session(s)?;
    let inner = s.pid_in(&of_inner)?;
    let began = Instant::now();
    for (round, wake) in wakes.iter_mut().enumerate() {
        // the first at once: what is over of the limit by now went to the start
        let due = after / 4 * u32::try_from(round)?;
        until("a quarter of the idle limit to pass", patience(), || Ok((began.elapsed() > due).then_some(())))?;
        wake.wake()?;
    }
    until("the outer to have lived longer", patience(), || Ok((began.elapsed() > after * 13 / 8).then_some(())))?;
    ensure!(!gone(running.pid()) && !gone(inner), "ended although its inner session was busy");
    signals.iter_mut().try_for_each(Fifo::wake)?;
    let upwards = report(&answers, WAKES + 1)?;
    let downwards =
        until("the outer to have signalled", patience(), || Ok(running.said().lines().next().map(str::to_owned)))?;
    ensure!(downwards == "ok", "to its inner session: {downwards}");
    if s.tier == Tier::Full {
        let mut expected = vec!["ok"; WAKES];
        expected.push("errno 1");
        ensure!(upwards == expected, "to its outer session: {upwards:?}");
    }
    s.session_ended(&session, "idle")?;
    all_gone(&[running.pid(), inner])?;
    running.wait()?.ended(137).map(drop)
}

/// Frozen, narrowed, taken over by another agent and ended with the session that it is within.
fn goes_with(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::tcp("127.0.0.1")?);
    let to = |policy: Policy| policy.to("server", "127.0.0.1/32", server.port());
    let pids = [s.file("pid"), s.file("pid")];
    let (mut fifo, answers) = (Fifo::new(s)?, s.file("answers"));
    let wide = start(s, &to(only(&good)), &format!("{good} --work pid {} idle", pids[0]))?;
    let connect = format!("connect tcp {}", server.words());
    let small = start(
        s,
        &only(&good),
        &format!("{good} --work pid {} report {answers} fifo {} {connect}", pids[1], fifo.path),
    )?;
    let line = format!("background exec {wide} + background exec {small} + idle");
    let outer = s.policy(&to(nesting(s, &member)?.allow("good", &good)))?;
    let running = s.run(&outer, &member, &line)?;
    let session = running.session(s)?;
    let (wide, small) = (s.pid_in(&pids[0])?, s.pid_in(&pids[1])?);
    let of = |pid: u32| s.session_of(pid);
    let (wide_id, small_id) = (of(wide)?, of(small)?);
    let state = |s: &Sandbox, id: &str| Ok::<_, anyhow::Error>(s.json(&["inspect", id])?["session"]["state"].clone());
    freeze_still(s, &session, &[])?;
    ensure!(state(s, &wide_id)? == "frozen" && state(s, &small_id)? == "frozen", "those within are not frozen");
    s.kill_agent()?;
    s.start()?;
    s.cli(&["thaw", &session])?.ended(0)?;
    ensure!(state(s, &wide_id)? == "active" && state(s, &small_id)? == "active", "those within are not thawed");
    let would = s.json(&["revoke", "--session", &session, "--dry-run"])?["sessions"].as_array().map(Vec::len);
    ensure!(would == Some(3), "a revocation would hit {would:?} sessions");
    // what is wider than the outer one from now on ends, the other goes on
    s.cli(&["narrow", &session, "--remove", "server"])?.ended(0)?;
    s.session_ended(&wide_id, "context-changed")?;
    all_gone(&[wide])?;
    ensure!(!gone(small) && state(s, &small_id)? == "active", "what is no wider was ended");
    fifo.wake()?;
    ensure!(report(&answers, 1)? == ["errno 1"], "it reached what it must not");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    running.wait()?.ended(137)?;
    all_gone(&[small])?;
    s.session_ended(&small_id, "operator").or_else(|_| s.session_ended(&small_id, "completed")).map(drop)
}
