//! Stays: a revoked principal, policy or credential cannot start again for a time, also after a restart of the agent or the
//! host. Within a boot it is over when both clocks say so; across boots only the wall clock goes on, and what it says while it
//! may be wrong is not final.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Engine, complain, now, start::principal};
use crate::{
    api::{
        server::Peer,
        wire::{self, ApiError, RevokeBy},
    },
    duration,
    evidence::{Body, Gap, GapCause, Lift, Moment, Principal, Refused, Text},
    session::SessionId,
};

/// What helps against a stay.
pub(super) const REMEDY: &str = "wait, or have the stay lifted (`tipstaff revoke --lift`)";

/// A stay that is over is forgotten this long after, nanoseconds of running: a wall clock that was ahead, and is set right
/// meanwhile, brings it back.
const FORGET_NS: u64 = 3_600_000_000_000;

/// What cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "lowercase")]
pub enum Stayed {
    /// Sessions that act for a user id, the caller's or that of its login.
    Principal(u32),
    /// Sessions under a policy of this name.
    Policy(String),
    /// Sessions that act with the credential of this fingerprint.
    Credential(String),
}

/// One stay, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stay {
    /// Names it; never used again.
    pub id: SessionId,
    /// What cannot start.
    pub what: Stayed,
    /// Until when.
    pub until: Timestamp,
    /// Who revoked it.
    pub principal: Principal,
    /// Until when on `CLOCK_BOOTTIME`, and in which boot; none: it was kept by an agent that went by the wall clock alone.
    #[serde(default)]
    pub until_boot: Option<BootEnd>,
}

/// A moment of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootEnd {
    /// The kernel's boot id.
    pub boot: String,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
}

impl Stay {
    /// In another boot than the one that it is of, it lasts as long as the wall clock says now.
    /// False: it is of this boot.
    fn anchor(&mut self, boot: &str, at: Moment) -> bool {
        if self.until_boot.as_ref().is_some_and(|end| end.boot == boot) {
            return false;
        }
        let left = u64::try_from(self.until.duration_since(at.time).as_nanos().max(0)).unwrap_or(u64::MAX);
        self.until_boot = Some(BootEnd { boot: boot.to_owned(), boot_ns: at.boot_ns.saturating_add(left) });
        true
    }

    /// Whether it is over by both clocks: a step of one ends it no earlier.
    fn is_over(&self, at: Moment) -> bool {
        self.until <= at.time && self.boot_ns() <= at.boot_ns
    }

    fn is_to_forget(&self, at: Moment) -> bool {
        self.is_over(at) && self.boot_ns().saturating_add(FORGET_NS) <= at.boot_ns
    }

    fn boot_ns(&self) -> u64 {
        self.until_boot.as_ref().map_or(0, |end| end.boot_ns)
    }

    /// Whether it keeps this principal, a policy of this name, or this credential from starting.
    fn holds(&self, principal: &Principal, policy: &str, credential: Option<&str>) -> bool {
        match &self.what {
            Stayed::Principal(uid) => acts_for(principal, *uid),
            Stayed::Policy(name) => name == policy,
            Stayed::Credential(fingerprint) => Some(fingerprint.as_str()) == credential,
        }
    }

    /// What it keeps from starting, for whoever asked.
    pub(super) fn told(&self) -> String {
        let whom = match &self.what {
            Stayed::Principal(uid) => format!("user {uid}"),
            Stayed::Policy(name) => format!("policy {name}"),
            Stayed::Credential(fingerprint) => format!("credential {fingerprint:.12}"),
        };
        format!("{whom} is revoked until {} (stay {:.8})", self.until, self.id)
    }

    pub(super) fn wire(&self) -> wire::Stay {
        let (by, value) = match &self.what {
            Stayed::Principal(uid) => (RevokeBy::Principal, uid.to_string()),
            Stayed::Policy(name) => (RevokeBy::Policy, name.clone()),
            Stayed::Credential(fingerprint) => (RevokeBy::Credential, fingerprint.clone()),
        };
        wire::Stay { id: self.id.to_string(), by: by.as_str().into(), value, until: self.until.to_string() }
    }
}

/// Whether a session of this principal acts for a user id.
pub(super) fn acts_for(principal: &Principal, uid: u32) -> bool {
    principal.uid == uid || principal.login_uid == Some(uid)
}

