//! What operators do to live sessions: end, freeze, thaw, revoke. Every command is recorded with who gave it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    Engine, Live, complain, credentials,
    finish::doing,
    history::asking,
    limits::{ending, over},
    start::principal,
    stays::{Stayed, acts_for},
};
use crate::{
    api::{
        answer::Answer,
        server::Peer,
        wire::{self, ApiError, Reply, RevokeBy, Revoked, RevokedRow},
    },
    enforce::{cgroup_of, signal_members},
    evidence::{Body, Command, Revoke, StayRef, Text},
    kernel::boot_now,
    session::{EndReason, Input, Mode, SessionId, State},
};

/// How long a process may take to stand still after a `SIGSTOP`.
const PATIENCE: Duration = Duration::from_millis(100);
const GLANCE: Duration = Duration::from_millis(1);

/// End reasons that a caller of `end` may give; the others are the agent's own findings.
const CALLERS: [EndReason; 7] = [
    EndReason::Operator,
    EndReason::Revoked,
    EndReason::Locked,
    EndReason::Violation,
    EndReason::CredentialExpired,
    EndReason::ContextChanged,
    EndReason::Superseded,
];

/// A revocation that waits for the end of its last session.
pub(super) struct Revoking {
    reply: Answer,
    pending: BTreeSet<SessionId>,
    revoked: Revoked,
}

impl Engine {
    /// The session whose id begins with `prefix`.
    pub(super) fn find(&self, prefix: &str) -> Result<SessionId, ApiError> {
        the_one(self.sessions.keys(), prefix)
    }

    /// Records a command on a session.
    fn record_command(&mut self, session: SessionId, verb: &str, peer: &Peer, detail: String) {
        let command = Command { session, verb: verb.into(), principal: principal(peer), detail };
        self.append(&Body::Command(command));
    }

    /// Starts the end of a session; the caller is answered when it is over.
    pub(super) fn end(&mut self, end: &wire::End, peer: &Peer, reply: Answer) {
        let id = match self.find(&end.id) {
            Ok(id) => id,
            Err(problem) => return reply.finish(Err(problem)),
        };
        let Some(reason) = end.reason.parse::<EndReason>().ok().filter(|r| CALLERS.contains(r)) else {
            let known: Vec<&str> = CALLERS.iter().map(|r| r.as_str()).collect();
            let message = format!("{:?} is no reason to give: one of {}", end.reason, known.join(", "));
            return reply.finish(Err(ApiError::BadRequest { message }));
        };
        self.record_command(id, "end", peer, asking(reason));
        if let Some(session) = self.sessions.get_mut(&id) {
            session.waiting.push(reply);
        }
        self.feed(id, Input::End { reason });
    }

    pub(super) fn renew_for(&mut self, renew: &wire::Renew, peer: &Peer) -> Result<Reply, ApiError> {
        let renewed = self.renew(renew)?;
        let id = self.find(&renewed.session)?;
        self.record_command(id, "renew", peer, format!("{} ms from its start", renewed.ttl_ms));
        Ok(Reply::Renewed(renewed))
    }

    /// Stops a session's members.
    pub(super) fn freeze(&mut self, prefix: &str, peer: &Peer) -> Result<Reply, ApiError> {
        let id = self.find(prefix)?;
        let now_boot_ns = boot_now();
        self.tick_session(id, now_boot_ns);
        let live = self.sessions.get(&id).ok_or_else(|| over(prefix))?;
        match live.machine.state() {
            State::Active | State::Frozen => {}
            _ if live.machine.is_in_grace() => {}
            _ => return Err(ending(id, live)),
        }
        let was_still = live.machine.is_still();
        if was_still {
            // a member may have been moved out of the cgroup since
            self.stop_members(id);
        }
        self.feed(id, Input::Freeze { now_boot_ns });
        let live = self.sessions.get(&id).ok_or_else(|| over(prefix))?;
        let Some(still) = live.still else {
            if !was_still {
                self.feed(id, Input::Thaw { now_boot_ns: boot_now() });
            }
            return Err(ApiError::Failed {
                message: format!("the kernel did not freeze session {id:.8}: see the log"),
            });
        };
        self.feed_within(id, Input::Freeze { now_boot_ns });
        let frozen = self.frozen(id, still)?;
        let outside = frozen.outside.len();
        self.record_command(id, "freeze", peer, format!("{} processes, {outside} outside its cgroup", frozen.members));
        Ok(Reply::Frozen(frozen))
    }

    /// Lets a session's members go on.
    pub(super) fn thaw(&mut self, prefix: &str, peer: &Peer) -> Result<Reply, ApiError> {
        let id = self.find(prefix)?;
        let now_boot_ns = boot_now();
        self.tick_session(id, now_boot_ns);
        let live = self.sessions.get(&id).ok_or_else(|| over(prefix))?;
        match live.machine.state() {
            State::Frozen | State::Active => {}
            _ if live.machine.is_in_grace() => {}
            _ => return Err(ending(id, live)),
        }
        self.feed(id, Input::Thaw { now_boot_ns });
        self.feed_within(id, Input::Thaw { now_boot_ns });
        let thawed = self.frozen(id, false)?;
        self.record_command(id, "thaw", peer, format!("{} processes", thawed.members));
        Ok(Reply::Frozen(thawed))
    }

