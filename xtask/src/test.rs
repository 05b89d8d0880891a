//! Every test: unit and property tests, the black-box tests on this kernel, and the same in guests.

use std::{
    collections::BTreeSet,
    process::{Command, ExitCode},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use clap::Args;

use crate::{
    build,
    cargo::Host,
    exec::{Watched, aside, output, run, say, step, watch},
    kernels,
    passed::Passed,
    report::{Outcome, Records},
    setup,
    vm::{Clock, Guest, Lsm},
    workspace::Workspace,
};

/// How long the tests may take on one kernel, and the unit tests in all.
const LIMIT: Duration = Duration::from_secs(3600);

/// So many black-box tests at a time on this kernel, at most: some wait for a time to pass, and measure it.
const JOBS: usize = 3;

/// The guests: kernels that are supported, in tier full, the oldest and the newest in tier no-lsm, and one that is too old and
/// must be refused clearly. In an order that lets two processors end together: the longest first.
const GUESTS: [(&str, Lsm); 6] = [
    ("unstable", Lsm::Full),
    ("6.1", Lsm::Full),
    ("6.12", Lsm::Full),
    ("6.1", Lsm::None),
    ("unstable", Lsm::None),
    ("5.10", Lsm::Full),
];

/// Of these the one whose verifier takes longest: 11 s of an emulated processor for all programs, on 6.1 4.5 s.
const SLOW: &str = "unstable";

/// So many tests at a time in a guest. With four, agents of 7.2 took more than two minutes to start beside each other.
const JOBS_OF_GUEST: &str = "3";

/// Options of `test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only unit tests and this kernel
    #[arg(long, conflicts_with = "guests_only")]
    native_only: bool,
    /// Only guests
    #[arg(long)]
    guests_only: bool,
    /// Also guests whose tests all passed with this kernel, agent and tests
    #[arg(long)]
    again: bool,
    /// Each test on every kernel of its tiers, and not each on one of them in turn: twice as long
    #[arg(long)]
    every_kernel: bool,
}

