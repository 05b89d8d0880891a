//! The sockets of sessions: found and destroyed through sock_diag(7), in whatever network namespace a member was seen.
//!
//! A socket is a session's where it was made in the session's cgroup, or in one below it.

mod cut;
mod diag;
mod namespaces;
mod prove;
mod wire;

use std::io;

pub use cut::{Cut, Flows};
pub use namespaces::Registry;
pub use prove::prove_destroy;
pub use wire::Socket;

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
        other => other.to_string(),
    }
}

/// Why a socket was not destroyed, in words.
#[must_use]
pub fn explain(protocol: i32, failure: &io::Error) -> String {
    let name = protocol_name(protocol);
    match failure.raw_os_error() {
        Some(libc::EOPNOTSUPP) => format!("this kernel cannot destroy {name} sockets"),
        _ => format!("the kernel refused to destroy it: {failure}"),
    }
}
