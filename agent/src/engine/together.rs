//! Inputs for many sessions at once: what ends together is told to the kernel together, is looked for on the host together,
//! and is on disk together. How often the host's tasks and sockets are looked at does not grow with the sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{Engine, complain, finish::Over};
use crate::{
    enforce::{End, Left, round},
    kernel::{Urgent, boot_now},
    session::{Effect, EndReason, Input, Round, SessionId},
};

/// What machines asked for that is done for all of them at once, after everything else.
#[derive(Default)]
struct Last {
    told: Vec<(SessionId, u64)>,
    counted: Vec<SessionId>,
    over: Vec<Over>,
}

impl Engine {
    /// Gives each session's machine an input and does what all of them ask for. The ends among it are one: the kernel knows of
    /// all before anything else is done, their sockets are cut by one look, and they are kept and recorded before the caller
    /// goes on.
    pub(super) fn feed_all(&mut self, inputs: impl IntoIterator<Item = (SessionId, Input)>) {
        let step = |(id, input)| Some((id, self.sessions.get_mut(&id)?.machine.step(input)));
        let asked: Vec<_> = inputs.into_iter().filter_map(step).filter(|(_, effects)| !effects.is_empty()).collect();
        if asked.is_empty() {
            return;
        }
        let ends = |(_, effects): &&(SessionId, Vec<Effect>)| effects.contains(&Effect::MarkEnded);
        let ending: Vec<SessionId> = asked.iter().filter(ends).map(|(id, _)| *id).collect();
        self.begin_ends(&ending);
        let recorded = |effects: &[Effect]| effects.iter().any(|e| matches!(e, Effect::Record { .. }));
        let kept: Vec<SessionId> =
            asked.iter().filter(ends).filter(|(_, effects)| recorded(effects)).map(|(id, _)| *id).collect();
        self.keep_all(&kept);
        let before = std::mem::replace(&mut self.together, ending.into_iter().collect());
        let mut last = Last::default();
        for (id, effects) in asked {
            let now = last.take(id, effects);
            self.carry_out(id, now);
        }
        self.together = before;
        if self.together.is_empty() {
            self.flush();
        }
        self.terminate(&last.told);
        self.count(&last.counted);
        self.finish(last.over);
    }

    /// Tells the kernel of ends, with what is within those sessions, and cuts their sockets.
    fn begin_ends(&mut self, ids: &[SessionId]) {
        if ids.is_empty() {
            return;
        }
        // whatever computes in them would be asked for the processors first
        self.urgent.get_or_insert_with(Urgent::begin);
        let all: BTreeSet<SessionId> = ids.iter().copied().collect();
        let lives = |id: &SessionId| self.sessions.get(id).is_some_and(|live| live.machine.reason().is_none());
        let nested = self.sessions.iter().filter(|(_, live)| live.start.within.is_some()).map(|(id, _)| *id);
        let within: Vec<SessionId> =
            nested.filter(|id| lives(id) && self.outers(*id).iter().any(|outer| all.contains(outer))).collect();
        ids.iter().chain(&within).for_each(|id| self.mark_ended(*id));
        self.cut(ids);
    }

    /// One round of the ends of all these sessions.
    pub(super) fn rounds(&mut self, ids: &BTreeSet<SessionId>) {
        if ids.is_empty() {
            return;
        }
        let start = Instant::now();
        let urgent = self.urgent.take().unwrap_or_else(Urgent::begin);
        let (mut sessions, mut ends) = (Vec::new(), Vec::new());
        for (id, live) in self.sessions.iter_mut().filter(|(id, _)| ids.contains(id)) {
            live.next_round = None;
            sessions.push(*id);
            ends.push(End { session: live.reference, cgroup: &live.cgroup, sweep: &mut live.sweep });
        }
        let swept = round(&mut self.parts.kernel, &mut ends);
        drop(urgent);
        // what could not be looked at is not gone
        let unseen = || vec![Left { killed: 0, left: 1 }; sessions.len()];
        let swept = complain("sweeping sessions", swept).unwrap_or_else(unseen);
        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let came: BTreeMap<SessionId, Left> = sessions.into_iter().zip(swept).collect();
        for (id, Left { left, .. }) in &came {
            if *left > 0 {
                self.report_stuck(*id);
            } else if let Some(live) = self.sessions.get_mut(id) {
                live.empty.get_or_insert_with(boot_now);
            }
        }
        let inputs = came.into_iter().map(|(id, Left { killed, left })| (id, Input::Swept(Round { killed, left, ms })));
        self.feed_all(inputs.collect::<Vec<_>>());
    }

    /// Counts the members of sessions that only observe, or wait in their grace.
    pub(super) fn count(&mut self, ids: &[SessionId]) {
        if ids.is_empty() {
            return;
        }
        self.urgent = None;
        let members = complain("counting members", self.parts.kernel.members());
        let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for member in members.iter().flatten() {
            *counts.entry((member.slot, member.generation)).or_default() += 1;
        }
        let count = |id: &SessionId| {
            let live = self.sessions.get(id)?;
            let own = counts.get(&(live.reference.slot, live.reference.generation)).copied().unwrap_or(0);
            // what could not be counted is there: its slot must not be used again
            let left = if members.is_some() { own } else { 1 };
            // who could not be moved back gets a label again at its next call
            let kept_in = live.machine.reason() == Some(EndReason::StartFailed) && live.cgroup.is_populated();
            Some((*id, Input::Counted { left: left.max(u64::from(kept_in)) }))
        };
        let inputs: Vec<_> = ids.iter().filter_map(count).collect();
        self.feed_all(inputs);
    }
}

impl Last {
    /// Takes what is done last; what is to be done now.
    fn take(&mut self, id: SessionId, effects: Vec<Effect>) -> Vec<Effect> {
        let mut now = Vec::new();
        for effect in effects {
            match effect {
                Effect::Terminate { until_boot_ns } => self.told.push((id, until_boot_ns)),
                Effect::Count => self.counted.push(id),
                Effect::Finish { reason, members_left } => self.over.push(Over { id, reason, members_left }),
                other => now.push(other),
            }
        }
        now
    }
}
