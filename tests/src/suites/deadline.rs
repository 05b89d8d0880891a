//! A deadline holds whatever becomes of the agent: to the last moment members work, and from it on nothing does.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{
    limits::in_seconds,
    scene::{Fifo, only, refused_exec, stamps},
};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, boot_ns, gone, in_guest, pass, slack},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("deadline::holds-with-the-agent-alive", WHEREVER, |s| holds(s, Fate::Alive)).agents_own(),
    Test::new("deadline::holds-with-the-agent-stopped", WHEREVER, |s| holds(s, Fate::Stopped)),
    Test::new("deadline::holds-with-the-agent-killed", WHEREVER, |s| holds(s, Fate::Killed)),
    Test::sharing("deadline::every-limit-is-the-kernels", WHEREVER, every_limit),
    Test::new("deadline::holds-while-an-agent-replaces-another", WHEREVER, |s| holds(s, Fate::Replaced)).agents_own(),
];

/// What becomes of the agent before the deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Alive,
    Stopped,
    Killed,
    /// Killed, and another one is starting while the deadline passes.
    Replaced,
}

/// A member that sleeps until it is woken, and what it says then.
struct Sleeper {
    what: &'static str,
    fifo: Fifo,
    answer: String,
    pid: u32,
    /// What it hears where it lives to hear it.
    expected: &'static str,
}

