//! What the launcher is told to lay down in tier no-lsm, where no program judges privileges later, and what of it cannot
//! be had.

use std::{fs, os::unix::fs::MetadataExt as _};

use tipstaff_common::privilege::PRIVILEGE_ALL;
use tracing::warn;

use super::{Engine, Live, Note, controls, start::started};
use crate::{
    api::wire::{self, ApiError},
    evidence::{Body, Control, ControlState, Principal, Refused, Taken},
    kernel::Tier,
    policy::{self, Policy, SYS_ADMIN, Shed, capability_names, privilege_names},
    session::{EndReason, Input, SessionId},
};

/// What a process has: of capabilities, bit n is capability n.
struct Held {
    effective: u64,
    permitted: u64,
    bounding: u64,
    no_new_privs: bool,
    filtered: bool,
}

impl Engine {
    /// What the caller `pid` lays down before its command, and what it should know of that. `None`: nothing, because
    /// kernel programs judge instead, or nothing is refused.
    pub(super) fn shed(
        &mut self,
        run: &wire::Run,
        pid: u32,
        principal: Principal,
        policy: &Policy,
    ) -> Result<(Option<Shed>, Vec<String>), ApiError> {
        let (Tier::NoLsm, Some(mut shed)) = (self.parts.kernel.tier(), policy.shed()) else {
            return Ok((None, Vec::new()));
        };
        let held = held(pid)
            .ok_or_else(|| ApiError::Failed { message: format!("the capabilities of process {pid} cannot be read") })?;
        let mut notes = Vec::new();
        let kept = shed.keep & held.bounding;
        if principal.uid == 0 && kept != 0 {
            let message = format!("a session of root keeps {} here, which no program judges", in_words(kept));
            let remedy = "run it as another user, or take from the policy's privileges (capabilities and others) and \
                          sockets (raw, packet) what keeps them";
            if policy.strict {
                let message = format!("{message}; the policy is strict");
                let refused = ApiError::Refused { message, rule: None, remedy: remedy.into() };
                return Err(self.record_refusal(run, principal, refused));
            }
            notes.push(format!("{message}: {remedy}"));
        }
        let can_have = shed.no_new_privs || held.effective & SYS_ADMIN != 0;
        if !can_have {
            notes.push(
                "the policy allows programs that give more than their caller has, so that who is not root can have \
                 neither seccomp nor landlock here: what it denies of privileges is not refused"
                    .into(),
            );
        }
        if !can_have || !self.is_in_force("seccomp") {
            shed.refuse = 0;
        }
        shed.apart &= can_have && self.is_in_force("landlock");
        Ok((Some(shed), notes))
    }

    fn is_in_force(&self, name: &str) -> bool {
        self.parts.controls.iter().any(|control| control.control == name && control.state == ControlState::Enforced)
    }

    /// A control as it is for a session that `run` started, or for one of processes that were `attached`.
    pub(super) fn control_for(&self, control: &Control, attached: bool) -> Control {
        if attached && self.parts.kernel.tier() == Tier::NoLsm && control.control == controls::TAKEN_AWAY {
            return controls::unavailable(
                &control.control,
                "without BPF LSM nothing takes privileges from a process that runs: start it with `run`",
            );
        }
        control.clone()
    }

    /// The launcher is the caller's own process, and need not be ours: looks at what it became. A process that is gone by now
    /// is not looked at; the kernel's word for the others cannot change to the better.
    pub(super) fn see_laid_down(&mut self, id: SessionId, shed: &Shed) {
        let Some(live) = self.sessions.get(&id) else { return };
        let pid = live.first_process.pid;
        let Some(mut held) = held(pid) else { return };
        if user_namespace(&pid.to_string()) != user_namespace("self") {
            // those that it has in a namespace of its own, which it may make
            held.permitted = 0;
        }
        if started(pid) != Some(live.first_process.started) {
            return;
        }
        if let Some(what) = kept(shed, &held, live.start.principal.uid == 0) {
            // by a note: what ends a session reads the rings, which are being read
            let _ = self.parts.notes.send(Note::Kept(id, what));
        }
    }

