//! What goes into the machine and what comes out of it.

use serde::{Deserialize, Serialize};

use super::{Cause, Due, EndReason, State};

/// What happened. Times are `CLOCK_BOOTTIME`, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// The first task has its label; it was read back from the kernel.
    Labelled,
    /// The first task could not be made a member.
    StartFailed,
    /// What ran before could not be attached, and was let go: nothing of it is killed.
    Undone,
    /// The first process ended.
    FirstExited {
        /// When.
        now_boot_ns: u64,
    },
    /// It is now this late.
    Tick {
        /// How late.
        now_boot_ns: u64,
    },
    /// Somebody looked at what an idle limit asks for.
    Looked {
        /// When.
        now_boot_ns: u64,
        /// When the session last did something of that kind; none: nothing since the last look.
        last_boot_ns: Option<u64>,
    },
    /// Its time to live ends at another time.
    Renew {
        /// When this was asked for.
        now_boot_ns: u64,
        /// The new end.
        ttl_boot_ns: u64,
    },
    /// The kernel holds it to an earlier moment than is known here: it stays so.
    Held {
        /// That moment.
        at_boot_ns: u64,
    },
    /// The wall clock was stepped: its calendar window and its credential end at other times on this clock.
    Rearm {
        /// When this was found.
        now_boot_ns: u64,
        /// The window's end.
        window_boot_ns: Option<u64>,
        /// The credential's end.
        credential_boot_ns: Option<u64>,
    },
    /// Stop its members.
    Freeze {
        /// When.
        now_boot_ns: u64,
    },
    /// Let them go on.
    Thaw {
        /// When.
        now_boot_ns: u64,
    },
    /// Somebody or something ends the session.
    End {
        /// Why.
        reason: EndReason,
    },
    /// [`Effect::Terminate`] was carried out.
    Asked,
    /// [`Effect::Sweep`] was carried out.
    Swept(Round),
    /// [`Effect::Count`] was carried out.
    Counted {
        /// Labelled tasks that run on.
        left: u64,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Let the kernel hold the session to this moment.
    SetDeadline {
        /// `CLOCK_BOOTTIME`, nanoseconds.
        at_boot_ns: u64,
    },
    /// Tell that it ends soon. Once for each of [`super::WARNINGS_NS`] and moment of the end.
    Warn {
        /// Which limit.
        due: Due,
        /// How long until then, nanoseconds.
        left_ns: u64,
    },
    /// Send `SIGTERM` to every member, and report [`Input::Asked`]. Once.
    Terminate {
        /// Those that are left then are killed.
        until_boot_ns: u64,
    },
    /// Stop the session's members.
    Freeze,
    /// Let them run.
    Thaw,
    /// Mark the session as ended in its kernel entry, so that every hook refuses. Once, before any sweep.
    MarkEnded,
    /// Kill every labelled task, confirm, count what is left, and report [`Input::Swept`].
    Sweep,
    /// Count the labelled tasks, kill none, and report [`Input::Counted`].
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
