//! Sockets that members hold and that were made outside their session. What a member was refused to use is destroyed (tier full).
//! Where the packet programs see such sockets too (`attach = "root"`), one that was connected before tells no hook when it sends:
//! it is labelled by its descriptor, when its holder becomes a member, and at a look every two seconds for what came later.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    rc::Rc,
};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getpeername, getsockname, getsockopt, setsockopt,
    sockopt,
};
use tipstaff_common::{
    event, rule,
    socket::{SOCKET_BEFORE, SOCKET_CROSSED, SOCKET_PASSIVE},
};
use tracing::warn;

use super::{Engine, complain, flows};
use crate::{
    config::Attach,
    enforce::{Found, Look, Which, Whose, socket_of, sockets_of},
    evidence::{CutCause, CutOutcome, SocketReceipt},
    kernel::{Member, open_pidfd, protocol_of, ring::Event},
    session::{Mode, SessionId},
};

/// What was looked at of the sockets that a session's members hold.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Their inode numbers.
    inodes: BTreeSet<u64>,
    /// Ports that one of them listens on.
    listening: BTreeSet<u16>,
    /// A member was refused the use of one, which the kernel has marked.
    refused: bool,
    /// Those that have a receipt: a datagram socket stays, bound to its port and refused, and so does what the kernel
    /// cannot destroy.
    told: BTreeSet<Which>,
}

impl Seen {
    /// Notes that a member was refused the use of a socket from elsewhere.
    pub(super) fn see(&mut self, event: &Event) {
        if let Event::Socket(socket) = event {
            let of_use = socket.act == event::ACT_USE && socket.header.verdict == rule::DENY;
            self.refused |= of_use && socket.header.rule == rule::REASON_CROSSED;
        }
    }
}

/// A socket that a command inherits.
pub(super) struct Passed {
    pub(super) socket: OwnedFd,
    /// Its peer came in, by a rule.
    pub(super) came_in: bool,
}

impl Engine {
    /// Labels sockets that were let through to a command, before it starts: each packet is judged from then on.
    pub(super) fn label_passed(&mut self, id: SessionId, sockets: &[Passed]) {
        let Some(live) = self.sessions.get(&id).filter(|live| live.machine.mode() == Mode::Enforce) else { return };
        if self.parts.config.attach != Attach::Root {
            return;
        }
        for Passed { socket, came_in } in sockets {
            let flags = SOCKET_BEFORE | if *came_in { SOCKET_PASSIVE } else { 0 };
            let labelled = self.parts.kernel.label_socket(socket.as_fd(), live.reference, flags);
            complain("labelling a socket that a command inherits", labelled);
        }
    }

    /// Labels what members hold and what has no label: of who was attached it is judged packet by packet, anybody else may
    /// not use it.
    pub(super) fn label_crossed(&mut self, ids: &[SessionId]) {
        if self.parts.config.attach == Attach::Root
            && let Some(members) = complain("looking for sockets from elsewhere", self.parts.kernel.members())
        {
            for id in ids {
                self.label_held(*id, &members);
            }
        }
    }

    /// Looks at what members of each session got since the last look; what they may not use is silent then, and destroyed. Where the
    /// packet programs do not see such sockets, only what a member was refused to use is.
    pub(super) fn look_for_crossed(&mut self) {
        if self.parts.config.attach != Attach::Root {
            let all = self.sessions.iter_mut();
            let refused = all.filter_map(|(id, live)| std::mem::take(&mut live.crossed.refused).then_some(*id));
            let ids: Vec<SessionId> = refused.collect();
            ids.into_iter().for_each(|id| self.cut_crossed(id));
            return;
        }
        let live = self.sessions.iter().filter(|(_, live)| live.machine.reason().is_none());
        let ids: Vec<SessionId> = live.map(|(id, _)| *id).collect();
        let Some(members) = complain("looking for sockets from elsewhere", self.parts.kernel.members()) else { return };
        for id in ids {
            if self.label_held(id, &members) {
                self.cut_crossed(id);
            }
        }
    }

    /// As [`Engine::label_crossed`]. True: there was one that nobody may use.
    fn label_held(&mut self, id: SessionId, members: &[Member]) -> bool {
        let Some(live) = self.sessions.get_mut(&id).filter(|live| live.machine.mode() == Mode::Enforce) else {
            return false;
        };
        let (kernel, reference) = (&mut self.parts.kernel, live.reference);
        let own = |m: &&Member| m.slot == reference.slot && m.generation == reference.generation;
        let processes: BTreeSet<u32> = members.iter().filter(own).map(|member| member.tgid).collect();
        let (mut held, mut fresh) = (BTreeSet::new(), Vec::new());
        for pid in processes {
            let Ok(process) = open_pidfd(pid) else { continue };
            let process = Rc::new(process);
            // its number may be another's by now
            if complain("reading a label", kernel.label_of(process.as_fd())).flatten() != Some(reference) {
                continue;
            }
            for (number, inode) in sockets_of(pid) {
                if held.insert(inode) && !live.crossed.inodes.contains(&inode) {
                    fresh.push(Fresh { process: Rc::clone(&process), pid, number, inode });
                }
            }
        }
        let attached = live.start.attached.is_some();
        let ports = fresh
            .iter()
            .filter_map(Fresh::take)
            .filter(|taken| listens(taken.socket()))
            .filter_map(|taken| port(taken.socket()));
        live.crossed.listening.extend(ports.collect::<Vec<_>>());
        let mut crossed = false;
        // one at a time: members may hold more of them than this process may
        for found in &fresh {
            let Some(taken) = found.take() else {
                // it is looked at again
                held.remove(&found.inode);
                continue;
            };
            let socket = taken.socket();
            // who listens with others does not take their callers from them
            if !is_judged(socket) || listens(socket) {
                continue;
            }
            let flags = match (attached, came_in(socket, &live.crossed.listening)) {
                (true, true) => SOCKET_BEFORE | SOCKET_PASSIVE,
                (true, false) => SOCKET_BEFORE,
                (false, _) => SOCKET_CROSSED,
            };
            match kernel.label_socket(socket.as_fd(), reference, flags) {
                // who used it before this look was refused it, and the kernel has marked it
                Ok(flags) => crossed |= flags & SOCKET_CROSSED != 0,
                Err(problem) => {
                    held.remove(&found.inode);
                    warn!("a socket that session {id} got from elsewhere is not labelled: {problem}");
                }
            }
        }
        live.crossed.inodes = held;
        crossed
    }

