//! Sockets of every kind, and sockets that others made.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener, UnixStream},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        sendfile::sendfile,
        socket::{
            Backlog, MsgFlags, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, recv, send, setsockopt,
            sockopt,
        },
        time::TimeVal,
    },
};

use super::{
    inform,
    network::{address, open},
    one, run, say,
    ways::publish,
};
use crate::harness::descriptors;

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

/// `unix-to stream|datagram|connected NAME`: connects, sends one datagram, or connects and sends one.
pub(super) fn unix(words: &[&str]) -> Result<u8> {
    let (kind, rest) = one(words)?;
    let (name, _) = one(rest)?;
    let to = unix_address(name)?;
    let done = match kind {
        "stream" => UnixStream::connect_addr(&to).map(drop),
        "datagram" => UnixDatagram::unbound()?.send_to_addr(b"x", &to).map(drop),
        "connected" => {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&to).and_then(|()| socket.send(b"x")).map(drop)
        }
        _ => bail!("there is no kind {kind:?} of unix sockets"),
    };
    Ok(say(done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))))
}

/// `descriptor NUMBER [sendfile]`: what it is (`socket`, `pipe`, a path), and whether it can be written to, by write(2) or
/// from a file.
pub(super) fn descriptor(words: &[&str]) -> Result<u8> {
    let (number, way) = one(words)?;
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"))?.display().to_string();
    print!("{} ", link.split(":[").next().unwrap_or_default());
    // SAFETY: it is open, as was just seen, and nobody closes it while it is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number.parse()?) };
    if way == ["sendfile"] {
        let mut file = File::from(memfd_create("bytes", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(b"x")?;
        return Ok(say(sendfile(descriptor, file.as_fd(), Some(&mut 0), 1).map(drop)));
    }
    Ok(say(nix::unistd::write(descriptor, b"x").map(drop)))
}

/// `take NAME ADDRESS PORT`: takes a UDP socket that somebody passes, and sends with it; `none` where nothing came.
pub(super) fn take(words: &[&str]) -> Result<u8> {
    let (name, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let mut passed = descriptors::receive(&UnixStream::connect_addr(&unix_address(name)?)?)?;
    match passed.files.pop() {
        Some(socket) => Ok(say_io(UdpSocket::from(socket).send_to(b"x", to))),
        None => {
            println!("none");
            Ok(0)
        }
    }
}

/// `receive NAME COUNT`: takes so many messages from who listens there; of each, its bytes, how many descriptors came, and
/// whether that was not all.
pub(super) fn receive(words: &[&str]) -> Result<u8> {
    let (name, rest) = one(words)?;
    let (count, _) = one(rest)?;
    let stream = UnixStream::connect_addr(&unix_address(name)?)?;
    for _ in 0..count.parse::<u32>()? {
        let passed = descriptors::receive(&stream)?;
        let cut = if passed.cut { ", cut" } else { "" };
        println!("{}: {}{cut}", String::from_utf8_lossy(&passed.bytes), passed.files.len());
        // the next message is sent once this one was taken
        (&stream).write_all(b"!")?;
    }
    Ok(0)
}

/// `inherit NUMBER REST`: the descriptor of that number is a TCP socket, which what is started during the rest has too.
pub(super) fn inherit(words: &[&str]) -> Result<u8> {
    let (number, rest) = one(words)?;
    let socket = open(SockType::Stream, &std::net::SocketAddr::from(([127, 0, 0, 1], 0)))?;
    // SAFETY: both are descriptors of this process, which uses the second for nothing else.
    Errno::result(unsafe { libc::dup2(socket.as_raw_fd(), number.parse()?) })?;
    Ok(run(rest))
}

/// `connect-by NUMBER ADDRESS PORT`: connects a socket that was inherited.
pub(super) fn connect_by(words: &[&str]) -> Result<u8> {
    let (number, rest) = one(words)?;
    let (to, _) = address(rest)?;
    // SAFETY: the descriptor is a socket that this process was started with, and belongs to nobody else in it.
    let socket = unsafe { OwnedFd::from_raw_fd(number.parse()?) };
    Ok(say(super::network::connect_to(&socket, &to)))
}

/// `give NAME ADDRESS PORT REST`: a UDP socket and a connection there are passed to who listens at NAME, with their numbers
/// here, and stay open during the rest.
pub(super) fn give(words: &[&str]) -> Result<u8> {
    let (name, rest) = one(words)?;
    let (to, rest) = address(rest)?;
    let stream = UnixStream::connect_addr(&unix_address(name)?)?;
    let (datagrams, connection) = (UdpSocket::bind(("127.0.0.1", 0))?, TcpStream::connect(to)?);
    let files = [datagrams.as_raw_fd(), connection.as_raw_fd()];
    descriptors::pass(&stream, format!("{} {}", files[0], files[1]).as_bytes(), &files)?;
    Ok(run(rest))
}

/// `hand-out NAME ADDRESS PORT`: sends a datagram, and passes the socket to who connects to the unix socket NAME.
pub(super) fn hand_out(words: &[&str]) -> Result<u8> {
    let (name, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    say_io(socket.send_to(b"x", to));
    let (stream, _) = UnixListener::bind(name)?.accept()?;
    descriptors::pass(&stream, b"x", &[socket.as_raw_fd()])?;
    Ok(0)
}

/// `take-flow NAME`: as `take` with a connection, on which it sends a byte every 10 ms until it is told that this failed.
pub(super) fn take_flow(words: &[&str]) -> Result<u8> {
    let (name, _) = one(words)?;
    let Some(passed) = descriptors::receive(&UnixStream::connect_addr(&unix_address(name)?)?)?.files.pop() else {
        println!("none");
        return Ok(0);
    };
    loop {
        if let Err(errno) = send(passed.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL) {
            return Ok(say(Err(errno)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
    let said = say_io(socket.send_to(b"x", to));
    // held as long as the process lives
    std::mem::forget(socket);
    Ok(said)
}

/// `beforehand FILE FIFO ADDRESS PORT`: makes sockets, writes its number to FILE, and uses each in its own way when the
/// FIFO can be read: connects one of UDP and one of TCP, binds one, listens on one, receives on one, which finds nothing, accepts on
/// the one that listens, where nobody waits, and shuts down the one of TCP.
/// Then the same with new ones.
pub(super) fn beforehand(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (fifo, rest) = one(rest)?;
    let (to, _) = address(rest)?;
    let here = std::net::SocketAddr::new(to.ip(), 0);
    let bind_to = |socket: OwnedFd| -> Result<OwnedFd> {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(here))?;
        Ok(socket)
    };
    let make = || -> Result<[OwnedFd; 5]> {
        let (stream, datagram) = (|| open(SockType::Stream, &to), || open(SockType::Datagram, &to));
        Ok([datagram()?, stream()?, stream()?, bind_to(stream()?)?, bind_to(datagram()?)?])
    };
    let before = make()?;
    inform::write_pid(file)?;
    File::open(fifo)?.read_exact(&mut [0])?;
    for [datagram, stream, bound, listener, receiver] in [before, make()?] {
        say(super::network::connect_to(&datagram, &to));
        say(super::network::connect_to(&stream, &to));
        say(bind(bound.as_raw_fd(), &SockaddrStorage::from(here)));
        say(nix::sys::socket::listen(&listener, Backlog::new(1)?));
        say(recv(receiver.as_raw_fd(), &mut [0; 8], MsgFlags::MSG_DONTWAIT).map(drop));
        fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        say(nix::sys::socket::accept(listener.as_raw_fd()).map(drop));
        say(nix::sys::socket::shutdown(stream.as_raw_fd(), nix::sys::socket::Shutdown::Write));
    }
    Ok(0)
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

/// `hear-serving FILE FIFO ADDRESS PORT`: binds a port of its own choice, which it writes to FILE, and when the FIFO can be read sends a
/// datagram to the address; says how long the first datagram is that came, from whoever.
pub(super) fn hear_serving(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (fifo, rest) = one(rest)?;
    let (to, _) = address(rest)?;
    // one that was free a moment ago
    let port = UdpSocket::bind((to.ip(), 0))?.local_addr()?.port();
    let socket = UdpSocket::bind((to.ip(), port))?;
    publish(file, &port.to_string())?;
    File::open(fifo)?.read_exact(&mut [0])?;
    socket.send_to(b"x", to)?;
    println!("received {}", socket.recv_from(&mut [0; 64])?.0);
    Ok(0)
}

/// `echo FILE ADDRESS sendto|connect`: by UDP on a port that the kernel picks, which it writes to FILE, sends back the first
/// datagram that comes, without a connect or with one.
pub(super) fn echo(words: &[&str]) -> Result<u8> {
    let [file, ip, way] = words else { bail!("echo takes a file, an address and a way") };
    let socket = UdpSocket::bind((ip.parse::<IpAddr>()?, 0))?;
    publish(file, &socket.local_addr()?.port().to_string())?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok(say_io(match *way {
        "sendto" => socket.send_to(&buffer[..length], from),
        _ => socket.connect(from).and_then(|()| socket.send(&buffer[..length])),
    }))
}

/// `connect-many COUNT [tcp] ADDRESS PORT`: as many sockets connect, by UDP if nothing is said; how many could, and what the
/// others were told.
pub(super) fn connect_many(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (kind, rest) = match rest {
        ["tcp", rest @ ..] => (SockType::Stream, rest),
        rest => (SockType::Datagram, rest),
    };
    let (to, _) = address(rest)?;
    let (mut done, mut refused) = (0, 0);
    for _ in 0..count.parse::<u32>()? {
        match super::network::connect_to(&open(kind, &to)?, &to) {
            Ok(()) => done += 1,
            Err(Errno::EPERM) => refused += 1,
            Err(other) => bail!("connect: {other}"),
        }
    }
    println!("{done} done {refused} refused");
    Ok(0)
}

/// `visit COUNT PORT`: one UDP socket connects to so many addresses of 127.0.0.0/8, one after the other; as `connect-many`.
pub(super) fn visit(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (port, _) = one(rest)?;
    let port = port.parse()?;
    let to = |number: u32| std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x7f01_0000 + number), port));
    let socket = open(SockType::Datagram, &to(0))?;
    let (mut done, mut refused) = (0, 0);
    for number in 0..count.parse()? {
        match super::network::connect_to(&socket, &to(number)) {
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

/// `send-through SECONDS SIZE ADDRESS PORT`: as `send-many`, until it was refused and let go on again so many times.
pub(super) fn send_through(words: &[&str]) -> Result<u8> {
    let [seconds, size, rest @ ..] = words else { bail!("send-through needs a number and a size") };
    let (to, _) = address(rest)?;
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(to)?;
    let (bytes, seconds) = (vec![b'x'; size.parse()?], seconds.parse::<u32>()?);
    let (mut done, mut refused, mut again, mut over) = (0, 0, 0, false);
    while again < seconds {
        match socket.send(&bytes) {
            Ok(_) => {
                done += 1;
                again += u32::from(over);
                over = false;
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                refused += 1;
                over = true;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    println!("{done} done {refused} refused");
    Ok(0)
}

/// So many calls of one second each are let wait.
const STALLS: u32 = 60;

/// `stream BYTES [joined|whole] ADDRESS PORT`: connects by TCP and sends so many bytes, as far as it is let; a send waits for a
/// second, and is tried again. `joined`: says each time that more will come, so that the kernel makes fewer packets of it.
/// `whole`: all in one call, which waits.
pub(super) fn stream(words: &[&str]) -> Result<u8> {
    let (bytes, rest) = one(words)?;
    let bytes = bytes.parse::<usize>()?;
    let (more, part, rest) = match rest {
        ["joined", rest @ ..] => (MsgFlags::from_bits_retain(libc::MSG_MORE), 1000, rest),
        ["whole", rest @ ..] => (MsgFlags::empty(), bytes, rest),
        rest => (MsgFlags::empty(), 1000, rest),
    };
    let (to, _) = address(rest)?;
    let socket = open(SockType::Stream, &to)?;
    // little is kept of what does not leave
    setsockopt(&socket, sockopt::SndBuf, &8192)?;
    if part < bytes {
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(1, 0))?;
    }
    super::network::connect_to(&socket, &to)?;
    let chunk = vec![b'x'; part];
    let (mut sent, mut stalls) = (0, 0);
    let told = loop {
        if sent >= bytes {
            break Ok(());
        }
        let last = sent + chunk.len() >= bytes;
        let flags = MsgFlags::MSG_NOSIGNAL | if last { MsgFlags::empty() } else { more };
        match send(socket.as_raw_fd(), &chunk[..chunk.len().min(bytes - sent)], flags) {
            Ok(length) => (sent, stalls) = (sent + length, 0),
            // who waited for room is told by the next one, or a little later
            Err(Errno::EAGAIN) if stalls < STALLS => stalls += 1,
            Err(errno) => break Err(errno),
        }
    };
    Ok(say(told))
}

/// `read-when-spent ADDRESS PORT ADDRESS PORT`: connects by TCP to the first, sends datagrams to the second until not even the
/// smallest may leave, and reads from the first for as long as it can.
pub(super) fn read_when_spent(words: &[&str]) -> Result<u8> {
    let (from, rest) = address(words)?;
    let (to, _) = address(rest)?;
    let source = open(SockType::Stream, &from)?;
    super::network::connect_to(&source, &from)?;
    let sink = open(SockType::Datagram, &to)?;
    super::network::connect_to(&sink, &to)?;
    for size in [1000, 100, 10, 1] {
        while send(sink.as_raw_fd(), &[b'x'; 1000][..size], MsgFlags::empty()).is_ok() {}
    }
    println!("spent");
    loop {
        match recv(source.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
            Ok(0) => bail!("it was closed"),
            Ok(_) => {}
            Err(errno) => return Ok(say(Err(errno))),
        }
    }
}

fn say_io<T>(result: std::io::Result<T>) -> u8 {
    say(result.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}
