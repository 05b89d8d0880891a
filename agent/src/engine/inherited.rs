//! What attached processes hold: listed, judged by the policy, destroyed where it says so.

use std::{collections::BTreeSet, fmt, os::fd::AsFd as _};

use tipstaff_common::{
    label::SessionRef,
    socket::{SOCKET_BEFORE, SOCKET_PASSIVE},
};
use tracing::warn;

use super::flows;
use crate::{
    api::wire,
    enforce::{Flows, Found, Held, Inheritance, Registry, inheritance, protocol_name},
    evidence::{Body, CutCause, InheritedSocket, InheritedUnix, RECEIPTS_MAX, SocketReceipt, Text},
    kernel::Kernel,
    policy::{Effect, Inherited, Policy, Resolved, decide_inbound, decide_listen, decide_net},
    session::SessionId,
};

/// The sockets that attached processes hold.
pub(super) struct Inventory {
    held: Inheritance,
    /// Cookies of those that were destroyed.
    destroyed: BTreeSet<u64>,
}

/// As the evidence has it.
pub(super) struct Lists {
    pub(super) open: Vec<InheritedSocket>,
    pub(super) listening: Vec<InheritedSocket>,
    pub(super) unix: Vec<InheritedUnix>,
    pub(super) others: u64,
    pub(super) unlisted: u64,
}

/// Receipts for what was destroyed.
pub(super) struct Destroyed(Vec<SocketReceipt>);

impl Destroyed {
    pub(super) fn with_session(&self, session: SessionId) -> Body {
        let (cause, revision) = (CutCause::Attach, Some(1));
        Body::FlowsCut(crate::evidence::FlowsCut { session, cause, revision, sockets: self.0.clone() })
    }
}

/// A socket in a few words.
pub(super) struct InWords {
    pub(super) pid: u32,
    text: String,
}

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Inventory {
    /// What `processes` hold, in the namespaces that `flows` knows.
    pub(super) fn of(flows: &Flows, registry: &mut Registry, processes: &BTreeSet<u32>) -> Self {
        Self { held: inheritance(&flows.namespaces, registry, processes), destroyed: BTreeSet::new() }
    }

    /// The first internet socket.
    pub(super) fn first(&self) -> Option<InWords> {
        let held = self.held.inet.first()?;
        let row = row(held, false);
        let to = row.to.map_or_else(String::new, |to| format!(" connected to {to}"));
        Some(InWords { pid: held.pid, text: format!("a {} socket on {}{to}", row.protocol, row.from) })
    }

    /// Destroys what the policy does not let the session have.
    pub(super) fn treat(
        &mut self,
        treatment: Inherited,
        policy: &Policy,
        host: &Resolved,
        flows: &mut Flows,
        registry: &mut Registry,
        processes: &BTreeSet<u32>,
    ) -> Vec<Destroyed> {
        let goes = |held: &&Held| match treatment {
            Inherited::Keep | Inherited::Refuse => false,
            Inherited::Destroy => true,
            Inherited::Judge => !in_scope(policy, host, held),
        };
        let these: Vec<Found> = self.held.inet.iter().filter(goes).map(|held| held.found.clone()).collect();
        if these.is_empty() {
            return Vec::new();
        }
        self.destroyed = these.iter().map(|found| found.socket.cookie).collect();
        flows.cut_these(registry, these, |namespaces, registry| {
            inheritance(namespaces, registry, processes).inet.into_iter().map(|held| held.found).collect()
        });
        let receipts = flows::receipts(flows.take());
        receipts.chunks(RECEIPTS_MAX).map(|part| Destroyed(part.to_vec())).collect()
    }

    /// Tells the kernel which connections came in: what it holds is otherwise one that went out.
    pub(super) fn mark_visitors(&self, kernel: &mut Kernel, session: SessionRef) {
        let kept = self.held.inet.iter().filter(|held| !self.destroyed.contains(&held.found.socket.cookie));
        for held in kept.filter(|held| held.came_in()) {
            let marked = held.open().map_err(|error| error.to_string()).and_then(|socket| {
                let flags = SOCKET_PASSIVE | SOCKET_BEFORE;
                kernel.label_socket(socket.as_fd(), session, flags).map_err(|error| error.to_string())
            });
            if let Err(why) = marked {
                let (pid, peer) = (held.pid, held.found.socket.remote);
                warn!("the connection from {peer} that process {pid} holds is taken for one that went out: {why}");
            }
        }
    }

    /// What the caller should know.
    pub(super) fn notes(&self) -> Vec<String> {
        let kept = self.held.inet.len() - self.destroyed.len();
        let mut notes = Vec::new();
        if kept > 0 {
            notes.push(format!(
                "{kept} sockets were made before the session and are kept: see control crossed-sockets for what is \
                 done with them later"
            ));
        }
        notes
    }

    /// As the evidence has it: the first of each kind.
    pub(super) fn lists(self) -> Lists {
        let rows = |listens: bool| {
            let these = self.held.inet.iter().filter(move |held| held.listens() == listens);
            these.map(|held| row(held, self.destroyed.contains(&held.found.socket.cookie))).collect::<Vec<_>>()
        };
        let (mut open, mut listening) = (rows(false), rows(true));
        let unix = |held: &crate::enforce::HeldUnix| InheritedUnix {
            pid: held.pid,
            kind: held.kind.into(),
            state: held.state.into(),
            name: Text::from(held.name.as_slice()),
        };
        let mut unix: Vec<InheritedUnix> = self.held.unix.iter().map(unix).collect();
        let over = |length: usize| length.saturating_sub(RECEIPTS_MAX) as u64;
        let unlisted = over(open.len()) + over(listening.len()) + over(unix.len());
        open.truncate(RECEIPTS_MAX);
        listening.truncate(RECEIPTS_MAX);
        unix.truncate(RECEIPTS_MAX);
        Lists { open, listening, unix, others: self.held.others, unlisted }
    }
}

/// Whether the scope lets a session have such a socket. A datagram socket that is connected to nobody is judged where
/// it sends.
fn in_scope(policy: &Policy, host: &Resolved, held: &Held) -> bool {
    let socket = &held.found.socket;
    let decision = if held.listens() {
        decide_listen(policy, host, socket.local.ip(), socket.local.port(), socket.protocol)
    } else if socket.remote.port() == 0 {
        return true;
    } else if held.found.passive {
        decide_inbound(policy, host, socket.remote.ip(), socket.local.port(), socket.protocol)
    } else {
        decide_net(policy, host, socket.remote.ip(), socket.remote.port(), socket.protocol)
    };
    decision.verdict == Effect::Allow
}

fn row(held: &Held, destroyed: bool) -> InheritedSocket {
    let Found { socket, namespace, .. } = &held.found;
    InheritedSocket {
        pid: held.pid,
        protocol: protocol_name(i32::from(socket.protocol)),
        netns: *namespace,
        from: socket.local,
        to: (socket.remote.port() != 0).then_some(socket.remote),
        destroyed,
    }
}

/// As the sockets spell it.
pub(super) fn wire_socket(row: &InheritedSocket) -> wire::InheritedSocket {
    wire::InheritedSocket {
        pid: row.pid,
        protocol: row.protocol.clone(),
        from: row.from.to_string(),
        to: row.to.map(|to| to.to_string()),
        destroyed: row.destroyed,
    }
}

/// As the sockets spell it.
pub(super) fn wire_unix(row: &InheritedUnix) -> wire::InheritedUnix {
    wire::InheritedUnix { pid: row.pid, kind: row.kind.clone(), state: row.state.clone(), name: row.name.to_string() }
}
