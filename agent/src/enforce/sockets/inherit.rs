//! What processes that become a session's hold already: sockets that were made before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getpeername, getsockname, getsockopt, sockopt,
};

use super::{
    find::{FAMILIES, Found, number, present, taken},
    namespaces::{Namespaces, Registry},
    wire::LISTEN,
};
use crate::kernel::{descriptor_of, open_pidfd};

/// Type and states of unix sockets in `/proc/net/unix` (`include/linux/net.h`, `include/uapi/linux/net.h`).
const TYPES: [(u32, &str); 3] = [(1, "stream"), (2, "dgram"), (5, "seqpacket")];
const CONNECTED: u32 = 3;
/// Listings of internet sockets after the first, where one is missing.
const LISTINGS: usize = 3;
/// `SO_ACCEPTCON`, the flag of one that listens.
const ACCEPTS: u32 = 1 << 16;

/// An internet socket that a process holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// A process that holds it.
    pub pid: u32,
    /// The socket.
    pub found: Found,
}

impl Held {
    /// True where it takes connections.
    #[must_use]
    pub const fn listens(&self) -> bool {
        self.found.socket.state == LISTEN
    }

    /// True where it is a connection that came to a port that one of these processes listens on.
    #[must_use]
    pub fn came_in(&self) -> bool {
        let connects = !matches!(i32::from(self.found.socket.protocol), libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
        connects && self.found.passive && !self.listens() && self.found.socket.remote.port() != 0
    }

    /// A descriptor for it, taken from its holder.
    ///
    /// # Errors
    /// The holder is gone, or has closed it.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let process = open_pidfd(self.pid)?;
        let inode = u64::from(self.found.socket.inode);
        let number = sockets_of(self.pid).find(|(_, found)| *found == inode).map(|(number, _)| number);
        socket_of(process.as_fd(), number.ok_or(io::ErrorKind::NotFound)?, inode)
    }
}

