//! What the random faults are measured against: sessions of which it is known what their members may do, and until when.

use std::{cell::RefCell, path::Path};

use crate::{
    harness::{
        launch::bare,
        prelude::*,
        server::Server,
        wait::{all_gone, boot_ns, gone, in_guest},
    },
    suites::scene::{Fifo, bulky, only, refused_exec},
};

/// How often a member can be woken.
const WAKES: usize = 24;

/// What all members have: programs, addresses, and the policy.
pub(super) struct Scene {
    member: String,
    good: String,
    bad: String,
    mark: String,
    policy: String,
    open: Server,
    closed: Server,
    /// Every first process so far.
    started: RefCell<Vec<u32>>,
}

/// A session and its first process, which tries everything each time it is woken.
pub(super) struct Member {
    running: Running,
    pub(super) session: String,
    fifos: Vec<Fifo>,
    woken: usize,
    /// What it must have been answered so far.
    expected: String,
    pub(super) narrowed: bool,
    pub(super) frozen: bool,
    /// Where it is near.
    pub(super) deadline: Option<u64>,
}

/// So near the deadline nothing is expected of a member, nanoseconds.
fn near() -> u64 {
    if in_guest() { 8_000_000_000 } else { 1_500_000_000 }
}

impl Scene {
    pub(super) fn new(s: &Sandbox) -> Result<Self> {
        let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
        let (open, closed) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
        let policy = only(&member).allow("good", &good).to("open", "127.0.0.1/32", open.port());
        let policy = s.policy(&policy)?;
        Ok(Self { member, good, bad, mark: s.file("mark"), policy, open, closed, started: RefCell::default() })
    }

    fn words(&self, s: &Sandbox) -> Result<(Vec<Fifo>, String)> {
        let fifos = (0..WAKES).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
        let (bad, good, mark) = (&self.bad, &self.good, &self.mark);
        let (closed, open) = (self.closed.words(), self.open.words());
        let tries = |fifo: &Fifo| {
            format!(
                "fifo {} spawn {bad} --work mark {mark} + spawn {good} --work nothing + connect tcp {closed} + connect tcp {open}",
                fifo.path
            )
        };
        let line = fifos.iter().map(tries).chain(["idle".to_owned()]).collect::<Vec<_>>().join(" + ");
        Ok((fifos, line))
    }

    /// A session that `tipstaff run` starts; a brief one is soon over.
    pub(super) fn run(&self, s: &Sandbox, brief: bool) -> Result<Member> {
        let (fifos, line) = self.words(s)?;
        let ttl = match (brief, in_guest()) {
            (false, _) => "9m",
            (true, false) => "4s",
            (true, true) => "30s",
        };
        let running = s.launch(&self.policy, &self.member, &line).ttl(ttl).start()?;
        let session = running.session(s)?;
        let start = s.records(&session, "session-start")?;
        let deadline = start.first().and_then(|start| start["deadline_boot_ns"].as_u64()).context("no deadline")?;
        Ok(self.add(running, session, fifos, brief.then_some(deadline)))
    }

    /// A process that runs already.
    pub(super) fn attach(&self, s: &Sandbox) -> Result<Member> {
        let (fifos, line) = self.words(s)?;
        let pid = s.file("pid");
        let mut command = bare(self.member.as_ref());
        command.arg("--work").args(format!("pid {pid} {line}").split(' '));
        let running = Running::spawn(s, command, None)?;
        s.pid_in(&pid)?;
        let attached = s.json(&["attach", "--policy", &self.policy, "--pid", &running.pid().to_string()])?;
        let session = attached["session"].as_str().context("attach names no session")?.to_owned();
        Ok(self.add(running, session, fifos, None))
    }

    fn add(&self, running: Running, session: String, fifos: Vec<Fifo>, deadline: Option<u64>) -> Member {
        self.started.borrow_mut().push(running.pid());
        let expected = String::new();
        Member { running, session, fifos, woken: 0, expected, narrowed: false, frozen: false, deadline }
    }

