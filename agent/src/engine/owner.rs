//! Whose a process must be to be attached. To be held to a policy is to be ended by it: nobody gets that power over others
//! by the group alone, so a caller that is not root attaches only what is wholly its own.

use std::{fs, os::fd::OwnedFd};

use crate::{
    api::{server::Peer, wire::ApiError},
    enforce::has_ended,
};

/// Who asks that something be attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    uid: u32,
}

/// A process is not wholly the caller's.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} is not user {uid}'s alone")]
pub(super) struct NotItsOwn {
    pid: u32,
    uid: u32,
}

/// What there is to do about it.
const REMEDY: &str = "let root attach it";

impl Owner {
    pub(super) const fn of(peer: &Peer) -> Self {
        Self { uid: peer.uid }
    }

    /// Whether it may attach the process that has this number now; root may attach everybody's.
    pub(super) fn check(self, pid: u32) -> Result<(), NotItsOwn> {
        if self.uid == 0 || is_all_of(pid, self.uid) { Ok(()) } else { Err(NotItsOwn { pid, uid: self.uid }) }
    }

    /// Whether it may attach a process that is held: the number may have been another's when it was checked before. One that
    /// has ended is nobody's, and is not taken.
    pub(super) fn check_held(self, pid: u32, process: &OwnedFd) -> Result<(), NotItsOwn> {
        // in this order: as long as it has not ended, what was read by its number was read of it
        self.check(pid).or_else(|other| if has_ended(process) { Ok(()) } else { Err(other) })
    }
}

impl NotItsOwn {
    /// As a caller is told of it whose attachment was not begun.
    pub(super) fn refused(&self) -> ApiError {
        ApiError::Refused { message: self.to_string(), rule: None, remedy: REMEDY.into() }
    }

    /// As a caller is told of it whose attachment was taken back.
    pub(super) fn explained(&self) -> String {
        format!("{self}: {REMEDY}")
    }
}

/// Whether every user id of every thread of a process (real, effective, saved, of the file system) is `uid`; one that is gone
/// is nobody's.
fn is_all_of(pid: u32, uid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ids = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Uid:")).map(str::to_owned)
    });
    let mut ids = ids.peekable();
    ids.peek().is_some() && ids.all(|ids| ids.split_whitespace().all(|id| id.parse() == Ok(uid)))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_of_somebody_else_is_not_taken() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        let (pid, own) = (child.id(), nix::unistd::getuid().as_raw());
        let process = crate::kernel::open_pidfd(pid).expect("a pidfd");
        let (root, other) = (Owner { uid: 0 }, Owner { uid: own + 1 });
        root.check_held(pid, &process).expect("root may attach everybody's");
        Owner { uid: own }.check_held(pid, &process).expect("its own");
        let problem = other.check_held(pid, &process).expect_err("another's");
        assert_eq!(problem.explained(), format!("process {pid} is not user {}'s alone: let root attach it", own + 1));
        // another user's, and yet not the one that was held
        drop(child.stdin.take());
        child.wait().expect("its end");
        other.check_held(pid, &process).expect("one that has ended");
        other.check_held(std::process::id(), &process).expect("its number was given anew");
        assert!(other.check(std::process::id()).is_err());
    }
}
