//! The agent under test, as a process.

use std::{
    fs::{File, OpenOptions},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cgroup::Cgroup,
    launch::enter,
    wait::{ended, patience},
};

/// A running `tipstaff daemon`. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    /// Starts `command` in `cgroup`; what it says is appended to `log`.
    pub(crate) fn start(mut command: Command, cgroup: &Cgroup, log: &Path) -> Result<Self> {
        Self::prepare(&mut command, cgroup, log)?;
        Self::spawn(command)
    }

    /// What [`Agent::start`] does before the start: what is to be done after it in the agent's own process is added then.
    pub(crate) fn prepare(command: &mut Command, cgroup: &Cgroup, log: &Path) -> Result<()> {
        let file: File = OpenOptions::new().append(true).create(true).open(log)?;
        command.stdout(file.try_clone()?).stderr(file);
        enter(command, cgroup, None)
    }

    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self { child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when the agent is no longer there.
    pub(crate) fn alive(&mut self) -> Result<()> {
        let gone = self.child.try_wait()?;
        ensure!(gone.is_none(), "the agent is gone: {}", gone.map(|status| status.to_string()).unwrap_or_default());
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).with_context(|| format!("{signal} to the agent"))
    }

    /// Ends it the polite way.
    pub(crate) fn stop(self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.ends().context("after SIGTERM")
    }

    /// Waits until it has ended, and ended well.
    pub(crate) fn ends(mut self) -> Result<()> {
        let status = ended(&mut self.child, patience()).context("the agent")?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// Ends it the other way.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.child.wait()?;
        ensure!(status.signal() == Some(libc::SIGKILL), "the agent ended with {status} before SIGKILL");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // both fail where it was waited for: then there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
