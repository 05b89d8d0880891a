//! What the tests of the machine share.

mod paths;
mod random;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Longer than the longest warning.
const DEADLINE: u64 = 100 * SECOND;

const FREEZE: Input = Input::Freeze { now_boot_ns: SECOND };

fn session(mode: Mode, limits: Limits) -> Session {
    Session::new(SessionId::from_random([7; 16]), mode, limits, 0)
}

fn new(mode: Mode) -> Session {
    session(mode, Limits::ttl(DEADLINE))
}

fn active(limits: Limits) -> Session {
    let mut session = session(Mode::Enforce, limits);
    assert_eq!(session.step(Input::Labelled).len(), 1);
    session
}

fn tick(seconds: u64) -> Input {
    Input::Tick { now_boot_ns: seconds * SECOND }
}

fn round(killed: u64, left: u64) -> Input {
    Input::Swept(Round { killed, left, ms: 1 })
}

fn record(from: State, to: State, cause: Cause) -> Effect {
    Effect::Record { from, to, cause }
}

fn ending(reason: EndReason) -> Effect {
    record(State::Active, State::Ending, Cause::End(reason))
}
