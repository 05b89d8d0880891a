//! Sockets that a command inherits as its descriptors 0 to 2: listed, and closed or refused as the policy says. They were
//! made outside the session, so without LSM no program of the kernel judges them. The caller closes them, before it becomes
//! the command: what it holds is its own, and a caller of another kind could keep it, as it could be passed a socket later.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname},
};
use tipstaff_common::rule::REASON_DEFAULT;

use super::{Engine, check::Checked, crossed::Passed, start::failed};
use crate::{
    api::wire::{self, ApiError},
    enforce::protocol_name,
    evidence::{InheritedDescriptor, Principal},
    kernel::{descriptor_of, protocol_of},
    policy::{Descriptors, Effect, Mode, Policy, Resolved, decide_inbound, decide_net},
};

/// An internet socket as its holder sees it.
struct Ends {
    protocol: i32,
    from: SocketAddr,
    to: Option<SocketAddr>,
}

impl Engine {
    /// What of the caller's descriptors 0 to 2 are sockets, and which of them the command must not find.
    pub(super) fn inherit(
        &mut self,
        run: &wire::Run,
        (pid, caller): (u32, BorrowedFd<'_>),
        principal: Principal,
        checked: &mut Checked,
    ) -> Result<(Vec<InheritedDescriptor>, Vec<Passed>), ApiError> {
        let (policy, mut sockets, mut passed) = (&checked.policy, Vec::new(), Vec::new());
        for descriptor in 0..=2 {
            let link = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap_or_default();
            if !link.as_os_str().as_bytes().starts_with(b"socket:[") {
                continue;
            }
            let found = match descriptor_of(caller, descriptor) {
                Ok(found) => found,
                Err(error) => {
                    let note =
                        format!("descriptor {descriptor} is a socket that cannot be looked at, and stays: {error}");
                    checked.notes.push(note);
                    continue;
                }
            };
            let Some((socket, ends)) = look(descriptor, &found).map_err(failed)? else { continue };
            let closed = policy.mode == Mode::Enforce && is_closed(policy, &checked.host, ends.as_ref());
            sockets.push(InheritedDescriptor { closed, ..socket });
            if let (false, Some(ends)) = (closed, ends) {
                let came_in = scope_of(policy, &checked.host, &ends) == Some(Way::In);
                passed.push(Passed { socket: found, came_in });
            }
        }
        for socket in &sockets {
            if policy.run == Descriptors::Refuse && policy.mode == Mode::Enforce {
                let message = format!("{}, and policy {} refuses that", in_words(socket), policy.name);
                let remedy = "redirect it, for example with </dev/null, or write `run: { sockets: close }`".into();
                return Err(self.record_refusal(run, principal, ApiError::Refused { message, rule: None, remedy }));
            }
            let what = if socket.closed { "it is closed: the command finds /dev/null" } else { "it is kept" };
            checked.notes.push(format!("{}: {what}", in_words(socket)));
        }
        Ok((sockets, passed))
    }
}

/// By which way of the scope a connection is let be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// `None`: it is no socket, or one of the unix family, which standard streams may be by design.
fn look(descriptor: i32, found: &OwnedFd) -> io::Result<Option<(InheritedDescriptor, Option<Ends>)>> {
    let family = match getsockname::<SockaddrStorage>(found.as_raw_fd()) {
        Ok(name) => name.family(),
        Err(Errno::ENOTSOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let row = |protocol: String| InheritedDescriptor { descriptor, protocol, from: None, to: None, closed: false };
    // of whatever type: only its addresses are asked for
    let socket = UdpSocket::from(found.try_clone()?);
    let Ok(from) = socket.local_addr() else {
        let of = |family: AddressFamily| format!("family {}", family as i32);
        let known = family.map_or_else(|| "unknown".into(), of);
        return Ok((family != Some(AddressFamily::Unix)).then(|| (row(known), None)));
    };
    let to = socket.peer_addr().ok();
    let protocol = match protocol_of(found.as_fd())? {
        // TCP on the wire
        libc::IPPROTO_MPTCP => libc::IPPROTO_TCP,
        protocol => protocol,
    };
    let socket = InheritedDescriptor { from: Some(from), to, ..row(protocol_name(protocol)) };
    Ok(Some((socket, Some(Ends { protocol, from, to }))))
}

/// Only what is connected stays where it is, so only that can be judged once and for all.
fn is_closed(policy: &Policy, host: &Resolved, ends: Option<&Ends>) -> bool {
    match policy.run {
        Descriptors::Keep | Descriptors::Refuse => false,
        Descriptors::Close => true,
        Descriptors::Judge => ends.and_then(|ends| scope_of(policy, host, ends)).is_none(),
    }
}

/// Whether it went out or came in is not known: a default that lets everybody in lets nobody be talked to.
fn scope_of(policy: &Policy, host: &Resolved, ends: &Ends) -> Option<Way> {
    let protocol = u8::try_from(ends.protocol).ok()?;
    let (to, from) = (ends.to?, ends.from);
    if decide_net(policy, host, to.ip(), to.port(), protocol).verdict == Effect::Allow {
        return Some(Way::Out);
    }
    // who came in by anything else is answered by who may go there
    if ends.protocol != libc::IPPROTO_TCP {
        return None;
    }
    let came = decide_inbound(policy, host, to.ip(), from.port(), protocol);
    (came.verdict == Effect::Allow && came.rule != REASON_DEFAULT).then_some(Way::In)
}

fn in_words(socket: &InheritedDescriptor) -> String {
    let end = |word: &str, at: Option<SocketAddr>| at.map_or_else(String::new, |at| format!(" {word} {at}"));
    let (from, to) = (end("on", socket.from), end("connected to", socket.to));
    format!("descriptor {} is a socket of {}{from}{to}", socket.descriptor, socket.protocol)
}
