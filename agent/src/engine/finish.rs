//! The end of a session: what its machine asks for, carried out in rounds until nothing is left, and the last record.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use tipstaff_common::{event::KINDS, session::SessionCounters};
use tracing::info;

use super::{Disarming, Engine, Live, complain, flows::AllCut, report::wire_took};
use crate::{
    api::wire::{self, Reply},
    evidence::{Body, Disarm, RECEIPTS_MAX, Receipt, Receipts, SessionEnd, Stuck, StuckTask, Text, Transition},
    kernel::{Member, Urgent, boot_now, ring},
    session::{Effect, EndReason, Input, Round, SessionId, State, Took},
    store::Kept,
};

/// Before the next round of an end, when something was left.
const PAUSE: Duration = Duration::from_millis(50);
/// A process that was killed so long ago and is still there is reported.
const STUCK_NS: u64 = 1_000_000_000;
/// So many of them at once.
const STUCK_MAX: usize = 64;

impl Engine {
    /// Does what a session's machine asks for, in its order.
    pub(super) fn carry_out(&mut self, id: SessionId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::SetDeadline { at_boot_ns } => self.set_deadline(id, at_boot_ns),
                Effect::Warn { due, left_ns } => {
                    self.warn(id, due, left_ns);
                    // the next agent does not warn again; after a kill just before this it does: rather twice than never
                    self.keep(id);
                }
                Effect::Terminate { until_boot_ns } => {
                    self.terminate(id, until_boot_ns);
                    // an agent that is killed before this leaves it to the next: rather twice than never
                    self.feed(id, Input::Asked);
                    self.keep(id);
                }
                Effect::Freeze => {
                    self.stop_members(id);
                    self.keep(id);
                }
                Effect::Thaw => {
                    self.keep(id);
                    self.let_go(id);
                }
                Effect::MarkEnded => {
                    // whatever computes in it would be asked for the processors first
                    self.urgent.get_or_insert_with(Urgent::begin);
                    self.mark_ended(id);
                    self.end_within(id);
                    self.cut(id);
                }
                Effect::Record { from, to, cause } => {
                    if to == State::Ended && self.sessions.get(&id).is_some_and(|live| live.said_over) {
                        continue;
                    }
                    // the store before the evidence: what is said must not be more than what the next agent knows
                    if to != State::Ended {
                        self.keep(id);
                    }
                    self.append_durable(&Body::State(Transition { session: id, from, to, cause }));
                }
                Effect::Sweep => self.schedule(id),
                Effect::Count => self.count(id),
                Effect::Finish { reason, members_left } => self.finish(id, reason, members_left),
            }
        }
    }

    fn set_deadline(&mut self, id: SessionId, at_boot_ns: u64) {
        // kept first: the next agent takes a moment that is over for over
        self.keep(id);
        let Some(live) = self.sessions.get(&id) else { return };
        complain("moving a deadline", self.parts.kernel.set_deadline(live.reference, at_boot_ns));
        self.shorten_within(id);
    }

    pub(super) fn mark_ended(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        complain("ending a session in the kernel", self.parts.kernel.mark_ended(live.reference));
        // another agent may have told the kernel before: its mark stands
        live.ending.get_or_insert_with(|| live.machine.ending(self.asked, boot_now()));
    }

    /// The first round at once, the next ones after a pause.
    pub(super) fn schedule(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let first = live.machine.rounds().is_empty();
        let pause = if first { 0 } else { u64::try_from(PAUSE.as_nanos()).unwrap_or(0) };
        live.next_round = Some(boot_now() + pause);
    }

    /// One round of the end.
    pub(super) fn round(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        live.next_round = None;
        let start = Instant::now();
        let urgent = self.urgent.take().unwrap_or_else(Urgent::begin);
        let swept = live.sweep.round(&mut self.parts.kernel, live.reference, &live.cgroup);
        drop(urgent);
        // what could not be looked at is not gone
        let (killed, left) = complain("sweeping a session", swept).unwrap_or((0, 1));
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if left > 0 {
            self.report_stuck(id);
        } else {
            live.empty.get_or_insert_with(boot_now);
        }
        self.feed(id, Input::Swept(Round { killed, left, ms }));
    }

    /// Says which processes were killed and cannot die yet, and what they do; again where it is others.
    fn report_stuck(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        if live.ending.is_none_or(|ending| boot_now().saturating_sub(ending.marked_boot_ns) < STUCK_NS) {
            return;
        }
        let left = live.sweep.killed.iter().filter(|(_, killed)| !killed.gone());
        let tasks: Vec<StuckTask> = left
            .take(STUCK_MAX)
            .map(|(pid, killed)| StuckTask { pid: *pid, name: Text::from(killed.name.as_slice()), state: doing(*pid) })
            .collect();
        let pids: Vec<u32> = tasks.iter().map(|task| task.pid).collect();
        if pids.is_empty() || pids == live.stuck {
            return;
        }
        live.stuck = pids;
        self.append_durable(&Body::Stuck(Stuck { session: id, tasks }));
    }

    pub(super) fn count(&mut self, id: SessionId) {
        self.urgent = None;
        let Some(live) = self.sessions.get(&id) else { return };
        let reference = live.reference;
        let members = complain("counting members", self.parts.kernel.members());
        let own = |m: &&Member| m.slot == reference.slot && m.generation == reference.generation;
        // what could not be counted is there: its slot must not be used again
        let left = members.map_or(1, |members| members.iter().filter(own).count() as u64);
        // who could not be moved back gets a label again at its next call
        let kept_in = |live: &Live| live.machine.reason() == Some(EndReason::StartFailed) && live.cgroup.is_populated();
        let left = left.max(u64::from(self.sessions.get(&id).is_some_and(kept_in)));
        self.feed(id, Input::Counted { left });
    }

    /// Writes the end, answers who waits, frees what the session held.
    fn finish(&mut self, id: SessionId, reason: EndReason, members_left: u64) {
        self.urgent = None;
        self.drain_some();
        let cut = self.confirm_cut(id);
        self.account_for(id);
        let Some(live) = self.sessions.remove(&id) else { return };
        let counters = complain("reading counters", self.parts.kernel.counters(live.reference.slot));
        let gone = (members_left == 0).then(|| live.empty.unwrap_or_else(boot_now));
        let took = live.ending.map(|ending| ending.took(gone, cut.last_boot_ns));
        took.iter().for_each(|took| self.ends.add(took));
        let end = session_end(id, &live, reason, (took, members_left, cut), &counters.unwrap_or_default());
        let mut receipts = receipts(&live);
        while receipts.len() > RECEIPTS_MAX {
            let rest = receipts.split_off(RECEIPTS_MAX);
            self.append(&Body::Receipts(Receipts { session: id, receipts }));
            receipts = rest;
        }
        self.append_durable(&Body::SessionEnd(SessionEnd { receipts, ..end }));
        info!("session {id} ended: {reason}");
        let killed = live.sweep.killed.len() as u64;
        let ms = live.ending.map_or(0, |ending| boot_now().saturating_sub(ending.marked_boot_ns) / 1_000_000);
        self.free(id, &live, members_left);
        self.rest_clock();
        for waiting in live.waiting {
            let (session, reason) = (id.to_string(), reason.to_string());
            waiting.finish(Ok(Reply::Ended(wire::Ended {
                session,
                reason,
                killed,
                members_left,
                ms,
                took: took.map(wire_took),
            })));
        }
        self.revoked(id, members_left);
        self.finish_disarm();
    }

    /// Takes the clock off where no session needs it.
    pub(super) fn rest_clock(&mut self) {
        if self.sessions.is_empty() {
            complain("taking the clock off", self.parts.kernel.disarm_clock(Some(&self.parts.pins)));
        }
    }

    /// A slot is used again only when nothing carries its label: members of an observed session run on with it.
    pub(super) fn free(&mut self, id: SessionId, live: &Live, members_left: u64) {
        for slot in live.retired.iter().chain([&live.policy_slot]) {
            complain("releasing a policy", self.policies.release(&mut self.parts.kernel, *slot));
        }
        if members_left > 0 {
            complain("keeping a session", self.parts.store.keep(&Kept { over: true, ..self.kept(live) }));
            self.linger(id, live.reference, live.cgroup.clone());
            return;
        }
        self.watch_files();
        self.forget(id);
        complain("releasing a session", self.parts.kernel.release(live.reference, live.cgroup.id()));
        self.slots.free(live.reference);
        self.leaving.push(live.cgroup.clone());
        self.remove_cgroups();
    }

    /// Removes the cgroups of sessions that are over; those that the kernel still holds wait for the next tick.
    pub(super) fn remove_cgroups(&mut self) {
        self.leaving.retain(|cgroup| complain("removing a cgroup", cgroup.remove()) == Some(false));
        let pause = u64::try_from(PAUSE.as_nanos()).unwrap_or(0);
        self.removal_due = (!self.leaving.is_empty()).then(|| boot_now() + pause);
    }

    /// With the last session gone, a disarm takes the programs off the host.
    pub(super) fn finish_disarm(&mut self) {
        if !self.sessions.is_empty() {
            return;
        }
        let Some(Disarming { reply, sessions, principal }) = self.disarming.take() else { return };
        let mut disarmed = wire::Disarmed { sessions: sessions.len() as u64, ..wire::Disarmed::default() };
        for cgroup in self.leaving.drain(..) {
            complain("removing a cgroup", cgroup.remove_patiently());
        }
        let pins = self.parts.config.paths.pins.display().to_string();
        match self.parts.pins.clear() {
            Ok(count) => disarmed.removed.push(format!("{pins} ({count} pins)")),
            Err(problem) => disarmed.left.push(problem.to_string()),
        }
        self.append_durable(&Body::Disarm(Disarm { principal, sessions }));
        reply.finish(Ok(Reply::Disarmed(disarmed)));
        self.done = true;
    }
}

