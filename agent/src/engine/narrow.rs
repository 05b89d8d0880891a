//! `narrow`: a live session gets a stricter scope. The new rules are complete in the kernel before one word of the
//! session makes them count; sessions that shared the old rules keep them.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use tipstaff_common::rule::FileId;
use tracing::warn;

use super::{
    Engine, Live, complain,
    limits::ending,
    look::identities,
    resolve, scripts,
    slots::Place,
    start::{self, failed},
    stays,
};
use crate::{
    api::{
        server::Peer,
        wire::{self, ApiError, Reply},
    },
    evidence::{Body, SessionNarrowed},
    kernel::{Kernel, KernelError, boot_now, wait_for_programs},
    policy::{self, Candidate, CompileProblem, ExecTarget, Limits, Plan, Policy, Resolved, UnixTarget, Wider},
    session::{Input, SessionId, State},
    store::{Kept, Named, Narrowed, PolicyText},
};

/// Files that are open at once.
const CHUNK: usize = 256;

/// What a session is to be narrowed to.
struct Narrower {
    /// The text of the policy; the rules that were removed from it.
    text: Option<PolicyText>,
    policy: Policy,
    /// Where the policy came from.
    source: String,
    host: Resolved,
    removed: Vec<String>,
    /// The phase that it will be in.
    phase: Option<String>,
    notes: Vec<String>,
}

impl Engine {
    /// Narrows a session, or refuses and changes nothing.
    pub(super) fn narrow(&mut self, request: &wire::Narrow, peer: &Peer) -> Result<Reply, ApiError> {
        let began = Instant::now();
        let id = self.find(&request.id)?;
        let Some(live) = self.sessions.get(&id) else {
            return Err(ApiError::NotFound { message: format!("session {id} is over") });
        };
        if live.machine.reason().is_some() || live.machine.state() == State::Starting {
            return Err(ending(id, live));
        }
        let narrower = match (&request.policy, request.remove.as_slice(), &request.to) {
            (Some(text), [], None) => {
                self.narrower_by_policy(id, text, request.policy_source.as_deref().unwrap_or("-"))?
            }
            (None, ids @ [_, ..], None) => self.narrower_by_removal(id, ids, None)?,
            (None, [], Some(phase)) => self.narrower_by_phase(id, phase)?,
            _ => {
                let message = "narrow takes a policy, the ids of rules to remove, or the name of a phase".to_owned();
                return Err(ApiError::BadRequest { message });
            }
        };
        self.check_digests(id, &narrower.1)?;
        self.put_in_force(id, narrower, peer, began)
    }

    /// A rule that allows a file with a digest denies it with another: to take it away must not let the file run.
    pub(super) fn check_digests(&mut self, id: SessionId, plan: &Plan) -> Result<(), ApiError> {
        let Some(live) = self.sessions.get(&id) else { return Ok(()) };
        if live.policy.exec.iter().all(|rule| rule.digest.is_none()) {
            return Ok(());
        }
        let above = above(&mut self.parts.kernel, &live.policy, &live.host).map_err(failed)?;
        if !policy::unbound(&live.plan, plan, &above) {
            return Ok(());
        }
        let message = "a program that the session runs with one digest only would run with any".into();
        let remedy = "leave its rule with sha256, or take away what else allows it too".into();
        Err(ApiError::Refused { message, rule: None, remedy })
    }

