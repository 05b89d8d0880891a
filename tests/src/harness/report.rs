//! The lines that the runner prints for machines, and the closing one for people.

use serde_json::json;

use super::registry::{Test, Tier};

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Fail(String),
    Skip(String),
}

/// Counts outcomes and prints each as it comes.
#[derive(Debug)]
pub(crate) struct Report {
    tier: Tier,
    kernel: String,
    passed: usize,
    failed: Vec<&'static str>,
    skipped: usize,
}

impl Report {
    pub(crate) fn new(tier: Tier, kernel: String) -> Self {
        Self { tier, kernel, passed: 0, failed: Vec::new(), skipped: 0 }
    }

    pub(crate) fn add(&mut self, test: &Test, outcome: &Outcome, ms: u128) {
        let (result, why) = match outcome {
            Outcome::Pass => ("pass", ""),
            Outcome::Fail(why) => ("fail", why.as_str()),
            Outcome::Skip(why) => ("skip", why.as_str()),
        };
        match outcome {
            Outcome::Pass => self.passed += 1,
            Outcome::Fail(_) => self.failed.push(test.name),
            Outcome::Skip(_) => self.skipped += 1,
        }
        self.print(test.name, result, why, ms);
    }

    fn print(&self, name: &str, result: &str, why: &str, ms: u128) {
        let (tier, kernel) = (self.tier.name(), &self.kernel);
        let line = json!({"name": name, "tier": tier, "kernel": kernel, "result": result, "why": why, "ms": ms});
        println!("TIPSTAFF-TEST {line}");
    }

    /// Adds a failure that is no test's.
    pub(crate) fn fail(&mut self, name: &'static str, why: &str) {
        self.failed.push(name);
        self.print(name, "fail", why, 0);
    }

    /// Prints the counts; whether all is well.
    pub(crate) fn close(&self) -> bool {
        for name in &self.failed {
            println!("failed: {name}");
        }
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped);
        println!("{passed} passed, {failed} failed, {skipped} skipped ({}, {})", self.tier.name(), self.kernel);
        failed == 0
    }
}
