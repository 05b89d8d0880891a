//! The flows of a session: where they are looked for while it lives, and the cut with its receipts.

use std::{os::fd::AsFd as _, rc::Rc};

use tipstaff_common::label::SessionRef;
use tracing::debug;

use super::{Engine, complain, recover::InForce};
use crate::{
    enforce::{Cut, Failure, Find, Flows, Found, Registry, SessionCgroup, explain, protocol_name},
    evidence::{Body, CutCause, CutOutcome, FlowsCut, RECEIPTS_MAX, SocketReceipt},
    kernel::{Kernel, KernelError, Member, Socket, open_pidfd, ring::Event},
    policy::{self, Plan},
    session::{Mode, SessionId},
};

impl Engine {
    /// Keeps hold of the network namespace that a member was seen in: what it opened there can outlive it.
    pub(super) fn see_namespace(&mut self, id: SessionId, event: &Event) {
        if !matches!(event, Event::Exec(_) | Event::Connect(_)) {
            return;
        }
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let header = event.header();
        if !self.looked_at.insert((header.tgid, header.tid)) {
            return;
        }
        if !live.flows.namespaces.is_news(header.tgid, header.tid) {
            return;
        }
        // gone already, or not the member any more that the record is about: the walk at the end finds who is left
        let Ok(process) = open_pidfd(header.tgid) else { return };
        let label = complain("reading a label", self.parts.kernel.label_of(process.as_fd())).flatten();
        if label == Some(live.reference) {
            let place = (header.tgid, header.tid);
            if let Err(error) = live.flows.namespaces.see(&mut self.namespaces, process.as_fd(), place) {
                debug!("the network namespace of process {} was not seen: {error}", header.tgid);
            }
        }
    }

    /// Keeps hold of the network namespaces of a session that an earlier agent began, as far as members are in them.
    pub(super) fn see_again(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let (kernel, reference) = (&mut self.parts.kernel, live.reference);
        let walked = live.flows.namespaces.walk(&mut self.namespaces, || of(kernel.members()?, reference));
        complain("looking for network namespaces", walked);
    }

    /// Destroys a session's sockets, which the kernel's mark silenced, while their owners live: the kernel tells the
    /// other end of a socket that has an owner.
    pub(super) fn cut(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        if live.machine.mode() == Mode::Observe {
            return;
        }
        let (kernel, reference, cgroups) = (&mut self.parts.kernel, live.reference, live.cgroup.ids());
        // where they are known to be first: looking for more takes longer
        let mut labels = || labelled(kernel, reference);
        let mut what = Find { cgroups: &cgroups, labelled: &mut labels };
        live.flows.cut(&mut self.namespaces, &mut what, |_| true);
        let walked = live.flows.namespaces.walk(&mut self.namespaces, || of(self.parts.kernel.members()?, reference));
        if complain("looking for network namespaces", walked) == Some(true) {
            let mut labels = || labelled(&mut self.parts.kernel, reference);
            let mut what = Find { cgroups: &cgroups, labelled: &mut labels };
            live.flows.cut(&mut self.namespaces, &mut what, |_| true);
        }
    }

    /// Judges a session's open flows by the scope that it was narrowed to. What fails is refused packet by packet since
    /// the flip; here it is destroyed, and the rest goes on.
    pub(super) fn cut_out_of_scope(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        if live.machine.mode() == Mode::Observe {
            return;
        }
        let (kernel, reference, cgroups) = (&mut self.parts.kernel, live.reference, live.cgroup.ids());
        let walked = live.flows.namespaces.walk(&mut self.namespaces, || of(kernel.members()?, reference));
        complain("looking for network namespaces", walked);
        let (plan, mut labels) = (Rc::clone(&live.plan), || labelled(kernel, reference));
        let mut what = Find { cgroups: &cgroups, labelled: &mut labels };
        live.flows.cut(&mut self.namespaces, &mut what, |found| !in_scope(&plan, found));
        live.flows.confirm(&mut self.namespaces, &mut what, |found| !in_scope(&plan, found));
        let (receipts, revision) = (receipts(live.flows.take()), Some(live.revision));
        records(id, CutCause::Narrow, revision, &receipts).iter().for_each(|record| self.append_durable(record));
    }

    /// Looks for a session's sockets once more, and writes a receipt for each.
    pub(super) fn confirm_cut(&mut self, id: SessionId) -> AllCut {
        let Some(live) = self.sessions.get_mut(&id) else { return AllCut::default() };
        if live.machine.mode() == Mode::Observe {
            return AllCut::default();
        }
        let (kernel, reference, cgroups) = (&mut self.parts.kernel, live.reference, live.cgroup.ids());
        let mut labels = || labelled(kernel, reference);
        let mut what = Find { cgroups: &cgroups, labelled: &mut labels };
        live.flows.confirm(&mut self.namespaces, &mut what, |_| true);
        let (receipts, revision) = (receipts(live.flows.take()), Some(live.revision));
        records(id, CutCause::End, revision, &receipts).iter().for_each(|record| self.append(record));
        let (all, left) = counts(&receipts);
        let last = receipts.iter().map(|receipt| receipt.at_boot_ns).max();
        AllCut { all, left, last_boot_ns: last.filter(|_| left == 0) }
    }
}

