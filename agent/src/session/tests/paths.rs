//! The paths through the machine that matter, one by one.

use super::*;

#[test]
fn the_ordinary_life() {
    let mut session = new(Mode::Enforce);
    assert_eq!(session.step(Input::Labelled), [record(State::Starting, State::Active, Cause::Labelled)]);
    assert_eq!(session.step(tick(39)), []);
    assert_eq!(session.step(tick(100)), [Effect::MarkEnded, ending(EndReason::Ttl), Effect::Sweep]);
    assert_eq!(session.step(Input::End { reason: EndReason::Operator }), []);
    assert_eq!(session.step(round(3, 1)), [Effect::Sweep]);
    let finish = Effect::Finish { reason: EndReason::Ttl, members_left: 0 };
    assert_eq!(session.step(round(1, 0)), [record(State::Ending, State::Ended, Cause::Measured), finish]);
    assert_eq!(session.rounds().iter().map(|round| round.killed).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(session.step(round(1, 1)), []);
}

#[test]
fn observing_ends_without_a_kill() {
    let limits = Limits { term_ns: 5 * SECOND, leftovers_ns: 5 * SECOND, ..Limits::ttl(DEADLINE) };
    let mut session = session(Mode::Observe, limits);
    assert_eq!(session.step(Input::Labelled).len(), 1);
    assert_eq!(session.step(FREEZE).first(), Some(&Effect::Freeze));
    let end = record(State::Frozen, State::Ending, Cause::End(EndReason::Completed));
    let expected = [Effect::MarkEnded, end, Effect::Thaw, Effect::Count];
    assert_eq!(session.step(Input::FirstExited { now_boot_ns: SECOND }), expected);
    let last = record(State::Ending, State::Ended, Cause::Measured);
    let finish = Effect::Finish { reason: EndReason::Completed, members_left: 2 };
    assert_eq!(session.step(Input::Counted { left: 2 }), [last, finish]);
}

#[test]
fn a_start_that_fails_is_swept_too() {
    for input in [Input::StartFailed, Input::FirstExited { now_boot_ns: 0 }] {
        let mut session = new(Mode::Enforce);
        assert_eq!(session.step(input).last(), Some(&Effect::Sweep));
        assert_eq!(session.reason(), Some(EndReason::StartFailed));
        assert_eq!(session.step(round(0, 0)).len(), 2);
    }
}

#[test]
fn what_could_not_be_attached_is_let_go() {
    let mut session = new(Mode::Enforce);
    let end = record(State::Starting, State::Ending, Cause::End(EndReason::StartFailed));
    assert_eq!(session.step(Input::Undone), [Effect::MarkEnded, end, Effect::Count]);
    let finish = Effect::Finish { reason: EndReason::StartFailed, members_left: 1 };
    let last = record(State::Ending, State::Ended, Cause::Measured);
    assert_eq!(session.step(Input::Counted { left: 1 }), [last, finish]);
}

#[test]
fn endless_rounds_stay_bounded() {
    let mut session = new(Mode::Enforce);
    assert!(!session.step(Input::End { reason: EndReason::Operator }).is_empty());
    for _ in 0..1_000 {
        assert_eq!(session.step(round(1, 1)), [Effect::Sweep]);
    }
    assert_eq!(session.step(round(1, 0)).len(), 2);
    assert_eq!(session.rounds().len(), ROUNDS_MAX);
    assert_eq!(session.rounds().iter().map(|round| round.killed).sum::<u64>(), 1_001);
    assert_eq!(session.rounds().last().map(|round| round.left), Some(0));
}

#[test]
fn each_limit_ends_with_its_reason() {
    let at = Some(50 * SECOND);
    let base = Limits::ttl(DEADLINE);
    for (limits, reason) in [
        (Limits { window_boot_ns: at, ..base.clone() }, EndReason::Window),
        (Limits { credential_boot_ns: at, ..base.clone() }, EndReason::CredentialExpired),
        (Limits { idle: Some(Idle::new(50 * SECOND, 0)), ..base.clone() }, EndReason::Idle),
        (Limits::ttl(50 * SECOND), EndReason::Ttl),
    ] {
        let mut session = active(limits);
        assert_eq!(session.due(), Due { at_boot_ns: 50 * SECOND, reason });
        assert_eq!(session.step(tick(39)), []);
        assert_eq!(session.step(tick(50)), [Effect::MarkEnded, ending(reason), Effect::Sweep]);
    }
}

#[test]
fn activity_moves_the_idle_limit_and_only_that() {
    let limits = Limits { idle: Some(Idle::new(20 * SECOND, 0)), ..Limits::ttl(DEADLINE) };
    let mut session = active(limits);
    let looked = |now: u64, last: Option<u64>| Input::Looked {
        now_boot_ns: now * SECOND,
        last_boot_ns: last.map(|last| last * SECOND),
    };
    assert!(session.wants_look(19 * SECOND));
    let armed = |seconds| Effect::SetDeadline { at_boot_ns: seconds * SECOND + IDLE_MARGIN_NS };
    assert_eq!(session.step(looked(19, Some(15))), [armed(35)]);
    assert_eq!(session.step(looked(34, None)), []);
    assert_eq!(session.step(looked(34, Some(10))), [], "what is older than the last moves nothing back");
    assert_eq!(session.step(looked(34, Some(90))), [armed(54)], "nothing was done later than now");
    // where nobody looked for so long, the kernel has refused everything already
    let mut blind = session.clone();
    assert_eq!(blind.step(looked(56, Some(55))), [Effect::MarkEnded, ending(EndReason::Idle), Effect::Sweep]);
    // the time to live stays
    for now in [50, 65, 80, 95] {
        let _ = session.step(looked(now, Some(now)));
    }
    assert_eq!(session.due(), Due { at_boot_ns: DEADLINE, reason: EndReason::Ttl });
}

#[test]
fn a_frozen_session_is_not_idle_and_its_deadline_holds() {
    let limits = Limits { idle: Some(Idle::new(20 * SECOND, 0)), ..Limits::ttl(DEADLINE) };
    let mut session = active(limits);
    let frozen = record(State::Active, State::Frozen, Cause::Frozen);
    let word = |at_boot_ns| Effect::SetDeadline { at_boot_ns };
    assert_eq!(session.step(FREEZE), [Effect::Freeze, frozen, word(DEADLINE)]);
    assert_eq!(session.step(FREEZE), []);
    assert_eq!(session.step(tick(30)), []);
    let mut kept = session.clone();
    let thawed = record(State::Frozen, State::Active, Cause::Thawed);
    let thaw = Input::Thaw { now_boot_ns: 30 * SECOND };
    assert_eq!(session.step(thaw), [word(50 * SECOND + IDLE_MARGIN_NS), Effect::Thaw, thawed]);
    assert_eq!(session.step(thaw), []);
    let end = record(State::Frozen, State::Ending, Cause::End(EndReason::Ttl));
    assert_eq!(kept.step(tick(100)), [Effect::MarkEnded, end, Effect::Sweep]);
}

#[test]
fn warnings_come_once_and_again_where_the_end_moves() {
    let mut session = active(Limits::ttl(DEADLINE));
    let due = |seconds| Due { at_boot_ns: seconds * SECOND, reason: EndReason::Ttl };
    let warn = |left, until| Effect::Warn { due: due(until), left_ns: left * SECOND };
    assert_eq!(session.wakes_at(), Some(40 * SECOND));
    assert_eq!(session.step(tick(40)), [warn(60, 100)]);
    assert_eq!(session.step(tick(41)), []);
    assert_eq!(session.wakes_at(), Some(90 * SECOND));
    let renew = Input::Renew { now_boot_ns: 50 * SECOND, ttl_boot_ns: 150 * SECOND };
    assert_eq!(session.step(renew), [Effect::SetDeadline { at_boot_ns: 150 * SECOND }]);
    // whoever slept over the longer one is told of the shorter one only
    assert_eq!(session.step(tick(145)), [warn(5, 150)]);
    assert_eq!(session.step(tick(149)), []);
    // what is shorter than a warning from the start is not warned of by it
    let mut short = active(Limits::ttl(30 * SECOND));
    assert_eq!(short.wakes_at(), Some(20 * SECOND));
    assert_eq!(short.step(tick(19)), []);
}

#[test]
fn term_comes_before_the_deadline_and_never_moves_it() {
    let mut session = active(Limits { term_ns: 5 * SECOND, ..Limits::ttl(8 * SECOND) });
    assert_eq!(session.wakes_at(), Some(3 * SECOND));
    let terminate = Effect::Terminate { until_boot_ns: 8 * SECOND };
    assert_eq!(session.step(tick(3)), [ending(EndReason::Ttl), terminate]);
    assert_eq!(session.reason(), Some(EndReason::Ttl));
    assert_eq!(session.step(tick(4)), [Effect::Count]);
    assert_eq!(session.step(Input::Counted { left: 2 }), []);
    let mut early = session.clone();
    assert_eq!(
        early.step(Input::Counted { left: 0 }),
        [Effect::MarkEnded, Effect::Sweep],
        "nobody is left to wait for"
    );
    let mut revoked = session.clone();
    let revoke = Input::End { reason: EndReason::Revoked };
    assert_eq!(revoked.step(revoke), [Effect::MarkEnded, Effect::Sweep], "an operator need not wait");
    assert_eq!(session.step(tick(8)), [Effect::MarkEnded, Effect::Sweep]);
    // one who wakes after the deadline finds no grace left
    let mut late = active(Limits { term_ns: 5 * SECOND, ..Limits::ttl(8 * SECOND) });
    assert_eq!(late.step(tick(8)), [Effect::MarkEnded, ending(EndReason::Ttl), Effect::Sweep]);
}

/// An agent that died between the record and the signal leaves it to the next; one that died after it does not.
#[test]
fn a_signal_is_owed_until_it_was_sent() {
    let mut session = active(Limits { term_ns: 5 * SECOND, ..Limits::ttl(8 * SECOND) });
    assert_eq!(session.owes_term(), None);
    assert_eq!(session.step(tick(3)).len(), 2);
    let kept = |session: &Session| -> Session {
        let text = serde_json::to_string(session).expect("a session serialises");
        serde_json::from_str(&text).expect("and comes back")
    };
    let mut next = kept(&session);
    assert_eq!(next.owes_term(), Some(8 * SECOND));
    assert_eq!(next.step(tick(4)), [Effect::Count], "to look does not pay it");
    assert_eq!(next.owes_term(), Some(8 * SECOND));
    assert_eq!(next.step(Input::Asked), []);
    assert_eq!(kept(&next).owes_term(), None);
    let mut late = session.clone();
    assert_eq!(late.step(tick(8)), [Effect::MarkEnded, Effect::Sweep]);
    assert_eq!(late.owes_term(), None, "who is killed is not asked");
    // what the first process leaves behind is not asked
    let mut left = active(Limits { term_ns: SECOND, leftovers_ns: 10 * SECOND, ..Limits::ttl(DEADLINE) });
    assert_eq!(left.step(Input::FirstExited { now_boot_ns: SECOND }).len(), 2);
    assert!(left.is_in_grace() && left.owes_term().is_none());
}

/// A pause is not the approach of an end: an idle limit is warned of once in each approach, and not before half of it has
/// passed.
#[test]
fn an_idle_limit_warns_of_what_has_lasted() {
    let idle = |after| Limits { idle: Some(Idle::new(after * SECOND, 0)), ..Limits::ttl(1_000 * SECOND) };
    let warned = |after: u64, last: u64| {
        let mut session = active(idle(after));
        let mut told = Vec::new();
        for now in 0..last + after {
            let seen = Input::Looked { now_boot_ns: now * SECOND, last_boot_ns: Some(now.min(last) * SECOND) };
            for input in [seen, tick(now)] {
                let effects = session.step(input);
                let left = effects.iter().filter_map(|effect| match effect {
                    Effect::Warn { left_ns, .. } => Some(left_ns / SECOND),
                    _ => None,
                });
                told.extend(left.map(|left| (now, left)));
            }
        }
        told
    };
    for (after, expected) in [
        (8, vec![]),
        (10, vec![]),
        (12, vec![]),
        (20, vec![(30, 10)]),
        (65, vec![(75, 10)]),
        (119, vec![(129, 10)]),
        (120, vec![(80, 60), (130, 10)]),
    ] {
        assert_eq!(warned(after, 20), expected, "idle for {after} s");
    }
    // done something after the warning: the next approach is another
    let mut again = active(idle(20));
    let warn = |until: u64| Effect::Warn {
        due: Due { at_boot_ns: until * SECOND, reason: EndReason::Idle },
        left_ns: 10 * SECOND,
    };
    assert_eq!(again.step(tick(10)), [warn(20)]);
    assert_eq!(again.step(tick(11)), []);
    let seen = Input::Looked { now_boot_ns: 12 * SECOND, last_boot_ns: Some(12 * SECOND) };
    assert_eq!(again.step(seen).len(), 1);
    assert_eq!(again.step(tick(21)), []);
    assert_eq!(again.step(tick(22)), [warn(32)]);
    // thawed, it is idle from then on: the warning of its time to live is none of its idle limit
    let mut thawed = active(idle(8));
    assert_eq!(thawed.step(FREEZE).first(), Some(&Effect::Freeze));
    assert!(thawed.step(Input::Thaw { now_boot_ns: 2 * SECOND }).contains(&Effect::Thaw));
    assert_eq!(thawed.step(tick(9)), []);
}

#[test]
fn leftovers_have_their_grace_within_the_limits() {
    let mut session = active(Limits { leftovers_ns: 10 * SECOND, ..Limits::ttl(DEADLINE) });
    let word = |seconds| Effect::SetDeadline { at_boot_ns: seconds * SECOND };
    let exited = |seconds| Input::FirstExited { now_boot_ns: seconds * SECOND };
    assert_eq!(session.step(exited(20)), [word(30), ending(EndReason::Completed)]);
    assert_eq!(session.step(tick(30)), [Effect::MarkEnded, Effect::Sweep]);
    let mut late = active(Limits { leftovers_ns: 10 * SECOND, ..Limits::ttl(DEADLINE) });
    assert_eq!(late.step(exited(95)), [ending(EndReason::Completed)], "the deadline is held already");
    assert_eq!(late.wakes_at(), Some(95 * SECOND));
    assert_eq!(late.step(tick(100)), [Effect::MarkEnded, Effect::Sweep]);
}

/// What was frozen stays so when its first process dies, and gets no signal that it could not answer.
#[test]
fn an_end_does_not_thaw() {
    let limits = Limits { term_ns: 5 * SECOND, leftovers_ns: 10 * SECOND, ..Limits::ttl(DEADLINE) };
    let mut session = active(limits);
    assert_eq!(session.step(FREEZE).first(), Some(&Effect::Freeze));
    assert_eq!(session.wakes_at(), Some(40 * SECOND), "for the warning, and not for the signal");
    let mut late = session.clone();
    assert!(!late.step(tick(96)).iter().any(|effect| matches!(effect, Effect::Terminate { .. })));
    assert_eq!(late.state(), State::Frozen);
    let end = record(State::Frozen, State::Ending, Cause::End(EndReason::Completed));
    let word = Effect::SetDeadline { at_boot_ns: 30 * SECOND };
    assert_eq!(session.step(Input::FirstExited { now_boot_ns: 20 * SECOND }), [word, end]);
    assert!(session.is_still() && session.is_in_grace());
    assert_eq!(session.step(FREEZE), []);
    assert_eq!(session.step(Input::Thaw { now_boot_ns: 21 * SECOND }), [Effect::Thaw]);
    assert_eq!(session.step(FREEZE), [Effect::Freeze], "a grace can be frozen too");
    assert_eq!(session.over_at(), Due { at_boot_ns: 30 * SECOND, reason: EndReason::Completed });
    assert_eq!(session.step(tick(30)), [Effect::MarkEnded, Effect::Sweep]);
}

#[test]
fn an_earlier_moment_of_the_kernel_holds() {
    let held = |seconds| Input::Held { at_boot_ns: seconds * SECOND };
    let word = |seconds| Effect::SetDeadline { at_boot_ns: seconds * SECOND };
    let mut session = active(Limits::ttl(DEADLINE));
    assert_eq!(session.step(held(100)), []);
    assert_eq!(session.step(held(120)), [], "it never makes anything longer");
    assert_eq!(session.step(held(80)), [word(80)]);
    assert_eq!(session.due(), Due { at_boot_ns: 80 * SECOND, reason: EndReason::Ttl });
    // a thing that moves another limit does not bring the time back
    let rearm = Input::Rearm { now_boot_ns: 20 * SECOND, window_boot_ns: Some(DEADLINE), credential_boot_ns: None };
    assert_eq!(session.step(rearm), []);
    assert_eq!(session.step(tick(80)), [Effect::MarkEnded, ending(EndReason::Ttl), Effect::Sweep]);
    // with an idle limit it may be the one of before the session did something: whoever looks moves it
    let idle = Some(Idle::new(50 * SECOND, 0));
    let mut busy = active(Limits { idle, ..Limits::ttl(DEADLINE) });
    assert_eq!(busy.step(held(40)), [word(40)]);
    assert_eq!(busy.due(), Due { at_boot_ns: 50 * SECOND, reason: EndReason::Idle });
    let looked = Input::Looked { now_boot_ns: 30 * SECOND, last_boot_ns: Some(29 * SECOND) };
    assert_eq!(busy.step(looked), [Effect::SetDeadline { at_boot_ns: 79 * SECOND + IDLE_MARGIN_NS }]);
    // what has passed has passed
    assert_eq!(busy.step(held(60)), [word(60)]);
    assert_eq!(busy.step(tick(60)), [Effect::MarkEnded, ending(EndReason::Idle), Effect::Sweep]);
}

#[test]
fn names_are_one_spelling_everywhere() {
    fn check<T>(all: &[T])
    where
        T: Copy + PartialEq + std::fmt::Debug + std::fmt::Display + std::str::FromStr + serde::Serialize,
        T: serde::de::DeserializeOwned,
    {
        for item in all {
            let json = serde_json::to_string(item).expect("a name serialises");
            assert_eq!(json, format!("\"{item}\""));
            assert_eq!(serde_json::from_str::<T>(&json).ok(), Some(*item));
            assert_eq!(item.to_string().parse::<T>().ok(), Some(*item));
        }
        assert!("nothing".parse::<T>().is_err());
    }
    check(&State::ALL);
    check(&EndReason::ALL);
    check(&Mode::ALL);
    let causes = [Cause::Labelled, Cause::Frozen, Cause::Thawed, Cause::Measured];
    check(&causes);
    check(&[Cause::End(EndReason::CredentialExpired)]);
    let message = "enforced".parse::<Mode>().map_err(|error| error.to_string());
    assert_eq!(message, Err("\"enforced\" is not a mode; use one of: enforce, observe".to_owned()));
}
