//! What the evidence says of sessions that an earlier agent began: the part of their state that was written down anyway.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tipstaff_common::{
    event::{
        KIND_CONNECT, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_MOVE, KIND_PRIVILEGE, KIND_SOCKET, KIND_UNIX, KINDS,
        is_activity,
    },
    rule,
};

use crate::{
    api::wire,
    evidence::{Body, Error, GapCause, Log, Mark, Record, Verdict, read},
    kernel::ring,
    session::{EndReason, SessionId, State},
};

/// Verdicts that are kept of a session, for `inspect`.
pub(super) const LAST_VERDICTS: usize = 20;

/// What the evidence holds of one session.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Records of its members, by kind.
    pub(super) counts: [u64; KINDS],
    /// The highest number that the kernel gave one of them.
    highest: u64,
    /// Its start was written.
    pub(super) started: bool,
    /// Its end was written.
    pub(super) ended: bool,
    /// It was written that its user is gone.
    pub(super) gone: bool,
    /// The state that it was said to be in last.
    pub(super) state: Option<State>,
    /// When it was said to be over, `CLOCK_BOOTTIME` nanoseconds.
    pub(super) over_boot_ns: Option<u64>,
    /// Somebody had it ended for this reason, and nothing says that it was begun.
    pub(super) asked: Option<EndReason>,
    /// Refusals, kills and would-be refusals.
    pub(super) denied: u64,
    /// The last of those.
    pub(super) verdicts: VecDeque<wire::Verdict>,
    /// Processes that were seen to end by SIGKILL once it was ending.
    pub(super) killed: Vec<u32>,
    /// When the last of what each kind of record tells of happened, `CLOCK_BOOTTIME` nanoseconds.
    pub(super) last: [u64; KINDS],
    /// Losses that gap records speak of, by kind.
    pub(super) reported: [u64; KINDS],
}

/// Records of the kernel, by session and number, that an agent which was killed may have left in their rings though it wrote
/// them: one at most of each ring, the last, for a record is taken out before the next is read. The next agent may have come
/// no further than the other ring before it was killed as well.
#[derive(Debug, Default)]
pub(super) struct LastRecords([Option<(SessionId, u64)>; 2]);

impl LastRecords {
    /// A record was written.
    fn note(&mut self, id: SessionId, body: &Body) {
        if let Some((kind, verdict, sequence)) = produced(body) {
            self.0[usize::from(is_activity(kind, verdict))] = Some((id, sequence));
        }
    }

    /// Whether this record, which is in a ring, is written; its ring has no other that is.
    pub(super) fn take(&mut self, id: SessionId, sequence: u64) -> bool {
        self.0.iter_mut().any(|last| last.take_if(|last| *last == (id, sequence)).is_some())
    }
}

/// What the evidence holds of the sessions that have no end in it, and of those that were asked for.
#[derive(Debug, Default)]
pub(super) struct History {
    sessions: BTreeMap<SessionId, Written>,
    /// When the last record was written.
    pub(super) last: Option<Mark>,
    /// Of each ring the last record that was written.
    pub(super) last_records: LastRecords,
    /// Sessions of which it says that they lived with one credential.
    pub(super) reuses: BTreeSet<(SessionId, SessionId)>,
}

impl History {
    /// Reads the log once, if there is a reason to: `wanted` are kept, or `always`.
    pub(super) fn read(log: &Log, wanted: &[SessionId], always: bool) -> Result<Self, Error> {
        let mut history = Self::default();
        if wanted.is_empty() && !always {
            return Ok(history);
        }
        for record in read(log.path())?.filter_map(Result::ok) {
            history.take(&record, wanted);
        }
        Ok(history)
    }

    /// What is known of a session.
    pub(super) fn of(&mut self, id: SessionId) -> &mut Written {
        self.sessions.entry(id).or_default()
    }

