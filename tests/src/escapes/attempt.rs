//! What an attempt is: the small program, the promise that it attacks, what must come of it in each tier, its allow twin,
//! the effect that must not exist, and where it is known to be open.

use crate::harness::registry::Tier;

/// What an attempt attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// To leave the session.
    Leave,
    /// To run what is out of scope.
    Run,
    /// To reach whom is out of scope, or to use a socket that was made elsewhere.
    Send,
    /// To go on after the deadline.
    Time,
    /// To act beyond the session: on other processes, on the kernel, by gained rights.
    Privilege,
    /// To reach the agent and what holds its sessions.
    Govern,
}

impl Promise {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Run => "run",
            Self::Send => "send",
            Self::Time => "time",
            Self::Privilege => "privilege",
            Self::Govern => "govern",
        }
    }
}

/// Who attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// An ordinary user.
    User,
    /// Root without any capability, and without a way to one.
    Bare,
    /// Root with its capabilities. In tier no-lsm: with those that class `capabilities` leaves.
    Capable,
}

pub(crate) const EVERYBODY: [Who; 3] = [Who::User, Who::Bare, Who::Capable];

impl Who {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Bare => "root",
            Self::Capable => "capable",
        }
    }
}

/// What must come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Must {
    /// An errno of a refusal, and no effect.
    Denied,
    /// `SIGKILL`, and no effect.
    Killed,
    /// It comes to pass, and whoever did it is a member still: what it then tries is refused.
    Attributed,
    /// No effect, whatever the caller was told.
    Dropped,
}

impl Must {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Killed => "killed",
            Self::Attributed => "attributed",
            Self::Dropped => "dropped",
        }
    }
}

/// What shows that the same program works where it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twin {
    /// In the same session, with what is in scope.
    Inside,
    /// As the same user outside every session.
    Outside,
}

/// What an attempt would bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A file that the program writes.
    Mark,
    /// A packet to the address, or with the mark in it, on the wire or at the server.
    Wire,
    /// The caller is told that it was done.
    Said,
    /// A process outside is gone, or is not what it was.
    Victim,
}

/// What the destination of an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Four,
    Six,
    /// A multicast group of IPv4.
    Group,
}

/// Where a refusal leaves no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silent {
    /// Each refusal is a record.
    Nowhere,
    /// In tier no-lsm: `run` took it away before.
    NoLsm,
    /// The refusal is not of Tipstaff's programs.
    Everywhere,
}

/// A line of the threat model that says that an attempt succeeds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its number there.
    pub(crate) o: u32,
    pub(crate) tiers: &'static [Tier],
    pub(crate) who: &'static [Who],
    /// Only on kernels before this one.
    pub(crate) before: Option<(u32, u32)>,
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) promise: Promise,
    /// Unique within its promise.
    pub(crate) name: &'static str,
    /// For people: what is tried.
    pub(crate) what: &'static str,
    /// The program, as `--work` takes it, with `{…}` for what the stage has.
    pub(crate) words: &'static str,
    pub(crate) twin: Twin,
    /// The twin's words, where they are others.
    pub(crate) twin_words: Option<&'static str>,
    pub(crate) effect: Effect,
    pub(crate) family: Family,
    pub(crate) full: Must,
    pub(crate) no_lsm: Must,
    /// Last words that say that it was refused, beside `EPERM`.
    pub(crate) refusals: &'static [&'static str],
    /// The last words of one that was let go, beside `ok`: what is asked for is nothing.
    pub(crate) done: &'static str,
    pub(crate) silent: Silent,
    pub(crate) open: &'static [Known],
    /// What it does to a whole host, where it does.
    pub(crate) guests: bool,
    /// Whether a kernel or a machine may be without it, for every user.
    pub(crate) may_lack: bool,
}

impl Attempt {
    const fn new(promise: Promise, name: &'static str, what: &'static str, words: &'static str) -> Self {
        Self {
            promise,
            name,
            what,
            words,
            twin: Twin::Inside,
            twin_words: None,
            effect: Effect::Said,
            family: Family::Four,
            full: Must::Denied,
            no_lsm: Must::Denied,
            refusals: &[],
            done: "ok",
            silent: Silent::Nowhere,
            open: &[],
            guests: false,
            may_lack: false,
        }
    }

