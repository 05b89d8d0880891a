//! Who may speak to the agent: nobody who is governed, but to ask for a session within its own where its policy lets it.
//!
//! "No label" is not "outside", as in the kernel: a caller is outside only when its label, the entries of its threads in
//! the mirror and its cgroup all say so.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    api::{
        server::{Gate, Nesting, Standing},
        wire::ApiError,
    },
    enforce::cgroup_of,
    engine::pidfd_of,
    kernel::{CgroupRoot, LabelReader},
};

/// The door of both sockets, for sessions whose cgroups stand in `root`, where cgroup2 is mounted at `mount`. What cannot be
/// read is refused.
pub fn gate(labels: LabelReader, (root, mount): (CgroupRoot, PathBuf), nesting: Nesting) -> Gate {
    Arc::new(move |peer, _| {
        let unknown = |error: io::Error| ApiError::Denied {
            message: format!("cannot tell whether process {} is a member of a session: {error}", peer.pid),
        };
        let process = pidfd_of(peer)?;
        match labels.label_of(process.as_fd()).map_err(unknown)? {
            Some(session) if nesting.has(session) => Ok(Standing::Nesting),
            Some(_) => Err(ApiError::Member {}),
            None if is_outside(&labels, peer.pid, &root, &mount).map_err(unknown)? => {
                // last, so that all of this was read of who connected, and not of who has its number by now
                runs(process.as_fd()).map_err(unknown)?;
                Ok(Standing::Free)
            }
            None => Err(ApiError::Member {}),
        }
    })
}

/// Whether a process without a label is nobody's by its place and by its threads either.
fn is_outside(labels: &LabelReader, pid: u32, root: &CgroupRoot, mount: &Path) -> io::Result<bool> {
    let cgroup = cgroup_of(pid, mount)?;
    if root.holds(&cgroup) && cgroup != root.path {
        return Ok(false);
    }
    Ok(!labels.mirrors_one_of(&threads_of(pid)?)?)
}

fn threads_of(pid: u32) -> io::Result<HashSet<u32>> {
    let number = |entry: io::Result<fs::DirEntry>| -> io::Result<u32> {
        entry?.file_name().to_string_lossy().parse().map_err(io::Error::other)
    };
    fs::read_dir(format!("/proc/{pid}/task"))?.map(number).collect()
}

/// Fails where the process has ended: a label that is gone with its task is not found either.
fn runs(process: BorrowedFd<'_>) -> io::Result<()> {
    let mut ended = [PollFd::new(process, PollFlags::POLLIN)];
    match poll(&mut ended, PollTimeout::ZERO)? {
        0 => Ok(()),
        _ => Err(io::Error::other("it has ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_is_not_taken_for_somebody() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let pidfd = crate::kernel::open_pidfd(child.id()).expect("a pidfd");
        runs(pidfd.as_fd()).expect("it waits for its input");
        assert_eq!(threads_of(child.id()).expect("its threads"), HashSet::from([child.id()]));
        drop(child.stdin.take());
        child.wait().expect("its end");
        assert!(runs(pidfd.as_fd()).is_err());
        assert!(threads_of(child.id()).is_err());
    }
}
