//! The kernel's list of the sockets of one network namespace, and the way to destroy one of them.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use super::wire::{self, Part, Socket};

/// Room for one answer: the kernel makes none longer than 32 KiB (`netlink_dump`, 6.18).
const ROOM: usize = 64 * 1024;

/// A netlink socket in a network namespace, which it keeps alive. A socket stays in the namespace that it was made in,
/// whatever becomes of the thread that made it.
#[derive(Debug)]
pub struct Diag {
    netlink: OwnedFd,
    sequence: u32,
    room: Vec<u8>,
}

impl Diag {
    /// One in the namespace of this thread.
    pub fn here() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self { netlink, sequence: 0, room: vec![0; ROOM] })
    }

    /// One in the namespace that `namespace` is open on. A thread of its own goes there, and ends there.
    pub fn within(namespace: File) -> io::Result<Self> {
        let go = move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Self::here()
        };
        let thread = thread::Builder::new().name("namespace".into()).spawn(go)?;
        thread.join().map_err(|_panic| io::Error::other("the thread in the namespace died"))?
    }

    /// The sockets of a family (`AF_INET`, `AF_INET6`) and protocol that were made in one of these cgroups. `ENOENT`
    /// where the kernel has no list of that protocol.
    pub fn list(&mut self, family: u8, protocol: u8, cgroups: &[u64]) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for cgroups in cgroups.chunks(wire::CGROUPS_MAX) {
            let sequence = self.next();
            self.send(&wire::list(family, protocol, Some(cgroups), sequence))?;
            self.answer(protocol, sequence, |socket| found.push(socket))?;
        }
        // SCTP's list does not know of filters (6.1 to 7.2)
        found.retain(|socket| cgroups.contains(&socket.cgroup));
        Ok(found)
    }

    /// As [`Diag::list`], wherever they were made.
    pub fn list_all(&mut self, family: u8, protocol: u8) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        let sequence = self.next();
        self.send(&wire::list(family, protocol, None, sequence))?;
        self.answer(protocol, sequence, |socket| found.push(socket))?;
        Ok(found)
    }

    /// Destroys a socket, as long as it is still that one. `ENOENT` where it is gone, `EOPNOTSUPP` where the kernel
    /// cannot.
    pub fn destroy(&mut self, socket: &Socket) -> io::Result<()> {
        let sequence = self.next();
        self.send(&wire::destroy(socket, sequence))?;
        self.answer(socket.protocol, sequence, drop)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        // unbound and unconnected, it talks to the kernel
        send(self.netlink.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }

    fn answer(&mut self, protocol: u8, sequence: u32, mut take: impl FnMut(Socket)) -> io::Result<()> {
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut self.room, MsgFlags::empty())?;
            for part in wire::parts(&self.room[..length], protocol, sequence) {
                match part {
                    Part::Socket(socket) => take(socket),
                    Part::Done => return Ok(()),
                    Part::Failed(error) => return Err(error),
                }
            }
        }
    }
}
