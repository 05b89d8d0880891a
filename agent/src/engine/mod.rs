//! The engine: owns all session state, takes calls, records and time one at a time, and carries out what the session
//! machine asks for. It runs on one task; nothing else touches a session.

mod adopt;
mod append;
mod attach;
mod behind;
mod calls;
mod check;
mod control;
mod controls;
mod credentials;
mod crossed;
mod descriptors;
mod digests;
mod dispatch;
mod finish;
mod flows;
mod history;
mod idle;
mod inherited;
mod judge;
mod keeping;
mod limits;
mod linger;
mod live;
mod look;
mod losses;
mod narrow;
mod orphans;
mod owner;
mod places;
mod record;
mod recover;
mod refresh;
mod refusals;
mod report;
mod resolve;
mod scripts;
mod shed;
mod slots;
mod spent;
mod stale;
mod start;
mod stays;
mod taken;
mod together;
mod verdict;
mod within;
mod written;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{error, warn};

pub use adopt::Past;
pub use controls::{Control, flow_destroy, from_song as controls_from_song, see_others};
pub use recover::{RecoverError, Recovered, recover};
pub use report::wire_control;
pub use scripts::notes as notes_on_scripts;
pub use start::pidfd_of;

use self::{
    control::Revoking,
    digests::Digests,
    history::{LAST_VERDICTS, LastRecords},
    keeping::Owed,
    linger::Lingering,
    live::{Disarming, Live},
    refresh::Refresh,
    slots::{Policies, Slots},
    stale::Users,
    stays::Stay,
};
use crate::{
    api::{answer::Answer, door::Sessions, refused::Refused},
    config::Config,
    enforce::{FileWatch, Registry, SessionCgroup},
    evidence::{Body, Log, Moment},
    host_events::Processors,
    kernel::{
        CgroupRoot, Kernel, Pins, Urgent, boot_now,
        ring::{DecodeError, Event},
    },
    session::{Ends, Input, SessionId},
    store::Store,
};

/// Records taken from the rings before anything else gets a turn.
const BATCH: usize = 2048;
/// Batches that are taken at once where the rings should be empty: more records than the rings hold.
const BATCHES: usize = 64;

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
    /// When it was looked for streams that wait for bytes that are used up, `CLOCK_BOOTTIME` nanoseconds.
    spent_looked: u64,
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
    /// Records of the kernel that an earlier agent wrote and did not take out of their rings.
    written_already: LastRecords,
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
            spent_looked: 0,
            evidence_trouble: None,
            leaving: Vec::new(),
            removal_due: None,
            lingering: Vec::new(),
            linger_due: None,
            written_already: LastRecords::default(),
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
        self.look_for_spent(now);
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
        let looks =
            [self.owed_due(), self.stale_due(), self.refusals_due(), self.spent_due(), self.parts.refused.due()];
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
