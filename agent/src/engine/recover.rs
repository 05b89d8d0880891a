//! What an earlier agent left and nobody can go on with: sessions of an earlier boot, sessions whose pins are gone, and,
//! for `disarm` without an agent, all of them. They are ended in the programs that are still in force, what was not read
//! is read, and each gets its last record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use tipstaff_common::{
    label::SessionRef,
    session::{MODE_ENFORCE, SessionCounters},
};
use tracing::{info, warn};

use super::{
    complain,
    finish::accounts,
    flows::{LeftFlows, counts, records},
    history::{History, Written},
    now,
    record::translate,
};
use crate::{
    enforce::SessionCgroup,
    evidence::{Body, CutCause, Error, Gap, GapCause, Log, Receipt, SessionEnd, Text, Transition},
    kernel::{Kernel, KernelError, Leftover, Member, Pins, kill_pidfd, open_pidfd},
    policy::reason_name,
    session::{Cause, EndReason, Mode, Round, SessionId, State},
    store::{Kept, Store, StoreError},
};

/// How long the end of one session may take before the agent goes on and says what is left.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(2);

/// What stands in the way of recovery.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The earlier agent's programs or maps cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The evidence cannot be read or written.
    #[error(transparent)]
    Evidence(#[from] Error),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Live sessions stand below another cgroup than this agent's.
    #[error(
        "session {session} stands in {}, and this agent's sessions stand below {}: start it with the earlier one's \
         --cgroup, or end the session first", cgroup.display(), root.display()
    )]
    Elsewhere {
        /// The session.
        session: SessionId,
        /// Its cgroup.
        cgroup: PathBuf,
        /// The sessions' cgroup of this agent.
        root: PathBuf,
    },
}

/// What recovery found and did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Sessions that were ended now.
    pub ended: Vec<SessionId>,
    /// Sessions that go on in the programs in force; also those that are over and have members left.
    pub going_on: Vec<Kept>,
    /// Sessions that only observed, whose pins are gone and whose members run on.
    pub shelters: Vec<Kept>,
    /// An earlier agent left programs in force.
    pub in_force: bool,
}

/// Looks at what an earlier agent kept and ends what cannot go on, for `agent-loss` or `reboot`; the others stand in the
/// answer. With `all`, every session of this boot is ended for that reason.
///
/// # Errors
/// The evidence, the store or the pinned maps cannot be read; nothing was replaced then.
pub fn recover(
    pins: &Pins,
    store: &Store,
    log: &mut Log,
    root: &std::path::Path,
    all: Option<EndReason>,
) -> Result<Recovered, RecoverError> {
    let (kept, unreadable) = store.kept()?;
    for why in unreadable {
        warn!("{why}");
        gap(log, why)?;
    }
    let mut leftover = open_leftover(pins, all.is_some())?;
    let mut recovered = Recovered { in_force: leftover.is_some(), ..Recovered::default() };
    let here = |session: &Kept| session.boot == store.boot();
    if all.is_none() && leftover.is_some() {
        recovered.going_on = kept.iter().filter(|session| here(session)).cloned().collect();
        let elsewhere = recovered.going_on.iter().find(|k| k.cgroup.parent() != Some(root));
        if let Some(kept) = elsewhere {
            let (session, cgroup) = (kept.start.session, kept.cgroup.clone());
            return Err(RecoverError::Elsewhere { session, cgroup, root: root.into() });
        }
    }
    let over: Vec<Kept> = kept.iter().filter(|k| recovered.going_on.iter().all(|g| g != *k)).cloned().collect();
    let ids: Vec<SessionId> = over.iter().map(|k| k.start.session).collect();
    let mut history = History::read(log, &ids, false)?;
    for session in &over {
        let id = session.start.session;
        // what runs is ended whatever the evidence says; an end that was written is not written again, and a start that
        // was not never had a member
        let (started, ended) = (history.of(id).started, history.of(id).ended);
        let runs = here(session) && may_run(session, leftover.as_ref())?;
        if !session.over && !ended && (started || runs) {
            let reason = if here(session) { all.unwrap_or(EndReason::AgentLoss) } else { EndReason::Reboot };
            end(session, reason, leftover.as_mut().filter(|_| here(session)), log, &kept, &mut history)?;
            recovered.ended.push(id);
        }
        let observed = session.machine.mode() == Mode::Observe;
        match SessionCgroup::existing(session.cgroup.clone()) {
            Some(cgroup) if observed && here(session) && cgroup.is_populated() => {
                recovered.shelters.push(session.clone());
            }
            _ => forget(store, session),
        }
    }
    if let (Some(leftover), Some(_)) = (&mut leftover, all) {
        end_unknown(leftover, &kept, log)?;
    }
    Ok(recovered)
}

