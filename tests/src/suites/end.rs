//! The end is zero, whatever the members do about it; and what of it the policy may soften.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use super::scene::{Fifo, only};
use crate::harness::{
    bpf,
    locked::LockedFile,
    prelude::*,
    wait::{all_gone, boot_ns, gone, in_guest, state_of},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("end::term-comes-first-and-no-mercy-after", WHEREVER, term).waiting().agents_own(),
    Test::sharing("end::leftovers-have-their-grace", WHEREVER, leftovers).waiting().agents_own(),
    Test::sharing("end::stopped-traced-moved-and-hidden-members", WHEREVER, scattered),
    Test::sharing("end::fork-bomb", WHEREVER, bomb),
    Test::new("end::uninterruptible-sleep-is-reported", WHEREVER, uninterruptible).agents_own(),
    Test::sharing("end::clock-goes-with-a-start-that-fails", WHEREVER, failed_start),
    Test::sharing("end::clock-ticks-while-sessions-live-and-no-longer", WHEREVER, ticks),
    Test::new("end::clock-comes-back-with-its-processor", WHEREVER, hotplug).guests_only("takes a processor offline"),
];

fn secs(native: u64, guest: u64) -> u64 {
    if in_guest() { guest } else { native }
}

/// `SIGTERM` before the deadline: who heeds it ends in peace, who does not goes on in its scope, and is killed at the
/// deadline, which has not moved.
fn term(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let (caught, deaf, mark, mut fifo) = (s.file("caught"), s.file("pid"), s.file("mark"), Fifo::new(s)?);
    let (ttl, grace) = (secs(9, 40), secs(5, 25));
    let policy = only(&member).allow("good", &good).spec(format!("on: {{ expiry: {{ term: {grace}s }} }}"));
    let line = format!(
        "background catch 15 {caught} nothing \
         + background deaf pid {deaf} fifo {} spawn {good} --work mark {mark} + deaf idle",
        fifo.path
    );
    // the one that sleeps on the FIFO ends when it has run its program: another must be there at the deadline
    let running = s.launch(&s.policy(&policy)?, &member, &line).ttl(&format!("{ttl}s")).start()?;
    let session = running.session(s)?;
    s.pid_in(&deaf)?;
    let asked = s.wait_evidence("SIGTERM", |r| r["type"] == "terminate" && r["session"] == session)?;
    ensure!(asked["signalled"] == 3, "signalled: {asked}");
    ensure!(asked["grace_ms"].as_u64() <= Some(grace * 1000), "the grace: {asked}");
    until("the signal to be heeded", patience(), || Ok((fs::read_to_string(&caught)? == "15").then_some(())))?;
    let row = &s.json(&["ps"])?["sessions"][0];
    ensure!(row["state"] == "ending" && row["verdict"] == "end" && row["why"] == "ttl", "it is not ending: {row}");
    fifo.wake()?;
    until("a member to run a program in its grace", patience(), || Ok(Path::new(&mark).exists().then_some(())))?;
    ensure!(!gone(running.pid()), "a member that ignores SIGTERM was not given its grace");
    let end = s.session_ended(&session, "ttl")?;
    running.wait()?.ended(137)?;
    let deadline = s.records(&session, "session-start")?[0]["deadline_boot_ns"].as_u64().unwrap_or(0);
    ensure!(end["boot_ns"].as_u64() >= Some(deadline), "it was ended before its deadline");
    s.saw_exec(&session, &good, "allow", "good").map(drop)
}