/// A descriptor for the socket with this inode number that is another process's descriptor `number`.
///
/// # Errors
/// That process is gone, or has closed it.
pub fn socket_of(process: BorrowedFd<'_>, number: i32, inode: u64) -> io::Result<OwnedFd> {
    let descriptor = descriptor_of(process, number)?;
    // another may have its number by now
    let taken = fs::metadata(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?.ino();
    if taken == inode { Ok(descriptor) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// A unix socket that a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldUnix {
    /// A process that holds it.
    pub pid: u32,
    /// `stream`, `dgram` or `seqpacket`.
    pub kind: &'static str,
    /// `listening`, `connected` or `unconnected`.
    pub state: &'static str,
    /// What it is bound to, with `@` before an abstract name; empty: nothing.
    pub name: Vec<u8>,
}

/// Everything of that kind.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Internet sockets that the kernel lists: connected, listening, bound.
    pub inet: Vec<Held>,
    /// Unix sockets.
    pub unix: Vec<HeldUnix>,
    /// Sockets that are in none of these lists: netlink, packet, and those that were made and not used.
    pub others: u64,
}

/// The sockets that `processes` hold, in the network namespaces that they were seen in.
pub fn inheritance(namespaces: &Namespaces, registry: &mut Registry, processes: &BTreeSet<u32>) -> Inheritance {
    let mut holders: BTreeMap<u64, u32> = BTreeMap::new();
    let mut numbers: BTreeMap<u64, i32> = BTreeMap::new();
    for pid in processes {
        for (number, inode) in sockets_of(*pid) {
            holders.entry(inode).or_insert(*pid);
            numbers.entry(inode).or_insert(number);
        }
    }
    let mut inet = inet(namespaces, registry, &holders);
    let mut unix: BTreeMap<u64, HeldUnix> = BTreeMap::new();
    let mut read: BTreeSet<u64> = BTreeSet::new();
    for pid in processes {
        if namespace_of(*pid).is_none_or(|inode| !read.insert(inode)) {
            continue;
        }
        let table = fs::read(format!("/proc/{pid}/net/unix")).unwrap_or_default();
        unix.extend(table.split(|b| *b == b'\n').skip(1).filter_map(|line| unix_row(line, &holders)));
    }
    let mut left = holders.clone();
    left.retain(|inode, _| !unix.contains_key(inode));
    for _ in 0..LISTINGS {
        for held in &inet {
            left.remove(&u64::from(held.found.socket.inode));
        }
        if !ask_each(&mut left, &numbers, &mut unix) {
            break;
        }
        let listed: BTreeSet<u32> = inet.iter().map(|held| held.found.socket.inode).collect();
        let more = self::inet(namespaces, registry, &holders);
        inet.extend(more.into_iter().filter(|held| !listed.contains(&held.found.socket.inode)));
    }
    for held in &inet {
        left.remove(&u64::from(held.found.socket.inode));
    }
    tell_visitors(&mut inet);
    Inheritance { inet, unix: unix.into_values().collect(), others: left.len() as u64 }
}

/// What is held and in no list is asked itself: the kernel's lists pass over a socket where one before it goes while they are read
/// (`/proc/net/unix` on 6.1, seen here). True: an internet socket that a list should have had is still missing.
fn ask_each(left: &mut BTreeMap<u64, u32>, numbers: &BTreeMap<u64, i32>, unix: &mut BTreeMap<u64, HeldUnix>) -> bool {
    let mut missed = false;
    left.retain(|inode, pid| match numbers.get(inode).and_then(|number| asked(*pid, *number, *inode)) {
        Some(Asked::Unix(held)) => {
            unix.insert(*inode, held);
            false
        }
        Some(Asked::Listed) => {
            missed = true;
            true
        }
        None => true,
    });
    missed
}

/// What a socket says of itself.
enum Asked {
    Unix(HeldUnix),
    /// An internet socket that the kernel lists.
    Listed,
}

/// Asks the socket with this inode number that is a process's descriptor `number`; `None`: it is of another kind, or held no more.
fn asked(pid: u32, number: i32, inode: u64) -> Option<Asked> {
    let process = open_pidfd(pid).ok()?;
    let socket = socket_of(process.as_fd(), number, inode).ok()?;
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let kind = match getsockopt(&socket, sockopt::SockType).ok()? {
        SockType::Stream => "stream",
        SockType::Datagram => "dgram",
        SockType::SeqPacket => "seqpacket",
        _ => "unknown",
    };
    let state = if getsockopt(&socket, sockopt::AcceptConn) == Ok(true) {
        "listening"
    } else if getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok() {
        "connected"
    } else {
        "unconnected"
    };
    // a stream that is neither connected nor listens is in no list, be it bound: also one that was destroyed
    let listed = |port: u16| (port != 0 && (kind == "dgram" || state != "unconnected")).then_some(Asked::Listed);
    match name.family()? {
        AddressFamily::Inet => listed(name.as_sockaddr_in()?.port()),
        AddressFamily::Inet6 => listed(name.as_sockaddr_in6()?.port()),
        AddressFamily::Unix => Some(Asked::Unix(HeldUnix { pid, kind, state, name: unix_name(&name) })),
        _ => None,
    }
}

/// As `/proc/net/unix` writes it.
fn unix_name(name: &SockaddrStorage) -> Vec<u8> {
    let Some(name) = name.as_unix_addr() else { return Vec::new() };
    match (name.path(), name.as_abstract()) {
        (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
        (None, Some(hidden)) => {
            std::iter::once(0).chain(hidden.iter().copied()).map(|b| if b == 0 { b'@' } else { b }).collect()
        }
        (None, None) => Vec::new(),
    }
}

fn inet(namespaces: &Namespaces, registry: &mut Registry, holders: &BTreeMap<u64, u32>) -> Vec<Held> {
    let mut held = Vec::new();
    let present = present();
    for (namespace, diag) in namespaces.each() {
        for (protocol, family) in present.iter().flat_map(|p| FAMILIES.map(|f| (*p, f))) {
            if registry.unlisted.contains(&protocol) {
                continue;
            }
            let listed = diag.borrow_mut().list_all(number(family), number(protocol));
            for socket in taken(listed, protocol, registry) {
                if let Some(pid) = holders.get(&u64::from(socket.inode)) {
                    held.push(Held {
                        pid: *pid,
                        found: Found { socket, namespace, passive: false, crossed: false, hidden: None },
                    });
                }
            }
        }
    }
    held
}

/// Tells which came in: to a port that one of them listens on.
fn tell_visitors(held: &mut [Held]) {
    let port = |held: &Held| (held.found.namespace, held.found.socket.local.port());
    let listening: BTreeSet<(u64, u16)> = held.iter().filter(|h| h.listens()).map(port).collect();
    for one in held {
        one.found.passive = listening.contains(&port(one));
    }
}

/// The sockets that a process has open: descriptors and inode numbers.
pub fn sockets_of(pid: u32) -> impl Iterator<Item = (i32, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = inode(link.as_os_str().as_bytes(), "socket:[")?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    })
}

