//! One agent follows another: sessions go on, and there is no moment in which nobody decides.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::scene::{Fifo, Wall, attach_to, only};
use crate::harness::{
    bpf::{Map, Shape},
    prelude::*,
    server::Server,
    wait::{all_gone, gone, in_guest, pass},
};

/// `BPF_MAP_TYPE_LRU_HASH` (`include/uapi/linux/bpf.h`, 6.18).
const LRU_HASH: u32 = 9;
/// `BPF_F_NO_PREALLOC` (as above).
const NO_PREALLOC: u32 = 1;

pub(super) const TESTS: &[Test] = &[
    Test::new("restart::sessions-go-on", WHEREVER, go_on),
    Test::new("restart::first-process-is-found-again", WHEREVER, first_process).agents_own(),
    Test::new("restart::deadline-of-an-earlier-agent", WHEREVER, deadline).waiting().agents_own(),
    Test::new("restart::agent-loss-ends-where-asked", WHEREVER, agent_loss).agents_own(),
    Test::new("restart::kill-loop-is-no-hole", WHEREVER, kill_loop).lasting(60).agents_own(),
    Test::new("restart::pins-of-another-version-are-refused", WHEREVER, other_pins).agents_own(),
    Test::new("restart::spoiled-store", WHEREVER, spoiled_store).agents_own(),
    Test::new("restart::two-agents-on-one-store", WHEREVER, one_store).agents_own(),
    Test::new("restart::observed-members-free-their-slot", WHEREVER, observed).agents_own(),
];

/// Killed or stopped, the agent is missed by nobody: what was refused is refused, what was allowed works, and the next
/// agent knows the session as the first one did.
fn go_on(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 6)?;
    wall.holds(s)?;
    let asked = |s: &Sandbox| s.json(&["inspect", &wall.session]);
    let first = asked(s)?;
    s.kill_agent()?;
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    s.stop_agent()?;
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    let now = s.json(&["inspect", &wall.session])?;
    for field in ["/policy", "/limits/ttl_ms", "/limits/deadline_boot_ns", "/limits/winner", "/principal", "/context"] {
        let (was, is) = (first.pointer(field), now.pointer(field));
        ensure!(was.is_some() && was == is, "{field} was {was:?} and is {is:?}");
    }
    let denied = |inspected: &Value| inspected["session"]["denied"].as_u64();
    until("the refusals to be counted", patience(), || {
        Ok((denied(&s.json(&["inspect", &wall.session])?) == denied(&first).map(|n| n * 5)).then_some(()))
    })?;
    let last = now["verdicts"].as_array().and_then(|v| v.last()).map(|v| v["rule"].clone());
    ensure!(last == Some("default".into()), "the last verdict is by {last:?}");
    // the new agent takes new sessions beside the old one, and ends the old one
    let member = s.program("again")?;
    s.run(&s.policy(&only(&member))?, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    s.cli(&["end", &wall.session])?.ended(0)?;
    let end = s.session_ended(&wall.session, "operator")?;
    all_gone(&[wall.running.pid()])?;
    wall.bad.untouched()?;
    // nothing was lost, and each of the two gaps says since when no agent ran
    let lost: u64 = end["lost"].as_object().map_or(0, |kinds| kinds.values().filter_map(Value::as_u64).sum());
    ensure!(lost == 0, "records were lost: {end}");
    let execs = s.records(&wall.session, "exec")?;
    let mut seen: Vec<u64> = execs.iter().filter_map(|r| r["seq"].as_u64()).collect();
    seen.dedup();
    ensure!(seen.len() == execs.len(), "a record stands twice");
    let refused = execs.iter().filter(|r| r["verdict"] != "allow").count();
    ensure!(refused == 5, "{refused} refused execs in the evidence where 5 were");
    let all = s.evidence()?;
    let gaps: Vec<&Value> = all.iter().filter(|r| r["type"] == "gap").collect();
    ensure!(gaps.len() == 2, "two gaps were expected: {gaps:?}");
    for gap in gaps {
        ensure!(gap["cause"] == "agent-absent" && gap["lost"] == 0 && gap["since"]["boot"] == gap["boot"], "{gap}");
        ensure!(gap["since"]["boot_ns"].as_u64() < gap["boot_ns"].as_u64(), "the gap has no length: {gap}");
    }
    s.cli(&["verify"])?.ended(0)?.told(&["intact, with 2 gaps", "agent-absent"])?;
    Ok(())
}

