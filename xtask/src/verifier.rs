//! `verifier`: what the kernels' verifier walks through for each program, on this kernel and in guests, side by side. The
//! tests hold each kernel against what is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    matrix::{self, Where, markdown},
    workspace::Workspace,
};

/// How long one kernel may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Options of `verifier`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    place: Where,
    /// Write the table to FILE, as Markdown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What one kernel says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Column {
    kernel: String,
    tier: String,
    /// By program: instructions that the verifier walked through.
    programs: BTreeMap<String, u64>,
}

/// The verb. Its exit status is 1 where a kernel differs from what is written, unless it is written anew.
pub(crate) fn verifier(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let args = ["--filter", "verifier::"].map(str::to_owned);
    let records = matrix::collect(workspace, &options.place, "programs", &args, LIMIT)?;
    let columns = records.verifier();
    if columns.is_empty() {
        bail!("no kernel said what its verifier walked through");
    }
    print!("{}", table(columns));
    let written = matrix::conclude(&records, options.output.as_deref(), || document(columns))?;
    Ok(if options.output.is_some() { ExitCode::SUCCESS } else { written })
}

/// `6.12, full`: point releases share a column.
fn name(column: &Column) -> String {
    let series: Vec<&str> = column.kernel.split(['.', '-']).take(2).collect();
    format!("{}, {}", series.join("."), column.tier)
}

fn table(columns: &[Column]) -> String {
    let head = ["program".to_owned()].into_iter().chain(columns.iter().map(name));
    let mut lines = vec![head.collect::<Vec<_>>()];
    let programs: BTreeSet<&String> = columns.iter().flat_map(|column| column.programs.keys()).collect();
    for program in programs {
        let cells = columns.iter().map(|column| column.programs.get(program).map_or_else(String::new, u64::to_string));
        lines.push([format!("`{program}`")].into_iter().chain(cells).collect());
    }
    let sums = columns.iter().map(|column| column.programs.values().sum::<u64>().to_string());
    lines.push(["all".to_owned()].into_iter().chain(sums).collect());
    markdown(&lines)
}

fn document(columns: &[Column]) -> Result<String> {
    let made_on: Vec<(&str, &str)> = columns.iter().map(|column| (&*column.kernel, &*column.tier)).collect();
    Ok(format!(
        "# What the verifier walks through\n\nWritten by `cargo xtask verifier --output docs/verifier.md` on {}\n\n{PREFACE}\n{}",
        matrix::made_on(&made_on)?,
        table(columns)
    ))
}

/// What the numbers are.
const PREFACE: &str = "\
Instructions that each kernel's verifier walked through (`bpf_prog_info.verified_insns`) when the agent loaded a program: what a
start costs, and how near a program is to the million at which every kernel refuses it. An empty field: the program is not
loaded there. `verifier::walks-as-far-as-is-written` holds every kernel on which the tests run against its column, to a tenth;
a kernel without a column may take no more than the dearest of the others.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_stand_side_by_side() {
        let column = |kernel: &str, programs: &[(&str, u64)]| Column {
            kernel: kernel.to_owned(),
            tier: "full".to_owned(),
            programs: programs.iter().map(|(name, many)| ((*name).to_owned(), *many)).collect(),
        };
        let columns = [column("6.1.0-5-amd64", &[("bind4", 7)]), column("6.12-rc1", &[("bind4", 6), ("exec", 20)])];
        let text = table(&columns).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.starts_with("| program | 6.1, full | 6.12, full |"), "{text}");
        assert!(text.ends_with("| `bind4` | 7 | 6 | | `exec` | | 20 | | all | 7 | 26 |"), "{text}");
    }
}