impl Engine {
    /// Reads the stays that were kept; one that cannot be read is reported and holds nothing.
    pub(super) fn load_stays(&mut self) {
        let Some((stays, unreadable)) = complain("reading the stays", self.parts.store.stays()) else { return };
        for why in unreadable {
            warn!("{why}");
            let detail = format!("a stay keeps nothing from starting: {why}");
            self.append_durable(&Body::Gap(Gap { detail: Some(detail), ..Gap::new(GapCause::AgentAbsent) }));
        }
        self.stays = stays;
        let (boot, at) = (self.parts.store.boot().to_owned(), now());
        for stay in &mut self.stays {
            if stay.anchor(&boot, at) {
                complain("keeping a stay", self.parts.store.keep_stay(stay.id, stay));
            }
        }
        self.drop_past_stays();
    }

    /// The stay that keeps a principal, a policy of this name or a credential from going on; of several the longest: that
    /// is what the caller has to wait for.
    pub(super) fn stay_over(&self, principal: &Principal, policy: &str, credential: Option<&str>) -> Option<&Stay> {
        let at = now();
        let holds = |stay: &&Stay| !stay.is_over(at) && stay.holds(principal, policy, credential);
        self.stays.iter().filter(holds).max_by_key(|stay| stay.until)
    }

    fn drop_past_stays(&mut self) {
        let at = now();
        let (past, stays) = std::mem::take(&mut self.stays).into_iter().partition(|stay: &Stay| stay.is_to_forget(at));
        self.stays = stays;
        for stay in past {
            complain("forgetting a stay", self.parts.store.forget_stay(stay.id));
        }
    }

    /// Refuses what a stay keeps from starting, and records it.
    pub(super) fn check_stays(&mut self, run: &wire::Run, principal: Principal, policy: &str) -> Result<(), ApiError> {
        self.drop_past_stays();
        let credential = run.credential.as_deref();
        let Some(what) = self.stay_over(&principal, policy, credential).map(Stay::told) else { return Ok(()) };
        let remedy = REMEDY.to_owned();
        let (command, _) = Text::list(&run.command.argv, super::report::COMMAND);
        let (policy, message) = (run.policy_source.clone(), what.clone());
        self.append_durable(&Body::Refused(Refused { principal, command, policy, rule: None, message }));
        Err(ApiError::Refused { message: what, rule: None, remedy })
    }

    /// Keeps a principal, a policy or a credential from starting; it survives a loss of power when this returns.
    pub(super) fn stay(&mut self, what: Stayed, length: &str, by: Principal) -> Result<Stay, ApiError> {
        let bad = |why: String| ApiError::BadRequest { message: format!("--stay {length:?} {why}") };
        let length_of = duration::parse(length).map_err(|error| bad(error.to_string()))?;
        let at = now();
        let until = SignedDuration::try_from(length_of).ok().and_then(|d| at.time.checked_add(d).ok());
        let until = until.ok_or_else(|| bad("is too long".into()))?;
        let mut stay = Stay { id: super::start::fresh_id()?, what, until, principal: by, until_boot: None };
        stay.anchor(self.parts.store.boot(), at);
        let kept = self.parts.store.keep_stay(stay.id, &stay);
        kept.map_err(|error| ApiError::Failed { message: error.to_string() })?;
        self.stays.push(stay.clone());
        Ok(stay)
    }

    pub(super) fn list_stays(&mut self) -> wire::Stays {
        self.drop_past_stays();
        let at = now();
        let mut stays: Vec<&Stay> = self.stays.iter().filter(|stay| !stay.is_over(at)).collect();
        stays.sort_by_key(|stay| stay.until);
        wire::Stays { stays: stays.into_iter().map(Stay::wire).collect() }
    }

