//! Packets of a member's own making, by raw sockets: the news that a connection is gone, though there never was one, and what
//! is cut short.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{errno::Errno, sys::socket::MsgFlags};

use super::{
    network::send_bytes,
    ways::{friend, made},
};

/// `IPV6_HDRINCL` (`linux/in6.h`)
const HEADER_INCLUDED: i32 = 36;
const TCP: u8 = 6;
/// Bits of TCP's flags.
const SYN: u8 = 2;
const RST: u8 = 4;

/// TCP's header alone, without a check sum.
fn header(port: u16, flags: u8) -> Vec<u8> {
    const OFFSET: u8 = 5 << 4;
    [&[0x99, 0x99], &port.to_be_bytes()[..], &[0; 8], &[OFFSET, flags], &[0; 6]].concat()
}

/// The header of IP with these bytes behind it, from the sender's own address.
pub(super) fn packet(from: IpAddr, to: IpAddr, bytes: &[u8]) -> Vec<u8> {
    let length = |header: usize| u16::try_from(header + bytes.len()).unwrap_or(0).to_be_bytes();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // the kernel writes the check sum
            let start = [&[0x45, 0][..], &length(20), &[0, 1, 0, 0, 64, TCP, 0, 0]].concat();
            [&start, &from.octets()[..], &to.octets(), bytes].concat()
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let start = [&[0x60, 0, 0, 0][..], &length(0), &[TCP, 64]].concat();
            [&start, &octets(from)[..], &octets(to), bytes].concat()
        }
    }
}

/// The address without its port, which raw sockets take for something else.
fn bare(to: &SocketAddr) -> SocketAddr {
    SocketAddr::new(to.ip(), 0)
}

/// A reset to a friend, and by the same socket one to the address.
pub(super) fn reset(to: &SocketAddr) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
    let bytes = header(to.port(), RST);
    send_bytes(&socket, &bare(&friend(to)), &bytes, MsgFlags::empty())?;
    send_bytes(&socket, &bare(to), &bytes, MsgFlags::empty())
}

/// The first packet of a connection.
pub(super) fn begin(to: &SocketAddr) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
    send_bytes(&socket, &bare(to), &header(to.port(), SYN), MsgFlags::empty())
}

/// As [`reset`], with the header of IP, in messages to a friend: it is the packet alone that says where it goes.
pub(super) fn whole(to: &SocketAddr) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
    include_header(&socket, to)?;
    let (friend, bytes) = (bare(&friend(to)), header(to.port(), RST));
    send_bytes(&socket, &friend, &packet(friend.ip(), friend.ip(), &bytes), MsgFlags::empty())?;
    send_bytes(&socket, &friend, &packet(friend.ip(), to.ip(), &bytes), MsgFlags::empty())
}

/// The first packet of a connection, with the header of IP, in a message to a friend.
pub(super) fn begin_elsewhere(to: &SocketAddr) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
    include_header(&socket, to)?;
    let friend = bare(&friend(to));
    send_bytes(&socket, &friend, &packet(friend.ip(), to.ip(), &header(to.port(), SYN)), MsgFlags::empty())
}

/// A packet that says it is of TCP, and ends there.
pub(super) fn cut(to: &SocketAddr) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    send_bytes(&socket, &bare(to), &packet(friend(to).ip(), to.ip(), &[]), MsgFlags::empty())
}

/// By the address's own family, in a message to a friend, a packet of the other family.
pub(super) fn other_version(to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    include_header(&socket, to)?;
    let other = if to.is_ipv4() { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let mut whole = packet(other, other, &[&header(to.port(), SYN), mark].concat());
    if to.is_ipv4() {
        // what IPv4 takes for the length of its header
        whole[0] |= 5;
    }
    send_bytes(&socket, &bare(&friend(to)), &whole, MsgFlags::empty())
}

/// The first packet of a connection by IPv6, behind so many headers of options for the receiver.
pub(super) fn headers(to: &SocketAddr, count: usize, mark: &[u8]) -> Result<(), Errno> {
    const OPTIONS: u8 = 60;
    let socket = made(to, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    include_header(&socket, to)?;
    // next header, no more than these eight bytes, and four of nothing
    let each = (1..=count).map(|n| [if n == count { TCP } else { OPTIONS }, 0, 1, 4, 0, 0, 0, 0]);
    let bytes = [each.collect::<Vec<_>>().concat(), header(to.port(), SYN), mark.to_vec()].concat();
    let mut whole = packet(to.ip(), to.ip(), &bytes);
    whole[6] = OPTIONS;
    send_bytes(&socket, &bare(to), &whole, MsgFlags::empty())
}

fn include_header(socket: &OwnedFd, to: &SocketAddr) -> Result<(), Errno> {
    let (level, option) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_HDRINCL) } else { (libc::IPPROTO_IPV6, HEADER_INCLUDED) };
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call; the descriptor is open.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4) };
    Errno::result(done).map(drop)
}
