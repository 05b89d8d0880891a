//! Files of rules that were replaced or changed while sessions live. From the change on the kernel denies what is not as it
//! was; here it is looked at again, and what it is now is put in force in one step.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use tipstaff_common::rule;
use tracing::{info, warn};

use super::{
    Engine, Live, complain,
    resolve::{self, Before},
};
use crate::{
    enforce::directories_of,
    kernel::{boot_now, ring::Event},
    policy::{self, Effect, ExecRule, ExecTarget, Policy, Resolved},
    session::{SessionId, State},
};

/// Changes that come together are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);
/// Looking takes at most a fifth of the time, whoever changes files or tries what is denied.
const SHARE: u32 = 4;

/// When rules are resolved again.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    due: Option<u64>,
    /// Not before this, `CLOCK_BOOTTIME` nanoseconds.
    earliest: u64,
    /// The directories to watch, by the digest of the policy, since its files were looked at last.
    ways: BTreeMap<String, BTreeSet<PathBuf>>,
}

impl Refresh {
    pub(super) const fn due(&self) -> Option<u64> {
        self.due
    }
}

impl Engine {
    /// Something happened in a directory where files of rules stand.
    pub fn files_changed(&mut self) {
        if self.parts.files.happened() {
            self.refresh_soon();
        }
    }

    /// Somebody waits to write a file that was hashed: first the kernel's tables say so, then it is let go.
    pub fn leases_wanted(&mut self) {
        let wanted = self.digests.wanted_back();
        if wanted.is_empty() {
            return;
        }
        self.refresh();
        self.digests.let_go(|id| !wanted.contains(id));
        self.refresh_soon();
    }

    /// A program was denied that may have been replaced since its rule was resolved.
    pub(super) fn maybe_replaced(&mut self, event: &Event) {
        let Event::Exec(exec) = event else { return };
        let code = exec.header.rule;
        let refused = matches!(exec.header.verdict, rule::DENY | rule::KILL | rule::WOULD_DENY);
        if refused && matches!(code, rule::REASON_CHANGED | rule::REASON_DIGEST) {
            self.refresh_soon();
        }
    }

    /// Looks at once where something happened that was not looked at yet.
    pub(super) fn refresh_now(&mut self) {
        if self.parts.files.happened() || self.refresh.due.is_some() {
            self.refresh();
        }
    }

    fn refresh_soon(&mut self) {
        let soon = boot_now() + u64::try_from(TOGETHER.as_nanos()).unwrap_or(0);
        self.refresh.due.get_or_insert_with(|| soon.max(self.refresh.earliest));
    }

    /// Looks at the files of all live sessions' rules, and puts in force what they are now.
    pub(super) fn refresh(&mut self) {
        let began = Instant::now();
        self.refresh.due = None;
        let ids: Vec<SessionId> =
            self.sessions.iter().filter(|(_, live)| is_concerned(live)).map(|(id, _)| *id).collect();
        let mut looks = Vec::new();
        for id in ids {
            if let Err(problem) = self.refresh_session(id, &mut looks) {
                warn!("session {id}: its rules are as they were, because they cannot be resolved: {problem}");
            }
        }
        self.refresh.ways.clear();
        self.watch_files();
        let pause = began.elapsed().saturating_mul(SHARE);
        self.refresh.earliest = boot_now() + u64::try_from(pause.as_nanos()).unwrap_or(0);
    }

