//! What a test is, and the list of all of them.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::sandbox::Sandbox;
use crate::{faults, suites};

/// What the kernel lets the agent do: the product has two tiers, and `Old` stands for kernels that it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Full,
    NoLsm,
    Old,
}

/// A test of something that only the tier full has.
pub(crate) const FULL: &[Tier] = &[Tier::Full];
/// A test of what is different without BPF LSM.
pub(crate) const NO_LSM: &[Tier] = &[Tier::NoLsm];
/// A test that holds in every tier of the product.
pub(crate) const WHEREVER: &[Tier] = &[Tier::Full, Tier::NoLsm];
/// A test of what happens on a kernel that is too old.
pub(crate) const OLD: &[Tier] = &[Tier::Old];

impl Tier {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoLsm => "no-lsm",
            Self::Old => "old",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "full" => Ok(Self::Full),
            "no-lsm" => Ok(Self::NoLsm),
            "old" => Ok(Self::Old),
            _ => bail!("there is no tier {name:?}: give full, no-lsm, old or auto"),
        }
    }
}

/// Why a test has nothing to test here: the kernel was built without something. It is skipped, and that is said.
#[derive(Debug)]
pub(crate) struct Lacking(pub(crate) String);

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

/// The kernel that first had what a test needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    pub(crate) kernel: (u32, u32),
    pub(crate) feature: &'static str,
}

/// One test. It must leave nothing behind: no process, no session, no agent of its own making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    /// `suite::what-holds`
    pub(crate) name: &'static str,
    /// Where it runs; a declared tier that ran nowhere is a failure of the whole.
    pub(crate) tiers: &'static [Tier],
    /// Older kernels skip it, and say so.
    pub(crate) since: Option<Since>,
    /// What it does to a whole host, so that it runs in guests only; elsewhere it is skipped, and that is said.
    pub(crate) guests: Option<&'static str>,
    /// Whether it can use an agent that other tests used before.
    pub(crate) shares: bool,
    /// Whether it runs after all others, beside none.
    pub(crate) alone: bool,
    /// Whether it leaves the processors to others for most of its time.
    pub(crate) waits: bool,
    /// Whether what it shows is the agent's own doing, whatever the kernel: one of each tier is enough.
    pub(crate) agents_own: bool,
    /// Whether what it finds is another thing on each kernel: no other can stand for it.
    pub(crate) each_kernel: bool,
    /// Seconds that it needs by its nature, beside what any test may take.
    pub(crate) lasts: u64,
    pub(crate) run: fn(&mut Sandbox) -> Result<()>,
}

impl Test {
    pub(crate) const fn new(name: &'static str, tiers: &'static [Tier], run: fn(&mut Sandbox) -> Result<()>) -> Self {
        Self {
            name,
            tiers,
            since: None,
            guests: None,
            shares: false,
            alone: false,
            waits: false,
            agents_own: false,
            each_kernel: false,
            lasts: 0,
            run,
        }
    }

    /// One that only starts sessions and asks: it neither stops, signals nor configures its agent, and ends its sessions.
    /// So the agent may be one that other tests used and will use.
    pub(crate) const fn sharing(
        name: &'static str,
        tiers: &'static [Tier],
        run: fn(&mut Sandbox) -> Result<()>,
    ) -> Self {
        Self { shares: true, ..Self::new(name, tiers, run) }
    }

    pub(crate) const fn since(mut self, kernel: (u32, u32), feature: &'static str) -> Self {
        self.since = Some(Since { kernel, feature });
        self
    }

    /// It does `what` to the host, and so runs in guests only.
    pub(crate) const fn guests_only(mut self, what: &'static str) -> Self {
        self.guests = Some(what);
        self
    }

    /// Whatever runs beside it would suffer: it runs after all others.
    pub(crate) const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// It waits for a limit or a grace to pass: it runs beside tests that do not.
    pub(crate) const fn waiting(mut self) -> Self {
        self.waits = true;
        self
    }

