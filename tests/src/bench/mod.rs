//! The benchmarks: `tipstaff-tests --bench`, which `cargo xtask bench` builds and starts. What they measure and how is
//! in `docs/performance.md`. They are no tests: the machine decides what comes out, and nothing here runs in `./x test`.

mod bpf;
mod control;
mod counted;
mod deadline;
mod flood;
mod floor;
mod hooks;
mod kill;
mod many;
mod options;
mod pairs;
mod peers;
pub(crate) mod place;
mod plot;
mod programs;
mod report;
mod start;
mod stats;
mod watch;
mod worker;

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::harness::{registry::Tier, sandbox::Sandbox, sweep};
use options::Options;
use report::Row;
use worker::Programs;

/// Exit status of a run in which something could not be judged.
const NOISY: u8 = 4;
/// The share of the processors that others may use before it begins.
const LOADED: f64 = 0.25;

/// What comes after `--bench`.
pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    ensure!(nix::unistd::geteuid().is_root(), "the benchmarks start the agent: run them as root");
    for name in sweep::dead()? {
        eprintln!("swept what {name} left");
    }
    let mut machine = place::machine()?;
    if options.instructions {
        counted::check()?;
    }
    let busy = place::others()?;
    machine["others"] = json!(busy);
    let measured = measure(&options);
    let swept = sweep::one(&sweep::name(std::process::id()));
    let mut rows = measured?;
    swept?;
    if options.instructions {
        counted::name(&mut rows);
    }
    if busy > LOADED {
        rows.iter_mut().for_each(Row::leave_unjudged);
    }
    println!("{}", report::head(&machine));
    println!("{}\n{}", report::markdown(&rows), peers::table(&rows));
    if let Some(folder) = &options.svg {
        plot::write(folder, &rows)?;
    }
    if let Some(path) = &options.json {
        let document = json!({"machine": machine, "pairs": options.pairs,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>()});
        let text = serde_json::to_string_pretty(&document)? + "\n";
        fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(if rows.iter().any(Row::is_broken) {
        ExitCode::FAILURE
    } else if busy > LOADED {
        eprintln!(
            "bench: noisy: other programs took {:.0} % of the processors before it began; repeat on an idle machine",
            busy * 100.0
        );
        ExitCode::from(NOISY)
    } else if rows.iter().any(Row::is_noisy) {
        eprintln!("bench: noisy: some rounds without the agent differ by more than 15 %; repeat on an idle machine");
        ExitCode::from(NOISY)
    } else {
        ExitCode::SUCCESS
    })
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    let mut ground = Ground::new(options)?;
    let mut rows = Vec::new();
    rows.extend(pairs::run(&mut ground, &options.chosen(&["tax", "net", "spawn"]), options.pairs)?);
    let asked = |name| !options.chosen(&[name]).is_empty();
    if asked("peers") {
        rows.extend(peers::run(&mut ground, options.pairs)?);
    }
    if asked("deadline") {
        rows.extend(deadline::run(&mut ground)?);
    }
    if asked("kill") {
        rows.extend(kill::run(&mut ground)?);
    }
    if asked("control") {
        rows.extend(control::run(&mut ground)?);
    }
    if asked("start") {
        rows.extend(start::run(&mut ground)?);
    }
    if asked("programs") {
        rows.extend(programs::run(&mut ground)?);
    }
    if asked("many") {
        rows.extend(many::run(&mut ground)?);
    }
    if asked("flood") {
        rows.extend(flood::run(&mut ground)?);
    }
    Ok(rows)
}

/// Where the benchmarks stand: a sandbox as tests have it, and the programs that are measured.
#[derive(Debug)]
struct Ground {
    sandbox: Sandbox,
    programs: Programs,
}

impl Ground {
    fn new(options: &Options) -> Result<Self> {
        // the tier only tells tests what to expect
        let sandbox = Sandbox::new(Tier::NoLsm, &options.agent()?)?;
        let programs = Programs::make(&sandbox)?;
        Ok(Self { sandbox, programs })
    }

    /// Starts an agent where there is none.
    fn start(&mut self) -> Result<()> {
        self.start_as(self.sandbox.daemon())
    }

    fn start_as(&mut self, daemon: Command) -> Result<()> {
        self.sandbox.start_as(daemon)
    }

    /// Stops the agent, takes it out of the kernel, checks what must be exact, and forgets its evidence, so that the next
    /// one starts as the first did.
    fn stop(&mut self) -> Result<()> {
        self.sandbox.finish()?;
        for part in ["state", "evidence"] {
            let folder = self.sandbox.folder().join(part);
            fs::remove_dir_all(&folder)?;
            fs::create_dir(&folder)?;
        }
        Ok(())
    }
}
