//! Every way to send: `by WAY MARK ADDRESS PORT`. Each sends MARK, so that a capture can tell whether it left.

use std::{
    fs,
    io::{IoSlice, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            Backlog, MsgFlags, SockType, SockaddrLike as _, SockaddrStorage, bind, listen, recv, send, sendmsg,
            setsockopt, sockopt,
        },
        time::TimeVal,
    },
};

use super::{
    ancillary,
    flows::talk,
    network::{address, connect_to, disconnect, open, send_bytes},
    one,
    process::idle,
    raw,
    ring::{self, Doer, Request, Ring},
    say,
};

/// What a datagram to an address in scope carries that goes before, or after, one that may not be.
pub(crate) const BEFORE: &str = "went-before";
pub(crate) const AFTER: &str = "came-after";

pub(super) fn by(words: &[&str]) -> Result<u8> {
    let (way, rest) = one(words)?;
    let (mark, rest) = one(rest)?;
    let (to, rest) = address(rest)?;
    let mark = mark.as_bytes();
    let sent = match way {
        "tcp" => stream(&open(SockType::Stream, &to)?, &to, mark),
        "udp" => stream(&open(SockType::Datagram, &to)?, &to, mark),
        "udp-again" => again(&to, mark),
        "udp-aside" => open(SockType::Datagram, &to).map(|socket| {
            connect_to(&socket, &friend(&to))?;
            send_bytes(&socket, &to, mark, MsgFlags::empty())
        })?,
        "tcp-again" => open(SockType::Stream, &to).map(|socket| {
            connect_to(&socket, &friend(&to))?;
            disconnect(&socket)?;
            stream(&socket, &to, mark)
        })?,
        "udp-to" => send_bytes(&open(SockType::Datagram, &to)?, &to, mark, MsgFlags::empty()),
        "udp-message" => message(&open(SockType::Datagram, &to)?, &to, mark, MsgFlags::empty()),
        "udp-many" => many(&to, mark),
        "query" => send_bytes(&open(SockType::Datagram, &to)?, &to, &query(mark)?, MsgFlags::empty()),
        "open-to" => send_bytes(&open(SockType::Stream, &to)?, &to, mark, fast_open()),
        "open-message" => message(&open(SockType::Stream, &to)?, &to, mark, fast_open()),
        "open-connect" => open_connect(&to, mark),
        "mptcp" => made(&to, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).and_then(|socket| stream(&socket, &to, mark)),
        "sctp" => made(&to, libc::SOCK_STREAM, libc::IPPROTO_SCTP).and_then(|socket| answered(&socket, &to, mark)),
        "sctp-to" => made(&to, libc::SOCK_STREAM, libc::IPPROTO_SCTP).and_then(|socket| {
            send_bytes(&socket, &to, mark, MsgFlags::empty())?;
            answer(&socket)
        }),
        "sctp-several" => made(&to, libc::SOCK_STREAM, libc::IPPROTO_SCTP).and_then(|socket| {
            connect_several(&socket, &to)?;
            send(socket.as_raw_fd(), mark, MsgFlags::MSG_NOSIGNAL)?;
            answer(&socket)
        }),
        "dccp" => made(&to, libc::SOCK_DCCP, libc::IPPROTO_DCCP).and_then(|socket| answered(&socket, &to, mark)),
        "lite" => made(&to, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE).and_then(|socket| stream(&socket, &to, mark)),
        "lite-to" => made(&to, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)
            .and_then(|socket| send_bytes(&socket, &to, mark, MsgFlags::empty())),
        "ping-to" => ping(&to).and_then(|socket| send_bytes(&socket, &to, &echo(&to, mark), MsgFlags::empty())),
        "ping" => ping(&to).and_then(|socket| stream(&socket, &to, &echo(&to, mark))),
        "raw-reset" => raw::reset(&to),
        "raw-whole-tcp" => raw::whole(&to),
        "raw-begin" => raw::begin(&to),
        "raw-begin-elsewhere" => raw::begin_elsewhere(&to),
        "raw-cut" => raw::cut(&to),
        "raw-other-version" => raw::other_version(&to, mark),
        "raw-some-headers" => raw::headers(&to, 6, mark),
        "raw-many-headers" => raw::headers(&to, 7, mark),
        "hop" => ancillary::by_way_of(one(rest)?.0.parse().context("the hop is no address")?, &to, mark),
        "udp-marked" => ancillary::marked(&to, mark),
        "udp-by-interface" => ancillary::by_interface(one(rest)?.0.parse().context("no number")?, &to, mark),
        "udp-on-interface" => {
            ancillary::on_interface(one(rest)?.0.parse().context("no number")?, SockType::Datagram, &to)
                .and_then(|socket| stream(&socket, &to, mark))
        }
        "open-on-interface" => {
            ancillary::on_interface(one(rest)?.0.parse().context("no number")?, SockType::Stream, &to)
                .and_then(|socket| send_bytes(&socket, &to, mark, fast_open()))
        }
        _ => match way.split_once('-') {
            Some((doer, what)) if doer.starts_with("ring") => in_ring(doer, what, &to, mark)?,
            _ => bail!("there is no way {way:?}"),
        },
    };
    Ok(say(sent))
}

