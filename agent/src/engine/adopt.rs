//! A new agent goes on with the sessions of an earlier one: their state from the store, what they did from the evidence
//! and the counters, what is enforced from the kernel, which was never without it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
    time::Duration,
};

use nix::unistd::{getegid, geteuid};
use tipstaff_common::{
    label::SessionRef,
    rule::PortRule,
    session::{STATE_ACTIVE, STATE_ENDED, STATE_UNDONE},
};
use tracing::{info, warn};

use super::{
    Engine, Live, complain,
    crossed::Seen,
    history::{History, LastRecords},
    idle::Doings,
    limits,
    recover::RecoverError,
    resolve,
    spent::Spent,
    stale::LastSeen,
    start::{started, watch},
    taken::undo,
};
use crate::{
    enforce::{Flows, SessionCgroup, Sweep},
    evidence::{Body, Command, Gap, GapCause, Log, Principal, Transition},
    kernel::{AddressRules, boot_now, open_pidfd},
    policy::{self, AgentLoss, Limits, NetKey, NetTable, Plan, Policy, Resolved},
    session::{Cause, Effect, EndReason, Input, Mode, SessionId, State},
    store::{Kept, Narrowed},
};

/// A record that was being written to its ring when the counters were read is there after this long.
const SETTLE: Duration = Duration::from_millis(2);

/// What the evidence says of the time before this agent; read before it writes.
#[derive(Debug)]
pub struct Past(History);

impl Past {
    /// Reads the evidence for the sessions that go on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(log: &Log, going_on: &[Kept], in_force: bool) -> Result<Self, RecoverError> {
        let ids: Vec<SessionId> = going_on.iter().map(|k| k.start.session).collect();
        Ok(Self(History::read(log, &ids, in_force)?))
    }
}

impl Engine {
    /// Takes over what an earlier agent left in the kernel: sessions go on, or end for their own reasons; what nobody can
    /// answer for is ended and said to be.
    ///
    /// # Errors
    /// The maps or the evidence cannot be read or written.
    pub fn adopt(&mut self, kept: &[Kept], past: Past) -> Result<(), RecoverError> {
        let mut history = past.0;
        let mut firsts = BTreeMap::new();
        for session in kept {
            if let Some(first) = self.take_over(session, &mut history)? {
                firsts.insert(session.start.session, first);
            }
        }
        if !firsts.is_empty() {
            self.see_again(&firsts.keys().copied().collect::<Vec<_>>());
        }
        self.catch_up(&mut history)?;
        self.end_orphans(kept, &mut history)?;
        let resume = |(id, first)| self.resume(id, first, &mut history).map(|input| (id, input));
        let inputs: Vec<_> = firsts.into_iter().filter_map(resume).collect();
        self.feed_all(inputs);
        self.end_left_within();
        self.tell_door();
        self.record_reuses(&history.reuses);
        self.refresh();
        self.flush();
        Ok(())
    }

