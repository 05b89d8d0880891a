//! The network namespaces of sessions: `SOCK_DESTROY` reaches only what lives in the namespace that it is sent in, so one
//! netlink socket is kept for each that a member was seen in.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    rc::{Rc, Weak},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::debug;

use super::diag::Diag;
use crate::kernel::{KernelError, Member, namespace_of, open_pidfd};

/// A netlink socket that sessions share.
type Shared = Rc<RefCell<Diag>>;

/// The namespaces that any session is in, and what was found out about all of them.
#[derive(Debug, Default)]
pub struct Registry {
    /// By inode number: a namespace that is held keeps its number.
    held: BTreeMap<u64, Weak<RefCell<Diag>>>,
    /// Protocols that this kernel has and does not list.
    pub(super) unlisted: BTreeSet<i32>,
}

impl Registry {
    fn enter(&mut self, namespace: File) -> io::Result<(u64, Shared)> {
        let inode = namespace.metadata()?.ino();
        if let Some(known) = self.held.get(&inode).and_then(Weak::upgrade) {
            return Ok((inode, known));
        }
        self.held.retain(|_, held| held.strong_count() > 0);
        let diag = Rc::new(RefCell::new(Diag::within(namespace)?));
        self.held.insert(inode, Rc::downgrade(&diag));
        Ok((inode, diag))
    }
}

/// The namespaces of one session.
#[derive(Debug, Default)]
pub struct Namespaces(BTreeMap<u64, Shared>);

impl Namespaces {
    /// The namespace that a thread is in, whose process `process` is open on and known to be a member.
    ///
    /// # Errors
    /// It is gone, or there is no descriptor left.
    pub fn see(
        &mut self,
        registry: &mut Registry,
        process: BorrowedFd<'_>,
        (pid, thread): (u32, u32),
    ) -> io::Result<()> {
        let namespace = File::open(path(pid, thread))?;
        if is_gone(process)? {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        self.add(registry.enter(namespace)?);
        Ok(())
    }

    /// True where the thread is in a namespace that was not seen yet. It may be another thread by now.
    #[must_use]
    pub fn is_news(&self, pid: u32, thread: u32) -> bool {
        inode(pid, thread).is_some_and(|inode| !self.0.contains_key(&inode))
    }

    /// The namespaces that all of these members are in. True: there was one that was not seen before. `is_member` is asked of a
    /// process whose descriptor is open, once all are: its number may be another's by then.
    ///
    /// # Errors
    /// It cannot be told who is a member.
    pub fn walk<'m>(
        &mut self,
        registry: &mut Registry,
        members: impl Iterator<Item = &'m Member>,
        mut is_member: impl FnMut(BorrowedFd<'_>, u32) -> Result<bool, KernelError>,
    ) -> Result<bool, KernelError> {
        let before = self.0.len();
        let fresh: Vec<(u32, OwnedFd, File)> = members
            .filter(|m| self.is_news(m.tgid, m.tid))
            .filter_map(|m| {
                let process = open_pidfd(m.tgid).ok()?;
                Some((m.tgid, process, File::open(path(m.tgid, m.tid)).ok()?))
            })
            .collect();
        for (pid, process, namespace) in fresh {
            let is_it = is_member(process.as_fd(), pid)?;
            match is_gone(process.as_fd()) {
                Ok(false) if is_it => match registry.enter(namespace) {
                    Ok(found) => self.add(found),
                    Err(error) => debug!("the network namespace of process {pid} cannot be entered: {error}"),
                },
                _ => debug!("process {pid} was gone before its network namespace was seen"),
            }
        }
        Ok(self.0.len() > before)
    }

    /// The namespace that a socket lives in, if it is one of `wanted`, which no member may be in any more; it is wanted no longer.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn see_socket(
        &mut self,
        registry: &mut Registry,
        socket: BorrowedFd<'_>,
        wanted: &mut BTreeSet<u64>,
    ) -> io::Result<()> {
        let namespace = File::from(namespace_of(socket)?);
        if wanted.remove(&namespace.metadata()?.ino()) {
            self.add(registry.enter(namespace)?);
        }
        Ok(())
    }

    /// Whether this namespace was seen.
    #[must_use]
    pub fn has(&self, inode: u64) -> bool {
        self.0.contains_key(&inode)
    }

    fn add(&mut self, (inode, diag): (u64, Shared)) {
        self.0.insert(inode, diag);
    }

    /// Every namespace by its inode number, with the netlink socket in it.
    pub(super) fn each(&self) -> impl Iterator<Item = (u64, &RefCell<Diag>)> {
        self.0.iter().map(|(inode, diag)| (*inode, diag.as_ref()))
    }

    /// The netlink socket in a namespace, this session's or another's.
    pub(super) fn reach(&self, registry: &Registry, inode: u64) -> Option<Shared> {
        let elsewhere = || registry.held.get(&inode).and_then(Weak::upgrade);
        self.0.get(&inode).map(Rc::clone).or_else(elsewhere)
    }
}

fn path(pid: u32, thread: u32) -> String {
    format!("/proc/{pid}/task/{thread}/ns/net")
}

/// The inode number of the namespace that a thread is in: the link says `net:[4026531840]`, which is cheaper to read than
/// what it leads to.
fn inode(pid: u32, thread: u32) -> Option<u64> {
    let link = fs::read_link(path(pid, thread)).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// A pidfd can be read once its process has ended.
fn is_gone(process: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}
