//! The flows of a session: where they are looked for while it lives, and the cut with its receipts.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
    rc::Rc,
};

use tipstaff_common::label::SessionRef;
use tracing::debug;

use super::{Engine, complain, recover::InForce};
use crate::{
    enforce::{Cut, Failure, Flows, Found, Look, Registry, SessionCgroup, Whose, explain, protocol_name},
    evidence::{Body, CutCause, CutOutcome, FlowsCut, RECEIPTS_MAX, SocketReceipt},
    kernel::{Kernel, Member, Socket, open_pidfd, ring::Event},
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

    /// Keeps hold of the network namespaces of sessions that had members before, as far as members are in them.
    pub(super) fn see_again(&mut self, ids: &[SessionId]) {
        if let Some(members) = complain("looking for network namespaces", self.parts.kernel.members()) {
            for id in ids {
                self.see_namespaces(*id, &members);
            }
        }
    }

    /// True: a member is in a namespace that was not seen before.
    fn see_namespaces(&mut self, id: SessionId, members: &[Member]) -> bool {
        let Some(live) = self.sessions.get_mut(&id) else { return false };
        let (kernel, reference) = (&self.parts.kernel, live.reference);
        let is_member = |process: BorrowedFd<'_>, _| Ok(kernel.label_of(process)? == Some(reference));
        let walked = live.flows.namespaces.walk(&mut self.namespaces, of(members, reference), is_member);
        complain("looking for network namespaces", walked) == Some(true)
    }

    /// Destroys the sockets of sessions, which the kernel's mark silenced, while their owners live: the kernel tells the
    /// other end of a socket that has an owner.
    pub(super) fn cut(&mut self, ids: &[SessionId]) {
        self.label_crossed(ids);
        let enforces = |id: &SessionId| self.sessions.get(id).is_some_and(|l| l.machine.mode() != Mode::Observe);
        let ids: Vec<SessionId> = ids.iter().copied().filter(enforces).collect();
        if ids.is_empty() {
            return;
        }
        // where they are known to be first: looking for more takes longer
        self.destroy(&ids);
        let Some(members) = complain("looking for network namespaces", self.parts.kernel.members()) else { return };
        let all = ids.clone();
        let more: Vec<SessionId> = ids.into_iter().filter(|id| self.see_namespaces(*id, &members)).collect();
        if !more.is_empty() {
            self.destroy(&more);
        }
        let reached: Vec<SessionId> = all.into_iter().filter(|id| self.see_left_behind(*id)).collect();
        if !reached.is_empty() {
            self.destroy(&reached);
        }
    }

    fn destroy(&mut self, ids: &[SessionId]) {
        let (whose, cgroups) = self.whose(ids);
        let mut labels = || labelled(&mut self.parts.kernel);
        let mut look = Look::new(cgroups, &mut labels);
        for (id, whose) in &whose {
            if let Some(live) = self.sessions.get_mut(id) {
                live.flows.cut(&mut self.namespaces, &mut look, whose, |_| true);
            }
        }
    }

    /// What makes sockets these sessions', and all of their cgroups.
    fn whose(&self, ids: &[SessionId]) -> (Vec<(SessionId, Whose)>, Vec<u64>) {
        let there = ids.iter().filter_map(|id| Some((*id, self.sessions.get(id)?)));
        let whose: Vec<_> = there.map(|(id, live)| (id, whose(live.reference, &live.cgroup))).collect();
        let cgroups = whose.iter().flat_map(|(_, whose)| whose.cgroups.iter().copied()).collect();
        (whose, cgroups)
    }

    /// Judges a session's open flows by the scope that it was narrowed to. What fails is refused packet by packet since
    /// the flip; here it is destroyed, and the rest goes on.
    pub(super) fn cut_out_of_scope(&mut self, id: SessionId) {
        self.label_crossed(&[id]);
        if self.sessions.get(&id).is_none_or(|live| live.machine.mode() == Mode::Observe) {
            return;
        }
        self.see_again(&[id]);
        let cut = |engine: &mut Self| {
            let Some(live) = engine.sessions.get_mut(&id) else { return };
            let (plan, whose) = (Rc::clone(&live.plan), whose(live.reference, &live.cgroup));
            let mut labels = || labelled(&mut engine.parts.kernel);
            let mut look = Look::new(whose.cgroups.clone(), &mut labels);
            live.flows.cut(&mut engine.namespaces, &mut look, &whose, |found| !in_scope(&plan, found));
        };
        cut(self);
        if self.see_left_behind(id) {
            cut(self);
        }
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let (plan, whose) = (Rc::clone(&live.plan), whose(live.reference, &live.cgroup));
        let mut labels = || labelled(&mut self.parts.kernel);
        let mut look = Look::new(whose.cgroups.clone(), &mut labels);
        live.flows.confirm(&mut self.namespaces, &mut look, &whose, |found| !in_scope(&plan, found));
        let (receipts, revision) = (receipts(live.flows.take()), Some(live.revision));
        records(id, CutCause::Narrow, revision, &receipts).iter().for_each(|record| self.append_durable(record));
    }

    /// Looks for the sockets of sessions once more, and writes a receipt for each. What became of them, where there may be any.
    pub(super) fn confirm_cut(&mut self, ids: &[SessionId]) -> BTreeMap<SessionId, AllCut> {
        let (whose, cgroups) = self.whose(ids);
        let mut labels = || labelled(&mut self.parts.kernel);
        let mut look = Look::new(cgroups, &mut labels);
        let mut cut = Vec::new();
        for (id, whose) in &whose {
            let live = self.sessions.get_mut(id).filter(|live| live.machine.mode() != Mode::Observe);
            let Some(live) = live else { continue };
            live.flows.confirm(&mut self.namespaces, &mut look, whose, |_| true);
            cut.push((*id, receipts(live.flows.take()), live.revision));
        }
        let mut all = BTreeMap::new();
        for (id, receipts, revision) in cut {
            let records = records(id, CutCause::End, Some(revision), &receipts);
            records.iter().for_each(|record| self.append(record));
            let (count, left) = counts(&receipts);
            let last = receipts.iter().map(|receipt| receipt.at_boot_ns).max();
            all.insert(id, AllCut { all: count, left, last_boot_ns: last.filter(|_| left == 0) });
        }
        all
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
    if found.crossed {
        return false;
    }
    let (local, remote, protocol) = (found.socket.local, found.socket.remote, found.socket.protocol);
    let decision = match (remote.port(), found.passive) {
        (0, true) => plan.judge_listen(local.ip(), local.port(), protocol),
        (0, false) => return true,
        (_, true) => plan.judge_inbound(remote.ip(), local.port(), protocol),
        (_, false) => plan.judge_net(remote.ip(), remote.port(), protocol),
    };
    decision.verdict != policy::Effect::Deny
}

/// The sockets that carry a label.
pub(super) fn labelled(kernel: &mut Kernel) -> Vec<Socket> {
    complain("reading the labels of sockets", kernel.sockets()).unwrap_or_default()
}

/// A session's sockets are those that carry its label or were made in its cgroup, or below it.
pub(super) fn whose(session: SessionRef, cgroup: &SessionCgroup) -> Whose {
    Whose { session, cgroups: cgroup.ids() }
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
        let members = complain("looking for network namespaces", force.labelled()).unwrap_or_default();
        let mut again = None;
        // a process that is listed again while its pidfd is open is the one that was opened
        let is_member = |_: BorrowedFd<'_>, pid| {
            let listed = match &mut again {
                Some(listed) => listed,
                none => none.insert(force.labelled()?),
            };
            Ok(of(listed, session).any(|member| member.tgid == pid))
        };
        let walked = self.flows.namespaces.walk(&mut self.namespaces, of(&members, session), is_member);
        complain("looking for network namespaces", walked);
        let (whose, mut none) = (whose(session, cgroup), Vec::new);
        let mut look = Look::new(whose.cgroups.clone(), &mut none);
        self.flows.cut(&mut self.namespaces, &mut look, &whose, |_| true);
    }

    /// Looks for them once more; a receipt for each.
    pub(super) fn confirm(&mut self, cgroup: &SessionCgroup) -> Vec<SocketReceipt> {
        // by the cgroup alone
        let (whose, mut none) = (whose(SessionRef::default(), cgroup), Vec::new);
        let mut look = Look::new(whose.cgroups.clone(), &mut none);
        self.flows.confirm(&mut self.namespaces, &mut look, &whose, |_| true);
        receipts(self.flows.take())
    }
}

/// The members of one session.
pub(super) fn of(members: &[Member], session: SessionRef) -> impl Iterator<Item = &Member> {
    members.iter().filter(move |m| m.slot == session.slot && m.generation == session.generation)
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