fn namespace_of(pid: u32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    inode(link.as_os_str().as_bytes(), "net:[")
}

fn inode(link: &[u8], before: &str) -> Option<u64> {
    let digits = link.strip_prefix(before.as_bytes())?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `Num RefCount Protocol Flags Type St Inode Path`, the path after one blank and as it is.
fn unix_row(line: &[u8], holders: &BTreeMap<u64, u32>) -> Option<(u64, HeldUnix)> {
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        let end = rest[start..].iter().position(|b| *b == b' ').map_or(rest.len(), |length| start + length);
        let word = std::str::from_utf8(&rest[start..end]).ok();
        rest = &rest[end..];
        word
    };
    let hex = |word: &str| u32::from_str_radix(word, 16).ok();
    let (_number, _count, _protocol) = (word()?, word()?, word()?);
    let (flags, kind, state) = (hex(word()?)?, hex(word()?)?, hex(word()?)?);
    let inode = word()?.parse().ok()?;
    let pid = *holders.get(&inode)?;
    let name = rest.get(1..).unwrap_or_default().to_vec();
    let kind = TYPES.iter().find(|(number, _)| *number == kind).map_or("unknown", |(_, name)| name);
    let state = match state {
        _ if flags & ACCEPTS != 0 => "listening",
        CONNECTED => "connected",
        _ => "unconnected",
    };
    Some((inode, HeldUnix { pid, kind, state, name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_says_what_the_tables_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (one, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = std::process::id();
        let inode = |socket: &dyn std::os::fd::AsFd| {
            fs::metadata(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd())).unwrap().ino()
        };
        let holders = BTreeMap::from([(inode(&listener), pid), (inode(&one), pid)]);
        let number = |socket: &dyn std::os::fd::AsFd| socket.as_fd().as_raw_fd();
        let both =
            [(number(&listener), inode(&listener), path.as_os_str().as_bytes()), (number(&one), inode(&one), &b""[..])];
        for (number, socket, name) in both {
            let Some(Asked::Unix(held)) = asked(pid, number, socket) else {
                panic!("it says that it is no unix socket")
            };
            assert_eq!(held.name, name);
            // the table may have passed over it
            let listed = || {
                let table = fs::read("/proc/self/net/unix").unwrap();
                table
                    .split(|b| *b == b'\n')
                    .filter_map(|line| unix_row(line, &holders))
                    .find(|(inode, _)| *inode == socket)
            };
            let listed = (0..100).find_map(|_| listed()).map(|(_, held)| held);
            assert_eq!(listed, Some(held));
        }
        assert!(matches!(asked(pid, number(&tcp), inode(&tcp)), Some(Asked::Listed)));
        assert!(asked(pid, number(&tcp), inode(&one)).is_none());
    }

    #[test]
    fn rows_of_the_unix_table() {
        let holders = BTreeMap::from([(4026, 7), (12, 8), (13, 9)]);
        let row = |line: &str| unix_row(line.as_bytes(), &holders).map(|(_, held)| held);
        let listening = row("0000000000000000: 00000002 00000000 00010000 0001 01  4026 /run/a socket 4026").unwrap();
        assert_eq!((listening.pid, listening.kind, listening.state), (7, "stream", "listening"));
        let abstracted = row("0000000000000000: 00000002 00000000 00000000 0002 01 12 @name").unwrap();
        assert_eq!(
            (abstracted.kind, abstracted.state, abstracted.name.as_slice()),
            ("dgram", "unconnected", &b"@name"[..])
        );
        let pair = row("0000000000000000: 00000003 00000000 00000000 0001 03 13").unwrap();
        assert_eq!((pair.state, pair.name.as_slice()), ("connected", &b""[..]));
        assert_eq!(row("0000000000000000: 00000003 00000000 00000000 0001 03 14"), None);
        assert_eq!(row("Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }
}
