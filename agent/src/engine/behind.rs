//! Network namespaces that members left again while sockets of theirs stayed open in them: got by whoever holds such a socket.

use std::{collections::BTreeSet, os::fd::AsFd as _};

use super::{
    Engine, complain,
    crossed::Taken,
    flows::{labelled, of},
};
use crate::{
    enforce::{socket_of, sockets_of},
    kernel::open_pidfd,
    session::SessionId,
};

impl Engine {
    /// True: a socket waits to be cut where no member was seen, and its namespace is reached now.
    pub(super) fn see_left_behind(&mut self, id: SessionId) -> bool {
        let Some(live) = self.sessions.get_mut(&id).filter(|live| live.flows.waits()) else { return false };
        let (kernel, reference) = (&mut self.parts.kernel, live.reference);
        let Some(members) = complain("looking for network namespaces", kernel.members()) else { return false };
        let own = labelled(kernel).into_iter().filter(|row| row.session == reference).map(|row| row.namespace.into());
        let mut wanted: BTreeSet<u64> = own.filter(|inode| !live.flows.namespaces.has(*inode)).collect();
        let before = wanted.len();
        let processes: BTreeSet<u32> = of(&members, reference).map(|member| member.tgid).collect();
        for pid in processes {
            let Ok(process) = open_pidfd(pid) else { continue };
            // its number may be another's by now
            if complain("reading a label", kernel.label_of(process.as_fd())).flatten() != Some(reference) {
                continue;
            }
            for (number, inode) in sockets_of(pid) {
                if wanted.is_empty() {
                    return true;
                }
                let Ok(socket) = socket_of(process.as_fd(), number, inode).map(Taken) else { continue };
                let seen = live.flows.namespaces.see_socket(&mut self.namespaces, socket.socket().as_fd(), &mut wanted);
                complain("reaching the network namespace of a socket", seen);
            }
        }
        wanted.len() < before
    }
}