    /// Lifts a stay before its time.
    pub(super) fn lift(&mut self, lift: &wire::Lift, peer: &Peer) -> Result<wire::Stays, ApiError> {
        self.drop_past_stays();
        let at = now();
        let matching: Vec<usize> = (0..self.stays.len())
            .filter(|index| {
                let stay = &self.stays[*index];
                !stay.is_over(at) && stay.id.has_prefix(&lift.id)
            })
            .collect();
        let [index] = matching[..] else {
            let what = if matching.is_empty() { "no stay has" } else { "more than one stay has" };
            let message = format!("{what} an id that begins with {:?}: see `tipstaff revoke --list`", lift.id);
            return Err(ApiError::NotFound { message });
        };
        let id = self.stays[index].id;
        self.parts
            .store
            .forget_stay(id)
            .map_err(|error| ApiError::Failed { message: format!("cannot forget stay {id:.8}: {error}") })?;
        let stay = self.stays.remove(index);
        self.append_durable(&Body::Lift(Lift { principal: principal(peer), stay: id.to_string() }));
        Ok(wire::Stays { stays: vec![stay.wire()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn principal(uid: u32, login_uid: Option<u32>) -> Principal {
        Principal { uid, gid: 0, login_uid }
    }

    fn stay(what: Stayed) -> Stay {
        let until = "2026-11-22T00:00:00Z".parse().expect("a time");
        Stay { id: SessionId::from_random([7; 16]), what, until, principal: principal(0, None), until_boot: None }
    }

    #[test]
    fn a_stay_holds_whom_it_names() {
        let uid = stay(Stayed::Principal(1000));
        assert!(uid.holds(&principal(1000, None), "p", None));
        assert!(uid.holds(&principal(0, Some(1000)), "p", None), "a login that became root");
        assert!(!uid.holds(&principal(1001, Some(1001)), "p", None));
        let policy = stay(Stayed::Policy("p".to_owned()));
        assert!(policy.holds(&principal(7, None), "p", None) && !policy.holds(&principal(7, None), "q", None));
        let credential = stay(Stayed::Credential("ab".to_owned()));
        let holds = |fingerprint| credential.holds(&principal(7, None), "ab", fingerprint);
        assert!(holds(Some("ab")) && !holds(Some("cd")) && !holds(None));
    }

    /// A clock that is stepped, in either direction, ends nothing before its time.
    #[test]
    fn a_stay_ends_when_both_clocks_say_so() {
        const HOUR: u64 = 3_600_000_000_000;
        let moment = |time: &str, boot_hours: u64| Moment {
            time: format!("2026-11-{time}Z").parse().expect("a time"),
            boot_ns: boot_hours * HOUR,
        };
        let mut kept = stay(Stayed::Principal(7));
        kept.anchor("this", moment("21T22:00:00", 10));
        assert_eq!(kept.boot_ns(), 12 * HOUR);
        for (at, over, forgotten) in [
            (moment("21T23:00:00", 11), false, false),
            // stepped ahead by a day, and set right again
            (moment("22T23:00:00", 11), false, false),
            (moment("21T23:30:00", 11), false, false),
            // stepped back by an hour: it lasts by the wall clock
            (moment("21T23:00:00", 12), false, false),
            (moment("22T00:00:00", 12), true, false),
            (moment("22T01:00:00", 13), true, true),
        ] {
            assert_eq!((kept.is_over(at), kept.is_to_forget(at)), (over, forgotten), "{at:?}");
        }
        // within the boot another agent goes on with it
        let before = kept.clone();
        kept.anchor("this", moment("21T20:00:00", 11));
        assert_eq!(kept, before);
        // another boot, whose wall clock is ahead at first: for as long as that may come out it is not forgotten
        kept.anchor("next", moment("23T00:00:00", 0));
        assert!(kept.is_over(moment("23T00:00:00", 0)) && !kept.is_to_forget(moment("23T00:59:00", 0)));
        assert!(!kept.is_over(moment("21T23:00:00", 0)), "set right, it holds");
        assert!(kept.is_to_forget(moment("23T01:00:00", 1)));
        // and one whose clock is right
        let mut right = before;
        right.anchor("next", moment("21T23:00:00", 0));
        assert_eq!(right.boot_ns(), HOUR);
        assert!(!right.is_over(moment("23T00:00:00", 0)) && right.is_over(moment("22T00:00:00", 1)));
    }

    /// Nothing in a stay is of one boot alone.
    #[test]
    fn a_stay_is_there_after_a_reboot() {
        let state = tempfile::tempdir().expect("a folder");
        let open = |boot: &str| Store::open(state.path(), boot.to_owned()).expect("the store opens").0;
        for kept in [stay(Stayed::Policy("p".to_owned())), stay(Stayed::Credential("ab".to_owned()))] {
            open("one boot").keep_stay(kept.id, &kept).expect("it is kept");
            let (stays, unreadable) = open("another boot").stays().expect("the stays are read");
            assert_eq!((stays, unreadable), (vec![kept.clone()], Vec::new()));
            open("a third").forget_stay(kept.id).expect("it is forgotten");
            assert_eq!(open("a third").stays::<Stay>().expect("the stays are read").0, Vec::new());
        }
    }
}
