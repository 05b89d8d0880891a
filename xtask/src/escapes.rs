//! `escapes`: the escape matrix on this kernel and in guests, side by side. Each attempt is a row; what is open must stand in
//! `docs/threat-model.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    matrix::{self, Where, heading, markdown, version},
    workspace::Workspace,
};

/// How long one kernel may take.
const LIMIT: Duration = Duration::from_secs(600);
/// Who attempts, in the order of the table, and what they are called.
const WHO: [(&str, &str); 3] = [("user", "user"), ("root", "root without capabilities"), ("capable", "root")];
/// The promises that are attacked, in the order of the table.
const PROMISES: [(&str, &str); 6] = [
    ("leave", "to leave the session"),
    ("run", "to run what is out of scope"),
    ("send", "to reach whom is out of scope"),
    ("time", "to go on after the deadline"),
    ("privilege", "to act beyond the session"),
    ("govern", "to reach what holds the session"),
];

/// Options of `escapes`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Where,
    /// Write the table to FILE, as Markdown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What an attempt came to on one kernel.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Row {
    kernel: String,
    tier: String,
    promise: String,
    name: String,
    what: String,
    /// By who attempts: `denied`, `killed`, `attributed`, `dropped`, `OPEN O7`, `-`.
    cells: BTreeMap<String, String>,
    /// What people should know of it.
    notes: Vec<String>,
}

/// The verb. Its exit status is 1 where something is open that is not known, or an attempt did not come out as it must.
pub(crate) fn escapes(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let args = ["--filter", "escapes::"].map(str::to_owned);
    let records = matrix::collect(workspace, &options.place, "attempts", &args, LIMIT)?;
    let table = Table::of(records.escapes())?;
    print!("{}", table.text());
    matrix::conclude(&records, options.output.as_deref(), || table.document())
}

/// All rows: a column for each kernel and tier.
struct Table<'a> {
    columns: Vec<(&'a str, &'a str)>,
    /// Promise, name, and what is tried, in the order of the first kernel.
    attempts: Vec<(&'a str, &'a str, &'a str)>,
    rows: &'a [Row],
}

impl<'a> Table<'a> {
    fn of(rows: &'a [Row]) -> Result<Self> {
        if rows.is_empty() {
            bail!("no attempt was reported");
        }
        let columns = matrix::columns(rows.iter().map(|row| (&*row.kernel, &*row.tier)));
        let mut attempts = Vec::new();
        for row in rows {
            let attempt = (&*row.promise, &*row.name, &*row.what);
            if !attempts.contains(&attempt) {
                attempts.push(attempt);
            }
        }
        Ok(Self { columns, attempts, rows })
    }

    fn row(&self, attempt: (&str, &str, &str), column: (&str, &str)) -> Option<&Row> {
        let same =
            |row: &&Row| (&*row.promise, &*row.name) == (attempt.0, attempt.1) && (&*row.kernel, &*row.tier) == column;
        self.rows.iter().find(same)
    }

