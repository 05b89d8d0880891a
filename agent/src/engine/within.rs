//! A session within a session: a member of one starts another, which may only be narrower and never outlasts it.

use std::{collections::BTreeSet, os::fd::BorrowedFd, time::Duration};

use tipstaff_common::{event::Header, label::SessionRef, limits, session::SessionConfig};
use tracing::info;

use super::{
    Engine, Live,
    check::Checked,
    complain,
    idle::Doings,
    narrow::{above, wider},
    start::failed,
};
use crate::{
    api::{server::Peer, wire::ApiError},
    duration,
    kernel::boot_now,
    policy::Candidate,
    session::{EndReason, Input, SessionId, State},
};

/// So many live at most within one that is in none: each takes a place in the kernel's tables, which have an end.
const WITHIN_MAX: usize = limits::WITHIN as usize;

/// What a session has of the one that it is within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) session: SessionId,
    /// Its label.
    pub(super) reference: SessionRef,
    /// `CLOCK_BOOTTIME` nanoseconds at which it ends at the latest.
    pub(super) until_boot_ns: u64,
    /// What it wrote, it wrote before its member started another session too.
    pub(super) written: SessionConfig,
}

impl Engine {
    /// The session that the caller is a member of; `None`: it is in none.
    ///
    /// # Errors
    /// Its members may start no other. That is counted as at the door, which the caller passed a moment ago.
    pub(super) fn outer(&mut self, caller: BorrowedFd<'_>, peer: &Peer) -> Result<Option<SessionId>, ApiError> {
        let Some(label) = self.parts.kernel.label_of(caller).map_err(failed)? else { return Ok(None) };
        let outer = self.sessions.iter().find(|(_, live)| live.reference == label);
        let may = outer.filter(|(_, live)| {
            live.policy.nested && live.machine.state() == State::Active && live.start.attached.is_none()
        });
        may.map(|(id, _)| Some(*id)).ok_or_else(|| self.refuse_member(peer, outer.map(|(id, _)| *id)))
    }

    /// Holds what was checked to the session that it is to be within.
    ///
    /// # Errors
    /// It is wider, that one is about to end, or there are too many.
    pub(super) fn fit_within(&mut self, session: SessionId, checked: &mut Checked) -> Result<(), ApiError> {
        let refused = |message: String, remedy: &str| ApiError::Refused { message, rule: None, remedy: remedy.into() };
        let above = above(&mut self.parts.kernel, &checked.policy, &checked.host).map_err(failed)?;
        // what the inner rules were found to name, those of the outer session know too
        self.refresh_now();
        self.check_digests(session, &checked.plan)?;
        let Some(live) = self.sessions.get(&session) else { return Err(ApiError::Member {}) };
        let candidate = Candidate { policy: &checked.policy, host: &checked.host, plan: &checked.plan, above: &above };
        if let Some(wider) = wider(live, &candidate) {
            let message = format!("policy {} is wider than that of session {session:.8}: {wider}", checked.policy.name);
            return Err(refused(message, "a session within another can only be narrower: allow less"));
        }
        let outermost = self.outermost(session);
        if self.all_within(outermost).len() >= WITHIN_MAX {
            let message = format!("{WITHIN_MAX} sessions live within session {outermost:.8}, which is as many as can");
            return Err(refused(message, "wait until one of them has ended"));
        }
        let Some(live) = self.sessions.get(&session) else { return Err(ApiError::Member {}) };
        // what it is ended for by idleness is not known before
        let until_boot_ns = live.machine.limits().first(true).at_boot_ns;
        let left = Duration::from_nanos(until_boot_ns.saturating_sub(boot_now()));
        if left < checked.ttl {
            checked.ttl = left;
            checked.winner = "outer session";
            checked
                .notes
                .push(format!("session {session:.8}, which it is within, ends it after {}", duration::format(left)));
        }
        let written = self.parts.kernel.config(live.reference.slot).map_err(failed)?;
        checked.outer = Some(Outer { session, reference: live.reference, until_boot_ns, written });
        Ok(())
    }

    /// The sessions that live within this one, not those within them.
    fn within(&self, outer: SessionId) -> Vec<SessionId> {
        let own = self.sessions.iter().filter(|(_, live)| live.start.within == Some(outer));
        own.filter(|(_, live)| live.machine.reason().is_none()).map(|(id, _)| *id).collect()
    }

    /// As [`Engine::within`], and those within them.
    pub(super) fn all_within(&self, outer: SessionId) -> Vec<SessionId> {
        let mut found = self.within(outer);
        let mut next = 0;
        while let Some(id) = found.get(next) {
            found.extend(self.within(*id));
            next += 1;
        }
        found
    }

    fn outermost(&self, session: SessionId) -> SessionId {
        self.outers(session).last().copied().unwrap_or(session)
    }

    /// The sessions that this one is within, the nearest first.
    pub(super) fn outers(&self, session: SessionId) -> Vec<SessionId> {
        let outer = |id: &SessionId| self.sessions.get(id)?.start.within;
        std::iter::successors(outer(&session), outer).collect()
    }

