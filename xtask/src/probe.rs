//! `probe`: what can be enforced on this kernel and on those of distributions, found by trying it there: each kernel's answer
//! to `tipstaff probe`, side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    build,
    exec::{output, step},
    kernels,
    matrix::{self, markdown, version},
    report::Records,
    setup,
    vm::{Clock, Guest, Lsm},
    workspace::Workspace,
};

/// How long one kernel may take.
const LIMIT: Duration = Duration::from_secs(300);
/// The guests, and where their kernels come from.
const GUESTS: [(&str, &str, &[Lsm]); 4] = [
    ("5.10", "Debian 11", &[Lsm::Full]),
    ("6.1", "Debian 12", &[Lsm::Full, Lsm::None]),
    ("6.12", "Debian 12 backports", &[Lsm::Full, Lsm::None]),
    ("unstable", "Debian unstable", &[Lsm::Full, Lsm::None]),
];

/// Options of `probe`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only on this kernel
    #[arg(long)]
    native: bool,
    /// Write the table to FILE, as Markdown
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What one kernel answered.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    kernel: String,
    /// `full`, `no-lsm`, or `old`: the agent refuses to start.
    tier: String,
    #[serde(default)]
    controls: Vec<Control>,
    /// What an agent that does not start says.
    #[serde(default)]
    refused: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Control {
    control: String,
    state: String,
    why: String,
}

/// The verb. Its exit status is 1 where a kernel did not answer.
pub(crate) fn probe(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("an agent loads programs into this kernel; run it as root");
    }
    build::build(workspace)?;
    let (mut records, mut from) = (Records::default(), Vec::new());
    let args = |test: &str| ["--filter", test].map(str::to_owned);
    let probes = args("cli::status-and-probe-agree");
    step("this kernel", || matrix::on_this_kernel(workspace, &probes, LIMIT, &mut records))?;
    from.resize(records.probes().len(), "this machine");
    for (name, distribution, tiers) in GUESTS.iter().filter(|_| !options.native) {
        setup::guest_tools()?;
        let kernel = kernels::get(workspace, name, false)?;
        let args = if kernel.old { args("badinput::old-kernel") } else { probes.clone() };
        for lsm in *tiers {
            let guest = Guest { kernel: &kernel, lsm: *lsm, args: &args, clock: Clock::Time, append: "" };
            guest.write_initramfs(workspace)?;
            let ran = step(&guest.label(), || guest.run(workspace, LIMIT, &mut records))?;
            if ran.status != 0 && records.failures() == 0 {
                records.fail(name, guest.tier(), &format!("ended with status {}", ran.status));
            }
            from.resize(records.probes().len(), distribution);
        }
    }
    let answers: Vec<(&Answer, &str)> = records.probes().iter().zip(from).collect();
    if answers.is_empty() {
        bail!("no kernel said what can be enforced there");
    }
    print!("{}", table(&answers));
    matrix::conclude(&records, options.output.as_deref(), || document(&answers))
}

/// Controls and kernels, and below it why something is not as it is elsewhere.
fn table(answers: &[(&Answer, &str)]) -> String {
    let head = answers.iter().map(|(answer, from)| format!("{}, {} ({from})", version(&answer.kernel), answer.tier));
    let mut lines = vec![["control".to_owned()].into_iter().chain(head).collect::<Vec<_>>()];
    let mut names = Vec::new();
    for control in answers.iter().flat_map(|(answer, _)| &answer.controls) {
        if !names.contains(&&control.control) {
            names.push(&control.control);
        }
    }
    let find = |answer: &'_ Answer, name: &str| answer.controls.iter().find(|c| c.control == name).cloned();
    let cell = |(answer, _): &(&Answer, &str), name: &str| match find(answer, name) {
        Some(control) => control.state,
        None if answer.controls.is_empty() => "refused".to_owned(),
        None => "–".to_owned(),
    };
    for name in &names {
        lines.push([format!("`{name}`")].into_iter().chain(answers.iter().map(|one| cell(one, name))).collect());
    }
    let mut text = markdown(&lines) + "\n";
    for name in names {
        let mut reasons: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (answer, _) in answers {
            if let Some(control) = find(answer, name).filter(|control| !control.why.is_empty()) {
                let where_ = format!("{}, {}", version(&answer.kernel), answer.tier);
                reasons.entry(control.why).or_default().insert(where_);
            }
        }
        for (why, kernels) in reasons {
            let kernels: Vec<String> = kernels.into_iter().collect();
            // a string takes everything
            let _ = writeln!(text, "- `{name}` ({}): {why}", kernels.join("; "));
        }
    }
    for (answer, _) in answers.iter().filter(|(answer, _)| !answer.refused.is_empty()) {
        let _ = writeln!(text, "- {} refuses the agent: {}", version(&answer.kernel), answer.refused.trim());
    }
    text
}

fn document(answers: &[(&Answer, &str)]) -> Result<String> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernels: Vec<&str> =
        answers.iter().map(|(answer, _)| &*answer.kernel).collect::<BTreeSet<_>>().into_iter().collect();
    Ok(format!(
        "# What can be enforced where\n\nWritten by `cargo xtask probe --output docs/probed.md` on {}, {}. Kernels: {}.\n\n{PREFACE}\n{}",
        date.trim(),
        output(Command::new("uname").arg("-m"))?.trim(),
        kernels.join(", "),
        table(answers)
    ))
}

/// What the words of the table mean.
const PREFACE: &str = "\
Each column is what an agent found out on that kernel when it started, by trying what must be refused (`tipstaff probe`): nothing
here is taken from a version. Debian's kernels ran as guests of qemu, with `bpf` among the active security modules (tier full) and
without. [`controls.md`](controls.md) says what each control means, and what the states are; `–` is a control that is not used in
that tier, `refused` a kernel on which the agent does not start.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_stand_side_by_side_with_reasons_below() {
        let answer = |text: &str| -> Answer { serde_json::from_str(text).unwrap() };
        let full = answer(
            r#"{"kernel":"6.1.0-5","tier":"full","controls":[{"control":"listen","state":"enforced","why":""},
            {"control":"clock","state":"enforced","why":""}]}"#,
        );
        let none = answer(
            r#"{"kernel":"6.12+deb","tier":"no-lsm","controls":[{"control":"listen","state":"best-effort","why":"so"}]}"#,
        );
        let old = answer(r#"{"kernel":"5.10.0-3","tier":"old","refused":"tipstaff: too old\n"}"#);
        let text = table(&[(&full, "Debian 12"), (&none, "Debian 13"), (&old, "Debian 11")]);
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.starts_with("| control | 6.1.0, full (Debian 12) | 6.12, no-lsm (Debian 13) |"), "{text}");
        assert!(squeezed.contains("| `listen` | enforced | best-effort | refused |"), "{text}");
        assert!(squeezed.contains("| `clock` | enforced | – | refused |"), "{text}");
        assert!(
            text.ends_with("- `listen` (6.12, no-lsm): so\n- 5.10.0 refuses the agent: tipstaff: too old\n"),
            "{text}"
        );
    }
}
