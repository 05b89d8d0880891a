//! `peers`: the same operations beside Tipstaff's neighbours, in one run: without anything, in a session, with programs that
//! do nothing in its places, and under other things that watch or guard processes. Every figure is a ratio to "without".
//!
//! A round measures each of them once, every second round the other way. The kernel's audit comes last: once it was on, the
//! kernel makes room for it in every task from then on.

mod audit;
mod execsnoop;

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result};

use super::{
    Ground,
    floor::Floor,
    hooks::Hooks,
    place,
    report::{Figures, Row, plain, signed},
    stats::{NOISY, least, spread},
    worker::Worker,
};
use crate::harness::wait::in_guest;
use audit::Audit;
use execsnoop::Execsnoop;

/// What stands beside what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Neighbour {
    Nothing,
    Outside,
    Session,
    Empty,
    Execsnoop,
    Landlock,
    Notify,
    Trace,
    Audit,
}

use Neighbour::{Empty, Landlock, Nothing, Notify, Outside, Session, Trace};

/// In the order of the table, with what they are called there.
const ALL: [(Neighbour, &str); 9] = [
    (Nothing, "without"),
    (Outside, "Tipstaff, in no session"),
    (Session, "Tipstaff, in a session"),
    (Empty, "empty programs"),
    (Neighbour::Execsnoop, "execsnoop"),
    (Landlock, "Landlock"),
    (Notify, "seccomp, asks a supervisor"),
    (Trace, "ptrace, all calls"),
    (Neighbour::Audit, "kernel audit"),
];
/// Operation, what it is, and the size of a batch.
const OPERATIONS: [(&str, &str, u32); 6] = [
    ("getppid", "getppid", 20_000),
    ("open-close", "open + close", 4_000),
    ("udp-connect", "UDP connect", 2_000),
    ("tcp-connect", "TCP connect + accept + close", 200),
    ("fork", "fork + exit + wait", 60),
    ("vfork-exec", "vfork + exec + exit + wait", 30),
];
/// Batches in a measurement; one more comes before them, to warm up.
const BATCHES: usize = 6;
/// Calls that leave the process for each step take so much longer that fewer do.
const SLOW: u32 = 20;
/// What stands between an operation and a neighbour in a row.
const BETWEEN: &str = ": ";