/// What the first process leaves behind may go on for a while, in its scope; then it is removed. Where it ends by
/// itself, nobody waits.
fn leftovers(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    // what would be told to end as it begins does not begin
    let hasty = s.policy(&only(&member).spec("on: { expiry: { term: 5s } }"))?;
    let refused = s.launch(&hasty, &member, "say ran").ttl("4s").start()?.wait()?;
    refused.ended(125)?.complained(&["would last 4s", "tells it to end 5s before", "on.expiry.term"])?;
    let (daemon, mark, mut fifo) = (s.file("pid"), s.file("mark"), Fifo::new(s)?);
    let grace = secs(5, 15);
    let policy = s.policy(&only(&member).allow("good", &good).limit(format!("leftovers: {grace}s")))?;
    let line = format!(
        "daemonise pid {daemon} fifo {} spawn {good} --work mark {mark} + daemonise idle + await {daemon} nothing",
        fifo.path
    );
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    let pid = s.pid_in(&daemon)?;
    running.wait()?.ended(0)?;
    let first = Instant::now();
    ensure!(!gone(pid), "what was left had no grace");
    fifo.wake()?;
    until("what was left to run a program", patience(), || Ok(Path::new(&mark).exists().then_some(())))?;
    s.session_ended(&session, "completed")?;
    ensure!(first.elapsed() > Duration::from_secs(grace) / 2, "the grace lasted {:?}", first.elapsed());
    all_gone(&[pid])?;
    // the other way: an hour is not waited for
    let policy = s.policy(&only(&member).limit("leftovers: 1h").ttl("2h"))?;
    let mut fifo = Fifo::new(s)?;
    let running = s.run(&policy, &member, &format!("daemonise fifo {} nothing", fifo.path))?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?;
    fifo.wake()?;
    s.session_ended(&session, "completed").map(drop)
}

fn in_state(pid: u32, states: &[char]) -> Result<()> {
    until(&format!("process {pid} to be in state {states:?}"), patience(), || {
        Ok(state_of(pid).is_some_and(|state| states.contains(&state)).then_some(()))
    })
}

fn receipted(end: &Value, pids: &[u32]) -> Result<()> {
    let receipts = end["receipts"].as_array().context("session-end without receipts")?;
    for pid in pids {
        let seen = receipts.iter().any(|r| r["pid"] == *pid && r["gone"] == true);
        ensure!(seen, "process {pid} has no receipt: {end}");
    }
    let rounds = end["rounds"].as_array().context("session-end without rounds")?;
    ensure!(rounds.last().is_some_and(|round| round["left"] == 0), "the last round leaves members: {end}");
    ensure!(rounds.iter().all(|round| round["ms"].is_u64() && round["killed"].is_u64()), "rounds: {end}");
    Ok(())
}

/// Stopped, traced, in namespaces of their own, in other cgroups: all gone.
fn scattered(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let files: Vec<String> = (0..5).map(|_| s.file("pid")).collect();
    let line = format!(
        "background pid {} stop + background traced pid {} idle \
         + background unshare pid,net,mount,cgroup report {} pid {} idle + background pid {} idle + pid {} idle",
        files[0],
        files[1],
        s.file("out"),
        s.file("pid"),
        files[2],
        files[3]
    );
    // with what it takes where there is no BPF LSM to judge it
    let policy = only(&member).privileges("ptrace, mount");
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    let (stopped, moved) = (s.pid_in(&files[0])?, s.pid_in(&files[2])?);
    s.pid_in(&files[3])?;
    in_state(stopped, &['T'])?;
    s.part("elsewhere").take(moved)?;
    // the one in a pid namespace of its own does not know its number here; nor need the traced one run to be found
    let members = until("all members to be there", patience(), || {
        let inspect = s.json(&["inspect", &session])?;
        let mut pids: Vec<u32> = inspect["members"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()))
            .collect();
        pids.dedup();
        Ok((pids.len() >= 7).then_some(pids))
    })?;
    until("one to be traced", patience(), || Ok(members.iter().any(|pid| state_of(*pid) == Some('t')).then_some(())))?;
    let own = fs::read_link("/proc/self/ns/pid")?;
    let hidden = members.iter().filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != own));
    ensure!(hidden.count() > 0, "nobody is in a pid namespace of its own");
    s.cli(&["end", &session])?.ended(0)?;
    ensure!(members.iter().all(|pid| gone(*pid)), "end returned before all were gone: {members:?}");
    running.wait()?.ended(137)?;
    let end = s.session_ended(&session, "operator")?;
    receipted(&end, &[stopped, moved])
}

