//! The end of a session: what its machine asks for, carried out in rounds until nothing is left, and the last record.

use std::{collections::BTreeMap, fs, time::Duration};

use tipstaff_common::{event::KINDS, session::SessionCounters};
use tracing::info;

use super::{Disarming, Engine, Live, complain, flows::AllCut, report::wire_took};
use crate::{
    api::wire::{self, Reply},
    evidence::{Body, Disarm, RECEIPTS_MAX, Receipt, Receipts, SessionEnd, Stuck, StuckTask, Text, Transition},
    kernel::{Urgent, boot_now, ring},
    session::{Effect, EndReason, SessionId, State, Took},
    store::Kept,
};

/// Before the next round of an end, when something was left.
const PAUSE: Duration = Duration::from_millis(50);
/// A process that was killed so long ago and is still there is reported.
const STUCK_NS: u64 = 1_000_000_000;
/// So many of them at once.
const STUCK_MAX: usize = 64;

/// A session that is over.
pub(super) struct Over {
    pub(super) id: SessionId,
    pub(super) reason: EndReason,
    pub(super) members_left: u64,
}

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
                Effect::Terminate { until_boot_ns } => self.terminate(&[(id, until_boot_ns)]),
                Effect::Freeze => {
                    self.stop_members(id);
                    self.keep(id);
                }
                Effect::Thaw => {
                    self.keep(id);
                    self.let_go(id);
                }
                Effect::MarkEnded if self.together.contains(&id) => self.end_within(id),
                Effect::MarkEnded => {
                    // whatever computes in it would be asked for the processors first
                    self.urgent.get_or_insert_with(Urgent::begin);
                    self.mark_ended(id);
                    self.end_within(id);
                    self.cut(&[id]);
                }
                Effect::Record { from, to, cause } => {
                    if to == State::Ended && self.sessions.get(&id).is_some_and(|live| live.said_over) {
                        continue;
                    }
                    // the store before the evidence: what is said must not be more than what the next agent knows
                    if to != State::Ended && !self.together.contains(&id) {
                        self.keep(id);
                    }
                    self.append_durable(&Body::State(Transition { session: id, from, to, cause }));
                }
                Effect::Sweep => self.schedule(id),
                Effect::Count => self.count(&[id]),
                Effect::Finish { reason, members_left } => self.finish(vec![Over { id, reason, members_left }]),
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

    /// Says which processes were killed and cannot die yet, and what they do; again where it is others.
    pub(super) fn report_stuck(&mut self, id: SessionId) {
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

    /// Writes the ends of sessions, answers who waits, frees what they held.
    pub(super) fn finish(&mut self, over: Vec<Over>) {
        if over.is_empty() {
            return;
        }
        self.urgent = None;
        self.drain_some();
        let ids: Vec<SessionId> = over.iter().map(|over| over.id).collect();
        let mut cuts = self.confirm_cut(&ids);
        let mut written = Vec::new();
        for Over { id, reason, members_left } in over {
            if members_left > 0 {
                // they run on, and wrote while others' ends were written
                self.drain_some();
            }
            self.account_for(id);
            self.record_refused_calls_of(id);
            self.tell_outer(id, boot_now());
            self.sessions.values_mut().for_each(|live| drop(live.doings_within.remove(&id)));
            let Some(live) = self.sessions.remove(&id) else { continue };
            let cut = cuts.remove(&id).unwrap_or_default();
            let took = self.write_end(id, &live, reason, (members_left, cut));
            let ended = wire::Ended {
                session: id.to_string(),
                reason: reason.to_string(),
                killed: live.sweep.killed.len() as u64,
                members_left,
                ms: live.ending.map_or(0, |ending| boot_now().saturating_sub(ending.marked_boot_ns) / 1_000_000),
                took: took.map(wire_took),
            };
            written.push((id, live, ended));
        }
        self.tell_door();
        // before the store forgets them: a session that is recorded always has an end, whoever writes it
        self.flush();
        self.free(&written.iter().map(|(id, live, ended)| (*id, live, ended.members_left)).collect::<Vec<_>>());
        self.rest_clock();
        for (id, live, ended) in written {
            let members_left = ended.members_left;
            live.waiting.into_iter().for_each(|waiting| waiting.finish(Ok(Reply::Ended(ended.clone()))));
            self.revoked(id, members_left);
        }
        self.finish_disarm();
    }

    /// Writes the last record of a session. How long its end took.
    fn write_end(
        &mut self,
        id: SessionId,
        live: &Live,
        reason: EndReason,
        (members_left, cut): (u64, AllCut),
    ) -> Option<Took> {
        let counters = complain("reading counters", self.parts.kernel.counters(live.reference.slot));
        let gone = (members_left == 0).then(|| live.empty.unwrap_or_else(boot_now));
        let took = live.ending.map(|ending| ending.took(gone, cut.last_boot_ns));
        took.iter().for_each(|took| self.ends.add(took));
        let end = session_end(id, live, reason, (took, members_left, cut), &counters.unwrap_or_default());
        let mut receipts = receipts(live);
        while receipts.len() > RECEIPTS_MAX {
            let rest = receipts.split_off(RECEIPTS_MAX);
            self.append(&Body::Receipts(Receipts { session: id, receipts }));
            receipts = rest;
        }
        self.append(&Body::SessionEnd(SessionEnd { receipts, ..end }));
        info!("session {id} ended: {reason}");
        took
    }

    /// Takes the clock off where no session needs it.
    pub(super) fn rest_clock(&mut self) {
        if self.sessions.is_empty() {
            complain("taking the clock off", self.parts.kernel.disarm_clock(Some(&self.parts.pins)));
        }
    }

    /// Frees what sessions held that are over, each with how many members it left. A slot is used again only when nothing carries
    /// its label: members of an observed session run on with it.
    pub(super) fn free(&mut self, over: &[(SessionId, &Live, u64)]) {
        for slot in over.iter().flat_map(|(_, live, _)| live.retired.iter().chain([&live.policy_slot])) {
            complain("releasing a policy", self.policies.release(&mut self.parts.kernel, *slot));
        }
        let (gone, left): (Vec<_>, Vec<_>) = over.iter().partition(|(_, _, members_left)| *members_left == 0);
        for (id, live, _) in left {
            complain("keeping a session", self.parts.store.keep(&Kept { over: true, ..self.kept(live) }));
            self.linger(id, live.reference, live.cgroup.clone());
        }
        if gone.is_empty() {
            return;
        }
        self.watch_files();
        self.forget_all(&gone.iter().map(|(id, ..)| *id).collect::<Vec<_>>());
        let places: Vec<_> = gone.iter().map(|(_, live, _)| (live.reference, live.cgroup.id())).collect();
        complain("releasing sessions", self.parts.kernel.release(&places));
        for (_, live, _) in gone {
            self.slots.free(live.reference);
            self.leaving.push(live.cgroup.clone());
        }
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
