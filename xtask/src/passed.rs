//! A guest whose tests all passed is not run again for the same input. It has no disk and no network: what its tests do
//! follows, but for the time that they take, from the emulator, its arguments, the kernel, and the archive that holds the
//! agent and the tests. Where one of these differs, it runs.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{exec::output, vm::Guest, workspace::Workspace};

/// What a guest's tests reported when all of them had passed, and for which input.
#[derive(Debug)]
pub(crate) struct Passed {
    file: PathBuf,
    /// One line: all that the guest is made of.
    input: String,
}

impl Passed {
    /// Of a guest whose archive has been written.
    pub(crate) fn of(workspace: &Workspace, guest: &Guest<'_>) -> Result<Self> {
        let archive = guest.initramfs(workspace);
        let emulator = guest.qemu(&archive)?;
        let version = output(Command::new(emulator.get_program()).arg("--version"))?;
        let version = version.lines().next().unwrap_or_default();
        let sums = output(Command::new("sha256sum").arg("--").arg(&guest.kernel.image).arg(&archive))?;
        let sums: Vec<&str> = sums.lines().filter_map(|line| line.split(' ').next()).collect();
        let input = format!("{version} {:?} {}", emulator.get_args(), sums.join(" "));
        Ok(Self { file: archive.with_extension("passed"), input })
    }

    /// The reports; none where it never passed with this input.
    pub(crate) fn reports(&self) -> Vec<String> {
        // what cannot be read is no reason not to run
        let kept = fs::read_to_string(&self.file).unwrap_or_default();
        match kept.split_once('\n') {
            Some((input, reports)) if input == self.input => reports.lines().map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    /// Keeps the reports of a run in which all passed.
    pub(crate) fn keep(&self, reports: &[String]) -> Result<()> {
        let text = format!("{}\n{}\n", self.input, reports.join("\n"));
        // whole or not at all: half of the reports would be taken for all of them
        let part = self.file.with_extension("part");
        let kept = fs::write(&part, text).and_then(|()| fs::rename(&part, &self.file));
        kept.with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::Passed;

    #[test]
    fn reports_are_those_of_the_same_input_and_no_other() {
        let file = std::env::temp_dir().join(format!("tipstaff-passed-{}", std::process::id()));
        let of = |input: &str| Passed { file: PathBuf::from(&file), input: input.to_owned() };
        assert!(of("kernel one").reports().is_empty());
        of("kernel one").keep(&["a".to_owned(), "b".to_owned()]).unwrap();
        let (same, other) = (of("kernel one").reports(), of("kernel two").reports());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(same, ["a", "b"]);
        assert!(other.is_empty());
    }
}