fn bomb(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, lit) = (s.program("member")?, s.file("lit"));
    // a guest has little memory
    let size = if in_guest() { "4 200" } else { "8 1000" };
    let running = s.run(&s.policy(&only(&member))?, &member, &format!("bomb {lit} {size}"))?;
    let session = running.session(s)?;
    until("the bomb to be lit", patience(), || Ok(Path::new(&lit).exists().then_some(())))?;
    let lit = boot_ns()?;
    let enough = if in_guest() { 40 } else { 400 };
    until("it to have grown", patience(), || {
        Ok((s.json(&["ps"])?["sessions"][0]["members"].as_u64() >= Some(enough)).then_some(()))
    })?;
    s.cli(&["end", &session])?.ended(0)?;
    running.wait()?.ended(137)?;
    let end = s.session_ended(&session, "operator")?;
    receipted(&end, &[])?;
    let states = s.records(&session, "state")?;
    let over = states.iter().find(|r| r["to"] == "ending").and_then(|r| r["boot_ns"].as_u64()).context("no end")?;
    // what was forked before it was said to be lit is not counted, so that the rate is no more than it was
    let forks = end["produced"]["fork"].as_u64().unwrap_or(0).saturating_sub(16);
    let rate = forks * 1_000_000_000 / over.saturating_sub(lit).max(1);
    eprintln!("a bomb of {rate} forks a second, {} receipts", end["receipts"].as_array().map_or(0, Vec::len));
    // an emulated processor makes what it can
    let least = if in_guest() { 10 } else { 1_000 };
    ensure!(rate >= least, "{rate} forks a second are no bomb: {forks} in {} ms", over.saturating_sub(lit) / 1_000_000);
    until("the session's cgroup to be gone", patience(), || Ok(s.nothing_of_sessions_is_left().is_ok().then_some(())))
}

/// A member waits for a lock of the kernel's, which nobody's signal reaches: this process holds it, in the midst of a
/// write to the same file. The member is reported as what it is, everything is refused to it, and it goes when it wakes.
fn uninterruptible(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, pid, file) = (s.program("member")?, s.file("pid"), s.file("locked"));
    let locked = LockedFile::new(Path::new(&file))?;
    let running =
        s.run(&s.policy(&only(&member))?, &member, &format!("background pid {pid} append {file} idle + idle"))?;
    let session = running.session(s)?;
    let pid = s.pid_in(&pid)?;
    in_state(pid, &['D'])?;
    let mut end = s.tipstaff();
    end.args(["end", &session]);
    let end = Running::spawn(s, end, None)?;
    let stuck = s.wait_evidence("a member that cannot die", |r| {
        r["type"] == "stuck" && r["session"] == session && r["tasks"].to_string().contains(&format!("\"pid\":{pid}"))
    })?;
    let tasks = stuck["tasks"].as_array().context("no tasks")?;
    ensure!(tasks.iter().any(|t| t["pid"] == pid && t["state"] == "D (disk sleep)"), "reported: {stuck}");
    ensure!(state_of(pid) == Some('D'), "it woke by itself");
    let row = &s.json(&["ps"])?["sessions"][0];
    ensure!(row["state"] == "ending" && row["why"] == "operator", "the session does not wait for it: {row}");
    let ending = s.json(&["inspect", &session])?["ending"].clone();
    ensure!(ending["since_ms"].as_u64() >= Some(1_000) && ending["mark_ms"].is_u64(), "it is due since {ending}");
    ensure!(s.records(&session, "session-end")?.is_empty(), "the session ended with a member in it");
    // the next agent knows since when it ends, and reports it again
    s.kill_agent()?;
    end.wait()?;
    let killed = s.evidence()?.len();
    s.start()?;
    until("the report by another agent", patience(), || {
        let stuck = s.evidence()?.into_iter().skip(killed).find(|r| r["type"] == "stuck" && r["session"] == session);
        Ok(stuck.filter(|r| r["tasks"].to_string().contains(&format!("\"pid\":{pid}"))).map(drop))
    })?;
    let still = s.json(&["inspect", &session])?["ending"].clone();
    ensure!(still["since_ms"].as_u64() >= ending["since_ms"].as_u64(), "it is due since {still}, after {ending}");
    ensure!(still["mark_ms"] == ending["mark_ms"], "the mark moved: {still}, after {ending}");
    locked.release()?;
    let end = s.session_ended(&session, "operator")?;
    receipted(&end, &[pid])?;
    ensure!(end["took"]["members_ms"].as_u64() >= ending["since_ms"].as_u64(), "it went before it woke: {end}");
    ensure!(end["took"]["flows_ms"].is_null(), "the end of flows that there were none of: {end}");
    running.wait()?.ended(137)?;
    Ok(())
}

