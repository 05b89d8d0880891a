//! The end of a session, in rounds: kill what is labelled, see who is left. Ended means measured: no labelled task.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use crate::kernel::{Kernel, KernelError, open_pidfd, signal_pidfd};

/// How long a round waits for what it killed, before the next one looks again.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often it looks meanwhile.
const GLANCE: Duration = Duration::from_millis(1);
/// Processes that are opened at a time, and kept open: a session can have more than this process may have descriptors.
const BATCH: usize = 256;

/// A process that was killed.
#[derive(Debug)]
pub struct Killed {
    /// Its name when it was first seen; may be empty where it was gone by then.
    pub name: Vec<u8>,
    /// None where it is gone, or where too many are open.
    process: Option<OwnedFd>,
    gone: bool,
}

impl Killed {
    /// The kernel's word that it is gone: its pidfd was readable, or no labelled thread is left.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.gone || self.process.as_ref().is_some_and(has_ended)
    }

    /// Gives the descriptor back where it has told what there is to tell.
    fn settle(&mut self, none_left: bool) {
        self.gone = none_left || self.gone();
        if self.gone {
            self.process = None;
        }
    }
}

/// A pidfd is readable once its process ended.
fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(n) if n > 0)
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
        while self.kill_some(kernel, session)? {}
        cgroup.kill().map_err(KernelError::file("kill cgroup", cgroup.path()))?;
        let left = wait(kernel, session)?;
        self.settle(left == 0);
        Ok(((self.killed.len() - before) as u64, left))
    }

    /// Kills as many as are opened at a time. True: there are more.
    fn kill_some(&mut self, kernel: &mut Kernel, session: SessionRef) -> Result<bool, KernelError> {
        let known = |pid| self.killed.get(&pid).is_some_and(|killed| !killed.gone());
        let fresh = open_members(kernel, session, known)?;
        let more = fresh.len() == BATCH;
        let mut room = BATCH.saturating_sub(self.killed.values().filter(|k| k.process.is_some()).count());
        let mut grew = false;
        for member in signal_listed(kernel, session, fresh, Signal::SIGKILL)? {
            // the signal is pending for good, whether or not anybody watches
            let process = (room > 0).then_some(member.process);
            room = room.saturating_sub(1);
            self.killed.insert(member.pid, Killed { name: member.name, process, gone: false });
            grew = true;
        }
        if more {
            wait(kernel, session)?;
            self.settle(false);
        }
        Ok(more && grew)
    }

    fn settle(&mut self, none_left: bool) {
        self.killed.values_mut().for_each(|killed| killed.settle(none_left));
    }
}

/// An open member.
struct Opened {
    pid: u32,
    name: Vec<u8>,
    process: OwnedFd,
}

/// Sends a signal to every process of a session; how many the kernel took it for.
pub fn signal_members(kernel: &mut Kernel, session: SessionRef, signal: Signal) -> Result<u64, KernelError> {
    let mut seen = BTreeSet::new();
    let mut taken = 0;
    loop {
        let fresh = open_members(kernel, session, |pid| seen.contains(&pid))?;
        let more = fresh.len() == BATCH;
        seen.extend(fresh.iter().map(|member| member.pid));
        taken += signal_listed(kernel, session, fresh, signal)?.len() as u64;
        if !more {
            return Ok(taken);
        }
    }
}

/// Opens processes of the session that are not known, at most `BATCH`.
fn open_members(
    kernel: &mut Kernel,
    session: SessionRef,
    known: impl Fn(u32) -> bool,
) -> Result<Vec<Opened>, KernelError> {
    let unknown = processes(kernel, session)?.into_keys().filter(|pid| !known(*pid));
    let open = |pid| {
        let process = open_pidfd(pid).ok()?;
        let mut name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.truncate(name.trim_ascii_end().len());
        Some(Opened { pid, name, process })
    };
    Ok(unknown.filter_map(open).take(BATCH).collect())
}

/// Sends a signal to those that are members still; who got it. A process that is listed again while its pidfd is open is
/// the one that was opened: its number cannot have been given to another in between.
fn signal_listed(
    kernel: &mut Kernel,
    session: SessionRef,
    opened: Vec<Opened>,
    signal: Signal,
) -> Result<Vec<Opened>, KernelError> {
    let listed = processes(kernel, session)?;
    let taken = |m: &Opened| listed.contains_key(&m.pid) && signal_pidfd(m.process.as_fd(), signal).is_ok();
    Ok(opened.into_iter().filter(taken).collect())
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
