//! `measure PROCESSOR NOTHING FORBIDDEN`: what the benchmarks time, done by a process of the place that is measured. It
//! prints `ready`, then reads lines `OPERATION COUNT` and answers each with the nanoseconds that so many took. `NOTHING`
//! is a program that ends at once, `FORBIDDEN` another, which the policy does not allow.
//!
//! Some operations are no loops and have an answer of their own: `trespass THREADS PORT`, `errand THREADS PORT` (the same
//! with the program that is allowed), `smuggle` and `ferry` (both by io_uring), `abscond 0 PORT` and `depart 0 PORT` (both by a grandchild that left its session), `bomb`, `defuse`, `crowd SLEEPERS SPINNERS`, `flows COUNT PORT`,
//! `landlock`: what comes later is under Landlock; `refused N`: connects to destination N, without a datagram, until that is refused; answers when it was.

use std::{
    ffi::CString,
    io::{BufRead, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    fcntl::{OFlag, open},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, accept4, connect, recv, send, sendto, setsockopt,
            socket, sockopt,
        },
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, execv, getppid, read, write},
};

use super::{
    guard, one,
    process::{in_child, vfork},
    victims::{self, Way},
};
use crate::bench::place;

/// Addresses that are reached in turn, so that no look-up is only ever of one key.
pub(crate) const DESTINATIONS: u32 = 256;
/// Every so manieth of the networks in [`network`] has a destination.
pub(crate) const STRIDE: u32 = 39;
/// An address on loopback that no network of a policy has.
pub(crate) const BEYOND: Ipv4Addr = Ipv4Addr::new(127, 200, 0, 1);
/// Bytes of a message.
const MESSAGE: usize = 64;
/// Bytes of a write to the stream.
const CHUNK: usize = 64 * 1024;

/// The n-th network, a /24 on loopback: `127.a.b.0`.
pub(crate) fn network(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f00_0000 + ((n / 250) << 16) + ((n % 250) << 8))
}

fn destination(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network(n % DESTINATIONS * STRIDE)) + 1)
}

pub(super) fn measure(words: &[&str]) -> Result<u8> {
    let (processor, rest) = one(words)?;
    place::pin(processor.parse()?)?;
    place::hurry(true);
    let (nothing, rest) = one(rest)?;
    let mut bench = Bench::new(nothing, one(rest)?.0)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).copied().unwrap_or("0").parse::<u32>();
        let answer = bench.answer(words[0], number(1)?, number(2)?)?;
        writeln!(out, "{answer}")?;
    }
    Ok(0)
}

struct Bench {
    nothing: CString,
    forbidden: CString,
    bomb: Option<Pid>,
    sender: OwnedFd,
    receiver: UdpSocket,
    receiver_port: u16,
    listener: TcpListener,
    listener_port: u16,
    /// Port of a server elsewhere.
    server: u16,
    /// Both ends of a connection.
    stream: Option<(OwnedFd, OwnedFd)>,
    turn: u32,
}

impl Bench {
    fn new(nothing: &str, forbidden: &str) -> Result<Self> {
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(Self {
            nothing: CString::new(nothing)?,
            forbidden: CString::new(forbidden)?,
            bomb: None,
            sender: socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?,
            receiver_port: receiver.local_addr()?.port(),
            receiver,
            listener_port: listener.local_addr()?.port(),
            listener,
            server: 0,
            stream: None,
            turn: 0,
        })
    }

    fn answer(&mut self, operation: &str, first: u32, second: u32) -> Result<String> {
        let beyond = || Ok::<_, anyhow::Error>(SocketAddrV4::new(BEYOND, u16::try_from(second)?));
        match operation {
            "trespass" => victims::trespass(&self.forbidden, first, beyond()?, Way::Calls),
            "errand" => victims::trespass(&self.nothing, first, beyond()?, Way::Calls),
            "smuggle" => victims::trespass(&self.forbidden, first, beyond()?, Way::Ring),
            "ferry" => victims::trespass(&self.nothing, first, beyond()?, Way::Ring),
            "abscond" => victims::abscond(&self.forbidden, beyond()?),
            "depart" => victims::abscond(&self.nothing, beyond()?),
            "bomb" => {
                let bomb = victims::bomb()?;
                self.bomb = Some(bomb);
                Ok(bomb.to_string())
            }
            "defuse" => {
                self.bomb.take().map_or(Ok(()), victims::defuse)?;
                Ok("ok".to_owned())
            }
            "crowd" => victims::crowd(first, second),
            "flows" => victims::flows(first, second),
            "refused" => self.refused(first),
            "landlock" => guard::landlock(self.listener_port).map(|()| "ok".to_owned()),
            _ => {
                self.server = u16::try_from(second)?;
                Ok(self.time(operation, first)?.to_string())
            }
        }
    }

    fn refused(&self, n: u32) -> Result<String> {
        let to = SockaddrIn::from(SocketAddrV4::new(destination(n), self.receiver_port));
        loop {
            match connect(self.sender.as_raw_fd(), &to) {
                Ok(()) => std::thread::sleep(std::time::Duration::from_micros(100)),
                Err(nix::errno::Errno::EPERM) => return Ok(crate::harness::wait::boot_ns()?.to_string()),
                Err(other) => bail!("connect to {}: {other}", to.ip()),
            }
        }
    }