/// The folder of the links of the programs in force.
fn layout(s: &Sandbox) -> Result<PathBuf> {
    let layout = fs::read_dir(s.pins())?.next().context("no pins")??.path();
    let folders = fs::read_dir(&layout)?.flatten().map(|entry| entry.path());
    folders.into_iter().find(|path| path.is_dir()).context("no links")
}

/// Pins of the clock's links.
fn clocks(s: &Sandbox) -> Result<Vec<String>> {
    let entries = fs::read_dir(layout(s)?)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut clocks: Vec<String> = names.filter(|name| name.starts_with("link_clock")).collect();
    clocks.sort();
    Ok(clocks)
}

/// Where no session came of it, nothing ticks.
fn failed_start(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let limit = s.part("sessions").path().join("cgroup.max.descendants");
    let before = fs::read_to_string(&limit)?;
    fs::write(&limit, "0")?;
    s.run(&policy, &member, "say in")?.wait()?.ended(125)?.said("")?.complained(&["make a cgroup in"])?;
    ensure!(clocks(s)?.is_empty(), "a start that failed left {:?}", clocks(s)?);
    fs::write(&limit, before.trim())?;
    let running = s.run(&policy, &member, "idle")?;
    let session = running.session(s)?;
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(clocks(s)?.len() >= cpus, "{:?} for {cpus} processors", clocks(s)?);
    s.cli(&["end", &session])?.ended(0)?;
    ensure!(clocks(s)?.is_empty(), "the last session left {:?}", clocks(s)?);
    Ok(())
}

/// Before the first member runs each processor has its clock, which ticks ten times a second and no more; after the last
/// session nothing does. The kernel itself counts the runs.
fn ticks(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, folder) = (s.program("member")?, layout(s)?);
    ensure!(clocks(s)?.is_empty(), "with no session there are {:?}", clocks(s)?);
    let line = format!("names {} idle", folder.display());
    let running = s.run(&s.policy(&only(&member))?, &member, &line)?;
    let session = running.session(s)?;
    let seen = until("the first member to look", patience(), || {
        let said = running.said();
        Ok(said.ends_with('\n').then_some(said))
    })?;
    let seen: Vec<&str> = seen.split_whitespace().filter(|name| name.starts_with("link_clock")).collect();
    let cpus = online()?;
    let armed = |cpu: &u32| seen.contains(&format!("link_clock{cpu}").as_str());
    ensure!(cpus.iter().all(armed), "the first member found {seen:?} for the processors {cpus:?}");
    let _counting = bpf::count_time()?;
    let clock = bpf::program_of(&folder.join(seen[0]))?;
    let runs = || Ok::<_, anyhow::Error>(bpf::stats(&clock)?.runs);
    let (start, before) = (Instant::now(), runs()?);
    let ran = |least: Duration| {
        until("time to pass", least + patience(), || Ok((start.elapsed() >= least).then_some(())))?;
        Ok::<_, anyhow::Error>((runs()? - before, start.elapsed()))
    };
    let (ran, took) = ran(Duration::from_secs(3))?;
    let most = (took.as_secs_f64() * 10.0 + 2.0) * seen.len() as f64;
    ensure!(ran > 0 && ran as f64 <= most, "{ran} ticks in {took:?} on {} processors", seen.len());
    s.cli(&["end", &session])?.ended(0)?;
    running.wait()?.ended(137)?;
    // whoever asked is answered before the pins are taken away, and the kernel lets go of a link some time after its pin
    until("the clocks to be put away", patience(), || Ok(clocks(s)?.is_empty().then_some(())))?;
    let (mut last, mut since) = (runs()?, Instant::now());
    until("ten ticks to be missed", patience(), || {
        let now = runs()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > Duration::from_secs(1)).then_some(()))
    })
}

