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
use tracing::warn;

use super::SessionCgroup;
use crate::kernel::{Kernel, KernelError, open_pidfd, signal_pidfd};

/// How long a first round waits for what it killed: a thousand take some fifty milliseconds to die.
const FIRST: Duration = Duration::from_millis(100);
/// How long each further round waits, before the next one looks again: what is left then may be asleep in the kernel, and
/// the agent has other things to do.
const FURTHER: Duration = Duration::from_millis(20);
/// How often it looks meanwhile. A look at a thousand takes two milliseconds of a processor that they need to die on.
const GLANCE: Duration = Duration::from_millis(4);
/// Processes that are opened at a time, and kept open: sessions can have more than this process may have descriptors.
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

/// Whether a process has ended, be it reaped or not: its pidfd is readable then.
#[must_use]
pub fn has_ended(process: &OwnedFd) -> bool {
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
    fn open(&self) -> usize {
        self.killed.values().filter(|killed| killed.process.is_some()).count()
    }

    fn knows(&self, pid: u32) -> bool {
        self.killed.get(&pid).is_some_and(|killed| !killed.gone())
    }

    fn settle(&mut self, none_left: bool) {
        self.killed.values_mut().for_each(|killed| killed.settle(none_left));
    }
}

/// A session that ends.
pub struct End<'a> {
    /// Its label.
    pub session: SessionRef,
    /// Its cgroup.
    pub cgroup: &'a SessionCgroup,
    /// What was killed for it.
    pub sweep: &'a mut Sweep,
}

impl End<'_> {
    /// How long this round waits for what it kills.
    fn patience(&self) -> Duration {
        if self.sweep.killed.is_empty() { FIRST } else { FURTHER }
    }
}

/// What a round came to for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Processes that it newly killed.
    pub killed: u64,
    /// Labelled threads that are left.
    pub left: u64,
}

