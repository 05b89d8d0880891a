//! Which sockets a member may make: an allow-list of family, type and protocol.

use tipstaff_common::{
    rule::{REASON_DEFAULT, REASON_FAMILY},
    socket::{
        SOCKET_DCCP, SOCKET_NETLINK, SOCKET_OTHER, SOCKET_PACKET, SOCKET_PING, SOCKET_RAW, SOCKET_SCTP, SOCKET_UNIX,
        SOCKET_VSOCK,
    },
};

use crate::{
    rules,
    session::Session,
    verdict::{Decision, of_fault},
};

/// `AF_UNIX`
pub const UNIX: u32 = 1;
/// `AF_INET`
pub const INET: u32 = 2;
/// `AF_INET6`
pub const INET6: u32 = 10;
const NETLINK: u32 = 16;
const PACKET: u32 = 17;
const VSOCK: u32 = 40;

/// `SOCK_*`
pub const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
const RAW: u32 = 3;
/// `SOCK_SEQPACKET`, `SOCK_DCCP`
pub const SEQUENCED: u32 = 5;
pub const DCCP_TYPE: u32 = 6;
const OLD_PACKET: u32 = 10;

/// `IPPROTO_*`
const ICMP: u32 = 1;
const TCP: u32 = 6;
const UDP: u32 = 17;
pub const DCCP: u32 = 33;
const ICMPV6: u32 = 58;
pub const SCTP: u32 = 132;
const UDPLITE: u32 = 136;
const MPTCP: u32 = 262;

/// What a session's policy says of such a socket.
#[inline(always)]
pub fn judge(session: &Session, family: u32, kind: u32, protocol: u32) -> Decision {
    if let Some(over) = rules::over(session) {
        return over;
    }
    let class = class(family, kind, protocol);
    if class == 0 {
        return Decision::allow(REASON_DEFAULT);
    }
    match rules::policy(session) {
        Ok(policy) if policy.sockets & class != 0 => Decision::allow(REASON_DEFAULT),
        Ok(_) => Decision::deny(REASON_FAMILY),
        Err(fault) => of_fault(fault, session),
    }
}

/// The class of a socket; 0: it can always be made, and is judged by address.
#[inline(always)]
pub const fn class(family: u32, kind: u32, protocol: u32) -> u32 {
    match family {
        INET | INET6 => match (kind, protocol) {
            (STREAM, 0 | TCP | MPTCP) | (DATAGRAM, 0 | UDP | UDPLITE) => 0,
            (RAW, _) => SOCKET_RAW,
            (DATAGRAM, ICMP | ICMPV6) => SOCKET_PING,
            (OLD_PACKET, _) => SOCKET_PACKET,
            (_, SCTP) => SOCKET_SCTP,
            (_, DCCP) => SOCKET_DCCP,
            _ => SOCKET_OTHER,
        },
        UNIX => SOCKET_UNIX,
        NETLINK => SOCKET_NETLINK,
        PACKET => SOCKET_PACKET,
        VSOCK => SOCKET_VSOCK,
        _ => SOCKET_OTHER,
    }
}
