//! The sockets of sessions: found and destroyed through sock_diag(7), in whatever network namespace a member was seen.
//!
//! A socket is a session's where it was made in the session's cgroup, or in one below it, or carries its label.

mod cut;
mod diag;
mod find;
mod inherit;
mod namespaces;
mod prove;
mod wire;

pub use cut::{Cut, Failure, Flows};
pub use find::{Found, Hidden, Look, Which, Whose};
pub use inherit::{Held, HeldUnix, Inheritance, inheritance, socket_of, sockets_of};
pub use namespaces::Registry;
pub use prove::prove_destroy;

/// The name of an IP protocol; its number where it has none here.
#[must_use]
pub fn protocol_name(protocol: i32) -> String {
    match protocol {
        libc::IPPROTO_TCP => "tcp".into(),
        libc::IPPROTO_UDP => "udp".into(),
        libc::IPPROTO_UDPLITE => "udplite".into(),
        libc::IPPROTO_SCTP => "sctp".into(),
        libc::IPPROTO_DCCP => "dccp".into(),
        libc::IPPROTO_RAW => "raw".into(),
        libc::IPPROTO_ICMP => "icmp".into(),
        libc::IPPROTO_ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// Why a socket was not destroyed, in words.
#[must_use]
pub fn explain(protocol: i32, failure: &Failure) -> String {
    let name = protocol_name(protocol);
    match failure {
        Failure::Refused(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            format!("this kernel cannot destroy {name} sockets")
        }
        Failure::Refused(error) => format!("the kernel refused to destroy it: {error}"),
        Failure::Hidden(Hidden::Unlisted) => format!("this kernel does not list this {name} socket"),
        Failure::Hidden(Hidden::Unreachable) => "no member was seen in its network namespace".into(),
    }
}