/// What became of a session's sockets at its end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AllCut {
    /// How many were cut.
    pub(super) all: u64,
    /// How many of them are left.
    pub(super) left: u64,
    /// When the last one was cut; none: there was none, or one is left.
    pub(super) last_boot_ns: Option<u64>,
}

/// Whether a plan lets an open socket be: one that came in by its peer, one that went out by its destination, one that
/// listens by its own address. Of datagram sockets without a peer and of raw sockets each packet is judged.
fn in_scope(plan: &Plan, found: &Found) -> bool {
    let (local, remote, protocol) = (found.socket.local, found.socket.remote, found.socket.protocol);
    let decision = match (remote.port(), found.passive) {
        (0, true) => plan.judge_listen(local.ip(), local.port(), protocol),
        (0, false) => return true,
        (_, true) => plan.judge_inbound(remote.ip(), local.port(), protocol),
        (_, false) => plan.judge_net(remote.ip(), remote.port(), protocol),
    };
    decision.verdict != policy::Effect::Deny
}

/// The sockets that carry a session's label.
fn labelled(kernel: &mut Kernel, session: SessionRef) -> Vec<Socket> {
    let mut sockets = complain("reading the labels of sockets", kernel.sockets()).unwrap_or_default();
    sockets.retain(|socket| socket.session == session);
    sockets
}

/// How many sockets were cut, and how many of them are left.
pub(super) fn counts(receipts: &[SocketReceipt]) -> (u64, u64) {
    (receipts.len() as u64, receipts.iter().filter(|r| !r.gone).count() as u64)
}

/// The records that hold these receipts.
pub(super) fn records(
    session: SessionId,
    cause: CutCause,
    revision: Option<u32>,
    receipts: &[SocketReceipt],
) -> Vec<Body> {
    let record =
        |sockets: &[SocketReceipt]| Body::FlowsCut(FlowsCut { session, cause, revision, sockets: sockets.to_vec() });
    receipts.chunks(RECEIPTS_MAX).map(record).collect()
}

/// The cut of a session that an earlier agent left.
#[derive(Default)]
pub(super) struct LeftFlows {
    namespaces: Registry,
    flows: Flows,
}

impl LeftFlows {
    /// Destroys the sockets that were made in `cgroup`, in the namespaces of the members.
    pub(super) fn cut(&mut self, force: &mut impl InForce, session: SessionRef, cgroup: &SessionCgroup) {
        let walked = self.flows.namespaces.walk(&mut self.namespaces, || of(force.labelled()?, session));
        complain("looking for network namespaces", walked);
        self.flows.cut(&mut self.namespaces, &mut Find { cgroups: &cgroup.ids(), labelled: &mut Vec::new }, |_| true);
    }

    /// Looks for them once more; a receipt for each.
    pub(super) fn confirm(&mut self, cgroup: &SessionCgroup) -> Vec<SocketReceipt> {
        self.flows
            .confirm(&mut self.namespaces, &mut Find { cgroups: &cgroup.ids(), labelled: &mut Vec::new }, |_| true);
        receipts(self.flows.take())
    }
}

/// The members of one session.
fn of(members: Vec<Member>, session: SessionRef) -> Result<Vec<Member>, KernelError> {
    let own = |m: &Member| m.slot == session.slot && m.generation == session.generation;
    Ok(members.into_iter().filter(own).collect())
}

/// A receipt for each socket that was cut.
pub(super) fn receipts(cut: Vec<Cut>) -> Vec<SocketReceipt> {
    cut.into_iter().map(receipt).collect()
}

fn receipt(cut: Cut) -> SocketReceipt {
    let Found { socket, namespace, .. } = cut.found;
    let protocol = i32::from(socket.protocol);
    let (outcome, why) = match &cut.failure {
        None => (CutOutcome::Destroyed, None),
        Some(Failure::Refused(gone)) if gone.raw_os_error() == Some(libc::ENOENT) => (CutOutcome::Closed, None),
        Some(failure) => (CutOutcome::Silenced, Some(explain(protocol, failure))),
    };
    SocketReceipt {
        cookie: socket.cookie,
        protocol: protocol_name(protocol),
        netns: namespace,
        from: socket.local,
        to: (socket.remote.port() != 0).then_some(socket.remote),
        bytes_in: socket.bytes.map(|b| b.0),
        bytes_out: socket.bytes.map(|b| b.1),
        at_boot_ns: cut.when,
        outcome,
        gone: cut.gone,
        why,
    }
}