/// A session in which members do one thing each all the time, one computes, and others sleep.
struct Scene {
    running: Running,
    session: String,
    deadline: u64,
    spinner: u32,
    pids: Vec<u32>,
    sleepers: Vec<Sleeper>,
    /// Has an open connection, whose member sleeps.
    holder: Sleeper,
    /// Files of the times at which each thing worked.
    worked: [(&'static str, String); 3],
    /// What the sleepers would leave behind.
    marks: [(&'static str, String); 3],
    told: Server,
    held: Server,
    /// In scope, and asked for by sleepers only.
    unreached: Server,
    untold: Server,
}

impl Scene {
    fn new(s: &Sandbox) -> Result<Self> {
        let (member, good) = (s.program("member")?, s.program("good")?);
        let tcp = || Server::tcp("127.0.0.1");
        let udp = || Server::udp("127.0.0.1");
        let (reached, held, unreached, told, untold) = (tcp()?, tcp()?, tcp()?, udp()?, udp()?);
        let servers = [&reached, &held, &unreached, &told, &untold];
        let policy = only(&member).allow("good", &good);
        let policy = servers
            .iter()
            .fold(policy, |policy, server| policy.to(&format!("at-{}", server.port()), "127.0.0.1/32", server.port()));
        let worked = ["exec", "fork", "connect"].map(|what| (what, s.file("worked")));
        let marks = ["spawn", "exec", "fork"].map(|what| (what, s.file("mark")));
        let (mut parts, mut files) = (Vec::new(), Vec::new());
        let mut add = |before: &str, action: &str| {
            let pid = s.file("pid");
            parts.push(format!("{before} pid {pid} {action}"));
            files.push(pid);
        };
        add("background", "spin");
        add("background", &format!("strive exec {} {good}", worked[0].1));
        add("background", &format!("strive fork {}", worked[1].1));
        add("background", &format!("strive connect {} {}", worked[2].1, reached.words()));
        add("background", &format!("strive send {}", told.words()));
        // what is made of sockets is made before: a session that is over gets none
        let asleep = [
            ("spawn", format!("fifo FIFO spawn {good} --work mark {}", marks[0].1), refused_exec(s)),
            ("exec", format!("fifo FIFO exec {good} --work mark {}", marks[1].1), "errno 1"),
            ("fork", format!("fifo FIFO fork mark {}", marks[2].1), "errno 1"),
            ("connect", format!("late connect FIFO {}", unreached.words()), "errno 1"),
            ("send", format!("late send FIFO {}", untold.words()), "errno 1"),
        ];
        let mut sleepers = Vec::new();
        for (what, action, expected) in asleep {
            let (fifo, answer) = (Fifo::new(s)?, s.file("answer"));
            add(&format!("background report {answer}"), &action.replace("FIFO", &fifo.path));
            sleepers.push(Sleeper { what, fifo, answer, pid: 0, expected });
        }
        let (fifo, answer) = (Fifo::new(s)?, s.file("answer"));
        add(&format!("background report {answer}"), &format!("hold {} {}", held.words(), fifo.path));
        let mut holder = Sleeper { what: "flow", fifo, answer, pid: 0, expected: "" };
        add("daemonise", "idle");
        add("", "idle");
        let ttl = if in_guest() { "20s" } else { "6s" };
        let running = s.launch(&s.policy(&policy)?, &member, &parts.join(" + ")).ttl(ttl).start()?;
        let session = running.session(s)?;
        let pids = files.iter().map(|file| s.pid_in(file)).collect::<Result<Vec<_>>>()?;
        sleepers.iter_mut().zip(&pids[5..]).for_each(|(sleeper, pid)| sleeper.pid = *pid);
        holder.pid = pids[10];
        let start = s.records(&session, "session-start")?;
        let deadline = start[0]["deadline_boot_ns"].as_u64().context("session-start without a deadline")?;
        Ok(Self {
            running,
            session,
            deadline,
            spinner: pids[0],
            pids,
            sleepers,
            holder,
            worked,
            marks,
            told,
            held,
            unreached,
            untold,
        })
    }

    /// Each thing that is done all the time, and when it worked.
    fn times(&self) -> Vec<(&'static str, Vec<u64>)> {
        let read = |file: &String| std::fs::read(file).unwrap_or_default();
        let files = self.worked.iter().map(|(what, file)| (*what, stamps(&read(file))));
        files.chain([("send", stamps(&self.told.received()))]).collect()
    }

    fn wake(&mut self, s: &Sandbox) -> Result<()> {
        self.sleepers.iter_mut().chain([&mut self.holder]).try_for_each(|sleeper| sleeper.fifo.wake())?;
        for Sleeper { what, answer, pid, expected, .. } in &self.sleepers {
            // one that wakes may be killed by the clock before it has said anything
            let said = until("a woken member to fail", patience(), || {
                let text = std::fs::read_to_string(answer)?;
                Ok((!text.is_empty() || gone(*pid)).then(|| text.trim_end().to_owned()))
            })?;
            ensure!(said.is_empty() || said == *expected, "{what} after the deadline was answered {said:?}");
        }
        let said = || std::fs::read_to_string(&self.holder.answer);
        until("the flow to have been tried", patience(), || {
            Ok((gone(self.holder.pid) || said()?.lines().count() >= 4).then_some(()))
        })?;
        ensure!(!said()?.contains("received 4"), "a packet reached a member after the deadline: {:?}", said()?);
        // without BPF LSM a child lives until the clock ticks, and only who made it is killed at once
        let lives = |what: &str| s.tier == Tier::NoLsm && what == "fork";
        let ran = self.marks.iter().find(|(what, mark)| std::fs::exists(mark).unwrap_or(true) && !lives(what));
        ensure!(ran.is_none(), "after the deadline {ran:?} left its mark");
        Ok(())
    }

    /// Everything worked while it might, and with the agent away too; not once did it when it was begun after the deadline.
    fn nothing_was_late(&self, s: &Sandbox, away: Option<u64>) -> Result<()> {
        for (what, times) in self.times() {
            let late = times.iter().filter(|begun| **begun >= self.deadline).count();
            let last = times.iter().copied().filter(|begun| *begun < self.deadline).max().unwrap_or(0);
            ensure!(last > away.unwrap_or(0), "no {what} worked between the agent's end and the deadline");
            let most = usize::from(s.tier == Tier::NoLsm && what == "fork");
            ensure!(late <= most, "{late} of {} times {what} worked after the deadline", times.len());
        }
        self.unreached.untouched()?;
        self.untold.untouched()?;
        ensure!(self.held.received() == b"a", "the server received {:?}", self.held.received());
        self.held.accepted(1)
    }
}

/// At the deadline what computes dies, and whatever a member starts, makes, reaches or sends fails; what sleeps goes as
/// soon as there is an agent.
fn holds(s: &mut Sandbox, fate: Fate) -> Result<()> {
    let start = Instant::now();
    s.start()?;
    let starting = start.elapsed();
    let mut scene = Scene::new(s)?;
    until("the flow to be established", patience(), || Ok((scene.held.received() == b"a").then_some(())))?;
    until("all to have worked", patience(), || {
        Ok(scene.times().iter().all(|(_, times)| !times.is_empty()).then_some(()))
    })?;
    match fate {
        Fate::Alive => {}
        Fate::Stopped => s.signal_agent(Signal::SIGSTOP)?,
        Fate::Killed | Fate::Replaced => s.kill_agent()?,
    }
    let away = (fate != Fate::Alive).then(boot_ns).transpose()?;
    let successor = (fate == Fate::Replaced).then(|| in_the_midst(s, scene.deadline, starting)).transpose()?;
    pass(scene.deadline, slack())?;
    all_gone(&[scene.spinner]).context("a member that only computes")?;
    let alone = matches!(fate, Fate::Stopped | Fate::Killed);
    // an agent that is there has cut it
    let sent = scene.held.send(b"late");
    ensure!(sent.is_ok() || !alone, "the connection is gone: {sent:?}");
    scene.wake(s)?;
    match (fate, successor) {
        (Fate::Stopped, _) => s.signal_agent(Signal::SIGCONT)?,
        (Fate::Killed, _) => s.start()?,
        (_, Some(agent)) => s.ready(agent)?,
        _ => {}
    }
    all_gone(&scene.pids)?;
    let end = s.session_ended(&scene.session, "ttl")?;
    scene.nothing_was_late(s, away)?;
    scene.running.wait()?.ended(137)?;
    if alone {
        ensure!(end["packets_dropped"].as_u64() > Some(0), "packets_dropped is {}", end["packets_dropped"]);
        let refused = s.records(&scene.session, "connect")?.into_iter().filter(|r| r["rule"] == "expired").count();
        ensure!(refused > 0, "no record says that the session was over");
    }
    if fate == Fate::Replaced {
        let ready =
            s.evidence()?.into_iter().filter(|r| r["type"] == "agent-start").filter_map(|r| r["boot_ns"].as_u64());
        ensure!(ready.max() > Some(scene.deadline), "the new agent was there before the deadline");
    }
    Ok(())
}

/// Limits beside the ttl, with the agent stopped: what is idle, and whose credential expires, is over at its time. A session
/// without such a limit goes on.
fn every_limit(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::tcp("127.0.0.1")?);
    let policy = || only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
    let after = if in_guest() { 20 } else { 6 };
    let idle = s.policy(&policy().limit(format!("idle: {{ after: {after}s, activity: [exec] }}")))?;
    let plain = s.policy(&policy())?;
    let start = |policy: &str, expires: Option<String>| -> Result<(Running, String, u32, Fifo, String, u64)> {
        let (fifo, pid, mark) = (Fifo::new(s)?, s.file("pid"), s.file("mark"));
        let late = format!("fifo {} connect tcp {} + spawn {good} --work mark {mark}", fifo.path, server.words());
        let launch = s.launch(policy, &member, &format!("background pid {pid} spin + {late}"));
        let running = expires.iter().fold(launch, |launch, at| launch.flag("--credential-expires", at)).start()?;
        let session = running.session(s)?;
        let left = s.json(&["inspect", &session])?["limits"]["left_ms"].as_u64().context("no time is left")?;
        Ok((running, session, s.pid_in(&pid)?, fifo, mark, boot_ns()? + left * 1_000_000))
    };
    let over = [start(&idle, None)?, start(&plain, Some(in_seconds(after)?))?];
    let mut goes_on = start(&plain, None)?;
    s.signal_agent(Signal::SIGSTOP)?;
    // what an agent would have seen late is allowed for: a second
    let last = over.iter().map(|session| session.5).max().unwrap_or(0);
    pass(last, Duration::from_secs(1) + slack())?;
    let tried = over.map(|(running, session, spinner, mut fifo, mark, _)| {
        // on a busy host a tick does not always find it running
        all_gone(&[spinner]).with_context(|| format!("what computes, after the end of session {session}"))?;
        fifo.wake()?;
        Ok::<_, anyhow::Error>((running, session, mark))
    });
    goes_on.3.wake()?;
    server.accepted(1)?;
    ensure!(!gone(goes_on.2), "what computes died in a session without such a limit");
    s.signal_agent(Signal::SIGCONT)?;
    for (tried, reason) in tried.into_iter().zip(["idle", "credential-expired"]) {
        let (running, session, mark) = tried?;
        s.session_ended(&session, reason)?;
        // its first process may have come to its own end, with all that it tried refused
        running.wait()?;
        ensure!(!std::fs::exists(&mark)?, "a program ran after the end ({reason})");
    }
    until("the other session to do what it was woken for", patience(), || {
        Ok(std::fs::exists(&goes_on.4)?.then_some(()))
    })?;
    server.accepted(1)?;
    goes_on.0.wait()?.ended(0)?;
    s.session_ended(&goes_on.1, "completed").map(drop)
}

/// Starts an agent so that the deadline passes before it is ready.
fn in_the_midst(s: &mut Sandbox, deadline: u64, starting: Duration) -> Result<crate::harness::agent::Agent> {
    let lead = (starting / 10).max(2 * slack());
    let before = |by: Duration| Ok::<_, anyhow::Error>(deadline.saturating_sub(u64::try_from(by.as_nanos())?));
    pass(before(lead)?, Duration::ZERO)?;
    let agent = s.start_unready()?;
    ensure!(boot_ns()? < deadline, "the new agent began after the deadline");
    // however fast it is, it is in the midst of its start at the deadline
    pass(before(lead / 2)?, Duration::ZERO)?;
    agent.signal(Signal::SIGSTOP)?;
    pass(deadline, Duration::ZERO)?;
    agent.signal(Signal::SIGCONT)?;
    Ok(agent)
}