    fn take(&mut self, record: &Record, wanted: &[SessionId]) {
        self.last = Some(Mark { time: record.time, boot_ns: record.boot_ns, boot: record.boot.clone() });
        if let Body::Revoke(revoke) = &record.body {
            for id in &revoke.sessions {
                self.sessions.entry(*id).and_modify(|written| written.asked = Some(EndReason::Revoked));
            }
        }
        let Some(id) = record.body.session() else { return };
        if let Body::CredentialReuse(reuse) = &record.body {
            self.reuses.extend(reuse.others.iter().map(|other| (id, *other)));
        }
        self.last_records.note(id, &record.body);
        if matches!(record.body, Body::SessionEnd(_)) && !wanted.contains(&id) {
            self.reuses.retain(|(a, b)| *a != id && *b != id);
            self.sessions.remove(&id);
            return;
        }
        self.of(id).take(record);
    }
}

/// The detail of the record of an `end`.
pub(super) fn asking(reason: EndReason) -> String {
    format!("reason {reason}")
}

fn asked(detail: &str) -> Option<EndReason> {
    detail.strip_prefix("reason ")?.parse().ok()
}

impl Written {
    fn take(&mut self, record: &Record) {
        if let Some(last) = self.add(&record.body).and_then(|kind| self.last.get_mut(kind)) {
            *last = record.happened().boot_ns.max(*last);
        }
        match &record.body {
            Body::SessionStart(_) => self.started = true,
            Body::SessionEnd(_) => self.ended = true,
            Body::PrincipalGone(_) => self.gone = true,
            Body::State(transition) => {
                self.state = Some(transition.to);
                match transition.to {
                    State::Ending => self.asked = None,
                    State::Ended => self.over_boot_ns = Some(record.boot_ns),
                    _ => {}
                }
            }
            Body::Command(command) if command.verb == "end" => self.asked = asked(&command.detail),
            Body::Exit(exit) if exit.status == 9 && self.state == Some(State::Ending) => self.killed.push(exit.pid),
            Body::Gap(gap) if gap.cause == GapCause::RingFull => {
                for (kind, reported) in (0u16..).zip(&mut self.reported) {
                    *reported += ring::kind_name(kind).and_then(|name| gap.kinds.get(name)).copied().unwrap_or(0);
                }
            }
            _ => {}
        }
        if let Some(verdict) = verdict(record) {
            self.denied += 1;
            if self.verdicts.len() == LAST_VERDICTS {
                self.verdicts.pop_front();
            }
            self.verdicts.push_back(verdict);
        }
    }

    /// Records that were made for certain and are not there: the kernel numbers them without holes, and what is refused goes by
    /// another ring than what is allowed, so that a later one may be written and an earlier one not.
    pub(super) fn missing(&self) -> u64 {
        self.highest.saturating_sub(self.counts.iter().sum())
    }

    /// Counts a record that is written, and looks at its number. The kind's number.
    fn add(&mut self, body: &Body) -> Option<usize> {
        if let Some((_, _, sequence)) = produced(body) {
            self.highest = self.highest.max(sequence);
        }
        self.count(body.kind())
    }

    /// Counts a record by its kind's name; other records have none. The kind's number.
    pub(super) fn count(&mut self, kind: &str) -> Option<usize> {
        let index = (0u16..).take(KINDS).find(|k| ring::kind_name(*k) == Some(kind)).map(usize::from)?;
        *self.counts.get_mut(index)? += 1;
        Some(index)
    }
}

/// The kind, verdict and number that the kernel gave a record, if it is the kernel's.
fn produced(body: &Body) -> Option<(u16, u32, u64)> {
    let (kind, verdict, sequence) = match body {
        Body::Exec(body) => (KIND_EXEC, body.verdict, body.seq),
        Body::Connect(body) => (KIND_CONNECT, body.verdict, body.seq),
        Body::Fork(body) => (KIND_FORK, body.verdict, body.seq),
        Body::Exit(body) => (KIND_EXIT, Verdict::Allow, body.seq),
        Body::Move(body) => (KIND_MOVE, Verdict::Allow, body.seq),
        Body::Unix(body) => (KIND_UNIX, body.verdict, body.seq),
        Body::Socket(body) => (KIND_SOCKET, body.verdict, body.seq),
        Body::Privilege(body) => (KIND_PRIVILEGE, body.verdict, body.seq),
        _ => return None,
    };
    let verdict = match verdict {
        Verdict::Allow => rule::ALLOW,
        Verdict::Deny => rule::DENY,
        Verdict::WouldDeny => rule::WOULD_DENY,
        Verdict::Kill => rule::KILL,
    };
    Some((kind, verdict, sequence))
}