/// The verb.
pub(crate) fn test(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if !options.guests_only && !nix::unistd::geteuid().is_root() {
        bail!("the tests load programs into this kernel; run ./x test as root, or with --guests-only");
    }
    let host = build::build(workspace)?;
    let mut records = Records::default();
    if !options.guests_only {
        // black-box tests wait most of their time: what the compiler needs is there beside them, and the network is free
        thread::scope(|scope| {
            // the unit tests and the guests will fail for the same reason: theirs is the record
            scope.spawn(|| {
                let compiled = step("compiling the unit tests", || compile_unit(workspace, &host));
                compiled.unwrap_or_else(|problem| say(&format!("{problem:#}")));
            });
            scope.spawn(|| {
                let fetched = if options.native_only { Ok(()) } else { fetch_guests(workspace) };
                fetched.unwrap_or_else(|problem| say(&format!("{problem:#}")));
            });
            step("tests on this kernel", || native(workspace, &mut records))
        })?;
        step("unit tests", || unit(workspace, &host, &mut records))?;
    }
    if !options.native_only {
        match setup::guest_tools() {
            Ok(()) => guests(workspace, options, &mut records)?,
            Err(problem) => records.fail("-", "guests", &format!("{problem:#}")),
        }
    }
    if !options.native_only && !options.guests_only {
        declarations(workspace, &mut records)?;
    }
    print!("{}", records.summary());
    Ok(if records.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Unit and property tests, in a profile of their own.
fn unit_tests(workspace: &Workspace, host: &Host) -> Command {
    let mut cargo = host.compile_as(workspace, "test", "unit");
    cargo.args(["-p", "tipstaff", "-p", "tipstaff-common", "-p", "tipstaff-tests", "-p", "xtask"]);
    cargo
}

fn compile_unit(workspace: &Workspace, host: &Host) -> Result<()> {
    run(&mut aside(unit_tests(workspace, host).arg("--no-run")))
}

fn unit(workspace: &Workspace, host: &Host, records: &mut Records) -> Result<()> {
    let mut cargo = unit_tests(workspace, host);
    cargo.arg("--no-fail-fast");
    let before = records.failures();
    let end = watch(
        &mut cargo,
        |line| {
            println!("unit | {line}");
            for (outcome, many) in counts(line) {
                records.count("-", "unit", outcome, many);
            }
            None
        },
        Instant::now() + LIMIT,
    )?;
    conclude(end, "-", "unit", before, records);
    Ok(())
}

/// The numbers of libtest's closing line.
fn counts(line: &str) -> Vec<(Outcome, usize)> {
    let Some(line) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
        return Vec::new();
    };
    let parts = line.1.split("; ").filter_map(|part| {
        let (many, what) = part.split_once(' ')?;
        let outcome = match what {
            "passed" => Outcome::Pass,
            "failed" => Outcome::Fail,
            "ignored" => Outcome::Skip,
            _ => return None,
        };
        Some((outcome, many.parse().ok()?))
    });
    parts.collect()
}

/// The black-box tests on the kernel that runs here, in the tier that it allows.
fn native(workspace: &Workspace, records: &mut Records) -> Result<()> {
    let release = output(Command::new("uname").arg("-r"))?;
    let release = release.trim();
    let before = records.failures();
    let end = watch(
        Command::new(workspace.tests()).args(["--tier", "auto", "--jobs"]).arg(processors().min(JOBS).to_string()),
        |line| {
            if let Some(text) = records.take(line) {
                println!("{release} | {text}");
            }
            None
        },
        Instant::now() + LIMIT,
    )?;
    conclude(end, release, "native", before, records);
    Ok(())
}

/// A run that did not end well, and reported no failure of its own, is a failure.
fn conclude(end: Watched, kernel: &str, tier: &str, before: usize, records: &mut Records) {
    match end {
        Watched::Ended(status) if status.success() => {}
        Watched::Ended(_) if records.failures() > before => {}
        Watched::Ended(status) => records.fail(kernel, tier, &format!("ended with {status}")),
        Watched::Late => records.fail(kernel, tier, &format!("stopped after {} s", LIMIT.as_secs())),
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Gets what the guests will need.
fn fetch_guests(workspace: &Workspace) -> Result<()> {
    setup::guest_tools()?;
    GUESTS.iter().try_for_each(|(name, _)| kernels::get(workspace, name, false).map(drop))
}

/// The black-box tests in the guests, as many at a time as there are processors: a guest runs on one. A guest that
/// breaks is a failure, and the others still run.
fn guests(workspace: &Workspace, options: &Options, records: &mut Records) -> Result<()> {
    let mut kernels = Vec::new();
    for (name, lsm) in GUESTS {
        match kernels::get(workspace, name, false) {
            Ok(kernel) => kernels.push((kernel, lsm)),
            Err(problem) => records.fail(name, "guests", &format!("{problem:#}")),
        }
    }
    let mut all: Vec<Guest<'_>> = kernels
        .iter()
        .map(|(kernel, lsm)| Guest { kernel, lsm: *lsm, args: &[], clock: Clock::Time, append: "" })
        .collect();
    let kinds: Vec<(&str, bool)> = all.iter().map(|guest| (guest.tier(), guest.kernel.name == SLOW)).collect();
    let turn = if options.every_kernel { None } else { Some(turn(workspace)) };
    let args = arguments(&kinds, &records.tiers(), turn);
    for (one, args) in all.iter_mut().zip(&args) {
        one.args = args;
    }
    let next = AtomicUsize::new(0);
    let take = || all.get(next.fetch_add(1, Ordering::Relaxed));
    let work = || std::iter::from_fn(take).map(|one| guest(workspace, one, options.again)).collect::<Vec<_>>();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..processors()).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            for seen in worker.join().map_err(|_panic| anyhow!("the watch over a guest broke down"))? {
                records.merge(seen);
            }
        }
        Ok(())
    })
}

/// Which of the kernels of a tier begins, where each shows a part: the commit's turn, so that some commits show all tests on all
/// kernels, and one commit the same ones each time.
fn turn(workspace: &Workspace) -> usize {
    let commit = output(Command::new("git").arg("-C").arg(&workspace.root).args(["rev-parse", "HEAD"]));
    // an unpacked archive has no commit, and always the same turn
    let digits = commit.ok().and_then(|commit| usize::from_str_radix(commit.get(..4)?, 16).ok());
    digits.unwrap_or(0)
}

