//! Messages of sock_diag(7), encoded and decoded. Pure.
//!
//! Layouts: `nlmsghdr` (`include/uapi/linux/netlink.h`), `inet_diag_req_v2`, `inet_diag_msg` and the filter's operations
//! (`include/uapi/linux/inet_diag.h`), `tcp_info` (`include/uapi/linux/tcp.h`), all of 6.18 and unchanged since 5.8.
//!
//! Own code, because the crate for it (netlink-packet-sock-diag 0.5) can neither filter a listing nor ask for protocols
//! above 255, and sends `SOCK_DESTROY` only with a header patched by hand.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `inet_diag_sockid`: both ports, both addresses, interface, cookie.
const ID: usize = 48;
/// `inet_diag_msg`.
const MESSAGE: usize = 72;

/// Attribute of a request: a filter.
const REQ_BYTECODE: u16 = 1;
/// Attribute of an answer: `tcp_info`. Asked for by the bit before its number.
const INFO: u16 = 2;
const ASK_INFO: u8 = 1 << (INFO - 1);
/// Attribute of an answer: the cgroup that the socket was made in. Comes unasked.
const CGROUP_ID: u16 = 21;
/// Filter: go on `no` bytes further on.
const BC_JMP: u8 = 1;
/// Filter: the socket's cgroup has this id.
const BC_CGROUP: u8 = 13;
/// Cgroups that one filter can name: jumps are counted in 16 bits.
pub(super) const CGROUPS_MAX: usize = 2048;

/// Offsets in `tcp_info`: payload received; payload sent with and of repeats (4.19).
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;
const BYTES_RETRANS: usize = 208;

/// `TCP_LISTEN` (`include/net/tcp_states.h`)
pub(super) const LISTEN: u8 = 10;
/// Every state but `TIME_WAIT` (6) and the unfinished handshakes of a listener (12): neither has an owner.
const STATES: u32 = 0xfff & !(1 << 6);

/// A socket as sock_diag lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// `IPPROTO_…`.
    pub protocol: u8,
    /// As TCP numbers them; UDP uses 1 for connected and 7 for not.
    pub state: u8,
    /// The end on this host.
    pub local: SocketAddr,
    /// The other end; port 0 where there is none.
    pub remote: SocketAddr,
    /// The kernel's number for it, never used twice.
    pub cookie: u64,
    /// Bytes received and sent: of payload for TCP; of packets for others, where the socket has a label.
    pub bytes: Option<(u64, u64)>,
    /// Inode number, which the links in `/proc/PID/fd` name; 0: not known.
    pub inode: u32,
    /// Id of the cgroup that it was made in; 0: not known.
    pub cgroup: u64,
    /// How the kernel is told which one is meant.
    id: [u8; ID],
}

/// One part of an answer.
#[derive(Debug)]
pub(super) enum Part {
    Socket(Socket),
    /// The listing is complete, or the operation was carried out.
    Done,
    Failed(io::Error),
}

impl Socket {
    /// One that is in no list, and so cannot be destroyed.
    pub(super) fn unlisted(
        family: u8,
        protocol: u8,
        state: u8,
        (local, remote): (SocketAddr, SocketAddr),
        (cookie, inode): (u64, u32),
    ) -> Self {
        Self { family, protocol, state, local, remote, cookie, bytes: None, inode, cgroup: 0, id: [0; ID] }
    }
}

/// Asks for the sockets of a family and protocol; where cgroups are given, for those that were made in one of them.
pub(super) fn list(family: u8, protocol: u8, cgroups: Option<&[u64]>, sequence: u32) -> Vec<u8> {
    let mut body = request(family, protocol, STATES, &[0; ID]);
    if let Some(cgroups) = cgroups {
        attribute(&mut body, REQ_BYTECODE, &made_in(cgroups));
    }
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body)
}

/// Asks for exactly this socket to be destroyed.
pub(super) fn destroy(socket: &Socket, sequence: u32) -> Vec<u8> {
    let mut body = request(socket.family, socket.protocol, u32::MAX, &socket.id);
    if i32::from(socket.protocol) == libc::IPPROTO_RAW {
        // raw sockets are found by the protocol that they were made for, which is listed where others have the port
        body[3] = u8::try_from(socket.local.port()).unwrap_or(0);
    }
    message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence, &body)
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// `inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = vec![family, protocol, ASK_INFO, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The filter "made in one of these cgroups". A socket passes that arrives exactly at the end of the operations, and is
/// left out where it jumps beyond.
fn made_in(cgroups: &[u64]) -> Vec<u8> {
    /// A comparison, and the jump to the end that follows all but the last.
    const COMPARE: usize = 12;
    const JUMP: usize = 4;
    let cgroups = &cgroups[..cgroups.len().min(CGROUPS_MAX)];
    let end = (cgroups.len() * (COMPARE + JUMP)).saturating_sub(JUMP);
    let mut code = Vec::with_capacity(end);
    let operation = |code: u8, yes: usize, no: usize, value: &[u8], bytes: &mut Vec<u8>| {
        bytes.extend([code, u8::try_from(yes).unwrap_or(0)]);
        bytes.extend(u16::try_from(no).unwrap_or(u16::MAX).to_ne_bytes());
        bytes.extend(value);
    };
    for (index, cgroup) in cgroups.iter().enumerate() {
        operation(BC_CGROUP, COMPARE, COMPARE + JUMP, &cgroup.to_ne_bytes(), &mut code);
        if index + 1 < cgroups.len() {
            let here = code.len();
            operation(BC_JMP, JUMP, end - here, &[], &mut code);
        }
    }
    code
}

