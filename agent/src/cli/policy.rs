//! `tipstaff policy check`: every fault of every file at once. Needs no agent.

use std::{io, path::PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{
    Exit, Failure, Host, Print,
    print::{self, printable},
    run::policy_bytes,
};
use crate::api::wire::Problem;

/// What a good policy says, for either form of output.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// For people, with the last line's end.
    pub text: String,
    /// For programs.
    pub json: Value,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Check policy files and show what they say
    Check(Flags),
}

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    print: Print,
}

/// One file's result, as in the JSON.
#[derive(Debug, Serialize)]
struct Checking {
    file: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Value>,
    problems: Vec<Problem>,
    #[serde(skip)]
    text: String,
}

pub(super) fn execute(flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    let mut results = Vec::new();
    for path in &flags.files {
        let file = path.display().to_string();
        let checked = policy_bytes(path).map_err(|error| vec![unreadable(&file, &error)]);
        results.push(match checked.and_then(|bytes| (host.check_policy)(&file, &bytes)) {
            Ok(Checked { text, json }) => Checking { file, ok: true, policy: Some(json), problems: Vec::new(), text },
            Err(problems) => Checking { file, ok: false, policy: None, problems, text: String::new() },
        });
    }
    let good = results.iter().all(|result| result.ok);
    print::show(flags.print.output, &results, |results| results.iter().map(text).collect())?;
    Ok(if good { Exit::Ok } else { Exit::Usage })
}

/// A file that cannot be read is one problem; the others are checked all the same.
fn unreadable(file: &str, error: &io::Error) -> Problem {
    let message = format!("cannot be read: {error}");
    Problem { file: file.to_owned(), line: 1, column: 1, key: String::new(), message }
}

fn text(result: &Checking) -> String {
    if result.ok {
        return format!("{}: ok\n{}", printable(&result.file), result.text);
    }
    result.problems.iter().map(|problem| printable(&problem.to_string()) + "\n").collect()
}
