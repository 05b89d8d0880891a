//! What the tests reported, by kernel and tier, and the closing table.
//!
//! A test prints `TIPSTAFF-TEST {json}` for each run, and `TIPSTAFF-DECLARE {json}` with the tiers it is for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{escapes::Row, faults, probe::Answer, verifier::Column};

const TEST: &str = "TIPSTAFF-TEST ";

/// Whether the line is a test's report.
pub(crate) fn is_report(line: &str) -> bool {
    line.contains(TEST)
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
    Skip,
}

/// One run of one test.
#[derive(Debug, Deserialize)]
struct Record {
    name: String,
    tier: String,
    kernel: String,
    result: Outcome,
    /// Why it failed or was skipped.
    why: String,
    /// How long it took, in milliseconds.
    ms: u64,
}

/// The tiers that a test is for.
#[derive(Debug, Deserialize)]
struct Declared {
    name: String,
    tiers: Vec<String>,
}

/// Passed, failed, skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts([usize; 3]);

/// All that was reported so far.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// By kernel and tier, in the order of their first record.
    rows: Vec<(String, String, Counts)>,
    /// (test, tier) that passed or failed somewhere.
    ran: BTreeSet<(String, String)>,
    declared: BTreeMap<String, Vec<String>>,
    failures: Vec<String>,
    /// Rows of the escape matrix.
    escapes: Vec<Row>,
    /// Rows of the fault matrix.
    faults: Vec<faults::Row>,
    /// What each kernel's verifier walked through.
    verifier: Vec<Column>,
    /// What can be enforced on each kernel.
    probes: Vec<Answer>,
    /// How many of those that passed did so in an earlier run.
    remembered: usize,
}

impl Records {
    /// Takes a line of a run, and returns what people should read of it. What a kernel wrote before a report on the
    /// same line is dropped.
    pub(crate) fn take(&mut self, line: &str) -> Option<String> {
        if let Some(json) = line.split(TEST).nth(1) {
            return Some(match serde_json::from_str(json) {
                Ok(record) => self.add(record),
                Err(error) => self.unreadable("report", json, &error),
            });
        }
        if let Some(json) = line.split("TIPSTAFF-ESCAPE ").nth(1) {
            return self.keep("row", json, |all, row| all.escapes.push(row));
        }
        if let Some(json) = line.split("TIPSTAFF-FAULT ").nth(1) {
            return self.keep("row", json, |all, row| all.faults.push(row));
        }
        if let Some(json) = line.split("TIPSTAFF-VERIFIER ").nth(1) {
            return self.keep("column", json, |all, column| all.verifier.push(column));
        }
        if let Some(json) = line.split("TIPSTAFF-PROBE ").nth(1) {
            return self.keep("answer", json, |all, answer| all.probes.push(answer));
        }
        if let Some(json) = line.split("TIPSTAFF-DECLARE ").nth(1) {
            return self.keep("declaration", json, |all, Declared { name, tiers }| {
                all.declared.insert(name, tiers);
            });
        }
        Some(line.to_owned())
    }

    /// Takes the reports of an earlier run.
    pub(crate) fn remember(&mut self, reports: &[String]) {
        for report in reports {
            self.take(report);
        }
        self.remembered += reports.len();
    }

    /// Keeps what a line says; what cannot be read is a failure, and told.
    fn keep<T: DeserializeOwned>(&mut self, what: &str, json: &str, keep: impl FnOnce(&mut Self, T)) -> Option<String> {
        match serde_json::from_str(json) {
            Ok(read) => {
                keep(self, read);
                None
            }
            Err(error) => Some(self.unreadable(what, json, &error)),
        }
    }

    fn unreadable(&mut self, what: &str, json: &str, error: &serde_json::Error) -> String {
        let why = format!("unreadable {what} ({error}): {json}");
        self.fail("any", "any", &why);
        why
    }

    /// Adds what a run of unit tests counted.
    pub(crate) fn count(&mut self, kernel: &str, tier: &str, outcome: Outcome, many: usize) {
        let index = self.rows.iter().position(|(k, t, _)| k == kernel && t == tier).unwrap_or_else(|| {
            self.rows.push((kernel.to_owned(), tier.to_owned(), Counts::default()));
            self.rows.len() - 1
        });
        self.rows[index].2.0[outcome as usize] += many;
    }

    /// Adds what another run reported.
    pub(crate) fn merge(&mut self, other: Self) {
        for (kernel, tier, Counts(counts)) in other.rows {
            for (outcome, many) in [Outcome::Pass, Outcome::Fail, Outcome::Skip].into_iter().zip(counts) {
                self.count(&kernel, &tier, outcome, many);
            }
        }
        self.ran.extend(other.ran);
        self.declared.extend(other.declared);
        self.failures.extend(other.failures);
        self.escapes.extend(other.escapes);
        self.faults.extend(other.faults);
        self.verifier.extend(other.verifier);
        self.probes.extend(other.probes);
        self.remembered += other.remembered;
    }

    /// Adds a failure that no test reported: a run that broke off.
    pub(crate) fn fail(&mut self, kernel: &str, tier: &str, why: &str) {
        self.count(kernel, tier, Outcome::Fail, 1);
        self.failures.push(format!("{kernel} {tier}: {why}"));
    }

    fn add(&mut self, record: Record) -> String {
        let Record { name, tier, kernel, result, why, ms } = record;
        self.count(&kernel, &tier, result, 1);
        let text = match result {
            Outcome::Pass => format!("pass  {name} ({ms} ms)"),
            Outcome::Fail => format!("FAIL  {name}: {why}"),
            Outcome::Skip => format!("skip  {name}: {why}"),
        };
        if result == Outcome::Fail {
            self.failures.push(format!("{kernel} {tier}: {name}: {why}"));
        }
        if result != Outcome::Skip {
            self.ran.insert((name, tier));
        }
        text
    }

