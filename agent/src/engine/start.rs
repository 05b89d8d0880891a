//! The start of a session: the caller of `run` becomes its first member. Nothing half-started remains: whatever fails
//! before the answer is undone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};
use tipstaff_common::{
    event::KINDS,
    label::SessionRef,
    session::{MODE_ENFORCE, MODE_OBSERVE, ROOT_WRITES, SessionConfig},
};
use tracing::info;

use super::{
    Engine, Live, Note, check::Checked, complain, crossed::Seen, idle::Doings, limits, now, shed, spent::Spent,
    stale::LastSeen, within::Outer, written::Written,
};
use crate::{
    api::{
        server::Peer,
        wire::{self, ApiError, Started},
    },
    enforce::{Flows, SessionCgroup, Sweep, cgroup_of},
    evidence::{Attachment, Body, Context, InheritedDescriptor, PolicyRef, Principal, SessionStart, Text},
    kernel::{KernelError, open_pidfd},
    policy::{Mode, Policy, Shed, delegates},
    readable::Readable,
    session::{self, Input, Session, SessionId},
    store::{First, PolicyText},
};

/// Namespaces that a session's context names.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Who is to become a session's first member, and for whom.
pub(super) struct Subject {
    pub(super) pid: u32,
    pub(super) process: OwnedFd,
    pub(super) principal: Principal,
    /// It runs already.
    pub(super) attached: Option<Attachment>,
    /// Sockets that it passes on to the command.
    pub(super) inherited: Vec<InheritedDescriptor>,
    /// What it is told to lay down.
    pub(super) shed: Option<Shed>,
}

/// A session that is recorded and has no member yet.
pub(super) struct Begun {
    pub(super) id: SessionId,
    pub(super) deadline: u64,
    pub(super) notes: Vec<String>,
}

impl Engine {
    /// Starts a session with the caller as its first member.
    pub(super) fn start(&mut self, run: &wire::Run, peer: &Peer) -> Result<Started, ApiError> {
        if self.disarming.is_some() {
            return Err(ApiError::Busy { message: "the agent is being disarmed and starts nothing".into() });
        }
        let first = pidfd_of(peer)?;
        // the gate was asked before this call waited its turn
        let outer = self.outer(first.as_fd(), peer)?;
        let home = cgroup_of(peer.pid, &self.parts.mount).map_err(failed)?;
        self.check_confinement(peer, &home)?;
        let principal = principal(peer);
        let mut checked = self.check(run, principal, false)?;
        if let Some(outer) = outer {
            let fits = self.fit_within(outer, &mut checked);
            fits.map_err(|problem| self.record_refusal(run, principal, problem))?;
        }
        let outer = checked.outer;
        checked.notes.extend(self.judge(run, peer, &checked.policy, &checked.host)?);
        let (shed, notes) = self.shed(run, peer.pid, principal, &checked.policy)?;
        checked.notes.extend(notes);
        let ttl = checked.ttl;
        let (inherited, passed) = self.inherit(run, (peer.pid, first.as_fd()), principal, &mut checked)?;
        let close = inherited.iter().filter(|socket| socket.closed).map(|socket| socket.descriptor).collect();
        let subject = Subject { pid: peer.pid, process: first, principal, attached: None, inherited, shed };
        let Begun { id, deadline, notes } = self.begin(run, subject, checked)?;
        if let Err(problem) = self.admit(id, peer) {
            self.undo(id, peer, &home, outer.map(|outer| outer.reference));
            self.feed(id, Input::StartFailed);
            return Err(ApiError::Failed { message: format!("the session could not be started: {problem}") });
        }
        // before the command begins; a caller that is let go is told by what it came with
        self.label_passed(id, &passed);
        self.feed(id, Input::Labelled);
        self.record_reuse(id, &BTreeSet::new());
        self.watch_files();
        info!("session {id} started for uid {} pid {}", peer.uid, peer.pid);
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Ok(Started { session: id.to_string(), deadline_boot_ns: deadline, ttl_ms, notes, close, shed })
    }