    /// Nothing starts where it cannot be kept. The store has room left over from sessions that are over, now and then
    /// enough: then it starts and ends as any.
    pub(super) fn starts_or_is_refused(&self, s: &Sandbox) -> Result<()> {
        let bulky = bulky(s, &only(&self.member))?;
        let running = s.run(&bulky, &self.member, "say in")?;
        let pid = running.pid();
        let finished = running.wait()?;
        if finished.code == 0 {
            finished.said("in")?;
            return s.session_ended(&s.session_of(pid)?, "completed").map(drop);
        }
        finished.ended(125)?.said("")?.complained(&["store.redb", "No space left"]).map(drop)
    }

    /// A session that is over at once.
    pub(super) fn brief_visit(&self, s: &Sandbox) -> Result<()> {
        let running = s.run(&self.policy, &self.member, "say in")?;
        let pid = running.pid();
        running.wait()?.ended(0)?.said("in")?;
        s.session_ended(&s.session_of(pid)?, "completed").map(drop)
    }

    /// Every first process that there ever was.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.started.borrow().clone()
    }

    /// What is out of scope came to nothing so far.
    pub(super) fn untouched(&self) -> Result<()> {
        self.unmarked()?;
        self.closed.untouched()
    }

    /// As [`Scene::untouched`], of programs only.
    pub(super) fn unmarked(&self) -> Result<()> {
        ensure!(!Path::new(&self.mark).exists(), "a program out of scope ran");
        Ok(())
    }
}

impl Member {
    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub(super) fn can_be_woken(&self) -> bool {
        self.woken < self.fifos.len()
    }

    /// Whether its time is over, or about to be.
    pub(super) fn is_late(&self) -> Result<bool> {
        let now = boot_ns()?;
        Ok(self.deadline.is_some_and(|deadline| now + near() > deadline))
    }

    /// Whether its time is over.
    pub(super) fn has_passed(&self) -> Result<bool> {
        let now = boot_ns()?;
        Ok(self.deadline.is_some_and(|deadline| now > deadline))
    }

    pub(super) fn wake(&mut self) -> Result<()> {
        self.fifos[self.woken].wake()?;
        self.woken += 1;
        Ok(())
    }

    /// It has tried everything as often as it was woken, and was answered what it must be.
    pub(super) fn answers(&mut self, s: &Sandbox) -> Result<()> {
        let refused = refused_exec(s);
        let good = if self.narrowed { refused } else { "exit 0" };
        let answers = format!("{refused}\n{good}\nerrno 1\nok\n");
        let made = self.expected.lines().count() / 4;
        self.expected += &answers.repeat(self.woken - made);
        let said = until("the member to have tried all", 2 * patience(), || {
            let said = self.running.said();
            Ok((said.len() >= self.expected.len() || gone(self.pid())).then_some(said))
        })?;
        if said != self.expected && self.is_late()? {
            // its time ran out over it
            return Ok(());
        }
        let (session, expected) = (&self.session, &self.expected);
        ensure!(said == *expected, "the member of {session} was answered {said:?} where {expected:?} was expected");
        Ok(())
    }

    /// It has ended, nobody of it is left, and the evidence says so once.
    pub(super) fn ends_well(self, s: &Sandbox) -> Result<()> {
        let end = s.wait_evidence(&format!("the end of session {}", self.session), |r| {
            r["type"] == "session-end" && r["session"] == self.session
        })?;
        ensure!(end["members_left"] == 0, "members are left: {end}");
        let expected = if self.deadline.is_some() { ["ttl", "operator"] } else { ["operator", "operator"] };
        ensure!(expected.iter().any(|reason| end["reason"] == *reason), "it ended because of {}", end["reason"]);
        all_gone(&[self.pid()])?;
        let code = self.running.wait()?.code;
        ensure!(code == 137, "the first process ended with {code}");
        Ok(())
    }
}
