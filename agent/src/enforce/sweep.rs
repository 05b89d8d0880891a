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

/// How long a first round waits for what it killed: a thousand take some fifty milliseconds to die.
const FIRST: Duration = Duration::from_millis(100);
/// How long each further round waits, before the next one looks again: what is left then may be asleep in the kernel, and
/// the agent has other things to do.
const FURTHER: Duration = Duration::from_millis(20);
/// How often it looks meanwhile. A look at a thousand takes two milliseconds of a processor that they need to die on.
const GLANCE: Duration = Duration::from_millis(4);
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
    /// One round: names who is there, kills the session's cgroup as a whole, and by their descriptors those who may be
    /// elsewhere. Returns how many processes it newly killed and how many labelled threads are left.
    pub fn round(
        &mut self,
        kernel: &mut Kernel,
        session: SessionRef,
        cgroup: &SessionCgroup,
    ) -> Result<(u64, u64), KernelError> {
        let before = self.killed.len();
        let patience = if before == 0 { FIRST } else { FURTHER };
        loop {
            let found = self.find(kernel, session);
            // whoever cannot be named is killed all the same
            let at_once = cgroup.kill();
            let found = found?;
            let (opened, others) = (found.opened.len(), found.others);
            self.kill(found.opened);
            at_once.map_err(KernelError::file("kill cgroup", cgroup.path()))?;
            let left = wait(kernel, session, patience)?;
            let more = others.keys().any(|pid| left.contains_key(pid));
            // named, and gone with the cgroup
            let gone = others.into_iter().filter(|(pid, _)| !left.contains_key(pid));
            self.killed.extend(gone.map(|(pid, name)| (pid, Killed { name, process: None, gone: true })));
            self.settle(left.is_empty());
            if !more || opened == 0 {
                return Ok(((self.killed.len() - before) as u64, left.values().sum()));
            }
        }
    }

    /// Who is there and was not killed yet.
    fn find(&self, kernel: &mut Kernel, session: SessionRef) -> Result<Members, KernelError> {
        let known = |pid| self.killed.get(&pid).is_some_and(|killed| !killed.gone());
        let mut found = open_members(kernel, session, known)?;
        let listed = processes(kernel, session)?;
        found.opened.retain(|member| listed.contains_key(&member.pid));
        Ok(found)
    }

    /// Kills each by its descriptor: one that was moved elsewhere is not reached by its session's cgroup.
    fn kill(&mut self, members: Vec<Opened>) {
        let mut room = BATCH.saturating_sub(self.killed.values().filter(|k| k.process.is_some()).count());
        for member in members {
            // it may be gone with the cgroup; else the signal is pending for good, whether or not anybody watches
            let _ = signal_pidfd(member.process.as_fd(), Signal::SIGKILL);
            let process = (room > 0).then_some(member.process);
            room = room.saturating_sub(1);
            self.killed.insert(member.pid, Killed { name: member.name, process, gone: false });
        }
    }

    fn settle(&mut self, none_left: bool) {
        self.killed.values_mut().for_each(|killed| killed.settle(none_left));
    }
}

/// Who is in a session.
struct Members {
    /// At most [`BATCH`] of them, open.
    opened: Vec<Opened>,
    /// The names of the others, by process id.
    others: BTreeMap<u32, Vec<u8>>,
}

/// An open member.
struct Opened {
    pid: u32,
    name: Vec<u8>,
    process: OwnedFd,
}

/// Sends a signal to every process of a session that is `meant`, by its id; how many the kernel took it for.
pub fn signal_members(
    kernel: &mut Kernel,
    session: SessionRef,
    signal: Signal,
    meant: impl Fn(u32) -> bool,
) -> Result<u64, KernelError> {
    let mut seen = BTreeSet::new();
    let mut taken = 0;
    loop {
        let found = open_members(kernel, session, |pid| seen.contains(&pid) || !meant(pid))?;
        seen.extend(found.opened.iter().map(|member| member.pid));
        taken += signal_listed(kernel, session, found.opened, signal)?.len() as u64;
        if found.others.is_empty() {
            return Ok(taken);
        }
    }
}

/// Opens processes of the session that are not known, and names those that are too many to be open.
fn open_members(kernel: &mut Kernel, session: SessionRef, known: impl Fn(u32) -> bool) -> Result<Members, KernelError> {
    let mut found = Members { opened: Vec::new(), others: BTreeMap::new() };
    for pid in processes(kernel, session)?.into_keys().filter(|pid| !known(*pid)) {
        let name = || {
            let mut name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.truncate(name.trim_ascii_end().len());
            name
        };
        if found.opened.len() == BATCH {
            found.others.insert(pid, name());
        } else if let Ok(process) = open_pidfd(pid) {
            found.opened.push(Opened { pid, name: name(), process });
        }
    }
    Ok(found)
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

/// Waits a moment for the killed to go; the labelled threads that are left, by process.
fn wait(kernel: &mut Kernel, session: SessionRef, patience: Duration) -> Result<BTreeMap<u32, u64>, KernelError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let left = processes(kernel, session)?;
        if left.is_empty() || start.elapsed() >= patience {
            return Ok(left);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(GLANCE);
    }
}
