//! The command line of the benchmarks.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::harness::options;

/// Every benchmark, in the order in which they run.
pub(super) const ALL: [&str; 11] =
    ["tax", "net", "spawn", "peers", "deadline", "kill", "control", "start", "programs", "many", "flood"];
/// Those of the short form: what must be exact, and enough of the rest to see that something is wrong with it.
const SHORT: [&str; 4] = ["tax", "net", "spawn", "flood"];
/// Pairs of rounds where nothing else is said.
const PAIRS: usize = 5;
/// The same for the short form.
const FEW_PAIRS: usize = 2;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    names: Vec<String>,
    /// Rounds without and with the agent.
    pub(super) pairs: usize,
    /// Where the values go.
    pub(super) json: Option<PathBuf>,
    /// The folder for the plots.
    pub(super) svg: Option<PathBuf>,
    /// Whether the machine's clock counts instructions.
    pub(super) instructions: bool,
    agent: Option<PathBuf>,
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options =
            Self { names: Vec::new(), pairs: PAIRS, json: None, svg: None, instructions: false, agent: None };
        let (mut pairs, mut short) = (None, false);
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
                    pairs = Some(count?);
                }
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                "--short" => short = true,
                "--instructions" => options.instructions = true,
                "--agent" => options.agent = Some(value()?.into()),
                name if ALL.contains(&name) => options.names.push(name.to_owned()),
                _ => bail!(
                    "there is no benchmark {word:?}: give {}, --short, --pairs N, --json FILE, --svg DIR, --instructions \
                     or --agent FILE",
                    ALL.join(", ")
                ),
            }
        }
        if short && options.names.is_empty() {
            options.names = SHORT.map(str::to_owned).to_vec();
        }
        options.pairs = pairs.unwrap_or(if short { FEW_PAIRS } else { PAIRS });
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
    fn the_short_form_is_some_of_it_with_few_rounds() {
        let short = parse("--short").expect("it is right");
        assert_eq!((short.chosen(&ALL), short.pairs), (SHORT.to_vec(), FEW_PAIRS));
        let named = parse("--short --pairs 3 tax").expect("it is right");
        assert_eq!((named.chosen(&ALL), named.pairs), (vec!["tax"], 3));
        assert_eq!(parse("").expect("it is right").pairs, PAIRS);
    }

    #[test]
    fn reads_the_options_and_refuses_the_rest() {
        let options = parse("--pairs 7 --json /tmp/a spawn").expect("it is right");
        assert_eq!((options.pairs, options.json), (7, Some(PathBuf::from("/tmp/a"))));
        let options = parse("--svg /tmp/b tax --instructions").expect("it is right");
        assert_eq!((options.svg, options.instructions), (Some(PathBuf::from("/tmp/b")), true));
        for line in ["--pairs 1", "--pairs many", "--json", "speed"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
