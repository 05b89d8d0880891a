//! What a message or a socket says of how it is sent, beside where to.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockType, SockaddrLike as _, SockaddrStorage, send},
};

use super::{
    network::{address, connect_to, open, send_to},
    one, say,
};

/// `SO_BINDTOIFINDEX` (`asm-generic/socket.h`)
const BIND_TO_INTERFACE: i32 = 62;

/// `source-route HOP ADDRESS PORT`: sends a datagram by way of another address: a loose source route (`IP_OPTIONS`), or a
/// routing header of segments (`IPV6_RTHDR`), which a kernel without mobile IPv6 takes too.
pub(super) fn source_route(words: &[&str]) -> Result<u8> {
    let (hop, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let (level, name, option) = match hop.parse()? {
        // no operation; loose source route of one address
        IpAddr::V4(hop) => (libc::IPPROTO_IP, libc::IP_OPTIONS, [&[1, 131, 7, 4][..], &hop.octets()].concat()),
        // next header, length, type, segments left, number of the last, flags, tag; the end, which the kernel writes; the hop
        IpAddr::V6(hop) => {
            let header = [&[0, 4, 4, 1, 1, 0, 0, 0][..], &[0; 16], &hop.octets()].concat();
            (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, header)
        }
    };
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    if let Err(errno) = set(socket.as_fd(), level, name, &option) {
        return Ok(say(Err(errno)));
    }
    Ok(say(send_to(&socket.into(), &to, MsgFlags::empty())))
}

/// `set-option LEVEL OPTION`, as numbers: of a UDP socket of IPv6, to 0.
pub(super) fn set_option(words: &[&str]) -> Result<u8> {
    let [level, option] = words else { bail!("set-option takes two numbers") };
    let socket = UdpSocket::bind(("::", 0))?;
    Ok(say(set(socket.as_fd(), level.parse()?, option.parse()?, &[0; 4])))
}

/// `address-form ADDRESS PORT ADDRESS PORT`: a UDP socket of IPv6, connected to the first, a mapped address, becomes one of
/// IPv4 (`IPV6_ADDRFORM`), and sends to the second, an address of IPv4.
pub(super) fn address_form(words: &[&str]) -> Result<u8> {
    let (first, rest) = address(words)?;
    let (second, _) = address(rest)?;
    let socket = open(SockType::Datagram, &first)?;
    connect_to(&socket, &first)?;
    say(set(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_ADDRFORM, &libc::AF_INET.to_ne_bytes()));
    Ok(say(send_to(&socket, &second, MsgFlags::empty())))
}

/// `send-segments COUNT ADDRESS PORT`: a message that the kernel cuts into so many datagrams of one byte (`UDP_SEGMENT`).
pub(super) fn send_segments(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(to)?;
    set(socket.as_fd(), libc::IPPROTO_UDP, libc::UDP_SEGMENT, &1_u32.to_ne_bytes())?;
    let bytes = vec![b'x'; count.parse()?];
    Ok(say(send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)))
}

/// A datagram whose own ancillary data says that it goes by another address: a loose source route, or a routing header of
/// type 2.
pub(super) fn by_way_of(hop: IpAddr, to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let (level, kind, option) = match hop {
        // no operation; loose source route of one address
        IpAddr::V4(hop) => (libc::IPPROTO_IP, libc::IP_RETOPTS, [&[1, 131, 7, 4][..], &hop.octets()].concat()),
        // next header, length, type, addresses left; reserved
        IpAddr::V6(hop) => {
            (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, [&[0, 2, 2, 1, 0, 0, 0, 0][..], &hop.octets()].concat())
        }
    };
    send_with(&datagram(to)?, Some(to), (level, kind, &option), mark)
}

/// A datagram of a connected socket whose ancillary data says of which class it is, as programs of QUIC do.
pub(super) fn marked(to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let socket = datagram(to)?;
    connect_to(&socket, to)?;
    let (level, kind) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
    send_with(&socket, None, (level, kind, &2_u32.to_ne_bytes()), mark)
}

/// A datagram whose ancillary data says by which interface it leaves.
pub(super) fn by_interface(interface: u32, to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let number = interface.to_ne_bytes();
    let (level, kind, option) = if to.is_ipv4() {
        // the interface, two addresses
        (libc::IPPROTO_IP, libc::IP_PKTINFO, [&number[..], &[0; 8]].concat())
    } else {
        // the address that it comes from, the interface
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, [&[0; 16][..], &number].concat())
    };
    send_with(&datagram(to)?, Some(to), (level, kind, &option), mark)
}

/// A socket that is bound to an interface.
pub(super) fn on_interface(interface: u32, kind: SockType, to: &SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = open(kind, to).map_err(|_error| Errno::EMFILE)?;
    set(socket.as_fd(), libc::SOL_SOCKET, BIND_TO_INTERFACE, &interface.to_ne_bytes())?;
    Ok(socket)
}

/// Sets an option.
fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_error| Errno::EINVAL)?;
    // SAFETY: the value outlives the call; the descriptor is open.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(set).map(drop)
}

fn datagram(to: &SocketAddr) -> Result<OwnedFd, Errno> {
    open(SockType::Datagram, to).map_err(|_error| Errno::EMFILE)
}

fn send_with(
    socket: &OwnedFd,
    to: Option<&SocketAddr>,
    (level, kind, option): (i32, i32, &[u8]),
    mark: &[u8],
) -> Result<(), Errno> {
    let address = to.map(|to| SockaddrStorage::from(*to));
    let mut part = libc::iovec { iov_base: mark.as_ptr().cast_mut().cast(), iov_len: mark.len() };
    let mut ancillary = [0u64; 8];
    // SAFETY: an all-zero msghdr is a value of it. The pieces outlive the call; the ancillary data is aligned and has room for
    // a header of 16 bytes and the longest option, of 24.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        if let Some(address) = &address {
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.len();
        }
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.as_mut_ptr().cast();
        let length = u32::try_from(option.len()).unwrap_or(0);
        message.msg_controllen = libc::CMSG_SPACE(length) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
        std::ptr::copy_nonoverlapping(option.as_ptr(), libc::CMSG_DATA(header), option.len());
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
    };
    Errno::result(sent).map(drop)
}
