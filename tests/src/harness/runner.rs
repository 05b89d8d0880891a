//! Runs tests, each in a process of its own with a deadline, and cleans up after it whatever became of it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::{prctl, signal::Signal};

use super::{
    guest::kernel_log,
    options::{Options, Task},
    registry::{self, Lacking, Test, Tier},
    report::{Outcome, Report},
    sandbox::Sandbox,
    shared::{self, Host},
    sweep,
    wait::{ended, in_guest},
};
use crate::faults::{self, Fault};

/// Lines of the agent's log and of the evidence that a failure shows.
const TAIL: usize = 25;
/// Exit status of a test's process that had nothing to test.
const LACKING: i32 = 4;
/// How the lines begin that a test prints for a table.
const ROWS: [&str; 4] = ["TIPSTAFF-ESCAPE ", "TIPSTAFF-VERIFIER ", "TIPSTAFF-PROBE ", faults::ROW];
/// Characters of such a line.
const WIDTH: usize = 400;

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    match &options.task {
        Task::List => {
            selected(options).for_each(|test| println!("{}", test.declaration()));
            Ok(ExitCode::SUCCESS)
        }
        Task::Run => run(options),
        Task::Host => alone(options.tier.context("--host needs --tier")?, options, shared::host),
        Task::One(name) => {
            let test = registry::find(name)?;
            let tier = options.tier.context("--one needs --tier")?;
            alone(tier, options, |sandbox| {
                let ran = match faults::named(name) {
                    Some(fault) => return fault.judge(sandbox, options),
                    None => (test.run)(sandbox),
                };
                if ran.as_ref().is_ok() || ran.as_ref().is_err_and(|error| error.is::<Lacking>()) {
                    sandbox.finish().context("afterwards")?;
                }
                ran
            })
        }
        Task::AskTier => alone(Tier::NoLsm, options, |sandbox| {
            sandbox.start()?;
            let probe = sandbox.json(&["probe"])?;
            let said = sandbox.said_by_agent().replace('\n', " / ");
            sandbox.finish()?;
            // what the agent says of it follows, for when that is another tier than was asked for
            println!("{} {said}", probe["tier"].as_str().context("probe names no tier")?);
            Ok(())
        }),
    }
}

fn selected(options: &Options) -> impl Iterator<Item = &'static Test> {
    let tests: Box<dyn Iterator<Item = &'static Test>> = match options.faults {
        Some(form) => Box::new(faults::of_form(form)),
        None => Box::new(registry::all()),
    };
    let named = |test: &&Test| options.filter.as_ref().is_none_or(|part| test.name.contains(part.as_str()));
    let (mut agents_own, mut others) = (0.., 0..);
    let here = move |test: &&Test| match (
        test.agents_own,
        test.each_kernel || test.guests.is_some() || test.since.is_some(),
    ) {
        (true, _) => agents_own.next().is_some_and(|at| options.agents_own.has(at)),
        (false, true) => true,
        (false, false) => others.next().is_some_and(|at| options.share.has(at)),
    };
    tests.filter(here).filter(named)
}

fn run(options: &Options) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the tests start the agent: run them as root");
    for name in sweep::dead()? {
        eprintln!("swept what {name} left");
    }
    let agent = options.agent()?;
    let tier = settle_tier(options.tier, &agent)?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let (tests, others): (Vec<&Test>, Vec<&Test>) = selected(options).partition(|test| test.tiers.contains(&tier));
    let mut report = Report::new(tier, release.clone());
    // a row of the fault matrix has its place in the table there too
    let rows = of_other_tiers(&others);
    for (test, fault, why) in &rows {
        report.add(test, &Outcome::Skip(why.clone()), 0);
        fault.lacks(tier, &release, why);
    }
    ensure!(!tests.is_empty() || !rows.is_empty(), "no test of tier {} has that name: see --list", tier.name());
    let (alone, beside): (Vec<&Test>, Vec<&Test>) = tests.into_iter().partition(|test| test.alone);
    let beside = spread(beside);
    let report = Mutex::new(report);
    let further = further(options);
    let worker = || Worker { tier, agent: &agent, release: &release, host: None, further: &further };
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                let taken = std::iter::from_fn(|| beside.get(next.fetch_add(1, Ordering::SeqCst)).copied());
                worker().work(taken, &report);
            });
        }
    });
    worker().work(alone.into_iter(), &report);
    let well = report.into_inner().unwrap_or_else(PoisonError::into_inner).close();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Those of the fault matrix, and why they are not run.