    fn narrower_by_policy(&mut self, id: SessionId, text: &str, source: &str) -> Result<(Narrower, Plan), ApiError> {
        let policy = policy::parse(source, text.as_bytes()).map_err(|problems| ApiError::BadPolicy { problems })?;
        let mut host = resolve::rules(&mut self.parts.kernel, &mut self.digests, &policy).map_err(failed)?;
        let above = above(&mut self.parts.kernel, &policy, &host).map_err(failed)?;
        // what the new rules were found to name, those in force know too
        self.refresh_now();
        let Some(live) = self.sessions.get(&id) else {
            return Err(ApiError::NotFound { message: format!("session {id} is over") });
        };
        // the resolvers are those that the session started with
        host.resolvers.clone_from(&live.host.resolvers);
        // an address of this host is one to the session's end
        host.own.extend_from_slice(&live.host.own);
        let plan = compiled(policy::compile(&policy, &host))?;
        let candidate = Candidate { policy: &policy, host: &host, plan: &plan, above: &above };
        if let Some(wider) = wider(live, &candidate) {
            let message = format!("policy {} is wider than the session's: {wider}", policy.name);
            let remedy = "a session can only be narrowed: allow less, or start another".into();
            return Err(ApiError::Refused { message, rule: None, remedy });
        }
        if policy.nested && !live.policy.nested {
            let message = format!("policy {} lets members start sessions, and the session's does not", policy.name);
            let remedy = "leave nested out".into();
            return Err(ApiError::Refused { message, rule: None, remedy });
        }
        check_limits(&policy, &live.rules)?;
        if let Some(stay) = self.stay_over(&live.start.principal, &policy.name, live.start.credential.as_deref()) {
            return Err(ApiError::Refused { message: stay.told(), rule: None, remedy: stays::REMEDY.into() });
        }
        let mut notes: Vec<String> = plan.notes.iter().map(ToString::to_string).collect();
        notes.extend(scripts::check(&policy, live.start.principal.uid == 0)?);
        notes.extend(self.check_controls(&policy, live.start.attached.is_some())?);
        notes.extend(self.check_taken_later(live, &policy)?);
        notes.sort();
        let (text, source) = (Some(text.into()), source.to_owned());
        Ok((Narrower { text, policy, source, host, removed: Vec::new(), phase: None, notes }, plan))
    }

    /// By the rules that a phase does not name. Phases only ever take away: one that keeps a rule that the phase before
    /// took away would give it back.
    fn narrower_by_phase(&self, id: SessionId, phase: &str) -> Result<(Narrower, Plan), ApiError> {
        let Some(live) = self.sessions.get(&id) else {
            return Err(ApiError::NotFound { message: format!("session {id} is over") });
        };
        let (policy, phases) = (&live.policy, &live.policy.phases);
        let Some((gone, stays)) = policy.outside(phase).zip(phases.get(phase)) else {
            let known: Vec<&str> = phases.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("policy {} has no phase {phase:?}: its phases are {known}", policy.name);
            return Err(ApiError::BadRequest { message });
        };
        let refused = |message: String| {
            let remedy = "a session can only be narrowed: start another".into();
            ApiError::Refused { message, rule: None, remedy }
        };
        if let Some(own) = live.phase.as_deref() {
            if own == phase {
                return Err(refused(format!("session {id:.8} is in phase {phase} already")));
            }
            let back = phases.get(own).and_then(|own| stays.iter().find(|rule| !own.contains(*rule)));
            if let Some(rule) = back {
                let message = format!("phase {phase} has rule {rule}, which phase {own} took from session {id:.8}");
                return Err(refused(message));
            }
        }
        // what an operator took away does not come back with a phase
        let absent: Vec<&str> =
            stays.iter().map(String::as_str).filter(|id| live.removed.iter().any(|r| r == id)).collect();
        let note = (!absent.is_empty())
            .then(|| format!("removed before, and not in the session any more: {}", absent.join(", ")));
        let (mut narrower, plan) = self.narrower_by_removal(id, &gone, Some(phase))?;
        narrower.notes.extend(note);
        Ok((narrower, plan))
    }

    fn narrower_by_removal(
        &self,
        id: SessionId,
        ids: &[String],
        phase: Option<&str>,
    ) -> Result<(Narrower, Plan), ApiError> {
        let Some(live) = self.sessions.get(&id) else {
            return Err(ApiError::NotFound { message: format!("session {id} is over") });
        };
        let (policy, host) = live.policy.without(&live.host, ids).map_err(|(rule, there)| {
            if there {
                let message = format!("rule {rule} denies: without it the session could do more");
                let remedy = "a session can only be narrowed: remove rules that allow".into();
                return ApiError::Refused { message, rule: Some(rule.to_owned()), remedy };
            }
            let message = format!("the session's policy has no rule {rule:?}: see `tipstaff inspect`");
            ApiError::BadRequest { message }
        })?;
        let plan = compiled(policy::compile_less(&policy, &host))?;
        let (source, removed, notes) = (live.source.clone(), ids.to_vec(), Vec::new());
        let phase = phase.map(str::to_owned).or_else(|| live.phase.clone());
        Ok((Narrower { text: None, policy, source, host, removed, phase, notes }, plan))
    }