/// For `disarm`, what cannot be opened is as good as gone: the cgroups are killed, and the pins are removed.
fn open_leftover(pins: &Pins, disarming: bool) -> Result<Option<Leftover>, KernelError> {
    match Leftover::open(pins) {
        Err(problem) if disarming => {
            warn!("{problem}");
            Ok(None)
        }
        other => other,
    }
}

fn forget(store: &Store, session: &Kept) {
    if let Some(cgroup) = SessionCgroup::existing(session.cgroup.clone()) {
        complain("removing a cgroup", cgroup.remove_patiently());
    }
    complain("forgetting a session", store.forget(session.start.session));
}

/// Ends one kept session, with its records.
fn end(
    session: &Kept,
    reason: EndReason,
    leftover: Option<&mut Leftover>,
    log: &mut Log,
    kept: &[Kept],
    history: &mut History,
) -> Result<(), RecoverError> {
    let id = session.start.session;
    let reason = session.machine.reason().unwrap_or(reason);
    info!("session {id} was left by an earlier agent: it ends, {reason}");
    begin_end(id, history.of(id).state, reason, log)?;
    let mut killing = Killing::default();
    let mut flows = LeftFlows::default();
    let mut counters = SessionCounters::default();
    let cgroup = SessionCgroup::existing(session.cgroup.clone());
    let reference = SessionRef { slot: session.slot, generation: session.generation };
    let enforce = session.machine.mode() == Mode::Enforce;
    let counted = leftover.is_some();
    match (leftover, cgroup) {
        (Some(leftover), cgroup) => {
            killing = kill(leftover, reference, enforce, cgroup.as_ref(), &mut flows)?;
            if let Some(cgroup) = cgroup.filter(|_| enforce) {
                killing.flows = confirm((id, Some(session.revision())), &cgroup, &mut flows, log)?;
            }
            drain(leftover, log, kept, history)?;
            counters = leftover.counters(session.slot)?;
        }
        (None, Some(cgroup)) if reason != EndReason::Reboot => {
            warn!("the pins of session {id} are gone: its cgroup is killed");
            killing = kill_cgroup(&cgroup, enforce)?;
        }
        _ => {}
    }
    if !counted {
        // the kernel's counts are gone: what is known to have been produced is what was written
        counters.produced = history.of(id).counts;
        let missing = match history.of(id).missing() {
            0 => String::new(),
            missing => format!("; by the numbers of those that are written, {missing} more at least were made"),
        };
        let detail = format!(
            "the kernel's counts of session {id} are gone: what it did and was not written is not known{missing}"
        );
        let since = history.last.clone();
        let body = Gap { since, session: Some(id), detail: Some(detail), ..Gap::new(GapCause::AgentAbsent) };
        log.append(&Body::Gap(body), now())?;
    }
    write_end(id, reason, killing, &counters, history.of(id), log)
}

/// Looks for the session's sockets once more, with a receipt for each. How many were cut, and how many are left.
fn confirm(
    (id, revision): (SessionId, Option<u32>),
    cgroup: &SessionCgroup,
    flows: &mut LeftFlows,
    log: &mut Log,
) -> Result<(u64, u64), Error> {
    let receipts = flows.confirm(cgroup);
    for record in records(id, CutCause::End, revision, &receipts) {
        log.append(&record, now())?;
    }
    Ok(counts(&receipts))
}

/// Writes that a session ends, unless the evidence says so already.
fn begin_end(id: SessionId, last: Option<State>, reason: EndReason, log: &mut Log) -> Result<(), Error> {
    let from = last.unwrap_or(State::Starting);
    if matches!(from, State::Ending | State::Ended) {
        return Ok(());
    }
    let ending = Body::State(Transition { session: id, from, to: State::Ending, cause: Cause::End(reason) });
    log.append_durable(&ending, now()).map(drop)
}

/// Whether anything of a session of this boot may still run.
fn may_run(session: &Kept, leftover: Option<&Leftover>) -> Result<bool, KernelError> {
    let populated = SessionCgroup::existing(session.cgroup.clone()).is_some_and(|c| c.is_populated());
    let Some(leftover) = leftover else { return Ok(populated) };
    let own = |m: &Member| m.slot == session.slot && m.generation == session.generation;
    Ok(populated || leftover.members()?.iter().any(own))
}

/// Without pins there are no labels to walk: all that is known of the session is its cgroup.
fn kill_cgroup(cgroup: &SessionCgroup, enforce: bool) -> Result<Killing, KernelError> {
    let mut killing = Killing::default();
    let start = Instant::now();
    while enforce && cgroup.is_populated() && start.elapsed() < PATIENCE {
        cgroup.kill().map_err(KernelError::file("kill cgroup", cgroup.path()))?;
        std::thread::sleep(GLANCE);
    }
    killing.left = u64::from(cgroup.is_populated());
    Ok(killing)
}