fn of_other_tiers<'t>(tests: &[&'t Test]) -> Vec<(&'t Test, &'static Fault, String)> {
    let why = |test: &Test| {
        let tiers: Vec<&str> = test.tiers.iter().map(|tier| tier.name()).collect();
        format!("not in this tier: it is of tier {}", tiers.join(", "))
    };
    tests.iter().filter_map(|test| Some((*test, faults::named(test.name)?, why(test)))).collect()
}

/// What the rows of the fault matrix are told.
fn further(options: &Options) -> Vec<String> {
    let form = options.faults.map(|form| form.name().to_owned());
    let numbers = [("--seed", options.seed), ("--soak", options.soak)];
    let numbers = numbers.into_iter().filter_map(|(word, number)| Some((word, number?.to_string())));
    form.map(|form| ("--faults", form)).into_iter().chain(numbers).flat_map(|(w, v)| [w.to_owned(), v]).collect()
}

/// Tests that wait evenly among those that do not: side by side they would leave the processors idle.
fn spread(tests: Vec<&Test>) -> Vec<&Test> {
    let (waiting, busy): (Vec<&Test>, Vec<&Test>) = tests.into_iter().partition(|test| test.waits);
    let gap = busy.len().div_ceil(waiting.len() + 1).max(1);
    let mut waiting = waiting.into_iter();
    let mut order: Vec<&Test> =
        busy.chunks(gap).flat_map(|some| waiting.next().into_iter().chain(some.iter().copied())).collect();
    order.extend(waiting);
    order
}

/// The tier of this run: what the agent finds, which must be what was asked for.
fn settle_tier(asked: Option<Tier>, agent: &Path) -> Result<Tier> {
    if asked == Some(Tier::Old) {
        return Ok(Tier::Old);
    }
    let said = in_child(&["--ask-tier"], agent, 0).context("the agent cannot be asked for its tier")?;
    let (found, said) = said.trim().split_once(' ').unwrap_or_else(|| (said.trim(), ""));
    let found = Tier::parse(found)?;
    match asked {
        Some(tier) if tier != found => bail!(
            "this run is for tier {}, but the agent finds tier {} on this kernel: nothing was tested; the agent said: {said}",
            tier.name(),
            found.name()
        ),
        _ => Ok(found),
    }
}

/// Runs tests one after the other; those that share an agent have this worker's.
struct Worker<'a> {
    tier: Tier,
    agent: &'a Path,
    release: &'a str,
    host: Option<Host>,
    /// What every test is told besides.
    further: &'a [String],
}

impl Worker<'_> {
    /// Runs `tests`, and ends the agent that they shared.
    fn work<'t>(mut self, tests: impl Iterator<Item = &'t Test>, report: &Mutex<Report>) {
        let report = || report.lock().unwrap_or_else(PoisonError::into_inner);
        for test in tests {
            let start = Instant::now();
            let outcome = self.judge(test);
            report().add(test, &outcome, start.elapsed().as_millis());
            if let (Some(fault), Outcome::Skip(why)) = (faults::named(test.name), &outcome) {
                fault.lacks(self.tier, self.release, why);
            }
        }
        if let Some(Err(error)) = self.host.map(Host::end) {
            report().fail("harness::shared-agent", &format!("{error:#}"));
        }
    }

    fn judge(&mut self, test: &Test) -> Outcome {
        let kernel = version(self.release);
        if let Some(since) = test.since.filter(|since| kernel.is_some_and(|kernel| kernel < since.kernel)) {
            let (major, minor) = since.kernel;
            return Outcome::Skip(format!("{} is there from {major}.{minor} on", since.feature));
        }
        if let Some(what) = test.guests.filter(|_| !in_guest()) {
            return Outcome::Skip(format!("it {what}: in guests only"));
        }
        let mut words = vec!["--one", test.name, "--tier", self.tier.name()];
        words.extend(self.further.iter().map(String::as_str));
        let done = match test.shares {
            true => self.on_shared(&words, test.lasts),
            false => in_child(&words, self.agent, test.lasts).map(drop),
        };
        match done {
            Ok(()) => Outcome::Pass,
            Err(error) if error.is::<Lacking>() => Outcome::Skip(error.to_string()),
            Err(error) => Outcome::Fail(format!("{error:#}")),
        }
    }

    /// After a failure nobody knows what its agent is in: the next test gets another.
    fn on_shared(&mut self, words: &[&str], lasts: u64) -> Result<()> {
        let host = match self.host.take() {
            Some(host) => host,
            None => Host::start(self.tier, self.agent)?,
        };
        let shared = host.shared().to_string();
        let ended = in_child(&[words, &["--shared", &shared]].concat(), self.agent, lasts).map(drop);
        let error = match ended {
            Err(error) if !error.is::<Lacking>() => error,
            well => {
                self.host = Some(host);
                return well;
            }
        };
        // whether its agent is there still, or how it ended
        match host.end() {
            Ok(()) => Err(error),
            Err(after) => bail!("{error:#}; then {after:#}"),
        }
    }
}