    /// Makes one kept session live again. `None`: it is not.
    fn take_over(&mut self, kept: &Kept, history: &mut History) -> Result<Option<Option<OwnedFd>>, RecoverError> {
        let id = kept.start.session;
        let reference = SessionRef { slot: kept.slot, generation: kept.generation };
        let written = history.of(id);
        let (generation, state) = self.parts.kernel.state(kept.slot)?;
        let in_force = generation == kept.generation && matches!(state, STATE_ACTIVE | STATE_ENDED | STATE_UNDONE);
        let cgroup = SessionCgroup::existing(kept.cgroup.clone());
        // the agent may have died between the last record and the note that members are left
        let over = kept.over || (written.ended && kept.machine.mode() == Mode::Observe);
        if let (true, true, Some(cgroup)) = (over, in_force, &cgroup) {
            self.slots.claim(reference);
            complain("keeping a session", self.parts.store.keep(&Kept { over: true, ..kept.clone() }));
            self.linger(id, reference, cgroup.clone());
            return Ok(None);
        }
        // an end that was written only has to be tidied up after; a start that was not never had a member
        if kept.over || written.ended || !written.started || !in_force {
            if !kept.over && !written.ended && written.started {
                self.gap(format!("session {id} is kept, and the kernel does not know it: it is not gone on with"));
            }
            self.forget(id);
            return Ok(None);
        }
        let config = self.parts.kernel.config(kept.slot)?;
        let found = kept;
        // a narrowing is kept before it is in force: one that was begun is finished
        let (kept, begun) = &kept.clone().settled(config.policy, |slot| self.parts.kernel.revision(slot))?;
        if config.scopes > kept.revision() {
            // its text says more than is in force: whatever is looked at again by it would be wider
            let (scopes, known) = (config.scopes, kept.revision());
            self.gap(format!(
                "session {id} cannot go on and is ended: the kernel holds it to its scope number {scopes}, and what is \
                 kept of it in the store is of its scope number {known}"
            ));
            return Ok(None);
        }
        let policy_slot = if *begun { kept.policy_slot } else { config.policy };
        let revision = self.parts.kernel.revision(policy_slot)?;
        let Some((cgroup, [began, policy], host, plan)) = self.whole(kept, cgroup, revision) else { return Ok(None) };
        let budgets = policy.budgets.stricter(policy::Budgets::from_kernel(config.budgets));
        if *begun {
            self.parts.kernel.set_budgets(reference, budgets.for_kernel())?;
            self.parts.kernel.set_policy(reference, policy_slot)?;
        }
        if !self.slots.claim(reference) {
            return Ok(None);
        }
        self.policies.adopt(policy_slot, revision);
        self.parts.kernel.set_scopes(reference, kept.revision())?;
        let first = find_first(kept, |process| self.parts.kernel.label_of(process).ok().flatten() == Some(reference));
        let first_again = first.as_ref().and_then(|f| f.try_clone().ok());
        let mut doings = Doings::watch(&began, kept.first.pid);
        let counters = self.parts.kernel.counters(kept.slot)?;
        doings.go_on(&counters.produced, &counters.lost, &written.last);
        let narrowed = kept.narrowed.clone();
        let (longest, rules) = held_to(&began, narrowed.as_ref());
        let policy = Policy { budgets, ..policy };
        let live = Live {
            machine: kept.machine.clone(),
            reference,
            cgroup,
            policy,
            policy_text: kept.policy.clone(),
            start_text: kept.start_text().clone(),
            source: narrowed.as_ref().map_or_else(|| kept.start.policy.source.clone(), |n| n.source.clone()),
            revision: kept.revision(),
            phase: narrowed.as_ref().and_then(|n| n.phase.clone()),
            removed: narrowed.map(|n| n.removed).unwrap_or_default(),
            host,
            retired: Vec::new(),
            rules,
            longest,
            plan: Rc::new(plan),
            policy_slot,
            start: kept.start.clone(),
            winner: limits::winner(&kept.winner),
            started: kept.started,
            consumed: written.counts,
            denied: written.denied,
            verdicts: written.verdicts.clone(),
            doings,
            doings_within: BTreeMap::new(),
            last_seen: LastSeen::again(kept.first.pid, kept.started, &counters, &written.last),
            user_gone: written.gone,
            still: None,
            sweep: Sweep::default(),
            flows: Flows::default(),
            crossed: Seen::default(),
            spent: Spent::default(),
            confirmed: written.killed.iter().map(|pid| (*pid, Vec::new())).collect(),
            next_round: None,
            ending: kept.ending,
            empty: written.over_boot_ns,
            stuck: Vec::new(),
            said_over: written.over_boot_ns.is_some(),
            waiting: Vec::new(),
            reported: written.reported,
            reported_at: history.last.clone(),
            first_process: kept.first,
            first,
            to_lay_down: None,
        };
        let settled = self.kept(&live) != *found;
        self.sessions.insert(id, live);
        if settled {
            self.keep(id);
        }
        Ok(Some(first_again))
    }

    /// What a session needs beside the kernel: its cgroup, the policies that it began under and is held to, and the plan
    /// that is in force.
    fn whole(
        &mut self,
        kept: &Kept,
        cgroup: Option<SessionCgroup>,
        revision: u32,
    ) -> Option<(SessionCgroup, [Policy; 2], Resolved, Plan)> {
        let id = kept.start.session;
        let read = cgroup.ok_or_else(|| "its cgroup is gone".to_owned()).and_then(|cgroup| {
            let first = |problems: Vec<policy::Problem>| problems.first().map(ToString::to_string).unwrap_or_default();
            let parse = |text: &str| policy::parse(&kept.start.policy.source, text.as_bytes()).map_err(first);
            let (began, policy) = (parse(kept.start_text())?, parse(&kept.policy)?);
            let (policy, host, plan) = self.plan_in_force(policy, kept, revision)?;
            Ok((cgroup, [began, policy], host, plan))
        });
        read.map_err(|why| self.gap(format!("session {id} cannot go on and is ended: {why}"))).ok()
    }

