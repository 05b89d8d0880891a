//! Sockets.

use std::{
    fs::File,
    io::{Read, Write},
    net::SocketAddr,
    os::{
        fd::{AsFd as _, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, getsockopt, recv,
            send as send_on, sendto, setsockopt, socket, sockopt,
        },
        time::TimeVal,
        wait::{WaitStatus, waitpid},
    },
};

use super::{
    one,
    process::{self, idle},
    say,
};
use crate::harness::wait::boot_ns;

/// `connect tcp|udp ADDRESS PORT`
pub(super) fn connect(words: &[&str]) -> Result<u8> {
    let (protocol, rest) = one(words)?;
    let (address, _) = address(rest)?;
    let kind = match protocol {
        "tcp" => SockType::Stream,
        "udp" => SockType::Datagram,
        _ => bail!("there is no protocol {protocol:?}"),
    };
    let socket = open(kind, &address)?;
    Ok(say(connect_to(&socket, &address)))
}

/// `send ADDRESS PORT`: one datagram without a connect.
pub(super) fn send(words: &[&str]) -> Result<u8> {
    let (address, _) = address(words)?;
    let socket = open(SockType::Datagram, &address)?;
    Ok(say(send_to(&socket, &address, MsgFlags::empty())))
}

/// `send-each PORT ADDRESS…`: one socket sends a datagram to each of these addresses, one after the other.
pub(super) fn send_each(words: &[&str]) -> Result<u8> {
    let (port, rest) = one(words)?;
    let (first, _) = address(&[rest.first().context("no address")?, port])?;
    let socket = open(SockType::Datagram, &first)?;
    for ip in rest {
        let (to, _) = address(&[ip, port])?;
        say(send_to(&socket, &to, MsgFlags::empty()));
    }
    Ok(0)
}

/// `send-v4-on-v6 ADDRESS PORT`: one datagram to an IPv4 address from an IPv6 socket.
pub(super) fn send_v4_on_v6(words: &[&str]) -> Result<u8> {
    let (address, _) = address(words)?;
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(say(send_to(&socket, &address, MsgFlags::empty())))
}

/// `fast-open ADDRESS PORT`: connects by sending with `MSG_FASTOPEN`.
pub(super) fn fast_open(words: &[&str]) -> Result<u8> {
    let (address, _) = address(words)?;
    let socket = open(SockType::Stream, &address)?;
    Ok(say(send_to(&socket, &address, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))))
}

/// `fast-open-connect ADDRESS PORT`: connects when it first sends (`TCP_FASTOPEN_CONNECT`).
pub(super) fn fast_open_connect(words: &[&str]) -> Result<u8> {
    let (address, _) = address(words)?;
    let socket = open(SockType::Stream, &address)?;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the option takes an int, which outlives the call; the descriptor is open.
    let done = unsafe {
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, (&raw const on).cast(), length)
    };
    Errno::result(done)?;
    let sent = connect_to(&socket, &address).and_then(|()| send_on(socket.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL));
    Ok(say(sent.map(drop)))
}

/// `reconnect ADDRESS PORT ADDRESS PORT`: a UDP socket connects, disconnects, and connects to the second.
pub(super) fn reconnect(words: &[&str]) -> Result<u8> {
    let (first, rest) = address(words)?;
    let (second, _) = address(rest)?;
    let socket = open(SockType::Datagram, &first)?;
    say(connect_to(&socket, &first));
    say(disconnect(&socket));
    Ok(say(connect_to(&socket, &second)))
}

/// `connect-when-told FIFO ADDRESS PORT`: for each byte that the FIFO brings, a UDP socket connects.
pub(super) fn connect_when_told(words: &[&str]) -> Result<u8> {
    let (fifo, rest) = one(words)?;
    let (address, _) = address(rest)?;
    let mut fifo = File::open(fifo)?;
    while fifo.read_exact(&mut [0]).is_ok() {
        say(connect_to(&open(SockType::Datagram, &address)?, &address));
    }
    Ok(0)
}