/// Runs this binary with `words` as a child, for `lasts` seconds more than is usual at most, and sweeps after it; what it
/// printed, or as an error why it failed.
fn in_child(words: &[&str], agent: &Path, lasts: u64) -> Result<String> {
    let mut command = Command::new("/proc/self/exe");
    command.args(words).arg("--agent").arg(agent).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("a test's process cannot be started")?;
    let limit = Duration::from_secs(lasts + if in_guest() { 900 } else { 120 });
    let status = wait_or_kill(&mut child, limit);
    let swept = sweep::one(&sweep::name(child.id()));
    let mut said = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut said)?;
    }
    // what a test tells of itself to whoever reads tables
    let (rows, said): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| ROWS.iter().any(|row| line.starts_with(row)));
    rows.iter().for_each(|row| println!("{row}"));
    let said = said.join("\n");
    let status = status?;
    match status.code() {
        Some(0) => swept.map(|()| said.trim().to_owned()),
        Some(LACKING) => swept.and(Err(Lacking(said.trim().to_owned()).into())),
        Some(1) => bail!("{}", said.trim()),
        _ => bail!("the test's process ended with {status}"),
    }
}

pub(super) fn wait_or_kill(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let ended = ended(child, limit);
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended
}

/// In a child of the runner: `body` in a new sandbox. Why it failed goes to stdout, what helps to see why to stderr.
fn alone(tier: Tier, options: &Options, body: impl FnOnce(&mut Sandbox) -> Result<()>) -> Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let agent: PathBuf = options.agent()?;
    let mut sandbox = match &options.shared {
        Some(shared) => Sandbox::join(tier, &agent, shared.clone())?,
        None => Sandbox::new(tier, &agent)?,
    };
    let Err(error) = body(&mut sandbox) else { return Ok(ExitCode::SUCCESS) };
    println!("{error:#}");
    if error.is::<Lacking>() {
        return Ok(ExitCode::from(u8::try_from(LACKING)?));
    }
    eprintln!("--- {:?}: {error:#}", options.task);
    show("the agent said", &sandbox.said_by_agent());
    if in_guest() {
        show("the kernel said", &kernel_log());
    }
    show("the evidence ends with", &fs::read_to_string(sandbox.evidence_file()).unwrap_or_default());
    Ok(ExitCode::FAILURE)
}

fn show(what: &str, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- {what}:");
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("{}", line.chars().take(WIDTH).collect::<String>());
    }
}

/// Major and minor number of the kernel that runs.
pub(crate) fn running_kernel() -> Result<(u32, u32)> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    version(&release).with_context(|| format!("the kernel calls itself {release}"))
}

/// `6.18` of `6.18.44-fc-v669`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_fault_matrix_that_are_of_another_tier_say_so() {
        let others: Vec<&Test> = faults::all().filter(|test| !test.tiers.contains(&Tier::Full)).collect();
        let rows = of_other_tiers(&others);
        assert!(!rows.is_empty() && rows.len() == others.len());
        assert!(rows.iter().all(|(_, _, why)| why == "not in this tier: it is of tier no-lsm"));
        // a test of a boot is no row of a table
        let tests: Vec<&Test> = registry::all().filter(|test| !test.tiers.contains(&Tier::Full)).collect();
        assert!(!tests.is_empty() && of_other_tiers(&tests).is_empty());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert!(version("6.1.0-38-amd64") < Some((6, 12)));
        assert_eq!(version("next"), None);
    }
}