fn fast_open() -> MsgFlags {
    MsgFlags::from_bits_retain(libc::MSG_FASTOPEN)
}

/// Connects and sends.
fn stream(socket: &OwnedFd, to: &SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
    connect_to(socket, to)?;
    send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).map(drop)
}

/// Connects, sends, and waits for the answer.
fn answered(socket: &OwnedFd, to: &SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
    stream(socket, to, bytes)?;
    answer(socket)
}

/// An association that does not come about takes a message all the same, and tells nobody for minutes.
fn answer(socket: &OwnedFd) -> Result<(), Errno> {
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::new(8, 0))?;
    recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).map(drop)
}

/// `SCTP_SOCKOPT_CONNECTX` (`include/uapi/linux/sctp.h`): as connect(2), with a list of the peer's addresses, here of one.
const CONNECT_SEVERAL: i32 = 110;

fn connect_several(socket: &OwnedFd, to: &SocketAddr) -> Result<(), Errno> {
    let address = SockaddrStorage::from(*to);
    // what follows an address is taken for another
    let length = if to.is_ipv4() { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() };
    // SAFETY: the pointer and the length are those of one address, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_SCTP,
            CONNECT_SEVERAL,
            address.as_ptr().cast(),
            u32::try_from(length).unwrap_or(0),
        )
    };
    Errno::result(done).map(drop)
}

fn message(socket: &OwnedFd, to: &SocketAddr, mark: &[u8], flags: MsgFlags) -> Result<(), Errno> {
    let (parts, to) = ([IoSlice::new(mark)], SockaddrStorage::from(*to));
    sendmsg(socket.as_raw_fd(), &parts, &[], flags | MsgFlags::MSG_NOSIGNAL, Some(&to)).map(drop)
}

/// An address that these tests let everybody reach, of the same family.
pub(super) fn friend(to: &SocketAddr) -> SocketAddr {
    let ip = if to.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
    SocketAddr::new(ip, to.port())
}

/// A socket that is connected to a friend, then to nobody, then to the address.
fn again(to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let socket = open(SockType::Datagram, to).map_err(|_error| Errno::EMFILE)?;
    stream(&socket, &friend(to), BEFORE.as_bytes())?;
    disconnect(&socket)?;
    stream(&socket, to, mark)
}