    /// Rules and the store, then the one word, then the record: an agent that dies on the way leaves the scope before, or one
    /// that the next agent puts in force.
    fn put_in_force(
        &mut self,
        id: SessionId,
        (narrower, plan): (Narrower, Plan),
        peer: &Peer,
        began: Instant,
    ) -> Result<Reply, ApiError> {
        let gone = || ApiError::NotFound { message: format!("session {id} is over") };
        let live = self.sessions.get(&id).ok_or_else(gone)?;
        let plan = plan.renumbered(&live.plan.rules).ok_or_else(|| ApiError::Refused {
            message: "the session's policies had more rules than there are numbers for".into(),
            rule: None,
            remedy: "start another session".into(),
        })?;
        let reference = live.reference;
        let budgets = narrower.policy.budgets.stricter(live.policy.budgets);
        let waited = self.parts.kernel.waited();
        let old_budgets = live.policy.budgets.for_kernel();
        let place = self.policies.place(plan).map_err(failed)?;
        let begun = self.kept_narrower(live, &narrower, &place);
        let (kernel, store) = (&mut self.parts.kernel, &self.parts.store);
        // an agent that dies before the rules are there finds the narrowing kept, and no rules: the scope before
        let kept = self.policies.take(kernel, &place, || store.keep(&begun)).map_err(|problem| {
            self.keep(id);
            failed(problem)
        })?;
        let Place { slot, plan, .. } = place;
        let waited = self.parts.kernel.waited().saturating_sub(waited);
        let done = match kept {
            // what is not kept does not hold: the next agent would not know of it
            Err(problem) => Err(format!("its narrower scope cannot be kept: {problem}")),
            Ok(()) => {
                let budgets_set = self.parts.kernel.set_budgets(reference, budgets.for_kernel());
                budgets_set.and_then(|()| self.parts.kernel.set_policy(reference, slot)).map_err(|e| {
                    complain("setting budgets back", self.parts.kernel.set_budgets(reference, old_budgets));
                    e.to_string()
                })
            }
        };
        if let Err(problem) = done {
            self.keep(id);
            complain("releasing a policy", self.policies.release(&mut self.parts.kernel, slot));
            return Err(failed(format!("session {id:.8} is as it was: {problem}")));
        }
        let [ms, waited_ms] = [began.elapsed(), waited].map(millis);
        let live = self.sessions.get_mut(&id).ok_or_else(gone)?;
        let old_slot = std::mem::replace(&mut live.policy_slot, slot);
        let before = start::policy_ref(&live.policy, &live.source);
        let ttl = live.longest.min(narrower.policy.ttl);
        live.longest = ttl;
        live.rules.renew &= narrower.policy.limits.renew;
        live.policy = Policy { budgets, ttl, limits: live.rules.clone(), ..narrower.policy };
        (live.plan, live.host, live.source) = (plan, narrower.host, narrower.source);
        live.revision += 1;
        complain("counting scopes", self.parts.kernel.set_scopes(reference, live.revision));
        let entered = narrower.phase.is_some() && live.phase != narrower.phase;
        live.phase = narrower.phase;
        match narrower.text {
            Some(text) => (live.policy_text, live.removed) = (text, Vec::new()),
            None => live.removed.extend(narrower.removed.iter().cloned()),
        }
        let narrowed = SessionNarrowed {
            session: id,
            principal: start::principal(peer),
            from: before,
            to: start::policy_ref(&live.policy, &live.source),
            removed: if entered { Vec::new() } else { narrower.removed.clone() },
            phase: live.phase.clone(),
            revision: live.revision,
        };
        let reply = wire::Narrowed {
            session: id.to_string(),
            revision: live.revision,
            from: narrowed.from.digest.clone(),
            to: narrowed.to.digest.clone(),
            removed: narrower.removed,
            phase: narrowed.phase.clone(),
            notes: narrower.notes,
            ms,
            waited_ms,
        };
        self.append_durable(&Body::SessionNarrowed(narrowed));
        self.shorten(id, ttl);
        self.keep(id);
        self.end_wider_within(id);
        self.tell_door();
        self.watch_files();
        self.cut_out_of_scope(id);
        self.retire(id, old_slot);
        Ok(Reply::Narrowed(reply))
    }

