//! A process outside every session that attempts are made on: what it is, and whether it still is.

use std::{fs, os::unix::fs::chown};

use crate::harness::{
    cgroup::Cgroup,
    launch::{User, bare},
    prelude::*,
    wait::{gone, state_of},
};

/// A process that waits, in a cgroup of its own.
#[derive(Debug)]
pub(super) struct Victim {
    process: Running,
    cell: Cgroup,
    before: String,
}

impl Victim {
    /// One of that user, who may write its cgroup's files, as a user's service manager may.
    pub(super) fn new(s: &Sandbox, member: &str, owner: Option<User>) -> Result<Self> {
        let mut command = bare(member.as_ref());
        command.args(["--work", "act", "lead", "idle"]);
        let process = Running::spawn(s, command, owner)?;
        let cell = s.part("elsewhere").child(&format!("cell-{}", process.pid()))?;
        cell.take(process.pid())?;
        for name in ["", "cgroup.procs", "cgroup.kill", "cgroup.freeze"] {
            let path = cell.path().join(name);
            if path.exists() {
                chown(path, owner.map(|owner| owner.0), None)?;
            }
        }
        until("the victim to lead a group", patience(), || Ok(leads(process.pid()).then_some(())))?;
        let mut victim = Self { process, cell, before: String::new() };
        victim.before = victim.standing();
        Ok(victim)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The folder of its cgroup.
    pub(super) fn cell(&self) -> String {
        self.cell.path().display().to_string()
    }

    /// What others could change about it.
    fn standing(&self) -> String {
        let pid = self.pid();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let frozen = fs::read_to_string(self.cell.path().join("cgroup.freeze")).unwrap_or_default();
        // SAFETY: an integer.
        let policy = unsafe { libc::sched_getscheduler(pid.cast_signed()) };
        format!("{}{}{}{frozen}{policy}", read("limits"), read("oom_score_adj"), read("cgroup"))
    }

    /// Whether it is gone, stopped, or not what it was.
    pub(super) fn is_changed(&self) -> bool {
        gone(self.pid()) || state_of(self.pid()) == Some('T') || self.standing() != self.before
    }

    pub(super) fn end(self) -> Result<()> {
        // one that is frozen dies all the same, but for version 1
        let _ = fs::write(self.cell.path().join("cgroup.freeze"), "0");
        drop(self.process);
        self.cell.remove()
    }
}

/// Whether the process leads a group of its own.
fn leads(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let group = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2).map(str::to_owned));
    group.is_some_and(|group| group == pid.to_string())
}
