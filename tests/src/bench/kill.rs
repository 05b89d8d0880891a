//! `kill`: from a violation to the death of the process, and from the call to the end of a session.

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::{
    Ground,
    control::call,
    place,
    report::{Bound, Figures, Row, Target},
    watch::{Receiver, Watch},
    worker::Worker,
};
use crate::{
    harness::{
        locked::LockedFile,
        server::Server,
        wait::{boot_ns, patience, state_of, until},
    },
    work::measure::BEYOND,
};

/// Ends of a session with a member in uninterruptible sleep.
const SLEEPS: usize = 20;
/// Violations of each sort.
const TRIALS: usize = 200;
/// Sessions that are ended, with so many members and flows.
const ENDS: usize = 100;
const MEMBERS: u32 = 1_000;
const FLOWS: u32 = 100;

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: kill");
    place::pin(place::AGENT)?;
    let mut rows = violations(ground)?;
    place::unpin()?;
    place::hurry(false);
    eprintln!("bench: kill: {ENDS} ends of {MEMBERS} members");
    rows.extend(ends(ground)?);
    eprintln!("bench: kill: {SLEEPS} members in uninterruptible sleep");
    rows.extend(sleepers(ground)?);
    place::ordinary()?;
    Ok(rows)
}

fn violations(ground: &mut Ground) -> Result<Vec<Row>> {
    ground.start()?;
    let server = Server::tcp(&BEYOND.to_string())?;
    let policy = ground.sandbox.policy(&ground.programs.policy(1_000))?;
    let mut worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
    let mut rows = Vec::new();
    let target = Some(Target { name: "P7", bound: Bound::AtMost(1.0) });
    let one = ("errand 1", "trespass 1");
    for (what, (errand, trespass), bomb) in [
        ("one thread", one, false),
        ("64 threads", ("errand 64", "trespass 64"), false),
        ("a grandchild in a session of its own (setsid)", ("depart 0", "abscond 0"), false),
        ("one thread, which tries the peer by io_uring", ("ferry 1", "smuggle 1"), false),
        ("one thread, a fork bomb beside it", one, true),
    ] {
        let bomb = bomb.then(|| worker.ask("bomb")).transpose()?;
        let allowed = trials(&mut worker, &format!("{errand} {}", server.port()))?.0;
        let (times, survived) = trials(&mut worker, &format!("{trespass} {}", server.port()))?;
        if let Some(bomb) = bomb {
            worker.ask("defuse")?;
            let rate = forks(ground, &worker, bomb.parse()?)?;
            rows.push(Row { unit: "", ..row("forks a second of the bomb".to_owned(), None, Figures::Single(rate)) });
        }
        rows.push(row(format!("exec that is allowed to end, {what}"), None, Figures::Spread(allowed)));
        // where LSM programs decide, the exec fails, and the process ends by itself
        let how = if survived == TRIALS { "refused exec to end" } else { "forbidden exec to death" };
        rows.push(row(format!("{how}, {what}"), target, Figures::Spread(times)));
    }
    worker.end()?;
    let arrived = server.received().len();
    let untouched = server.untouched().is_ok();
    let found = format!("{arrived} bytes, {}", if untouched { "no connection" } else { "connections" });
    let holds = arrived == 0 && untouched;
    let exactly = Some(Target { name: "P7", bound: Bound::Exactly });
    rows.push(row("what a peer out of scope got".to_owned(), exactly, Figures::Exact { found, holds }));
    ground.stop()?;
    Ok(rows)
}

fn row(what: String, target: Option<Target>, figures: Figures) -> Row {
    Row { bench: "kill", what, unit: "ms", target, figures }
}

/// How many forks a second of one member are in the evidence.
fn forks(ground: &Ground, worker: &Worker, pid: u32) -> Result<f64> {
    let records = ground.sandbox.records(&ground.sandbox.session_of(worker.pid())?, "fork")?;
    let mine = records.iter().filter(|record| record["pid"] == pid);
    let times: Vec<u64> = mine.filter_map(|record| record["at_boot_ns"].as_u64()).collect();
    let span = times.iter().max().zip(times.iter().min()).map(|(last, first)| last - first);
    let span = span.filter(|span| *span > 0).context("the bomb made no two children")?;
    Ok((times.len() - 1) as f64 * 1e9 / span as f64)
}

/// The times in milliseconds, and how many were not killed.
fn trials(worker: &mut Worker, line: &str) -> Result<(Vec<f64>, usize)> {
    let (mut times, mut survived) = (Vec::with_capacity(TRIALS), 0);
    for _ in 0..TRIALS {
        let answer = worker.ask(line)?;
        let (ns, signal) = answer.split_once(' ').with_context(|| format!("{line}: {answer:?}"))?;
        times.push(ns.parse::<f64>()? / 1e6);
        survived += usize::from(signal == "0");
    }
    Ok((times, survived))
}

