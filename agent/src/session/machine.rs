//! The machine itself: [`Session`] and its one function, [`Session::step`].

use serde::{Deserialize, Serialize};

use super::{Cause, EndReason, Mode, SessionId, State};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The first task has its label; it was read back from the kernel.
    Labelled,
    /// The first task could not be made a member.
    StartFailed,
    /// The first process ended.
    FirstExited,
    /// It is now this late.
    Tick {
        /// `CLOCK_BOOTTIME`, nanoseconds.
        now_boot_ns: u64,
    },
    /// Somebody or something ends the session.
    End {
        /// Why.
        reason: EndReason,
    },
    /// [`Effect::Sweep`] was carried out.
    Swept(Round),
    /// [`Effect::Count`] was carried out.
    Counted {
        /// Labelled tasks that run on.
        left: u64,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Mark the session as ended in its kernel entry, so that every hook refuses. Once, before any sweep.
    MarkEnded,
    /// Kill every labelled task, confirm, count what is left, and report [`Input::Swept`].
    Sweep,
    /// Mode `observe`: count the labelled tasks, kill none, and report [`Input::Counted`].
    Count,
    /// Write the change of state into the evidence.
    Record {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// Why it changed.
        cause: Cause,
    },
    /// The session is over: write its end into the evidence and free what it held. Once.
    Finish {
        /// Why it ended.
        reason: EndReason,
        /// Labelled tasks that run on: 0 but in mode `observe`.
        members_left: u64,
    },
}

/// One round of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Tasks that were killed.
    pub killed: u64,
    /// Labelled tasks that were counted afterwards.
    pub left: u64,
    /// How long the round took, in milliseconds.
    pub ms: u64,
}

/// Rounds that a session keeps one by one. Later ones (a task in uninterruptible sleep can take hours to die) are
/// added to the last.
pub const ROUNDS_MAX: usize = 64;

/// The states that a session can be in, with what must be known there: none ends without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Starting,
    Active,
    Ending(EndReason),
    Ended(EndReason),
}

impl Phase {
    fn state(self) -> State {
        match self {
            Self::Starting => State::Starting,
            Self::Active => State::Active,
            Self::Ending(_) => State::Ending,
            Self::Ended(_) => State::Ended,
        }
    }
}

/// One session's place in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    id: SessionId,
    mode: Mode,
    deadline_boot_ns: u64,
    phase: Phase,
    rounds: Vec<Round>,
}

impl Session {
    /// A session that is starting. `deadline_boot_ns` is on `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn new(id: SessionId, mode: Mode, deadline_boot_ns: u64) -> Self {
        Self { id, mode, deadline_boot_ns, phase: Phase::Starting, rounds: Vec::new() }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Whether it enforces or observes.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `CLOCK_BOOTTIME` nanoseconds at which it ends at the latest.
    #[must_use]
    pub fn deadline_boot_ns(&self) -> u64 {
        self.deadline_boot_ns
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.phase.state()
    }

    /// Why it ends or ended; the first reason stands.
    #[must_use]
    pub fn reason(&self) -> Option<EndReason> {
        match self.phase {
            Phase::Starting | Phase::Active => None,
            Phase::Ending(reason) | Phase::Ended(reason) => Some(reason),
        }
    }

    /// The rounds of its end so far; the last stands for all from [`ROUNDS_MAX`] on.
    #[must_use]
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// Takes one input and says what is to be done. An input that means nothing in the present state (a second end, a
    /// late tick) changes nothing and asks for nothing.
    #[must_use]
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match (self.phase, input) {
            (Phase::Starting, Input::Labelled) => vec![self.enter(Phase::Active, Cause::Labelled)],
            // nobody has seen its label yet: to the caller that start failed
            (Phase::Starting, Input::StartFailed | Input::FirstExited) => self.begin_end(EndReason::StartFailed),
            (Phase::Active, Input::FirstExited) => self.begin_end(EndReason::Completed),
            (Phase::Starting | Phase::Active, Input::Tick { now_boot_ns }) if now_boot_ns >= self.deadline_boot_ns => {
                self.begin_end(EndReason::Ttl)
            }
            (Phase::Starting | Phase::Active, Input::End { reason }) => self.begin_end(reason),
            (Phase::Ending(reason), Input::Swept(round)) if self.mode == Mode::Enforce => {
                self.keep(round);
                if round.left > 0 { vec![Effect::Sweep] } else { self.finish(reason, 0) }
            }
            (Phase::Ending(reason), Input::Counted { left }) if self.mode == Mode::Observe => self.finish(reason, left),
            _ => Vec::new(),
        }
    }

    fn enter(&mut self, phase: Phase, cause: Cause) -> Effect {
        let before = std::mem::replace(&mut self.phase, phase);
        Effect::Record { from: before.state(), to: phase.state(), cause }
    }

    fn begin_end(&mut self, reason: EndReason) -> Vec<Effect> {
        let record = self.enter(Phase::Ending(reason), Cause::End(reason));
        let next = match self.mode {
            Mode::Enforce => Effect::Sweep,
            Mode::Observe => Effect::Count,
        };
        // the kernel first: from then on nothing starts and nothing is sent, however long the rest takes
        vec![Effect::MarkEnded, record, next]
    }

    fn finish(&mut self, reason: EndReason, members_left: u64) -> Vec<Effect> {
        vec![self.enter(Phase::Ended(reason), Cause::Measured), Effect::Finish { reason, members_left }]
    }

    fn keep(&mut self, round: Round) {
        match self.rounds.get_mut(ROUNDS_MAX - 1) {
            Some(last) => {
                last.killed = last.killed.saturating_add(round.killed);
                last.left = round.left;
                last.ms = last.ms.saturating_add(round.ms);
            }
            None => self.rounds.push(round),
        }
    }
}