/// `flood COUNT ADDRESS PORT`: connects a UDP socket so many times; prints how often it worked.
pub(super) fn flood(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (address, _) = address(rest)?;
    let socket = open(SockType::Datagram, &address)?;
    let count = count.parse::<u32>()?;
    let well = (0..count).filter(|_| connect_to(&socket, &address).is_ok()).count();
    println!("{well} of {count}");
    Ok(0)
}

/// An address and a port.
pub(super) fn place(ip: &str, port: &str) -> Result<SocketAddr> {
    Ok(address(&[ip, port])?.0)
}

/// Whether a TCP connection can be made; an answer other than a refusal by policy is an error.
pub(super) fn reaches(address: &SocketAddr) -> Result<bool> {
    match connect_to(&open(SockType::Stream, address)?, address) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => Ok(false),
        Err(errno) => bail!("{address}: {errno}"),
    }
}

/// `flow ADDRESS PORT`: connects and for ever sends the time, `CLOCK_BOOTTIME` in 8 bytes, every 10 ms.
pub(super) fn flow(words: &[&str]) -> Result<u8> {
    let (address, _) = address(words)?;
    let socket = open(SockType::Stream, &address)?;
    say(connect_to(&socket, &address));
    loop {
        // a flow that was cut may well fail to send: it goes on trying
        let _ = send_on(socket.as_raw_fd(), &boot_ns()?.to_be_bytes(), MsgFlags::MSG_NOSIGNAL);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `hold ADDRESS PORT FIFO`: connects, sends `a`; when the FIFO can be read sends `b` and receives what there is.
pub(super) fn hold(words: &[&str]) -> Result<u8> {
    let (address, rest) = address(words)?;
    hold_by(&open(SockType::Stream, &address)?, &address, rest, ["a", "b"])
}

/// `hold-lite ADDRESS PORT FIFO`: as `hold`, by UDP-Lite.
pub(super) fn hold_lite(words: &[&str]) -> Result<u8> {
    let (address, rest) = address(words)?;
    hold_by(&super::ways::made(&address, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?, &address, rest, ["a", "b"])
}

/// `hold-sctp ADDRESS PORT FIFO`: as `hold`, by SCTP, `first-message` and `second-message`.
pub(super) fn hold_sctp(words: &[&str]) -> Result<u8> {
    let (address, rest) = address(words)?;
    let socket = super::ways::made(&address, libc::SOCK_STREAM, libc::IPPROTO_SCTP)?;
    hold_by(&socket, &address, rest, ["first-message", "second-message"])
}

/// `hold-to ADDRESS PORT FIFO`: by one UDP socket, which is connected to nobody, sends `a`; when the FIFO can be read, `b`.
pub(super) fn hold_to(words: &[&str]) -> Result<u8> {
    let (address, rest) = address(words)?;
    let (fifo, _) = one(rest)?;
    let socket = open(SockType::Datagram, &address)?;
    say(send_bytes(&socket, &address, b"a", MsgFlags::empty()));
    File::open(fifo)?.read_exact(&mut [0])?;
    Ok(say(send_bytes(&socket, &address, b"b", MsgFlags::empty())))
}

fn hold_by(socket: &OwnedFd, address: &SocketAddr, rest: &[&str], messages: [&str; 2]) -> Result<u8> {
    let (fifo, _) = one(rest)?;
    say(connect_to(socket, address));
    say(send_on(socket.as_raw_fd(), messages[0].as_bytes(), MsgFlags::MSG_NOSIGNAL).map(drop));
    File::open(fifo)?.read_exact(&mut [0])?;
    say(send_on(socket.as_raw_fd(), messages[1].as_bytes(), MsgFlags::MSG_NOSIGNAL).map(drop));
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 500_000))?;
    let received = recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::empty());
    println!("received {}", received.unwrap_or(0));
    idle()
}

/// `call SOCKET METHOD`: asks the agent; prints its answer.
pub(super) fn call(words: &[&str]) -> Result<u8> {
    let (path, rest) = one(words)?;
    let (method, _) = one(rest)?;
    let answer = ask(path, method, "{}").unwrap_or_else(|error| format!("errno {}", error.raw_os_error().unwrap_or(0)));
    println!("{answer}");
    Ok(0)
}