/// The end of the first process ends the session, whether the agent that started it, a later one, or none saw it.
fn first_process(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?];
    let mut running = Vec::new();
    for fifo in &fifos {
        let (leftover, line) = (s.file("pid"), format!("fifo {} status 7", fifo.path));
        let one = s.run(&policy, &member, &format!("background pid {leftover} idle + {line}"))?;
        let session = one.session(s)?;
        running.push((one, session, s.pid_in(&leftover)?));
    }
    s.kill_agent()?;
    fifos[0].wake()?;
    let (one, session, leftover) = running.remove(0);
    one.wait()?.ended(7)?;
    ensure!(!gone(leftover), "a member that sleeps died without an agent");
    s.start()?;
    s.session_ended(&session, "completed")?;
    all_gone(&[leftover])?;
    let (one, session, leftover) = running.remove(0);
    ensure!(s.records(&session, "session-end")?.is_empty(), "a session ended whose first process lives");
    fifos[1].wake()?;
    one.wait()?.ended(7)?;
    s.session_ended(&session, "completed")?;
    all_gone(&[leftover])
}

/// A deadline that passed while no agent ran, for as long as the session might have lived: the next agent ends it for that.
fn deadline(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, pid) = (s.program("member")?, s.file("pid"));
    let policy = s.policy(&only(&member))?;
    let seconds = if in_guest() { 25 } else { 5 };
    let line = format!("background pid {pid} spin + idle");
    let running = s.launch(&policy, &member, &line).ttl(&format!("{seconds}s")).start()?;
    let session = running.session(s)?;
    let spinner = s.pid_in(&pid)?;
    let start = s.records(&session, "session-start")?;
    let deadline = start[0]["deadline_boot_ns"].as_u64().context("session-start without a deadline")?;
    s.kill_agent()?;
    pass(deadline, Duration::from_secs(seconds))?;
    ensure!(gone(spinner), "what computes lives, and its deadline passed a whole ttl ago");
    ensure!(!gone(running.pid()), "the clock killed what sleeps");
    s.start()?;
    s.session_ended(&session, "ttl")?;
    all_gone(&[running.pid()])?;
    running.wait()?.ended(137)?;
    Ok(())
}

fn agent_loss(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let ends = s.run(&s.policy(&only(&member).agent_loss("end"))?, &member, "say there + idle")?;
    let goes_on = s.run(&s.policy(&only(&member).agent_loss("continue"))?, &member, "say there + idle")?;
    let sessions = [ends.session(s)?, goes_on.session(s)?];
    until("both to run", patience(), || Ok((ends.said() == "there\n" && goes_on.said() == "there\n").then_some(())))?;
    s.kill_agent()?;
    ensure!(!gone(ends.pid()), "the session ended with its agent");
    s.start()?;
    s.session_ended(&sessions[0], "agent-loss")?;
    ends.wait()?.ended(137)?;
    ensure!(!gone(goes_on.pid()), "a session ended that goes on by its policy");
    s.cli(&["end", &sessions[1]])?.ended(0)?;
    Ok(())
}

/// The agent is killed at any moment of its start and of its work, again and again for a minute (in a guest, half of one),
/// while a member tries what is out of scope and what is in scope. Each agent attaches its programs elsewhere than the one
/// before.
fn kill_loop(s: &mut Sandbox) -> Result<()> {
    let (span, least) = if in_guest() { (30, 4) } else { (60, 30) };
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (server, refused) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let (mark, stop) = (s.file("mark"), s.file("stop"));
    let line = format!("say there + besiege {bad} {mark} {good} {} {} {stop}", refused.words(), server.words());
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    until("the siege to begin", patience(), || Ok(running.said().starts_with("there").then_some(())))?;
    s.kill_agent()?;
    let (start, mut kills) = (Instant::now(), 1u32);
    while start.elapsed() < Duration::from_secs(span) {
        attach_to(s, if kills % 2 == 0 { "sessions" } else { "root" })?;
        let agent = s.start_unready()?;
        // anywhere from the first instruction to well after it is ready: each time a little later, and then anew
        let step = if in_guest() { 700 } else { 60 };
        std::thread::sleep(Duration::from_millis(u64::from(kills * 7 % 20) * step));
        agent.kill()?;
        kills += 1;
    }
    s.start()?;
    fs::write(&stop, "")?;
    let finished = running.wait_for(4 * patience())?;
    finished.ended(0)?;
    let said = finished.stdout.strip_prefix("there\n").context("it began")?;
    let (rounds, worked) = said.split_once(" rounds, worked ").context("no rounds")?;
    let rounds: u32 = rounds.parse()?;
    ensure!(kills >= least && rounds >= 10, "{kills} kills and {rounds} rounds are no siege");
    let expected = format!("[0, {rounds}, 0, {rounds}]");
    ensure!(worked == expected, "of {rounds} rounds with {kills} kills, {worked} worked where {expected} was expected");
    ensure!(!Path::new(&mark).exists(), "a program out of scope ran");
    refused.untouched()?;
    let end = s.session_ended(&session, "completed")?;
    // each attempt is one record, however many loads of programs decided on it: written, or counted by who lost it
    let gaps = s.evidence()?.into_iter().filter(|r| r["type"] == "gap").collect::<Vec<_>>();
    // but for a connect in the instant in which the word changes, which each of two loads may take for its own: once an agent
    for (kind, made, twice) in [("exec", 2 * rounds + 1, 0), ("connect", 2 * rounds, kills)] {
        let count = |part: &str| end[part][kind].as_u64().unwrap_or(0);
        let produced = count("produced");
        let right = u64::from(made)..=u64::from(made + twice);
        ensure!(right.contains(&produced), "of {rounds} rounds with {kills} kills, {produced} records {kind}");
        let written = u64::try_from(s.records(&session, kind)?.len())?;
        ensure!(count("consumed") == written, "{written} records {kind}: {end}");
        let told: u64 = gaps.iter().filter_map(|gap| gap["kinds"][kind].as_u64()).sum();
        ensure!(count("lost") == told, "gap records tell of {told} records {kind}: {end}");
    }
    println!("{kills} kills, {rounds} rounds");
    Ok(())
}

