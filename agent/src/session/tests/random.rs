//! The machine under random inputs.

use std::collections::BTreeSet;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;

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
