//! `faults`: the fault matrix on this kernel and in guests, side by side. Each fault is a row: what held, what was lost, and
//! how long it took until all was as before.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    matrix::{self, Where, heading, markdown, version},
    workspace::Workspace,
};

/// How long one kernel may take, beside the random faults.
const LIMIT: Duration = Duration::from_secs(3600);
/// The promises that are attacked, in the order of the table.
const PROMISES: [(&str, &str); 7] = [
    ("refused", "what is out of scope stays refused"),
    ("time", "time is the kernel's"),
    ("end", "the end is zero"),
    ("restart", "a restart is not a hole"),
    ("recorded", "recorded or counted"),
    ("shown", "no silent weakening"),
    ("input", "bad input changes nothing"),
];

/// Options of `faults`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Where,
    /// Only the rows that no test of every boot has, and a part of what is done again and again
    #[arg(long)]
    short: bool,
    /// Only rows whose name contains it
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// How many minutes the random faults go on
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// What the random faults are drawn from: the number that an earlier run printed, to have the same again
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Keep the rows in FILE, a line each, and show those of other kernels, forms and days that it has already too
    #[arg(long, value_name = "FILE")]
    rows: Option<PathBuf>,
    /// Write the table to FILE, as Markdown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a fault came to on one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Row {
    kernel: String,
    tier: String,
    promise: String,
    name: String,
    what: String,
    holds: String,
    /// `held`, `FAILED`, or `-`: this machine lacks what it needs, or it is of the other tier.
    result: String,
    /// Records that the evidence says it has not.
    lost: u64,
    /// How long it took until all was as before, at the longest; nothing had to be waited for where it is none.
    whole_ms: Option<u64>,
    /// What people should know of it.
    notes: Vec<String>,
}

/// The verb. Its exit status is 1 where something did not hold.
pub(crate) fn faults(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let form = if options.short { "short" } else { "long" };
    let mut args = vec!["--faults".to_owned(), form.to_owned()];
    let seconds = options.minutes.map(|minutes| minutes * 60);
    for (word, value) in [
        ("--filter", options.row.clone()),
        ("--seed", options.seed.map(|seed| seed.to_string())),
        ("--soak", seconds.map(|seconds| seconds.to_string())),
    ] {
        args.extend(value.into_iter().flat_map(|value| [word.to_owned(), value]));
    }
    let limit = LIMIT + Duration::from_secs(seconds.unwrap_or(0));
    let records = matrix::collect(workspace, &options.place, "faults", &args, limit)?;
    let rows = match &options.rows {
        Some(path) => kept(path, records.faults())?,
        None => records.faults().to_vec(),
    };
    let table = Table::of(&rows)?;
    print!("{}", table.text());
    matrix::conclude(&records, options.output.as_deref(), || table.document())
}

/// What the file has, with these rows in the place of those of the same fault on the same kernel; the file has it then too.
fn kept(path: &Path, rows: &[Row]) -> Result<Vec<Row>> {
    let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
    let read = |line| serde_json::from_str(line).with_context(|| format!("{} has {line:?}", path.display()));
    let mut all = text.lines().map(read).collect::<Result<Vec<Row>>>()?;
    for row in rows {
        let same = |one: &Row| (&one.name, &one.kernel, &one.tier) == (&row.name, &row.kernel, &row.tier);
        match all.iter_mut().find(|one| same(one)) {
            Some(earlier) => *earlier = row.clone(),
            None => all.push(row.clone()),
        }
    }
    let lines = all.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(path, lines.join("\n") + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(all)
}

/// All rows: a column for each kernel and tier.
struct Table<'a> {
    columns: Vec<(&'a str, &'a str)>,
    rows: &'a [Row],
}

impl<'a> Table<'a> {
    fn of(rows: &'a [Row]) -> Result<Self> {
        if rows.is_empty() {
            bail!("no fault was reported");
        }
        Ok(Self { columns: matrix::columns(rows.iter().map(|row| (&*row.kernel, &*row.tier))), rows })
    }