/// Pins that this version does not understand: it says so, changes nothing, and what is in force stays in force.
fn other_pins(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    s.kill_agent()?;
    let layout = fs::read_dir(s.pins())?.flatten().map(|e| e.path()).next().context("there are no pins")?;
    let (pin, aside) = (layout.join("map_CGROUP_SESSIONS"), layout.join("map_aside"));
    let refuses = |parts: &[&str]| -> Result<()> {
        let finished = Running::spawn(s, s.daemon(), None)?.wait()?;
        finished.ended(6)?.complained(&["tipstaff: "])?.complained(parts)?;
        Ok(())
    };
    let ours = Map::of(s, "CGROUP_SESSIONS")?.shape()?;
    fs::rename(&pin, &aside)?;
    // each of them as little another as it can be
    for (what, found, expected, shape) in [
        ("type", LRU_HASH, ours.kind, Shape { kind: LRU_HASH, ..ours }),
        ("key size", ours.key + 1, ours.key, Shape { key: ours.key + 1, ..ours }),
        ("value size", ours.value + 1, ours.value, Shape { value: ours.value + 1, ..ours }),
        ("max_entries", ours.entries + 1, ours.entries, Shape { entries: ours.entries + 1, ..ours }),
        ("flags", ours.flags ^ NO_PREALLOC, ours.flags, Shape { flags: ours.flags ^ NO_PREALLOC, ..ours }),
    ] {
        Map::make(shape)?.pin(&pin)?;
        let told = format!("map_cgroup_sessions has {what} {found}, and this version's has {expected}");
        refuses(&[&told, "tipstaff disarm"]).context(what)?;
        fs::remove_file(&pin)?;
    }
    wall.holds(s)?;
    refuses(&["map_cgroup_sessions is gone", "tipstaff disarm"])?;
    fs::rename(&aside, &pin)?;
    let strange = s.pins().join("v99");
    fs::create_dir(&strange)?;
    fs::create_dir(strange.join("g1"))?;
    refuses(&["v99", "another layout", "disarm"])?;
    wall.holds(s)?;
    fs::remove_dir(strange.join("g1"))?;
    fs::remove_dir(&strange)?;
    s.start()?;
    wall.holds(s)?;
    s.cli(&["end", &wall.session])?.ended(0)?;
    Ok(())
}

/// What was kept cannot be read: it is said, nothing is guessed, and what the kernel holds and nobody can answer for ends.
fn spoiled_store(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let wall = Wall::new(s, 1)?;
    s.kill_agent()?;
    let store = s.folder().join("state/store.redb");
    let mut bytes = fs::read(&store)?;
    bytes.iter_mut().skip(64).for_each(|byte| *byte ^= 0x5a);
    fs::write(&store, &bytes)?;
    s.start()?;
    s.session_ended(&wall.session, "agent-loss")?;
    all_gone(&[wall.running.pid()])?;
    s.wait_evidence("the store that cannot be read", |r| {
        r["type"] == "gap" && r["detail"].as_str().is_some_and(|d| d.contains("store.redb cannot be read"))
    })?;
    ensure!(s.folder().join("state/store.unreadable-1").exists(), "the spoiled store was not set aside");
    let member = s.program("again")?;
    s.run(&s.policy(&only(&member))?, &member, "say again")?.wait()?.ended(0)?.said("again")?;
    older_store(s, &store, &member)
}

