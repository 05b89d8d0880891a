//! The machine under random inputs, and the paths that matter one by one.

use std::collections::BTreeSet;

use proptest::{collection::vec, option, prelude::*, sample::select};

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

fn times() -> impl Strategy<Value = u64> {
    (0..2 * DEADLINE / SECOND).prop_map(|seconds| seconds * SECOND)
}

fn limits() -> impl Strategy<Value = Limits> {
    let graces = (select(vec![0, 5 * SECOND]), select(vec![0, 7 * SECOND]));
    (times(), option::of(times()), option::of(times()), option::of(times()), graces).prop_map(
        |(ttl_boot_ns, idle, window_boot_ns, credential_boot_ns, (term_ns, leftovers_ns))| Limits {
            ttl_boot_ns,
            idle: idle.map(|after| Idle::new(after, 0)),
            window_boot_ns,
            credential_boot_ns,
            term_ns,
            leftovers_ns,
        },
    )
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        Just(Input::Labelled),
        Just(Input::StartFailed),
        Just(Input::Undone),
        Just(Input::Asked),
        times().prop_map(|now_boot_ns| Input::FirstExited { now_boot_ns }),
        times().prop_map(|now_boot_ns| Input::Tick { now_boot_ns }),
        (times(), option::of(times()))
            .prop_map(|(now_boot_ns, last_boot_ns)| Input::Looked { now_boot_ns, last_boot_ns }),
        (times(), times()).prop_map(|(now_boot_ns, ttl_boot_ns)| Input::Renew { now_boot_ns, ttl_boot_ns }),
        (times(), option::of(times()), option::of(times())).prop_map(
            |(now_boot_ns, window_boot_ns, credential_boot_ns)| Input::Rearm {
                now_boot_ns,
                window_boot_ns,
                credential_boot_ns
            }
        ),
        times().prop_map(|at_boot_ns| Input::Held { at_boot_ns }),
        times().prop_map(|now_boot_ns| Input::Freeze { now_boot_ns }),
        times().prop_map(|now_boot_ns| Input::Thaw { now_boot_ns }),
        select(EndReason::ALL.to_vec()).prop_map(|reason| Input::End { reason }),
        (0..5u64, 0..3u64).prop_map(|(killed, left)| round(killed, left)),
        (0..3u64).prop_map(|left| Input::Counted { left }),
    ];
    // a life that is more than its first moments: most inputs would end it
    (vec(input, 0..40), any::<bool>()).prop_map(|(mut inputs, lives)| {
        if lives {
            inputs.insert(0, Input::Labelled);
            inputs.retain(|input| !matches!(input, Input::End { .. } | Input::StartFailed | Input::Undone));
        }
        inputs
    })
}

fn modes() -> impl Strategy<Value = Mode> {
    select(Mode::ALL.to_vec())
}

/// The states passed, each with its reason, and all effects in order.
fn run(session: &mut Session, inputs: &[Input]) -> (Vec<(State, Option<EndReason>)>, Vec<Effect>) {
    let mut states = vec![(session.state(), session.reason())];
    let mut effects = Vec::new();
    for input in inputs {
        effects.extend(session.step(*input));
        states.push((session.state(), session.reason()));
    }
    (states, effects)
}

