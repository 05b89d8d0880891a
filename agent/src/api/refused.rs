//! Calls that the door refused, added up by session until the engine takes them: one number for each session, however many
//! there are. Says when they are due, so that a member that calls in a loop fills nothing; decides nothing, and reads no clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    evidence::{CallRefusal, CallsRefused, ControlSocket},
    session::SessionId,
};

/// At most one record for each session in this time, but for the one before its end.
const PAUSE_NS: u64 = 60_000_000_000;

/// A call that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCall {
    /// The session that the caller is a member of; none where that is not known, or none lives.
    pub session: Option<SessionId>,
    /// The process that connected.
    pub pid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Where it called.
    pub socket: ControlSocket,
    /// Why it was refused.
    pub reason: CallRefusal,
    /// What it was told.
    pub message: String,
}

/// What the door counts, and the engine takes.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<Tally>>);

impl Refused {
    /// Counts a call. True: the engine is to be told that there is something to take; else it knows.
    #[must_use]
    pub fn add(&self, call: RefusedCall, now_boot_ns: u64) -> bool {
        self.tally().add(call, now_boot_ns)
    }

    /// What is to be recorded now.
    #[must_use]
    pub fn take_due(&self, now_boot_ns: u64) -> Vec<CallsRefused> {
        self.tally().take_due(now_boot_ns)
    }