    /// Stops a session: what is in its cgroup by the freezer, a member that was moved elsewhere by `SIGSTOP`, which is the
    /// closest there is: whoever may signal it can let it go on.
    pub(super) fn stop_members(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        live.still = complain("freezing a session", live.cgroup.freeze());
        self.signal_outside(id, Signal::SIGSTOP);
    }

    /// A member was moved out of its session's cgroup: the policy may end the session, and one that is frozen stands still
    /// there too.
    pub(super) fn moved(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get(&id) else { return };
        if live.rules.moved_ends && live.machine.mode() == Mode::Enforce {
            self.feed(id, Input::End { reason: EndReason::ContextChanged });
        } else if live.machine.is_still() {
            self.stop_members(id);
        }
    }

    /// Lets it go on. The freezer last: as long as it is set, the next agent knows that there may be more to let go.
    pub(super) fn let_go(&mut self, id: SessionId) {
        self.signal_outside(id, Signal::SIGCONT);
        let Some(live) = self.sessions.get_mut(&id) else { return };
        live.still = None;
        complain("thawing a session", live.cgroup.thaw());
    }

    fn signal_outside(&mut self, id: SessionId, signal: Signal) {
        let Some(live) = self.sessions.get(&id) else { return };
        let (mount, cgroup) = (&self.parts.mount, live.cgroup.path());
        let outside = |pid| !is_below(pid, mount, cgroup);
        let sent = signal_members(&mut self.parts.kernel, &[live.reference], signal, outside);
        complain("signalling members outside their session's cgroup", sent);
    }

    fn frozen(&mut self, id: SessionId, still: bool) -> Result<wire::Frozen, ApiError> {
        let members = self.parts.kernel.members().map_err(|e| ApiError::Failed { message: e.to_string() })?;
        let live = self.sessions.get(&id).ok_or_else(|| over(&id.to_string()))?;
        let own =
            |m: &&crate::kernel::Member| m.slot == live.reference.slot && m.generation == live.reference.generation;
        let pids: BTreeSet<u32> = members.iter().filter(own).map(|m| m.tgid).collect();
        let outside = |pid: &&u32| !is_below(**pid, &self.parts.mount, live.cgroup.path());
        let outside: Vec<u32> = pids.iter().filter(outside).copied().collect();
        Ok(wire::Frozen {
            session: id.to_string(),
            state: live.machine.state().to_string(),
            members: pids.len() as u64,
            still: still && stand_still(&outside),
            outside,
        })
    }

    /// Ends every session that is meant, and keeps it from starting again.
    pub(super) fn revoke(&mut self, revoke: &wire::Revoke, peer: &Peer, reply: Answer) {
        match self.begin_revoke(revoke, peer) {
            Err(problem) => reply.finish(Err(problem)),
            Ok(revoked) => {
                let ids: Vec<SessionId> = revoked.sessions.iter().filter_map(|row| row.id.parse().ok()).collect();
                if revoke.dry_run || ids.is_empty() {
                    return reply.finish(Ok(Reply::Revoked(revoked)));
                }
                self.revoking.push(Revoking { reply, pending: ids.iter().copied().collect(), revoked });
                self.feed_all(ids.into_iter().map(|id| (id, Input::End { reason: EndReason::Revoked })));
            }
        }
    }

    fn begin_revoke(&mut self, revoke: &wire::Revoke, peer: &Peer) -> Result<Revoked, ApiError> {
        if revoke.value.is_empty() || (matches!(revoke.by, RevokeBy::Label) && revoke.value.starts_with('=')) {
            let message =
                format!("--{} {:?} means nobody: write whose sessions are meant", revoke.by.as_str(), revoke.value);
            return Err(ApiError::BadRequest { message });
        }
        let mut hit = self.meant(revoke)?;
        let within: BTreeSet<SessionId> = hit.iter().flat_map(|id| self.all_within(*id)).collect();
        hit.extend(within.into_iter().filter(|id| !hit.contains(id)).collect::<Vec<_>>());
        let sessions: Vec<RevokedRow> = hit.iter().filter_map(|id| self.sessions.get(id)).map(row).collect();
        let mut revoked = Revoked { dry_run: revoke.dry_run, sessions, stay: None };
        let stayed = match (revoke.by, &revoke.stay) {
            (_, None) => None,
            (RevokeBy::Principal, Some(length)) => Some((Stayed::Principal(uid(&revoke.value)?), length)),
            (RevokeBy::Policy, Some(length)) => Some((Stayed::Policy(revoke.value.clone()), length)),
            (RevokeBy::Credential, Some(length)) => Some((Stayed::Credential(revoke.value.clone()), length)),
            (RevokeBy::Session | RevokeBy::Label, Some(_)) => {
                let message =
                    "a stay is for a principal, a policy or a credential: a session never starts again".into();
                return Err(ApiError::BadRequest { message });
            }
        };
        if revoke.dry_run {
            return Ok(revoked);
        }
        // before anything is ended: nothing slips in between
        let stay = stayed.map(|(what, length)| self.stay(what, length, principal(peer))).transpose()?;
        revoked.stay = stay.as_ref().map(super::stays::Stay::wire);
        let stay = stay.map(|stay| StayRef { id: stay.id.to_string(), until: stay.until });
        let (by, value) = (revoke.by.as_str().to_owned(), revoke.value.clone());
        self.append(&Body::Revoke(Revoke { principal: principal(peer), by, value, sessions: hit, stay }));
        Ok(revoked)
    }