/// The programs in force, of whatever agent: who is labelled, and the one write that ends a session in them.
pub(super) trait InForce {
    /// Every labelled thread.
    fn labelled(&mut self) -> Result<Vec<Member>, KernelError>;
    /// From this write on, every hook denies.
    fn end(&mut self, session: SessionRef) -> Result<(), KernelError>;
    /// Whether the slot is still this session's, and it enforces.
    fn enforcing(&mut self, session: SessionRef) -> Result<bool, KernelError>;
}

impl InForce for Leftover {
    fn labelled(&mut self) -> Result<Vec<Member>, KernelError> {
        self.members()
    }

    fn end(&mut self, session: SessionRef) -> Result<(), KernelError> {
        self.mark_ended(session.slot, session.generation)
    }

    fn enforcing(&mut self, session: SessionRef) -> Result<bool, KernelError> {
        self.enforces(session)
    }
}

impl InForce for Kernel {
    fn labelled(&mut self) -> Result<Vec<Member>, KernelError> {
        self.members()
    }

    fn end(&mut self, session: SessionRef) -> Result<(), KernelError> {
        self.mark_ended(session)
    }

    fn enforcing(&mut self, session: SessionRef) -> Result<bool, KernelError> {
        let (generation, _) = self.state(session.slot)?;
        Ok(generation == session.generation && self.config(session.slot)?.mode == MODE_ENFORCE)
    }
}

/// Ends what carries a label that no kept session explains: its record was lost, the programs in force were not.
pub(super) fn end_unknown(force: &mut impl InForce, kept: &[Kept], log: &mut Log) -> Result<(), RecoverError> {
    let known = |m: &Member| kept.iter().any(|k| k.slot == m.slot && k.generation == m.generation);
    let unknown: BTreeSet<(u32, u32)> =
        force.labelled()?.iter().filter(|m| !known(m)).map(|m| (m.slot, m.generation)).collect();
    for (slot, generation) in unknown {
        let session = SessionRef { slot, generation };
        // where the slot is another's by now, what is written there would end that one; such a label is denied everything
        if force.enforcing(session)? {
            let killing = kill(force, session, true, None, &mut LeftFlows::default())?;
            let (killed, left) = (killing.receipts.len(), killing.left);
            gap(log, format!("a session without a kept record was ended: {killed} processes killed, {left} left"))?;
        }
    }
    Ok(())
}

pub(super) fn gap(log: &mut Log, detail: String) -> Result<(), Error> {
    let body = Gap { detail: Some(detail), ..Gap::new(GapCause::AgentAbsent) };
    log.append(&Body::Gap(body), now()).map(|_| ())
}

/// Reads what the earlier agent did not. The rules' ids are gone with its plans: a rule is named by its number.
fn drain(leftover: &mut Leftover, log: &mut Log, kept: &[Kept], history: &mut History) -> Result<(), Error> {
    while let Some(event) = leftover.next_event() {
        let Ok(event) = event else { continue };
        let header = *event.header();
        let owner = kept.iter().find(|k| k.slot == header.slot && k.generation == header.generation);
        let Some(owner) = owner.map(|k| k.start.session) else { continue };
        if history.last_records.take(owner, header.sequence) {
            continue; // written by the agent that was killed before it could take the record out of its ring
        }
        let name = |code| match reason_name(code) {
            "fault" if code < tipstaff_common::rule::REASONS => format!("rule {code}"),
            reason => reason.to_owned(),
        };
        let body = translate(owner, &event, name);
        history.of(owner).count(body.kind());
        log.append(&body, now())?;
    }
    Ok(())
}

/// What killing a session's members came to.
#[derive(Default)]
pub(super) struct Killing {
    rounds: Vec<Round>,
    receipts: Vec<Receipt>,
    left: u64,
    /// Sockets that were cut, and those of them that are left.
    flows: (u64, u64),
}

