//! `attach`: a workload that runs becomes a session's, to a fixed point. Every thread of it is labelled and every process
//! moved, or nothing of it stays and it runs on as before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::{
    Engine,
    check::Checked,
    complain,
    inherited::Inventory,
    judge,
    owner::Owner,
    start::{Begun, Subject, failed, login_uid, principal, watch},
    taken::{Taken, undo},
};
use crate::{
    api::{
        server::Peer,
        wire::{self, ApiError, Reply},
    },
    enforce::{Flows, Host, Refusal, Target, cgroup_named, cgroup_of, outside, processes_below, whom},
    evidence::{Attached, Attachment, Body, Principal, Text},
    kernel::open_pidfd,
    policy::{Inherited, Mode},
    session::{self, Input, SessionId},
};

/// Programs out of scope that the caller is told of.
const NOTES: usize = 8;

impl Engine {
    /// Makes running processes members of a new session, or refuses and changes nothing.
    pub(super) fn attach(&mut self, attach: &wire::Attach, peer: &Peer) -> Result<Reply, ApiError> {
        if self.disarming.is_some() {
            return Err(ApiError::Busy { message: "the agent is being disarmed and starts nothing".into() });
        }
        let target = self.target(attach)?;
        let by = principal(peer);
        let found = self.whom(&target, attach.twice, peer);
        let processes = found.map_err(|problem| self.record_refusal(&as_run(attach, None), by, problem))?;
        let (pid, first) = first_of(&target, &processes)?;
        let run = as_run(attach, Some(pid));
        let caller = Owner::of(peer);
        let its_own = caller.check_held(pid, &first);
        its_own.map_err(|problem| self.record_refusal(&run, by, problem.refused()))?;
        let whose = owner(pid).ok_or_else(|| absent(pid))?;
        let mut checked = self.check(&run, whose, true)?;
        self.look_before(&checked, &processes).map_err(|problem| self.record_refusal(&run, by, problem))?;
        checked.notes.extend(self.out_of_scope(&checked, &processes)?);
        let cgroup = match &target {
            Target::Cgroup(path) => Some(Text::from(path.as_os_str().as_encoded_bytes())),
            Target::Process(_) => None,
        };
        let home = cgroup_of(pid, &self.parts.mount).map_err(|_gone| absent(pid))?;
        let home = Text::from(home.as_os_str().as_encoded_bytes());
        let how = Attachment { by, home, cgroup };
        let (ttl, treatment) = (checked.ttl, (checked.policy.attach, checked.policy.mode));
        let subject = Subject {
            pid,
            process: first,
            principal: whose,
            attached: Some(how.clone()),
            inherited: Vec::new(),
            shed: None,
        };
        let begun = self.begin(&run, subject, checked)?;
        let walks = match self.take_in(begun.id, &target, caller) {
            Ok(walks) => walks,
            Err(problem) => {
                self.feed(begun.id, Input::Undone);
                let message = format!("nothing was attached: {problem}");
                return Err(ApiError::Failed { message });
            }
        };
        self.feed(begun.id, Input::Labelled);
        self.record_reuse(begun.id, &BTreeSet::new());
        self.watch_files();
        let mut attached = self.settle_in(&begun, how, walks, treatment)?;
        attached.ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Ok(Reply::Attached(Box::new(attached)))
    }

    fn target(&self, attach: &wire::Attach) -> Result<Target, ApiError> {
        match (attach.pid, &attach.cgroup) {
            (Some(pid), None) => Ok(Target::Process(pid)),
            (None, Some(name)) => cgroup_named(name, &self.parts.mount).map(Target::Cgroup).map_err(refused),
            _ => Err(ApiError::BadRequest { message: "attach takes either a process or a cgroup".into() }),
        }
    }

    /// The processes that are meant, all of which may become a session's.
    fn whom(&mut self, target: &Target, twice: bool, peer: &Peer) -> Result<BTreeSet<u32>, ApiError> {
        let agent = std::process::id();
        let host = Host {
            mount: &self.parts.mount,
            sessions: &self.parts.root.path,
            agent_cgroup: cgroup_of(agent, &self.parts.mount).map_err(failed)?,
            agent,
            caller: peer.pid,
            twice,
            processes: Host::read(),
        };
        let found = whom(&host, target, processes_below).map_err(refused)?;
        // each is asked once more when it is held: until then its number may be given anew
        found.iter().try_for_each(|pid| Owner::of(peer).check(*pid)).map_err(|problem| problem.refused())?;
        if let Some(confine) = &self.parts.confine
            && let Some((pid, place)) = outside(&found, &self.parts.mount, |cgroup| confine.holds(cgroup))
        {
            let message = format!("process {pid} is in {}, outside the confinement", place.display());
            let remedy = format!("attach what runs below {}", confine.path.display());
            return Err(ApiError::Refused { message, rule: None, remedy });
        }
        let members = self.parts.kernel.members().map_err(failed)?;
        if let Some(member) = members.iter().find(|member| found.contains(&member.tgid)) {
            let own = |live: &super::Live| {
                live.reference.slot == member.slot && live.reference.generation == member.generation
            };
            let session = self.sessions.iter().find(|(_, live)| own(live));
            let session = session.map_or_else(|| "another session".into(), |(id, _)| format!("session {id}"));
            let message = format!("process {} is in {session} already", member.tgid);
            return Err(ApiError::Refused { message, rule: None, remedy: "end that session first".into() });
        }
        Ok(found)
    }

