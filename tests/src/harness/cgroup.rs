//! Cgroups that the tests made: members of them, killing, removing. Nothing here touches a cgroup that it did not make.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::wait;

/// A cgroup below the cgroup2 mount, which is removed by [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes it, with its parent there already.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cgroup {} cannot be made", path.display()))?;
        Ok(Self(path))
    }

    /// One that is there.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.0.join(name))
    }

    /// `cgroup.procs`, opened for a process that will write `0` to it and so move itself.
    pub(crate) fn door(&self) -> Result<File> {
        let path = self.0.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("{} cannot be opened", path.display()))
    }

    /// Moves a process into it.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        self.door()?.write_all(pid.to_string().as_bytes()).with_context(|| format!("{pid} into {}", self.0.display()))
    }

    /// Cgroups below it, the deepest first; not itself.
    pub(crate) fn descendants(&self) -> Vec<Self> {
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(&self.0) else { return found };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let child = Self(entry.path());
            found.extend(child.descendants());
            found.push(child);
        }
        found
    }

    /// Process ids in it and below. A cgroup that is gone has none.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut all = self.descendants();
        all.push(self.clone());
        let texts = all.iter().filter_map(|cgroup| fs::read_to_string(cgroup.0.join("cgroup.procs")).ok());
        texts.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>()).collect()
    }

    /// Kills everything in it and below, and removes it.
    pub(crate) fn remove(&self) -> Result<()> {
        let what = format!("{} to be empty", self.0.display());
        wait::until(&what, wait::patience(), || {
            self.kill();
            Ok(self.processes().is_empty().then_some(()))
        })?;
        let mut all = self.descendants();
        all.push(self.clone());
        all.iter().try_for_each(Self::rmdir)
    }

    fn kill(&self) {
        if fs::write(self.0.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // before 5.14: by process, again and again until none is left
        for pid in self.processes().into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn rmdir(&self) -> Result<()> {
        // a cgroup whose last task is just being reaped is busy for a moment
        wait::until(&format!("{} to be removable", self.0.display()), wait::patience(), || {
            match fs::remove_dir(&self.0) {
                Ok(()) => Ok(Some(())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
                Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
                Err(error) => bail!("{} cannot be removed: {error}", self.0.display()),
            }
        })
    }
}
