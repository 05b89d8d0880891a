//! What a session does, as far as its idle limit asks: by the kernel's counters, the records that were read, and its
//! terminal.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
};

use nix::sys::stat::{major, minor};
use tipstaff_common::{
    event::{Header, KIND_CONNECT, KIND_EXEC, KINDS},
    session::SessionCounters,
};

use crate::{
    kernel::open_path,
    policy::{Activity, Policy},
};

/// What a session did, as far as its idle limit asks. Counters say whether, records say when; where a record was lost,
/// it was now.
#[derive(Debug, Default)]
pub(super) struct Doings {
    kinds: Vec<u16>,
    /// Produced and lost records of those kinds at the last look.
    produced: u64,
    lost: u64,
    /// The time of the last record.
    last_boot_ns: u64,
    /// Bytes out and in at the last look, where they count.
    bytes: Option<u64>,
    terminal: Option<Terminal>,
}

/// A terminal's file and the times of its last read and write, which the kernel keeps in steps of eight seconds
/// (`tty_update_time`, `drivers/tty/tty_io.c`).
#[derive(Debug)]
struct Terminal {
    file: File,
    times: [i64; 4],
}

impl Terminal {
    /// The controlling terminal of a process, where one of its descriptors 0 to 2 is it: by the kernel's word on both.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // the name before it is in parentheses and may have any character; `tty_nr` is the fifth field after it
        let number: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(4)?.parse().ok().filter(|number| *number != 0)?;
        // `new_encode_dev`, `include/linux/kdev_t.h`
        let device = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
        (0..3).find_map(|fd| {
            let file = open_path(format!("/proc/{pid}/fd/{fd}").as_ref()).ok()?;
            let rdev = file.metadata().ok()?.rdev();
            ((major(rdev), minor(rdev)) == device).then(|| Self { times: times(&file), file })
        })
    }

    fn moved(&mut self) -> bool {
        let before = std::mem::replace(&mut self.times, times(&self.file));
        before != self.times
    }
}

fn times(file: &File) -> [i64; 4] {
    file.metadata().map(|m| [m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec()]).unwrap_or_default()
}

impl Doings {
    /// What to look at for a policy, with the first process's terminal.
    pub(super) fn watch(policy: &Policy, pid: u32) -> Self {
        Self::of(policy.limits.idle.as_ref().map(|idle| idle.activity.as_slice()).unwrap_or_default(), pid)
    }

    /// Whatever counts for any policy.
    pub(super) fn all(pid: u32) -> Self {
        Self::of(&Activity::ALL, pid)
    }

    pub(super) fn of(activity: &[Activity], pid: u32) -> Self {
        let kind = |activity: &Activity| match activity {
            Activity::Exec => Some(KIND_EXEC),
            Activity::Connect => Some(KIND_CONNECT),
            Activity::Bytes | Activity::Terminal => None,
        };
        let bytes = activity.contains(&Activity::Bytes).then_some(0);
        let terminal = activity.contains(&Activity::Terminal).then(|| Terminal::of(pid)).flatten();
        Self { kinds: activity.iter().filter_map(kind).collect(), bytes, terminal, ..Self::default() }
    }

    /// What a policy counts as activity and this session has not got.
    pub(super) fn missing(&self, policy: &Policy) -> Option<String> {
        let only = policy.limits.idle.as_ref().is_some_and(|idle| idle.activity == [Activity::Terminal]);
        (only && self.terminal.is_none()).then(|| "only a terminal counts as activity, and the session has none".into())
    }

    /// What the evidence says of the time before this agent: `last` record of each kind, and how many there were.
    pub(super) fn go_on(&mut self, produced: &[u64; KINDS], lost: &[u64; KINDS], last: &[u64; KINDS]) {
        for kind in self.kinds.iter().map(|kind| usize::from(*kind)).filter(|kind| *kind < produced.len()) {
            self.produced += produced[kind];
            self.lost += lost[kind];
            self.last_boot_ns = self.last_boot_ns.max(last[kind]);
        }
    }