    /// The session as the next agent has to know it once it is narrowed, and as it was.
    fn kept_narrower(&self, live: &Live, narrower: &Narrower, place: &Place) -> Kept {
        let kept = self.kept(live);
        let longest = live.longest.min(narrower.policy.ttl);
        let mut machine = kept.machine.clone();
        if let Some(shorter) = shorter(live, longest) {
            let _ = machine.step(shorter);
        }
        let removed = match narrower.text {
            Some(_) => Vec::new(),
            None => live.removed.iter().chain(&narrower.removed).cloned().collect(),
        };
        let narrowed = Narrowed {
            revision: live.revision + 1,
            source: narrower.source.clone(),
            digest: narrower.policy.digest.clone(),
            removed,
            rules: Rc::clone(&place.plan.rules),
            longest_ms: millis(longest),
            renew: live.rules.renew && narrower.policy.limits.renew,
            phase: narrower.phase.clone(),
        };
        let policy = narrower.text.clone().unwrap_or_else(|| kept.policy.clone());
        let start_policy = Kept::beside(&policy, &live.start_text);
        let (policy_slot, policy_revision) = (place.slot, place.revision);
        let before = kept.clone();
        let named = Named::of(&narrower.host);
        let winner = if shorter(live, longest).is_some() { "policy".to_owned() } else { kept.winner.clone() };
        let narrowed = Some(narrowed);
        let begun =
            Kept { policy_slot, policy_revision, policy, start_policy, machine, narrowed, named, winner, ..kept };
        begun.begun(before)
    }

    fn shorten(&mut self, id: SessionId, ttl: Duration) {
        if let Some(shorter) = self.sessions.get(&id).and_then(|live| shorter(live, ttl)) {
            if let Some(live) = self.sessions.get_mut(&id) {
                live.winner = "policy";
            }
            self.feed(id, shorter);
        }
    }

    /// Lets go of a policy that a session does not use any more, once no program that read it before the flip can run.
    pub(super) fn retire(&mut self, id: SessionId, slot: u32) {
        if let Err(problem) = wait_for_programs() {
            warn!("the policy in slot {slot} is kept until its session ends: {problem}");
            if let Some(live) = self.sessions.get_mut(&id) {
                live.retired.push(slot);
            }
            return;
        }
        complain("releasing a policy", self.policies.release(&mut self.parts.kernel, slot));
    }
}

impl Live {
    /// The scope as the next agent has to know it.
    pub(super) fn narrowed(&self) -> Option<Narrowed> {
        (self.revision > 1).then(|| Narrowed {
            revision: self.revision,
            source: self.source.clone(),
            digest: self.policy.digest.clone(),
            removed: self.removed.clone(),
            rules: Rc::clone(&self.plan.rules),
            longest_ms: millis(self.longest),
            renew: self.rules.renew,
            phase: self.phase.clone(),
        })
    }
}