/// One round of the ends of these sessions: names who is there, kills each session's cgroup as a whole, and by their
/// descriptors those who may be elsewhere. Each walk over the host's tasks serves all of them. What it came to, in their order.
pub fn round(kernel: &mut Kernel, ends: &mut [End<'_>]) -> Result<Vec<Left>, KernelError> {
    let before: Vec<usize> = ends.iter().map(|end| end.sweep.killed.len()).collect();
    let patience: Vec<Duration> = ends.iter().map(End::patience).collect();
    loop {
        let found = find(kernel, ends);
        // whoever cannot be named is killed all the same
        let unkilled: Vec<bool> = ends.iter().map(|end| kill_cgroup(end.cgroup)).collect();
        let found = found?;
        let (opened, others) = (found.opened.len(), found.others);
        kill(ends, found.opened);
        let listed = wait(kernel, ends, &patience)?;
        let is_left = |at: usize, pid: u32| listed.of(ends[at].session).is_some_and(|own| own.contains_key(&pid));
        let (more, gone): (Vec<_>, Vec<_>) = others.into_iter().partition(|(at, member)| is_left(*at, member.pid));
        // named, and gone with the cgroup
        for (at, Named { pid, name }) in gone {
            ends[at].sweep.killed.insert(pid, Killed { name, process: None, gone: true });
        }
        ends.iter_mut().for_each(|end| end.sweep.settle(listed.of(end.session).is_none()));
        if more.is_empty() || opened == 0 {
            let count = |own: &BTreeMap<u32, u64>| own.values().sum::<u64>();
            let left = ends.iter().map(|end| listed.of(end.session).map_or(0, count));
            let killed = ends.iter().zip(before).map(|(end, before)| (end.sweep.killed.len() - before) as u64);
            // what could not be killed as a whole may have gone on meanwhile
            let left = left.zip(unkilled).map(|(left, unkilled)| left.max(u64::from(unkilled)));
            return Ok(killed.zip(left).map(|(killed, left)| Left { killed, left }).collect());
        }
    }
}

/// True: it could not be.
fn kill_cgroup(cgroup: &SessionCgroup) -> bool {
    let killed = cgroup.kill();
    if let Err(problem) = &killed {
        warn!("cannot kill cgroup {}: {problem}", cgroup.path().display());
    }
    killed.is_err()
}

/// Who is there and was not killed yet, with the place of its session among those that end.
fn find(kernel: &mut Kernel, ends: &[End<'_>]) -> Result<Found<usize>, KernelError> {
    let listed = Listed::now(kernel)?;
    let places = ends.iter().enumerate().filter_map(|(at, end)| Some((at, listed.of(end.session)?)));
    let pids = places.flat_map(|(at, own)| own.keys().map(move |pid| (at, *pid)));
    let mut found = open(pids.filter(|(at, pid)| !ends[*at].sweep.knows(*pid)));
    let listed = Listed::now(kernel)?;
    found.opened.retain(|(at, member)| listed.has(ends[*at].session, member.named.pid));
    Ok(found)
}

/// Kills each by its descriptor: one that was moved elsewhere is not reached by its session's cgroup.
fn kill(ends: &mut [End<'_>], members: Vec<(usize, Opened)>) {
    let mut room = BATCH.saturating_sub(ends.iter().map(|end| end.sweep.open()).sum());
    for (at, Opened { named: Named { pid, name }, process }) in members {
        // it may be gone with the cgroup; else the signal is pending for good, whether or not anybody watches
        let _ = signal_pidfd(process.as_fd(), Signal::SIGKILL);
        let process = (room > 0).then_some(process);
        room = room.saturating_sub(1);
        ends[at].sweep.killed.insert(pid, Killed { name, process, gone: false });
    }
}

/// Sends a signal to every process of these sessions that is `meant`, by its id; how many of each the kernel took it for.
pub fn signal_members(
    kernel: &mut Kernel,
    sessions: &[SessionRef],
    signal: Signal,
    meant: impl Fn(u32) -> bool,
) -> Result<Vec<u64>, KernelError> {
    let mut seen = BTreeSet::new();
    let mut taken = vec![0; sessions.len()];
    loop {
        let listed = Listed::now(kernel)?;
        let places = sessions.iter().enumerate().filter_map(|(at, session)| Some((at, listed.of(*session)?)));
        let pids = places.flat_map(|(at, own)| own.keys().map(move |pid| (at, *pid)));
        let found = open(pids.filter(|(_, pid)| !seen.contains(pid) && meant(*pid)));
        seen.extend(found.opened.iter().map(|(_, member)| member.named.pid));
        if !found.opened.is_empty() {
            // a process that is listed again while its pidfd is open is the one that was opened: its number cannot have been
            // given to another in between
            let listed = Listed::now(kernel)?;
            for (at, member) in &found.opened {
                let is_it = listed.has(sessions[*at], member.named.pid);
                taken[*at] += u64::from(is_it && signal_pidfd(member.process.as_fd(), signal).is_ok());
            }
        }
        if found.others.is_empty() {
            return Ok(taken);
        }
    }
}

/// A member by number and name.
struct Named {
    pid: u32,
    name: Vec<u8>,
}

/// A member that is held open.
struct Opened {
    named: Named,
    process: OwnedFd,
}

/// Members of sessions, each with what says of which.
struct Found<S> {
    /// At most [`BATCH`] of them, open.
    opened: Vec<(S, Opened)>,
    /// The others.
    others: Vec<(S, Named)>,
}

/// Opens processes, and names those that are too many to be open.
fn open<S>(pids: impl Iterator<Item = (S, u32)>) -> Found<S> {
    let mut found = Found { opened: Vec::new(), others: Vec::new() };
    for (of, pid) in pids {
        let named = || {
            let mut name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.truncate(name.trim_ascii_end().len());
            Named { pid, name }
        };
        if found.opened.len() == BATCH {
            found.others.push((of, named()));
        } else if let Ok(process) = open_pidfd(pid) {
            found.opened.push((of, Opened { named: named(), process }));
        }
    }
    found
}

/// Labelled threads of the host by session, and how many each process has.
struct Listed(BTreeMap<(u32, u32), BTreeMap<u32, u64>>);

impl Listed {
    fn now(kernel: &mut Kernel) -> Result<Self, KernelError> {
        let mut found: BTreeMap<(u32, u32), BTreeMap<u32, u64>> = BTreeMap::new();
        for member in kernel.members()? {
            *found.entry((member.slot, member.generation)).or_default().entry(member.tgid).or_insert(0) += 1;
        }
        Ok(Self(found))
    }

    /// None: nobody is left.
    fn of(&self, session: SessionRef) -> Option<&BTreeMap<u32, u64>> {
        self.0.get(&(session.slot, session.generation))
    }

    fn has(&self, session: SessionRef, pid: u32) -> bool {
        self.of(session).is_some_and(|own| own.contains_key(&pid))
    }
}

/// Waits a moment for the killed to go, for each session as long as it is waited for; who is left.
fn wait(kernel: &mut Kernel, ends: &[End<'_>], patience: &[Duration]) -> Result<Listed, KernelError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let listed = Listed::now(kernel)?;
        let waits =
            |(end, patience): (&End<'_>, &Duration)| start.elapsed() < *patience && listed.of(end.session).is_some();
        if !ends.iter().zip(patience).any(waits) {
            return Ok(listed);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(GLANCE);
    }
}
