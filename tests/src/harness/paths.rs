//! The kernel's path manager of Multipath TCP in this network namespace, by generic netlink: which addresses a connection
//! tells its peer of, and how many that it is told of it goes to.

use std::{
    io::Error,
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

/// `NLMSG_ERROR`, `NLM_F_REQUEST | NLM_F_ACK`
const ERROR: u16 = 2;
const ASKED: u16 = 5;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `MPTCP_PM_CMD_*` (`linux/mptcp_pm.h`)
const ADD: u8 = 1;
const FLUSH: u8 = 4;
const SET_LIMITS: u8 = 5;
/// `MPTCP_PM_ADDR_FLAG_SIGNAL`
const SIGNAL: u32 = 1;
/// Length of the headers of netlink and generic netlink.
const HEADERS: usize = 20;

/// Connections from here on tell their peers of this address alone, and go to what they are told of.
pub(crate) fn announce(address: IpAddr) -> Result<()> {
    let manager = Manager::new()?;
    manager.ask(FLUSH, &[])?;
    manager.ask(SET_LIMITS, &[attribute(2, &2u32.to_ne_bytes()), attribute(3, &2u32.to_ne_bytes())].concat())?;
    let (family, number, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 3, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 4, address.octets().to_vec()),
    };
    let parts = [
        attribute(1, &u16::try_from(family)?.to_ne_bytes()),
        attribute(number, &bytes),
        attribute(6, &SIGNAL.to_ne_bytes()),
    ];
    // `NLA_F_NESTED`
    manager.ask(ADD, &attribute(0x8000 | 1, &parts.concat()))
}

/// A netlink attribute, padded.
fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &number.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

struct Manager {
    socket: OwnedFd,
    family: u16,
}

impl Manager {
    fn new() -> Result<Self> {
        // SAFETY: no pointers.
        let socket =
            unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_GENERIC) };
        let socket = Errno::result(socket).context("a netlink socket")?;
        // SAFETY: the kernel just made it, and nobody else has it.
        let mut manager = Self { socket: unsafe { OwnedFd::from_raw_fd(socket) }, family: CONTROL };
        manager.send(GET_FAMILY, &attribute(FAMILY_NAME, b"mptcp_pm\0"))?;
        let answer = manager.receive()?;
        ensure!(kind(&answer) != ERROR, "the kernel has no path manager of MPTCP: {answer:?}");
        let mut rest = answer.get(HEADERS..).unwrap_or_default();
        while let [a, b, c, d, ..] = *rest {
            let (length, number) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
            if let (FAMILY_ID, Some([low, high])) = (number, rest.get(4..6)) {
                manager.family = u16::from_ne_bytes([*low, *high]);
            }
            rest = rest.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
        }
        // what follows says that this was done
        manager.receive()?;
        ensure!(manager.family != CONTROL, "the kernel does not say the number of its path manager: {answer:?}");
        Ok(manager)
    }

    fn ask(&self, command: u8, attributes: &[u8]) -> Result<()> {
        self.send(command, attributes)?;
        let answer = self.receive()?;
        let Some(Ok(code)) = answer.get(16..HEADERS).map(<[u8; 4]>::try_from) else { bail!("cut short: {answer:?}") };
        let code = i32::from_ne_bytes(code);
        ensure!(kind(&answer) == ERROR && code == 0, "command {command}: {}", Error::from_raw_os_error(-code));
        Ok(())
    }

    fn send(&self, command: u8, attributes: &[u8]) -> Result<()> {
        let length = u32::try_from(HEADERS + attributes.len())?;
        let (family, asked) = (self.family.to_ne_bytes(), ASKED.to_ne_bytes());
        let message = [&length.to_ne_bytes()[..], &family, &asked, &[0; 8], &[command, 1, 0, 0], attributes].concat();
        // SAFETY: the message outlives the call; the descriptor is open.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        Errno::result(sent).map(drop).context("netlink")
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; 1 << 14];
        // SAFETY: the buffer outlives the call and is as long as is said; the descriptor is open.
        let read = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        buffer.truncate(usize::try_from(Errno::result(read).context("netlink")?)?);
        Ok(buffer)
    }
}

/// The type of a message.
fn kind(message: &[u8]) -> u16 {
    message.get(4..6).map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]))
}
