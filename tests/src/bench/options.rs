//! The command line of the benchmarks.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::harness::options;

/// Every benchmark, in the order in which they run.
pub(super) const ALL: [&str; 9] = ["tax", "net", "spawn", "deadline", "kill", "control", "start", "programs", "flood"];
/// Pairs of rounds where nothing else is said.
const PAIRS: usize = 5;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    names: Vec<String>,
    /// Rounds without and with the agent.
    pub(super) pairs: usize,
    /// Where the values go.
    pub(super) json: Option<PathBuf>,
    agent: Option<PathBuf>,
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { names: Vec::new(), pairs: PAIRS, json: None, agent: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--pairs" => {
                    let count = value()?;
                    let count =
                        count.parse().ok().filter(|n| *n > 1).with_context(|| {
                            format!("--pairs {count:?} is not a number above 1, which an interval needs")
                        });
                    options.pairs = count?;
                }
                "--json" => options.json = Some(value()?.into()),
                "--agent" => options.agent = Some(value()?.into()),
                name if ALL.contains(&name) => options.names.push(name.to_owned()),
                _ => bail!(
                    "there is no benchmark {word:?}: give {}, --pairs N, --json FILE or --agent FILE",
                    ALL.join(", ")
                ),
            }
        }
        Ok(options)
    }

    /// Those of `names` that were asked for; all, where none was named at all.
    pub(super) fn chosen<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| self.names.is_empty() || self.names.iter().any(|n| n == name)).collect()
    }

    pub(super) fn agent(&self) -> Result<PathBuf> {
        options::agent(self.agent.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_name_all_run() {
        assert_eq!(parse("").expect("it is right").chosen(&ALL), ALL);
        assert_eq!(parse("net tax").expect("it is right").chosen(&ALL), ["tax", "net"]);
        assert!(parse("net").expect("it is right").chosen(&["tax", "spawn"]).is_empty());
    }

    #[test]
    fn reads_the_options_and_refuses_the_rest() {
        let options = parse("--pairs 7 --json /tmp/a spawn").expect("it is right");
        assert_eq!((options.pairs, options.json), (7, Some(PathBuf::from("/tmp/a"))));
        for line in ["--pairs 1", "--pairs many", "--json", "speed"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