    /// Under `sockets: refuse`, who holds one is not attached.
    fn look_before(&mut self, checked: &Checked, processes: &BTreeSet<u32>) -> Result<(), ApiError> {
        if checked.policy.attach != Inherited::Refuse {
            return Ok(());
        }
        let mut flows = Flows::default();
        for pid in processes {
            let Ok(process) = open_pidfd(*pid) else { continue };
            // who is gone holds nothing
            let _ = flows.namespaces.see(&mut self.namespaces, process.as_fd(), (*pid, *pid));
        }
        let held = Inventory::of(&flows, &mut self.namespaces, processes);
        let Some(socket) = held.first() else { return Ok(()) };
        let message = format!("process {} holds {socket}, and policy {} refuses that", socket.pid, checked.policy.name);
        let remedy = "have it closed first, or write `attach: { sockets: judge }`".into();
        Err(ApiError::Refused { message, rule: None, remedy })
    }

    /// Programs that run already and that the policy does not let run.
    fn out_of_scope(&mut self, checked: &Checked, processes: &BTreeSet<u32>) -> Result<Vec<String>, ApiError> {
        let mut programs: BTreeMap<PathBuf, u32> = BTreeMap::new();
        for pid in processes {
            if let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) {
                programs.entry(program).or_insert(*pid);
            }
        }
        let mut notes = Vec::new();
        for (program, pid) in programs {
            let root = format!("/proc/{pid}/root");
            let (kernel, policy) = (&mut self.parts.kernel, &checked.policy);
            let refusal =
                judge::command(kernel, policy, &checked.host, Path::new(&root), &program, None).map_err(failed)?;
            if refusal.is_some() && notes.len() < NOTES {
                let program = program.display();
                notes.push(format!(
                    "process {pid} runs {program} already, which policy {} does not let run: it goes on",
                    policy.name
                ));
            }
        }
        Ok(notes)
    }

    /// Labels and moves until a walk finds nobody new; from then on they are held. Whatever fails is taken back.
    fn take_in(&mut self, id: SessionId, target: &Target, caller: Owner) -> Result<u64, String> {
        let Some(live) = self.sessions.get_mut(&id) else { return Err("the session is gone".into()) };
        let (reference, cgroup) = (live.reference, live.cgroup.clone());
        let Some(first) = live.first.as_ref().and_then(|first| first.try_clone().ok()) else {
            return Err("the first process cannot be watched".into());
        };
        let first_pid = live.first_process.pid;
        let home = live.home();
        let enforces = live.machine.mode() == session::Mode::Enforce;
        let mut taken = Taken::by(caller);
        let kernel = &mut self.parts.kernel;
        let result = taken.fill(kernel, &self.parts.mount, (reference, &cgroup), target, (first_pid, &first));
        let enforce = |()| if enforces { kernel.set_enforcing(reference).map_err(|e| e.to_string()) } else { Ok(()) };
        let result = result.and_then(enforce).and_then(|()| watch(id, first, self.parts.notes.clone()));
        match result {
            Ok(()) => Ok(taken.walks),
            Err(problem) => {
                undo(&mut self.parts.kernel, (reference, &cgroup), &taken.homes, &home);
                Err(problem)
            }
        }
    }

    /// Looks at what the new members hold, treats it as the policy says, and writes it all down.
    fn settle_in(
        &mut self,
        begun: &Begun,
        how: Attachment,
        walks: u64,
        (treatment, mode): (Inherited, Mode),
    ) -> Result<wire::Attached, ApiError> {
        let id = begun.id;
        self.see_again(&[id]);
        let members = self.parts.kernel.members().map_err(failed)?;
        let Some(live) = self.sessions.get_mut(&id) else {
            return Err(ApiError::Failed { message: format!("session {id} ended at once") });
        };
        let own =
            |m: &&crate::kernel::Member| m.slot == live.reference.slot && m.generation == live.reference.generation;
        let threads = members.iter().filter(own).count() as u64;
        let processes: BTreeSet<u32> = members.iter().filter(own).map(|member| member.tgid).collect();
        let mut held = Inventory::of(&live.flows, &mut self.namespaces, &processes);
        let receipts = if mode == Mode::Enforce {
            held.treat(treatment, &live.policy, &live.host, &mut live.flows, &mut self.namespaces, &processes)
        } else {
            Vec::new()
        };
        held.mark_visitors(&mut self.parts.kernel, live.reference);
        let mut notes = begun.notes.clone();
        notes.extend(held.notes());
        let lists = held.lists();
        let attached = Attached {
            session: id,
            how,
            history: "unknown".into(),
            processes: processes.len() as u64,
            threads,
            walks,
            open: lists.open,
            listening: lists.listening,
            unix: lists.unix,
            others: lists.others,
            unlisted: lists.unlisted,
        };
        let reply = wire::Attached {
            session: id.to_string(),
            deadline_boot_ns: begun.deadline,
            ttl_ms: 0,
            processes: attached.processes,
            threads,
            open: attached.open.iter().map(super::inherited::wire_socket).collect(),
            listening: attached.listening.iter().map(super::inherited::wire_socket).collect(),
            unix: attached.unix.iter().map(super::inherited::wire_unix).collect(),
            others: attached.others,
            notes,
        };
        info!("session {id}: attached {} processes, {threads} threads", attached.processes);
        self.append_durable(&Body::Attached(Box::new(attached)));
        receipts.iter().for_each(|body| self.append(&body.with_session(id)));
        // what came in bears its label by now
        self.label_crossed(&[id]);
        Ok(reply)
    }

    /// The first processes of sessions are gone. A session that was attached by its cgroup goes on with another of its processes.
    pub(super) fn firsts_gone(&mut self, ids: &[SessionId], now_boot_ns: u64) {
        let gone: Vec<SessionId> = ids.iter().copied().filter(|id| !self.goes_on(*id)).collect();
        self.feed_all(gone.into_iter().map(|id| (id, Input::FirstExited { now_boot_ns })));
    }

    /// Whether a session goes on without its first process.
    pub(super) fn goes_on(&mut self, id: SessionId) -> bool {
        let Some((pid, process)) = self.another_first(id) else { return false };
        let watched = watch(id, process, self.parts.notes.clone());
        if let Err(problem) = &watched {
            warn!("process {pid} of session {id} is not watched: {problem}");
        }
        watched.is_ok()
    }

    fn another_first(&mut self, id: SessionId) -> Option<(u32, OwnedFd)> {
        let live = self.sessions.get(&id)?;
        live.start.attached.as_ref()?.cgroup.as_ref()?;
        let reference = live.reference;
        let members = complain("listing members", self.parts.kernel.members())?;
        let own = |m: &&crate::kernel::Member| m.slot == reference.slot && m.generation == reference.generation;
        members.iter().filter(own).find_map(|member| {
            let process = open_pidfd(member.tgid).ok()?;
            let label = self.parts.kernel.label_of(process.as_fd()).ok().flatten();
            (label == Some(reference)).then_some((member.tgid, process))
        })
    }
}

