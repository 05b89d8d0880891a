//! Sockets that stay open.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{Backlog, MsgFlags, SockType, listen as listen_on, recv, send},
};

use super::{
    network::{address, connect_to, disconnect, open as socket},
    one,
    process::idle,
    run, say,
    ways::publish,
};
use crate::harness::guest::raise_loopback;

/// `open COUNT tcp|udp|sctp ADDRESS PORT REST`: opens so many connections, sends one byte on each, and does the rest with them
/// open.
pub(super) fn open(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (protocol, rest) = one(rest)?;
    let (address, rest) = address(rest)?;
    let mut sockets = Vec::new();
    for _ in 0..count.parse::<usize>()? {
        let socket = match protocol {
            "tcp" => socket(SockType::Stream, &address)?,
            "udp" => socket(SockType::Datagram, &address)?,
            "sctp" => match sctp(&address) {
                Ok(socket) => socket,
                Err(errno) => return Ok(say(Err(errno))),
            },
            _ => bail!("there is no protocol {protocol:?}"),
        };
        connect_to(&socket, &address).with_context(|| format!("{protocol} to {address}"))?;
        send(socket.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL)?;
        sockets.push(socket);
    }
    say(Ok(()));
    Ok(run(rest))
}

/// A stream socket of SCTP, where the kernel has it.
pub(crate) fn sctp(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    let socket = Errno::result(socket)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Listens on a port that the kernel picks, and writes it to `file`.
fn listener(ip: &str, file: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::new(ip.parse()?, 0))?;
    publish(file, &listener.local_addr()?.port().to_string())?;
    Ok(listener)
}

/// `serve ADDRESS FILE REST`: listens, writes the port to FILE, accepts one connection, sends three bytes on it, and does the
/// rest with both open.
pub(super) fn serve(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let listener = listener(ip, file)?;
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"yes")?;
    say(Ok(()));
    Ok(run(rest))
}

/// `serve-sctp ADDRESS FILE REST`: listens by SCTP, writes the port to FILE, and does the rest.
pub(super) fn serve_sctp(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let here = SocketAddr::new(ip.parse()?, 0);
    let socket = match super::ways::made(&here, libc::SOCK_STREAM, libc::IPPROTO_SCTP) {
        Ok(socket) => socket,
        Err(errno) => return Ok(say(Err(errno))),
    };
    nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(here))?;
    nix::sys::socket::listen(&socket, Backlog::new(4)?)?;
    let listener = TcpListener::from(socket);
    publish(file, &listener.local_addr()?.port().to_string())?;
    Ok(run(rest))
}

/// `host ADDRESS FILE`: listens, writes the port to FILE, and answers every byte of whoever connects with that byte.
pub(super) fn host(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, _) = one(rest)?;
    let listener = listener(ip, file)?;
    while let Ok((mut stream, _)) = listener.accept() {
        std::thread::spawn(move || {
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|length| length == 1) && stream.write_all(&byte).is_ok() {}
        });
    }
    idle()
}

/// `answer ADDRESS FILE FIFO`: listens, writes the port to FILE, accepts one connection, waits for the FIFO, sends three bytes
/// on that connection, accepts another, and sends three on it.
pub(super) fn answer(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let (fifo, _) = one(rest)?;
    let listener = listener(ip, file)?;
    let (first, _) = listener.accept()?;
    fs::File::open(fifo)?.read_exact(&mut [0])?;
    say(send(first.as_raw_fd(), b"yes", MsgFlags::MSG_NOSIGNAL).map(drop));
    let (second, _) = listener.accept()?;
    say(send(second.as_raw_fd(), b"yes", MsgFlags::MSG_NOSIGNAL).map(drop));
    idle()
}

/// `chat ADDRESS PORT` by TCP, `listen-to ADDRESS PORT` by UDP: connects, sends one byte, and waits for what comes back:
/// bytes, or an error.
pub(super) fn chat(words: &[&str], kind: SockType) -> Result<u8> {
    let (address, _) = address(words)?;
    talk(&socket(kind, &address)?, &address)
}

/// `listen-first FILE FIFO ADDRESS PORT`: a socket listens on a port that the kernel picks, and writes to FILE which one, or 0
/// where it may not; when the FIFO can be read it is taken back, and does as `chat`.
pub(super) fn listen_first(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (fifo, rest) = one(rest)?;
    let (address, _) = address(rest)?;
    let socket = socket(SockType::Stream, &address)?;
    let port = match listen_on(&socket, Backlog::new(1)?) {
        Ok(()) => TcpListener::from(socket.try_clone()?).local_addr()?.port(),
        Err(Errno::EPERM) => 0,
        Err(errno) => return Err(errno).context("listen"),
    };
    publish(file, &port.to_string())?;
    fs::File::open(fifo)?.read_exact(&mut [0])?;
    disconnect(&socket)?;
    match talk(&socket, &address) {
        // see `listener_connects`
        Err(error) if error.downcast_ref() == Some(&Errno::EINVAL) => {
            say(Err(Errno::EINVAL));
            idle()
        }
        done => done,
    }
}

/// Whether this kernel lets a socket that listened connect: one that is hardened (a 6.18) does not, whoever asks.
pub fn listener_connects(address: &SocketAddr) -> Result<bool> {
    let socket = socket(SockType::Stream, address)?;
    listen_on(&socket, Backlog::new(1)?)?;
    disconnect(&socket)?;
    match connect_to(&socket, address) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno).context("connecting a socket that listened"),
    }
}

/// Connects, sends one byte, and waits for what comes back.
pub(super) fn talk(socket: &OwnedFd, address: &SocketAddr) -> Result<u8> {
    connect_to(socket, address)?;
    say(send(socket.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL).map(drop));
    match recv(socket.as_raw_fd(), &mut [0; 8], MsgFlags::empty()) {
        Ok(length) => println!("received {length}"),
        Err(errno) => drop(say(Err(errno))),
    }
    idle()
}

/// `unix PATH REST`: listens on a unix socket, holds one end of a pair, and does the rest.
pub(super) fn unix(words: &[&str]) -> Result<u8> {
    let (path, rest) = one(words)?;
    let _listener = std::os::unix::net::UnixListener::bind(path)?;
    let _pair = std::os::unix::net::UnixDatagram::pair()?;
    Ok(run(rest))
}

/// `listen ADDRESS FILE REST`: listens, writes the port to FILE, and does the rest.
pub(super) fn listen(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let _listener = listener(ip, file)?;
    Ok(run(rest))
}

/// `loopback REST`: raises the loopback interface first.
pub(super) fn loopback(rest: &[&str]) -> Result<u8> {
    raise_loopback()?;
    Ok(run(rest))
}
