//! Finding a session's sockets: those that were made in its cgroups, by a filter that the kernel applies, and those that
//! carry its label, wherever they were made. What the kernel lists once serves every session that is looked for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use tipstaff_common::label::SessionRef;
use tracing::warn;

use super::{
    diag::Diag,
    namespaces::{Namespaces, Registry},
    wire::{LISTEN, Socket},
};
use crate::kernel::Socket as Labelled;

/// Protocols with sockets that can be open, by their names in `/proc/net/protocols`: asking for one that is not there
/// would make the kernel load it. A connection of MPTCP is one or several of TCP.
const PROTOCOLS: [(&str, i32); 6] = [
    ("TCP", libc::IPPROTO_TCP),
    ("UDP", libc::IPPROTO_UDP),
    ("UDP-Lite", libc::IPPROTO_UDPLITE),
    ("SCTP", libc::IPPROTO_SCTP),
    ("DCCP", libc::IPPROTO_DCCP),
    ("RAW", libc::IPPROTO_RAW),
];
pub(super) const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];
/// `TCP_CLOSE` (`include/net/tcp_states.h`)
const CLOSED: u16 = 7;

/// What makes a socket a session's.
#[derive(Debug, Clone)]
pub struct Whose {
    /// It carries this label.
    pub session: SessionRef,
    /// It was made in one of these cgroups.
    pub cgroups: Vec<u64>,
}

/// A family and a protocol in a network namespace.
type List = (u64, i32, i32);

/// One look at the host's sockets, for all sessions that are looked for by it: each list of the kernel is read once.
pub struct Look<'a> {
    cgroups: Vec<u64>,
    labels: &'a mut dyn FnMut() -> Vec<Labelled>,
    labelled: Option<Vec<Labelled>>,
    made: BTreeMap<List, BTreeMap<u64, Vec<Socket>>>,
}

impl<'a> Look<'a> {
    /// For the sessions of these cgroups; `labels` lists every socket that carries a label at that moment.
    pub fn new(cgroups: Vec<u64>, labels: &'a mut dyn FnMut() -> Vec<Labelled>) -> Self {
        Self { cgroups, labels, labelled: None, made: BTreeMap::new() }
    }

    /// What was seen so far is out of date.
    pub fn again(&mut self) {
        self.labelled = None;
        self.made.clear();
    }

    fn labelled(&mut self, session: SessionRef) -> Vec<Labelled> {
        let all = self.labelled.get_or_insert_with(&mut self.labels);
        all.iter().filter(|row| row.session == session).copied().collect()
    }

    /// The sockets of one of the kernel's lists that were made in a session's cgroups.
    fn made(&mut self, list: List, diag: &RefCell<Diag>, registry: &mut Registry, own: &[u64]) -> Vec<Socket> {
        let (_, protocol, family) = list;
        let all = self.made.entry(list).or_insert_with(|| {
            let listed = diag.borrow_mut().list(number(family), number(protocol), &self.cgroups);
            let mut by_cgroup: BTreeMap<u64, Vec<Socket>> = BTreeMap::new();
            for socket in taken(listed, protocol, registry) {
                by_cgroup.entry(socket.cgroup).or_default().push(socket);
            }
            by_cgroup
        });
        own.iter().filter_map(|cgroup| all.get(cgroup)).flatten().cloned().collect()
    }
}

/// A socket of a session.
#[derive(Debug, Clone)]
pub struct Found {
    /// The socket.
    pub socket: Socket,
    /// Inode number of its network namespace.
    pub namespace: u64,
    /// It was accepted, or it listens.
    pub passive: bool,
    /// It was made outside the session, and no member may use it.
    pub crossed: bool,
    /// Why the kernel cannot be asked to destroy it.
    pub hidden: Option<Hidden>,
}

/// Why the kernel cannot be asked to destroy a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// It is in none of the kernel's lists.
    Unlisted,
    /// Its network namespace is one that no member was seen in.
    Unreachable,
}

