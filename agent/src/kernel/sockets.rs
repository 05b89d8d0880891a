//! Which sockets carry a session's label, in whatever network namespace, read from the iterator over their labels, or,
//! where the kernel refuses that one, from the iterator over open files.

use std::{
    cmp::Reverse,
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::programs::Iter;
use tipstaff_common::{
    label::SessionRef,
    socket::{SOCKET_CONFINED, SOCKET_CROSSED, SOCKET_PASSIVE, SocketLabel, SocketRow, UNREADABLE},
};
use tracing::warn;

use super::{Kernel, KernelError, attach::OF_LABELS, maps::storage, process::cookie_of, programs, sys};

/// A socket that carries a session's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Its session.
    pub session: SessionRef,
    /// The kernel's own number for it, never used again while the host is up; 0: it has none yet.
    pub cookie: u64,
    /// Inode number of its network namespace.
    pub namespace: u32,
    /// `AF_*`
    pub family: u16,
    /// `SOCK_*`
    pub kind: u16,
    /// `IPPROTO_*`
    pub protocol: u16,
    /// `TCP_*`, whatever the protocol.
    pub state: u16,
    /// What it is bound to; mapped IPv4 is IPv4.
    pub local: SocketAddr,
    /// What it is connected to; port 0 where it is not.
    pub remote: SocketAddr,
    /// It listens, or was accepted from one that listened.
    pub passive: bool,
    /// It was made outside the session, and no member may use it.
    pub crossed: bool,
    /// Its last packet, or the last that carried data, was dropped because all bytes out are used up.
    pub spent: bool,
    /// Bytes of packets out, headers of the network layer included.
    pub sent: u64,
    /// Bytes of packets in, as above.
    pub received: u64,
    /// Number of its inode, where it was found as an open file; else 0.
    pub inode: u32,
}

impl Kernel {
    /// Every labelled socket of the host, of any session; where the kernel refuses to walk their labels, those that a
    /// process holds open.
    pub fn sockets(&mut self) -> Result<Vec<Socket>, KernelError> {
        if self.lists_sockets != OF_LABELS {
            let mut sockets = decode_rows(&self.iterate(self.lists_sockets)?);
            // one that is open in several processes, and may have got its cookie in between
            sockets.sort_unstable_by_key(|socket| (socket.inode, Reverse(socket.cookie)));
            sockets.dedup_by_key(|socket| socket.inode);
            let all = sockets.len();
            sockets.retain(|socket| socket.session.slot != UNREADABLE);
            if sockets.len() < all {
                let lost = all - sockets.len();
                warn!(
                    "what the kernel keeps with {lost} sockets cannot be read: if they are sessions', they are not found"
                );
            }
            return Ok(sockets);
        }
        let refused = |error: &(dyn std::error::Error + 'static)| KernelError::refused("iterator sockets", error);
        let map = storage(&self.maps.socket_labels, "SOCKET_LABELS")?
            .try_clone_to_owned()
            .map_err(KernelError::file("share", "SOCKET_LABELS"))?;
        let program: &mut Iter = self.typed(OF_LABELS)?;
        let program = program.fd().map_err(|e| refused(&e))?;
        let iterator = programs::iterate_map(program.as_fd(), map.as_fd()).map_err(|e| refused(&e))?;
        let mut rows = Vec::new();
        File::from(iterator).read_to_end(&mut rows).map_err(|e| refused(&e))?;
        Ok(decode_rows(&rows))
    }

    /// Labels a socket that was made outside the session, with `SOCKET_*` flags, where it has no label. Its label's flags then,
    /// if that is the session's.
    pub fn label_socket(
        &mut self,
        socket: BorrowedFd<'_>,
        session: SessionRef,
        flags: u32,
    ) -> Result<u32, KernelError> {
        let SessionRef { slot, generation } = session;
        let label = SocketLabel { slot, generation, flags: SOCKET_CONFINED | flags, ..SocketLabel::default() };
        let map = storage(&self.maps.socket_labels, "SOCKET_LABELS")?;
        let refused = |action, error: std::io::Error| KernelError::Map {
            action,
            map: "SOCKET_LABELS",
            reason: error.to_string(),
        };
        // who lists it by its label finds it with one
        cookie_of(socket).map_err(|error| refused("make a cookie beside", error))?;
        match sys::set_socket_label(map, socket, label) {
            Ok(()) => Ok(label.flags),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let found = sys::socket_label(map, socket).map_err(|error| refused("read", error))?;
                let own = found.filter(|found| (found.slot, found.generation) == (slot, generation));
                Ok(own.map_or(0, |own| own.flags))
            }
            Err(error) => Err(refused("write", error)),
        }
    }
}

/// Rows of `SocketRow`, decoded by copy.
fn decode_rows(rows: &[u8]) -> Vec<Socket> {
    let decode = |row: &[u8]| {
        // SAFETY: `chunks_exact` gives as many bytes, and every bit pattern is a `SocketRow` (`Pod`).
        let row = unsafe { row.as_ptr().cast::<SocketRow>().read_unaligned() };
        let address = |bytes: [u8; 16], port| SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port);
        Socket {
            session: SessionRef { slot: row.slot, generation: row.generation },
            cookie: row.cookie,
            namespace: row.namespace,
            family: row.family,
            kind: row.kind,
            protocol: row.protocol,
            state: row.state,
            local: address(row.local, row.local_port),
            remote: address(row.remote, row.remote_port),
            passive: row.flags & SOCKET_PASSIVE != 0,
            crossed: row.flags & SOCKET_CROSSED != 0,
            spent: row.spent != 0,
            sent: row.sent,
            received: row.received,
            inode: row.inode,
        }
    };
    rows.chunks_exact(size_of::<SocketRow>()).map(decode).collect()
}
