//! What is to become of a live session: one verdict of a closed set. It is no state: it follows from where the machine is
//! and from what else holds for the session now, and so is never older than the question.

use std::fmt;

use super::{EndReason, Session, State};

/// What is to become of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on in the scope that it started with.
    Continue,
    /// It goes on in less than that.
    Narrow,
    /// It stands still until somebody says how it goes on.
    Hold,
    /// It ends, or has ended, for this reason.
    End(EndReason),
}

/// What the machine does not know of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// It has been narrowed.
    pub narrowed: bool,
    /// Its principal or its policy may not start now.
    pub stayed: bool,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub now_boot_ns: u64,
}

/// The verdict on a session. The end goes before a stop, a stop before a narrower scope; an end that has begun keeps its
/// reason, and a limit that has passed goes before a stay.
#[must_use]
pub fn verdict(session: &Session, facts: Facts) -> Verdict {
    let reason = session.reason().or_else(|| session.passed(facts.now_boot_ns));
    match (reason, session.state()) {
        (Some(reason), _) => Verdict::End(reason),
        (None, _) if facts.stayed => Verdict::End(EndReason::Revoked),
        (None, State::Frozen | State::Held) => Verdict::Hold,
        (None, _) if facts.narrowed => Verdict::Narrow,
        (None, _) => Verdict::Continue,
    }
}