    /// The plan as it stands in the kernel: which files and resolvers its rules name was settled when it was put there,
    /// whatever the paths lead to by now, and whether or not the host can be asked.
    fn plan_in_force(
        &mut self,
        mut policy: Policy,
        kept: &Kept,
        revision: u32,
    ) -> Result<(Policy, Resolved, Plan), String> {
        let narrowed = kept.narrowed.as_ref();
        let kernel = &mut self.parts.kernel;
        let mut host = resolve::programs(kernel, &mut self.digests, &policy);
        if let Some(narrowed) = narrowed {
            let less = policy.without(&host, &narrowed.removed);
            (policy, host) = less.map_err(|(rule, _)| format!("its policy has no rule {rule} to be without"))?;
            policy.digest.clone_from(&narrowed.digest);
        }
        if !kept.named.put(&mut host) {
            return Err("what its rules named is kept of other rules".into());
        }
        let mut plan = policy::compile(&policy, &host)
            .map_err(|problems| problems.first().map(ToString::to_string).unwrap_or_default())?;
        if let Some(narrowed) = narrowed {
            plan = plan.renumbered(&narrowed.rules).ok_or("its policies had too many rules")?;
        }
        let exec = kernel.exec_rules(revision).map_err(|e| e.to_string())?.into_iter().collect();
        let unix = kernel.unix_rules(revision).map_err(|e| e.to_string())?.into_iter().collect();
        let net = kernel.address_rules(revision).map_err(|e| e.to_string())?.map(net_table);
        plan.put(exec, unix, net);
        host.as_pinned(&policy, &plan);
        Ok((policy, host, plan))
    }

