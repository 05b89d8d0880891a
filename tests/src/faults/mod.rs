//! The fault matrix: what breaks around the agent, one row each. A row brings the fault about, holds what is promised against
//! it, and says what was lost – nothing, or counted – and how long it took until all was as before.
//!
//! No test of a boot: `./x faults` runs the rows, each in a process and a sandbox of its own. Where a test brings the fault
//! about already, the row is that test.

mod crowd;
mod folders;
mod model;
mod rows;
mod soak;
mod stages;
mod watch;

use std::sync::LazyLock;

use anyhow::bail;
use nix::sys::utsname::uname;
use serde_json::{Value, json};

use crate::{
    harness::{options::Options, prelude::*, registry},
    suites,
};

/// How the lines begin that rows are printed as.
pub(crate) const ROW: &str = "TIPSTAFF-FAULT ";
/// What the names of rows begin with.
const PREFIX: &str = "fault::";

/// How much of the matrix is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// What two minutes are enough for: rows that no test of a boot has, and a part of what is done again and again.
    Short,
    /// Every row.
    Long,
}

impl Form {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "short" => Ok(Self::Short),
            "long" => Ok(Self::Long),
            _ => bail!("there is no form {name:?}: give short or long"),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// What a row is told.
#[derive(Clone, Copy, Debug)]
struct Asked {
    form: Form,
    seed: Option<u64>,
    soak: Option<u64>,
}

/// How a row is run.
#[derive(Clone, Copy)]
enum By {
    /// The test that does it in every boot.
    Test(&'static str),
    /// Its own code; what it says is shown as notes. `long`: not in the short form.
    Row { run: fn(&mut Sandbox, Asked) -> Result<Vec<String>>, lasts: u64, guests: Option<&'static str>, long: bool },
}

/// A row of the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    /// What is attacked, by the name that the table knows.
    promise: &'static str,
    name: &'static str,
    /// What is done.
    what: &'static str,
    /// What must hold.
    holds: &'static str,
    by: By,
}

/// The rows as the runner takes them.
static TESTS: LazyLock<Vec<(Test, &'static Fault)>> = LazyLock::new(|| {
    let row = |fault: &'static Fault| Some((fault.test()?, fault));
    rows::ALL.iter().flat_map(|rows| rows.iter()).filter_map(row).collect()
});

/// Every row.
pub(crate) fn all() -> impl Iterator<Item = &'static Test> {
    TESTS.iter().map(|(test, _)| test)
}

/// The rows of a form.
pub(crate) fn of_form(form: Form) -> impl Iterator<Item = &'static Test> {
    let own = move |fault: &Fault| form == Form::Long || matches!(fault.by, By::Row { long: false, .. });
    TESTS.iter().filter(move |(_, fault)| own(fault)).map(|(test, _)| test)
}

/// The row of that name, as the runner calls it.
pub(crate) fn named(name: &str) -> Option<&'static Fault> {
    TESTS.iter().find(|(test, _)| test.name == name).map(|(_, fault)| *fault)
}

impl Fault {
    /// None: it is a test's, and there is no such test.
    fn test(&self) -> Option<Test> {
        let name: &'static str = String::leak(format!("{PREFIX}{}", self.name));
        match self.by {
            By::Test(test) => Some(Test { name, ..*suites::find(test)? }),
            By::Row { lasts, guests, .. } => {
                Some(Test { guests, ..Test::new(name, WHEREVER, |_| Ok(())).lasting(lasts) })
            }
        }
    }

    /// In a process of its own: runs the row, looks whether all is well afterwards, and prints it.
    pub(crate) fn judge(&self, s: &mut Sandbox, options: &Options) -> Result<()> {
        let form = options.faults.unwrap_or(Form::Long);
        let asked = Asked { form, seed: options.seed, soak: options.soak };
        let ran = match self.by {
            By::Test(name) => (registry::find(name)?.run)(s).map(|()| Vec::new()),
            By::Row { run, .. } => run(s, asked),
        };
        let lost = s.evidence().map(|records| lost(&records)).unwrap_or_default();
        let healed = s.healed_within().map(|time| u64::try_from(time.as_millis())).transpose()?;
        let ran = match ran {
            Err(error) if !error.is::<Lacking>() => Err(error),
            other => s.finish().context("afterwards").and(other),
        };
        let (result, notes) = match &ran {
            Ok(notes) => ("held", notes.clone()),
            Err(error) if error.is::<Lacking>() => ("-", vec![error.to_string()]),
            Err(error) => ("FAILED", vec![format!("{error:#}")]),
        };
        self.print(
            s.tier,
            &uname()?.release().to_string_lossy(),
            &json!({
                "result": result, "lost": lost, "whole_ms": healed, "notes": notes,
            }),
        );
        ran.map(drop)
    }

    /// The machine lacks what it needs.
    pub(crate) fn lacks(&self, tier: Tier, release: &str, why: &str) {
        self.print(tier, release, &json!({"result": "-", "lost": 0, "whole_ms": null, "notes": [why]}));
    }

    fn print(&self, tier: Tier, release: &str, came: &Value) {
        let mut line = json!({"kernel": release, "tier": tier.name(), "promise": self.promise, "name": self.name,
            "what": self.what, "holds": self.holds});
        if let (Some(line), Some(came)) = (line.as_object_mut(), came.as_object()) {
            line.extend(came.clone());
        }
        println!("{ROW}{line}");
    }
}

/// How many records the evidence says that it has not.
fn lost(records: &[Value]) -> u64 {
    records.iter().filter(|r| r["type"] == "gap").filter_map(|gap| gap["lost"].as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_that_is_a_test_is_there() {
        for fault in rows::ALL.iter().flat_map(|rows| rows.iter()) {
            assert!(fault.test().is_some(), "{}: there is no such test", fault.name);
            assert!(["refused", "time", "end", "restart", "recorded", "shown", "input"].contains(&fault.promise));
        }
    }

    #[test]
    fn what_is_lost_is_what_the_gaps_tell() {
        let records = [json!({"type": "gap", "lost": 3}), json!({"type": "exec", "lost": 9}), json!({"type": "gap"})];
        assert_eq!(lost(&records), 3);
    }
}
