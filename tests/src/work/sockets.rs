//! Sockets of every kind, and sockets that others made.

use std::{
    fs::File,
    io::{IoSliceMut, Read as _},
    net::UdpSocket,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixStream},
    },
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{Backlog, ControlMessageOwned, MsgFlags, SockType, SockaddrIn, SockaddrIn6, bind, recvmsg},
};

use super::{
    inform,
    network::{address, open},
    one, say,
};

/// `make FAMILY TYPE PROTOCOL`, as numbers: socket(2).
pub(super) fn make(words: &[&str]) -> Result<u8> {
    let [family, kind, protocol] = words else { bail!("make takes three numbers") };
    // SAFETY: no pointers; the descriptor is this process's own and ends with it.
    let made = unsafe { libc::socket(family.parse()?, kind.parse()?, protocol.parse()?) };
    Ok(say(Errno::result(made).map(drop)))
}

/// `make-sockets`: makes one after the other, and keeps none.
pub(super) fn make_many() -> Result<u8> {
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    loop {
        drop(open(SockType::Datagram, &nowhere)?);
    }
}

/// `bind tcp|udp ADDRESS PORT`: and listens, if it is TCP.
pub(super) fn bind_to(words: &[&str]) -> Result<u8> {
    let (protocol, rest) = one(words)?;
    let (address, _) = address(rest)?;
    let kind = if protocol == "tcp" { SockType::Stream } else { SockType::Datagram };
    let socket = open(kind, &address)?;
    let fd = socket.as_raw_fd();
    let bound = match address {
        std::net::SocketAddr::V4(v4) => bind(fd, &SockaddrIn::from(v4)),
        std::net::SocketAddr::V6(v6) => bind(fd, &SockaddrIn6::from(v6)),
    };
    let listening = bound.and_then(|()| match kind {
        SockType::Stream => nix::sys::socket::listen(&socket, Backlog::new(1)?),
        _ => Ok(()),
    });
    Ok(say(listening))
}

/// A unix socket's address: a path, or `@` and an abstract name.
pub(crate) fn unix_address(name: &str) -> std::io::Result<UnixAddress> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(name),
    }
}

/// `unix-to stream|datagram NAME`: connects, or sends one datagram.
pub(super) fn unix(words: &[&str]) -> Result<u8> {
    let (kind, rest) = one(words)?;
    let (name, _) = one(rest)?;
    let to = unix_address(name)?;
    let done = match kind {
        "stream" => UnixStream::connect_addr(&to).map(drop),
        "datagram" => UnixDatagram::unbound()?.send_to_addr(b"x", &to).map(drop),
        _ => bail!("there is no kind {kind:?} of unix sockets"),
    };
    Ok(say(done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))))
}

/// `descriptor NUMBER`: what it is (`socket`, `pipe`, a path), and whether it can be written to.
pub(super) fn descriptor(words: &[&str]) -> Result<u8> {
    let (number, _) = one(words)?;
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"))?.display().to_string();
    print!("{} ", link.split(":[").next().unwrap_or_default());
    // SAFETY: it is open, as was just seen, and nobody closes it while it is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number.parse()?) };
    Ok(say(nix::unistd::write(descriptor, b"x").map(drop)))
}

/// `take NAME ADDRESS PORT`: takes a UDP socket that somebody passes, and sends with it; `none` where nothing came.
pub(super) fn take(words: &[&str]) -> Result<u8> {
    let (name, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let stream = UnixStream::connect_addr(&unix_address(name)?)?;
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    // a descriptor that was refused leaves a message that says it was cut, which is an error here
    let passed = message.cmsgs().ok().and_then(|mut parts| {
        parts.find_map(|part| match part {
            ControlMessageOwned::ScmRights(files) => files.first().copied(),
            _ => None,
        })
    });
    let Some(passed) = passed else {
        println!("none");
        return Ok(0);
    };
    // SAFETY: the kernel just installed it here, and nobody else has it.
    let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(passed) });
    Ok(say_io(socket.send_to(b"x", to)))
}

/// `early FILE FIFO ADDRESS PORT`: makes a UDP socket, then writes its number to FILE, and sends with the socket when the
/// FIFO can be read.
pub(super) fn early(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (fifo, rest) = one(rest)?;
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    inform::write_pid(file)?;
    File::open(fifo)?.read_exact(&mut [0])?;
    Ok(say_io(socket.send_to(b"x", to)))
}

/// `source-route HOP ADDRESS PORT`: sends a datagram by way of another IPv4 address (`IP_OPTIONS`, loose source route).
pub(super) fn source_route(words: &[&str]) -> Result<u8> {
    let (hop, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let hop: std::net::Ipv4Addr = hop.parse().context("the hop is no IPv4 address")?;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    let [a, b, c, d] = hop.octets();
    // no operation; loose source route of one address
    let option = [1, 131, 7, 4, a, b, c, d];
    let length = libc::socklen_t::try_from(option.len())?;
    // SAFETY: the option outlives the call; the descriptor is open.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, option.as_ptr().cast(), length)
    };
    if let Err(errno) = Errno::result(set) {
        return Ok(say(Err(errno)));
    }
    Ok(say_io(socket.send_to(b"x", to)))
}

/// `raw-unspec ADDRESS`: sends to an IPv6 address whose family is not said, which raw sockets of IPv6 take.
pub(super) fn raw_unspec(words: &[&str]) -> Result<u8> {
    let (ip, _) = one(words)?;
    let ip: std::net::Ipv6Addr = ip.parse().context("no IPv6 address")?;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 253) };
    // SAFETY: the kernel just made it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(socket)?) };
    // SAFETY: all zeros are an address of family `AF_UNSPEC`.
    let mut to: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    to.sin6_addr.s6_addr = ip.octets();
    let length = libc::socklen_t::try_from(size_of_val(&to))?;
    // SAFETY: message and address outlive the call; the descriptor is open.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, (&raw const to).cast(), length) };
    Ok(say(Errno::result(sent).map(drop)))
}

/// `hear FILE ADDRESS PORT`: sends a datagram there from a port that the kernel picks, writes that port to FILE, and says
/// how long the first datagram is that comes back, from whoever.
pub(super) fn hear(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((to.ip(), 0))?;
    socket.send_to(b"x", to)?;
    std::fs::write(file, socket.local_addr()?.port().to_string())?;
    println!("received {}", socket.recv_from(&mut [0; 64])?.0);
    Ok(0)
}

/// `connect-many COUNT ADDRESS PORT`: as many UDP sockets connect; how many could, and what the others were told.
pub(super) fn connect_many(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let (mut done, mut refused) = (0, 0);
    for _ in 0..count.parse::<u32>()? {
        match super::network::connect_to(&open(SockType::Datagram, &to)?, &to) {
            Ok(()) => done += 1,
            Err(Errno::EPERM) => refused += 1,
            Err(other) => bail!("connect: {other}"),
        }
    }
    println!("{done} done {refused} refused");
    Ok(0)
}

/// `send-many COUNT SIZE ADDRESS PORT`: so many datagrams of so many bytes on a connected socket; as `connect-many`.
pub(super) fn send_many(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (size, rest) = one(rest)?;
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(to)?;
    let bytes = vec![b'x'; size.parse()?];
    let (mut done, mut refused) = (0, 0);
    for _ in 0..count.parse::<u32>()? {
        match socket.send(&bytes) {
            Ok(_) => done += 1,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    println!("{done} done {refused} refused");
    Ok(0)
}

fn say_io<T>(result: std::io::Result<T>) -> u8 {
    say(result.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}
