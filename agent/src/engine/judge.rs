//! The command of a `run`, judged before anything starts: so that a refusal is a sentence with rule and remedy, and not
//! a killed process. The kernel judges the exec itself again; nothing depends on this.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tipstaff_common::rule::FileId;

use super::resolve;
use crate::{
    kernel::{Kernel, KernelError, Tier},
    policy::{Decision, Effect, Policy, Resolved, decide_exec},
};

/// Which file was refused, and by which rule.
pub(super) struct Refusal {
    /// The program or its interpreter.
    pub(super) path: PathBuf,
    /// Rule number or reason.
    pub(super) rule: u32,
}

/// The first of the files that the command needs which the policy denies. `root` is the root directory of the caller.
pub(super) fn command(
    kernel: &mut Kernel,
    policy: &Policy,
    files: &Resolved,
    root: &Path,
    path: &Path,
) -> Result<Option<Refusal>, KernelError> {
    let seen = inside(root, path);
    let script = resolve::interpreter(&seen);
    let mut programs = Vec::new();
    // the script's own file is invisible to the tracepoints of tier no-lsm
    if script.is_none() || kernel.tier() == Tier::Full {
        programs.push(path.to_owned());
    }
    programs.extend(script);
    for program in programs {
        let decision = judge(kernel, policy, files, &inside(root, &program))?;
        if let Some(Decision { verdict: Effect::Deny, rule }) = decision {
            return Ok(Some(Refusal { path: program, rule }));
        }
    }
    Ok(None)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The decision on one program; `None` where there is no such file, which is the exec's own error to report.
fn judge(kernel: &mut Kernel, policy: &Policy, files: &Resolved, path: &Path) -> Result<Option<Decision>, KernelError> {
    let Ok(real) = fs::canonicalize(path) else { return Ok(None) };
    let mut paths: Vec<&Path> = vec![&real];
    paths.extend(real.ancestors().skip(1));
    let mut ids = resolve::identities(kernel, &paths)?.into_iter();
    let Some(program) = ids.next().flatten() else { return Ok(None) };
    // the kernel does not leave the program's file system on its way up
    let above: Vec<FileId> = ids.map_while(|id| id.filter(|id| id.device == program.device)).collect();
    Ok(Some(decide_exec(policy, files, program, &above)))
}
