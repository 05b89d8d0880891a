//! `start`: how long the agent takes to start, what it takes while it has nothing to do, and how long a session takes to
//! start.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    Ground, place,
    report::{Bound, Figures, Row, Target},
};
use crate::harness::{launch::enter, wait::patience};

/// Agents that are started.
const STARTS: usize = 10;
/// How long an agent is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(5);
/// Sessions that are started.
const SESSIONS: usize = 20;

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: start");
    let (mut ready, mut ran) = (Vec::new(), Vec::new());
    for left in (0..STARTS).rev() {
        ready.push(start(ground)?);
        ran.push(place::ran_ns(ground.sandbox.agent_pid()?)? as f64 / 1e6);
        if left > 0 {
            ground.stop()?;
        }
    }
    let mut rows = vec![
        row("agent: exec to ready", "ms", Some(150.0), Figures::Spread(ready)),
        row("of this on a processor", "ms", None, Figures::Spread(ran)),
    ];
    let agent = ground.sandbox.agent_pid()?;
    place::quiet(agent)?;
    let before = (place::ran_ns(agent)?, wakeups(agent)?);
    thread::sleep(IDLE);
    let after = (place::ran_ns(agent)?, wakeups(agent)?);
    let share = (after.0 - before.0) as f64 / IDLE.as_nanos() as f64 * 100.0;
    rows.push(row("agent without sessions: processor", "%", Some(0.05), Figures::Single(share)));
    let count = after.1 - before.1;
    rows.push(row(
        &format!("agent without sessions: wake-ups in {} s", IDLE.as_secs()),
        "",
        Some(0.0),
        Figures::Single(count as f64),
    ));
    let resident = place::status(agent, "VmRSS")? as f64 / 1024.0;
    rows.push(row("agent without sessions: resident", "MiB", Some(15.0), Figures::Single(resident)));
    rows.extend(sessions(ground)?);
    place::quiet(agent)?;
    let resident = place::status(agent, "VmRSS")? as f64 / 1024.0;
    let what = format!("agent after {} sessions: resident", 2 * SESSIONS);
    rows.push(row(&what, "MiB", Some(15.0), Figures::Single(resident)));
    // most of which is the kernel's type information, read at the start and given back
    let peak = place::status(agent, "VmHWM")? as f64 / 1024.0;
    rows.push(row("agent: resident at most since its start", "MiB", None, Figures::Single(peak)));
    ground.stop()?;
    Ok(rows)
}

fn row(what: &str, unit: &'static str, most: Option<f64>, figures: Figures) -> Row {
    let target = most.map(|most| Target { name: "P12", bound: Bound::AtMost(most) });
    Row { bench: "start", what: what.to_owned(), unit, target, figures }
}

/// Starts an agent; milliseconds until it said that it is ready.
fn start(ground: &mut Ground) -> Result<f64> {
    let log = ground.sandbox.log();
    let said = move || fs::read_to_string(&log).unwrap_or_default().matches("tipstaff: ready").count();
    let goal = said() + 1;
    let (begin, over) = (Instant::now(), AtomicBool::new(false));
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while said() < goal && !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_micros(200));
            }
            begin.elapsed()
        });
        let started = ground.start();
        over.store(true, Ordering::Relaxed);
        let took = watch.join().map_err(|_panic| anyhow!("the watch over a start broke down"))?;
        started.map(|()| took.as_secs_f64() * 1000.0)
    })
}

/// How often the process was given a processor after it had waited.
fn wakeups(pid: u32) -> Result<u64> {
    place::status(pid, "voluntary_ctxt_switches")
}

/// A program that does nothing, started directly and by `tipstaff run`.
fn sessions(ground: &Ground) -> Result<Vec<Row>> {
    let policies = [ground.programs.policy(1), ground.programs.policy(10_000)];
    let policies = [ground.sandbox.policy(&policies[0])?, ground.sandbox.policy(&policies[1])?];
    let nothing = &ground.programs.nothing;
    let (mut directly, mut in_session) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..SESSIONS {
        directly.push(time(ground, Command::new(nothing))?);
        for (policy, times) in policies.iter().zip(&mut in_session) {
            let mut run = ground.sandbox.tipstaff();
            run.args(["run", "--policy", policy, "--", nothing]);
            times.push(time(ground, run)?);
        }
    }
    let [few, many] = in_session;
    let row = |what: &str, values| Row {
        bench: "start",
        what: what.to_owned(),
        unit: "ms",
        target: None,
        figures: Figures::Spread(values),
    };
    Ok(vec![
        row("a program that does nothing: exec to end", directly),
        row("the same by `tipstaff run`, 1 rule", few),
        row("the same by `tipstaff run`, 10,000 rules", many),
    ])
}

fn time(ground: &Ground, mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null());
    enter(&mut command, ground.sandbox.callers(), None)?;
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
    let took = begin.elapsed();
    ensure!(status.success() && took < patience(), "{command:?} ended with {status}");
    Ok(took.as_secs_f64() * 1000.0)
}
