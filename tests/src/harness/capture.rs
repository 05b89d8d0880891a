//! A network namespace of a test's own, and everything that leaves in it: its only interface is loopback, so each packet
//! that anybody in there sends passes the packet socket that captures here. What a program on the way out drops does not
//! come so far.

use std::{
    fs::{self, File},
    io::Error,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{setsockopt, sockopt},
};

use super::guest::raise_loopback;

/// `PACKET_OUTGOING` (`linux/if_packet.h`)
const OUTGOING: u32 = 4;
/// Bytes that may wait to be read, with the kernel's own part of them: a storm of connections leaves 20,000 packets, and
/// each takes 1 to 2 KiB.
const ROOM: usize = 64 << 20;

/// Takes this process, and what it starts from here on, to a new network namespace with a loopback interface, which has
/// these IPv6 addresses beside its own.
pub(crate) fn own_network(addresses: &[&str]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace cannot be made")?;
    raise_loopback()?;
    addresses.iter().try_for_each(|address| add_address(address.parse()?))
}

/// What `make` makes in the network namespace that a process is in.
pub(crate) fn within<T: Send + 'static>(process: u32, make: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    let there = move || -> Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        make()
    };
    // a thread goes there, not this process; its sockets stay
    thread::spawn(there).join().map_err(|_panic| anyhow::anyhow!("the thread in the namespace died"))?
}

/// Sets a value below `/proc/sys/net`, of this namespace.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("{name} cannot be set to {value}"))
}

/// `struct in6_ifreq` (`linux/ipv6.h`)
#[repr(C)]
struct Request {
    address: [u8; 16],
    prefix: u32,
    interface: i32,
}

/// Gives loopback, in this namespace, another address.
pub(crate) fn add_address(address: Ipv6Addr) -> Result<()> {
    // loopback is the first interface of every namespace
    add_address_to(1, address)
}

/// Gives an interface of this namespace another address.
pub(crate) fn add_address_to(interface: i32, address: Ipv6Addr) -> Result<()> {
    const SIOCSIFADDR: libc::Ioctl = 0x8916;
    let socket = std::net::UdpSocket::bind("[::]:0")?;
    let request = Request { address: address.octets(), prefix: 64, interface };
    // SAFETY: on a socket of IPv6 the request reads one such structure, which outlives the call; the descriptor is open.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFADDR, &raw const request) };
    ensure!(done == 0, "{address} cannot be added to interface {interface}: {}", Error::last_os_error());
    Ok(())
}

/// A packet that left, from its network header on.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// What comes after the headers of the network layer.
    pub(crate) protocol: u8,
    /// 0 where the protocol has none.
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    /// TCP's flags.
    pub(crate) flags: u8,
    /// Bytes after TCP's header.
    pub(crate) payload: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Packet {
    /// Whether these bytes stand anywhere in it.
    pub(crate) fn has(&self, mark: &str) -> bool {
        self.bytes.windows(mark.len()).any(|part| part == mark.as_bytes())
    }

    /// Whether both carry the same bytes.
    pub(crate) fn carries_the_same(&self, other: &Self) -> bool {
        let carried = |packet: &Self| packet.bytes[packet.bytes.len().saturating_sub(packet.payload)..].to_vec();
        carried(self) == carried(other)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let (from, to, protocol, start, total) = match bytes.first()? >> 4 {
            4 => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
                let total = usize::from(word(&bytes, 2)?);
                (address(12)?, address(16)?, *bytes.get(9)?, usize::from(bytes.first()? & 15) * 4, total)
            }
            6 => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
                let (protocol, start) = behind_extensions(&bytes)?;
                (address(8)?, address(24)?, protocol, start, 40 + usize::from(word(&bytes, 4)?))
            }
            _ => return None,
        };
        let ports = [6, 17, 33, 132, 136].contains(&protocol);
        // of what is cut short nothing more is known
        let port = |at: usize| word(&bytes, start + at).filter(|_| ports).unwrap_or(0);
        let tcp = i32::from(protocol) == libc::IPPROTO_TCP;
        let of_tcp = |at: usize| bytes.get(start + at).copied().filter(|_| tcp).unwrap_or(0);
        let header = usize::from(of_tcp(12) >> 4) * 4;
        Some(Self {
            from,
            to,
            protocol,
            from_port: port(0),
            to_port: port(2),
            flags: of_tcp(13),
            payload: total.saturating_sub(start + header),
            bytes,
        })
    }
}

