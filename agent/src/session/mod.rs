//! A session's life as a pure state machine: `(state, input) → (state, effects)`.
//!
//! Owns the states, the end reasons, the limits and which of them comes first, and the order of the effects at the end
//! (the kernel's entry is marked first, then tasks are killed until none is left). It does no I/O, reads no clock (time
//! is an input) and knows no kernel: whoever drives it carries the effects out and reports what came of them as the next
//! input.
#![forbid(unsafe_code)]

mod ending;
mod exchange;
mod id;
mod limits;
mod machine;
mod names;
#[cfg(test)]
mod tests;
mod verdict;

pub use ending::{Ending, Ends, SPREAD_MS, Spread, Took};
pub use exchange::{Effect, Input, Round};
pub use id::{BadSessionId, SessionId};
pub use limits::{Due, IDLE_MARGIN_NS, Idle, Limits, WARNINGS_NS};
pub use machine::{ROUNDS_MAX, Session};
pub use names::{Cause, EndReason, Mode, State, UnknownName};
pub use verdict::{Facts, Verdict, verdict};
