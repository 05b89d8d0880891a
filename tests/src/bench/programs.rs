//! `programs`: what the kernel itself counts: the time of each of the agent's programs, beside that of an empty one, and
//! what the verifier walked through. In a pass of its own, because the counting costs two readings of the clock a run,
//! which an empty program shows.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{
    Ground,
    floor::Floor,
    place,
    report::{Figures, Row},
    worker::Worker,
};
use crate::harness::bpf::{self, Stats};

/// What is done in the session and out of it, and how often.
const OPERATIONS: [(&str, u32); 7] = [
    ("udp-connect", 5_000),
    ("udp-pair", 5_000),
    ("tcp-connect", 1_000),
    ("ping-pong", 5_000),
    ("stream", 2_000),
    ("fork", 300),
    ("vfork-exec", 300),
];
/// Rules of the session.
const RULES: u32 = 10_000;

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: programs");
    place::pin(place::AGENT)?;
    ground.start()?;
    let counting = bpf::count_time().context("the kernel does not count the time of programs")?;
    let pins = ground.sandbox.pins().to_owned();
    let before = all(&pins)?;
    let policy = ground.sandbox.policy(&ground.programs.policy(RULES))?;
    work(Worker::inside(&ground.programs, &ground.sandbox, &policy)?)?;
    let after = all(&pins)?;
    let elsewhere = ground.sandbox.part("elsewhere");
    let floor = Floor::attach(&elsewhere)?;
    work(Worker::outside(&ground.programs, &elsewhere)?)?;
    let empty = |hook: &str| floor.stats(hook).map(|stats| each(&stats)).unwrap_or(0.0);
    let mut rows = vec![
        row("an empty program on connect4", empty("connect4")),
        row("an empty program on egress", empty("egress")),
    ];
    for (name, stats) in &after {
        let known = before.get(name).copied().unwrap_or_default();
        let during = Stats { run_ns: stats.run_ns - known.run_ns, runs: stats.runs - known.runs, ..*stats };
        if during.runs > 0 {
            let what = format!("{name}, {} runs, {} instructions verified", during.runs, during.verified);
            rows.push(row(&what, each(&during)));
        }
    }
    drop((floor, counting));
    ground.stop()?;
    Ok(rows)
}

fn row(what: &str, ns: f64) -> Row {
    Row { bench: "programs", what: what.to_owned(), unit: "ns", target: None, figures: Figures::Single(ns) }
}

fn each(stats: &Stats) -> f64 {
    stats.run_ns as f64 / stats.runs.max(1) as f64
}

fn work(mut worker: Worker) -> Result<()> {
    OPERATIONS.iter().try_for_each(|(operation, count)| worker.time(operation, *count).map(drop))?;
    worker.end()
}

/// What was counted for each program that the agent has pinned by its link. Tracing programs run for every task of the
/// host: theirs is the mean of members and of others.
fn all(pins: &Path) -> Result<BTreeMap<String, Stats>> {
    let mut found = BTreeMap::new();
    for load in loads(pins)? {
        for pin in fs::read_dir(&load)?.flatten() {
            let file = pin.file_name().to_string_lossy().into_owned();
            // an iterator's link runs nothing by itself; the clock's program is one, with a link for each processor
            let skipped = |name: &str| name == "members" || (name.starts_with("clock") && name != "clock0");
            let Some(name) = file.strip_prefix("link_").filter(|name| !skipped(name)) else { continue };
            let program = bpf::program_of(&pin.path()).with_context(|| file.clone())?;
            found.insert(name.to_owned(), bpf::stats(&program)?);
        }
    }
    ensure!(!found.is_empty(), "the agent has pinned no program below {}", pins.display());
    Ok(found)
}

/// The folders of the loads that are in force, in those of their layouts.
fn loads(pins: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for layout in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let inside = fs::read_dir(layout?.path())?.flatten().map(|load| load.path());
        found.extend(inside.filter(|load| load.is_dir()));
    }
    Ok(found)
}