/// Three datagrams in one call, the second to the address and the others to a friend. What the kernel said of the second,
/// which it says only where it is asked for that one first.
fn many(to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let socket = open(SockType::Datagram, to).map_err(|_error| Errno::EMFILE)?;
    let mut addresses = [friend(to), *to, friend(to)].map(SockaddrStorage::from);
    let mut parts = [BEFORE.as_bytes(), mark, AFTER.as_bytes()]
        .map(|bytes| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    let mut messages = Vec::new();
    for (address, part) in addresses.iter_mut().zip(&mut parts) {
        // SAFETY: an all-zero mmsghdr is a value of it: integers and null pointers.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = address.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        messages.push(message);
    }
    let mut sent = 0;
    while sent < messages.len() {
        let rest = &mut messages[sent..];
        let count = u32::try_from(rest.len()).unwrap_or(0);
        // SAFETY: messages, their addresses and their bytes outlive the call; the descriptor is open.
        let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
        sent += usize::try_from(Errno::result(done)?).unwrap_or(0);
    }
    Ok(())
}

/// A socket that connects when it first sends (`TCP_FASTOPEN_CONNECT`).
fn open_connect(to: &SocketAddr, mark: &[u8]) -> Result<(), Errno> {
    let socket = open(SockType::Stream, to).map_err(|_error| Errno::EMFILE)?;
    setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
    stream(&socket, to, mark)
}

/// A socket of such a type and protocol. Where nothing answers it gives up after four seconds.
pub(super) fn made(to: &SocketAddr, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    let socket = Errno::result(socket)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(4, 0))?;
    Ok(socket)
}

pub(super) fn ping(to: &SocketAddr) -> Result<OwnedFd, Errno> {
    made(to, libc::SOCK_DGRAM, if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 })
}

/// An echo request with these bytes.
pub(super) fn echo(to: &SocketAddr, mark: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 1], mark].concat()
}

/// A query for the addresses of a name.
fn query(name: &[u8]) -> Result<Vec<u8>> {
    let header = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    Ok([&header[..], &[u8::try_from(name.len())?], name, &[0, 0, 1, 0, 1]].concat())
}

