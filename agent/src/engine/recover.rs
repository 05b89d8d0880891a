//! What an earlier agent left: its sessions are ended in the programs that are still in force, what it did not read is
//! read, and only then may anything be replaced. Sessions of an earlier boot have nothing left but their record.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{complain, finish::accounts, now, record::translate, store::{Kept, Store}};
use crate::{
    enforce::SessionCgroup,
    evidence::{
        Body, Error, Gap, GapCause, Log, Receipt, SessionEnd, Text, Transition, read,
    },
    kernel::{KernelError, Leftover, Pins, kill_pidfd, open_pidfd},
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

/// Ends the sessions that an earlier agent left, for `reason` (those of an earlier boot: reboot), and forgets them.
/// Returns their ids.
///
/// # Errors
/// The evidence, the store or the pinned maps cannot be read; nothing was replaced then.
pub fn recover(pins: &Pins, store: &Store, log: &mut Log, reason: EndReason) -> Result<Vec<SessionId>, RecoverError> {
    let store_error = |source| RecoverError::Store { folder: store.folder().display().to_string(), source };
    let (kept, unreadable) = store.kept().map_err(store_error)?;
    for (path, why) in unreadable {
        warn!("{} cannot be read and was moved aside: {why}", path.display());
        let detail = Some(format!("kept session {} cannot be read: {why}", path.display()));
        gap(log, detail)?;
    }
    let mut leftover = Leftover::open(pins)?;
    if kept.is_empty() && leftover.is_none() {
        return Ok(Vec::new());
    }
    let mut consumed = count_evidence(log, &kept)?;
    let mut ended = Vec::new();
    for session in &kept {
        let id = session.start.session;
        let here = session.boot == store.boot();
        let reason = if here { reason } else { EndReason::Reboot };
        info!("session {id} was left by an earlier agent: it ends, {reason}");
        let cause = Cause::End(reason);
        log.append_durable(&Body::State(Transition { session: id, from: State::Active, to: State::Ending, cause }), now())?;
        let mut end = EndOf { session, reason, rounds: Vec::new(), receipts: Vec::new(), left: 0 };
        if let (true, Some(leftover)) = (here, &mut leftover) {
            end.kill(leftover)?;
            drain(leftover, log, &kept, &mut consumed)?;
        }
        end.write(log, leftover.as_ref(), consumed.get(&id).copied().unwrap_or_default())?;
        complain("forgetting a session", store.forget(id));
        ended.push(id);
    }
    Ok(ended)
}

fn gap(log: &mut Log, detail: Option<String>) -> Result<(), Error> {
    log.append(&Body::Gap(Gap { cause: GapCause::AgentAbsent, lost: None, since: None, detail }), now()).map(|_| ())
}

/// Records of the kept sessions that the earlier agent wrote, by kind.
fn count_evidence(log: &Log, kept: &[Kept]) -> Result<BTreeMap<SessionId, [u64; 8]>, Error> {
    let mut counts: BTreeMap<SessionId, [u64; 8]> = kept.iter().map(|k| (k.start.session, [0; 8])).collect();
    if kept.is_empty() {
        return Ok(counts);
    }
    for record in read(log.path())?.filter_map(Result::ok) {
        if let Some(counts) = record.body.session().and_then(|id| counts.get_mut(&id)) {
            count(counts, record.body.kind());
        }
    }
    Ok(counts)
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
    consumed: &mut BTreeMap<SessionId, [u64; 8]>,
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
        if let Some(counts) = consumed.get_mut(&owner.start.session) {
            count(counts, body.kind());
        }
        log.append(&body, now())?;
    }
    Ok(())
}

/// The end of one kept session.
struct EndOf<'a> {
    session: &'a Kept,
    reason: EndReason,
    rounds: Vec<Round>,
    receipts: Vec<Receipt>,
    left: u64,
}

impl EndOf<'_> {
    /// Marks it ended in the programs in force, and kills until nothing is labelled.
    fn kill(&mut self, leftover: &mut Leftover) -> Result<(), KernelError> {
        let Kept { slot, generation, .. } = *self.session;
        leftover.mark_ended(slot, generation)?;
        if !self.session.enforce {
            self.left = members(leftover, slot, generation)?.len() as u64;
            return Ok(());
        }
        let cgroup = SessionCgroup::existing(self.session.cgroup.clone());
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
            if let Some(cgroup) = &cgroup {
                complain("killing a cgroup", cgroup.kill());
            }
            std::thread::sleep(GLANCE);
            self.left = members(leftover, slot, generation)?.len() as u64;
            let ms = u64::try_from(round.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.rounds.push(Round { killed: (opened.len() - known) as u64, left: self.left, ms });
            if self.left == 0 || start.elapsed() > PATIENCE {
                break;
            }
        }
        let gone = self.left == 0;
        self.receipts = opened.into_iter().map(|(pid, (name, _))| Receipt { pid, name, gone }).collect();
        if let Some(cgroup) = cgroup {
            complain("removing a cgroup", cgroup.remove_patiently());
        }
        Ok(())
    }

    fn write(self, log: &mut Log, leftover: Option<&Leftover>, consumed: [u64; 8]) -> Result<(), RecoverError> {
        let counters = match leftover {
            Some(leftover) if self.reason != EndReason::Reboot => leftover.counters(self.session.slot)?,
            _ => tipstaff_common::session::SessionCounters::default(),
        };
        let (produced, consumed, lost) = accounts(&counters, &consumed);
        let (session, cause) = (self.session.start.session, Cause::Measured);
        let transition = Transition { session, from: State::Ending, to: State::Ended, cause };
        log.append(&Body::State(transition), now())?;
        let end = SessionEnd {
            session,
            reason: self.reason,
            rounds: self.rounds,
            receipts: self.receipts,
            members_left: self.left,
            produced,
            consumed,
            lost,
            packets_dropped: counters.packets_dropped,
        };
        log.append_durable(&Body::SessionEnd(end), now())?;
        Ok(())
    }
}

/// Processes that still carry the session's label.
fn members(leftover: &Leftover, slot: u32, generation: u32) -> Result<Vec<u32>, KernelError> {
    let mut pids: Vec<u32> = leftover
        .members()?
        .iter()
        .filter(|m| m.slot == slot && m.generation == generation)
        .map(|m| m.tgid)
        .collect();
    pids.dedup();
    Ok(pids)
}