    /// When more of it is, `CLOCK_BOOTTIME` nanoseconds.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.tally().due()
    }

    /// What is left of a session that ends.
    #[must_use]
    pub fn take_of(&self, session: SessionId) -> Option<CallsRefused> {
        self.tally().take_of(session)
    }

    /// What is left of all.
    #[must_use]
    pub fn take_all(&self) -> Vec<CallsRefused> {
        self.tally().take_all()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many entries as sessions live, and one for what is no session's.
#[derive(Debug, Default)]
struct Tally(BTreeMap<Option<SessionId>, Entry>);

#[derive(Debug, Default)]
struct Entry {
    /// When calls were taken last.
    taken_boot_ns: Option<u64>,
    /// Those that were refused since.
    waits: Option<CallsRefused>,
}

impl Entry {
    /// The first at once.
    fn due(&self) -> Option<u64> {
        self.waits.as_ref()?;
        Some(self.taken_boot_ns.map_or(0, |taken| taken.saturating_add(PAUSE_NS)))
    }
}

impl Tally {
    fn add(&mut self, call: RefusedCall, now_boot_ns: u64) -> bool {
        let RefusedCall { session, pid, uid, socket, reason, message } = call;
        let entry = self.0.entry(session).or_default();
        let before = entry.waits.take();
        let (count, since_boot_ns) =
            before.as_ref().map_or((0, now_boot_ns), |calls| (calls.count, calls.since_boot_ns));
        entry.waits = Some(CallsRefused {
            session,
            count: count.saturating_add(1),
            since_boot_ns,
            at_boot_ns: now_boot_ns,
            pid,
            uid,
            socket,
            reason,
            message,
        });
        before.is_none()
    }

    fn take_due(&mut self, now_boot_ns: u64) -> Vec<CallsRefused> {
        let due = self.0.values_mut().filter(|entry| entry.due().is_some_and(|due| due <= now_boot_ns));
        let take = |entry: &mut Entry| {
            entry.taken_boot_ns = Some(now_boot_ns);
            entry.waits.take()
        };
        due.filter_map(take).collect()
    }

    fn due(&self) -> Option<u64> {
        self.0.values().filter_map(Entry::due).min()
    }

    fn take_of(&mut self, session: SessionId) -> Option<CallsRefused> {
        self.0.remove(&Some(session))?.waits
    }

    fn take_all(&mut self) -> Vec<CallsRefused> {
        self.0.values_mut().filter_map(|entry| entry.waits.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn session(number: u8) -> SessionId {
        SessionId::from_random([number; 16])
    }

    fn call(session: Option<SessionId>, pid: u32) -> RefusedCall {
        let (socket, reason) = (ControlSocket::Read, CallRefusal::Member);
        RefusedCall { session, pid, uid: 7, socket, reason, message: "no".to_owned() }
    }

    #[test]
    fn the_first_at_once_and_then_one_for_all_that_came_in_a_minute() {
        let (mut tally, own) = (Tally::default(), Some(session(1)));
        assert_eq!((tally.due(), tally.take_due(5 * SECOND)), (None, Vec::new()));
        assert!(tally.add(call(own, 41), 10 * SECOND));
        assert!(tally.due().is_some_and(|due| due <= 10 * SECOND));
        let first = tally.take_due(10 * SECOND);
        assert_eq!(first.iter().map(|r| (r.count, r.pid, r.session)).collect::<Vec<_>>(), [(1, 41, own)]);
        assert!(tally.add(call(own, 42), 20 * SECOND), "the engine is told once");
        assert!(!tally.add(call(own, 43), 30 * SECOND), "it is told again");
        assert_eq!(tally.due(), Some(70 * SECOND));
        assert_eq!(tally.take_due(70 * SECOND - 1), []);
        // another session, and who is in none, wait for nobody
        assert!(tally.add(call(Some(session(2)), 44), 31 * SECOND) && tally.add(call(None, 45), 32 * SECOND));
        assert_eq!(tally.take_due(32 * SECOND).iter().map(|r| r.pid).collect::<Vec<_>>(), [45, 44]);
        let [rest] = &tally.take_due(70 * SECOND)[..] else { panic!("not one record") };
        assert_eq!((rest.count, rest.pid, rest.since_boot_ns, rest.at_boot_ns), (2, 43, 20 * SECOND, 30 * SECOND));
        assert_eq!(tally.due(), None);
        assert!(tally.add(call(own, 46), 200 * SECOND));
        assert_eq!(tally.take_due(200 * SECOND).len(), 1, "after a pause the next is told at once");
    }

    #[test]
    fn what_waits_is_taken_with_the_end() {
        let (mut tally, own) = (Tally::default(), session(1));
        for second in 1..=3 {
            let _ = tally.add(call(Some(own), 41), second * SECOND);
            assert_eq!(tally.take_due(second * SECOND).len(), usize::from(second == 1));
        }
        assert_eq!(tally.take_of(session(2)), None);
        assert_eq!(tally.take_of(own).map(|rest| rest.count), Some(2));
        assert_eq!((tally.take_of(own), tally.due(), tally.take_all()), (None, None, Vec::new()));
        assert!(tally.0.is_empty(), "a session that is over is kept");
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Call(u8),
        Look,
        End(u8),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![6 => (0..3u8).prop_map(Act::Call), 3 => Just(Act::Look), 1 => (1..3u8).prop_map(Act::End)]
    }

    proptest! {
        /// Session 0 is none. The engine looks when it is told and when it is due, as it does, and at other times too.
        #[test]
        fn every_refused_call_is_counted_once_and_no_session_is_told_of_twice_in_a_minute(
            acts in proptest::collection::vec((act(), 0..40 * SECOND), 0..200)
        ) {
            let of = |number: u8| (number > 0).then(|| session(number));
            let (mut tally, mut now) = (Tally::default(), 0);
            let (mut refused, mut told) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
            let mut last = BTreeMap::new();
            for (act, passed) in acts {
                now += passed;
                let mut taken = Vec::new();
                match act {
                    Act::Call(number) => {
                        *refused.entry(of(number)).or_default() += 1;
                        let told_now = tally.add(call(of(number), 1), now);
                        if told_now {
                            taken = tally.take_due(now);
                        }
                    }
                    Act::Look => taken = tally.take_due(now),
                    Act::End(number) => {
                        if let Some(rest) = tally.take_of(session(number)) {
                            *told.entry(rest.session).or_default() += rest.count;
                        }
                        last.remove(&of(number));
                    }
                }
                for record in taken {
                    prop_assert!(record.count > 0 && record.since_boot_ns <= record.at_boot_ns);
                    *told.entry(record.session).or_default() += record.count;
                    let before = last.insert(record.session, now);
                    prop_assert!(before.is_none_or(|before| now - before >= PAUSE_NS), "{before:?} and {now}");
                }
            }
            for rest in tally.take_all() {
                *told.entry(rest.session).or_default() += rest.count;
            }
            prop_assert_eq!(refused, told);
        }
    }
}