/// The time to live counts from the session's start, and never becomes longer by this.
fn shorter(live: &Live, ttl: Duration) -> Option<Input> {
    let ttl_boot_ns = live.started.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX));
    (ttl_boot_ns < live.machine.limits().ttl_boot_ns).then(|| Input::Renew { now_boot_ns: boot_now(), ttl_boot_ns })
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// A session keeps the idle limit and the windows that it started with: a policy with others is not what would hold.
fn check_limits(new: &Policy, old: &Limits) -> Result<(), ApiError> {
    let idle = new.limits.idle.is_some() && new.limits.idle != old.idle;
    let windows = !new.limits.windows.is_empty() && new.limits.windows != old.windows;
    let denials = new.limits.denials.is_some() && new.limits.denials != old.denials;
    let other = [(idle, "idle limit"), (windows, "windows"), (denials, "number of denials")];
    let Some((_, what)) = other.into_iter().find(|(is_other, _)| *is_other) else { return Ok(()) };
    let message = format!("policy {} has another {what} than the session's", new.name);
    let remedy = "narrow changes no limit but the time to live: leave it out, or as it is".into();
    Err(ApiError::Refused { message, rule: None, remedy })
}

fn compiled(plan: Result<Plan, Vec<CompileProblem>>) -> Result<Plan, ApiError> {
    plan.map_err(|problems| {
        let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        ApiError::Refused { message, rule: None, remedy: "split the policy".into() }
    })
}

/// The first thing that a policy allows and a session's does not, now or once a file comes to be.
pub(super) fn wider(live: &Live, candidate: &Candidate<'_>) -> Option<Wider> {
    let later = || policy::wider_later(&live.policy, live.plan.exec_default, candidate);
    policy::wider(&live.plan, live.policy.mode, candidate).or_else(later)
}

/// The directories above what the rules of a policy name, each in its own file system, the nearest first.
pub(super) fn above(
    kernel: &mut Kernel,
    policy: &Policy,
    host: &Resolved,
) -> Result<HashMap<FileId, Vec<FileId>>, KernelError> {
    let mut named: Vec<(FileId, PathBuf)> = Vec::new();
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut matched: Vec<PathBuf> = Vec::new();
    for (index, rule) in policy.exec.iter().enumerate() {
        match &rule.target {
            ExecTarget::Path(path) | ExecTarget::Dir(path) => {
                named.extend(host.of(index).first().map(|id| (*id, real(path))));
            }
            ExecTarget::Glob(pattern) => matched.extend(resolve::matching(pattern)),
            ExecTarget::Class(_) => {}
        }
    }
    for chunk in matched.chunks(CHUNK) {
        let paths: Vec<&Path> = chunk.iter().map(PathBuf::as_path).collect();
        let ids = identities(kernel, &paths)?;
        named.extend(ids.into_iter().zip(&paths).filter_map(|(id, path)| Some((id?, real(path)))));
    }
    for (index, rule) in policy.unix_rules().iter().enumerate() {
        let found = host.of_unix(index);
        match &rule.target {
            UnixTarget::Dir(path) => named.extend(found.and_then(|f| f.files.first()).map(|id| (*id, real(path)))),
            UnixTarget::Path(path) => {
                let place = found.and_then(|found| found.place.as_ref());
                let directory = real(path).parent().map(Path::to_owned);
                named.extend(place.zip(directory).map(|((id, _), directory)| (*id, directory)));
            }
            UnixTarget::Abstract(_) => {}
        }
    }
    let above = |path: &Path| path.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>();
    let wanted: Vec<PathBuf> =
        named.iter().flat_map(|(_, path)| above(path)).collect::<BTreeSet<_>>().into_iter().collect();
    let mut known: HashMap<PathBuf, FileId> = HashMap::new();
    for chunk in wanted.chunks(CHUNK) {
        let paths: Vec<&Path> = chunk.iter().map(PathBuf::as_path).collect();
        let ids = identities(kernel, &paths)?;
        known.extend(chunk.iter().cloned().zip(ids).filter_map(|(path, id)| Some((path, id?))));
    }
    let tree = |(id, path): (FileId, PathBuf)| {
        let ids =
            above(&path).into_iter().map_while(|path| known.get(&path).filter(|own| own.device == id.device).copied());
        (id, ids.collect::<Vec<_>>())
    };
    Ok(named.into_iter().map(tree).collect())
}