/// `begin SOCKET POLICY PROGRAM ARGUMENT…`: a launcher of its own. Asks the agent for a session, lays nothing down of what it
/// is told to, and becomes the program.
pub(super) fn begin(words: &[&str]) -> Result<u8> {
    let [path, policy, program @ ..] = words else { bail!("begin needs a socket, a policy and a program") };
    let command = serde_json::json!({ "path": program.first(), "argv": program, "argv_cut": false });
    let text = std::fs::read_to_string(policy)?;
    let run = serde_json::json!({ "policy": text, "policy_source": policy, "command": command, "cwd": "/" });
    let answer = ask(path, "dev.tipstaff.Run", &run.to_string())?;
    if answer.contains("error") {
        println!("{answer}");
        return Ok(0);
    }
    process::exec(program)
}

/// `call-by-child SOCKET METHOD`: as `call`, over a connection that a child makes, which has ended by then.
pub(super) fn call_by_child(words: &[&str]) -> Result<u8> {
    let (path, rest) = one(words)?;
    let (method, _) = one(rest)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let place = UnixAddr::new(path)?;
    let child = process::in_child(|| u8::from(nix::sys::socket::connect(socket.as_raw_fd(), &place).is_err()))?;
    let ended = waitpid(child, None)?;
    if ended != WaitStatus::Exited(child, 0) {
        bail!("the child did not connect to {path}: {ended:?}");
    }
    let answer = ask_on(UnixStream::from(socket), method, "{}");
    println!("{}", answer.unwrap_or_else(|error| format!("errno {}", error.raw_os_error().unwrap_or(0))));
    Ok(0)
}

fn ask(path: &str, method: &str, parameters: &str) -> std::io::Result<String> {
    ask_on(UnixStream::connect(path)?, method, parameters)
}

fn ask_on(mut stream: UnixStream, method: &str, parameters: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{{\"method\":\"{method}\",\"parameters\":{parameters}}}\0").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != [0] {
        answer.extend(byte);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub(super) fn address<'a, 'b>(words: &'b [&'a str]) -> Result<(SocketAddr, &'b [&'a str])> {
    let (ip, rest) = one(words)?;
    let (port, rest) = one(rest)?;
    let ip = ip.parse().with_context(|| format!("{ip:?} is no address"))?;
    Ok((SocketAddr::new(ip, port.parse()?), rest))
}

pub(super) fn open(kind: SockType, address: &SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // a connect whose packets are dropped must not outlast the test
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(5, 0))?;
    Ok(socket)
}

pub(super) fn connect_to(socket: &OwnedFd, address: &SocketAddr) -> Result<(), Errno> {
    let fd = socket.as_raw_fd();
    // a ring of before that the kernel takes down signals the thread, and a connect with a time limit is not begun again for
    // that (io_uring/io_uring.c, Linux 6.1: io_ring_exit_work); a second one waits for what the first began
    loop {
        let done = match address {
            SocketAddr::V4(v4) => nix::sys::socket::connect(fd, &SockaddrIn::from(*v4)),
            SocketAddr::V6(v6) => nix::sys::socket::connect(fd, &SockaddrIn6::from(*v6)),
        };
        if done != Err(Errno::EINTR) {
            return done;
        }
    }
}

/// Takes a socket back: it is connected to nobody, and does not listen.
pub(super) fn disconnect(socket: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: an all-zero sockaddr is one of family AF_UNSPEC, which disconnects; it outlives the call, and is 16 bytes.
    let done = unsafe {
        let nowhere: libc::sockaddr = std::mem::zeroed();
        libc::connect(socket.as_raw_fd(), &raw const nowhere, 16)
    };
    Errno::result(done).map(drop)
}

pub(super) fn send_to(socket: &OwnedFd, address: &SocketAddr, flags: MsgFlags) -> Result<(), Errno> {
    send_bytes(socket, address, b"x", flags)
}

