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

use tokio::sync::mpsc;

use crate::{
    api::{
        door::{Gate, Refusal, Sessions, Standing},
        refused::Refused,
        server::Peer,
        wire::ApiError,
    },
    enforce::cgroup_of,
    engine::{Note, pidfd_of},
    kernel::{CgroupRoot, LabelReader, boot_now},
    session::SessionId,
};

/// The door of both sockets, for sessions whose cgroups stand in `root`, where cgroup2 is mounted at `mount`. What cannot be
/// read is refused. The first of the refusals that the engine has not taken is told to it by a note; the others only count.
pub fn gate(
    labels: LabelReader,
    (root, mount): (CgroupRoot, PathBuf),
    sessions: Sessions,
    (refused, notes): (Refused, mpsc::UnboundedSender<Note>),
) -> Gate {
    Gate {
        ask: Arc::new(move |peer, _| ask(&labels, (&root, &mount), &sessions, peer)),
        count: Arc::new(move |call| {
            if refused.add(call, boot_now()) {
                // the engine is gone only when the agent stops
                let _ = notes.send(Note::CallsRefused);
            }
        }),
    }
}

fn ask(
    labels: &LabelReader,
    place: (&CgroupRoot, &Path),
    sessions: &Sessions,
    peer: &Peer,
) -> Result<Standing, Refusal> {
    let unknown = |error: io::Error| {
        let message = format!("cannot tell whether process {} is a member of a session: {error}", peer.pid);
        Refusal::unknown(ApiError::Denied { message })
    };
    let process = pidfd_of(peer).map_err(Refusal::unknown)?;
    if let Some(label) = labels.label_of(process.as_fd()).map_err(unknown)? {
        return match sessions.labelled(label) {
            Some(known) if known.nests => Ok(Standing::Nesting(known.session)),
            known => Err(Refusal::member(known.map(|known| known.session))),
        };
    }
    match unlabelled(labels, peer.pid, place, sessions).map_err(unknown)? {
        Unlabelled::Member(session) => Err(Refusal::member(session)),
        Unlabelled::Outside => {
            // last, so that all of this was read of who connected, and not of who has its number by now
            runs(process.as_fd()).map_err(unknown)?;
            Ok(Standing::Free)
        }
    }
}

/// What a process without a label is.
enum Unlabelled {
    /// Nobody's, by its place and by its threads either.
    Outside,
    /// A member, of this session if that lives.
    Member(Option<SessionId>),
}

fn unlabelled(
    labels: &LabelReader,
    pid: u32,
    (root, mount): (&CgroupRoot, &Path),
    sessions: &Sessions,
) -> io::Result<Unlabelled> {
    let cgroup = cgroup_of(pid, mount)?;
    if root.holds(&cgroup) && cgroup != root.path {
        let known = named_by(&cgroup, &root.path).and_then(|session| sessions.named(session));
        return Ok(Unlabelled::Member(known.map(|known| known.session)));
    }
    Ok(match labels.mirrored(&threads_of(pid)?)? {
        Some(label) => Unlabelled::Member(sessions.labelled(label).map(|known| known.session)),
        None => Unlabelled::Outside,
    })
}

/// The session that a cgroup at or below one of `root`'s is named after.
fn named_by(cgroup: &Path, root: &Path) -> Option<SessionId> {
    cgroup.strip_prefix(root).ok()?.iter().next()?.to_str()?.parse().ok()
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

    #[test]
    fn a_cgroup_is_named_after_its_session() {
        let (root, id) = (Path::new("/cg/tipstaff"), SessionId::from_random([0xab; 16]));
        let own = root.join(id.to_string());
        assert_eq!([&own, &own.join("deep/er")].map(|cgroup| named_by(cgroup, root)), [Some(id), Some(id)]);
        for other in [root, &root.join("other"), &Path::new("/cg").join(id.to_string())] {
            assert_eq!(named_by(other, root), None, "{}", other.display());
        }
    }
}
