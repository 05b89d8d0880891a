//! The engine: owns all session state, takes calls, records and time one at a time, and carries out what the session
//! machine asks for. It runs on one task; nothing else touches a session.

mod adopt;
mod attach;
mod calls;
mod control;
mod controls;
mod credentials;
mod crossed;
mod descriptors;
mod digests;
mod finish;
mod flows;
mod history;
mod inherited;
mod judge;
mod keeping;
mod limits;
mod linger;
mod narrow;
mod places;
mod record;
mod recover;
mod refresh;
mod refusals;
mod report;
mod resolve;
mod shed;
mod slots;
mod stale;
mod start;
mod stays;
mod together;
mod verdict;
mod within;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    io::{BufRead as _, BufReader},
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tipstaff_common::{event::KINDS, label::SessionRef};
use tokio::sync::mpsc;
use tracing::{error, warn};

pub use adopt::Past;
pub use controls::{Control, flow_destroy, from_song as controls_from_song, see_others};
pub use recover::{RecoverError, Recovered, recover};
pub use report::wire_control;
pub use start::pidfd_of;

use self::{
    control::Revoking,
    crossed::Seen,
    digests::Digests,
    history::LAST_VERDICTS,
    keeping::Owed,
    limits::Doings,
    linger::Lingering,
    refresh::Refresh,
    slots::{Policies, Slots},
    stale::{LastSeen, Users},
    stays::Stay,
};
use crate::{
    api::{
        answer::Answer,
        door::Sessions,
        refused::Refused,
        server::{Incoming, Peer},
        wire::{self, ApiError, Reply, Request},
    },
    config::Config,
    enforce::{FileWatch, Flows, Registry, SessionCgroup, Sweep},
    evidence::{Body, Log, Mark, Moment, SessionStart},
    host_events::Processors,
    kernel::{
        CgroupRoot, Kernel, Pins, Urgent, boot_now,
        ring::{DecodeError, Event},
    },
    policy::{Limits, Plan, Policy, Resolved, Shed},
    session::{EndReason, Ending, Ends, Input, Session, SessionId},
    store::{First, Store},
};

/// Records taken from the rings before anything else gets a turn.
const BATCH: usize = 2048;
/// Batches that are taken at once where the rings should be empty: more records than the rings hold.
const BATCHES: usize = 64;
/// Appended records are made durable at the latest after this long.
const FLUSH: Duration = Duration::from_secs(1);
/// After a flush that the disk refused.
const FLUSH_AGAIN_NS: u64 = 1_000_000_000;

/// What the engine needs to begin.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The loaded programs.
    pub kernel: Kernel,
    /// Their pins.
    pub pins: Pins,
    /// The cgroup that sessions' cgroups stand in.
    pub root: CgroupRoot,
    /// Where cgroup2 is mounted.
    pub mount: PathBuf,
    /// Only below this cgroup.
    pub confine: Option<CgroupRoot>,
    /// What the canary proved.
    pub controls: Vec<Control>,
    /// The evidence.
    pub log: Log,
    /// What outlives the agent.
    pub store: Store,
    /// Watches the directories of files that rules name.
    pub files: FileWatch,
    /// Where the engine's helpers tell it what they saw.
    pub notes: mpsc::UnboundedSender<Note>,
    /// Tells the sockets which sessions live, and whose members may ask for one within theirs.
    pub known: Sessions,
    /// What the sockets refused.
    pub refused: Refused,
}

/// What was in the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing.
    Nothing,
    /// Records, which were all.
    All,
    /// A batch of records; there may be more.
    Batch,
}

/// What a helper task saw.
pub enum Note {
    /// A session's first process ended.
    FirstExited(SessionId),
    /// A member was moved out of the session's cgroup, and its policy ends it for that.
    Moved(SessionId),
    /// A member was refused something, and the policy ends the session for that.
    Refused(SessionId),
    /// A session's first process did not lay down what it was told to: what it kept.
    Kept(SessionId, String),
    /// Members called the agent, or whoever may be one, and the first of those calls was not recorded yet.
    CallsRefused,
    /// A follower of the evidence has been sent the records up to this number.
    CaughtUp(Answer, u64),
}