/// `ring`: in the caller; `ringworker`: by a worker of the kernel; `ringpoller`: by its polling thread. `tcp` and `udp` make
/// their socket there too, connect and send; `message` sends without a connect, `pages` the same without a copy (Linux 6.1), and
/// `to` gives the address with the bytes (6.0).
pub(super) fn in_ring(doer: &str, what: &str, to: &SocketAddr, mark: &[u8]) -> Result<Result<(), Errno>> {
    let ring = Ring::new(match doer {
        "ring" => Doer::Caller,
        "ringworker" => Doer::Worker,
        "ringpoller" => Doer::Poller,
        _ => bail!("there is no {doer:?}"),
    })?;
    let address = SockaddrStorage::from(*to);
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = if what == "tcp" { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
    let make = Request { what: ring::SOCKET, fd: family, offset: u64::try_from(kind)?, ..Request::default() };
    let socket = match ring.ask(make)? {
        // SAFETY: the kernel just made it, and nobody else has it.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(errno) => return Ok(Err(errno)),
    };
    let fd = socket.as_raw_fd();
    let options = u32::try_from(libc::MSG_NOSIGNAL)?;
    if matches!(what, "message" | "pages") {
        let mut part = libc::iovec { iov_base: mark.as_ptr().cast_mut().cast(), iov_len: mark.len() };
        // SAFETY: an all-zero msghdr is a value of it: integers and null pointers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let place = (&raw const message) as u64;
        let how = if what == "pages" { ring::SENDMSG_ZC } else { ring::SENDMSG };
        let send = Request { what: how, fd, address: place, length: 1, options, ..Request::default() };
        return Ok(ring.ask(send)?.map(drop));
    }
    let place = address.as_ptr() as u64;
    let (bytes, length) = (mark.as_ptr() as u64, u32::try_from(mark.len())?);
    if what == "to" {
        // `addr2` lies where others have the offset, `addr_len` in the upper half of the word after `user_data`
        let rest = [u64::from(address.len()) << 32, 0, 0];
        let send = Request {
            what: ring::SEND_ZC,
            fd,
            offset: place,
            address: bytes,
            length,
            options,
            rest,
            ..Request::default()
        };
        return Ok(ring.ask(send)?.map(drop));
    }
    let connect =
        Request { what: ring::CONNECT, fd, offset: address.len().into(), address: place, ..Request::default() };
    if let Err(errno) = ring.ask(connect)? {
        return Ok(Err(errno));
    }
    let send = Request { what: ring::SEND, fd, address: bytes, length, options, ..Request::default() };
    Ok(ring.ask(send)?.map(drop))
}

/// `bind-in-ring ADDRESS PORT`: by io_uring a socket of TCP is bound and listens (Linux 6.11).
pub(super) fn bind_in_ring(words: &[&str]) -> Result<u8> {
    let (to, _) = address(words)?;
    let ring = Ring::new(Doer::Caller)?;
    let socket = open(SockType::Stream, &to)?;
    let (place, fd) = (SockaddrStorage::from(to), socket.as_raw_fd());
    let length = place.len().into();
    let bind = Request { what: ring::BIND, fd, offset: length, address: place.as_ptr() as u64, ..Request::default() };
    say(ring.ask(bind)?.map(drop));
    let listen = Request { what: ring::LISTEN, fd, length: 4, ..Request::default() };
    Ok(say(ring.ask(listen)?.map(drop)))
}

/// `stuff FILE MARK ADDRESS PORT`: connects by TCP and sends MARK until the kernel takes no more, because nobody reads it;
/// writes to FILE how many bytes it took.
pub(super) fn stuff(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (mark, rest) = one(rest)?;
    let (to, _) = address(rest)?;
    let socket = open(SockType::Stream, &to)?;
    connect_to(&socket, &to)?;
    let (mut taken, mut refused) = (0, 0);
    // what is acknowledged meanwhile makes room for more
    while refused < 20 {
        match send(socket.as_raw_fd(), mark.as_bytes(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                taken += length;
                refused = 0;
            }
            Err(Errno::EAGAIN) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    publish(file, &taken.to_string())?;
    idle()
}

/// `multipath-serve ADDRESS FILE COUNT`: listens by MPTCP on a port that the kernel picks, without a bind where the address
/// is that of nobody; writes the port to FILE, accepts as many connections, sends three bytes on each, and waits until the
/// other ends have closed them: with its own end a session's flows are cut.
pub(super) fn multipath_serve(words: &[&str]) -> Result<u8> {
    let (ip, rest) = one(words)?;
    let (file, rest) = one(rest)?;
    let (count, _) = one(rest)?;
    let own = SocketAddr::new(ip.parse()?, 0);
    let socket = made(&own, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    if !own.ip().is_unspecified() {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
    }
    listen(&socket, Backlog::new(8)?)?;
    let listener = TcpListener::from(socket);
    publish(file, &listener.local_addr()?.port().to_string())?;
    let mut served = Vec::new();
    for _ in 0..count.parse::<usize>()? {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"yes")?;
        served.push(stream);
    }
    for mut stream in served {
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(say(Ok(())))
}

/// `multipath-hold ADDRESS PORT`: connects by MPTCP, sends a byte, and keeps the connection.
pub(super) fn multipath_hold(words: &[&str]) -> Result<u8> {
    let (to, _) = address(words)?;
    let socket = made(&to, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    say(stream(&socket, &to, b"x"));
    idle()
}

/// `multipath-chat ADDRESS PORT`: as `chat`, by MPTCP.
pub(super) fn multipath_chat(words: &[&str]) -> Result<u8> {
    let (to, _) = address(words)?;
    talk(&made(&to, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?, &to)
}

/// A connected socket of MPTCP, for tests.
pub(crate) fn multipath(to: &SocketAddr, wait: Duration) -> Result<OwnedFd, Errno> {
    let socket = made(to, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    let (seconds, rest) = (i64::try_from(wait.as_secs()).unwrap_or(1), i64::from(wait.subsec_micros()));
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(seconds, rest))?;
    connect_to(&socket, to)?;
    Ok(socket)
}

/// Writes a file that is whole as soon as it is there.
pub(super) fn publish(file: &str, text: &str) -> Result<()> {
    let part = format!("{file}.part");
    fs::write(&part, text)?;
    Ok(fs::rename(part, file)?)
}