    /// A session whose first process kept what it was to lay down ends.
    pub(super) fn kept_more(&mut self, id: SessionId, what: String) {
        let Some(live) = self.sessions.get(&id) else { return };
        let message =
            format!("the first process of session {id} did not give up what the policy does not allow: {what}");
        warn!("{message}");
        let refused = Refused {
            principal: live.start.principal,
            command: live.start.context.command.clone(),
            policy: live.source.clone(),
            rule: None,
            message,
        };
        self.append_durable(&Body::Refused(refused));
        self.feed(id, Input::End { reason: EndReason::Violation });
    }

    /// In tier no-lsm a session that runs cannot be made to lay down more: classes of privileges that a scope takes from
    /// those of its start stay open.
    pub(super) fn check_taken_later(&self, live: &Live, now: &Policy) -> Result<Option<String>, ApiError> {
        let began = policy::parse(&live.source, live.start_text.as_bytes());
        let kept = began.map_or(PRIVILEGE_ALL, |began| began.privilege_classes());
        if self.parts.kernel.tier() != Tier::NoLsm || kept == now.privilege_classes() {
            return Ok(None);
        }
        let message = "without BPF LSM a session that runs keeps the privileges that it began with".to_owned();
        if now.strict {
            let message = format!("{message}; the policy is strict: start another session");
            return Err(ApiError::Unavailable { control: controls::TAKEN_AWAY.into(), message });
        }
        Ok(Some(message))
    }
}

fn held(pid: u32) -> Option<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let set = |name: &str| u64::from_str_radix(line(name)?, 16).ok();
    Some(Held {
        effective: set("CapEff")?,
        permitted: set("CapPrm")?,
        bounding: set("CapBnd")?,
        no_new_privs: line("NoNewPrivs") == Some("1"),
        // no such line: the kernel was built without
        filtered: line("Seccomp") == Some("2"),
    })
}

/// What of what it was to lay down a process has still; `root`: the sets of capabilities were its own to empty.
fn kept(shed: &Shed, held: &Held, root: bool) -> Option<String> {
    if shed.no_new_privs && !held.no_new_privs {
        return Some("it can gain privileges (no_new_privs is not set)".into());
    }
    if shed.refuse != 0 && !held.filtered {
        return Some("no seccomp filter refuses its calls".into());
    }
    let more = held.permitted & !shed.keep;
    // an ordinary user's own programs give it more where the policy lets them
    ((shed.no_new_privs || root) && more != 0).then(|| format!("it has {}", in_words(more)))
}

fn user_namespace(process: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{process}/ns/user")).ok().map(|found| found.ino())
}

/// As the evidence has it.
pub(super) fn taken(shed: &Shed) -> Taken {
    let words = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    Taken {
        no_new_privs: shed.no_new_privs,
        kept: words(capability_names(shed.keep)),
        calls: words(privilege_names(shed.refuse)),
        apart: shed.apart,
    }
}

/// A few by name; many in number.
fn in_words(set: u64) -> String {
    let names = capability_names(set);
    if names.len() > 4 { format!("{} capabilities", names.len()) } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found() {
        let nothing = || Held { effective: 0, permitted: 0, bounding: u64::MAX, no_new_privs: true, filtered: true };
        let shed = Shed::of(0, 0);
        assert_eq!(kept(&shed, &nothing(), false), None);
        assert!(kept(&shed, &Held { no_new_privs: false, ..nothing() }, false).unwrap().contains("no_new_privs"));
        assert!(kept(&shed, &Held { filtered: false, ..nothing() }, false).unwrap().contains("seccomp"));
        let powerful = || Held { permitted: SYS_ADMIN, ..nothing() };
        assert_eq!(kept(&shed, &powerful(), false).unwrap(), "it has CAP_SYS_ADMIN");
        let open = Shed { no_new_privs: false, keep: 0, refuse: 0, apart: false };
        assert!(kept(&open, &powerful(), true).is_some() && kept(&open, &powerful(), false).is_none());
        assert_eq!(kept(&Shed { keep: SYS_ADMIN, ..open }, &powerful(), true), None);
    }
}