/// All state of the agent.
pub struct Engine {
    parts: Parts,
    sessions: BTreeMap<SessionId, Live>,
    slots: Slots,
    policies: Policies,
    /// What the disk would not take.
    owed: Owed,
    digests: Digests,
    /// When files of rules are looked at again.
    refresh: Refresh,
    /// The network namespaces that sessions are in.
    namespaces: Registry,
    followers: Vec<Answer>,
    ready: Instant,
    /// Records that could not be decoded.
    undecodable: u64,
    /// Threads whose network namespace was looked at during this batch: once says as much as once for each record.
    looked_at: HashSet<(u32, u32)>,
    /// Held from a session's mark until its first round is over.
    urgent: Option<Urgent>,
    /// Sessions whose ends are one: the kernel knows of all, their sockets are cut, and they are kept.
    together: BTreeSet<SessionId>,
    /// When appended records must be durable.
    flush_due: Option<u64>,
    /// When the counts of refusals were last looked at.
    refusals_looked: u64,
    /// Why the log is not whole on disk; none: it is.
    evidence_trouble: Option<String>,
    /// Cgroups of sessions that are over.
    leaving: Vec<SessionCgroup>,
    /// When their removal is tried again.
    removal_due: Option<u64>,
    /// Sessions that are over and whose members run on.
    lingering: Vec<Lingering>,
    /// When it is looked whether they do.
    linger_due: Option<u64>,
    /// A record of the kernel that an earlier agent wrote and did not take out of its ring.
    written_already: Option<(SessionId, u64)>,
    disarming: Option<Disarming>,
    /// Revocations whose sessions are not all over.
    revoking: Vec<Revoking>,
    /// What cannot start for a while.
    stays: Vec<Stay>,
    /// When the call came that is carried out, `CLOCK_BOOTTIME` nanoseconds.
    asked: Option<u64>,
    /// How long the ends of sessions took since the start.
    ends: Ends,
    /// The users of the host.
    users: Users,
    done: bool,
}

/// A disarm that waits for the last session's end.
struct Disarming {
    reply: Answer,
    sessions: Vec<SessionId>,
    principal: crate::evidence::Principal,
}

/// A session with what the host holds for it.
struct Live {
    machine: Session,
    reference: SessionRef,
    cgroup: SessionCgroup,
    policy: Policy,
    /// The text that `policy` was read from.
    policy_text: String,
    /// The text of the policy that it was started under.
    start_text: String,
    /// Where the policy was read.
    source: String,
    /// The rules of the text that were removed.
    removed: Vec<String>,
    /// The phase of its policy that it was narrowed to.
    phase: Option<String>,
    /// What the policy's rules name on this host.
    host: Resolved,
    plan: Rc<Plan>,
    policy_slot: u32,
    /// Policies that the session used before and that a program may still read.
    retired: Vec<u32>,
    /// How many scopes it has had.
    revision: u32,
    start: SessionStart,
    /// Its limits at the start: they stay what they were, whatever becomes of its policy.
    rules: Limits,
    /// The longest time to live that its policy gave it.
    longest: Duration,
    /// Whose time to live is the shortest.
    winner: &'static str,
    started: u64,
    /// Records read, by kind.
    consumed: [u64; KINDS],
    denied: u64,
    verdicts: VecDeque<wire::Verdict>,
    /// What it did, for its idle limit.
    doings: Doings,
    /// The same of the sessions within it.
    doings_within: BTreeMap<SessionId, Doings>,
    /// When it last did anything.
    last_seen: LastSeen,
    /// The user that it acts for is gone, and that was recorded.
    user_gone: bool,
    /// Frozen: whether the kernel says that all of it stands still.
    still: Option<bool>,
    sweep: Sweep,
    flows: Flows,
    /// Which of its members' sockets were looked at.
    crossed: Seen,
    /// Processes that ended after the session did and before a round reached them, with their names.
    confirmed: BTreeMap<u32, Vec<u8>>,
    /// When the next round of the end is due.
    next_round: Option<u64>,
    /// When its end was due, and when the kernel was told that it is over.
    ending: Option<Ending>,
    /// When no member was left, `CLOCK_BOOTTIME` nanoseconds.
    empty: Option<u64>,
    /// Processes that were reported as killed and still there.
    stuck: Vec<u32>,
    /// An earlier agent wrote that it is over.
    said_over: bool,
    /// Callers of `end` that wait.
    waiting: Vec<Answer>,
    /// Records that their ring had no room for, as far as the evidence says so.
    reported: [u64; KINDS],
    /// When that was looked at last.
    reported_at: Option<Mark>,
    /// The first process, which the label was given to, by number and start.
    first_process: First,
    /// The same as a descriptor; `None`: it is gone.
    first: Option<OwnedFd>,
    /// What it was told to lay down before its first program, until that was looked at.
    to_lay_down: Option<Shed>,
}

