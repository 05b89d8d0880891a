//! The machine itself: [`Session`] and its one function, [`Session::step`].

use serde::{Deserialize, Serialize};

use super::{
    Cause, Due, Effect, EndReason, Ending, Idle, Input, Limits, Mode, Round, SessionId, State, limits::warning_below,
};

/// Rounds that a session keeps one by one. Later ones (a task in uninterruptible sleep can take hours to die) are
/// added to the last.
pub const ROUNDS_MAX: usize = 64;
/// How often the members of a session in its grace are counted, nanoseconds: without any it need not wait.
const GRACE_LOOK_NS: u64 = 100_000_000;

/// The states that a session can be in, with what must be known there: none ends without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Starting,
    Active,
    Frozen,
    /// It ends, and its members may still run in their scope for a while.
    Grace {
        reason: EndReason,
        until_boot_ns: u64,
        look_boot_ns: u64,
        /// They are frozen.
        #[serde(default)]
        still: bool,
        /// They are to get `SIGTERM`, and nobody said yet that they did.
        #[serde(default)]
        unasked: bool,
    },
    /// The kernel refuses everything; what is left is being removed.
    Ending(EndReason),
    Ended(EndReason),
}

impl Phase {
    fn state(self) -> State {
        match self {
            Self::Starting => State::Starting,
            Self::Active => State::Active,
            Self::Frozen => State::Frozen,
            Self::Grace { .. } | Self::Ending(_) => State::Ending,
            Self::Ended(_) => State::Ended,
        }
    }

    /// Nothing has ended it yet.
    fn lives(self) -> bool {
        matches!(self, Self::Starting | Self::Active | Self::Frozen)
    }
}

/// One session's place in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    id: SessionId,
    mode: Mode,
    limits: Limits,
    phase: Phase,
    rounds: Vec<Round>,
    /// What the kernel holds it to.
    armed: Due,
    /// The next warning, in nanoseconds before the end.
    warning_ns: Option<u64>,
}