impl super::Live {
    /// Where its first process was before it was the session's.
    pub(super) fn home(&self) -> PathBuf {
        let home = self.start.attached.as_ref().map(|how| how.home.as_bytes().to_vec());
        PathBuf::from(std::ffi::OsString::from_vec(home.unwrap_or_default()))
    }
}

/// The process that the session is known by: the one that was named, or the oldest of the cgroup.
fn first_of(target: &Target, processes: &BTreeSet<u32>) -> Result<(u32, OwnedFd), ApiError> {
    let started = |pid: &u32| super::start::started(*pid).unwrap_or(u64::MAX);
    let pid = match target {
        Target::Process(pid) => *pid,
        Target::Cgroup(path) => {
            let oldest = processes.iter().copied().min_by_key(started);
            oldest.ok_or_else(|| ApiError::NotFound { message: format!("cgroup {} is empty", path.display()) })?
        }
    };
    Ok((pid, open_pidfd(pid).map_err(|_gone| absent(pid))?))
}

fn absent(pid: u32) -> ApiError {
    ApiError::NotFound { message: format!("there is no process {pid}") }
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Absent(message) => ApiError::NotFound { message },
        Refusal::Never(message, remedy) => ApiError::Refused { message, rule: None, remedy },
    }
}

/// Who a process acts for: its effective user and group, and its login.
fn owner(pid: u32) -> Option<Principal> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let effective = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(Principal { uid: effective("Uid:")?, gid: effective("Gid:")?, login_uid: login_uid(pid) })
}

/// What a `run` would have said of a process that runs.
fn as_run(attach: &wire::Attach, pid: Option<u32>) -> wire::Run {
    let file = |name: &str| pid.map(|pid| format!("/proc/{pid}/{name}"));
    let bytes = |path: PathBuf| Text::from(path.into_os_string().into_vec());
    let link = |name: &str| file(name).and_then(|path| fs::read_link(path).ok()).map(bytes);
    let line = file("cmdline").and_then(|path| fs::read(path).ok()).unwrap_or_default();
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|b| *b == 0);
    let argv = words.map(Text::from).collect();
    wire::Run {
        policy: attach.policy.clone(),
        policy_source: attach.policy_source.clone(),
        ttl: attach.ttl.clone(),
        credential_expires: attach.credential_expires.clone(),
        credential: attach.credential.clone(),
        labels: attach.labels.clone(),
        command: wire::Command { path: link("exe").unwrap_or_default(), argv, argv_cut: false },
        cwd: link("cwd").unwrap_or_default(),
        tty: link("fd/0")
            .filter(|path| [&b"/dev/pts/"[..], b"/dev/tty"].iter().any(|start| path.as_bytes().starts_with(start))),
    }
}