    /// The live sessions that a revocation means.
    fn meant(&self, revoke: &wire::Revoke) -> Result<Vec<SessionId>, ApiError> {
        let value = revoke.value.as_str();
        let which = |fits: &dyn Fn(&Live) -> bool| -> Vec<SessionId> {
            self.sessions.iter().filter(|(_, live)| fits(live)).map(|(id, _)| *id).collect()
        };
        Ok(match revoke.by {
            RevokeBy::Session => vec![self.find(value)?],
            RevokeBy::Principal => {
                let uid = uid(value)?;
                which(&|live| acts_for(&live.start.principal, uid))
            }
            RevokeBy::Credential => {
                credentials::check(Some(value))?;
                which(&|live| live.start.credential.as_deref() == Some(value))
            }
            // a narrowed session has another policy now than at its start
            RevokeBy::Policy => which(&|live| live.policy.name == value || live.start.policy.name == value),
            RevokeBy::Label => {
                let Some((key, value)) = value.split_once('=') else {
                    let message = format!("{value:?} is no label: write key=value");
                    return Err(ApiError::BadRequest { message });
                };
                which(&|live| live.start.labels.get(key).is_some_and(|own| own == value))
            }
        })
    }

    /// One session less that revocations wait for.
    pub(super) fn revoked(&mut self, id: SessionId, members_left: u64) {
        for mut revoking in std::mem::take(&mut self.revoking) {
            if revoking.pending.remove(&id) {
                let name = id.to_string();
                revoking.revoked.sessions.iter_mut().filter(|row| row.id == name).for_each(|row| {
                    row.members_left = members_left;
                });
            }
            if revoking.pending.is_empty() {
                revoking.reply.finish(Ok(Reply::Revoked(revoking.revoked)));
            } else {
                self.revoking.push(revoking);
            }
        }
    }
}

/// The one id that begins with `prefix`.
fn the_one<'a>(ids: impl Iterator<Item = &'a SessionId>, prefix: &str) -> Result<SessionId, ApiError> {
    let mut matching = ids.filter(|id| id.has_prefix(prefix));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(*id),
        (None, _) => Err(ApiError::NotFound {
            message: format!("no live session has an id that begins with {prefix:?}: see `tipstaff ps`"),
        }),
        (Some(_), Some(_)) => Err(ApiError::NotFound {
            message: format!("more than one live session has an id that begins with {prefix:?}: give more digits"),
        }),
    }
}

fn row(live: &Live) -> RevokedRow {
    let context = &live.start.context;
    RevokedRow {
        id: live.start.session.to_string(),
        policy: live.policy.name.clone(),
        uid: live.start.principal.uid,
        pid: context.pid,
        command: context.command.iter().map(Text::to_string).collect(),
        members_left: 0,
    }
}

fn uid(text: &str) -> Result<u32, ApiError> {
    text.parse().map_err(|_no_number| ApiError::BadRequest { message: format!("{text:?} is no user id") })
}

/// Whether a process is in a cgroup or below it. One that is gone is nowhere else.
/// Whether these processes stand still after a `SIGSTOP`; one that is gone does.
fn stand_still(pids: &[u32]) -> bool {
    let start = Instant::now();
    let stopped = |pid: &u32| doing(*pid).starts_with(['T', 't', 'Z', 'X', 'g']);
    while !pids.iter().all(stopped) {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(GLANCE);
    }
    true
}

fn is_below(pid: u32, mount: &Path, cgroup: &Path) -> bool {
    let gone = || fs::metadata(PathBuf::from(format!("/proc/{pid}"))).is_err();
    cgroup_of(pid, mount).map_or_else(|_| gone(), |own| own.starts_with(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_one_session_or_says_why_not() {
        let ids = [[0xab; 16], [0xac; 16]].map(SessionId::from_random);
        let told = |prefix: &str| the_one(ids.iter(), prefix).map_err(|error| error.to_string());
        assert_eq!(told("ab"), Ok(ids[0]));
        assert_eq!(told(&ids[1].to_string()), Ok(ids[1]));
        assert!(told("a").is_err_and(|why| why.contains("more than one live session") && why.contains("more digits")));
        for unknown in ["", "b", "abx"] {
            assert!(told(unknown).is_err_and(|why| why.contains("no live session") && why.contains("tipstaff ps")));
        }
    }
}