/// All open sockets of a session.
pub(super) fn find(namespaces: &Namespaces, registry: &mut Registry, look: &mut Look<'_>, whose: &Whose) -> Vec<Found> {
    let mut labelled = look.labelled(whose.session);
    let mut found = made_in(namespaces, registry, look, &whose.cgroups);
    take_cookies(&mut labelled, &found);
    let known: BTreeSet<u64> = found.iter().map(|f| f.socket.cookie).collect();
    let others = labelled.iter_mut().filter(|row| is_open(row) && !known.contains(&row.cookie));
    found.extend(crossed(namespaces, registry, others));
    let labels: BTreeMap<Which, &Labelled> = labelled.iter().map(|row| (which(row.cookie, row.inode), row)).collect();
    let place = |f: &Found| (f.namespace, f.socket.protocol, f.socket.local.port());
    let listening: BTreeSet<(u64, u8, u16)> = found.iter().filter(|f| f.socket.state == LISTEN).map(place).collect();
    for one in &mut found {
        let label = labels.get(&one.which());
        one.passive = came_in(one, label.copied(), listening.contains(&place(one)));
        one.socket.bytes = one.socket.bytes.or_else(|| label.map(|l| (l.received, l.sent)));
    }
    found
}

/// Which socket it is: its cookie, or the number of its inode where it has none.
pub type Which = (u64, u32);

const fn which(cookie: u64, inode: u32) -> Which {
    (cookie, if cookie == 0 { inode } else { 0 })
}

impl Found {
    /// Which socket it is.
    #[must_use]
    pub const fn which(&self) -> Which {
        which(self.socket.cookie, self.socket.inode)
    }
}

/// Gives rows without a cookie that of the socket with the same inode. The kernel makes a socket's cookie when it is asked for
/// it: for a list it does, and where labels are read with the open files it does not. What is accepted mostly begins without.
fn take_cookies(rows: &mut [Labelled], found: &[Found]) {
    let mut without = rows.iter_mut().filter(|row| row.cookie == 0).peekable();
    if without.peek().is_none() {
        return;
    }
    let cookies: BTreeMap<u32, u64> = found.iter().map(|f| (f.socket.inode, f.socket.cookie)).collect();
    for row in without.filter(|row| row.inode != 0) {
        row.cookie = cookies.get(&row.inode).copied().unwrap_or(0);
    }
}

/// Whether a socket listens, or its peer came in; `beside`: another one listens at its port. A label says so of TCP, where
/// what is accepted has a copy of its listener's; a port that a socket shares with a listener does not.
fn came_in(one: &Found, label: Option<&Labelled>, beside: bool) -> bool {
    match label {
        _ if one.socket.state == LISTEN => true,
        Some(label) if label.passive || i32::from(one.socket.protocol) == libc::IPPROTO_TCP => label.passive,
        _ => beside,
    }
}

/// The sockets that were made in these cgroups.
fn made_in(namespaces: &Namespaces, registry: &mut Registry, look: &mut Look<'_>, cgroups: &[u64]) -> Vec<Found> {
    let mut found = Vec::new();
    let present = present();
    for (namespace, diag) in namespaces.each() {
        for (protocol, family) in present.iter().flat_map(|p| FAMILIES.map(|f| (*p, f))) {
            if registry.unlisted.contains(&protocol) {
                continue;
            }
            for socket in look.made((namespace, protocol, family), diag, registry, cgroups) {
                found.push(Found { socket, namespace, passive: false, crossed: false, hidden: None });
            }
        }
    }
    found
}

/// The sockets that carry the session's label and were made elsewhere. Rows without a cookie get that of the socket.
fn crossed<'a>(
    namespaces: &Namespaces,
    registry: &mut Registry,
    rows: impl Iterator<Item = &'a mut Labelled>,
) -> Vec<Found> {
    let mut found = Vec::new();
    let mut lists: BTreeMap<(u32, u16, u16), Option<Vec<Socket>>> = BTreeMap::new();
    for row in rows {
        let list = lists.entry((row.namespace, row.family, row.protocol)).or_insert_with(|| {
            let diag = namespaces.reach(registry, u64::from(row.namespace))?;
            let (family, protocol) = (i32::from(row.family), i32::from(row.protocol));
            if registry.unlisted.contains(&protocol) || !present().contains(&protocol) {
                return Some(Vec::new());
            }
            let listed = diag.borrow_mut().list_all(number(family), number(protocol));
            Some(taken(listed, protocol, registry))
        });
        let hidden = if list.is_none() { Hidden::Unreachable } else { Hidden::Unlisted };
        let same = |socket: &&Socket| match row.cookie {
            0 => row.inode != 0 && socket.inode == row.inode,
            cookie => socket.cookie == cookie,
        };
        let listed = list.iter().flatten().find(same);
        row.cookie = listed.map_or(row.cookie, |socket| socket.cookie);
        let (socket, hidden) = listed.map_or_else(|| (unlisted(row), Some(hidden)), |s| (s.clone(), None));
        let (namespace, passive, crossed) = (u64::from(row.namespace), row.passive, row.crossed);
        found.push(Found { socket, namespace, passive, crossed, hidden });
    }
    found
}

