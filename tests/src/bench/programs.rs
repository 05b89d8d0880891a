//! `programs`: what the kernel itself counts: the time of each of the agent's programs, beside that of an empty one, and
//! what the verifier walked through. In a pass of its own, because the counting costs two readings of the clock a run,
//! which an empty program shows.

use anyhow::{Context, Result};

use super::{
    Ground,
    floor::Floor,
    hooks::Hooks,
    place,
    report::{Figures, Row},
    worker::Worker,
};
use crate::harness::bpf::{self, Stats, stats_of};

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
    let before = stats_of(&pins)?;
    let policy = ground.sandbox.policy(&ground.programs.policy(RULES))?;
    work(Worker::inside(&ground.programs, &ground.sandbox, &policy)?)?;
    let after = stats_of(&pins)?;
    let elsewhere = ground.sandbox.part("elsewhere");
    let labels = bpf::Map::of(&ground.sandbox, "SOCKET_LABELS")?;
    let (floor, hooks) = (Floor::with_labels(&elsewhere, &labels)?, Hooks::attach()?);
    work(Worker::outside(&ground.programs, &elsewhere)?)?;
    let mut empty = hooks.counted()?;
    for hook in ["connect4", "egress"] {
        empty.push((hook, floor.stats(hook)?));
    }
    let mut rows: Vec<Row> =
        empty.iter().map(|(name, counted)| row(&format!("an empty program on {name}"), each(counted))).collect();
    let labelling = "a program on sock_create that gives the socket a label and does nothing else";
    rows.push(row(labelling, each(&floor.stats("sock_create")?)));
    for (name, stats) in &after {
        let during = since(*stats, before.get(name).copied());
        if during.runs > 0 {
            let hook = place_of(name);
            let beside = empty.iter().find(|(empty, _)| *empty == hook).map_or_else(String::new, |(_, counted)| {
                format!(", {:.1} × an empty one there", each(&during) / each(counted))
            });
            let what = format!("{name}, {} runs, {} instructions verified{beside}", during.runs, during.verified);
            rows.push(row(&what, each(&during)));
        }
    }
    drop((floor, hooks, counting));
    ground.stop()?;
    Ok(rows)
}

/// Where an empty program stands that does the work of this one: tracepoints' programs have names of their own.
fn place_of(program: &str) -> &str {
    match program.trim_end_matches("_again") {
        "newtask" => "task_newtask",
        "exec" => "sched_process_exec",
        "exit" => "sched_process_exit",
        "cgroup_attach" => "cgroup_attach_task",
        "ingress" => "egress",
        other => other,
    }
}

fn row(what: &str, ns: f64) -> Row {
    Row { bench: "programs", what: what.to_owned(), unit: "ns", target: None, figures: Figures::Single(ns) }
}

/// What was counted since `before`.
pub(super) fn since(now: Stats, before: Option<Stats>) -> Stats {
    let before = before.unwrap_or_default();
    Stats { run_ns: now.run_ns - before.run_ns, runs: now.runs - before.runs, ..now }
}

/// Nanoseconds for a run.
pub(super) fn each(stats: &Stats) -> f64 {
    stats.run_ns as f64 / stats.runs.max(1) as f64
}

fn work(mut worker: Worker) -> Result<()> {
    OPERATIONS.iter().try_for_each(|(operation, count)| worker.time(operation, *count).map(drop))?;
    worker.end()
}