/// What follows the extension headers of an IPv6 packet, and where.
fn behind_extensions(bytes: &[u8]) -> Option<(u8, usize)> {
    let (mut protocol, mut start) = (*bytes.get(6)?, 40);
    while [0, 43, 60].contains(&protocol) {
        protocol = *bytes.get(start)?;
        start += (usize::from(*bytes.get(start + 1)?) + 1) * 8;
    }
    Some((protocol, start))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(<[u8; 2]>::try_from(bytes.get(at..at + 2)?).ok()?))
}

/// A packet socket in this namespace.
#[derive(Debug)]
pub(crate) struct Capture {
    socket: OwnedFd,
}

impl Capture {
    pub(crate) fn new() -> Result<Self> {
        // it takes nothing until it is bound to a protocol
        // SAFETY: no pointers.
        let socket =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
        let socket = Errno::result(socket).context("a packet socket cannot be made")?;
        // SAFETY: the kernel just made it, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        only_what_leaves(&socket)?;
        bind_to_all(&socket)?;
        Ok(Self { socket })
    }

    /// In the network namespace that a process is in.
    pub(crate) fn within(process: u32) -> Result<Self> {
        within(process, Self::new)
    }

    /// What has left since the last call. Fails where the socket had no room for all of it.
    pub(crate) fn left(&self) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(read) => packets.extend(Packet::parse(buffer[..read].to_vec())),
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno).context("the packet socket cannot be read"),
            }
        }
        self.lost_nothing()?;
        Ok(packets)
    }

    fn lost_nothing(&self) -> Result<()> {
        let mut counts = [0u32; 2];
        let mut length = libc::socklen_t::try_from(size_of_val(&counts))?;
        // SAFETY: the option writes two numbers of 32 bits; both outlive the call; the descriptor is open.
        let done = unsafe {
            let (fd, place) = (self.socket.as_raw_fd(), counts.as_mut_ptr().cast());
            libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, place, &raw mut length)
        };
        Errno::result(done).context("the packet socket does not say what it lost")?;
        ensure!(counts[1] == 0, "the capture lost {} of {} packets", counts[1], counts[0]);
        Ok(())
    }
}

/// Has the kernel drop what arrives before it takes room: loopback shows each packet once on its way out and once on its
/// way in (`net/core/filter.c`, `SKF_AD_PKTTYPE`).
fn only_what_leaves(socket: &OwnedFd) -> Result<()> {
    let kind_of_packet = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let step =
        |code: u32, jf, k| Ok::<_, anyhow::Error>(libc::sock_filter { code: u16::try_from(code)?, jt: 0, jf, k });
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, kind_of_packet)?,
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, OUTGOING)?,
        step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX)?,
        step(libc::BPF_RET | libc::BPF_K, 0, 0)?,
    ];
    let program = libc::sock_fprog { len: u16::try_from(steps.len())?, filter: steps.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program))?;
    // SAFETY: the option reads one such structure, and as many steps as it says; both outlive the call; the descriptor is
    // open.
    let done = unsafe {
        let place = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, place, length)
    };
    Errno::result(done).map(drop).context("the packet socket takes no filter")
}

/// Starts the capture: every protocol, every interface.
fn bind_to_all(socket: &OwnedFd) -> Result<()> {
    // SAFETY: an all-zero sockaddr_ll is a value of it: integers and an array.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET)?;
    to.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let length = libc::socklen_t::try_from(size_of_val(&to))?;
    // SAFETY: the call reads one such address, which outlives it; the descriptor is open.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const to).cast(), length) };
    Errno::result(done).map(drop).context("the packet socket cannot be bound")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn addresses_ports_flags_and_payload_are_read() {
        let tcp = [0, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0, b'h', b'i'];
        let four = [&[0x45, 0, 0, 42, 0, 0, 0, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 9][..], &tcp].concat();
        // a routing header of one address is between
        let routing = [6, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let (from, to) = (Ipv6Addr::LOCALHOST.octets(), Ipv6Addr::UNSPECIFIED.octets());
        let six = [&[0x60, 0, 0, 0, 0, 46, 43, 64][..], &from, &to, &routing, &tcp].concat();
        for (bytes, from, to) in [
            (four, IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from([127, 0, 0, 9])),
            (six, IpAddr::from(from), IpAddr::from(to)),
        ] {
            let packet = Packet::parse(bytes).expect("it is whole");
            assert_eq!((packet.from, packet.to), (from, to));
            assert_eq!((packet.protocol, packet.from_port, packet.to_port), (6, 7, 9));
            assert_eq!((packet.flags, packet.payload), (4, 2));
            assert!(packet.has("hi") && !packet.has("ho"));
        }
        assert!(Packet::parse(vec![0x45, 0, 0]).is_none());
    }
}
