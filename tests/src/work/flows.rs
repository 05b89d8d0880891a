//! Sockets that stay open.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, SockType, send};

use super::{
    network::{address, connect_to, open as socket},
    one, run, say,
};
use crate::harness::guest::raise_loopback;

/// `open COUNT tcp|udp ADDRESS PORT REST`: opens so many connections, sends one byte on each, and does the rest with them
/// open.
pub(super) fn open(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (protocol, rest) = one(rest)?;
    let (address, rest) = address(rest)?;
    let kind = match protocol {
        "tcp" => SockType::Stream,
        "udp" => SockType::Datagram,
        _ => bail!("there is no protocol {protocol:?}"),
    };
    let mut sockets = Vec::new();
    for _ in 0..count.parse::<usize>()? {
        let socket = socket(kind, &address)?;
        connect_to(&socket, &address).with_context(|| format!("{protocol} to {address}"))?;
        send(socket.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL)?;
        sockets.push(socket);
    }
    say(Ok(()));
    Ok(run(rest))
}

/// `serve ADDRESS FILE REST`: listens, writes the port to FILE, accepts one connection, sends three bytes on it, and does the
/// rest with both open.
pub(super) fn serve(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let listener = TcpListener::bind(SocketAddr::new(ip.parse()?, 0))?;
    let part = format!("{file}.part");
    fs::write(&part, listener.local_addr()?.port().to_string())?;
    fs::rename(part, file)?;
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"yes")?;
    say(Ok(()));
    Ok(run(rest))
}

/// `loopback REST`: raises the loopback interface first.
pub(super) fn loopback(rest: &[&str]) -> Result<u8> {
    raise_loopback()?;
    Ok(run(rest))
}