    /// What came of it on one kernel: one word where it is one for everybody who could do it, but for what is open: there it
    /// is said for whom.
    fn field(&self, attempt: (&str, &str, &str), column: (&str, &str)) -> String {
        let Some(row) = self.row(attempt, column) else { return String::new() };
        let cell = |who: &str| row.cells.get(who).map_or("-", String::as_str);
        let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
        for (who, name) in WHO {
            let cell = cell(who);
            match found.iter_mut().find(|(text, _)| *text == cell) {
                _ if cell == "-" => {}
                Some((_, names)) => names.push(name),
                None => found.push((cell, vec![name])),
            }
        }
        match found.as_slice() {
            [] => "-".to_owned(),
            [(text, names)] if !text.starts_with("OPEN") || names.len() == WHO.len() => (*text).to_owned(),
            many => {
                let parts = many.iter().map(|(text, names)| format!("{text} ({})", names.join(", ")));
                parts.collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn of_promise(&self, promise: &str) -> Vec<(&'a str, &'a str, &'a str)> {
        self.attempts.iter().copied().filter(|attempt| attempt.0 == promise).collect()
    }

    /// What an attempt came to, for everybody and on every kernel.
    fn cells(&self, attempt: (&str, &str, &str)) -> Vec<&'a str> {
        let rows = self.rows.iter().filter(|row| (&*row.promise, &*row.name) == (attempt.0, attempt.1));
        rows.flat_map(|row| row.cells.values()).map(String::as_str).collect()
    }

    /// Whether nobody could make it anywhere: it shows nothing.
    fn is_nobodys(&self, attempt: (&str, &str, &str)) -> bool {
        self.cells(attempt).iter().all(|cell| *cell == "-")
    }

    /// Whether somebody made it somewhere, and it is known of everybody who did that nothing came of it.
    fn is_held(&self, attempt: (&str, &str, &str)) -> bool {
        let failed = |cell: &&str| cell.starts_with("OPEN") || *cell == "unclear";
        !self.is_nobodys(attempt) && !self.cells(attempt).iter().any(failed)
    }

    /// The numbers under which an attempt is open somewhere; `?` for one that is not known.
    fn open(&self, attempt: (&str, &str, &str)) -> BTreeSet<String> {
        self.cells(attempt)
            .into_iter()
            .filter_map(|cell| cell.strip_prefix("OPEN"))
            .map(|number| match number.trim() {
                "" => "?".to_owned(),
                number => number.to_owned(),
            })
            .collect()
    }

    /// By promise: how many attempts, how many that held wherever they were made, how many that nobody could make, and under
    /// which numbers the others are open.
    fn summary(&self) -> String {
        let mut lines = vec![["what is attempted", "attempts", "held", "made by nobody", "open"].map(str::to_owned)];
        for (promise, what) in PROMISES {
            let attempts = self.of_promise(promise);
            let held = attempts.iter().filter(|one| self.is_held(**one)).count();
            let nobodys = attempts.iter().filter(|one| self.is_nobodys(**one)).count();
            let open = attempts.iter().flat_map(|one| self.open(*one));
            let mut numbers: Vec<String> = open.collect::<BTreeSet<_>>().into_iter().collect();
            numbers.sort_by_key(|number| (number.len(), number.clone()));
            let text = |count: usize| count.to_string();
            let numbers = if numbers.is_empty() { "–".to_owned() } else { numbers.join(", ") };
            if !attempts.is_empty() {
                lines.push([what.to_owned(), text(attempts.len()), text(held), text(nobodys), numbers]);
            }
        }
        markdown(&lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>())
    }

    /// The table of a promise.
    fn part(&self, promise: &str) -> String {
        let head: Vec<String> = ["attempt", "what is tried"]
            .map(str::to_owned)
            .into_iter()
            .chain(self.columns.iter().map(|(kernel, tier)| format!("{}, {tier}", version(kernel))))
            .collect();
        let mut lines = vec![head];
        for attempt in self.of_promise(promise) {
            let fields = self.columns.iter().map(|column| self.field(attempt, *column));
            lines.push([attempt.1.to_owned(), attempt.2.to_owned()].into_iter().chain(fields).collect());
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

    /// For people at a terminal: with what is to be said of single attempts.
    fn text(&self) -> String {
        let mut text = format!("{}{}\n", self.parts(), self.summary());
        for row in self.rows {
            // what somebody could not do outside either is no news
            for note in row.notes.iter().filter(|note| !note.contains(": outside ")) {
                let _ = writeln!(text, "{} {}, {}/{}: {note}", version(&row.kernel), row.tier, row.promise, row.name);
            }
        }
        text
    }

    fn document(&self) -> Result<String> {
        let open = self.attempts.iter().filter(|attempt| !self.open(**attempt).is_empty()).count();
        let nobodys = self.attempts.iter().filter(|attempt| self.is_nobodys(**attempt)).count();
        Ok(format!(
            "# What it withstands\n\nWritten by `cargo xtask escapes --output docs/escapes.md` on \
             {}\n\n{PREFACE}\n{}\n{} attempts, {open} of them open somewhere, {nobodys} made by nobody.\n\n{}",
            matrix::made_on(&self.columns)?,
            self.summary(),
            self.attempts.len(),
            self.parts().trim_end().to_owned() + "\n",
        ))
    }
}

/// What the words of the table mean.
const PREFACE: &str = "Each attempt is a small program that a member runs: as an ordinary user, as root without capabilities, and as \
root with\nthem (in tier no-lsm: where the policy leaves them). Its allow twin, in scope or outside of every session, showed that the\n\
program works.\n\n\
| word | meaning |\n|---|---|\n\
| denied | refused with an errno; nothing came of it; where Tipstaff's programs refused it, a record says so |\n\
| killed | `SIGKILL` before the first instruction, or by the end; nothing came of it |\n\
| dropped | the caller was told nothing, and nothing came of it |\n\
| attributed | it came to pass, and whoever did it is a member still: what it tried then was refused |\n\
| OPEN O*n* | it succeeds; the number is that in [`threat-model.md`](threat-model.md), which says why |\n\
| - | nobody of these could do it outside of a session either, or the kernel lacks it |\n\
| (empty) | not made there: it changes the whole machine, and is made in guests only |\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, name: &str, cells: [&str; 3]) -> Row {
        let cells = WHO.iter().zip(cells).map(|((who, _), cell)| ((*who).to_owned(), cell.to_owned())).collect();
        let text = str::to_owned;
        Row {
            kernel: text(kernel),
            tier: text("full"),
            promise: text("run"),
            name: text(name),
            what: text("so"),
            cells,
            notes: Vec::new(),
        }
    }

    #[test]
    fn kernels_stand_side_by_side_and_what_differs_by_user_says_so() {
        let rows = [
            row("6.1.0-5", "one", ["denied", "-", "denied"]),
            row("7.2+deb", "one", ["denied", "OPEN O9", "OPEN O9"]),
            row("6.1.0-5", "two", ["-", "-", "-"]),
        ];
        let table = Table::of(&rows).unwrap();
        let fields: Vec<String> = table.columns.iter().map(|column| table.field(table.attempts[0], *column)).collect();
        assert_eq!(fields, ["denied", "denied (user); OPEN O9 (root without capabilities, root)"]);
        assert_eq!(table.field(table.attempts[1], table.columns[0]), "-");
        let rows = [row("6.1", "one", ["-", "-", "OPEN O2"]), row("6.1", "two", ["OPEN O2", "OPEN O2", "OPEN O2"])];
        let open = Table::of(&rows).unwrap();
        assert_eq!(open.field(open.attempts[0], open.columns[0]), "OPEN O2 (root)");
        assert_eq!(open.field(open.attempts[1], open.columns[0]), "OPEN O2");
        assert_eq!(table.field(table.attempts[1], table.columns[1]), "");
        let summary = table.summary();
        let squeezed = summary.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains("| to run what is out of scope | 2 | 0 | 1 | O9 |"), "{summary}");
        assert!(Table::of(&[]).is_err());
    }

    #[test]
    fn what_nobody_could_make_or_is_not_clear_is_not_held() {
        let rows = [
            row("6.1", "nobodys", ["-", "-", "-"]),
            row("6.12", "nobodys", ["-", "-", "-"]),
            row("6.1", "one", ["-", "-", "-"]),
            row("6.12", "one", ["-", "-", "denied"]),
            row("6.1", "unclear", ["denied", "unclear", "denied"]),
            row("6.1", "open", ["denied", "OPEN", "-"]),
        ];
        let table = Table::of(&rows).unwrap();
        let summary = table.summary();
        let squeezed = summary.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains("| to run what is out of scope | 4 | 1 | 1 | ? |"), "{summary}");
    }
}