/// A record's verdict as `inspect` shows it, unless it was allowed.
fn verdict(record: &Record) -> Option<wire::Verdict> {
    let (pid, what, verdict, rule) = match &record.body {
        Body::Exec(body) => (body.pid, body.path.to_string(), body.verdict, &body.rule),
        Body::Connect(body) => (body.pid, body.to.to_string(), body.verdict, &body.rule),
        Body::Fork(body) => (body.pid, format!("task {}", body.child), body.verdict, &body.rule),
        Body::Unix(body) => (body.pid, body.to.to_string(), body.verdict, &body.rule),
        Body::Socket(body) => (body.pid, format!("family {}", body.family), body.verdict, &body.rule),
        Body::Privilege(body) => (body.pid, body.to_string(), body.verdict, &body.rule),
        _ => return None,
    };
    (verdict != Verdict::Allow).then(|| wire::Verdict {
        time: record.happened().time.to_string(),
        kind: record.body.kind().into(),
        pid,
        what,
        verdict: verdict.to_string(),
        rule: rule.clone(),
        remedy: None,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::record::translate, *};
    use crate::kernel::ring::Event;
    use tipstaff_common::event::{Connect, Exit, Fork, Header, Privilege, Socket};

    fn header(kind: u16, verdict: u32, sequence: u64) -> Header {
        Header { kind, verdict, sequence, ..Header::default() }
    }

    #[test]
    fn a_record_is_known_by_the_ring_that_it_went_by() {
        let id = SessionId::from_random([7; 16]);
        for verdict in [rule::ALLOW, rule::DENY, rule::KILL, rule::WOULD_DENY] {
            let head = |kind| header(kind, verdict, 7);
            let all = [
                Event::Fork(Fork { header: head(KIND_FORK), ..Fork::default() }),
                Event::Connect(Connect { header: head(KIND_CONNECT), ..Connect::default() }),
                Event::Socket(Socket { header: head(KIND_SOCKET), ..Socket::default() }),
                Event::Privilege(Privilege { header: head(KIND_PRIVILEGE), ..Privilege::default() }),
            ];
            for event in all {
                let told = produced(&translate(id, &event, |_| "a".into()));
                assert_eq!(told, Some((event.header().kind, verdict, 7)));
            }
        }
    }

    #[test]
    fn a_number_behind_a_hole_tells_what_is_missing() {
        let id = SessionId::from_random([7; 16]);
        let mut written = Written::default();
        for (sequence, missing) in [(1, 0), (2, 0), (5, 2), (3, 1), (4, 0)] {
            let exit = Event::Exit(Exit { header: header(KIND_EXIT, rule::ALLOW, sequence), ..Exit::default() });
            written.add(&translate(id, &exit, |_| "a".into()));
            assert_eq!(written.missing(), missing, "after number {sequence}");
        }
    }

    #[test]
    fn what_was_written_and_left_in_its_ring_is_known_though_the_next_agent_read_the_other_ring() {
        let id = SessionId::from_random([7; 16]);
        let exit = Event::Exit(Exit { header: header(KIND_EXIT, rule::ALLOW, 5), ..Exit::default() });
        let refused = Event::Socket(Socket { header: header(KIND_SOCKET, rule::DENY, 4), ..Socket::default() });
        let mut last = LastRecords::default();
        for event in [&exit, &refused] {
            last.note(id, &translate(id, event, |_| "a".into()));
        }
        assert!(!last.take(id, 3) && last.take(id, 4) && last.take(id, 5), "one of the two would be written twice");
        assert!(!last.take(id, 4) && !last.take(id, 5), "the number is another's by now");
    }
}