    /// A way to leave: what is attempted then is to run what is out of scope.
    pub(crate) const fn leave(name: &'static str, what: &'static str, words: &'static str) -> Self {
        let new = Self::new(Promise::Leave, name, what, words);
        Self { effect: Effect::Mark, full: Must::Attributed, no_lsm: Must::Attributed, ..new }
    }

    pub(crate) const fn run(name: &'static str, what: &'static str, words: &'static str) -> Self {
        let new = Self::new(Promise::Run, name, what, words);
        Self { effect: Effect::Mark, no_lsm: Must::Killed, ..new }
    }

    pub(crate) const fn send(name: &'static str, what: &'static str, words: &'static str) -> Self {
        Self { effect: Effect::Wire, ..Self::new(Promise::Send, name, what, words) }
    }

    /// A way to go on when the session is over; what it is killed for is no refusal of anything, and no record.
    pub(crate) const fn time(name: &'static str, what: &'static str, words: &'static str) -> Self {
        let new = Self::new(Promise::Time, name, what, words);
        Self { full: Must::Killed, no_lsm: Must::Killed, silent: Silent::Everywhere, ..new }
    }

    pub(crate) const fn privilege(name: &'static str, what: &'static str, words: &'static str) -> Self {
        Self { silent: Silent::NoLsm, twin: Twin::Outside, ..Self::new(Promise::Privilege, name, what, words) }
    }

    pub(crate) const fn govern(name: &'static str, what: &'static str, words: &'static str) -> Self {
        Self { silent: Silent::NoLsm, twin: Twin::Outside, ..Self::new(Promise::Govern, name, what, words) }
    }

    pub(crate) const fn outside(mut self) -> Self {
        self.twin = Twin::Outside;
        self
    }

    /// In scope it is done by these words.
    pub(crate) const fn twin(mut self, words: &'static str) -> Self {
        self.twin_words = Some(words);
        self
    }

    pub(crate) const fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    pub(crate) const fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    pub(crate) const fn must(mut self, full: Must, no_lsm: Must) -> Self {
        (self.full, self.no_lsm) = (full, no_lsm);
        self
    }

    pub(crate) const fn refused_by(mut self, refusals: &'static [&'static str]) -> Self {
        self.refusals = refusals;
        self
    }

    pub(crate) const fn done(mut self, done: &'static str) -> Self {
        self.done = done;
        self
    }

    pub(crate) const fn silent(mut self, silent: Silent) -> Self {
        self.silent = silent;
        self
    }

    pub(crate) const fn open(mut self, open: &'static [Known]) -> Self {
        self.open = open;
        self
    }

    /// It changes what is not the test's own.
    pub(crate) const fn guests_only(mut self) -> Self {
        self.guests = true;
        self
    }

    /// Some kernels, or machines, do not have it.
    pub(crate) const fn may_lack(mut self) -> Self {
        self.may_lack = true;
        self
    }

    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.promise.name(), self.name)
    }

    pub(crate) const fn must_in(&self, tier: Tier) -> Must {
        if matches!(tier, Tier::Full) { self.full } else { self.no_lsm }
    }

    pub(crate) const fn is_silent_in(&self, tier: Tier) -> bool {
        match self.silent {
            Silent::Nowhere => false,
            Silent::NoLsm => matches!(tier, Tier::NoLsm),
            Silent::Everywhere => true,
        }
    }

    /// The number under which the threat model says that this is open here.
    pub(crate) fn known(&self, tier: Tier, who: Who, kernel: (u32, u32)) -> Option<u32> {
        let holds = |known: &&Known| {
            known.tiers.contains(&tier) && known.who.contains(&who) && known.before.is_none_or(|first| kernel < first)
        };
        self.open.iter().find(holds).map(|known| known.o)
    }
}