/// The processors that are online, as the kernel lists them: `0-3,5`.
fn online() -> Result<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in fs::read_to_string("/sys/devices/system/cpu/online")?.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>()?..=last.parse::<u32>()?);
    }
    Ok(cpus)
}

/// A processor that was offline has a clock again: a member that spins there dies at its deadline, with the agent
/// stopped.
fn hotplug(s: &mut Sandbox) -> Result<()> {
    let switch = "/sys/devices/system/cpu/cpu1/online";
    s.start()?;
    let (member, pid) = (s.program("member")?, s.file("pid"));
    let line = format!("background pid {pid} spin + idle");
    let running = s.launch(&s.policy(&only(&member))?, &member, &line).ttl("40s").start()?;
    let session = running.session(s)?;
    let spinner = s.pid_in(&pid)?;
    let armed = |s: &Sandbox| -> Result<u64> {
        let path = layout(s)?.join("link_clock1");
        let found = fs::metadata(&path).with_context(|| format!("{} among {:?}", path.display(), clocks(s)))?;
        Ok(std::os::unix::fs::MetadataExt::ino(&found))
    };
    let before = armed(s)?;
    let pins = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let each = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
    pins.add_watch(&layout(s)?, each)?;
    fs::write(switch, "0").context(switch)?;
    fs::write(switch, "1").context(switch)?;
    until("the clock to be armed anew", patience(), || Ok(armed(s).is_ok_and(|inode| inode != before).then_some(())))?;
    // an agent that dies at any moment of it leaves that processor a pinned clock: the pin was only ever replaced. The new
    // number is seen before the kernel tells of the rename (`vfs_rename`, `fs/namei.c`)
    let mut seen = Vec::new();
    until("the clock's pin to be replaced", patience(), || {
        let told = match pins.read_events() {
            Err(nix::Error::EAGAIN) => return Ok(None),
            told => told?,
        };
        seen.extend(told.into_iter().filter(|event| event.name.as_deref() == Some("link_clock1".as_ref())));
        Ok((!seen.is_empty()).then_some(()))
    })?;
    let seen: Vec<AddWatchFlags> = seen.iter().map(|event| event.mask).collect();
    ensure!(seen.iter().all(|mask| mask.contains(AddWatchFlags::IN_MOVED_TO)), "the clock's pin: {seen:?}");
    // the spinner lives there from now on
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(1)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(i32::try_from(spinner)?), &cpus)?;
    s.signal_agent(nix::sys::signal::Signal::SIGSTOP)?;
    ensure!(!gone(spinner), "it was gone before its deadline");
    let deadline = s.records(&session, "session-start")?[0]["deadline_boot_ns"].as_u64().unwrap_or(0);
    crate::harness::wait::pass(deadline, Duration::from_millis(100))?;
    let died = all_gone(&[spinner]);
    s.signal_agent(nix::sys::signal::Signal::SIGCONT)?;
    died?;
    s.session_ended(&session, "ttl")?;
    running.wait()?.ended(137)?;
    Ok(())
}