    /// Gives a session its place on the host, in the kernel, in the store and in the evidence. It has no member yet.
    pub(super) fn begin(&mut self, run: &wire::Run, subject: Subject, checked: Checked) -> Result<Begun, ApiError> {
        let id = fresh_id()?;
        let at = now();
        let mut held = limits::at_start(&checked.policy, run, checked.ttl, at)?;
        if let Some(outer) = &checked.outer {
            // the check took a moment
            held.limits.ttl_boot_ns = held.limits.ttl_boot_ns.min(outer.until_boot_ns);
        }
        let mode = if checked.policy.mode == Mode::Enforce { session::Mode::Enforce } else { session::Mode::Observe };
        let machine = Session::new(id, mode, held.limits, at.boot_ns);
        let deadline = machine.armed().at_boot_ns;
        let (policy_slot, plan) = self.policies.acquire(&mut self.parts.kernel, checked.plan).map_err(failed)?;
        let mut notes = checked.notes;
        // a crontab is another file after each change
        let spools = self.parts.kernel.set_spools(delegates::FOLDERS, delegates::first_folder());
        complain("looking at the folders of schedulers", spools);
        let prepared = self.prepare(id, policy_slot, (&checked.policy, checked.outer.as_ref()), deadline, &subject);
        let (reference, cgroup) = match prepared {
            Ok(prepared) => prepared,
            Err(problem) => {
                complain("releasing a policy", self.policies.release(&mut self.parts.kernel, policy_slot));
                self.rest_clock();
                return Err(problem);
            }
        };
        let start = session_start(id, run, &subject, &checked.policy, &cgroup, checked.ttl);
        let users = self.users.of(&subject.principal);
        let within = checked.outer.map(|outer| outer.session);
        let start = SessionStart { deadline_boot_ns: deadline, limits: Box::new(held.start), users, within, ..start };
        let doings = Doings::watch(&checked.policy, subject.pid);
        notes.extend(doings.missing(&checked.policy));
        let text = PolicyText::from(run.policy.as_str());
        let live = Live {
            machine,
            rules: checked.policy.limits.clone(),
            longest: checked.policy.ttl,
            reference,
            cgroup,
            policy: checked.policy,
            policy_text: text.clone(),
            start_text: text,
            source: run.policy_source.clone(),
            host: checked.host,
            removed: Vec::new(),
            phase: None,
            plan,
            policy_slot,
            retired: Vec::new(),
            revision: 1,
            start,
            winner: checked.winner,
            started: at.boot_ns,
            consumed: [0; KINDS],
            denied: 0,
            verdicts: VecDeque::new(),
            doings,
            doings_within: BTreeMap::new(),
            last_seen: LastSeen::new(subject.pid, at.boot_ns),
            user_gone: false,
            still: None,
            sweep: Sweep::default(),
            flows: Flows::default(),
            crossed: Seen::default(),
            spent: Spent::default(),
            confirmed: BTreeMap::new(),
            next_round: None,
            ending: None,
            empty: None,
            stuck: Vec::new(),
            said_over: false,
            waiting: Vec::new(),
            reported: [0; KINDS],
            reported_at: Some(self.mark()),
            first_process: First { pid: subject.pid, started: started(subject.pid).unwrap_or(0) },
            first: Some(subject.process),
            to_lay_down: subject.shed,
        };
        // kept before it is recorded: a session that is recorded always has an end, whoever writes it
        if let Err(error) = self.parts.store.keep(&self.kept(&live)) {
            self.free(&[(id, &live, 0)]);
            self.rest_clock();
            return Err(failed(error));
        }
        self.append_durable(&Body::SessionStart(Box::new(live.start.clone())));
        self.sessions.insert(id, live);
        self.tell_door();
        self.watch_within(id, true);
        notes.sort();
        Ok(Begun { id, deadline, notes })
    }