impl Engine {
    /// An engine without sessions.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let users = Users::new(parts.config.paths.users.clone());
        let mut engine = Self {
            parts,
            sessions: BTreeMap::new(),
            slots: Slots::new(boot_now()),
            policies: Policies::new(boot_now()),
            owed: Owed::default(),
            digests: Digests::default(),
            refresh: Refresh::default(),
            namespaces: Registry::default(),
            followers: Vec::new(),
            ready: Instant::now(),
            undecodable: 0,
            looked_at: HashSet::new(),
            urgent: None,
            together: BTreeSet::new(),
            flush_due: None,
            refusals_looked: 0,
            evidence_trouble: None,
            leaving: Vec::new(),
            removal_due: None,
            lingering: Vec::new(),
            linger_due: None,
            written_already: None,
            disarming: None,
            revoking: Vec::new(),
            stays: Vec::new(),
            asked: None,
            ends: Ends::default(),
            users,
            done: false,
        };
        engine.load_stays();
        engine
    }

    /// True after a disarm: there is nothing left to do.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// What has to be cleaned up after a disarm.
    #[must_use]
    pub fn into_leavings(self) -> (Pins, PathBuf) {
        (self.parts.pins, self.parts.root.path)
    }

    /// Descriptors that are readable when there are records.
    #[must_use]
    pub fn rings(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.parts.kernel.ring_descriptors()
    }

    /// Carries out one call.
    pub fn call(&mut self, incoming: Incoming) {
        let Incoming { request, peer, reply, came } = incoming;
        let waited = u64::try_from(came.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.asked = Some(boot_now().saturating_sub(waited));
        self.carry_out_call(request, &peer, reply);
        self.asked = None;
    }

    fn carry_out_call(&mut self, request: Request, peer: &Peer, reply: Answer) {
        match request {
            Request::Ps {} => reply.finish(self.ps()),
            Request::Inspect(id) => reply.finish(self.find(&id.id).and_then(|id| self.inspect(id))),
            Request::Status {} => reply.finish(Ok(self.status())),
            Request::Probe {} => reply.finish(Ok(self.probe())),
            Request::Events(follow) => self.send_records(reply, 0, follow.follow),
            Request::Run(run) => {
                let result = self.start(&run, peer);
                let result = self.without_leases(result);
                reply.finish(result.map(Reply::Started));
            }
            Request::Attach(attach) => {
                let result = self.attach(&attach, peer);
                reply.finish(self.without_leases(result));
            }
            Request::End(end) => self.end(&end, peer, reply),
            Request::Renew(renew) => reply.finish(self.renew_for(&renew, peer)),
            Request::Freeze(id) => reply.finish(self.freeze(&id.id, peer)),
            Request::Thaw(id) => reply.finish(self.thaw(&id.id, peer)),
            Request::Revoke(revoke) => self.revoke(&revoke, peer, reply),
            Request::Stays {} => reply.finish(Ok(Reply::Stays(self.list_stays()))),
            Request::Lift(lift) => reply.finish(self.lift(&lift, peer).map(Reply::Stays)),
            Request::Narrow(narrow) => {
                let result = self.narrow(&narrow, peer);
                reply.finish(self.without_leases(result));
            }
            Request::Disarm {} => self.disarm(peer, reply),
        }
    }

    /// What was refused keeps no lease on files that its policy asks digests of.
    fn without_leases<T>(&mut self, result: Result<T, ApiError>) -> Result<T, ApiError> {
        if result.is_err() {
            self.let_leases_go();
        }
        result
    }

    /// Takes what the rings hold, up to a batch.
    pub fn drain(&mut self) -> Drained {
        self.looked_at.clear();
        let Some(mut rings) = self.parts.kernel.lend_rings() else { return Drained::Nothing };
        let taken = (0..BATCH).take_while(|_| rings.next(|event| self.take_any(event)).is_some()).count();
        self.parts.kernel.return_rings(rings);
        match taken {
            0 => Drained::Nothing,
            BATCH => Drained::Batch,
            _ => Drained::All,
        }
    }

    /// Says whether the rings are looked into without being told; see `pace`. True: nothing was put into
    /// them before this was known, so that the next record will tell.
    pub fn set_awake(&mut self, awake: bool) -> bool {
        let kernel = &mut self.parts.kernel;
        let told =
            complain("telling the programs whether the rings are read", kernel.set_reader_awake(awake)).is_some();
        told && complain("looking whether the rings are empty", kernel.rings_are_empty()).unwrap_or(false)
    }

    fn take_any(&mut self, event: Result<Event, DecodeError>) {
        match event {
            Ok(event) => self.take(&event),
            Err(problem) => {
                self.undecodable += 1;
                error!("a record from the kernel cannot be read: {problem}");
            }
        }
    }

    /// Takes what the rings hold now, and not for ever what fills them meanwhile.
    fn drain_some(&mut self) {
        for _ in 0..BATCHES {
            if self.drain() != Drained::Batch {
                break;
            }
        }
    }

    /// Helpers saw something. Who exits beside each other ends beside each other.
    pub fn notes(&mut self, notes: impl Iterator<Item = Note>) {
        let mut gone = Vec::new();
        for note in notes {
            match note {
                Note::FirstExited(id) => gone.push(id),
                other => {
                    self.firsts_gone(&std::mem::take(&mut gone), boot_now());
                    self.note(other);
                }
            }
        }
        self.firsts_gone(&gone, boot_now());
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::FirstExited(id) => self.firsts_gone(&[id], boot_now()),
            Note::Moved(id) => self.moved(id),
            Note::Refused(id) => self.end_if_refused(id),
            Note::Kept(id, what) => self.kept_more(id, what),
            Note::CallsRefused => self.record_refused_calls(boot_now()),
            Note::CaughtUp(follower, sent) if sent >= self.parts.log.last() => self.followers.push(follower),
            Note::CaughtUp(follower, sent) => self.send_records(follower, sent, true),
        }
    }

    /// It is later than it was: deadlines, rounds of ends, records to be made durable.
    pub fn tick(&mut self) {
        let now = boot_now();
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        self.tick_sessions(&ids, now);
        let due = |live: &Live| live.next_round.is_some_and(|due| due <= now);
        let due: BTreeSet<SessionId> = self.sessions.iter().filter(|(_, live)| due(live)).map(|(id, _)| *id).collect();
        self.rounds(&due);
        if self.removal_due.is_some_and(|due| due <= now) {
            self.remove_cgroups();
        }
        if self.linger_due.is_some_and(|due| due <= now) {
            self.look_after();
        }
        if self.refresh.due().is_some_and(|due| due <= now) {
            self.refresh();
        }
        if self.flush_due.is_some_and(|due| due <= now) {
            self.account();
            self.flush();
        }
        self.look_for_stale(now);
        self.look_at_refusals(now);
        self.record_refused_calls(now);
        self.pay(now);
    }

    /// A processor came online, or any may have, and has no clock yet.
    pub fn processor_online(&mut self, which: &Processors) {
        let only = match which {
            Processors::Online(number) => Some(*number),
            Processors::Any => None,
        };
        complain("arming the clock", self.parts.kernel.rearm_clock(Some(&self.parts.pins), only));
    }

    /// When [`Engine::tick`] is needed next, `CLOCK_BOOTTIME` nanoseconds.
    #[must_use]
    pub fn next_tick(&mut self) -> Option<u64> {
        let looks = [self.owed_due(), self.stale_due(), self.refusals_due(), self.parts.refused.due()];
        let sessions = self.sessions.values().flat_map(|s| [s.machine.wakes_at(), s.next_round]);
        sessions
            .chain([self.flush_due, self.removal_due, self.linger_due, self.refresh.due()])
            .chain(looks)
            .flatten()
            .min()
    }

    /// Says goodbye: enforcement stays.
    pub fn stop(&mut self, reason: &str) {
        self.drain_some();
        self.account();
        self.record_all_refused_calls();
        self.append(&Body::AgentStop(crate::evidence::AgentStop { reason: reason.into() }));
        self.flush();
    }

    /// Gives a session's machine one input and does what it asks.
    fn feed(&mut self, id: SessionId, input: Input) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let effects = session.machine.step(input);
        self.carry_out(id, effects);
    }

    /// Appends to the evidence and tells followers.
    fn append(&mut self, body: &Body) {
        match self.parts.log.append(body, now()) {
            Ok(written) => {
                if let Some(gap) = &written.gap {
                    self.tell(gap);
                }
                self.tell(&written.line);
                self.flush_due.get_or_insert_with(|| boot_now() + u64::try_from(FLUSH.as_nanos()).unwrap_or(0));
            }
            Err(problem) => error!("evidence is not written: {problem}"),
        }
    }

    /// Appends what must survive a loss of power before the agent goes on; of ends that are one, with the last of them.
    fn append_durable(&mut self, body: &Body) {
        self.append(body);
        if self.together.is_empty() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.flush_due = None;
        let trouble = self.parts.log.flush().err().map(|problem| problem.to_string());
        if let Some(problem) = &trouble {
            self.flush_due = Some(boot_now().saturating_add(FLUSH_AGAIN_NS));
            if self.evidence_trouble.as_ref() != Some(problem) {
                error!("evidence is not on disk: {problem}");
            }
        }
        self.evidence_trouble = trouble;
    }

    fn tell(&mut self, line: &str) {
        if self.followers.is_empty() {
            return;
        }
        let Ok(raw) = serde_json::value::RawValue::from_string(line.to_owned()) else { return };
        self.followers.retain_mut(|f| f.try_item(Reply::Event(wire::Event { record: raw.clone() })).is_ok());
    }

    fn disarm(&mut self, peer: &Peer, reply: Answer) {
        if self.disarming.is_some() {
            return reply.finish(Err(ApiError::Busy { message: "a disarm is under way".into() }));
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        let principal = start::principal(peer);
        self.disarming = Some(Disarming { reply, sessions: sessions.clone(), principal });
        self.feed_all(sessions.into_iter().map(|id| (id, Input::End { reason: EndReason::Operator })));
        self.finish_disarm();
    }

    /// Sends the records after `sent` on a task of their own; a follower comes back for what was appended meanwhile.
    fn send_records(&self, mut reply: Answer, sent: u64, follow: bool) {
        let (path, last) = (self.parts.log.path().to_owned(), self.parts.log.last());
        let notes = self.parts.notes.clone();
        tokio::spawn(async move {
            let lines = match std::fs::File::open(&path) {
                Ok(file) => BufReader::new(file).lines(),
                Err(problem) => {
                    let message = format!("cannot read {}: {problem}", path.display());
                    return reply.finish(Err(ApiError::Failed { message }));
                }
            };
            let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            for line in lines.skip(place(sent)).take(place(last.saturating_sub(sent))) {
                let raw = line.ok().and_then(|l| serde_json::value::RawValue::from_string(l).ok());
                let Some(record) = raw else { continue };
                if reply.item(Reply::Event(wire::Event { record })).await.is_err() {
                    return;
                }
            }
            if follow {
                // the engine is gone only when the agent stops
                let _ = notes.send(Note::CaughtUp(reply, last));
            } else {
                reply.finish(Ok(Reply::EndOfEvents {}));
            }
        });
    }
}

/// Both clocks.
#[must_use]
pub fn now() -> Moment {
    Moment { time: Timestamp::now(), boot_ns: boot_now() }
}

/// Logs a failed operation on the kernel that the engine cannot answer anybody for.
fn complain<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(problem) => {
            warn!("{what}: {problem}");
            None
        }
    }
}
