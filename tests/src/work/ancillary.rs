//! What a message or a socket says of how it is sent, beside where to.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{SockType, SockaddrLike as _, SockaddrStorage},
};

use super::network::{connect_to, open};

/// `SO_BINDTOIFINDEX` (`asm-generic/socket.h`)
const BIND_TO_INTERFACE: i32 = 62;

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
    set(&socket, libc::SOL_SOCKET, BIND_TO_INTERFACE, interface)?;
    Ok(socket)
}

/// Sets an option that takes a number.
pub(super) fn set(socket: &OwnedFd, level: i32, option: i32, value: u32) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the option takes four bytes, which outlive the call; the descriptor is open.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    Errno::result(done).map(drop)
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