    /// It shows what the agent does with its own files, clocks and requests: `--agents-own` says which of these
    /// run.
    pub(crate) const fn agents_own(mut self) -> Self {
        self.agents_own = true;
        self
    }

    /// It finds what this kernel is like: `--share` leaves it in.
    pub(crate) const fn each_kernel(mut self) -> Self {
        self.each_kernel = true;
        self
    }

    /// It waits for so many seconds to pass, more than others may take.
    pub(crate) const fn lasting(mut self, seconds: u64) -> Self {
        self.lasts = seconds;
        self
    }

    /// The line that `--list` prints.
    pub(crate) fn declaration(&self) -> String {
        let tiers: Vec<&str> = self.tiers.iter().map(|tier| tier.name()).collect();
        format!("TIPSTAFF-DECLARE {}", json!({"name": self.name, "tiers": tiers}))
    }
}

/// Every test, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = &'static Test> {
    suites::ALL.iter().flat_map(|suite| suite.iter())
}

pub(crate) fn find(name: &str) -> Result<&'static Test> {
    all()
        .chain(faults::all())
        .find(|test| test.name == name)
        .with_context(|| format!("there is no test {name:?}: see --list"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Those that say which tests hold something.
    const DOCUMENTS: [&str; 7] =
        ["promises", "failure-modes", "controls", "threat-model", "kernels", "faults", "escapes"];

    #[test]
    fn names_are_unique_and_need_no_escaping() {
        let mut seen = BTreeSet::new();
        for test in all().chain(faults::all()) {
            assert!(seen.insert(test.name), "{} twice", test.name);
            assert!(test.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b':'), "{}", test.name);
            assert!(!test.tiers.is_empty(), "{} runs nowhere", test.name);
        }
    }

    /// What a document has between backquotes, each with the text before it.
    fn quoted(text: &str) -> Vec<(&str, &str)> {
        let pieces: Vec<&str> = text.split('`').collect();
        pieces.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }

    #[test]
    fn tests_that_documents_name_are_there() {
        let names: BTreeSet<&str> = all().chain(faults::all()).map(|test| test.name).collect();
        let suites: BTreeSet<&str> =
            names.iter().filter_map(|name| name.split_once("::")).map(|(suite, _)| suite).collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for document in DOCUMENTS {
            let path = root.join(format!("docs/{document}.md"));
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // the file with unit tests that was named last, whose tests are named behind it
            let mut file = None;
            for (before, word) in quoted(&text) {
                if let Some((suite, _)) = word.split_once("::").filter(|(suite, _)| suites.contains(suite)) {
                    let whole = word.len() == suite.len() + 2;
                    assert!(whole || names.contains(word), "docs/{document}.md: suite {suite} has no test {word}");
                }
                let list = matches!(before.split_whitespace().collect::<String>().as_str(), "" | "," | "(" | ",(");
                file = match word.strip_prefix("agent/src/") {
                    Some(_) => {
                        assert!(root.join(word).exists(), "docs/{document}.md: there is no {word}");
                        word.ends_with(".rs").then(|| fs::read_to_string(root.join(word)).unwrap_or_default())
                    }
                    None if list => file,
                    None => None,
                };
                let is_name = word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                if let (Some(code), true) = (&file, is_name) {
                    assert!(code.contains(&format!("fn {word}(")), "docs/{document}.md: there is no test {word}");
                }
            }
        }
    }

    #[test]
    fn every_promise_names_its_tests() {
        let text = include_str!("../../../docs/promises.md");
        for promise in text.split("\n## ").skip(1) {
            let title = promise.lines().next().unwrap_or_default();
            let tests = quoted(promise)
                .iter()
                .filter(|(_, word)| word.contains("::") || word.starts_with("agent/src/"))
                .count();
            // what it costs is measured, and no test
            assert!(tests > 0 || promise.contains("cargo xtask bench"), "promise {title} names no test");
        }
    }
}