/// Sends without a connect.
pub(super) fn send_bytes(socket: &OwnedFd, address: &SocketAddr, bytes: &[u8], flags: MsgFlags) -> Result<(), Errno> {
    let (fd, flags) = (socket.as_raw_fd(), flags | MsgFlags::MSG_NOSIGNAL);
    let sent = match address {
        SocketAddr::V4(v4) => sendto(fd, bytes, &SockaddrIn::from(*v4), flags),
        SocketAddr::V6(v6) => sendto(fd, bytes, &SockaddrIn6::from(*v6), flags),
    };
    sent.map(drop)
}

/// `flips FILE tcp|udp|both ADDRESS PORT…`: until FILE is there, connects to one port after the other, where nobody listens: by UDP
/// nothing is sent. By both in two loops at a time. For each port: how often that was allowed, refused, begun and then cut, allowed
/// again after it was refused or cut, and anything else; of the latter also the last error.
pub(super) fn flips(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    let (protocol, rest) = one(rest)?;
    let (ip, ports) = one(rest)?;
    let addresses = ports.iter().map(|port| Ok(SocketAddr::new(ip.parse()?, port.parse()?)));
    let addresses = addresses.collect::<Result<Vec<_>>>()?;
    let kinds = match protocol {
        "tcp" => &[SockType::Stream][..],
        "udp" => &[SockType::Datagram],
        "both" => &[SockType::Stream, SockType::Datagram],
        _ => bail!("there is no protocol {protocol:?} to flip by"),
    };
    let all = std::thread::scope(|scope| {
        let loops = kinds.iter().map(|kind| scope.spawn(|| flip_by(*kind, &addresses, file))).collect::<Vec<_>>();
        let joined = loops.into_iter().map(|each| each.join().map_err(|_panic| anyhow::anyhow!("a loop died"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    for counts in all {
        for (port, Flips { allowed, refused, cut, back, other, error }) in ports.iter().zip(counts) {
            println!("{port} allowed {allowed} refused {refused} cut {cut} back {back} other {other} error {error}");
        }
    }
    Ok(0)
}

/// What came of the connects to one port.
#[derive(Clone, Default)]
struct Flips {
    allowed: u64,
    refused: u64,
    cut: u64,
    back: u64,
    other: u64,
    error: i32,
}

fn flip_by(kind: SockType, addresses: &[SocketAddr], file: &str) -> Result<Vec<Flips>> {
    let mut counts = vec![Flips::default(); addresses.len()];
    while !std::path::Path::new(file).exists() {
        for (address, count) in addresses.iter().zip(&mut counts) {
            let socket = open(kind, address)?;
            match connect_to(&socket, address) {
                Ok(()) | Err(Errno::ECONNREFUSED) if count.refused + count.cut > 0 => count.back += 1,
                Ok(()) | Err(Errno::ECONNREFUSED) => count.allowed += 1,
                Err(Errno::EPERM) => count.refused += 1,
                // destroyed, tcp_abort(): it was allowed, and its first segment came after the rules had changed
                Err(Errno::ECONNABORTED) if kind == SockType::Stream => count.cut += 1,
                Err(errno) => (count.other, count.error) = (count.other + 1, errno as i32),
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(counts)
}

/// `connect-waiting tcp ADDRESS PORT`: as `connect`, by a socket that does not block: waits until the kernel says how it came out.
pub(super) fn connect_waiting(words: &[&str]) -> Result<u8> {
    let (_, rest) = one(words)?;
    let (to, _) = address(rest)?;
    let socket = open(SockType::Stream, &to)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    match connect_to(&socket, &to) {
        Err(Errno::EINPROGRESS) => {}
        done => return Ok(say(done)),
    }
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::from(5000_u16))?;
    Ok(say(match polled[0].revents() {
        Some(events) if !events.is_empty() => match getsockopt(&socket, sockopt::SocketError)? {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        },
        _ => Err(Errno::ETIMEDOUT),
    }))
}