impl Verdict {
    /// Every name.
    pub const NAMES: [&str; 4] = ["continue", "narrow", "hold", "end"];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Narrow => "narrow",
            Self::Hold => "hold",
            Self::End(_) => "end",
        }
    }

    /// What led to it; empty: nothing is held against the session.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::Continue => "",
            Self::Narrow => "narrowed",
            Self::Hold => "frozen",
            Self::End(reason) => reason.as_str(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Cause, IDLE_MARGIN_NS, Idle, Input, Limits, Mode, Round, SessionId};

    const SECOND: u64 = 1_000_000_000;
    /// When each limit ends a session that has it.
    const LIMIT: u64 = 50 * SECOND;
    const BEFORE: u64 = 20 * SECOND;

    fn limited(reason: EndReason) -> Limits {
        let far = Limits::ttl(1_000 * SECOND);
        match reason {
            EndReason::Ttl => Limits::ttl(LIMIT),
            EndReason::Idle => Limits { idle: Some(Idle::new(LIMIT, 0)), ..far },
            EndReason::Window => Limits { window_boot_ns: Some(LIMIT), ..far },
            EndReason::CredentialExpired => Limits { credential_boot_ns: Some(LIMIT), ..far },
            _ => far,
        }
    }

    fn active(mode: Mode, limits: Limits) -> Session {
        let mut session = Session::new(SessionId::from_random([7; 16]), mode, limits, 0);
        step(&mut session, Input::Labelled);
        session
    }

    fn step(session: &mut Session, input: Input) {
        assert!(!session.step(input).is_empty(), "{input:?} means nothing to {session:?}");
    }

    fn at(now_boot_ns: u64) -> Facts {
        Facts { narrowed: false, stayed: false, now_boot_ns }
    }

    /// What the agent finds and tells the machine, by the reason that comes of it; none: time alone ends the session.
    fn detected(reason: EndReason) -> Option<Input> {
        match reason {
            EndReason::Ttl | EndReason::Idle | EndReason::Window | EndReason::CredentialExpired => None,
            EndReason::Completed => Some(Input::FirstExited { now_boot_ns: BEFORE }),
            // a start fails before the session is active; see below
            EndReason::StartFailed
            | EndReason::Revoked
            | EndReason::Locked
            | EndReason::Violation
            | EndReason::Budget
            | EndReason::ContextChanged
            | EndReason::ApprovalTimeout
            | EndReason::AgentLoss
            | EndReason::Operator
            | EndReason::Superseded
            | EndReason::Reboot => Some(Input::End { reason }),
        }
    }

    /// Every detector, in a session that runs and in one that is frozen, in both modes, narrowed or not, stayed or not.
    #[test]
    fn whatever_ends_a_session_makes_its_verdict() {
        for reason in EndReason::ALL {
            for (mode, frozen, narrowed) in combinations() {
                let mut session = active(mode, limited(reason));
                if frozen {
                    step(&mut session, Input::Freeze { now_boot_ns: SECOND });
                }
                let facts = |now| Facts { narrowed, ..at(now) };
                let before = match (frozen, narrowed) {
                    (true, _) => Verdict::Hold,
                    (false, true) => Verdict::Narrow,
                    (false, false) => Verdict::Continue,
                };
                assert_eq!(verdict(&session, facts(BEFORE)), before, "{reason} in {mode:?}");
                let Some(input) = detected(reason) else {
                    // nothing happens but that it becomes later; what is frozen does nothing and is not idle
                    let later = LIMIT + IDLE_MARGIN_NS;
                    let idle = frozen && reason == EndReason::Idle;
                    let after = if idle { Verdict::Hold } else { Verdict::End(reason) };
                    assert_eq!(verdict(&session, facts(later)), after, "{reason} in {mode:?}");
                    continue;
                };
                step(&mut session, input);
                for stayed in [false, true] {
                    let facts = Facts { stayed, ..facts(BEFORE) };
                    assert_eq!(verdict(&session, facts), Verdict::End(reason), "{reason} in {mode:?}");
                }
                // and it stays so, after the last member too
                step(&mut session, if mode == Mode::Enforce { swept(0) } else { Input::Counted { left: 1 } });
                assert_eq!(session.state(), State::Ended);
                assert_eq!(verdict(&session, facts(BEFORE)), Verdict::End(reason));
            }
        }
    }

    fn combinations() -> impl Iterator<Item = (Mode, bool, bool)> {
        let both = [false, true];
        Mode::ALL.into_iter().flat_map(move |m| both.into_iter().flat_map(move |f| both.map(move |n| (m, f, n))))
    }

    fn swept(left: u64) -> Input {
        Input::Swept(Round { killed: 1, left, ms: 1 })
    }

    /// Each cause of a change of state that the evidence knows.
    #[test]
    fn each_change_of_state_has_its_verdict() {
        let after = |cause: Cause| {
            let mut session = Session::new(SessionId::from_random([7; 16]), Mode::Enforce, Limits::ttl(LIMIT), 0);
            assert_eq!(verdict(&session, at(0)), Verdict::Continue, "one that starts");
            let inputs: &[Input] = match cause {
                Cause::Labelled => &[Input::Labelled],
                Cause::Frozen => &[Input::Labelled, Input::Freeze { now_boot_ns: 1 }],
                Cause::Thawed => {
                    &[Input::Labelled, Input::Freeze { now_boot_ns: 1 }, Input::Thaw { now_boot_ns: SECOND }]
                }
                Cause::End(_) => &[Input::StartFailed],
                Cause::Measured => &[Input::StartFailed, swept(0)],
            };
            inputs.iter().for_each(|input| step(&mut session, *input));
            verdict(&session, at(BEFORE))
        };
        assert_eq!(after(Cause::Labelled), Verdict::Continue);
        assert_eq!(after(Cause::Frozen), Verdict::Hold);
        assert_eq!(after(Cause::Thawed), Verdict::Continue);
        assert_eq!(after(Cause::End(EndReason::StartFailed)), Verdict::End(EndReason::StartFailed));
        assert_eq!(after(Cause::Measured), Verdict::End(EndReason::StartFailed));
    }

    /// Narrowed, frozen, stayed, past its limit: all sixteen together.
    #[test]
    fn the_stricter_of_two_wins() {
        for bits in 0_u8..16 {
            let [narrowed, frozen, stayed, late] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let mut session = active(Mode::Enforce, Limits::ttl(LIMIT));
            if frozen {
                step(&mut session, Input::Freeze { now_boot_ns: SECOND });
            }
            let facts = Facts { narrowed, stayed, now_boot_ns: if late { LIMIT } else { BEFORE } };
            let expected = match (late, stayed, frozen, narrowed) {
                (true, ..) => Verdict::End(EndReason::Ttl),
                (false, true, ..) => Verdict::End(EndReason::Revoked),
                (false, false, true, _) => Verdict::Hold,
                (false, false, false, true) => Verdict::Narrow,
                (false, false, false, false) => Verdict::Continue,
            };
            assert_eq!(verdict(&session, facts), expected, "narrowed, frozen, stayed, late: {bits:04b}");
        }
    }

    /// What moves a limit moves the verdict with it; a grace is an end that has begun.
    #[test]
    fn limits_that_move_and_graces() {
        let mut renewed = active(Mode::Enforce, Limits::ttl(LIMIT));
        step(&mut renewed, Input::Renew { now_boot_ns: BEFORE, ttl_boot_ns: 2 * LIMIT });
        assert_eq!(verdict(&renewed, at(LIMIT)), Verdict::Continue);
        assert_eq!(verdict(&renewed, at(2 * LIMIT)), Verdict::End(EndReason::Ttl));
        let mut held = active(Mode::Enforce, Limits::ttl(LIMIT));
        step(&mut held, Input::Held { at_boot_ns: 2 * BEFORE });
        assert_eq!(verdict(&held, at(2 * BEFORE)), Verdict::End(EndReason::Ttl));
        let mut rearmed = active(Mode::Enforce, limited(EndReason::Window));
        step(&mut rearmed, Input::Rearm { now_boot_ns: 1, window_boot_ns: Some(BEFORE), credential_boot_ns: None });
        assert_eq!(verdict(&rearmed, at(BEFORE)), Verdict::End(EndReason::Window));
        // it may have done something that nobody has looked at yet: within the margin the agent looks first
        let busy = active(Mode::Enforce, limited(EndReason::Idle));
        assert_eq!(verdict(&busy, at(LIMIT)), Verdict::Continue);
        let mut term = active(Mode::Enforce, Limits { term_ns: 5 * SECOND, ..Limits::ttl(LIMIT) });
        step(&mut term, Input::Tick { now_boot_ns: LIMIT - 5 * SECOND });
        assert_eq!(verdict(&term, at(LIMIT - SECOND)), Verdict::End(EndReason::Ttl));
        let mut left = active(Mode::Enforce, Limits { leftovers_ns: 5 * SECOND, ..Limits::ttl(LIMIT) });
        step(&mut left, Input::FirstExited { now_boot_ns: BEFORE });
        assert_eq!(verdict(&left, at(BEFORE)), Verdict::End(EndReason::Completed));
    }

    #[test]
    fn each_verdict_has_a_name_and_a_ground() {
        let all = [Verdict::Continue, Verdict::Narrow, Verdict::Hold, Verdict::End(EndReason::Operator)];
        let told: Vec<String> = all.iter().map(|verdict| format!("{verdict} {}", verdict.why())).collect();
        assert_eq!(told, ["continue ", "narrow narrowed", "hold frozen", "end operator"]);
    }
}