    fn cut_crossed(&mut self, id: SessionId) {
        self.see_again(&[id]);
        let cut = |engine: &mut Self, confirms: bool| {
            let Some(live) = engine.sessions.get_mut(&id) else { return };
            let (flows, known) = (&mut live.flows, &live.crossed.told);
            let whose = Whose { session: live.reference, cgroups: Vec::new() };
            let mut labels = || flows::labelled(&mut engine.parts.kernel);
            let mut look = Look::new(Vec::new(), &mut labels);
            let fails = |found: &Found| found.crossed && !known.contains(&found.which());
            if confirms {
                flows.confirm(&mut engine.namespaces, &mut look, &whose, fails);
            } else {
                flows.cut(&mut engine.namespaces, &mut look, &whose, fails);
            }
        };
        cut(self, false);
        if self.see_left_behind(id) {
            cut(self, false);
        }
        cut(self, true);
        let seen = self.parts.config.attach == Attach::Root;
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let (cut, revision) = (live.flows.take(), Some(live.revision));
        let which: Vec<Which> = cut.iter().map(|cut| cut.found.which()).collect();
        // what is not destroyed is silent where its packets are seen; elsewhere each use of it is refused, as before
        let told = |(receipt, _): &(SocketReceipt, Which)| seen || receipt.outcome != CutOutcome::Silenced;
        let told = flows::receipts(cut).into_iter().zip(which).filter(told);
        let (receipts, which): (Vec<_>, Vec<Which>) = told.unzip();
        live.crossed.told.extend(which);
        let records = flows::records(id, CutCause::Crossed, revision, &receipts);
        records.iter().for_each(|record| self.append_durable(record));
    }
}

/// A socket of a member that was not looked at yet.
struct Fresh {
    process: Rc<OwnedFd>,
    pid: u32,
    number: i32,
    inode: u64,
}

impl Fresh {
    /// A descriptor of it; `None`: it was closed, or cannot be had now.
    fn take(&self) -> Option<Taken> {
        match socket_of(self.process.as_fd(), self.number, self.inode) {
            Ok(socket) => Some(Taken(socket)),
            Err(error) => {
                if error.kind() == std::io::ErrorKind::PermissionDenied {
                    warn!("descriptor {} of process {} cannot be looked at: {error}", self.number, self.pid);
                }
                None
            }
        }
    }
}

/// A member's socket, for a moment.
pub(super) struct Taken(pub(super) OwnedFd);

impl Taken {
    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.0
    }
}

impl Drop for Taken {
    /// Whoever closes a socket last waits as long as its `SO_LINGER` says, for a peer that reads nothing: that is not to be the
    /// agent, whatever a member closes meanwhile. To reset it at once (0 seconds) stays.
    fn drop(&mut self) {
        if getsockopt(&self.0, sockopt::Linger).is_ok_and(|linger| linger.l_onoff != 0 && linger.l_linger != 0) {
            let off = libc::linger { l_onoff: 0, l_linger: 0 };
            complain("switching SO_LINGER off", setsockopt(&self.0, sockopt::Linger, &off));
        }
    }
}

/// Of the Internet families. One of SCTP that a member accepted has no label before its first packet: it is not told from
/// one that it was given.
fn is_judged(socket: &OwnedFd) -> bool {
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok().and_then(|name| name.family());
    matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6))
        && protocol_of(socket.as_fd()).is_ok_and(|protocol| protocol != libc::IPPROTO_SCTP)
}

fn listens(socket: &OwnedFd) -> bool {
    getsockopt(socket, sockopt::AcceptConn) == Ok(true)
}

fn port(socket: &OwnedFd) -> Option<u16> {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    name.as_sockaddr_in().map(|v4| v4.port()).or_else(|| name.as_sockaddr_in6().map(|v6| v6.port()))
}

/// Whether it is a connection to a port that is listened on.
fn came_in(socket: &OwnedFd, listening: &BTreeSet<u16>) -> bool {
    getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
        && getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok()
        && port(socket).is_some_and(|port| listening.contains(&port))
}
