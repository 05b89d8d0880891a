//! What a socket carries: the label in its socket-local storage. And the classes of sockets that a policy speaks of.

use crate::pod;

/// Raw sockets of IPv4 and IPv6.
pub const SOCKET_RAW: u32 = 1;
/// `AF_PACKET`: frames, past every address.
pub const SOCKET_PACKET: u32 = 1 << 1;
/// ICMP echo as a datagram socket.
pub const SOCKET_PING: u32 = 1 << 2;
/// SCTP.
pub const SOCKET_SCTP: u32 = 1 << 3;
/// DCCP.
pub const SOCKET_DCCP: u32 = 1 << 4;
/// `AF_NETLINK`
pub const SOCKET_NETLINK: u32 = 1 << 5;
/// `AF_VSOCK`
pub const SOCKET_VSOCK: u32 = 1 << 6;
/// `AF_UNIX`; whom it may connect to is judged by `UNIX_RULES`.
pub const SOCKET_UNIX: u32 = 1 << 7;
/// Every family, type and protocol that has no class of its own. TCP, MPTCP, UDP and UDP-Lite are in no class: they can
/// always be made, and are judged by address.
pub const SOCKET_OTHER: u32 = 1 << 8;
/// Every class.
pub const SOCKET_ALL: u32 = (1 << 9) - 1;

/// It was made by a task that was first seen below the confinement cgroup (`Settings::confine_cgroup`).
pub const SOCKET_CONFINED: u32 = 1;
/// It listens, or was accepted from a socket that listened: its peers came in, and are judged as such. Given once somebody may
/// come, and taken when it connects.
pub const SOCKET_PASSIVE: u32 = 1 << 1;
/// It is from before an attachment, was let through to a command, or was made by a member that had been moved away: no program on
/// Tipstaff's own cgroup sees it, and each use is judged.
pub const SOCKET_BEFORE: u32 = 1 << 2;
/// It was made outside the session, and a member held or used it that may not: nothing leaves on it any more. Given only
/// where the packet programs see such sockets (`Settings::sessions_cgroup`).
pub const SOCKET_CROSSED: u32 = 1 << 3;
/// A program made it, and it is of a class (`SOCKET_RAW` and the others): what it sends is judged by that too.
pub const SOCKET_OF_CLASS: u32 = 1 << 4;
/// It was bound to a port of its user's choice, so that others can come to it: who sends datagrams there is judged as who comes in.
pub const SOCKET_SERVES: u32 = 1 << 5;

/// The last packet of a stream that carried data was refused because all bytes out are used up: it is sent again, and nothing
/// before it.
pub const SPENT_DATA: u32 = 1;
/// The last packet of a stream was, whatever it carried: what comes in is not acknowledged either.
pub const SPENT_ANY: u32 = 1 << 1;

/// The value in `SOCKET_LABELS`, one for each socket of a session. A connection that is accepted gets a copy of its
/// listener's from its first segment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketLabel {
    /// Index into the session arrays.
    pub slot: u32,
    /// The slot's generation that the label was given for.
    pub generation: u32,
    /// `SOCKET_*` flags.
    pub flags: u32,
    /// `SPENT_*`
    pub spent: u32,
    /// Fingerprint of the last destination that was allowed, and of the revision that allowed it; 0: none. One word, so
    /// that it is never read half written (see `fingerprint`).
    pub judged: u64,
    /// The same of the last peer that was let in, and the local port that it came to.
    pub admitted: u64,
    /// The same of the last address that was refused in a packet: it is recorded once.
    pub refused: u64,
    /// Bytes of packets out, headers of the network layer included; those dropped do not count.
    pub sent: u64,
    /// Bytes of packets in, as above.
    pub received: u64,
}
const _: () = assert!(size_of::<SocketLabel>() == 56);

/// One row that the socket iterator writes: a socket that carries a label.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketRow {
    /// The session's slot.
    pub slot: u32,
    /// The session's generation.
    pub generation: u32,
    /// The socket's cookie; 0: it has none yet.
    pub cookie: u64,
    /// Inode number of its network namespace.
    pub namespace: u32,
    /// `AF_*`
    pub family: u16,
    /// `SOCK_*`
    pub kind: u16,
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub local: [u8; 16],
    /// As above.
    pub remote: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Host order; 0: not connected.
    pub remote_port: u16,
    /// `IPPROTO_*`
    pub protocol: u16,
    /// `TCP_*` (`include/net/tcp_states.h`), which other protocols use too.
    pub state: u16,
    /// `SOCKET_*` flags of its label.
    pub flags: u32,
    /// As in its label.
    pub spent: u32,
    /// Bytes of packets out.
    pub sent: u64,
    /// Bytes of packets in.
    pub received: u64,
    /// Number of its inode, where it was found as an open file; else 0.
    pub inode: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<SocketRow>() == 96);

/// In [`SocketRow::slot`]: what the kernel keeps with the socket could not be read.
pub const UNREADABLE: u32 = u32::MAX;

/// Key of `DESTINATIONS`: an address that a session with such a budget has been to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// The session's slot.
    pub slot: u32,
    /// The session's generation.
    pub generation: u32,
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<Destination>() == 24);

pod!(SocketLabel, SocketRow, Destination);
