//! The machine under random inputs, and the paths that matter one by one.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

const DEADLINE: u64 = 1_000;

fn new(mode: Mode) -> Session {
    Session::new(SessionId::from_random([7; 16]), mode, DEADLINE)
}

fn round(killed: u64, left: u64) -> Input {
    Input::Swept(Round { killed, left, ms: 1 })
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        Just(Input::Labelled),
        Just(Input::StartFailed),
        Just(Input::FirstExited),
        (0..2 * DEADLINE).prop_map(|now_boot_ns| Input::Tick { now_boot_ns }),
        select(EndReason::ALL.to_vec()).prop_map(|reason| Input::End { reason }),
        (0..5u64, 0..3u64).prop_map(|(killed, left)| round(killed, left)),
        (0..3u64).prop_map(|left| Input::Counted { left }),
    ];
    vec(input, 0..40)
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

proptest! {
    #[test]
    fn the_end_has_a_reason_and_no_way_back(mode in modes(), inputs in inputs()) {
        let (states, _) = run(&mut new(mode), &inputs);
        for pair in states.windows(2) {
            let ((from, reason), (to, later)) = (pair[0], pair[1]);
            let order = |state| State::ALL.iter().position(|known| *known == state);
            prop_assert!(order(from) <= order(to), "{from} to {to}");
            prop_assert_eq!(later.is_some(), matches!(to, State::Ending | State::Ended));
            prop_assert!(reason.is_none() || reason == later, "the first reason stands");
        }
    }

    #[test]
    fn every_change_is_recorded_and_nothing_is_done_twice(mode in modes(), inputs in inputs()) {
        let (states, effects) = run(&mut new(mode), &inputs);
        let changes: Vec<_> = states.windows(2).map(|pair| (pair[0].0, pair[1].0)).filter(|(from, to)| from != to).collect();
        let recorded: Vec<_> = effects.iter().filter_map(|effect| match effect {
            Effect::Record { from, to, .. } => Some((*from, *to)),
            _ => None,
        }).collect();
        prop_assert_eq!(changes, recorded);

        let (last, reason) = states[states.len() - 1];
        let marks = effects.iter().filter(|effect| **effect == Effect::MarkEnded).count();
        prop_assert_eq!(marks, usize::from(reason.is_some()));
        let ends: Vec<_> = effects.iter().filter_map(|effect| match effect {
            Effect::Finish { reason, .. } => Some(*reason),
            _ => None,
        }).collect();
        prop_assert_eq!(ends, if last == State::Ended { reason.into_iter().collect() } else { Vec::new() });
    }

    #[test]
    fn the_kernel_is_marked_first(mode in modes(), inputs in inputs()) {
        let (_, effects) = run(&mut new(mode), &inputs);
        let mark = position(&effects, |effect| *effect == Effect::MarkEnded);
        let others = [
            position(&effects, |effect| matches!(effect, Effect::Sweep | Effect::Count)),
            position(&effects, |effect| matches!(effect, Effect::Record { to: State::Ending, .. })),
            position(&effects, |effect| matches!(effect, Effect::Finish { .. })),
        ];
        for other in others.into_iter().flatten() {
            prop_assert!(mark.is_some_and(|mark| mark < other));
        }
    }

    #[test]
    fn only_enforce_kills_and_only_observe_leaves(mode in modes(), inputs in inputs()) {
        let (_, effects) = run(&mut new(mode), &inputs);
        for effect in effects {
            match effect {
                Effect::Sweep => prop_assert_eq!(mode, Mode::Enforce),
                Effect::Count => prop_assert_eq!(mode, Mode::Observe),
                Effect::Finish { members_left, .. } => prop_assert!(members_left == 0 || mode == Mode::Observe),
                Effect::MarkEnded | Effect::Record { .. } => {}
            }
        }
    }

    #[test]
    fn a_replay_and_a_stored_session_go_the_same_way(mode in modes(), inputs in inputs(), cut in 0..40usize) {
        let mut straight = new(mode);
        let expected = run(&mut straight, &inputs).1;

        let (before, after) = inputs.split_at(cut.min(inputs.len()));
        let mut first = new(mode);
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
    let record = |from, to, cause| Effect::Record { from, to, cause };
    assert_eq!(session.step(Input::Labelled), [record(State::Starting, State::Active, Cause::Labelled)]);
    assert_eq!(session.step(Input::Tick { now_boot_ns: DEADLINE - 1 }), []);
    let end = record(State::Active, State::Ending, Cause::End(EndReason::Ttl));
    assert_eq!(session.step(Input::Tick { now_boot_ns: DEADLINE }), [Effect::MarkEnded, end, Effect::Sweep]);
    assert_eq!(session.step(Input::End { reason: EndReason::Operator }), []);
    assert_eq!(session.step(round(3, 1)), [Effect::Sweep]);
    let finish = Effect::Finish { reason: EndReason::Ttl, members_left: 0 };
    assert_eq!(session.step(round(1, 0)), [record(State::Ending, State::Ended, Cause::Measured), finish]);
    assert_eq!(session.rounds().iter().map(|round| round.killed).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(session.step(round(1, 1)), []);
}

#[test]
fn observing_ends_without_a_kill() {
    let mut session = new(Mode::Observe);
    assert_eq!(session.step(Input::Labelled).len(), 1);
    let end = Effect::Record { from: State::Active, to: State::Ending, cause: Cause::End(EndReason::Completed) };
    assert_eq!(session.step(Input::FirstExited), [Effect::MarkEnded, end, Effect::Count]);
    let last = Effect::Record { from: State::Ending, to: State::Ended, cause: Cause::Measured };
    let finish = Effect::Finish { reason: EndReason::Completed, members_left: 2 };
    assert_eq!(session.step(Input::Counted { left: 2 }), [last, finish]);
}

#[test]
fn a_start_that_fails_is_swept_too() {
    for input in [Input::StartFailed, Input::FirstExited] {
        let mut session = new(Mode::Enforce);
        assert_eq!(session.step(input).last(), Some(&Effect::Sweep));
        assert_eq!(session.reason(), Some(EndReason::StartFailed));
        assert_eq!(session.step(round(0, 0)).len(), 2);
    }
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
    check(&[Cause::Labelled, Cause::Measured, Cause::End(EndReason::CredentialExpired)]);
    let message = "enforced".parse::<Mode>().map_err(|error| error.to_string());
    assert_eq!(message, Err("\"enforced\" is not a mode; use one of: enforce, observe".to_owned()));
}