/// What the tests are told in guests of these tiers; `slow`: an agent takes twice as long there to start. What is the agent's own
/// is shown on one kernel of each tier: on this one, if its tier is among `shown`, or in equal parts in the guests of that tier
/// that are not slow. Of the rest the guests of a tier show equal parts, who which is a matter of the `turn`; what this kernel has
/// shown, half of it. Where there is no turn, each shows all. What depends on the kernel each shows anyway.
fn arguments(guests: &[(&str, bool)], shown: &BTreeSet<String>, turn: Option<usize>) -> Vec<Vec<String>> {
    let place = |at: usize, turn: usize, each: usize, fits: &dyn Fn(&(&str, bool)) -> bool| {
        let parts = guests.iter().filter(|guest| fits(guest)).count().max(1) * each;
        let before = guests[..at].iter().filter(|guest| fits(guest)).count();
        let one = if fits(&guests[at]) { (before + turn) % parts + 1 } else { 0 };
        format!("{one}/{parts}")
    };
    let each = guests.iter().enumerate().map(|(at, (tier, _))| {
        let known = shown.contains(*tier);
        let (own, share) = match turn {
            None => ("1/1".to_owned(), "1/1".to_owned()),
            Some(turn) => (
                place(at, 0, 1, &|(other, slow)| !known && other == tier && !slow),
                // what has been shown once is shown by half as many
                place(at, turn, 1 + usize::from(known), &|(other, _)| other == tier),
            ),
        };
        // more than a guest has processors: many tests wait, for the agent to start or for a time to pass
        ["--jobs", JOBS_OF_GUEST, "--agents-own", &own, "--share", &share].map(str::to_owned).into()
    });
    each.collect()
}

/// The black-box tests in one guest.
fn guest(workspace: &Workspace, guest: &Guest<'_>, again: bool) -> Records {
    let mut records = Records::default();
    let (name, tier) = (&guest.kernel.name, guest.tier());
    let status = step(&format!("tests on {name}, tier {tier}"), || in_guest(workspace, guest, again, &mut records));
    match status {
        Ok(0) => {}
        Ok(_) if records.failures() > 0 => {}
        Ok(status) => records.fail(name, tier, &format!("ended with status {status}")),
        Err(error) => records.fail(name, tier, &format!("{error:#}")),
    }
    records
}

/// Runs what is not known to pass; the tests' exit status.
fn in_guest(workspace: &Workspace, guest: &Guest<'_>, again: bool, records: &mut Records) -> Result<u8> {
    guest.write_initramfs(workspace)?;
    let passed = Passed::of(workspace, guest)?;
    let known = if again { Vec::new() } else { passed.reports() };
    if !known.is_empty() {
        records.remember(&known);
        println!("{} | passed before, with the same kernel, agent and tests: --again runs them", guest.label());
        return Ok(0);
    }
    let ran = guest.run(workspace, LIMIT, records)?;
    if ran.status == 0 && records.failures() == 0 {
        passed.keep(&ran.reports)?;
    }
    Ok(ran.status)
}

/// Every test must have run somewhere in each tier that it declares.
fn declarations(workspace: &Workspace, records: &mut Records) -> Result<()> {
    for line in output(Command::new(workspace.tests()).arg("--list"))?.lines() {
        records.take(line);
    }
    records.require_declared();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{arguments, counts};
    use crate::report::Outcome;

    #[test]
    fn the_closing_line_of_unit_tests_is_counted() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(counts(line), [(Outcome::Pass, 12), (Outcome::Fail, 2), (Outcome::Skip, 1)]);
        assert_eq!(counts("test session::ends ... ok"), []);
    }

    #[test]
    fn what_is_the_agents_own_runs_once_in_each_tier_and_the_rest_in_turn() {
        let parts = |shown: &[&str], turn: Option<usize>| -> Vec<(String, String)> {
            let shown = shown.iter().map(|tier| (*tier).to_owned()).collect();
            let guests = [("full", false), ("no-lsm", false), ("full", true), ("no-lsm", true), ("full", false)];
            arguments(&guests, &shown, turn).into_iter().map(|args| (args[3].clone(), args[5].clone())).collect()
        };
        let all = |parts: [(&str, &str); 5]| parts.map(|(own, share)| (own.to_owned(), share.to_owned())).to_vec();
        assert_eq!(parts(&["no-lsm"], None), all([("1/1", "1/1"); 5]));
        let first = all([("1/2", "1/3"), ("0/1", "1/4"), ("0/2", "2/3"), ("0/1", "2/4"), ("2/2", "3/3")]);
        assert_eq!(parts(&["no-lsm"], Some(0)), first);
        let second = all([("1/2", "2/3"), ("0/1", "2/4"), ("0/2", "3/3"), ("0/1", "3/4"), ("2/2", "1/3")]);
        assert_eq!(parts(&["no-lsm"], Some(1)), second);
        assert_eq!(parts(&["no-lsm"], Some(12)), first);
        let nothing_shown = all([("1/2", "1/3"), ("1/1", "1/2"), ("0/2", "2/3"), ("0/1", "2/2"), ("2/2", "3/3")]);
        assert_eq!(parts(&[], Some(0)), nothing_shown);
    }
}
