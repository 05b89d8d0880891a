//! What `attach` takes into a session: it labels and moves until a walk over all tasks finds nobody new, or gives
//! every process back what it had.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tipstaff_common::label::SessionRef;
use tracing::warn;

use super::{complain, owner::Owner};
use crate::{
    enforce::{SessionCgroup, Target, cgroup_of, has_ended, processes_below},
    kernel::{Kernel, KernelError, Walk, open_pidfd, wait_for_programs},
};

/// How long a tree may go on growing faster than it is labelled.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long threads that find no room for their label are tried again. Where many processes are made at once, the
/// kernel's store of memory for labels is empty for a moment, until it is filled behind its users' backs
/// (`kernel/bpf/memalloc.c`, since 6.4).
const ROOM: Duration = Duration::from_secs(1);

/// What was taken into a session.
pub(super) struct Taken {
    /// Who wants it to be taken.
    caller: Owner,
    /// Walks over all tasks.
    pub(super) walks: u64,
    /// Where each process that was moved was before.
    pub(super) homes: BTreeMap<u32, PathBuf>,
}

impl Taken {
    /// Nothing yet.
    pub(super) const fn by(caller: Owner) -> Self {
        Self { caller, walks: 0, homes: BTreeMap::new() }
    }

    pub(super) fn fill(
        &mut self,
        kernel: &mut Kernel,
        mount: &Path,
        (session, cgroup): (SessionRef, &SessionCgroup),
        target: &Target,
        (first_pid, first): (u32, &OwnedFd),
    ) -> Result<(), String> {
        let text = |error: KernelError| error.to_string();
        kernel
            .label_tree(first.as_fd(), session)
            .map_err(|e| format!("process {first_pid} cannot be labelled: {e}"))?;
        let began = Instant::now();
        let mut roomy = began;
        loop {
            let mut still = true;
            if let Target::Cgroup(path) = target {
                // one that was moved there by who is attached is no part of it
                for pid in processes_below(path).into_iter().filter(|pid| *pid != std::process::id()) {
                    still &= !self.take(kernel, mount, (session, cgroup), pid)?;
                }
            }
            let walk = kernel.label_heirs().map_err(text)?;
            self.walks += 1;
            if walk.failed == 0 {
                roomy = Instant::now();
            } else if roomy.elapsed() > ROOM {
                return Err(format!("{} threads cannot be labelled: the kernel has no room for more", walk.failed));
            }
            for member in kernel.members().map_err(text)? {
                if member.slot == session.slot && member.generation == session.generation {
                    let Ok(process) = open_pidfd(member.tgid) else { continue };
                    still &= !self.relocate(mount, cgroup, (member.tgid, &process))?;
                }
            }
            if walk == Walk::default() && still {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it still grows after {} walks: stop or freeze it first", self.walks));
            }
        }
    }

    /// Labels and moves a process that is in the cgroup. False: that was done before, or it is gone.
    fn take(
        &mut self,
        kernel: &mut Kernel,
        mount: &Path,
        (session, cgroup): (SessionRef, &SessionCgroup),
        pid: u32,
    ) -> Result<bool, String> {
        if self.homes.contains_key(&pid) {
            return Ok(false);
        }
        let Ok(process) = open_pidfd(pid) else { return Ok(false) };
        // who came into the cgroup after it was looked at may be anybody's
        self.caller.check_held(pid, &process).map_err(|other| other.explained())?;
        match kernel.label_of(process.as_fd()) {
            Ok(None) => {
                kernel.label_tree(process.as_fd(), session).or_else(|e| if is_gone(pid) { Ok(()) } else { Err(e) })
            }
            Ok(Some(label)) if label == session => Ok(()),
            Ok(Some(_)) => return Err(format!("process {pid} is in another session: end that session first")),
            Err(_) if is_gone(pid) => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|e| format!("process {pid} cannot be labelled: {e}"))?;
        self.relocate(mount, cgroup, (pid, &process))
    }

    /// Moves a member into the session's cgroup. False: it is there, or was moved before, or is gone.
    fn relocate(
        &mut self,
        mount: &Path,
        cgroup: &SessionCgroup,
        (pid, process): (u32, &OwnedFd),
    ) -> Result<bool, String> {
        if self.homes.contains_key(&pid) {
            return Ok(false);
        }
        let Ok(home) = cgroup_of(pid, mount) else { return Ok(false) };
        if home.starts_with(cgroup.path()) {
            return Ok(false);
        }
        self.caller.check_held(pid, process).map_err(|other| other.explained())?;
        if has_ended(process) {
            return Ok(false);
        }
        match cgroup.take(pid) {
            Ok(()) => {
                self.homes.insert(pid, home);
                // a move goes by the number
                if has_ended(process) && !is_gone(pid) {
                    return Err(format!(
                        "the number of process {pid} was given to another while it was moved: try again"
                    ));
                }
                Ok(true)
            }
            Err(_) if is_gone(pid) => Ok(false),
            Err(error) => Err(format!("process {pid} cannot be moved from {}: {error}", home.display())),
        }
    }
}

/// Takes every label of a session off again and moves everybody back: to where it was, or to the first process's home. Out
/// of the cgroup first: what has no label in there is given one at its next call.
pub(super) fn undo(
    kernel: &mut Kernel,
    (session, cgroup): (SessionRef, &SessionCgroup),
    homes: &BTreeMap<u32, PathBuf>,
    home: &Path,
) {
    complain("taking labels back", kernel.mark_undone(session));
    let began = Instant::now();
    let (mut stays, mut settled) = (BTreeSet::new(), false);
    loop {
        let inside = processes_below(cgroup.path());
        let inside: Vec<u32> = inside.into_iter().filter(|pid| !stays.contains(pid)).collect();
        for pid in &inside {
            let home = homes.get(pid).map_or(home, PathBuf::as_path);
            if !move_back(*pid, home) && !is_gone(*pid) {
                warn!("process {pid} cannot be moved back to {}", home.display());
                stays.insert(*pid);
            }
        }
        let walk = complain("taking labels back", kernel.label_heirs()).unwrap_or_default();
        if inside.is_empty() && walk.changed == 0 {
            if settled {
                return;
            }
            // a program that began before the mark may have given a label to who was walked past; none begins to any more
            complain("waiting for programs that run", wait_for_programs());
            settled = true;
        }
        if began.elapsed() > PATIENCE {
            return warn!(
                "processes of a session that never came to be still carry its label: it refuses them nothing"
            );
        }
    }
}

/// Moves a process to where it was, or as near to it as there is still a cgroup.
fn move_back(pid: u32, home: &Path) -> bool {
    let mut places = home.ancestors().map(|path| path.join("cgroup.procs")).take_while(|procs| procs.exists());
    places.any(|procs| fs::write(procs, pid.to_string()).is_ok())
}

fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}
