//! `execsnoop` of Debian's libbpf-tools: prints every exec of the host. It changes nothing of it.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    bench::place,
    harness::{
        cgroup::Cgroup,
        launch::enter,
        wait::{patience, until},
    },
};

/// Where Debian has it; bpfcc-tools has another of this name, with another ending.
const PATHS: [&str; 2] = ["/usr/sbin/execsnoop", "/usr/bin/execsnoop"];
/// Where it looks for the kernel's events.
const TRACEFS: &str = "/sys/kernel/tracing";
/// The events that it opens on each processor: before and after execve(2).
const EVENTS: usize = 2;

/// The program, where it is installed.
#[derive(Debug)]
pub(super) struct Execsnoop(PathBuf);

/// One that runs. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Execsnoop {
    pub(super) fn find() -> Option<Self> {
        PATHS.iter().map(PathBuf::from).find(|path| path.is_file()).map(Self)
    }

    /// Starts it, and waits until it sees execs.
    pub(super) fn start(&self, cgroup: &Cgroup) -> Result<Running> {
        let mut command = Command::new(&self.0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mounted = Path::new(TRACEFS).join("events").exists();
        enter(&mut command, cgroup, None)?;
        let tracefs = move || {
            if mounted {
                return Ok(());
            }
            // for it alone
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            Ok(mount(Some("none"), TRACEFS, Some("tracefs"), MsFlags::empty(), None::<&str>)?)
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(tracefs) };
        let mut running = Running(command.spawn().with_context(|| format!("{} cannot be started", self.0.display()))?);
        until("execsnoop to open its events", patience(), || {
            ensure!(running.0.try_wait()?.is_none(), "execsnoop ended; run it by hand to see why");
            Ok((running.events() >= EVENTS).then_some(()))
        })?;
        place::quiet(running.pid())?;
        Ok(running)
    }
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How many of the kernel's events it has open.
    fn events(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("perf_event")).count()
    }

    pub(super) fn stop(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // both fail where it was stopped: then there is nothing to do
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