/// Marks a session ended in the programs in force, cuts its flows, and kills until nothing is labelled. One that only observes is
/// left alone and counted.
pub(super) fn kill(
    force: &mut impl InForce,
    session: SessionRef,
    enforce: bool,
    cgroup: Option<&SessionCgroup>,
    flows: &mut LeftFlows,
) -> Result<Killing, KernelError> {
    force.end(session)?;
    let mut killing = Killing::default();
    if !enforce {
        killing.left = members(force, session)?.len() as u64;
        return Ok(killing);
    }
    if let Some(cgroup) = cgroup {
        flows.cut(force, session, cgroup);
    }
    let start = Instant::now();
    let mut opened: BTreeMap<u32, (Text, OwnedFd)> = BTreeMap::new();
    loop {
        let round = Instant::now();
        let known = opened.len();
        for pid in members(force, session)? {
            if let (false, Ok(process)) = (opened.contains_key(&pid), open_pidfd(pid)) {
                let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                opened.insert(pid, (Text::from(name.trim_ascii_end()), process));
            }
        }
        // listed again with its pidfd open: the number means the same process
        for pid in members(force, session)? {
            if let Some((_, process)) = opened.get(&pid) {
                complain("killing a member", kill_pidfd(process.as_fd()));
            }
        }
        if let Some(cgroup) = cgroup {
            complain("killing a cgroup", cgroup.kill());
        }
        std::thread::sleep(GLANCE);
        killing.left = members(force, session)?.len() as u64;
        let ms = u64::try_from(round.elapsed().as_millis()).unwrap_or(u64::MAX);
        killing.rounds.push(Round { killed: (opened.len() - known) as u64, left: killing.left, ms });
        if killing.left == 0 || start.elapsed() > PATIENCE {
            break;
        }
    }
    let gone = killing.left == 0;
    killing.receipts = opened.into_iter().map(|(pid, (name, _))| Receipt { pid, name, gone }).collect();
    Ok(killing)
}

/// Writes the last two records of a session, or the last where the other was written.
pub(super) fn write_end(
    id: SessionId,
    reason: EndReason,
    killing: Killing,
    counters: &SessionCounters,
    written: &Written,
    log: &mut Log,
) -> Result<(), RecoverError> {
    if written.over_boot_ns.is_none() {
        let ended = Transition { session: id, from: State::Ending, to: State::Ended, cause: Cause::Measured };
        log.append(&Body::State(ended), now())?;
    }
    let (produced, consumed, lost) = accounts(counters, &written.counts);
    let end = SessionEnd {
        session: id,
        reason,
        took: None,
        rounds: killing.rounds,
        receipts: killing.receipts,
        members_left: killing.left,
        flows_cut: killing.flows.0,
        flows_left: killing.flows.1,
        produced,
        consumed,
        lost,
        packets_dropped: counters.packets_dropped,
        faults: counters.faults,
        signals_failed: counters.signals_failed,
    };
    log.append_durable(&Body::SessionEnd(end), now())?;
    Ok(())
}

/// Processes that still carry the session's label.
pub(super) fn members(force: &mut impl InForce, session: SessionRef) -> Result<Vec<u32>, KernelError> {
    let own = |m: &&Member| m.slot == session.slot && m.generation == session.generation;
    let mut pids: Vec<u32> = force.labelled()?.iter().filter(own).map(|m| m.tgid).collect();
    pids.dedup();
    Ok(pids)
}

/// Ends a session of which only the kernel knows, with the records that can be made of it. Its id, where it has one and
/// only observes.
pub(super) fn end_orphan(
    kernel: &mut Kernel,
    reference: SessionRef,
    cgroup: &SessionCgroup,
    log: &mut Log,
    history: &mut History,
) -> Result<Option<SessionId>, RecoverError> {
    let name = cgroup.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let enforce = kernel.enforcing(reference)?;
    let mut flows = LeftFlows::default();
    let mut killing = kill(kernel, reference, enforce, Some(cgroup), &mut flows)?;
    // a canary whose agent was killed is nobody's session
    let Ok(id) = name.parse::<SessionId>() else { return Ok(None) };
    let (killed, left) = (killing.receipts.len(), killing.left);
    warn!("nothing is kept of session {id}: it is ended");
    gap(log, format!("session {id} had no kept record and was ended: {killed} processes killed, {left} left"))?;
    let written = history.of(id);
    let observes = (!enforce).then_some(id);
    if !written.started || written.ended {
        return Ok(observes);
    }
    begin_end(id, written.state, EndReason::AgentLoss, log)?;
    if enforce {
        killing.flows = confirm((id, None), cgroup, &mut flows, log)?;
    }
    let counters = kernel.counters(reference.slot)?;
    write_end(id, EndReason::AgentLoss, killing, &counters, history.of(id), log)?;
    Ok(observes)
}

/// Ends a session whose cgroup was removed: its members are where they were moved to. One that only observes is left alone.
pub(super) fn end_without_cgroup(
    kernel: &mut Kernel,
    reference: SessionRef,
    id: SessionId,
    log: &mut Log,
    history: &mut History,
) -> Result<(), RecoverError> {
    let enforce = kernel.enforcing(reference)?;
    let killing = kill(kernel, reference, enforce, None, &mut LeftFlows::default())?;
    let written = history.of(id);
    if !written.started || written.ended {
        return Ok(());
    }
    begin_end(id, written.state, EndReason::AgentLoss, log)?;
    let counters = kernel.counters(reference.slot)?;
    write_end(id, EndReason::AgentLoss, killing, &counters, history.of(id), log)
}
