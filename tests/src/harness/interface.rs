//! An interface of the test's own: what is sent there goes to nobody.

use std::{
    fs::{File, OpenOptions},
    io::Error,
    mem::{transmute, zeroed},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::errno::Errno;

/// `IFF_TUN` and `IFF_NO_PI` (`linux/if_tun.h`)
const TUN: i16 = 1;
const NO_PACKET_INFORMATION: i16 = 0x1000;
/// `IPPROTO_UDP`
const UDP: u8 = 17;
/// `TUNSETIFF`
const SET_INTERFACE: libc::Ioctl = 0x4004_54ca;
/// `SIOCGIFINDEX`
const GET_INDEX: libc::Ioctl = 0x8933;

/// A TUN interface with this address and the 255 beside it, which is up and goes with the file; what is written to the file comes in by it. And its
/// number.
pub(crate) fn tunnel(own: Ipv4Addr) -> Result<(File, i32), Errno> {
    let device = io(OpenOptions::new().read(true).write(true).open("/dev/net/tun"))?;
    // SAFETY: all zeros are a value of it: integers, arrays and a union of those.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_ifru.ifru_flags = TUN | NO_PACKET_INFORMATION;
    // SAFETY: a request that outlives the call, in which the kernel writes the interface's name; the descriptor is open.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE, &raw mut request) })?;
    // SAFETY: integers only.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // without a mask it is a host of its own
    for (what, value) in [(libc::SIOCSIFADDR, own), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        request.ifr_ifru.ifru_addr = address(value);
        // SAFETY: as above.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw const request) })?;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    // SAFETY: a request that outlives the call, in which the kernel writes the number; the descriptor is open.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), GET_INDEX, &raw mut request) })?;
    // SAFETY: the kernel wrote it there.
    Ok((device, unsafe { request.ifr_ifru.ifru_ifindex }))
}

/// `struct in6_rtmsg` (`linux/ipv6_route.h`)
#[repr(C)]
#[derive(Default)]
struct Route {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_length: u16,
    source_length: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: i32,
}

/// Whatever else IPv6 goes to is reached by this interface.
pub(crate) fn leads_everywhere(interface: i32) -> Result<(), Errno> {
    let route = Route { metric: 1, flags: u32::from(libc::RTF_UP), interface, ..Route::default() };
    // SAFETY: integers only.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just made it, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: a request that outlives the call; the descriptor is open.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) }).map(drop)
}

fn address(value: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeros are a value of it: integers.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = u16::try_from(libc::AF_INET).unwrap_or(0);
    address.sin_addr.s_addr = u32::from_ne_bytes(value.octets());
    // SAFETY: both are plain bytes of 16.
    unsafe { transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

fn io<T>(done: std::io::Result<T>) -> Result<T, Errno> {
    done.map_err(|error: Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// A datagram with its header, without a check sum.
pub(crate) fn datagram(mark: &str, port: u16) -> Vec<u8> {
    let length = u16::try_from(8 + mark.len()).unwrap_or(0);
    let header = [[0x99, 0x99], port.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    [&header, mark.as_bytes()].concat()
}

/// A packet with all its headers.
pub(crate) fn whole(mark: &str, from: Ipv4Addr, to: SocketAddrV4) -> Vec<u8> {
    let inner = datagram(mark, to.port());
    let length = u16::try_from(20 + inner.len()).unwrap_or(0).to_be_bytes();
    let start = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, UDP, 0, 0];
    let mut packet = [&start[..], &from.octets(), &to.ip().octets(), &inner].concat();
    let mut sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let check = !u16::try_from(sum).unwrap_or(0);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_its_lengths_and_a_check_sum() {
        let to = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), 80);
        let packet = whole("mark", Ipv4Addr::LOCALHOST, to);
        assert_eq!(packet.len(), 20 + 8 + 4);
        assert_eq!(packet[2..4], 32_u16.to_be_bytes());
        assert_eq!(packet[24..26], 12_u16.to_be_bytes());
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
