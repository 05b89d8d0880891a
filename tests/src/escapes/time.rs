//! Attempts to go on after the deadline: all of a user's in one session, which its time to live ends.

use std::{fs, path::Path};

use super::{
    attempt::{Attempt, EVERYBODY, Who},
    driver::Outcome,
    judge::{Judge, Seen},
    stage::{Part, Stage, USER},
};
use crate::harness::{
    prelude::*,
    wait::{all_gone, boot_ns, gone, in_guest, pass, slack},
};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::time("computes", "computing, without a call", "spin"),
    Attempt::time("sleeps", "sleeping", "idle"),
    Attempt::time("deaf", "ignoring the signal to end", "deaf idle"),
    Attempt::time("stopped", "being stopped", "stop"),
    Attempt::time("traced", "being traced, and stopped by it", "traced idle"),
    Attempt::time("orphan", "a daemon, its parent gone", "act orphan idle"),
    Attempt::time("own-cgroup", "in a cgroup below the session's", "nest idle"),
    Attempt::time("other-cgroup", "in another cgroup", "cgroup {elsewhere} idle"),
    Attempt::time("process-namespace", "as the first process of a namespace", "unshare pid idle"),
    Attempt::time("forks", "making a child every few milliseconds", "strive fork {mark}"),
    Attempt::time("executes", "becoming a program again and again", "strive exec {mark} {member}"),
    Attempt::time("connects", "connecting again and again", "strive connect {mark} {ip} {port}"),
    Attempt::time("datagrams", "sending datagrams on a socket that it has", "strive send {ip} {port}"),
    Attempt::time("flow", "sending on a connection that it has", "flow {ip} {port}"),
];

/// A session with a process for each attempt.
struct Timed {
    who: Who,
    session: String,
    /// The first process: its id, and itself.
    running: Running,
    deadline: u64,
    /// Of each attempt, and whether it ran before the deadline.
    processes: Vec<(u32, bool)>,
}

/// Makes the attempts, whose numbers begin with `first`.
pub(super) fn matrix(s: &Sandbox, stage: &Stage<'_>, judge: &mut Judge<'_>, first: usize) -> Result<()> {
    let timed: Vec<Timed> = EVERYBODY.iter().map(|who| begin(s, stage, *who, first)).collect::<Result<_>>()?;
    for one in timed {
        pass(one.deadline, slack())?;
        let all: Vec<u32> = one.processes.iter().map(|(pid, _)| *pid).chain([one.running.pid()]).collect();
        // whoever is left is found one by one below
        let _ = all_gone(&all);
        s.session_ended(&one.session, "ttl")?;
        judge.session(one.who, one.session.clone());
        stage.look()?;
        for (index, (attempt, (pid, ran))) in ATTEMPTS.iter().zip(&one.processes).enumerate() {
            let part = Part { who: one.who, number: first + index, twin: true };
            let stamps = stamps(stage, attempt, part)?;
            let limit = one.deadline + u64::try_from(slack().as_nanos())?;
            let late = stamps.iter().any(|stamp| *stamp > limit);
            let told = |status: &str, did| {
                let (status, answer) = (status.to_owned(), status.to_owned());
                Seen { outcome: Outcome { begun: one.deadline, ended: boot_ns().unwrap_or(0), status, answer }, did }
            };
            let status = if gone(*pid) { "signal 9" } else { "hung" };
            judge.saw(Part { twin: false, ..part }, told(status, late));
            let worked = *ran && (!leaves_stamps(attempt) || !stamps.is_empty());
            judge.saw(part, told("exit 0", worked));
        }
    }
    Ok(())
}

fn leaves_stamps(attempt: &Attempt) -> bool {
    attempt.words.contains("{mark}") || attempt.words.contains("{ip}")
}

/// When it did what it does, nanoseconds of `CLOCK_BOOTTIME`: by its file, or by what it sent.
fn stamps(stage: &Stage<'_>, attempt: &Attempt, part: Part) -> Result<Vec<u64>> {
    if attempt.words.contains("{mark}") {
        let bytes = fs::read(stage.mark(part)).unwrap_or_default();
        return Ok(bytes.as_chunks().0.iter().map(|stamp| u64::from_be_bytes(*stamp)).collect());
    }
    Ok(if attempt.words.contains("{ip}") { stage.stamps(attempt, part) } else { Vec::new() })
}

fn begin(s: &Sandbox, stage: &Stage<'_>, who: Who, first: usize) -> Result<Timed> {
    let part = |index: usize| Part { who, number: first + index, twin: true };
    let files: Vec<String> = (0..ATTEMPTS.len()).map(|index| stage.pid_file(part(index))).collect();
    let one = |(index, attempt): (usize, &Attempt)| {
        format!("background pid {} {}", files[index], stage.words(attempt, part(index)))
    };
    let line: Vec<String> = ATTEMPTS.iter().enumerate().map(one).chain(["idle".to_owned()]).collect();
    let policy = stage.policy(who).ttl(if in_guest() { "30s" } else { "6s" });
    let mut launch = s.launch(&s.policy(&policy)?, &stage.member, &line.join(" + "));
    if who == Who::User {
        launch = launch.user(USER.0, USER.1);
    }
    let running = launch.start()?;
    let session = running.session(s)?;
    let started = s.records(&session, "session-start")?;
    let deadline =
        started.first().and_then(|r| r["deadline_boot_ns"].as_u64()).context("a start without a deadline")?;
    let pids = files.iter().map(|file| s.pid_in(file)).collect::<Result<Vec<u32>>>()?;
    let works =
        |index: usize| !ATTEMPTS[index].words.contains("{mark}") || Path::new(&stage.mark(part(index))).exists();
    let working = until("all to work", patience(), || {
        let waits = (0..pids.len()).any(|index| !works(index));
        Ok((!waits || boot_ns()? > deadline).then_some(()))
    });
    working?;
    let processes = pids.into_iter().map(|pid| (pid, !gone(pid))).collect();
    ensure!(boot_ns()? < deadline, "to begin took until the deadline");
    Ok(Timed { who, session, running, deadline, processes })
}
