//! Sessions that outlived what they were started for: their user is gone, their policy should have been reviewed by now,
//! or they do nothing. Looked at every two seconds while sessions live.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tipstaff_common::{
    event::{Header, KINDS},
    session::SessionCounters,
};

use super::{Engine, Live, complain, idle::Doings, now};
use crate::{
    evidence::{Body, Principal, PrincipalGone, User},
    kernel::boot_now,
    session::{EndReason, Input, SessionId},
    users::entries,
};

/// Between two looks, nanoseconds.
const LOOK_NS: u64 = 2_000_000_000;

/// The host's users, as far as that is known.
#[derive(Debug)]
pub(super) struct Users {
    path: PathBuf,
    /// The file as it was at the last look.
    seen: Option<Signature>,
    /// The ids in it. `None`: it was not read, or it says nothing of anybody.
    known: Option<BTreeSet<u32>>,
    /// When it is looked at again.
    due: Option<u64>,
}

/// Inode, size, and when it was changed.
type Signature = (u64, u64, i64, i64);

fn signature(path: &Path) -> Option<Signature> {
    fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

impl Users {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, known: None, due: None }
    }

    /// Looks at the file. One that changed counts once it stands still: while it is written in place it is short. One that
    /// cannot be read, or that has no users, says nothing.
    fn look(&mut self) {
        let signature = signature(&self.path);
        if signature != self.seen {
            self.seen = signature;
            self.known = None;
        } else if self.known.is_none() {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            self.known =
                Some(entries(&text).map(|(_, uid)| uid).collect::<BTreeSet<_>>()).filter(|all| !all.is_empty());
        }
    }

    /// Those of a principal's users that the file has now. What it said before says nothing of them.
    pub(super) fn of(&mut self, principal: &Principal) -> Vec<User> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let signature = signature(&self.path);
        if signature != self.seen {
            self.seen = signature;
            self.known = None;
        }
        let ids = BTreeSet::from_iter([Some(principal.uid), principal.login_uid].into_iter().flatten());
        let name = |uid: u32| entries(&text).find(|(_, own)| *own == uid).map(|(name, _)| name.to_owned());
        ids.into_iter().filter_map(|uid| Some(User { uid, name: name(uid)? })).collect()
    }

    /// The first of `users` that is not there any more.
    fn gone<'u>(&self, users: &'u [User]) -> Option<&'u User> {
        let known = self.known.as_ref()?;
        users.iter().find(|user| !known.contains(&user.uid))
    }
}

/// When a session last did anything: a program, a connect, a byte, its terminal.
#[derive(Debug)]
pub(super) struct LastSeen {
    doings: Doings,
    at: u64,
}

impl LastSeen {
    /// Of a session that starts now.
    pub(super) fn new(pid: u32, started: u64) -> Self {
        Self { doings: Doings::all(pid), at: started }
    }

    /// Of one that an earlier agent began. When its last bytes went nobody knows: the next ones count.
    pub(super) fn again(pid: u32, started: u64, counters: &SessionCounters, last: &[u64; KINDS]) -> Self {
        let mut doings = Doings::all(pid);
        doings.go_on(&counters.produced, &counters.lost, last);
        doings.carried(counters);
        Self { doings, at: started }
    }

    pub(super) fn record(&mut self, header: &Header) {
        self.doings.record(header);
    }

    fn look(&mut self, counters: &SessionCounters, consumed: &[u64; KINDS], now_boot_ns: u64) {
        let last = self.doings.look(counters, consumed, now_boot_ns);
        self.at = self.at.max(last.unwrap_or(0));
    }
}

impl Live {
    /// How long it has done nothing, milliseconds.
    pub(super) fn idle_ms(&self, now_boot_ns: u64) -> u64 {
        now_boot_ns.saturating_sub(self.last_seen.at) / 1_000_000
    }

