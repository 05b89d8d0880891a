//! What the matrices share: attempts and faults are rows that the tests print, on this kernel and in guests, and that become
//! one table.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build,
    exec::{Watched, output, say, step, watch},
    kernels,
    report::Records,
    setup,
    vm::{Clock, Guest, Lsm},
    workspace::Workspace,
};

/// The guests, in tier full; the kernel that runs here is in the other.
const GUESTS: [&str; 3] = ["6.1", "6.12", "unstable"];

/// Where a matrix is made.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// Only on this kernel
    #[arg(long, conflicts_with = "kernel")]
    native: bool,
    /// Only in a guest: 6.1, 6.12, unstable, or a kernel image
    #[arg(long, value_name = "K")]
    kernel: Option<String>,
    /// Whether the guest's kernel runs BPF LSM programs
    #[arg(long, value_enum, default_value_t = Lsm::Full, requires = "kernel")]
    lsm: Lsm,
}

/// Builds, and runs the tests with `args` on each kernel, `limit` at most on each; their rows are `what`.
pub(crate) fn collect(
    workspace: &Workspace,
    place: &Where,
    what: &str,
    args: &[String],
    limit: Duration,
) -> Result<Records> {
    let native = place.native || place.kernel.is_none();
    if native && !nix::unistd::geteuid().is_root() {
        bail!("the {what} need an agent, which loads programs into this kernel; run them as root, or with --kernel");
    }
    build::build(workspace)?;
    let mut records = Records::default();
    if native {
        step(&format!("{what} on this kernel"), || on_this_kernel(workspace, args, limit, &mut records))?;
    }
    let guests: Vec<&str> = match &place.kernel {
        Some(kernel) => vec![kernel],
        None if place.native => Vec::new(),
        None => GUESTS.to_vec(),
    };
    for name in guests {
        setup::guest_tools()?;
        let kernel = kernels::get(workspace, name, false)?;
        let guest = Guest { kernel: &kernel, lsm: place.lsm, args, clock: Clock::Time, append: "" };
        guest.write_initramfs(workspace)?;
        let ran = step(&format!("{what} on {name}"), || guest.run(workspace, limit, &mut records))?;
        if ran.status != 0 && records.failures() == 0 {
            records.fail(name, guest.tier(), &format!("ended with status {}", ran.status));
        }
    }
    Ok(records)
}

/// Runs the tests with `args` on the kernel that runs here.
pub(crate) fn on_this_kernel(
    workspace: &Workspace,
    args: &[String],
    limit: Duration,
    records: &mut Records,
) -> Result<()> {
    let before = records.failures();
    let end = watch(
        Command::new(workspace.tests()).args(["--tier", "auto"]).args(args),
        |line| {
            if let Some(text) = records.take(line) {
                println!("{text}");
            }
            None
        },
        Instant::now() + limit,
    )?;
    match end {
        Watched::Ended(status) if status.success() || records.failures() > before => {}
        Watched::Ended(status) => records.fail("native", "-", &format!("ended with {status}")),
        Watched::Late => records.fail("native", "-", &format!("stopped after {} s", limit.as_secs())),
    }
    Ok(())
}

/// Writes `document` where that is asked for; the verb's exit status: 1 where something is not as it must be.
pub(crate) fn conclude(
    records: &Records,
    path: Option<&Path>,
    document: impl Fn() -> Result<String>,
) -> Result<ExitCode> {
    if let Some(path) = path {
        fs::write(path, document()?).with_context(|| format!("cannot write {}", path.display()))?;
        say(&format!("written to {}", path.display()));
    }
    Ok(if records.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On which day, on what machine and on which kernels, for the head of a document.
pub(crate) fn made_on(columns: &[(&str, &str)]) -> Result<String> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let machine = output(Command::new("uname").arg("-m"))?;
    let kernels: Vec<String> = columns.iter().map(|(kernel, tier)| format!("{kernel} (tier {tier})")).collect();
    Ok(format!(
        "{}, {}: this machine's kernel, a virtual machine, in tier no-lsm, and\nDebian's kernels in guests of qemu without \
         hardware virtualisation, in tier full. Kernels: {}.",
        date.trim(),
        machine.trim(),
        kernels.join(", ")
    ))
}

/// The columns of a table, in the order of their first row.
pub(crate) fn columns<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
    rows.fold(Vec::new(), |mut columns, column| {
        if !columns.contains(&column) {
            columns.push(column);
        }
        columns
    })
}

/// `6.12.95` of `6.12.95+deb12-amd64`.
pub(crate) fn version(kernel: &str) -> &str {
    kernel.split(['-', '+']).next().unwrap_or(kernel)
}

/// A heading of what is said in lower case.
pub(crate) fn heading(what: &str) -> String {
    let (first, rest) = what.split_at(1);
    format!("## {}{rest}", first.to_uppercase())
}

/// A table whose columns stand below each other; the first line is its head.
pub(crate) fn markdown(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let fields = line.iter().zip(&widths).map(|(field, width)| format!("{field:width$}", width = *width));
        let _ = writeln!(text, "| {} |", fields.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width + 2)).collect();
            let _ = writeln!(text, "|{}|", rule.join("|"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::markdown;

    #[test]
    fn columns_are_as_wide_as_their_widest_field() {
        let lines = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), "–".to_owned()]];
        assert_eq!(markdown(&lines), "| a   | bb |\n|-----|----|\n| ccc | –  |\n");
    }
}