    /// Bytes that went before this are not news.
    pub(super) fn carried(&mut self, counters: &SessionCounters) {
        self.bytes = self.bytes.map(|_| counters.egress_bytes.saturating_add(counters.ingress_bytes));
    }

    /// So it did at this time too.
    pub(super) fn did(&mut self, at_boot_ns: u64) {
        self.last_boot_ns = self.last_boot_ns.max(at_boot_ns);
    }

    pub(super) fn record(&mut self, header: &Header) {
        if self.kinds.contains(&header.kind) {
            self.did(header.time);
        }
    }

    /// When the session last did something, by the kernel's counters and the records that were read.
    pub(super) fn look(
        &mut self,
        counters: &SessionCounters,
        consumed: &[u64; KINDS],
        now_boot_ns: u64,
    ) -> Option<u64> {
        let SessionCounters { produced, lost, egress_bytes, ingress_bytes, .. } = counters;
        let sum =
            |counts: &[u64; KINDS]| self.kinds.iter().filter_map(|kind| counts.get(usize::from(*kind))).sum::<u64>();
        let (made, missed, read) = (sum(produced), sum(lost), sum(consumed));
        let did = made != std::mem::replace(&mut self.produced, made);
        let all_read = missed == std::mem::replace(&mut self.lost, missed) && read.saturating_add(missed) == made;
        let typed = self.terminal.as_mut().is_some_and(Terminal::moved);
        let carried = egress_bytes.saturating_add(*ingress_bytes);
        let moved = self.bytes.as_mut().is_some_and(|bytes| std::mem::replace(bytes, carried) != carried);
        match (did && !all_read) || typed || moved {
            true => Some(now_boot_ns),
            false => Some(self.last_boot_ns).filter(|last| *last > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u16, time: u64) -> Header {
        Header { kind, time, ..Header::default() }
    }

    fn of(kind: u16, count: u64) -> [u64; KINDS] {
        let mut counts = [0; KINDS];
        counts[usize::from(kind)] = count;
        counts
    }

    #[test]
    fn records_say_when_and_lost_ones_count_as_now() {
        let mut doings = Doings { kinds: vec![KIND_EXEC], ..Doings::default() };
        let counters = |made: u64, lost: u64| SessionCounters {
            produced: of(KIND_EXEC, made),
            lost: of(KIND_EXEC, lost),
            ..SessionCounters::default()
        };
        let execs = |count| of(KIND_EXEC, count);
        assert_eq!(doings.look(&counters(0, 0), &execs(0), 10), None);
        doings.record(&header(KIND_EXEC, 12));
        doings.record(&header(KIND_CONNECT, 17));
        assert_eq!(doings.look(&counters(1, 0), &execs(1), 20), Some(12));
        assert_eq!(doings.look(&counters(1, 0), &execs(1), 30), Some(12), "nothing new");
        // produced and not read yet, and lost for ever
        assert_eq!(doings.look(&counters(2, 0), &execs(1), 40), Some(40));
        assert_eq!(doings.look(&counters(3, 1), &execs(2), 50), Some(50));
        assert_eq!(doings.look(&counters(3, 1), &execs(2), 60), Some(12), "nothing new");
        assert_eq!(doings.look(&counters(0, 1), &execs(0), 70), Some(70), "a count that fell is a change");
    }

    #[test]
    fn bytes_count_where_they_are_asked_for() {
        let mut doings = Doings { bytes: Some(0), ..Doings::default() };
        let mut look = |egress_bytes, ingress_bytes, now| {
            let counters = SessionCounters { egress_bytes, ingress_bytes, ..SessionCounters::default() };
            doings.look(&counters, &[0; KINDS], now)
        };
        assert_eq!(look(0, 0, 10), None);
        assert_eq!(look(60, 0, 20), Some(20));
        assert_eq!(look(60, 0, 30), None);
        assert_eq!(look(60, 1, 40), Some(40));
        let mut deaf = Doings::default();
        let counters = SessionCounters { egress_bytes: 60, ..SessionCounters::default() };
        assert_eq!(deaf.look(&counters, &[0; KINDS], 10), None);
    }
}
