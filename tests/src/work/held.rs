//! Sockets of classes that are held over a narrowing.

use std::{
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, getsockopt, sockopt},
};

use super::{
    network::{connect_to, send_bytes},
    raw, say,
    ways::{echo, made, ping},
};

/// A protocol that nobody has (RFC 3692).
const EXPERIMENT: i32 = 253;

/// `hold-class ping|raw|packet[-to] ADDRESS FIFO`: makes a socket of the class, which it connects unless each message is `-to` the address, sends `first-message` by it to the address (by `packet` on
/// loopback whatever the address is), and when the FIFO can be read `second-message`.
pub(super) fn hold_class(words: &[&str]) -> Result<u8> {
    let [class, ip, fifo] = words else { bail!("hold-class takes a class, an address and a FIFO") };
    let to = SocketAddr::new(ip.parse()?, 0);
    let (class, named) = class.split_once('-').map_or((*class, false), |(class, _)| (class, true));
    let socket = match class {
        "ping" => ping(&to)?,
        "raw" => made(&to, libc::SOCK_RAW, EXPERIMENT)?,
        "packet" => frames()?,
        _ => bail!("there is no class {class:?} to be held"),
    };
    if class != "packet" && !named {
        connect_to(&socket, &to)?;
    }
    let whole = |bytes: &[u8]| match named {
        true => send_bytes(&socket, &to, bytes, MsgFlags::empty()),
        false => whole(&socket, bytes),
    };
    let send = |mark: &str| match class {
        "ping" => whole(&echo(&to, mark.as_bytes())),
        "packet" => frame(&socket, mark.as_bytes()),
        _ => whole(mark.as_bytes()),
    };
    say(send("first-message"));
    File::open(fifo)?.read_exact(&mut [0])?;
    Ok(say(send("second-message")))
}

fn whole(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop)
}

/// A packet socket that takes nothing.
fn frames() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Sends an IPv4 packet with these bytes to loopback, which is the first interface of every namespace.
fn frame(socket: &OwnedFd, mark: &[u8]) -> Result<(), Errno> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let bytes = raw::packet(here, here, mark);
    // SAFETY: an all-zero address is a value of it.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    to.sll_ifindex = 1;
    let length = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: bytes and address outlive the call and are as long as is said; the descriptor is open.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), length)
    };
    Errno::result(sent).map(drop)
}

/// Whether an association of SCTP comes about within `wait`.
pub(crate) fn associate(to: &SocketAddr, wait: Duration) -> Result<bool> {
    let socket = made(to, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, libc::IPPROTO_SCTP)?;
    match connect_to(&socket, to) {
        Err(Errno::EINPROGRESS) | Ok(()) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::try_from(wait)?)?;
    let writable = polled[0].revents().is_some_and(|events| events == PollFlags::POLLOUT);
    Ok(writable && getsockopt(&socket, sockopt::SocketError)? == 0)
}
