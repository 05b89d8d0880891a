//! What operators do to live sessions: freeze and thaw them, end many of them; and verdicts that change by what others do.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::scene::only;
use crate::harness::{
    launch::Finished,
    prelude::*,
    wait::{all_gone, gone, in_guest, state_of},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("control::frozen-stands-still-and-thawed-goes-on", WHEREVER, freeze),
    Test::sharing("control::deadline-holds-while-frozen", WHEREVER, frozen_deadline),
    Test::sharing("control::many-end-by-few-walks", WHEREVER, many_ends).agents_own(),
    Test::new("control::verdict-changes-without-a-deed", WHEREVER, verdicts).agents_own(),
];

/// Bytes of a file that a member keeps adding to.
fn length(file: &str) -> u64 {
    fs::metadata(file).map_or(0, |m| m.len())
}

pub(super) fn grows(file: &str) -> Result<()> {
    let before = length(file);
    until(&format!("{file} to grow"), patience(), || Ok((length(file) > before).then_some(())))
}

/// For as long as it would have grown a hundred times over.
pub(super) fn stands_still(file: &str) -> Result<()> {
    let (before, start) = (length(file), Instant::now());
    while start.elapsed() < Duration::from_millis(300) {
        ensure!(length(file) == before, "a frozen member wrote to {file}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Freezes a session and waits until it stands still: the agent waits a tenth of a second for that, and says so by its exit status
/// where it took longer. `outside`: members that are not in its cgroup.
pub(super) fn freeze_still(s: &Sandbox, session: &str, outside: &[u32]) -> Result<Finished> {
    let told = s.cli(&["freeze", session])?;
    if told.code == 0 {
        return Ok(told);
    }
    ensure!(told.code == 1 && !told.stdout.is_empty(), "freeze: {told:?}");
    let events = s.part("sessions").path().join(session).join("cgroup.events");
    until("members to stand still", patience(), || {
        let stopped = outside.iter().all(|pid| state_of(*pid) == Some('T'));
        Ok((stopped && fs::read_to_string(&events)?.contains("frozen 1")).then_some(()))
    })?;
    Ok(told)
}

fn freeze(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, counted, daemon) = (s.program("member")?, s.file("counted"), s.file("counted"));
    let policy = s.policy(&only(&member))?;
    let pid = s.file("pid");
    let line = format!("daemonise pid {pid} count {daemon} + count {counted}");
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    grows(&counted)?;
    grows(&daemon)?;
    let start = Instant::now();
    freeze_still(s, &session, &[])?.told(&["is frozen: 2 processes"])?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(5), "freeze took {took:?}");
    stands_still(&counted)?;
    stands_still(&daemon)?;
    ensure!(s.json(&["ps"])?["sessions"][0]["state"] == "frozen", "ps does not say so");
    // to freeze what is frozen changes nothing
    let frozen = s.json(&["freeze", &session])?;
    ensure!(frozen["state"] == "frozen" && frozen["members"] == 2 && frozen["still"] == true, "freeze says {frozen}");
    ensure!(s.json(&["thaw", &session])?["state"] == "active", "it is not thawed");
    grows(&counted)?;
    grows(&daemon)?;
    ensure!(!gone(running.pid()), "another process goes on");
    // a member outside the session's cgroup is stopped by a signal, and is named
    s.part("elsewhere").take(running.pid())?;
    let outside = format!("outside its cgroup: {}", running.pid());
    freeze_still(s, &session, &[running.pid()])?.told(&[&outside, "stopped by SIGSTOP"])?;
    stands_still(&counted)?;
    stands_still(&daemon)?;
    s.cli(&["thaw", &session])?.ended(0)?.told(&[&outside])?;
    grows(&counted)?;
    grows(&daemon)?;
    freeze_still(s, &session, &[running.pid()])?;
    stands_still(&counted)?;
    // one that is moved away while it is frozen stands still there too
    let pid = s.pid_in(&pid)?;
    s.part("elsewhere").take(pid)?;
    until("who was moved to be stopped", patience(), || Ok((state_of(pid) == Some('T')).then_some(())))?;
    stands_still(&daemon)?;
    s.cli(&["end", &session])?.ended(0)?;
    all_gone(&[running.pid()])?;
    let causes: Vec<String> =
        s.records(&session, "state")?.iter().filter_map(|r| r["cause"].as_str().map(str::to_owned)).collect();
    ensure!(
        causes == ["labelled", "frozen", "thawed", "frozen", "thawed", "frozen", "operator", "measured"],
        "the states passed: {causes:?}"
    );
    let verbs: Vec<String> =
        s.records(&session, "command")?.iter().filter_map(|r| r["verb"].as_str().map(str::to_owned)).collect();
    ensure!(
        verbs == ["freeze", "freeze", "thaw", "freeze", "thaw", "freeze", "end"],
        "the commands recorded: {verbs:?}"
    );
    Ok(())
}

fn frozen_deadline(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, counted) = (s.program("member")?, s.file("counted"));
    let ttl = if in_guest() { "20s" } else { "5s" };
    let running = s.launch(&s.policy(&only(&member))?, &member, &format!("count {counted}")).ttl(ttl).start()?;
    let session = running.session(s)?;
    grows(&counted)?;
    freeze_still(s, &session, &[])?;
    s.session_ended(&session, "ttl")?;
    running.wait()?.ended(137)?;
    s.cli(&["thaw", &session])?.ended(5)?;
    // the death of the first process begins the grace of what it leaves, and lets nobody go
    let (left, pid) = (s.file("left"), s.file("pid"));
    let policy = s.policy(&only(&member).limit("leftovers: 1h").ttl("2h"))?;
    let running = s.run(&policy, &member, &format!("daemonise pid {pid} count {left} + await {pid} idle"))?;
    let session = running.session(s)?;
    grows(&left)?;
    freeze_still(s, &session, &[])?;
    kill(Pid::from_raw(running.pid().cast_signed()), Signal::SIGKILL)?;
    until("the grace to begin", patience(), || {
        Ok((s.json(&["inspect", &session])?["session"]["state"] == "ending").then_some(()))
    })?;
    stands_still(&left)?;
    s.cli(&["thaw", &session])?.ended(0)?;
    grows(&left)?;
    freeze_still(s, &session, &[])?;
    stands_still(&left)?;
    s.cli(&["end", &session])?.ended(0)?;
    all_gone(&[s.pid_in(&pid)?])
}