impl Session {
    /// A session that is starting now. The kernel has to be told [`Session::armed`] at its start.
    #[must_use]
    pub fn new(id: SessionId, mode: Mode, limits: Limits, now_boot_ns: u64) -> Self {
        let armed = limits.for_kernel(false);
        let due = limits.first(false);
        let left_ns = due.at_boot_ns.saturating_sub(now_boot_ns);
        let warning_ns = warning_below(left_ns, limits.longest_warning(due.reason));
        Self { id, mode, limits, phase: Phase::Starting, rounds: Vec::new(), armed, warning_ns }
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

    /// What it is held to.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The limit that comes first.
    #[must_use]
    pub fn due(&self) -> Due {
        self.limits.first(self.phase == Phase::Frozen)
    }

    /// What the kernel holds it to.
    #[must_use]
    pub fn armed(&self) -> Due {
        self.armed
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.phase.state()
    }

    /// Whether its members are to stand still: frozen it stays so in its grace, until somebody lets it go.
    #[must_use]
    pub fn is_still(&self) -> bool {
        matches!(self.phase, Phase::Frozen | Phase::Grace { still: true, .. })
    }

    /// Whether it ends, and its members may run on for a while.
    #[must_use]
    pub fn is_in_grace(&self) -> bool {
        matches!(self.phase, Phase::Grace { .. })
    }

    /// `SIGTERM` is owed to its members until this moment: an agent that died may not have sent it.
    #[must_use]
    pub fn owes_term(&self) -> Option<u64> {
        match self.phase {
            Phase::Grace { unasked: true, until_boot_ns, .. } => Some(until_boot_ns),
            _ => None,
        }
    }

    /// When it is over, and why: the limit that comes first, or the end of its grace.
    #[must_use]
    pub fn over_at(&self) -> Due {
        match self.phase {
            Phase::Grace { reason, until_boot_ns, .. } => Due { at_boot_ns: until_boot_ns, reason },
            _ => self.due(),
        }
    }

    /// Why it ends or ended; the first reason stands.
    #[must_use]
    pub fn reason(&self) -> Option<EndReason> {
        match self.phase {
            Phase::Starting | Phase::Active | Phase::Frozen => None,
            Phase::Grace { reason, .. } | Phase::Ending(reason) | Phase::Ended(reason) => Some(reason),
        }
    }

    /// The limit that has passed by now, whether or not a tick has said so: the one that the kernel holds, or another that
    /// came first. Of an idle limit the kernel's moment counts: before that somebody looks what the session did.
    #[must_use]
    pub fn passed(&self, now_boot_ns: u64) -> Option<EndReason> {
        let due = Some(self.due()).filter(|due| due.reason != EndReason::Idle);
        let passed = |due: &Due| due.at_boot_ns <= now_boot_ns;
        [Some(self.armed), due].into_iter().flatten().find(passed).map(|due| due.reason)
    }

    /// The end that the kernel was told of just now. It was due at the moment of the limit that ends it; else when
    /// somebody asked for it, or when a grace was over that the kernel held; else now.
    #[must_use]
    pub fn ending(&self, asked_boot_ns: Option<u64>, now_boot_ns: u64) -> Ending {
        let reason = self.reason();
        let passed = |at: &u64| *at <= now_boot_ns;
        let limit = reason.and_then(|reason| self.limits.moment(reason)).filter(passed);
        let held = Some(self.armed).filter(|due| Some(due.reason) == reason).map(|due| due.at_boot_ns).filter(passed);
        Ending::new(limit.or(asked_boot_ns).or(held).unwrap_or(now_boot_ns), now_boot_ns)
    }

    /// The rounds of its end so far; the last stands for all from [`ROUNDS_MAX`] on.
    #[must_use]
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// Whether [`Input::Looked`] is wanted before [`Input::Tick`]: nothing is decided by what was seen long ago.
    #[must_use]
    pub fn wants_look(&self, now_boot_ns: u64) -> bool {
        self.look_at().is_some() && self.wakes_at().is_some_and(|at| at <= now_boot_ns)
    }

    fn look_at(&self) -> Option<u64> {
        let looks = matches!(self.phase, Phase::Starting | Phase::Active);
        self.limits.idle.as_ref().filter(|_| looks).map(Idle::look_at)
    }

    /// When [`Input::Tick`] is wanted next, `CLOCK_BOOTTIME` nanoseconds; none: the end is under way.
    #[must_use]
    pub fn wakes_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Grace { until_boot_ns, look_boot_ns, .. } => Some(until_boot_ns.min(look_boot_ns)),
            Phase::Ending(_) | Phase::Ended(_) => None,
            Phase::Starting | Phase::Active | Phase::Frozen => {
                let end = self.due().at_boot_ns;
                let before = self.term_ns().max(self.warning_ns.unwrap_or(0));
                let at = end.saturating_sub(before).min(self.armed.at_boot_ns);
                Some(self.look_at().map_or(at, |look| look.min(at)))
            }
        }
    }

    /// Takes one input and says what is to be done. An input that means nothing in the present state (a second end, a
    /// late tick) changes nothing and asks for nothing.
    #[must_use]
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match (self.phase, input) {
            (Phase::Starting, Input::Labelled) => vec![self.enter(Phase::Active, Cause::Labelled)],
            // nobody has seen its label yet: to the caller that start failed
            (Phase::Starting, Input::StartFailed | Input::FirstExited { .. }) => self.begin_end(EndReason::StartFailed),
            (Phase::Active | Phase::Frozen, Input::FirstExited { now_boot_ns }) => self.first_exited(now_boot_ns),
            (Phase::Starting, Input::Undone) => {
                self.mode = Mode::Observe;
                self.begin_end(EndReason::StartFailed)
            }
            (_, Input::Tick { now_boot_ns }) => self.tick(now_boot_ns),
            (phase, Input::Looked { .. } | Input::Renew { .. } | Input::Rearm { .. }) if phase.lives() => {
                self.move_limits(input)
            }
            (phase, Input::Held { at_boot_ns }) if phase.lives() && at_boot_ns < self.armed.at_boot_ns => {
                self.hold(at_boot_ns)
            }
            (Phase::Active, Input::Freeze { now_boot_ns }) => self.freeze(now_boot_ns),
            (Phase::Frozen, Input::Thaw { now_boot_ns }) => self.thaw(now_boot_ns),
            (Phase::Grace { still: false, .. }, Input::Freeze { .. }) => self.stand(true),
            (Phase::Grace { still: true, .. }, Input::Thaw { .. }) => self.stand(false),
            (Phase::Grace { unasked: true, .. }, Input::Asked) => self.asked(),
            (Phase::Starting | Phase::Active | Phase::Frozen, Input::End { reason }) => self.begin_end(reason),
            (Phase::Grace { reason, .. }, Input::End { .. } | Input::Counted { left: 0 }) => self.cut(reason),
            (Phase::Ending(reason), Input::Swept(round)) if self.mode == Mode::Enforce => {
                self.keep(round);
                if round.left > 0 { vec![Effect::Sweep] } else { self.finish(reason, 0) }
            }
            (Phase::Ending(reason), Input::Counted { left }) if self.mode == Mode::Observe => self.finish(reason, left),
            _ => Vec::new(),
        }
    }

    fn tick(&mut self, now_boot_ns: u64) -> Vec<Effect> {
        match self.phase {
            Phase::Grace { reason, until_boot_ns, .. } if now_boot_ns >= until_boot_ns => self.cut(reason),
            Phase::Grace { reason, until_boot_ns, look_boot_ns, still, unasked } if now_boot_ns >= look_boot_ns => {
                let look_boot_ns = now_boot_ns.saturating_add(GRACE_LOOK_NS);
                self.phase = Phase::Grace { reason, until_boot_ns, look_boot_ns, still, unasked };
                vec![Effect::Count]
            }
            phase if phase.lives() => self.check_limits(now_boot_ns),
            _ => Vec::new(),
        }
    }

    fn check_limits(&mut self, now_boot_ns: u64) -> Vec<Effect> {
        // what the kernel has expired stays so, whatever came to be known since
        if now_boot_ns >= self.armed.at_boot_ns {
            return self.begin_end(self.armed.reason);
        }
        let due = self.due();
        let left_ns = due.at_boot_ns.saturating_sub(now_boot_ns);
        if left_ns == 0 {
            return self.begin_end(due.reason);
        }
        if self.phase != Phase::Starting && left_ns <= self.term_ns() {
            return self.terminate(due, now_boot_ns);
        }
        match self.warning_ns {
            Some(warning) if left_ns <= warning => {
                self.warning_ns = warning_below(left_ns.min(warning), u64::MAX);
                vec![Effect::Warn { due, left_ns }]
            }
            _ => Vec::new(),
        }
    }

    /// How long before the end `SIGTERM` comes: in mode `observe` it does not, nor to who stands still and could not answer.
    fn term_ns(&self) -> u64 {
        if self.mode == Mode::Enforce && self.phase != Phase::Frozen { self.limits.term_ns } else { 0 }
    }

    fn terminate(&mut self, due: Due, now_boot_ns: u64) -> Vec<Effect> {
        let until_boot_ns = due.at_boot_ns;
        let mut effects = self.begin_grace((due.reason, true), until_boot_ns, now_boot_ns);
        effects.push(Effect::Terminate { until_boot_ns });
        effects
    }

    fn first_exited(&mut self, now_boot_ns: u64) -> Vec<Effect> {
        let until = now_boot_ns.saturating_add(self.limits.leftovers_ns).min(self.armed.at_boot_ns);
        if self.mode == Mode::Observe || until <= now_boot_ns {
            return self.begin_end(EndReason::Completed);
        }
        self.begin_grace((EndReason::Completed, false), until, now_boot_ns)
    }

    /// The end begins, and the scope goes on to be enforced until `until_boot_ns`; the kernel holds that moment.
    fn begin_grace(
        &mut self,
        (reason, unasked): (EndReason, bool),
        until_boot_ns: u64,
        now_boot_ns: u64,
    ) -> Vec<Effect> {
        // what an operator froze does not let itself go by ending
        let (still, look_boot_ns) = (self.phase == Phase::Frozen, now_boot_ns);
        let grace = Phase::Grace { reason, until_boot_ns, look_boot_ns, still, unasked };
        let record = self.enter(grace, Cause::End(reason));
        let mut effects = self.arm(Due { at_boot_ns: until_boot_ns, reason });
        effects.push(record);
        effects
    }

    /// In its grace: members stand still, or go on. It ends when it would have.
    fn stand(&mut self, stand: bool) -> Vec<Effect> {
        if let Phase::Grace { still, .. } = &mut self.phase {
            *still = stand;
        }
        vec![if stand { Effect::Freeze } else { Effect::Thaw }]
    }

    /// Its members have `SIGTERM`.
    fn asked(&mut self) -> Vec<Effect> {
        if let Phase::Grace { unasked, .. } = &mut self.phase {
            *unasked = false;
        }
        Vec::new()
    }

    /// The grace is over.
    fn cut(&mut self, reason: EndReason) -> Vec<Effect> {
        self.phase = Phase::Ending(reason);
        vec![Effect::MarkEnded, self.removal()]
    }

    fn freeze(&mut self, now_boot_ns: u64) -> Vec<Effect> {
        let before = self.due();
        let record = self.enter(Phase::Frozen, Cause::Frozen);
        let mut effects = vec![Effect::Freeze, record];
        effects.extend(self.arm(self.limits.for_kernel(true)));
        self.set_warning(before, now_boot_ns);
        effects
    }

    fn thaw(&mut self, now_boot_ns: u64) -> Vec<Effect> {
        let before = self.due();
        let record = self.enter(Phase::Active, Cause::Thawed);
        if let Some(idle) = &mut self.limits.idle {
            idle.seen(now_boot_ns, Some(now_boot_ns));
        }
        let mut effects = self.arm(self.limits.for_kernel(false));
        effects.extend([Effect::Thaw, record]);
        self.set_warning(before, now_boot_ns);
        effects
    }

    /// Inputs that move a limit. One that has passed in the kernel is not moved any more.
    fn move_limits(&mut self, input: Input) -> Vec<Effect> {
        let now = match input {
            Input::Looked { now_boot_ns, .. } | Input::Renew { now_boot_ns, .. } | Input::Rearm { now_boot_ns, .. } => {
                now_boot_ns
            }
            _ => return Vec::new(),
        };
        if now >= self.armed.at_boot_ns {
            return self.begin_end(self.armed.reason);
        }
        let before = self.due();
        match input {
            Input::Looked { last_boot_ns, .. } => {
                if let Some(idle) = &mut self.limits.idle {
                    idle.seen(now, last_boot_ns);
                }
            }
            Input::Renew { ttl_boot_ns, .. } => self.limits.ttl_boot_ns = ttl_boot_ns,
            Input::Rearm { window_boot_ns, credential_boot_ns, .. } => {
                self.limits.window_boot_ns = window_boot_ns;
                self.limits.credential_boot_ns = credential_boot_ns;
            }
            _ => {}
        }
        self.set_warning(before, now);
        self.arm(self.limits.for_kernel(self.phase == Phase::Frozen))
    }

    /// With an idle limit the earlier moment may be one before the session did something: the next look moves it.
    fn hold(&mut self, at_boot_ns: u64) -> Vec<Effect> {
        let mut reason = self.armed.reason;
        if self.limits.idle.is_none() {
            self.limits.ttl_boot_ns = self.limits.ttl_boot_ns.min(at_boot_ns);
            reason = EndReason::Ttl;
        }
        self.arm(Due { at_boot_ns, reason })
    }

    /// The warning that comes next where the end is not `before` any more: one that was not given yet stays due, however
    /// near the end came, but for one that is too long for the limit that comes first now.
    fn set_warning(&mut self, before: Due, now_boot_ns: u64) {
        let due = self.due();
        if due == before {
            return;
        }
        let left_ns = due.at_boot_ns.saturating_sub(now_boot_ns);
        let longest_ns = self.limits.longest_warning(due.reason);
        let pending = self.warning_ns.filter(|warning| *warning <= longest_ns);
        self.warning_ns = pending.max(warning_below(left_ns, longest_ns));
    }

    fn arm(&mut self, due: Due) -> Vec<Effect> {
        let before = std::mem::replace(&mut self.armed, due);
        if before.at_boot_ns == due.at_boot_ns {
            return Vec::new();
        }
        vec![Effect::SetDeadline { at_boot_ns: due.at_boot_ns }]
    }

    fn enter(&mut self, phase: Phase, cause: Cause) -> Effect {
        let before = std::mem::replace(&mut self.phase, phase);
        Effect::Record { from: before.state(), to: phase.state(), cause }
    }

    fn removal(&self) -> Effect {
        match self.mode {
            Mode::Enforce => Effect::Sweep,
            Mode::Observe => Effect::Count,
        }
    }

    fn begin_end(&mut self, reason: EndReason) -> Vec<Effect> {
        let frozen = self.phase == Phase::Frozen;
        let record = self.enter(Phase::Ending(reason), Cause::End(reason));
        // the kernel first: from then on nothing starts and nothing is sent, however long the rest takes
        let mut effects = vec![Effect::MarkEnded, record];
        // what was only observed runs on; what is killed need not be let go before
        effects.extend((frozen && self.mode == Mode::Observe).then_some(Effect::Thaw));
        effects.push(self.removal());
        effects
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