    fn refresh_session(&mut self, id: SessionId, looks: &mut Vec<Look>) -> Result<(), String> {
        let Some(live) = self.sessions.get(&id) else { return Ok(()) };
        // whose processes were there before counts as root's: see `SESSION_CONFIG`'s `ROOT_WRITES`
        let by_root = live.start.principal.uid == 0 || live.start.attached.is_some();
        let host = match looks.iter().find(|look| look.is_of(live, by_root)) {
            Some(look) => look.found.clone(),
            None => {
                let before = Before { host: &live.host, by_root };
                let found = resolve::again(&mut self.parts.kernel, &mut self.digests, &live.policy, before);
                let found = found.map_err(|e| e.to_string())?;
                let (digest, before) = (live.policy.digest.clone(), live.host.clone());
                looks.push(Look { digest, by_root, before, found: found.clone() });
                found
            }
        };
        if host == live.host {
            return Ok(());
        }
        let plan = policy::compile(&live.policy, &host)
            .map_err(|problems| problems.first().map(ToString::to_string).unwrap_or_default())?;
        let mut plan = plan.renumbered(&live.plan.rules).ok_or("there are more rules than numbers")?;
        plan.keep_but_programs(&live.plan);
        if plan.exec == live.plan.exec {
            return Ok(());
        }
        let reference = live.reference;
        let (slot, plan) = self.policies.acquire(&mut self.parts.kernel, plan).map_err(|e| e.to_string())?;
        if let Err(problem) = self.parts.kernel.set_policy(reference, slot) {
            complain("releasing a policy", self.policies.release(&mut self.parts.kernel, slot));
            return Err(problem.to_string());
        }
        let Some(live) = self.sessions.get_mut(&id) else { return Ok(()) };
        let old = std::mem::replace(&mut live.policy_slot, slot);
        (live.plan, live.host) = (plan, host);
        info!("session {id}: files that its rules name were replaced or changed, and were looked at again");
        self.keep(id);
        self.retire(id, old);
        Ok(())
    }

    /// Lets the leases go that no live session needs.
    pub(super) fn let_leases_go(&mut self) {
        let sessions = &self.sessions;
        self.digests
            .let_go(|id| sessions.values().any(|live| is_concerned(live) && live.host.digests.contains_key(id)));
    }

    /// Watches the directories of all files that rules of live sessions name, and lets leases go that nobody needs.
    pub(super) fn watch_files(&mut self) {
        // a policy is looked at once, also while others come and go: what leads elsewhere is a change that is told
        let (mut known, mut ways) = (std::mem::take(&mut self.refresh.ways), BTreeMap::new());
        for policy in self.sessions.values().filter(|live| is_concerned(live)).map(|live| &live.policy) {
            if !ways.contains_key(&policy.digest) {
                let found = known.remove(&policy.digest).unwrap_or_else(|| directories(policy));
                ways.insert(policy.digest.clone(), found);
            }
        }
        let wanted = ways.values().flatten().cloned().collect();
        self.refresh.ways = ways;
        self.let_leases_go();
        for (path, error) in self.parts.files.set(&wanted) {
            if error.kind() != std::io::ErrorKind::NotFound {
                warn!("{} is not watched, so what is replaced there is looked at late: {error}", path.display());
            }
        }
    }
}

/// The directories whose change can make a rule of the policy name another file.
fn directories(policy: &Policy) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for rule in &policy.exec {
        match &rule.target {
            ExecTarget::Path(path) => found.extend(directories_of(path)),
            ExecTarget::Glob(pattern) => {
                found.extend(resolve::matching(pattern).iter().flat_map(|path| directories_of(path)));
                // whatever comes to stand there
                let any = |folder: PathBuf| directories_of(&folder.join("x"));
                found.extend(resolve::parents(pattern).into_iter().flat_map(any));
            }
            // another directory is looked for only where the rule denies
            ExecTarget::Dir(path) if rule.effect == Effect::Deny => found.extend(directories_of(path)),
            ExecTarget::Dir(_) | ExecTarget::Class(_) => {}
        }
    }
    found
}

/// What the rules of a policy were found to name, which is the same for every session that stands where this one did.
#[derive(Debug)]
struct Look {
    digest: String,
    by_root: bool,
    before: Resolved,
    found: Resolved,
}

impl Look {
    fn is_of(&self, live: &Live, by_root: bool) -> bool {
        self.digest == live.policy.digest && self.by_root == by_root && self.before == live.host
    }
}

/// Whether the session lives and has rules on files, or denies directories.
fn is_concerned(live: &Live) -> bool {
    let files = |rule: &ExecRule| match rule.target {
        ExecTarget::Path(_) | ExecTarget::Glob(_) => true,
        ExecTarget::Dir(_) => rule.effect == Effect::Deny,
        ExecTarget::Class(_) => false,
    };
    live.machine.state() != State::Ended && live.policy.exec.iter().any(files)
}