pub(super) fn ids(answer: &Value) -> Vec<String> {
    let rows = answer["sessions"].as_array().into_iter().flatten();
    rows.filter_map(|row| row["id"].as_str().map(str::to_owned)).collect()
}

/// Sessions that end together are looked for together: how often the agent walks over the host's tasks does not grow with them.
fn many_ends(s: &mut Sandbox) -> Result<()> {
    const SESSIONS: usize = 24;
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let start = |label| {
        let running = s.launch(&policy, &member, "idle").flag("--label", label).start()?;
        let session = running.session(s)?;
        Ok((running, session))
    };
    let (spared, its) = start("crowd=no")?;
    let crowd = (0..SESSIONS).map(|_| start("crowd=yes")).collect::<Result<Vec<_>>>()?;
    let walks = || s.json(&["status"])?["walks"].as_u64().context("status tells of no walks");
    let before = walks()?;
    let hit = s.json(&["revoke", "--label", "crowd=yes", "--no-stay"])?;
    let took = walks()? - before;
    ensure!(ids(&hit).len() == SESSIONS, "revoked: {hit}");
    for (running, session) in crowd {
        let end = s.session_ended(&session, "revoked")?;
        ensure!(end["members_left"] == 0, "members are left: {end}");
        let receipts = end["receipts"].as_array().map_or(0, Vec::len);
        ensure!(receipts == 1, "one member died, with {receipts} receipts: {end}");
        running.wait()?.ended(137)?;
    }
    ensure!(!gone(spared.pid()), "who was not meant is gone");
    s.cli(&["end", &its])?.ended(0)?;
    spared.wait()?.ended(137)?;
    // one by one they take five each at least; all of them are waited for by one look in four milliseconds
    ensure!(took < 3 * SESSIONS as u64, "{took} walks for the ends of {SESSIONS} sessions");
    Ok(())
}

/// What others decide changes the verdict on a session whose members sleep all the while: no record of theirs comes.
fn verdicts(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let red = s.policy(&only(&member).name("red").to("one", "127.0.0.1/32", 1_001))?;
    let running = s.run(&red, &member, "idle")?;
    let session = running.session(s)?;
    let judged = |s: &Sandbox, verdict: &str, why: &str| -> Result<()> {
        let rows = [s.json(&["ps"])?["sessions"][0].clone(), s.json(&["inspect", &session])?["session"].clone()];
        let fits = |row: &Value| row["id"] == session && row["verdict"] == verdict && row["why"] == why;
        ensure!(rows.iter().all(fits), "the verdict should be {verdict} ({why}): {rows:?}");
        let counts = s.json(&["status"])?["verdicts"].clone();
        let fits = |(name, count): (&String, &Value)| *count == u64::from(name == verdict);
        let counted = counts.as_object().is_some_and(|counts| counts.len() == 4 && counts.iter().all(fits));
        ensure!(counted, "one session, with verdict {verdict}: {counts}");
        let shown = if why.is_empty() { verdict.to_owned() } else { format!("{verdict}: {why}") };
        s.cli(&["ps"])?.ended(0)?.told(&["VERDICT", &shown])?;
        s.cli(&["inspect", &session])?.ended(0)?.told(&[&shown]).map(drop)
    };
    let deeds = |s: &Sandbox| -> Result<usize> {
        let of = |kind| s.records(&session, kind).map(|records| records.len());
        Ok(of("exec")? + of("fork")? + of("connect")?)
    };
    s.wait_evidence("the first program", |r| r["type"] == "exec" && r["session"] == session)?;
    let before = deeds(s)?;
    judged(s, "continue", "")?;
    freeze_still(s, &session, &[])?;
    judged(s, "hold", "frozen")?;
    s.cli(&["thaw", &session])?.ended(0)?;
    judged(s, "continue", "")?;
    // what may not start may not be narrowed to
    let blue = s.policy(&only(&member).name("blue"))?;
    let stay = s.json(&["revoke", "--policy", "blue"])?["stay"]["id"].as_str().context("no stay")?.to_owned();
    s.cli(&["narrow", &session, "--policy", &blue])?.ended(3)?.complained(&["policy blue is revoked until"])?;
    judged(s, "continue", "")?;
    s.cli(&["revoke", "--lift", &stay])?.ended(0)?;
    s.cli(&["narrow", &session, "--policy", &blue])?.ended(0)?;
    judged(s, "narrow", "narrowed")?;
    freeze_still(s, &session, &[])?;
    judged(s, "hold", "frozen")?;
    s.kill_agent()?;
    s.start()?;
    judged(s, "hold", "frozen").context("with another agent")?;
    s.cli(&["thaw", &session])?.ended(0)?;
    judged(s, "narrow", "narrowed")?;
    ensure!(deeds(s)? == before, "a member did something");
    // of the policy that it was started under as well
    s.cli(&["revoke", "--policy", "red"])?.ended(0)?;
    running.wait()?.ended(137)?;
    s.session_ended(&session, "revoked").map(drop)
}