    fn time(&mut self, operation: &str, count: u32) -> Result<u128> {
        self.prepare(operation)?;
        let start = Instant::now();
        if operation == "stream" {
            self.stream(count)?;
        } else {
            (0..count).try_for_each(|_| self.act(operation))?;
        }
        Ok(start.elapsed().as_nanos())
    }

    fn prepare(&mut self, operation: &str) -> Result<()> {
        match operation {
            "udp-connected-pair" => connect(self.sender.as_raw_fd(), &self.at_receiver())?,
            // a new socket: the last may be connected
            "udp-connect" | "udp-pair" => {
                self.sender = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            }
            "ping-pong" | "stream" if self.stream.is_none() => {
                let pair = self.connection()?;
                setsockopt(&pair.0, sockopt::TcpNoDelay, &true)?;
                setsockopt(&pair.1, sockopt::TcpNoDelay, &true)?;
                self.stream = Some(pair);
            }
            _ => {}
        }
        Ok(())
    }

    fn act(&mut self, operation: &str) -> Result<()> {
        match operation {
            "getppid" => drop(std::hint::black_box(getppid())),
            "open-close" => drop(open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?),
            "udp-connect" => connect(self.sender.as_raw_fd(), &self.at_receiver())?,
            "udp-pair" => {
                let to = self.at_receiver();
                sendto(self.sender.as_raw_fd(), &[0; MESSAGE], &to, MsgFlags::empty())?;
                recv(self.receiver.as_raw_fd(), &mut [0; MESSAGE], MsgFlags::empty())?;
            }
            "udp-connected-pair" => {
                send(self.sender.as_raw_fd(), &[0; MESSAGE], MsgFlags::empty())?;
                recv(self.receiver.as_raw_fd(), &mut [0; MESSAGE], MsgFlags::empty())?;
            }
            "tcp-connect" => {
                let (here, there) = self.connection()?;
                reset_at_close(&here)?;
                drop((here, there));
            }
            "tcp-connect-out" => {
                let to = SockaddrIn::from(SocketAddrV4::new(self.next(), self.server));
                let here = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                connect(here.as_raw_fd(), &to)?;
                reset_at_close(&here)?;
            }
            "ping-pong" => self.ping_pong()?,
            "fork" => drop(waitpid(in_child(|| 0)?, None)?),
            "fork-exec" => {
                let nothing = self.nothing.clone();
                // it returns only where it failed
                let child = in_child(|| execv(&nothing, &[&nothing]).map_or(1, |never| match never {}))?;
                let ended = waitpid(child, None)?;
                ensure!(ended == WaitStatus::Exited(child, 0), "a program that does nothing ended with {ended:?}");
            }
            "vfork-exec" => drop(waitpid(vfork(std::slice::from_ref(&self.nothing))?, None)?),
            _ => bail!("there is no operation {operation:?}"),
        }
        Ok(())
    }

    fn at_receiver(&mut self) -> SockaddrIn {
        SockaddrIn::from(SocketAddrV4::new(self.next(), self.receiver_port))
    }

    fn next(&mut self) -> Ipv4Addr {
        self.turn = self.turn.wrapping_add(1);
        destination(self.turn)
    }

    fn connection(&mut self) -> Result<(OwnedFd, OwnedFd)> {
        let to = SocketAddrV4::new(self.next(), self.listener_port);
        let here = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(here.as_raw_fd(), &SockaddrIn::from(to))?;
        let there = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 made this descriptor, and nothing else knows it.
        Ok((here, unsafe { std::os::fd::FromRawFd::from_raw_fd(there) }))
    }

    /// Eight bytes there and back.
    fn ping_pong(&self) -> Result<()> {
        let (here, there) = self.stream.as_ref().context("there is no stream")?;
        let mut bytes = [0; 8];
        write(here, &bytes)?;
        read(there, &mut bytes)?;
        write(there, &bytes)?;
        read(here, &mut bytes)?;
        Ok(())
    }

    /// So many chunks from this thread to another one on the same processor, through buffers of the kernel's choice.
    fn stream(&self, count: u32) -> Result<()> {
        let (here, there) = self.stream.as_ref().context("there is no stream")?;
        let whole = CHUNK * count as usize;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let (mut bytes, mut received) = (vec![0; 4 * CHUNK], 0);
                while received < whole {
                    received += read(there, &mut bytes)?;
                }
                Ok::<_, nix::errno::Errno>(())
            });
            let bytes = vec![0; CHUNK];
            for _ in 0..count {
                let mut sent = 0;
                while sent < CHUNK {
                    sent += write(here, &bytes[sent..])?;
                }
            }
            reader.join().map_err(|_panic| anyhow!("the reader of the stream panicked"))?.context("stream")
        })
    }
}

/// Nothing waits when it is closed, and no port stays taken.
fn reset_at_close(connection: &OwnedFd) -> Result<()> {
    setsockopt(connection, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_lie_in_networks_of_their_own() {
        let networks: std::collections::BTreeSet<Ipv4Addr> = (0..10_000).map(network).collect();
        assert_eq!(networks.len(), 10_000);
        for n in 0..DESTINATIONS {
            assert!(networks.contains(&Ipv4Addr::from(u32::from(destination(n)) - 1)));
            assert!(destination(n).is_loopback());
        }
        assert_eq!(network(0), Ipv4Addr::new(127, 0, 0, 0));
        assert_eq!(network(9_999), Ipv4Addr::new(127, 39, 249, 0));
    }
}