fn ends(ground: &mut Ground) -> Result<Vec<Row>> {
    ground.start()?;
    let policy = ground.sandbox.policy(&ground.programs.policy(1))?;
    let (mut members, mut flows, mut calls, mut unaware) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..ENDS {
        let receiver = Receiver::start()?;
        let mut worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
        let session = ground.sandbox.session_of(worker.pid())?;
        let crowd = worker.ask(&format!("crowd {MEMBERS} 0"))?;
        let sender = worker.ask(&format!("flows {FLOWS} {}", receiver.port))?;
        receiver.opened(u64::from(FLOWS))?;
        let mut watch = Watch::over(&format!("{crowd} {sender} {}", worker.pid()))?;
        let begin = boot_ns()?;
        let call = thread::spawn({
            let socket = ground.sandbox.folder().join("run/operate.sock");
            move || call(&socket, "End", &json!({"id": session, "reason": "operator"}))
        });
        let (left, last) = watch.wait(patience())?;
        ensure!(left == 0, "{left} members outlived the end of their session");
        call.join().map_err(|_panic| anyhow!("the call broke down"))??;
        let called = boot_ns()?;
        let ms = |ns: u64| ns.saturating_sub(begin) as f64 / 1e6;
        members.push(ms(last));
        calls.push(ms(called));
        flows.push(ms(receiver.last_sent_ns().max(begin)));
        // a peer that learns of it does so at once or not at all
        let _ = until("the peers to learn of it", Duration::from_millis(500), || {
            Ok((receiver.closed() >= u64::from(FLOWS)).then_some(()))
        });
        unaware += u64::from(FLOWS) - receiver.closed().min(u64::from(FLOWS));
    }
    ground.stop()?;
    let what = format!("end of {MEMBERS} members and {FLOWS} flows");
    let target = |bound| Some(Target { name: "P8", bound: Bound::AtMost(bound) });
    Ok(vec![
        row(format!("{what}: call to last death"), target(30.0), Figures::Spread(members)),
        row(format!("{what}: call to last byte at a peer"), target(250.0), Figures::Spread(flows)),
        row(format!("{what}: call to answer, receipts written"), target(250.0), Figures::Spread(calls)),
        Row {
            unit: "",
            ..row(
                format!("{what}: peers that did not learn of it, of {}", FLOWS * ENDS as u32),
                None,
                Figures::Single(unaware as f64),
            )
        },
    ])
}

/// What cannot die is reported, and gone when it wakes.
fn sleepers(ground: &mut Ground) -> Result<Vec<Row>> {
    ground.start()?;
    let s = &ground.sandbox;
    let policy = s.policy(&ground.programs.policy(1))?;
    let (mut deaths, mut ends, mut reported) = (Vec::new(), Vec::new(), 0);
    for _ in 0..SLEEPS {
        let (pid, file) = (s.file("pid"), s.file("locked"));
        let locked = LockedFile::new(file.as_ref())?;
        let line = format!("background pid {pid} append {file} nothing + idle");
        let running = s.run(&policy, &ground.programs.worker, &line)?;
        let (session, pid) = (running.session(s)?, s.pid_in(&pid)?);
        let mut watch = Watch::over(&pid.to_string())?;
        until("the member to sleep", patience(), || Ok((state_of(pid) == Some('D')).then_some(())))?;
        let ending = thread::spawn({
            let (socket, session) = (s.folder().join("run/operate.sock"), session.clone());
            move || call(&socket, "End", &json!({"id": session, "reason": "operator"}))
        });
        let stuck = s.wait_evidence("the report of it", |r| r["type"] == "stuck" && r["session"] == session)?;
        let is_it = |task: &serde_json::Value| task["pid"] == pid && task["state"] == "D (disk sleep)";
        reported += usize::from(stuck["tasks"].as_array().is_some_and(|tasks| tasks.iter().any(is_it)));
        let woken = boot_ns()?;
        locked.release()?;
        let (left, dead) = watch.wait(patience())?;
        ensure!(left == 0, "a member outlived its waking");
        ending.join().map_err(|_panic| anyhow!("the call broke down"))??;
        ends.push(boot_ns()?.saturating_sub(woken) as f64 / 1e6);
        deaths.push(dead.saturating_sub(woken) as f64 / 1e6);
        running.wait()?;
    }
    ground.stop()?;
    let what = "member in uninterruptible sleep";
    let (found, holds) = (format!("{reported} of {SLEEPS}"), reported == SLEEPS);
    Ok(vec![
        row(format!("{what}: reported as such"), None, Figures::Exact { found, holds }),
        row(format!("{what}: waking to death"), None, Figures::Spread(deaths)),
        row(format!("{what}: waking to the end of its session"), None, Figures::Spread(ends)),
    ])
}