    /// Makes the session's place on the host and in the kernel. Nothing of it is left where it fails.
    fn prepare(
        &mut self,
        id: SessionId,
        policy_slot: u32,
        (policy, outer): (&Policy, Option<&Outer>),
        deadline: u64,
        subject: &Subject,
    ) -> Result<(SessionRef, SessionCgroup), ApiError> {
        self.parts.kernel.arm_clock(Some(&self.parts.pins)).map_err(failed)?;
        let reference = self.slots.take().map_err(failed)?;
        let root = &self.parts.root.path;
        let cgroup = match SessionCgroup::create(root, &id.to_string()) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                self.slots.free(reference);
                return Err(failed(KernelError::file("make a cgroup in", root)(error)));
            }
        };
        let attaching = subject.attached.is_some();
        // who is attached is refused nothing before all of it is
        let mode = if policy.mode == Mode::Enforce && !attaching { MODE_ENFORCE } else { MODE_OBSERVE };
        let flags = if subject.principal.uid == 0 || attaching { ROOT_WRITES } else { 0 };
        // what the outer session wrote is its own work as well
        let (since, flags) = outer.map_or_else(
            || (Written::since_now(), flags),
            |outer| (Written::of(&outer.written), flags | outer.written.flags & ROOT_WRITES),
        );
        let outer = outer.map(|outer| outer.reference).unwrap_or_default();
        let written = SessionConfig {
            written_since: since.time,
            written_since_boot: since.boot_ns,
            flags,
            scopes: 1,
            outer_slot: outer.slot,
            outer_generation: outer.generation,
            ..SessionConfig::default()
        };
        let config =
            SessionConfig { mode, policy: policy_slot, deadline, budgets: policy.budgets.for_kernel(), ..written };
        let begun = self.parts.kernel.begin(reference, config, cgroup.id());
        if let Err(problem) = begun {
            complain("removing a cgroup", cgroup.remove_patiently());
            self.slots.free(reference);
            return Err(failed(problem));
        }
        Ok((reference, cgroup))
    }

    /// Labels the caller, moves it, and reads the label back.
    fn admit(&mut self, id: SessionId, peer: &Peer) -> Result<(), String> {
        let Some(live) = self.sessions.get_mut(&id) else { return Err("it is gone".into()) };
        let Some(task) = live.first.as_ref().map(OwnedFd::as_fd) else { return Err("it is gone".into()) };
        let seen = live.flows.namespaces.see(&mut self.namespaces, task, (peer.pid, peer.pid));
        seen.map_err(|e| format!("cannot look at the network namespace of process {}: {e}", peer.pid))?;
        self.parts.kernel.label(task, live.reference).map_err(|e| e.to_string())?;
        live.cgroup.take(peer.pid).map_err(|e| format!("cannot move process {}: {e}", peer.pid))?;
        let label = self.parts.kernel.label_of(task).map_err(|e| e.to_string())?;
        if label != Some(live.reference) {
            return Err(format!("the label of process {} did not hold", peer.pid));
        }
        if !peer.still_connected() {
            return Err(format!("process {} is gone", peer.pid));
        }
        watch(id, task.try_clone_to_owned().map_err(|e| e.to_string())?, self.parts.notes.clone())
    }

    /// Takes the label and the cgroup from a caller that could not be admitted, so that it lives to be told. It is a member
    /// again of the session that it was a member of.
    fn undo(&mut self, id: SessionId, peer: &Peer, home: &Path, outer: Option<SessionRef>) {
        let Some(live) = self.sessions.get(&id) else { return };
        if let (true, Some(first)) = (peer.still_connected(), &live.first) {
            // before the cgroup: the move writes the mirror by the label
            let relabelled = outer.map(|outer| self.parts.kernel.label(first.as_fd(), outer));
            complain("giving a member its label back", relabelled.transpose());
            complain("moving a caller back", fs::write(home.join("cgroup.procs"), peer.pid.to_string()));
            if outer.is_none() {
                complain("taking a label back", self.parts.kernel.unlabel(first.as_fd()));
            }
        }
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat`, counted from behind the name, which
/// may hold anything.
pub(super) fn started(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Tells the engine when the process ends.
pub(super) fn watch(
    id: SessionId,
    process: OwnedFd,
    notes: tokio::sync::mpsc::UnboundedSender<Note>,
) -> Result<(), String> {
    let process = Readable::watch(process).map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        process.ready().await;
        // the engine is gone only when the agent stops
        let _ = notes.send(Note::FirstExited(id));
    });
    Ok(())
}

/// A descriptor of the process at the other end: the kernel's own where it has them (6.5), else by number, which is
/// right as long as the connection stands.
///
/// # Errors
/// The process is gone, or in a pid namespace that the agent does not see.
pub fn pidfd_of(peer: &Peer) -> Result<OwnedFd, ApiError> {
    let gone = || ApiError::Failed { message: format!("process {} is gone", peer.pid) };
    if peer.pid == 0 {
        let message = "the caller is in a pid namespace that the agent does not see: run the agent on the host".into();
        return Err(ApiError::Denied { message });
    }
    match getsockopt(peer, PeerPidfd) {
        Ok(process) => return Ok(process),
        // before Linux 6.5
        Err(Errno::ENOPROTOOPT) => {}
        // its number may be another's by now
        Err(_) => return Err(gone()),
    }
    let process = open_pidfd(peer.pid).map_err(|_gone| gone())?;
    if peer.still_connected() { Ok(process) } else { Err(gone()) }
}

/// Who the caller is, as the kernel says.
pub(super) fn principal(peer: &Peer) -> Principal {
    Principal { uid: peer.uid, gid: peer.gid, login_uid: login_uid(peer.pid) }
}

/// The user id of the login that a process descends from.
pub(super) fn login_uid(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/loginuid")).unwrap_or_default();
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

fn session_start(
    session: SessionId,
    run: &wire::Run,
    subject: &Subject,
    policy: &Policy,
    cgroup: &SessionCgroup,
    ttl: Duration,
) -> SessionStart {
    let (command, cut) = Text::list(&run.command.argv, super::report::COMMAND);
    let namespaces: BTreeMap<String, u64> = NAMESPACES
        .iter()
        .filter_map(|n| Some(((*n).to_owned(), fs::metadata(format!("/proc/{}/ns/{n}", subject.pid)).ok()?.ino())))
        .collect();
    SessionStart {
        session,
        kind: policy.kind.to_string(),
        policy: policy_ref(policy, &run.policy_source),
        mode: if policy.mode == Mode::Enforce { session::Mode::Enforce } else { session::Mode::Observe },
        principal: subject.principal,
        context: Context {
            pid: subject.pid,
            command,
            command_cut: cut || run.command.argv_cut,
            cwd: run.cwd.clone(),
            tty: run.tty.clone(),
            cgroup: Text::from(cgroup.path().as_os_str().as_encoded_bytes()),
            namespaces,
        },
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        deadline_boot_ns: 0,
        limits: Box::default(),
        labels: run.labels.clone(),
        credential: run.credential.clone(),
        users: Vec::new(),
        within: None,
        attached: subject.attached.clone(),
        inherited: subject.inherited.clone(),
        taken: subject.shed.as_ref().map(shed::taken),
    }
}

/// A policy as the evidence names it.
pub(super) fn policy_ref(policy: &Policy, source: &str) -> PolicyRef {
    PolicyRef { name: policy.name.clone(), digest: policy.digest.clone(), source: source.to_owned() }
}

pub(super) fn fresh_id() -> Result<SessionId, ApiError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| failed(format!("no random bytes for a session id: {e}")))?;
    Ok(SessionId::from_random(bytes))
}

pub(super) fn failed(problem: impl std::fmt::Display) -> ApiError {
    ApiError::Failed { message: problem.to_string() }
}