    /// The tiers in which anything ran.
    pub(crate) fn tiers(&self) -> BTreeSet<String> {
        self.ran.iter().map(|(_, tier)| tier.clone()).collect()
    }

    /// Every declared tier in which its test ran nowhere counts as a failure.
    pub(crate) fn require_declared(&mut self) {
        let declared = self.declared.iter().flat_map(|(name, tiers)| tiers.iter().map(move |tier| (name, tier)));
        let missing: Vec<(String, String)> =
            declared.map(|(name, tier)| (name.clone(), tier.clone())).filter(|pair| !self.ran.contains(pair)).collect();
        for (name, tier) in missing {
            self.fail("any", &tier, &format!("{name}: declared for this tier, and ran nowhere in it"));
        }
    }

    /// Rows of the escape matrix, in the order in which they came.
    pub(crate) fn escapes(&self) -> &[Row] {
        &self.escapes
    }

    /// What the verifier walked through, a kernel each.
    pub(crate) fn verifier(&self) -> &[Column] {
        &self.verifier
    }

    /// What can be enforced, a kernel each.
    pub(crate) fn probes(&self) -> &[Answer] {
        &self.probes
    }

    /// Rows of the fault matrix, in the order in which they came.
    pub(crate) fn faults(&self) -> &[faults::Row] {
        &self.faults
    }

    /// How many failures of that kernel and tier there are.
    pub(crate) fn failures(&self) -> usize {
        self.rows.iter().map(|(_, _, Counts([_, failed, _]))| failed).sum()
    }

    /// The failures, the table, and the line that counts them all.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED {failure}");
        }
        let width = |column: fn(&(String, String, Counts)) -> &str, title: &str| {
            self.rows.iter().map(|row| column(row).len()).chain([title.len()]).max().unwrap_or(0)
        };
        let (kernel, tier) = (width(|row| &row.0, "kernel"), width(|row| &row.1, "tier"));
        let _ = writeln!(
            text,
            "{:kernel$}  {:tier$}  {:>6}  {:>6}  {:>7}",
            "kernel", "tier", "passed", "failed", "skipped"
        );
        let mut total = [0; 3];
        for (name, tier_name, Counts([passed, failed, skipped])) in &self.rows {
            let _ = writeln!(text, "{name:kernel$}  {tier_name:tier$}  {passed:>6}  {failed:>6}  {skipped:>7}");
            total = [total[0] + passed, total[1] + failed, total[2] + skipped];
        }
        if self.remembered > 0 {
            let _ = writeln!(text, "{} of these are of an earlier run: --again runs them", self.remembered);
        }
        let [passed, failed, skipped] = total;
        text + &format!("{passed} passed, {failed} failed, {skipped} skipped\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Records};

    fn record(name: &str, tier: &str, result: &str) -> String {
        format!(
            r#"TIPSTAFF-TEST {{"name":"{name}","tier":"{tier}","kernel":"6.1","result":"{result}","why":"so","ms":12}}"#
        )
    }

    #[test]
    fn the_table_counts_by_kernel_and_tier_and_ends_with_the_total() {
        let mut records = Records::default();
        records.count("6.18", "unit", Outcome::Pass, 40);
        for line in [record("a", "full", "pass"), record("b", "full", "fail"), record("a", "no-lsm", "skip")] {
            records.take(&line);
        }
        assert_eq!(records.take("hello").as_deref(), Some("hello"));
        let summary = records.summary();
        assert!(summary.contains("FAILED 6.1 full: b: so\n"), "{summary}");
        assert!(summary.contains("6.1     full         1       1        0\n"), "{summary}");
        assert!(summary.ends_with("\n41 passed, 1 failed, 1 skipped\n"), "{summary}");
        assert_eq!(records.failures(), 1);
    }

    #[test]
    fn what_is_of_an_earlier_run_counts_and_is_named() {
        let mut earlier = Records::default();
        earlier.remember(&[record("a", "full", "pass"), record("b", "full", "pass")]);
        let mut all = Records::default();
        all.take(&record("a", "no-lsm", "pass"));
        assert!(!all.summary().contains("earlier run"));
        all.merge(earlier);
        let summary = all.summary();
        assert!(summary.contains("\n2 of these are of an earlier run"), "{summary}");
        assert!(summary.ends_with("\n3 passed, 0 failed, 0 skipped\n"), "{summary}");
    }

    #[test]
    fn a_declared_tier_that_ran_nowhere_fails_and_one_that_ran_does_not() {
        let mut records = Records::default();
        assert_eq!(records.take(r#"TIPSTAFF-DECLARE {"name":"a","tiers":["full","no-lsm"]}"#), None);
        records.take(&record("a", "full", "pass"));
        records.take(&record("a", "no-lsm", "skip"));
        let mut all = Records::default();
        all.merge(records);
        all.require_declared();
        assert_eq!(all.failures(), 1);
        assert!(all.summary().contains("FAILED any no-lsm: a: declared"));
    }

    #[test]
    fn a_report_after_a_kernel_message_is_read_and_a_broken_one_is_a_failure() {
        let mut records = Records::default();
        let line = format!("[   1.2] clocksource: {}", record("a", "full", "pass"));
        assert_eq!(records.take(&line).as_deref(), Some("pass  a (12 ms)"));
        assert_eq!(records.failures(), 0);
        records.take("TIPSTAFF-TEST {\"name\":");
        assert_eq!(records.failures(), 1);
    }
}