/// The parts of what was received; `protocol` is what was asked for.
pub(super) fn parts(mut bytes: &[u8], protocol: u8, sequence: u32) -> Vec<Part> {
    let mut parts = Vec::new();
    while let Some(length) = word(bytes, 0).and_then(|l| usize::try_from(l).ok()) {
        let Some(message) = bytes.get(..length).filter(|m| m.len() >= HEADER) else { break };
        // an answer to an earlier question that was given up is not this one's
        if word(message, 8) == Some(sequence) {
            parts.extend(part(half(message, 4).unwrap_or(0), &message[HEADER..], protocol));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    parts
}

fn part(kind: u16, body: &[u8], protocol: u8) -> Option<Part> {
    match kind {
        NLMSG_DONE | NLMSG_ERROR => match word(body, 0).map_or(0, u32::cast_signed) {
            0 => Some(Part::Done),
            errno => Some(Part::Failed(io::Error::from_raw_os_error(errno.saturating_neg()))),
        },
        SOCK_DIAG_BY_FAMILY => socket(body, protocol).map(Part::Socket),
        _ => None,
    }
}

fn socket(body: &[u8], protocol: u8) -> Option<Socket> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let id: [u8; ID] = *body.get(4..)?.first_chunk()?;
    let local = end(family, &id[4..20], &id[0..2])?;
    let remote = end(family, &id[20..36], &id[2..4])?;
    let cookie = u64::from(word(&id, 40)?) | u64::from(word(&id, 44)?) << 32;
    let inode = word(body, MESSAGE - 4)?;
    let told = body.get(MESSAGE..)?;
    let value = |wanted| attributes(told).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let (info, cgroup) = (value(INFO), value(CGROUP_ID).and_then(|id| long(id, 0)).unwrap_or(0));
    // sctp has an information of its own under the same number
    let tcp = info.filter(|_| i32::from(protocol) == libc::IPPROTO_TCP);
    let bytes = tcp.and_then(|info| {
        let sent = long(info, BYTES_SENT)?.saturating_sub(long(info, BYTES_RETRANS)?);
        Some((long(info, BYTES_RECEIVED)?, sent))
    });
    Some(Socket { family, protocol, state, local, remote, cookie, bytes, inode, cgroup, id })
}

/// One end of a socket. A mapped IPv4 address is IPv4.
fn end(family: u8, address: &[u8], port: &[u8]) -> Option<SocketAddr> {
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
        libc::AF_INET6 => Ipv6Addr::from(*address.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port.first_chunk()?)))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `inet_diag_bc_run` (`net/ipv4/inet_diag.c`, 6.18) makes of a filter of these operations.
    fn passes(code: &[u8], cgroup: u64) -> bool {
        let mut at = 0;
        while at < code.len() {
            let no = usize::from(half(code, at + 2).expect("an operation has four bytes"));
            let yes = usize::from(code[at + 1]);
            let holds = code[at] == BC_CGROUP && long(code, at + 4) == Some(cgroup);
            at += if holds { yes } else { no };
        }
        at == code.len()
    }

    proptest! {
        #[test]
        fn the_filter_passes_what_was_made_in_the_cgroups(all in prop::collection::vec(1u64..40, 1..20), one in 1u64..40) {
            prop_assert_eq!(passes(&made_in(&all), one), all.contains(&one));
        }

        #[test]
        fn whatever_comes_is_read_without_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = parts(&bytes, 6, 1);
        }
    }

    #[test]
    fn the_longest_filter_can_be_jumped() {
        let cgroups: Vec<u64> = (1..=CGROUPS_MAX as u64 + 1).collect();
        let code = made_in(&cgroups);
        assert!(code.len() + HEADER < usize::from(u16::MAX));
        assert!(passes(&code, 1) && passes(&code, CGROUPS_MAX as u64) && !passes(&code, CGROUPS_MAX as u64 + 1));
    }

    #[test]
    fn an_answer_is_read() {
        let mut id = [0u8; ID];
        id[0..4].copy_from_slice(&[0x1f, 0x90, 0xc3, 0x50]);
        id[4..8].copy_from_slice(&[127, 0, 0, 1]);
        id[20..24].copy_from_slice(&[127, 0, 0, 2]);
        id[40..48].copy_from_slice(&0x1_0000_0007u64.to_ne_bytes());
        let mut body = vec![2, 1, 0, 0];
        body.extend(id);
        body.resize(MESSAGE, 0);
        let mut info = vec![0; 232];
        info[BYTES_RECEIVED] = 5;
        info[BYTES_SENT] = 9;
        info[BYTES_RETRANS] = 2;
        attribute(&mut body, 8, &[0]);
        attribute(&mut body, INFO, &info);
        attribute(&mut body, CGROUP_ID, &77u64.to_ne_bytes());
        let bytes = [message(SOCK_DIAG_BY_FAMILY, 2, 3, &body), message(NLMSG_DONE, 2, 3, &[0; 4])].concat();
        let found = parts(&bytes, 6, 3);
        let [Part::Socket(socket), Part::Done] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (socket.local.to_string(), socket.remote.to_string()),
            ("127.0.0.1:8080".into(), "127.0.0.2:50000".into())
        );
        assert_eq!((socket.cookie, socket.bytes, socket.state), (0x1_0000_0007, Some((5, 7)), 1));
        assert_eq!(socket.cgroup, 77);
        assert!(parts(&bytes, 6, 4).is_empty(), "another question's answer");
        let sent = destroy(socket, 1);
        assert_eq!(&sent[HEADER + 8..], &id);
    }

    #[test]
    fn a_failure_is_an_errno() {
        let bytes = message(NLMSG_ERROR, 0, 1, &(-libc::EOPNOTSUPP).to_ne_bytes());
        let found = parts(&bytes, 6, 1);
        assert!(matches!(&found[..], [Part::Failed(e)] if e.raw_os_error() == Some(libc::EOPNOTSUPP)));
    }
}
