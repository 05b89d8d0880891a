//! What is looked at before a session starts: its policy against this host, its command, and where its caller stands.
//! Nothing here lasts but the record of a refusal.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use super::{
    Engine, controls, credentials, judge, limits, look, now, resolve, scripts,
    start::{failed, principal},
    within::Outer,
};
use crate::{
    api::{
        server::Peer,
        wire::{self, ApiError},
    },
    duration,
    evidence::{Body, ControlState, Principal, Refused, Text},
    policy::{self, Mode, Plan, Policy, Resolved},
};

/// A policy that was checked against this host.
pub(super) struct Checked {
    pub(super) policy: Policy,
    pub(super) host: Resolved,
    pub(super) plan: Plan,
    pub(super) ttl: Duration,
    pub(super) winner: &'static str,
    pub(super) notes: Vec<String>,
    /// The session that it is to be within.
    pub(super) outer: Option<Outer>,
}

impl Engine {
    /// Parses, resolves and compiles; touches nothing that lasts. `attached`: who is meant runs already.
    pub(super) fn check(&mut self, run: &wire::Run, principal: Principal, attached: bool) -> Result<Checked, ApiError> {
        let policy = policy::parse(&run.policy_source, run.policy.as_bytes())
            .map_err(|problems| ApiError::BadPolicy { problems })?;
        let (ttl, winner) = self.ttl(&policy, run.ttl.as_deref())?;
        limits::check_labels(&run.labels)?;
        credentials::check(run.credential.as_deref())?;
        self.check_stays(run, principal, &policy.name)?;
        // asked again when the session starts: nothing is made for one that may not
        let held = limits::at_start(&policy, run, ttl, now());
        held.map_err(|problem| self.record_refusal(run, principal, problem))?;
        let files = resolve::rules(&mut self.parts.kernel, &mut self.digests, &policy).map_err(failed)?;
        let plan = policy::compile(&policy, &files).map_err(|problems| {
            let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            ApiError::Refused { message, rule: None, remedy: "split the policy".into() }
        })?;
        let mut notes: Vec<String> = self.cap_note(&policy, run, winner).into_iter().collect();
        notes.extend(policy.review_by.filter(|_| policy.review_is_past(now().time)).map(|day| {
            let name = &policy.name;
            format!("policy {name} was to be reviewed by {day}: review it, and give it a later reviewBy")
        }));
        notes.extend(plan.notes.iter().map(ToString::to_string));
        let scripts = scripts::check(&policy, principal.uid == 0);
        notes.extend(scripts.map_err(|problem| self.record_refusal(run, principal, problem))?);
        notes.extend(self.check_controls(&policy, attached)?);
        Ok(Checked { policy, host: files, plan, ttl, winner, notes, outer: None })
    }

    /// The shortest limit wins and is named.
    fn ttl(&self, policy: &Policy, asked: Option<&str>) -> Result<(Duration, &'static str), ApiError> {
        let mut shortest = (policy.ttl, "policy");
        if let Some(text) = asked {
            let bad = |error| ApiError::BadRequest { message: format!("--ttl {text:?} {error}") };
            let ttl = duration::parse(text).map_err(bad)?;
            if ttl < policy.ttl {
                shortest = (ttl, "--ttl");
            }
        }
        let cap = self.parts.config.limits.max_ttl;
        Ok(if cap < shortest.0 { (cap, "host cap") } else { shortest })
    }

    /// What was asked for and is longer than the host lets a session last.
    fn cap_note(&self, policy: &Policy, run: &wire::Run, winner: &str) -> Option<String> {
        let cap = duration::format(self.parts.config.limits.max_ttl);
        let asked = run.ttl.clone().unwrap_or_else(|| duration::format(policy.ttl));
        (winner == "host cap").then(|| format!("a ttl of {asked} is over the host's max_ttl: the session lasts {cap}"))
    }

    /// Writes a refusal that no rule made into the evidence.
    pub(super) fn record_refusal(&mut self, run: &wire::Run, principal: Principal, problem: ApiError) -> ApiError {
        if let ApiError::Refused { message, .. } = &problem {
            let (command, _) = Text::list(&run.command.argv, super::report::COMMAND);
            let (policy, message) = (run.policy_source.clone(), message.clone());
            let refused = Refused { principal, command, policy, rule: None, message };
            self.append_durable(&Body::Refused(refused));
        }
        problem
    }

    /// Under `strict`, refuses what asks for a control that is not there; else says what is weaker.
    pub(super) fn check_controls(&self, policy: &Policy, attached: bool) -> Result<Vec<String>, ApiError> {
        let mut notes = Vec::new();
        for name in controls::asked(policy, look::is_script) {
            let Some(control) = self.parts.controls.iter().find(|c| c.control == name) else { continue };
            let control = self.control_for(control, attached);
            let why = control.why.unwrap_or_default();
            match control.state {
                ControlState::Enforced => {}
                ControlState::Unavailable if policy.strict => {
                    let message = format!("{why}; the policy is strict: run it on another host, or without strict");
                    return Err(ApiError::Unavailable { control: name.into(), message });
                }
                ControlState::Unavailable => notes.push(format!("control {name} is unavailable here: {why}")),
                // shown by `inspect` and `status`; not worth a line at every start
                ControlState::BestEffort | ControlState::Observe => {}
            }
        }
        Ok(notes)
    }

    /// Judges the command; a refusal is recorded. In mode `observe` it is a note.
    pub(super) fn judge(
        &mut self,
        run: &wire::Run,
        peer: &Peer,
        policy: &Policy,
        files: &Resolved,
    ) -> Result<Option<String>, ApiError> {
        let root = format!("/proc/{}/root", peer.pid);
        let path = Path::new(OsStr::from_bytes(run.command.path.as_bytes()));
        let kernel = &mut self.parts.kernel;
        let word = run.command.argv.get(1).map(Text::as_bytes);
        let judged = judge::command(kernel, policy, files, Path::new(&root), path, Some(word)).map_err(failed)?;
        let Some(refusal) = judged else { return Ok(None) };
        let what = refusal.path.display().to_string();
        let rule = policy.rule_name(refusal.rule).to_owned();
        let message = format!("policy {} does not let {what} run", policy.name);
        if policy.mode == Mode::Observe {
            return Ok(Some(format!("{message}; it runs, because the policy only observes")));
        }
        let (command, _) = Text::list(&run.command.argv, super::report::COMMAND);
        let refused = Refused {
            principal: principal(peer),
            command,
            policy: run.policy_source.clone(),
            rule: Some(rule.clone()),
            message: message.clone(),
        };
        self.append_durable(&Body::Refused(refused));
        let remedy = controls::remedy(policy, refusal.rule, &what);
        Err(ApiError::Refused { message, rule: Some(rule), remedy })
    }

    pub(super) fn check_confinement(&self, peer: &Peer, cgroup: &Path) -> Result<(), ApiError> {
        let Some(confine) = &self.parts.confine else { return Ok(()) };
        if confine.holds(cgroup) {
            return Ok(());
        }
        let message = format!("process {} is in {}, outside the confinement", peer.pid, cgroup.display());
        let remedy = format!("start it below {}", confine.path.display());
        Err(ApiError::Refused { message, rule: None, remedy })
    }
}