    /// Why it is stale, as `ps` names it.
    pub(super) fn stale(&self) -> Vec<String> {
        let past = self.policy.review_is_past(now().time);
        let reasons = [(self.user_gone, "principal-gone"), (past, "review-past")];
        reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason.to_owned()).collect()
    }
}

impl Engine {
    /// When sessions are looked at again; none: there are none.
    pub(super) fn stale_due(&mut self) -> Option<u64> {
        if self.sessions.is_empty() {
            self.users.due = None;
            return None;
        }
        Some(*self.users.due.get_or_insert_with(|| boot_now() + LOOK_NS))
    }

    /// Looks whether sessions do anything and whether their users are there, once it is time.
    pub(super) fn look_for_stale(&mut self, now: u64) {
        if self.users.due.take_if(|due| *due <= now).is_none() {
            return;
        }
        self.see_activity(now);
        self.look_for_crossed();
        self.users.look();
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            self.look_for_users(id);
        }
    }

    /// Notes when each session last did something.
    pub(super) fn see_activity(&mut self, now: u64) {
        for live in self.sessions.values_mut() {
            if let Some(counters) = complain("reading counters", self.parts.kernel.counters(live.reference.slot)) {
                live.last_seen.look(&counters, &live.consumed, now);
            }
        }
    }

    /// Records that a session's user is gone, once, and ends it where its policy says so.
    fn look_for_users(&mut self, id: SessionId) {
        let Some(live) = self.sessions.get_mut(&id).filter(|live| live.machine.reason().is_none()) else { return };
        let Some(user) = self.users.gone(&live.start.users).cloned() else {
            // nobody knows while the file is being written
            live.user_gone &= self.users.known.is_none();
            return;
        };
        let told = std::mem::replace(&mut live.user_gone, true);
        let ends = live.rules.principal_gone_ends;
        if !told {
            self.append_durable(&Body::PrincipalGone(PrincipalGone { session: id, user, ends }));
        }
        if ends {
            self.feed(id, Input::End { reason: EndReason::ContextChanged });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(uid: u32, login_uid: Option<u32>) -> Principal {
        Principal { uid, gid: 0, login_uid }
    }

    #[test]
    fn only_who_was_there_can_be_gone_and_only_once_the_file_stands_still() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("passwd");
        let write = |text: &str| {
            fs::write(path.with_extension("new"), text).expect("it is written");
            fs::rename(path.with_extension("new"), &path).expect("it takes its place");
        };
        write("root:x:0:\ndeploy:x:1001:\n");
        let mut users = Users::new(path.clone());
        let known = users.of(&principal(1001, Some(1001)));
        assert_eq!(known, [User { uid: 1001, name: "deploy".to_owned() }]);
        assert_eq!(users.of(&principal(0, Some(1001))).len(), 2);
        assert_eq!(users.of(&principal(4242, None)), [], "a user that the file does not have");
        users.look();
        assert_eq!(users.gone(&known), None);
        write("root:x:0:\n");
        users.look();
        assert_eq!(users.gone(&known), None, "it was written just now");
        users.look();
        assert_eq!(users.gone(&known), known.first());
        // what is no file of users says nothing
        for text in ["", "nonsense\n"] {
            write(text);
            users.look();
            users.look();
            assert_eq!(users.gone(&known), None, "{text:?}");
        }
        write("root:x:0:\n");
        users.look();
        users.look();
        assert!(users.gone(&known).is_some());
        fs::remove_file(&path).expect("it is removed");
        users.look();
        users.look();
        assert_eq!(users.gone(&known), None, "there is no file");
    }

    #[test]
    fn a_user_that_was_just_made_is_not_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("passwd");
        fs::write(&path, "root:x:0:\n").expect("it is written");
        let mut users = Users::new(path.clone());
        users.look();
        users.look();
        fs::write(&path, "root:x:0:\nnew:x:7:\n").expect("it is written");
        let known = users.of(&principal(7, None));
        assert_eq!((known.len(), users.gone(&known)), (1, None));
        users.look();
        assert_eq!(users.gone(&known), None);
    }
}
