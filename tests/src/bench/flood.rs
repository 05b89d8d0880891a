//! `flood`: more records than the agent can read. What they cost it, and that none goes missing without being counted.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Ground, place,
    report::{Bound, Figures, Row, Target},
    worker::Worker,
};
use crate::harness::wait::{patience, until};

/// Connects of a flood without pause.
const FLOOD: u32 = 400_000;
/// Connects of one call where the rate is kept; so many a millisecond make the rate.
const PACES: [(u32, u32); 2] = [(100_000, 100), (200_000, 200)];
/// Milliseconds for which a rate is kept.
const MILLISECONDS: u32 = 1_000;

/// What came of a flood.
struct Flooded {
    sent: u64,
    seconds: f64,
    agent_ns: u64,
    produced: u64,
    consumed: u64,
    lost: u64,
}

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: flood");
    place::pin(place::AGENT)?;
    let mut rows = Vec::new();
    for (rate, part) in PACES {
        let flooded = flood(ground, |worker, _| pace(worker, part))?;
        let name = format!("{} connects a second asked for", rate);
        rows.extend(about(&name, &flooded));
        let found = format!("{} of {}", flooded.lost, flooded.produced);
        let figures = Figures::Single(flooded.lost as f64);
        let target = Some(Target { name: "P6", bound: Bound::AtMost(0.0) });
        rows.push(Row { bench: "flood", what: format!("{name}: lost ({found})"), unit: "", target, figures });
    }
    let flat_out = flood(ground, |worker, _| worker.time("udp-connect", FLOOD).map(|_| u64::from(FLOOD)))?;
    rows.extend(about("connects without pause", &flat_out));
    let stopped = flood(ground, |worker, ground| {
        ground.sandbox.signal_agent(Signal::SIGSTOP)?;
        let sent = pace(worker, 200);
        ground.sandbox.signal_agent(Signal::SIGCONT)?;
        sent
    })?;
    rows.push(exact("the agent stopped for a second", &stopped));
    Ok(rows)
}

/// An agent, a session, `how` in it, and the account of it.
fn flood(ground: &mut Ground, how: impl FnOnce(&mut Worker, &Ground) -> Result<u64>) -> Result<Flooded> {
    ground.start()?;
    let agent = ground.sandbox.agent_pid()?;
    let policy = ground.sandbox.policy(&ground.programs.policy(1))?;
    let mut worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
    place::quiet(agent)?;
    let (before, begin) = (place::ran_ns(agent)?, Instant::now());
    let sent = how(&mut worker, ground)?;
    let seconds = begin.elapsed().as_secs_f64();
    place::quiet(agent)?;
    let agent_ns = place::ran_ns(agent)? - before;
    worker.end()?;
    let end = until("the end of the session", patience(), || session_end(ground))?;
    let count = |part: &str| end[part]["connect"].as_u64().unwrap_or(0);
    let (produced, consumed, lost) = (count("produced"), count("consumed"), count("lost"));
    ground.stop()?;
    Ok(Flooded { sent, seconds, agent_ns, produced, consumed, lost })
}

/// So many connects each millisecond, as far as the machine keeps up.
fn pace(worker: &mut Worker, part: u32) -> Result<u64> {
    let begin = Instant::now();
    for n in 0..MILLISECONDS {
        worker.time("udp-connect", part)?;
        let due = begin + Duration::from_millis(u64::from(n));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(u64::from(part) * u64::from(MILLISECONDS))
}

/// The last record of the evidence that ends a session. Other records are not parsed: there are many.
fn session_end(ground: &Ground) -> Result<Option<Value>> {
    let text = fs::read_to_string(ground.sandbox.evidence_file())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = whole.lines().rfind(|line| line.contains("\"type\":\"session-end\""));
    line.map(|line| serde_json::from_str(line).context("session-end")).transpose()
}

fn about(name: &str, flooded: &Flooded) -> Vec<Row> {
    let row =
        |what: String, unit, target, value| Row { bench: "flood", what, unit, target, figures: Figures::Single(value) };
    let each = flooded.agent_ns as f64 / flooded.consumed.max(1) as f64;
    let most = Some(Target { name: "P5", bound: Bound::AtMost(1_500.0) });
    vec![
        row(format!("{name}: reached, a second"), "", None, flooded.sent as f64 / flooded.seconds),
        row(format!("{name}: agent, a record"), "ns", most, each),
        exact(name, flooded),
    ]
}

/// Every connect produced a record, and every record was read or counted as lost.
fn exact(name: &str, flooded: &Flooded) -> Row {
    let Flooded { sent, produced, consumed, lost, .. } = *flooded;
    let found = format!("{sent} sent, {produced} = {consumed} + {lost}");
    let holds = sent == produced && produced == consumed + lost;
    let figures = Figures::Exact { found, holds };
    let target = Some(Target { name: "P6", bound: Bound::Exactly });
    Row { bench: "flood", what: format!("{name}: produced = consumed + lost"), unit: "", target, figures }
}