    /// The faults that attack a promise, once each.
    fn of_promise(&self, promise: &str) -> Vec<&'a Row> {
        self.rows.iter().filter(|row| row.promise == promise).fold(Vec::new(), |mut found: Vec<&Row>, row| {
            if !found.iter().any(|one| one.name == row.name) {
                found.push(row);
            }
            found
        })
    }

    /// The table of a promise.
    fn part(&self, promise: &str) -> String {
        let head = ["fault", "what is done", "what must hold"].map(str::to_owned).into_iter();
        let kernels = self.columns.iter().map(|(kernel, tier)| format!("{}, {tier}", version(kernel)));
        let mut lines = vec![head.chain(kernels).collect::<Vec<_>>()];
        for fault in self.of_promise(promise) {
            let fields = self.columns.iter().map(|column| {
                let of = |row: &&Row| row.name == fault.name && (&*row.kernel, &*row.tier) == *column;
                self.rows.iter().find(of).map_or_else(String::new, Row::field)
            });
            let first = [fault.name.clone(), fault.what.clone(), fault.holds.clone()];
            lines.push(first.into_iter().chain(fields).collect());
        }
        markdown(&lines)
    }

    fn parts(&self) -> String {
        let mut text = String::new();
        for (promise, what) in PROMISES.iter().filter(|(promise, _)| !self.of_promise(promise).is_empty()) {
            let _ = write!(text, "{}\n\n{}\n", heading(what), self.part(promise));
        }
        text
    }

    fn notes(&self) -> String {
        let mut text = String::new();
        for row in self.rows {
            for note in &row.notes {
                let _ = writeln!(text, "- {} {}, {}: {note}", version(&row.kernel), row.tier, row.name);
            }
        }
        text
    }

    fn summary(&self) -> String {
        let count = |result: &str| self.rows.iter().filter(|row| row.result == result).count();
        let longest = self.rows.iter().filter_map(|row| row.whole_ms).max().unwrap_or(0);
        format!(
            "{} results, kernels: {}. {} held, {} failed, {} for which the machine lacks something, or which are of the \
             other tier. The longest time until all was as before is {} ms.\n",
            self.rows.len(),
            self.columns.len(),
            count("held"),
            count("FAILED"),
            count("-"),
            longest
        )
    }

    fn text(&self) -> String {
        format!("{}{}\n{}", self.parts(), self.notes(), self.summary())
    }

    fn document(&self) -> Result<String> {
        Ok(format!(
            "# What breaks around it\n\nWritten by `cargo xtask faults --rows FILE --output docs/faults.md`, whose rows are of several runs, on {}\n\n{PREFACE}\n{}\n{}\n## \
             Notes\n\n{}",
            matrix::made_on(&self.columns)?,
            self.summary(),
            self.parts().trim_end().to_owned() + "\n",
            self.notes()
        ))
    }
}

impl Row {
    fn field(&self) -> String {
        if self.result != "held" {
            return if self.result == "-" { "–".to_owned() } else { self.result.clone() };
        }
        let lost = match self.lost {
            0 => "nothing lost".to_owned(),
            many => format!("{many} counted"),
        };
        match self.whole_ms {
            Some(time) => format!("held, {lost}, {time} ms"),
            None => format!("held, {lost}"),
        }
    }
}

/// What the words of the table mean.
const PREFACE: &str = "Each row brings a fault about, with the real agent and real members. A member that is there tries what is \
out of scope and\nwhat is in scope, before, during and after it; each row ends with the proof that nothing is left and that the \
evidence adds up.\n\n\
| word | meaning |\n|---|---|\n\
| held | what must hold did |\n\
| nothing lost, *n* counted | records that the evidence has not, and says so |\n\
| *n* ms | how long it took until all was as before, at the longest: mostly until the next agent answers |\n\
| – | this machine lacks what the fault needs, or it is of the other tier; the notes say which |\n\
| (empty) | not run there: the short form leaves out what tests do in every boot, and what takes many minutes |\n\n\
An agent is killed at system calls that change something outside of it, openat(2) with `O_CREAT` among them. What is stored into \
mapped memory is\nno call: between two such stores nobody is killed.\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, result: &str, lost: u64, whole_ms: Option<u64>) -> Row {
        let text = str::to_owned;
        Row {
            kernel: text(kernel),
            tier: text("full"),
            promise: text("restart"),
            name: text("one"),
            what: text("so"),
            holds: text("that"),
            result: text(result),
            lost,
            whole_ms,
            notes: vec![text("because")],
        }
    }

    #[test]
    fn kernels_stand_side_by_side_with_what_was_lost_and_for_how_long() {
        let rows = [row("6.1.0-5", "held", 0, Some(12)), row("7.2+deb", "held", 3, None), row("6.12", "-", 0, None)];
        let table = Table::of(&rows).unwrap();
        let text = table.text().split_whitespace().collect::<Vec<_>>().join(" ");
        let line = "| one | so | that | held, nothing lost, 12 ms | held, 3 counted | – |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("3 results, kernels: 3. 2 held, 0 failed, 1 for which"), "{text}");
        assert!(text.contains("- 6.12 full, one: because"), "{text}");
        assert!(Table::of(&[]).is_err());
    }

    #[test]
    fn a_kept_row_gives_way_to_a_newer_one_of_the_same_kernel() {
        let path = std::env::temp_dir().join(format!("tipstaff-rows-{}", std::process::id()));
        let (old, other) = (row("6.1", "FAILED", 0, None), row("6.12", "held", 0, None));
        assert_eq!(kept(&path, &[old, other.clone()]).unwrap().len(), 2);
        let new = row("6.1", "held", 1, Some(2));
        let all = kept(&path, std::slice::from_ref(&new));
        fs::remove_file(&path).unwrap();
        assert_eq!(all.unwrap(), [new, other]);
    }
}