    /// From here on what is done in this session counts for those that it is within, by what each of them counts. `begins`:
    /// all of it does, and not what comes after this look.
    pub(super) fn watch_within(&mut self, inner: SessionId, begins: bool) {
        let Some(live) = self.sessions.get(&inner) else { return };
        let (pid, slot) = (live.first_process.pid, live.reference.slot);
        for outer in self.outers(inner) {
            let Some(live) = self.sessions.get_mut(&outer) else { continue };
            let Some(idle) = live.rules.idle.as_ref() else { continue };
            if live.doings_within.contains_key(&inner) {
                continue;
            }
            let mut doings = Doings::of(&idle.activity, pid);
            if !begins && let Some(counters) = complain("reading counters", self.parts.kernel.counters(slot)) {
                doings.carried(&counters);
            }
            live.doings_within.insert(inner, doings);
        }
    }

    /// A record of a session says when those that it is within did something.
    pub(super) fn record_for_outer(&mut self, inner: SessionId, header: &Header) {
        for outer in self.outers(inner) {
            if let Some(live) = self.sessions.get_mut(&outer) {
                live.doings.record(header);
            }
        }
    }

    /// Looks at what was done within a session, for its idle limit.
    pub(super) fn look_within(&mut self, outer: SessionId, now_boot_ns: u64) {
        for inner in self.all_within(outer) {
            self.watch_within(inner, false);
            self.tell_outer(inner, now_boot_ns);
        }
    }

    /// As [`Engine::look_within`], for all that this one is within.
    pub(super) fn tell_outer(&mut self, inner: SessionId, now_boot_ns: u64) {
        let outers = self.outers(inner);
        let Some(live) = self.sessions.get(&inner).filter(|_| !outers.is_empty()) else { return };
        let (slot, consumed) = (live.reference.slot, live.consumed);
        let Some(counters) = complain("reading counters", self.parts.kernel.counters(slot)) else { return };
        for outer in outers {
            let Some(live) = self.sessions.get_mut(&outer) else { continue };
            let last = live.doings_within.get_mut(&inner).and_then(|d| d.look(&counters, &consumed, now_boot_ns));
            if let Some(last) = last {
                live.doings.did(last);
            }
        }
    }

    /// What befalls a session befalls those within it.
    pub(super) fn feed_within(&mut self, outer: SessionId, input: Input) {
        for id in self.within(outer) {
            self.feed(id, input);
        }
    }

    /// After a deadline moved: the kernel holds those within to it as well.
    pub(super) fn shorten_within(&mut self, outer: SessionId) {
        let Some(live) = self.sessions.get(&outer) else { return };
        let (ttl_boot_ns, now_boot_ns) = (live.machine.limits().first(true).at_boot_ns, boot_now());
        for id in self.within(outer) {
            let longer = |live: &Live| ttl_boot_ns < live.machine.limits().ttl_boot_ns;
            if let Some(live) = self.sessions.get_mut(&id).filter(|live| longer(live)) {
                live.winner = "outer session";
                self.feed(id, Input::Renew { now_boot_ns, ttl_boot_ns });
            }
        }
    }

    /// After an end: nothing outlives the session that it is within.
    pub(super) fn end_within(&mut self, outer: SessionId) {
        let Some(reason) = self.sessions.get(&outer).and_then(|live| live.machine.reason()) else { return };
        let within = self.within(outer);
        within.iter().for_each(|id| info!("session {id} ends with session {outer}, which it is within"));
        self.feed_all(within.into_iter().map(|id| (id, Input::End { reason })));
    }

    /// After a narrowing: what is wider than its outer session now, ends.
    pub(super) fn end_wider_within(&mut self, outer: SessionId) {
        for id in self.within(outer) {
            if !self.fits_still(outer, id) {
                info!("session {id} ends: session {outer}, which it is within, was narrowed");
                self.feed(id, Input::End { reason: EndReason::ContextChanged });
            }
        }
    }

    /// What cannot be compared does not fit.
    fn fits_still(&mut self, outer: SessionId, inner: SessionId) -> bool {
        let (Some(inner), Some(live)) = (self.sessions.get(&inner), self.sessions.get(&outer)) else { return true };
        let Ok(above) = above(&mut self.parts.kernel, &inner.policy, &inner.host) else { return false };
        let candidate = Candidate { policy: &inner.policy, host: &inner.host, plan: &inner.plan, above: &above };
        live.policy.nested && wider(live, &candidate).is_none()
    }

    /// With another agent: what is within a session that is over by now, ends.
    pub(super) fn end_left_within(&mut self) {
        let gone = |outer: &SessionId| self.sessions.get(outer).is_none_or(|live| live.machine.reason().is_some());
        let left: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, live)| live.machine.reason().is_none() && live.start.within.as_ref().is_some_and(gone))
            .map(|(id, _)| *id)
            .collect();
        for id in left {
            self.feed(id, Input::End { reason: EndReason::ContextChanged });
        }
        // an agent may have died between the narrowing of a session and this
        let outer: BTreeSet<SessionId> = self.sessions.values().filter_map(|live| live.start.within).collect();
        for id in outer {
            self.shorten_within(id);
            self.end_wider_within(id);
        }
    }
}
