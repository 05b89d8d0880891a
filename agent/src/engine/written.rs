//! Since when what a session's members find written may be their own work: files bear the wall clock's time, and that can be
//! set back.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tipstaff_common::session::SessionConfig;
use tracing::info;

use super::{Engine, complain};
use crate::{kernel::boot_now, session::SessionId};

/// A clock that was set back by less is taken for one that was not, nanoseconds: the two clocks are not read at one moment.
const LEAST_STEP_NS: u64 = 100_000_000;
/// So often both clocks are read; who was interrupted in between is told by how long it took.
const READINGS: usize = 3;

/// A session's start, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Nanoseconds of the epoch, as coarse as the times of files are.
    pub(super) time: u64,
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub(super) boot_ns: u64,
}

impl Written {
    /// Of a session that starts now.
    pub(super) fn since_now() -> Self {
        let readings = (0..READINGS).map(|_| {
            let boot_ns = boot_now();
            let time = coarse_now();
            (boot_now().saturating_sub(boot_ns), Self { time, boot_ns })
        });
        let closest = readings.min_by_key(|(took, _)| *took).map(|(_, read)| read);
        closest.unwrap_or(Self { time: 0, boot_ns: 0 })
    }

    /// Of a session as the kernel has it.
    pub(super) const fn of(config: &SessionConfig) -> Self {
        Self { time: config.written_since, boot_ns: config.written_since_boot }
    }

    /// The ctime that a file of that start would bear by clocks that say `now`, where that is earlier than it was.
    fn set_back(self, now: Self) -> Option<u64> {
        let time = now.time.saturating_sub(now.boot_ns.saturating_sub(self.boot_ns));
        (time.saturating_add(LEAST_STEP_NS) <= self.time).then_some(time)
    }
}

impl Engine {
    /// Where the wall clock was set back since the session's start, what its members write may look older than the session.
    /// Then what is as old as that start by the clock as it is now counts as theirs as well.
    pub(super) fn see_set_back(&mut self, id: SessionId) {
        let Some(reference) = self.sessions.get(&id).map(|live| live.reference) else { return };
        let Some(config) = complain("reading since when files are new", self.parts.kernel.config(reference.slot))
        else {
            return;
        };
        let Some(since) = Written::of(&config).set_back(Written::since_now()) else { return };
        info!("the wall clock was set back: for session {id} files count as new from {since} ns of the epoch on");
        complain("saying since when files are new", self.parts.kernel.set_written_since(reference, since));
    }
}

/// The wall clock in nanoseconds, as coarse as the times of files are.
fn coarse_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;
    const START: Written = Written { time: 1_000 * HOUR, boot_ns: 10 * HOUR };

    /// The clocks so long after the start, and by how much the wall clock was set meanwhile.
    fn later(after: u64, set: i64) -> Written {
        Written { time: (START.time + after).saturating_add_signed(set), boot_ns: START.boot_ns + after }
    }

    #[test]
    fn only_a_clock_that_was_set_back_moves_it() {
        let hour = HOUR.cast_signed();
        for (set, expected) in [(0, None), (hour, None), (-hour, Some(START.time - HOUR)), (-1, None)] {
            for after in [0, 1, HOUR, 100 * HOUR] {
                assert_eq!(START.set_back(later(after, set)), expected, "{set} after {after}");
            }
        }
        let least = LEAST_STEP_NS.cast_signed();
        assert_eq!(START.set_back(later(5, -least)), Some(START.time - LEAST_STEP_NS));
        assert_eq!(START.set_back(later(5, 1 - least)), None);
    }

    /// Back, forth and further back: the earliest holds, whatever the clock says afterwards.
    #[test]
    fn it_never_moves_forward() {
        let moved = |since: Written, set: i64| match since.set_back(later(HOUR, set)) {
            Some(time) => Written { time, ..since },
            None => since,
        };
        let hour = HOUR.cast_signed();
        let back = moved(START, -hour);
        assert_eq!(moved(back, 0), back);
        assert_eq!(moved(back, -hour / 2), back);
        assert_eq!(moved(back, -2 * hour).time, START.time - 2 * HOUR);
    }

    #[test]
    fn both_clocks_are_read_at_about_one_moment() {
        let (first, second) = (Written::since_now(), Written::since_now());
        assert_eq!(first.set_back(second), None, "{first:?} {second:?}");
    }
}