fn position(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> Option<usize> {
    effects.iter().position(wanted)
}

fn count(effects: &[Effect], wanted: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().filter(|effect| wanted(effect)).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_end_has_a_reason_and_no_way_back(mode in modes(), limits in limits(), inputs in inputs()) {
        let (states, _) = run(&mut session(mode, limits), &inputs);
        for pair in states.windows(2) {
            let ((from, reason), (to, later)) = (pair[0], pair[1]);
            let allowed = from == to || matches!(
                (from, to),
                (State::Starting, State::Active | State::Ending)
                    | (State::Active, State::Frozen | State::Ending)
                    | (State::Frozen, State::Active | State::Ending)
                    | (State::Ending, State::Ended)
            );
            prop_assert!(allowed, "{from} to {to}");
            prop_assert_eq!(later.is_some(), matches!(to, State::Ending | State::Ended));
            prop_assert!(reason.is_none() || reason == later, "the first reason stands");
        }
    }

    #[test]
    fn every_change_is_recorded_and_nothing_is_done_twice(mode in modes(), limits in limits(), inputs in inputs()) {
        let mut session = session(mode, limits);
        let (states, effects) = run(&mut session, &inputs);
        let changes: Vec<_> = states.windows(2).map(|pair| (pair[0].0, pair[1].0)).filter(|(from, to)| from != to).collect();
        let recorded: Vec<_> = effects.iter().filter_map(|effect| match effect {
            Effect::Record { from, to, .. } => Some((*from, *to)),
            _ => None,
        }).collect();
        prop_assert_eq!(changes, recorded);

        let (last, reason) = states[states.len() - 1];
        let marks = count(&effects, |effect| *effect == Effect::MarkEnded);
        // a session in its grace has a reason and is not marked yet
        prop_assert!(marks == usize::from(reason.is_some()) || (marks == 0 && last == State::Ending));
        let asked = count(&effects, |effect| matches!(effect, Effect::Terminate { .. }));
        prop_assert!(asked <= 1);
        let ends: Vec<_> = effects.iter().filter_map(|effect| match effect {
            Effect::Finish { reason, .. } => Some(*reason),
            _ => None,
        }).collect();
        prop_assert_eq!(ends, if last == State::Ended { reason.into_iter().collect() } else { Vec::new() });
    }

    #[test]
    fn the_kernel_is_marked_before_anybody_is_killed(mode in modes(), limits in limits(), inputs in inputs()) {
        let (_, effects) = run(&mut session(mode, limits), &inputs);
        let mark = position(&effects, |effect| *effect == Effect::MarkEnded);
        let others = [
            position(&effects, |effect| *effect == Effect::Sweep),
            position(&effects, |effect| matches!(effect, Effect::Finish { .. })),
        ];
        for other in others.into_iter().flatten() {
            prop_assert!(mark.is_some_and(|mark| mark < other));
        }
    }

    #[test]
    fn only_enforce_kills_and_only_observe_leaves(mode in modes(), limits in limits(), inputs in inputs()) {
        let mut session = session(mode, limits);
        let (_, effects) = run(&mut session, &inputs);
        for effect in effects {
            match effect {
                // also at the end: what was let go is not killed
                Effect::Sweep | Effect::Terminate { .. } => prop_assert_eq!(session.mode(), Mode::Enforce),
                Effect::Finish { members_left, .. } => {
                    prop_assert!(members_left == 0 || session.mode() == Mode::Observe);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn frozen_and_thawed_take_turns(mode in modes(), limits in limits(), inputs in inputs()) {
        let (states, effects) = run(&mut session(mode, limits), &inputs);
        let turns: Vec<_> = effects.iter().filter(|e| matches!(e, Effect::Freeze | Effect::Thaw)).collect();
        for (n, turn) in turns.iter().enumerate() {
            prop_assert_eq!(**turn, if n % 2 == 0 { Effect::Freeze } else { Effect::Thaw });
        }
        // nobody who is not killed is left stopped
        if mode == Mode::Observe && states[states.len() - 1].0 == State::Ended {
            prop_assert_eq!(turns.len() % 2, 0);
        }
    }

    /// Once for each threshold of an end, and a round for the end and for each round that left somebody.
    #[test]
    fn a_warning_and_a_round_come_once(mode in modes(), limits in limits(), inputs in inputs()) {
        let mut session = session(mode, limits);
        let (mut warned, mut sweeps, mut rounds) = (BTreeSet::new(), 0, 1);
        for input in inputs {
            let before = session.due();
            rounds += usize::from(matches!(input, Input::Swept(round) if round.left > 0));
            for effect in session.step(input) {
                match effect {
                    Effect::Warn { due, left_ns } => {
                        let threshold = WARNINGS_NS.into_iter().filter(|threshold| left_ns <= *threshold).min();
                        prop_assert!(threshold.is_some(), "warned {left_ns} ns before the end");
                        prop_assert_eq!(due, before);
                        prop_assert!(warned.insert(threshold), "warned twice of {due:?} at {threshold:?}");
                    }
                    Effect::Sweep => sweeps += 1,
                    _ => {}
                }
            }
            // of an end that was moved is warned anew
            if session.due() != before {
                warned.clear();
            }
        }
        prop_assert!(sweeps <= rounds, "{sweeps} rounds were asked for, {rounds} were due");
    }

    /// The kernel's word is the one that was last told, never later than what ends the session but for the idle
    /// limit's margin, and whoever is told the time after it sees the end.
    #[test]
    fn the_kernel_holds_the_shortest_limit(mode in modes(), limits in limits(), inputs in inputs()) {
        let mut session = session(mode, limits);
        let mut told = session.armed().at_boot_ns;
        for input in inputs {
            for effect in session.step(input) {
                if let Effect::SetDeadline { at_boot_ns } = effect {
                    prop_assert_ne!(told, at_boot_ns, "told twice");
                    told = at_boot_ns;
                }
            }
            prop_assert_eq!(told, session.armed().at_boot_ns);
            if session.reason().is_none() {
                let due = session.due();
                let frozen = session.state() == State::Frozen;
                let margin = if due.reason == EndReason::Idle { IDLE_MARGIN_NS } else { 0 };
                prop_assert!(told <= due.at_boot_ns + margin);
                prop_assert_eq!(due, session.limits().first(frozen));
                prop_assert!(session.wakes_at().is_some_and(|at| at <= due.at_boot_ns.max(told)));
            }
            let mut later = session.clone();
            let _ = later.step(Input::Tick { now_boot_ns: told });
            prop_assert!(later.reason().is_some(), "the kernel refuses everything and the session lives");
        }
    }

    #[test]
    fn a_replay_and_a_stored_session_go_the_same_way(
        mode in modes(), limits in limits(), inputs in inputs(), cut in 0..40usize,
    ) {
        let mut straight = session(mode, limits.clone());
        let expected = run(&mut straight, &inputs).1;

        let recorded = serde_json::to_string(&inputs).expect("inputs serialise");
        let replayed: Vec<Input> = serde_json::from_str(&recorded).expect("and come back");
        let (before, after) = replayed.split_at(cut.min(replayed.len()));
        let mut first = session(mode, limits);
        let mut effects = run(&mut first, before).1;
        let stored = serde_json::to_string(&first).expect("a session serialises");
        let mut restored: Session = serde_json::from_str(&stored).expect("and comes back");
        effects.extend(run(&mut restored, after).1);
        prop_assert_eq!(effects, expected);
        prop_assert_eq!(restored, straight);
    }
}

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
