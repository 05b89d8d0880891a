//! The end of a session, in rounds: kill what is labelled, see who is left. Ended means measured: no labelled task.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use tipstaff_common::label::SessionRef;

use super::SessionCgroup;
use crate::kernel::{Kernel, KernelError, kill_pidfd, open_pidfd, signal_pidfd};

/// How long a round waits for what it killed, before the next one looks again.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often it looks meanwhile.
const GLANCE: Duration = Duration::from_millis(1);

/// A process that was killed.
#[derive(Debug)]
pub struct Killed {
    /// Its name when it was first seen; may be empty where it was gone by then.
    pub name: Vec<u8>,
    process: OwnedFd,
}

impl Killed {
    /// The kernel's word that it is gone: a pidfd is readable once its process ended.
    #[must_use]
    pub fn gone(&self) -> bool {
        let mut polled = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut polled, PollTimeout::ZERO), Ok(n) if n > 0)
    }
}

/// Everything that was killed for one session.
#[derive(Debug, Default)]
pub struct Sweep {
    /// By process id.
    pub killed: BTreeMap<u32, Killed>,
}

impl Sweep {
    /// One round. Returns how many processes it newly killed and how many labelled threads are left.
    pub fn round(
        &mut self,
        kernel: &mut Kernel,
        session: SessionRef,
        cgroup: &SessionCgroup,
    ) -> Result<(u64, u64), KernelError> {
        let before = self.killed.len();
        let fresh = open_members(kernel, session, &self.killed)?;
        // a process that is listed again while its pidfd is open is the one that was opened: its number cannot have been
        // given to another in between
        let listed = processes(kernel, session)?;
        for (pid, killed) in fresh {
            if listed.contains_key(&pid) && kill_pidfd(killed.process.as_fd()).is_ok() {
                self.killed.insert(pid, killed);
            }
        }
        cgroup.kill().map_err(KernelError::file("kill cgroup", cgroup.path()))?;
        let left = wait(kernel, session)?;
        Ok(((self.killed.len() - before) as u64, left))
    }
}

/// Sends a signal to every process of a session; how many the kernel took it for.
pub fn signal_members(kernel: &mut Kernel, session: SessionRef, signal: Signal) -> Result<u64, KernelError> {
    let none = BTreeMap::new();
    let fresh = open_members(kernel, session, &none)?;
    let listed = processes(kernel, session)?;
    let taken = |(pid, opened): &&(u32, Killed)| {
        listed.contains_key(pid) && signal_pidfd(opened.process.as_fd(), signal).is_ok()
    };
    Ok(fresh.iter().filter(taken).count() as u64)
}

/// Opens every process of the session that was not opened before.
fn open_members(
    kernel: &mut Kernel,
    session: SessionRef,
    known: &BTreeMap<u32, Killed>,
) -> Result<Vec<(u32, Killed)>, KernelError> {
    let members = processes(kernel, session)?;
    let unknown = members.into_keys().filter(|pid| known.get(pid).is_none_or(Killed::gone));
    Ok(unknown
        .filter_map(|pid| {
            let process = open_pidfd(pid).ok()?;
            let mut name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.truncate(name.trim_ascii_end().len());
            Some((pid, Killed { name, process }))
        })
        .collect())
}

/// Labelled threads of the session, by process.
fn processes(kernel: &mut Kernel, session: SessionRef) -> Result<BTreeMap<u32, u64>, KernelError> {
    let mut found = BTreeMap::new();
    let members = kernel.members()?;
    for member in members.iter().filter(|m| m.slot == session.slot && m.generation == session.generation) {
        *found.entry(member.tgid).or_insert(0) += 1;
    }
    Ok(found)
}

/// Waits a moment for the killed to go; how many labelled threads are left.
fn wait(kernel: &mut Kernel, session: SessionRef) -> Result<u64, KernelError> {
    let start = Instant::now();
    loop {
        let left = processes(kernel, session)?.values().sum();
        if left == 0 || start.elapsed() >= PATIENCE {
            return Ok(left);
        }
        std::thread::sleep(GLANCE);
    }
}
