//! The runner's command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{registry::Tier, shared::Shared, wait::in_guest};
use crate::faults::Form;

const USAGE: &str = "usage: tipstaff-tests [--list] [--filter SUBSTRING] [--tier full|no-lsm|old|auto] [--agent FILE] \
                     [--jobs N] [--agents-own K/N] [--share K/N] [--faults short|long [--seed N] [--soak SECONDS]]";

/// What the runner was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) task: Task,
    /// Only tests whose name contains it.
    pub(crate) filter: Option<String>,
    /// The tier the run is for; `None` asks the agent.
    pub(crate) tier: Option<Tier>,
    /// The agent's binary; `None` looks beside this one.
    pub(crate) agent: Option<PathBuf>,
    /// Tests that run at the same time.
    pub(crate) jobs: usize,
    /// Of the tests that need one kernel of each tier only, which part, of how many.
    pub(crate) agents_own: Part,
    /// Of the others that a kernel outside of guests can run, and that are the same on each, which part, of how many.
    pub(crate) share: Part,
    /// The agent that the one test is to use.
    pub(crate) shared: Option<Shared>,
    /// The rows of the fault matrix instead of the tests: those of the short form, or all.
    pub(crate) faults: Option<Form>,
    /// What the random faults are drawn from; a number of the clock's where none is given.
    pub(crate) seed: Option<u64>,
    /// How long they go on, in seconds; none: as long as the form has it.
    pub(crate) soak: Option<u64>,
}

/// One of equal parts, counted from 1; 0: none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    one: usize,
    of: usize,
}

impl Part {
    const ALL: Self = Self { one: 1, of: 1 };

    fn parse(text: &str) -> Option<Self> {
        let (one, of) = text.split_once('/')?;
        let part = Self { one: one.parse().ok()?, of: of.parse().ok()? };
        (part.of > 0 && part.one <= part.of).then_some(part)
    }

    /// Whether it has what stands in this place, counted from 0.
    pub(crate) const fn has(self, place: usize) -> bool {
        place % self.of + 1 == self.one
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Run,
    List,
    /// One test in this process; the runner starts these.
    One(String),
    /// Start an agent and print the tier that it found; the runner starts this.
    AskTier,
    /// Start an agent that tests share; the runner starts these.
    Host,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            task: Task::Run,
            filter: None,
            tier: None,
            agent: None,
            jobs: default_jobs(),
            agents_own: Part::ALL,
            share: Part::ALL,
            shared: None,
            faults: None,
            seed: None,
            soak: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value; {USAGE}"));
            match word.as_str() {
                "--list" => options.task = Task::List,
                "--one" => options.task = Task::One(value()?.clone()),
                "--ask-tier" => options.task = Task::AskTier,
                "--host" => options.task = Task::Host,
                "--shared" => {
                    let text = value()?;
                    options.shared = Some(Shared::parse(text).with_context(|| format!("--shared {text:?}; {USAGE}"))?);
                }
                "--agents-own" => options.agents_own = part(word, value()?)?,
                "--share" => options.share = part(word, value()?)?,
                "--filter" => options.filter = Some(value()?.clone()),
                "--tier" => {
                    let name = value()?;
                    options.tier = if name == "auto" { None } else { Some(Tier::parse(name)?) };
                }
                "--faults" => options.faults = Some(Form::parse(value()?)?),
                "--seed" => options.seed = Some(number(word, value()?)?),
                "--soak" => options.soak = Some(number(word, value()?)?),
                "--agent" => options.agent = Some(PathBuf::from(value()?)),
                "--jobs" => {
                    let count = value()?;
                    options.jobs = count
                        .parse()
                        .ok()
                        .filter(|n| *n > 0)
                        .with_context(|| format!("--jobs {count:?} is not a number above 0; {USAGE}"))?;
                }
                _ => bail!("unknown option {word:?}; {USAGE}"),
            }
        }
        Ok(options)
    }

    /// The agent's binary.
    pub(crate) fn agent(&self) -> Result<PathBuf> {
        agent(self.agent.as_ref())
    }
}

fn part(word: &str, text: &str) -> Result<Part> {
    Part::parse(text).with_context(|| format!("{word} {text:?} is no part; {USAGE}"))
}

fn number(word: &str, text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{word} {text:?} is not a number; {USAGE}"))
}

/// The agent's binary: the one that was named, or the one that stands where it is built or packed.
pub(crate) fn agent(named: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("cannot tell where this binary is")?;
    let beside = own.with_file_name("tipstaff");
    let above = own.parent().and_then(|dir| dir.parent()).map(|dir| dir.join("release/tipstaff"));
    let guest = PathBuf::from("/bin/tipstaff");
    [Some(beside.clone()), above, Some(guest)]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
        .with_context(|| format!("there is no agent at {}: build it, or give --agent FILE", beside.display()))
}

/// A guest is the tests' own; elsewhere others want to work as well.
fn default_jobs() -> usize {
    if in_guest() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn reads_every_option() {
        let options =
            parse("--filter exec --tier no-lsm --agent /a --jobs 2 --agents-own 2/3 --share 0/1").expect("it is right");
        assert_eq!(options.task, Task::Run);
        assert_eq!(options.filter.as_deref(), Some("exec"));
        assert_eq!(options.tier, Some(Tier::NoLsm));
        assert_eq!(options.agent, Some(PathBuf::from("/a")));
        assert_eq!((options.jobs, options.agents_own), (2, Part { one: 2, of: 3 }));
        assert_eq!(options.share, Part { one: 0, of: 1 });
        let options = parse("--faults long --seed 7 --soak 60").expect("it is right");
        assert_eq!((options.faults, options.seed, options.soak), (Some(Form::Long), Some(7), Some(60)));
        let options = parse("--tier auto").expect("it is right");
        assert_eq!((options.tier, options.agents_own, options.share), (None, Part::ALL, Part::ALL));
    }

    #[test]
    fn parts_have_everything_once() {
        for of in 1..5 {
            for place in 0..20 {
                let having = (1..=of).filter(|one| Part { one: *one, of }.has(place)).count();
                assert!(having == 1 && !Part { one: 0, of }.has(place), "{place} of {of} parts");
            }
        }
    }

    #[test]
    fn refuses_the_rest() {
        for line in [
            "--agents-own 2",
            "--agents-own 3/2",
            "--agents-own 0/0",
            "--share 1",
            "--faults some",
            "--seed x",
            "--tier half",
            "--jobs 0",
            "--jobs",
            "--what",
            "exec",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