pub(super) fn taken(listed: io::Result<Vec<Socket>>, protocol: i32, registry: &mut Registry) -> Vec<Socket> {
    listed.unwrap_or_else(|error| {
        if error.raw_os_error() == Some(libc::ENOENT) {
            registry.unlisted.insert(protocol);
        } else {
            warn!("the sockets of protocol {protocol} cannot be listed: {error}");
        }
        Vec::new()
    })
}

/// A socket that only its label tells of.
fn unlisted(row: &Labelled) -> Socket {
    let (family, protocol) = (number(i32::from(row.family)), number(i32::from(row.protocol)));
    let state = u8::try_from(row.state).unwrap_or(0);
    Socket::unlisted(family, protocol, state, (row.local, row.remote), (row.cookie, row.inode))
}

/// Whether a labelled socket can carry anything over IP: one that was made and never used cannot.
fn is_open(row: &Labelled) -> bool {
    let inet = FAMILIES.contains(&i32::from(row.family));
    let stream = i32::from(row.protocol) == libc::IPPROTO_TCP;
    let idle = row.state == CLOSED && (stream || row.local.port() == 0);
    inet && !idle && i32::from(row.protocol) != libc::IPPROTO_MPTCP
}

/// The protocols that this kernel has at present.
pub(super) fn present() -> Vec<i32> {
    let table = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let names: BTreeSet<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    PROTOCOLS.iter().filter(|(name, _)| names.contains(name)).map(|(_, protocol)| *protocol).collect()
}

pub(super) fn number(n: i32) -> u8 {
    u8::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use super::*;

    const OPEN: u8 = 1;

    fn found(protocol: i32, state: u8) -> Found {
        let end = (IpAddr::from(Ipv4Addr::LOCALHOST), 80);
        let ends = (SocketAddr::from(end), SocketAddr::from(end));
        let socket = Socket::unlisted(number(libc::AF_INET), number(protocol), state, ends, (1, 0));
        Found { socket, namespace: 1, passive: false, crossed: false, hidden: None }
    }

    fn labelled(passive: bool) -> Labelled {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Labelled {
            session: SessionRef::default(),
            cookie: 1,
            namespace: 1,
            family: 2,
            kind: 1,
            protocol: 6,
            state: 1,
            local: nowhere,
            remote: nowhere,
            passive,
            crossed: false,
            spent: false,
            sent: 0,
            received: 0,
            inode: 0,
        }
    }

    #[test]
    fn a_label_says_of_tcp_whether_it_came_in_and_a_port_where_there_is_none() {
        let (out, in_) = (labelled(false), labelled(true));
        for (protocol, state, label, beside, came) in [
            (libc::IPPROTO_TCP, OPEN, Some(&out), true, false),
            (libc::IPPROTO_TCP, OPEN, Some(&in_), false, true),
            (libc::IPPROTO_TCP, OPEN, None, true, true),
            (libc::IPPROTO_TCP, OPEN, None, false, false),
            (libc::IPPROTO_TCP, LISTEN, Some(&out), false, true),
            // what it accepts is labelled at its first packet, which does not say who began
            (libc::IPPROTO_SCTP, OPEN, Some(&out), true, true),
            (libc::IPPROTO_SCTP, OPEN, Some(&out), false, false),
        ] {
            assert_eq!(came_in(&found(protocol, state), label, beside), came, "{protocol} {state} {label:?} {beside}");
        }
    }

    #[test]
    fn a_row_without_a_cookie_is_the_socket_with_its_inode() {
        let mut one = found(libc::IPPROTO_TCP, OPEN);
        one.socket.inode = 80;
        let row = |inode: u32, cookie: u64| Labelled { cookie, inode, ..labelled(true) };
        let mut rows = [row(80, 0), row(81, 0), row(80, 7), row(0, 0)];
        take_cookies(&mut rows, &[one, found(libc::IPPROTO_TCP, OPEN)]);
        assert_eq!(rows.map(|row| row.cookie), [1, 0, 7, 0]);
        assert_ne!(which(0, 80), which(0, 81), "two without a cookie are two");
        assert_eq!(which(7, 80), which(7, 0));
    }
}