/// What the kernel says that a process does: `T (stopped)` and the like, `gone` where there is none.
pub(super) fn doing(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.map_or_else(|| "gone".to_owned(), |state| state.trim().to_owned())
}

fn receipts(live: &Live) -> Vec<Receipt> {
    let swept = live.sweep.killed.iter().map(|(pid, k)| (*pid, k.name.as_slice(), k.gone()));
    let confirmed = live.confirmed.iter().filter(|(pid, _)| !live.sweep.killed.contains_key(pid));
    let all = swept.chain(confirmed.map(|(pid, name)| (*pid, name.as_slice(), true)));
    all.map(|(pid, name, gone)| Receipt { pid, name: Text::from(name), gone }).collect()
}

fn session_end(
    session: SessionId,
    live: &Live,
    reason: EndReason,
    (took, members_left, cut): (Option<Took>, u64, AllCut),
    counters: &SessionCounters,
) -> SessionEnd {
    let (produced, consumed, lost) = accounts(counters, &live.consumed);
    SessionEnd {
        session,
        reason,
        took,
        rounds: live.machine.rounds().to_vec(),
        receipts: Vec::new(),
        members_left,
        flows_cut: cut.all,
        flows_left: cut.left,
        produced,
        consumed,
        lost,
        packets_dropped: counters.packets_dropped,
        faults: counters.faults,
        signals_failed: counters.signals_failed,
    }
}

/// Produced, consumed and lost records by kind. What was neither read nor counted as lost by the kernel is lost too:
/// the three always add up, and never in our favour.
pub(super) fn accounts(
    counters: &SessionCounters,
    consumed: &[u64; KINDS],
) -> (BTreeMap<String, u64>, BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let lost = std::array::from_fn(|k| counters.produced[k].saturating_sub(consumed[k]));
    (named(counters.produced), named(*consumed), named(lost))
}

/// Counts by kind, by the kinds' names.
pub(super) fn named(values: [u64; KINDS]) -> BTreeMap<String, u64> {
    (0u16..).zip(values).filter_map(|(kind, count)| Some((ring::kind_name(kind)?.to_owned(), count))).collect()
}