/// The values of all rounds, by operation and neighbour.
type Values = BTreeMap<(&'static str, Neighbour), Vec<f64>>;

pub(super) fn run(ground: &mut Ground, rounds: usize) -> Result<Vec<Row>> {
    place::pin(place::AGENT)?;
    let snoop = Execsnoop::find();
    if snoop.is_none() {
        eprintln!(
            "bench: peers: execsnoop is not here, and left out: install Debian's libbpf-tools (./x setup --peers)"
        );
    }
    let mut values = Values::new();
    let mut order = vec![Nothing, Outside, Session, Empty, Landlock, Notify, Trace];
    order.extend(snoop.is_some().then_some(Neighbour::Execsnoop));
    for round in 0..rounds {
        eprintln!("bench: peers: round {} of {rounds}", round + 1);
        for neighbour in &order {
            beside(ground, *neighbour, snoop.as_ref(), &mut values).with_context(|| format!("{neighbour:?}"))?;
        }
        order.reverse();
    }
    // on a host it changes a setting of the whole kernel, and leaves something of it behind for ever
    if in_guest() {
        for _ in 0..rounds {
            beside(ground, Neighbour::Audit, None, &mut values).context("audit")?;
        }
    }
    Ok(rows(&values))
}

/// Puts the neighbour up, measures, and takes it down.
fn beside(ground: &mut Ground, who: Neighbour, snoop: Option<&Execsnoop>, values: &mut Values) -> Result<()> {
    let elsewhere = ground.sandbox.part("elsewhere");
    if matches!(who, Outside | Session) {
        ground.start()?;
        let agent = Some(ground.sandbox.agent_pid()?);
        let worker = if who == Outside {
            Worker::outside(&ground.programs, &elsewhere)?
        } else {
            let policy = ground.sandbox.policy(&ground.programs.policy(1))?;
            Worker::inside(&ground.programs, &ground.sandbox, &policy)?
        };
        measure(worker, who, agent, values)?;
        return ground.stop();
    }
    let _empty = (who == Empty).then(|| Ok::<_, anyhow::Error>((Floor::attach(&elsewhere)?, Hooks::attach()?)));
    let _empty = _empty.transpose()?;
    let snoop = snoop.filter(|_| who == Neighbour::Execsnoop).map(|snoop| snoop.start(&elsewhere)).transpose()?;
    let audit = (who == Neighbour::Audit).then(Audit::start).transpose()?;
    let mut worker = match who {
        Notify => Worker::under("notify", &ground.programs, &elsewhere)?,
        Trace => Worker::under("trace", &ground.programs, &elsewhere)?,
        _ => Worker::outside(&ground.programs, &elsewhere)?,
    };
    if who == Landlock {
        worker.ask("landlock")?;
    }
    measure(worker, who, snoop.as_ref().map(execsnoop::Running::pid), values)?;
    audit.map_or(Ok(()), Audit::stop)?;
    snoop.map_or(Ok(()), execsnoop::Running::stop)
}

/// Each operation as the least of its batches; between two of them `reader` comes to rest.
fn measure(mut worker: Worker, who: Neighbour, reader: Option<u32>, values: &mut Values) -> Result<()> {
    for (operation, _, batch) in OPERATIONS {
        let batch = if who == Trace { (batch / SLOW).max(5) } else { batch };
        let mut batches = Vec::with_capacity(BATCHES);
        for _ in 0..=BATCHES {
            batches.push(worker.time(operation, batch)?);
            reader.map_or(Ok(()), place::quiet)?;
        }
        batches.remove(0);
        values.entry((operation, who)).or_default().push(least(&batches));
    }
    worker.end()
}

fn rows(values: &Values) -> Vec<Row> {
    let mut rows = Vec::new();
    for (operation, what, _) in OPERATIONS {
        let Some(off) = values.get(&(operation, Nothing)) else { continue };
        for (neighbour, name) in &ALL[1..] {
            let Some(on) = values.get(&(operation, *neighbour)) else { continue };
            let figures = Figures::Compared { off: off.clone(), on: on.clone(), floor: None };
            rows.push(Row {
                bench: "peers",
                what: format!("{what}{BETWEEN}{name}"),
                unit: "ns",
                target: None,
                figures,
            });
        }
    }
    rows
}

/// All rows of this benchmark as one table: a line for each neighbour, a column for each operation.
pub(super) fn table(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.bench == "peers").collect();
    let find = |what: &str, name: &str| rows.iter().find(|row| row.what == format!("{what}{BETWEEN}{name}"));
    let operations: Vec<&str> =
        OPERATIONS.iter().map(|(_, what, _)| *what).filter(|what| find(what, ALL[1].1).is_some()).collect();
    if operations.is_empty() {
        return String::new();
    }
    let mut text = format!("| | {} |\n|---|{}\n", operations.join(" | "), "---:|".repeat(operations.len()));
    let _ = writeln!(text, "| {} | {} |", ALL[0].1, cells(&operations, |what| find(what, ALL[1].1), without));
    for (_, name) in &ALL[1..] {
        if operations.iter().any(|what| find(what, name).is_some()) {
            let _ = writeln!(text, "| {name} | {} |", cells(&operations, |what| find(what, name), with));
        }
    }
    text
}

fn cells<'a>(
    operations: &[&str],
    find: impl Fn(&str) -> Option<&'a &'a Row>,
    cell: impl Fn(&Row, &[f64], &[f64]) -> String,
) -> String {
    let cell = |what: &&str| match find(what) {
        Some(row) => match &row.figures {
            Figures::Compared { off, on, .. } => cell(row, off, on),
            _ => String::new(),
        },
        None => "–".to_owned(),
    };
    operations.iter().map(cell).collect::<Vec<_>>().join(" | ")
}

fn without(row: &Row, off: &[f64], _on: &[f64]) -> String {
    let noisy = if spread(off) > NOISY { ", noisy" } else { "" };
    format!("{} {}{noisy}", plain(least(off)), row.unit)
}

fn with(_row: &Row, off: &[f64], on: &[f64]) -> String {
    let (off, on) = (least(off), least(on));
    format!("{} × ({})", plain(on / off), signed(on - off))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_neighbour_that_was_measured() {
        let mut values = Values::new();
        for (operation, _, _) in OPERATIONS {
            values.insert((operation, Nothing), vec![100.0, 101.0]);
            values.insert((operation, Outside), vec![101.0, 100.0]);
            values.insert((operation, Session), vec![150.0, 149.0]);
            values.insert((operation, Trace), vec![9000.0, 9100.0]);
        }
        let text = table(&rows(&values));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines.iter().all(|line| line.matches('|').count() == OPERATIONS.len() + 2), "{text}");
        assert!(lines[2].starts_with("| without | 100 ns | "), "{text}");
        assert!(lines[4].starts_with("| Tipstaff, in a session | 1.49 × (+49.0) | "), "{text}");
        assert!(lines[5].starts_with("| ptrace, all calls | 90.0 × (+8900) | "), "{text}");
        assert_eq!(table(&[]), "");
    }
}
