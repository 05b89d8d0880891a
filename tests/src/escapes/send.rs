//! Attempts to send: the packets are made here, or by what makes them in the sender's place.

use std::{
    ffi::c_void,
    fs,
    io::Write as _,
    mem::zeroed,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;

use super::{
    acts::{answer, argument, io},
    unix,
};
use crate::{
    harness::{interface, wait::until},
    work,
};

const UDP: u8 = 17;

/// `act NAME …`, of those that send.
pub(super) fn act(name: &str, words: &[&str]) -> Result<u8> {
    let done = match name {
        "unix-by" => return unix::by(words),
        "unspecified" => to(words, unspecified)?,
        "raw-udp" => to(words, raw_udp)?,
        "raw-whole" => to(words, raw_whole)?,
        "packet" => to(words, packet)?,
        "repair" => to(words, repair)?,
        "group" => group(argument(words)?.parse().context("no IPv4 address")?)?,
        "tunnel" => to(words, tunnel)?,
        _ => bail!("there is no act {name:?}"),
    };
    Ok(work::say(done))
}

/// `MARK ADDRESS PORT`: sends the mark there.
fn to(words: &[&str], send: fn(&str, SocketAddrV4) -> Result<(), Errno>) -> Result<Result<(), Errno>> {
    let [mark, ip, port] = words else { bail!("a mark, an address and a port") };
    Ok(send(mark, SocketAddrV4::new(ip.parse().context("no IPv4 address")?, port.parse()?)))
}

fn made(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: integers only.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(family: i32, to: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: all zeros are a value of it: integers.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = u16::try_from(family).unwrap_or(0);
    address.sin_port = to.port().to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
    address
}

fn send_to<T>(socket: &OwnedFd, bytes: &[u8], to: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: bytes and address outlive the call and are as long as is said; the descriptor is open.
    let sent = unsafe {
        let place = std::ptr::from_ref(to).cast();
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL, place, length)
    };
    Errno::result(sent).map(drop)
}

/// A datagram to an address whose family is not said, which IPv4 takes for its own.
fn unspecified(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    let socket = made(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    send_to(&socket, mark.as_bytes(), &address(libc::AF_UNSPEC, to))
}

fn raw_udp(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    let socket = made(libc::AF_INET, libc::SOCK_RAW, i32::from(UDP))?;
    send_to(&socket, &interface::datagram(mark, to.port()), &address(libc::AF_INET, to))
}

fn raw_whole(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    let socket = made(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    send_to(&socket, &interface::whole(mark, Ipv4Addr::LOCALHOST, to), &address(libc::AF_INET, to))
}

/// A packet that is handed to the loopback interface.
fn packet(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    let socket = made(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: all zeros are a value of it: integers.
    let mut link: libc::sockaddr_ll = unsafe { zeroed() };
    link.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    link.sll_protocol = u16::try_from(libc::ETH_P_IP).unwrap_or(0).to_be();
    link.sll_ifindex = 1;
    link.sll_halen = 6;
    send_to(&socket, &interface::whole(mark, Ipv4Addr::LOCALHOST, to), &link)
}

/// A connection that is said to be there already (`TCP_REPAIR`), and sends when it is let go.
fn repair(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    const REPAIR: i32 = 19;
    let socket = made(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let fd = socket.as_raw_fd();
    // SAFETY: an int that outlives the call; the descriptor is open.
    let set = |on: i32| unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, REPAIR, (&raw const on).cast(), 4) };
    answer(set(1).into())?;
    let there = address(libc::AF_INET, to);
    // SAFETY: an address that outlives the call; the descriptor is open.
    answer(unsafe { libc::connect(fd, (&raw const there).cast(), 16) }.into())?;
    answer(set(0).into())?;
    // SAFETY: bytes that outlive the call; the descriptor is open.
    let sent = unsafe { libc::send(fd, mark.as_ptr().cast::<c_void>(), mark.len(), libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(drop)
}

/// Joins a multicast group at the loopback interface: the kernel tells the routers there of it, by a packet of its own.
fn group(group: Ipv4Addr) -> Result<Result<(), Errno>> {
    let socket = match io(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))) {
        Ok(socket) => socket,
        Err(errno) => return Ok(Err(errno)),
    };
    let before = sent_by_loopback()?;
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from_ne_bytes(group.octets()) },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: 1,
    };
    let length = libc::socklen_t::try_from(size_of_val(&request))?;
    // SAFETY: the request outlives the call; the descriptor is open.
    let joined = unsafe {
        let place = (&raw const request).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, place, length)
    };
    if let Err(errno) = answer(joined.into()) {
        return Ok(Err(errno));
    }
    // the news of it goes out after a moment; that of the end goes too, where that of the beginning does not
    let more = || Ok((sent_by_loopback()? > before).then_some(()));
    let _ = until("the news of a group", Duration::from_secs(1), more);
    Ok(Ok(()))
}

/// How many packets the loopback interface has sent: the attempts have a network of their own, and are made one by one.
fn sent_by_loopback() -> Result<u64> {
    const PACKETS: usize = 9;
    let all = fs::read_to_string("/proc/self/net/dev").context("/proc/self/net/dev")?;
    let own = all.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).context("there is no loopback")?;
    Ok(own.split_whitespace().nth(PACKETS).context("it counts no packets")?.parse()?)
}

/// Packets that come in by an interface of the sender's own (TUN), as from somebody else, for an address of this host.
fn tunnel(mark: &str, to: SocketAddrV4) -> Result<(), Errno> {
    let (mut device, _) = interface::tunnel(*to.ip())?;
    let [a, b, c, d] = to.ip().octets();
    let from = Ipv4Addr::new(a, b, c, d ^ 1);
    io(device.write_all(&interface::whole(mark, from, to)))
}