    /// Reads what the rings kept while no agent ran, and says what they could not keep.
    fn catch_up(&mut self, history: &mut History) -> Result<(), RecoverError> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        self.written_already = std::mem::take(&mut history.last_records);
        let mut before = BTreeMap::new();
        for (id, live) in &self.sessions {
            before.insert(*id, self.parts.kernel.counters(live.reference.slot)?);
        }
        let kept_before: u64 = self.sessions.values().map(|l| l.consumed.iter().sum::<u64>()).sum();
        self.drain_some();
        std::thread::sleep(SETTLE);
        self.drain_some();
        self.written_already = LastRecords::default();
        let read: u64 = self.sessions.values().map(|l| l.consumed.iter().sum::<u64>()).sum::<u64>() - kept_before;
        // what was produced, and neither read nor counted by the ring: taken by an agent that could not write it
        let short = |(id, counters): (&SessionId, &tipstaff_common::session::SessionCounters)| {
            let consumed: u64 = self.sessions.get(id).map_or(0, |l| l.consumed.iter().sum());
            counters.produced.iter().sum::<u64>().saturating_sub(consumed + counters.lost.iter().sum::<u64>())
        };
        let lost = before.iter().map(short).sum();
        let detail = format!("no agent ran; the rings kept {read} records, which were read now");
        let gap = Gap {
            lost: Some(lost),
            since: history.last.clone(),
            detail: Some(detail),
            ..Gap::new(GapCause::AgentAbsent)
        };
        self.append(&Body::Gap(gap));
        self.account();
        Ok(())
    }

    /// Lets a session go on from where it was. What its machine is to be told: of those that end, all ends are one.
    fn resume(&mut self, id: SessionId, first: Option<OwnedFd>, history: &mut History) -> Option<Input> {
        let said = history.of(id).state.unwrap_or(State::Starting);
        let live = self.sessions.get(&id)?;
        let (state, reason, mode, reference) =
            (live.machine.state(), live.machine.reason(), live.machine.mode(), live.reference);
        let (deadline, limit) = (live.machine.armed().at_boot_ns, live.machine.armed().reason);
        let in_grace = reason.is_some() && live.machine.wakes_at().is_some();
        let ends = live.rules.agent_loss == AgentLoss::End;
        let ran_before = live.start.attached.is_some().then(|| (live.cgroup.clone(), live.home()));
        info!("session {id} goes on, {state}");
        if said != state && said != State::Ended {
            // the agent died between the state and its record
            let cause = reason.map_or(Cause::Labelled, Cause::End);
            self.append_durable(&Body::State(Transition { session: id, from: said, to: state, cause }));
        }
        if reason.is_some() && !in_grace {
            self.mark_ended(id);
            match mode {
                Mode::Enforce => self.schedule(id),
                Mode::Observe => self.count(&[id]),
            }
            return None;
        }
        // the caller was never answered
        if state == State::Starting {
            if let Some((cgroup, home)) = ran_before {
                // and runs on
                undo(&mut self.parts.kernel, (reference, &cgroup), &BTreeMap::new(), &home);
                return Some(Input::Undone);
            }
            return Some(Input::StartFailed);
        }
        let now_boot_ns = boot_now();
        let ended = self.parts.kernel.state(reference.slot).is_ok_and(|(_, state)| state == STATE_ENDED);
        let kept_to = self.parts.kernel.config(reference.slot).map(|config| config.deadline);
        match kept_to {
            // what the kernel has expired stays so
            Ok(kept_to) if kept_to <= now_boot_ns && !in_grace => return Some(Input::End { reason: limit }),
            // of two moments the earlier holds
            Ok(kept_to) if kept_to > deadline => {
                complain("moving a deadline", self.parts.kernel.set_deadline(reference, deadline));
            }
            Ok(kept_to) if kept_to < deadline => self.feed(id, Input::Held { at_boot_ns: kept_to }),
            _ => {}
        }
        self.stand_as_said(id);
        self.cap(id, now_boot_ns);
        // the wall clock may have been stepped while nobody looked
        self.rearm(id);
        self.see_set_back(id);
        self.tick_session(id, now_boot_ns);
        if let Some(until_boot_ns) = self.sessions.get(&id).and_then(|live| live.machine.owes_term()) {
            self.carry_out(id, vec![Effect::Terminate { until_boot_ns }]);
        }
        if let Some(reason) = history.of(id).asked {
            // the agent died between the word and the deed
            return Some(Input::End { reason });
        }
        if ends || ended {
            return Some(Input::End { reason: EndReason::AgentLoss });
        }
        match first.map(|process| watch(id, process, self.parts.notes.clone())) {
            Some(Ok(())) => None,
            Some(Err(problem)) => {
                warn!("the first process of session {id} is not watched: {problem}");
                None
            }
            None => (!self.goes_on(id)).then_some(Input::FirstExited { now_boot_ns }),
        }
    }

    /// Members stand still, or run, as the session was said to be: an agent that died while it froze or thawed it may have
    /// left them otherwise. Whoever stopped itself, or was stopped by its user, is none of this.
    fn stand_as_said(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get(&id) else { return };
        if live.machine.is_still() {
            self.stop_members(id);
        } else if live.cgroup.is_to_freeze() {
            // the freezer is the first to be set and the last to be let go: what is outside may be stopped too
            self.let_go(id);
        }
    }

    /// No session lasts longer than the host lets it, also where an earlier agent knew of no such cap.
    fn cap(&mut self, id: SessionId, now_boot_ns: u64) {
        let cap = u64::try_from(self.parts.config.limits.max_ttl.as_nanos()).unwrap_or(u64::MAX);
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let ttl_boot_ns = live.started.saturating_add(cap);
        if live.machine.reason().is_none() && live.machine.limits().ttl_boot_ns > ttl_boot_ns {
            live.winner = "host cap";
            let principal = Principal { uid: geteuid().as_raw(), gid: getegid().as_raw(), login_uid: None };
            let detail = format!("cut to the host's max_ttl, {} ms from its start", cap / 1_000_000);
            self.append(&Body::Command(Command { session: id, verb: "renew".into(), principal, detail }));
            self.feed(id, Input::Renew { now_boot_ns, ttl_boot_ns });
            self.keep(id);
        }
    }

    fn gap(&mut self, detail: String) {
        warn!("{detail}");
        self.append(&Body::Gap(Gap { detail: Some(detail), ..Gap::new(GapCause::AgentAbsent) }));
    }
}

/// The longest time to live and the limits that a session began under and was narrowed to.
fn held_to(began: &Policy, narrowed: Option<&Narrowed>) -> (Duration, Limits) {
    let longest = narrowed.map_or(began.ttl, |n| began.ttl.min(Duration::from_millis(n.longest_ms)));
    let renew = began.limits.renew && narrowed.is_none_or(|n| n.renew);
    (longest, Limits { renew, ..began.limits.clone() })
}

/// The session's first process, if it lives: by its number, its start and its label.
fn find_first(kept: &Kept, is_member: impl Fn(std::os::fd::BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
    let process = open_pidfd(kept.first.pid).ok()?;
    // read with the pidfd open: the number cannot come to mean another process in between unnoticed, because that one
    // has another start or no label
    let same = started(kept.first.pid).is_none_or(|ticks| kept.first.started == 0 || ticks == kept.first.started);
    (same && is_member(process.as_fd())).then_some(process)
}

/// A trie as the kernel has it.
fn net_table(rules: Vec<AddressRules<Vec<PortRule>>>) -> NetTable {
    rules.into_iter().map(|(prefix_len, address, rules)| (NetKey { prefix_len, address }, rules)).collect()
}
