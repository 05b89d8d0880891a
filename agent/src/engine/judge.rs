//! The command of a `run`, judged before anything starts: so that a refusal is a sentence with rule and remedy, and not
//! a killed process. The kernel judges the exec itself again; nothing depends on this.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tipstaff_common::{place::Place, rule::FileId};

use super::look;
use crate::{
    kernel::{Kernel, KernelError, Seen, Tier},
    policy::{Decision, Effect, Policy, Program, ProgramClass, Resolved, decide_exec},
};

/// Which file was refused, and by which rule.
pub(super) struct Refusal {
    /// The program or its interpreter.
    pub(super) path: PathBuf,
    /// Rule number or reason.
    pub(super) rule: u32,
}

/// The first of the files that the command needs which the policy denies. `root` is the root directory of the caller,
/// `word` the first argument, if it is known; `Some(None)`: there is none.
pub(super) fn command(
    kernel: &mut Kernel,
    policy: &Policy,
    files: &Resolved,
    root: &Path,
    path: &Path,
    word: Option<Option<&[u8]>>,
) -> Result<Option<Refusal>, KernelError> {
    let seen = inside(root, path);
    let (script, by_another) = (look::interpreter(&seen), look::is_script(&seen));
    let mut programs = Vec::new();
    // the script's own file is invisible to the tracepoints of tier no-lsm
    if script.is_none() || kernel.tier() == Tier::Full {
        programs.push(path.to_owned());
    }
    programs.extend(script.clone());
    for program in programs {
        // what a script is given is not what its interpreter is
        let word = word.filter(|_| !by_another);
        let first = script.as_ref().is_none_or(|interpreter| *interpreter != program);
        let decision = judge(kernel, policy, files, &inside(root, &program), (word, by_another && first))?;
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
fn judge(
    kernel: &mut Kernel,
    policy: &Policy,
    files: &Resolved,
    path: &Path,
    (word, script): (Option<Option<&[u8]>>, bool),
) -> Result<Option<Decision>, KernelError> {
    let Ok(real) = fs::canonicalize(path) else { return Ok(None) };
    let mut paths: Vec<&Path> = vec![&real];
    paths.extend(real.ancestors().skip(1));
    let mut found = look::look(kernel, &paths)?.into_iter().map(|found| found.map(|found| found.seen));
    let Some(seen) = found.next().flatten() else { return Ok(None) };
    // the kernel does not leave the program's file system on its way up
    let directories: Vec<Seen> =
        found.map_while(|found| found.filter(|found| found.id.device == seen.id.device)).collect();
    let above: Vec<FileId> = directories.iter().map(|directory| directory.id).collect();
    let places: Vec<Place> =
        std::iter::once(&seen).chain(&directories).map_while(|seen| Some(seen.way?.place)).collect();
    let classes = ProgramClass::of_name(&real);
    let content = Some(seen.content);
    let program = Program { content, places: &places, classes, script, word, ..Program::of(seen.id, &above) };
    Ok(Some(decide_exec(policy, files, &program)))
}