/// What was kept can be read, and is from before a narrowing: the kernel's scope is never made wider by it.
fn older_store(s: &mut Sandbox, store: &Path, member: &str) -> Result<()> {
    let one = s.policy(&only(member).allow("other", "/bin/true"))?;
    let (narrowed, same) = (s.run(&one, member, "idle")?, s.run(&one, member, "idle")?);
    let (session, beside) = (narrowed.session(s)?, same.session(s)?);
    let older = fs::read(store)?;
    ensure!(s.json(&["narrow", &session, "--remove", "other"])?["revision"] == 2, "it was not narrowed");
    s.kill_agent()?;
    fs::write(store, older)?;
    s.start()?;
    s.session_ended(&session, "agent-loss")?;
    all_gone(&[narrowed.pid()])?;
    s.wait_evidence("what is kept and older than what is enforced", |r| {
        let says = |d: &str| d.contains(&session) && d.contains("scope number 2") && d.contains("scope number 1");
        r["type"] == "gap" && r["detail"].as_str().is_some_and(says)
    })?;
    // of which as much is kept as the kernel has goes on
    ensure!(s.json(&["inspect", &beside])?["session"]["state"] == "active", "the session beside it does not go on");
    s.kill_agent()?;
    fs::remove_file(store)?;
    s.start()?;
    s.session_ended(&beside, "agent-loss")?;
    s.wait_evidence("the store that is gone", |r| {
        let says = |d: &str| d.contains("store.redb was not there") && d.contains("every stay");
        r["type"] == "gap" && r["detail"].as_str().is_some_and(says)
    })?;
    // a head file that cannot be written is told of, for as long
    let head = store.with_file_name("evidence.head");
    fs::remove_file(&head)?;
    fs::create_dir(&head)?;
    let policy = s.policy(&only(member))?;
    s.run(&policy, member, "nothing")?.wait()?.ended(0)?;
    let not_on_disk = &["evidence is not on disk", "evidence.head"];
    until("status to tell", patience(), || {
        Ok(s.cli(&["status"])?.ended(4).and_then(|told| told.told(not_on_disk)).is_ok().then_some(()))
    })?;
    fs::remove_dir(&head)?;
    s.run(&policy, member, "nothing")?.wait()?.ended(0)?;
    until("status to be well", patience(), || Ok(s.cli(&["status"])?.ended(0).is_ok().then_some(())))
}

/// A second agent with places of its own, but for the state folder.
fn one_store(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let other = s.fresh("other");
    let mut second = s.daemon();
    second
        .env("TIPSTAFF_RUNTIME_DIR", other.join("run"))
        .env("TIPSTAFF_EVIDENCE_DIR", other.join("evidence"))
        .env("TIPSTAFF_PIN_DIR", s.pins().with_file_name(format!("tipstaff-test-{}-other", std::process::id())))
        .env("TIPSTAFF_CGROUP", s.part("sessions").path().join("other"));
    let finished = Running::spawn(s, second, None)?.wait()?;
    finished.ended(1)?.complained(&["tipstaff: another agent has ", "store.redb open", "--state-dir"])?;
    s.cli(&["status"])?;
    let member = s.program("member")?;
    s.run(&s.policy(&only(&member))?, &member, "say well")?.wait()?.ended(0)?.said("well")?;
    Ok(())
}

/// The members of a session that only observed run on after its end; when they are gone, nothing of it is left, with
/// another agent in between or not.
fn observed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).observe())?;
    for restart in [false, true] {
        let (mut fifo, pid, server) = (Fifo::new(s)?, s.file("pid"), Server::tcp("127.0.0.1")?);
        let rest = format!("fifo {} connect tcp {}", fifo.path, server.words());
        let running = s.run(&policy, &member, &format!("background pid {pid} {rest} + say done"))?;
        let session = running.session(s)?;
        let left = s.pid_in(&pid)?;
        running.wait()?.ended(0)?;
        let end = s.wait_evidence("the end of an observed session", |r| {
            r["type"] == "session-end" && r["session"] == session
        })?;
        ensure!(end["members_left"] == 1 && !gone(left), "a member of an observed session was killed: {end}");
        if restart {
            s.kill_agent()?;
            s.start()?;
        }
        ensure!(s.nothing_of_sessions_is_left().is_err(), "the cgroup is gone and a member is in it");
        fifo.wake()?;
        all_gone(&[left])?;
        server.accepted(1)?;
        until("the cgroup to be gone", patience(), || Ok(s.nothing_of_sessions_is_left().is_ok().then_some(())))?;
    }
    Ok(())
}
