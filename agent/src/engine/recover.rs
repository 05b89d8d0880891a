//! What an earlier agent left: its sessions are ended in the programs that are still in force, what it did not read is
//! read, and only then may anything be replaced. Sessions of an earlier boot have nothing left but their record.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use tipstaff_common::{label::SessionRef, session::SessionCounters};
use tracing::{info, warn};

use super::{
    complain,
    finish::accounts,
    flows::{LeftFlows, counts, records},
    now,
    record::translate,
    store::{Kept, Store},
};
use crate::{
    enforce::SessionCgroup,
    evidence::{Body, CutCause, Error, Gap, GapCause, Log, Receipt, SessionEnd, Text, Transition, read},
    kernel::{KernelError, Leftover, Member, Pins, kill_pidfd, open_pidfd},
    policy::reason_name,
    session::{Cause, EndReason, Round, SessionId, State},
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
    #[error("cannot read the kept sessions in {folder}: {source}")]
    Store {
        /// The folder.
        folder: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// What recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Sessions that were ended now.
    pub ended: Vec<SessionId>,
    /// Cgroups in which members of sessions run on that only observed.
    pub shelters: Vec<SessionCgroup>,
}

/// Ends the sessions that an earlier agent left, for `reason` (those of an earlier boot: reboot), and forgets them.
///
/// # Errors
/// The evidence, the store or the pinned maps cannot be read; nothing was replaced then.
pub fn recover(pins: &Pins, store: &Store, log: &mut Log, reason: EndReason) -> Result<Recovered, RecoverError> {
    let store_error = |source| RecoverError::Store { folder: store.folder().display().to_string(), source };
    let (kept, unreadable) = store.kept().map_err(store_error)?;
    for (path, why) in unreadable {
        warn!("{} cannot be read and was moved aside: {why}", path.display());
        gap(log, format!("kept session {} cannot be read: {why}", path.display()))?;
    }
    let mut recovered = Recovered::default();
    let mut leftover = Leftover::open(pins)?;
    let mut written = read_evidence(log, &kept)?;
    for session in &kept {
        let id = session.start.session;
        let here = session.boot == store.boot();
        // what runs is ended whatever the evidence says; an end that was written is not written again, and a start that
        // was not never had a member
        let (started, ended) = written.get(&id).map_or((false, false), |w| (w.started, w.ended));
        let runs = here && may_run(session, leftover.as_ref())?;
        if !session.over && !ended && (started || runs) {
            end(session, here, reason, leftover.as_mut(), log, &kept, &mut written)?;
            recovered.ended.push(id);
        }
        match SessionCgroup::existing(session.cgroup.clone()).filter(|c| !session.enforce && here && c.is_populated()) {
            Some(cgroup) => {
                complain("keeping a session", store.keep(&session.clone().ended()));
                recovered.shelters.push(cgroup);
            }
            None => forget(store, session),
        }
    }
    if let Some(leftover) = &mut leftover {
        end_unknown(leftover, &kept, log)?;
    }
    Ok(recovered)
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
    here: bool,
    reason: EndReason,
    leftover: Option<&mut Leftover>,
    log: &mut Log,
    kept: &[Kept],
    written: &mut BTreeMap<SessionId, Written>,
) -> Result<(), RecoverError> {
    let id = session.start.session;
    let reason = if here { reason } else { EndReason::Reboot };
    info!("session {id} was left by an earlier agent: it ends, {reason}");
    let cause = Cause::End(reason);
    let ending = Body::State(Transition { session: id, from: State::Active, to: State::Ending, cause });
    log.append_durable(&ending, now())?;
    let mut killing = Killing::default();
    let mut flows = LeftFlows::default();
    let mut counters = SessionCounters::default();
    let cgroup = SessionCgroup::existing(session.cgroup.clone());
    match (here, leftover, cgroup) {
        (true, Some(leftover), cgroup) => {
            let reference = SessionRef { slot: session.slot, generation: session.generation };
            killing = kill(leftover, reference, session.enforce, cgroup.as_ref(), &mut flows)?;
            if let Some(cgroup) = cgroup.filter(|_| session.enforce) {
                let receipts = flows.confirm(&cgroup);
                killing.flows = counts(&receipts);
                for record in records(id, CutCause::End, &receipts) {
                    log.append(&record, now())?;
                }
            }
            drain(leftover, log, kept, written)?;
            counters = leftover.counters(session.slot)?;
        }
        (true, None, Some(cgroup)) => {
            gap(log, format!("the pins of session {id} are gone: what it did is not counted, its cgroup is killed"))?;
            killing = kill_cgroup(&cgroup, session.enforce)?;
        }
        _ => {}
    }
    let consumed = written.get(&id).map(|w| w.counts).unwrap_or_default();
    write_end(session, reason, killing, &counters, consumed, log)
}

/// Whether anything of a session of this boot may still run.
fn may_run(session: &Kept, leftover: Option<&Leftover>) -> Result<bool, KernelError> {
    let populated = SessionCgroup::existing(session.cgroup.clone()).is_some_and(|c| c.is_populated());
    let Some(leftover) = leftover else { return Ok(populated) };
    Ok(populated || !members(leftover, session.slot, session.generation)?.is_empty())
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

/// Ends what carries a label that no kept session explains: its file was lost, the programs in force were not.
fn end_unknown(leftover: &mut Leftover, kept: &[Kept], log: &mut Log) -> Result<(), RecoverError> {
    let known = |m: &Member| kept.iter().any(|k| k.slot == m.slot && k.generation == m.generation);
    let unknown: BTreeSet<(u32, u32)> =
        leftover.members()?.iter().filter(|m| !known(m)).map(|m| (m.slot, m.generation)).collect();
    for (slot, generation) in unknown {
        if leftover.enforces(slot)? {
            let reference = SessionRef { slot, generation };
            let killing = kill(leftover, reference, true, None, &mut LeftFlows::default())?;
            let (killed, left) = (killing.receipts.len(), killing.left);
            gap(log, format!("a session without a kept record was ended: {killed} processes killed, {left} left"))?;
        }
    }
    Ok(())
}

fn gap(log: &mut Log, detail: String) -> Result<(), Error> {
    let body = Gap { cause: GapCause::AgentAbsent, lost: None, since: None, detail: Some(detail) };
    log.append(&Body::Gap(body), now()).map(|_| ())
}

/// What the evidence holds of a kept session.
#[derive(Default)]
struct Written {
    /// Records of its members, by kind.
    counts: [u64; 8],
    /// Its start was written.
    started: bool,
    /// Its end was written.
    ended: bool,
}

fn read_evidence(log: &Log, kept: &[Kept]) -> Result<BTreeMap<SessionId, Written>, Error> {
    let mut written: BTreeMap<SessionId, Written> =
        kept.iter().map(|k| (k.start.session, Written::default())).collect();
    if kept.is_empty() {
        return Ok(written);
    }
    for record in read(log.path())?.filter_map(Result::ok) {
        if let Some(written) = record.body.session().and_then(|id| written.get_mut(&id)) {
            count(&mut written.counts, record.body.kind());
            written.started |= matches!(record.body, Body::SessionStart(_));
            written.ended |= matches!(record.body, Body::SessionEnd(_));
        }
    }
    Ok(written)
}

fn count(counts: &mut [u64; 8], kind: &str) {
    let index = (0u16..8).find(|k| crate::kernel::ring::kind_name(*k) == Some(kind));
    if let Some(count) = index.and_then(|k| counts.get_mut(usize::from(k))) {
        *count += 1;
    }
}

/// Reads what the earlier agent did not. The rules' ids are gone with its plans: a rule is named by its number.
fn drain(
    leftover: &mut Leftover,
    log: &mut Log,
    kept: &[Kept],
    written: &mut BTreeMap<SessionId, Written>,
) -> Result<(), Error> {
    while let Some(event) = leftover.next_event() {
        let Ok(event) = event else { continue };
        let header = *event.header();
        let owner = kept.iter().find(|k| k.slot == header.slot && k.generation == header.generation);
        let Some(owner) = owner else { continue };
        let name = |code| match reason_name(code) {
            "fault" if code < tipstaff_common::rule::REASONS => format!("rule {code}"),
            reason => reason.to_owned(),
        };
        let body = translate(owner.start.session, &event, name);
        if let Some(written) = written.get_mut(&owner.start.session) {
            count(&mut written.counts, body.kind());
        }
        log.append(&body, now())?;
    }
    Ok(())
}

/// What killing a session's members came to.
#[derive(Default)]
struct Killing {
    rounds: Vec<Round>,
    receipts: Vec<Receipt>,
    left: u64,
    /// Sockets that were cut, and those of them that are left.
    flows: (u64, u64),
}

/// Marks a session ended in the programs in force, cuts its flows, and kills until nothing is labelled. One that only observes is
/// left alone and counted.
fn kill(
    leftover: &mut Leftover,
    session: SessionRef,
    enforce: bool,
    cgroup: Option<&SessionCgroup>,
    flows: &mut LeftFlows,
) -> Result<Killing, KernelError> {
    let SessionRef { slot, generation } = session;
    leftover.mark_ended(slot, generation)?;
    let mut killing = Killing::default();
    if !enforce {
        killing.left = members(leftover, slot, generation)?.len() as u64;
        return Ok(killing);
    }
    if let Some(cgroup) = cgroup {
        flows.cut(leftover, session, cgroup);
    }
    let start = Instant::now();
    let mut opened: BTreeMap<u32, (Text, OwnedFd)> = BTreeMap::new();
    loop {
        let round = Instant::now();
        let known = opened.len();
        for pid in members(leftover, slot, generation)? {
            if let (false, Ok(process)) = (opened.contains_key(&pid), open_pidfd(pid)) {
                let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                opened.insert(pid, (Text::from(name.trim_ascii_end()), process));
            }
        }
        // listed again with its pidfd open: the number means the same process
        for pid in members(leftover, slot, generation)? {
            if let Some((_, process)) = opened.get(&pid) {
                complain("killing a member", kill_pidfd(process.as_fd()));
            }
        }
        if let Some(cgroup) = cgroup {
            complain("killing a cgroup", cgroup.kill());
        }
        std::thread::sleep(GLANCE);
        killing.left = members(leftover, slot, generation)?.len() as u64;
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

fn write_end(
    session: &Kept,
    reason: EndReason,
    killing: Killing,
    counters: &SessionCounters,
    consumed: [u64; 8],
    log: &mut Log,
) -> Result<(), RecoverError> {
    let id = session.start.session;
    let ended = Transition { session: id, from: State::Ending, to: State::Ended, cause: Cause::Measured };
    log.append(&Body::State(ended), now())?;
    let (produced, consumed, lost) = accounts(counters, &consumed);
    let end = SessionEnd {
        session: id,
        reason,
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
fn members(leftover: &Leftover, slot: u32, generation: u32) -> Result<Vec<u32>, KernelError> {
    let mut pids: Vec<u32> =
        leftover.members()?.iter().filter(|m| m.slot == slot && m.generation == generation).map(|m| m.tgid).collect();
    pids.dedup();
    Ok(pids)
}
