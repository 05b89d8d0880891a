//! How long an end takes: from when it was due over the kernel's mark to the last member and the last flow, for one
//! session and counted over many.

use serde::{Deserialize, Serialize};

const MS: u64 = 1_000_000;
/// Bounds of [`Spread`], milliseconds.
pub const SPREAD_MS: [u64; 9] = [1, 5, 10, 30, 100, 250, 1_000, 5_000, 30_000];

/// When an end was due and when the kernel was told, `CLOCK_BOOTTIME` nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// The moment of the limit, or when somebody asked, or when the cause was seen.
    pub due_boot_ns: u64,
    /// When the kernel had the mark: from then on it refuses everything.
    pub marked_boot_ns: u64,
}

impl Ending {
    /// An end whose mark the kernel has just now.
    #[must_use]
    pub fn new(due_boot_ns: u64, now_boot_ns: u64) -> Self {
        Self { due_boot_ns: due_boot_ns.min(now_boot_ns), marked_boot_ns: now_boot_ns }
    }

    /// What it took until the last member was gone, and the last flow closed; none: one is left, or there was none.
    #[must_use]
    pub fn took(&self, members_boot_ns: Option<u64>, flows_boot_ns: Option<u64>) -> Took {
        let since = |at: u64| at.saturating_sub(self.due_boot_ns).div_ceil(MS);
        Took {
            mark_ms: since(self.marked_boot_ns),
            members_ms: members_boot_ns.map(since),
            flows_ms: flows_boot_ns.map(since),
        }
    }
}

/// How long one end took from when it was due, in milliseconds, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// To the kernel's mark.
    pub mark_ms: u64,
    /// Until the walk over all tasks found no member; none: members are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_ms: Option<u64>,
    /// To the last flow's end; none: there was no flow, or one is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_ms: Option<u64>,
}

/// Durations, counted by [`SPREAD_MS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// How many were at most as long as the bound and longer than the one before; the last: longer than all bounds.
    pub counts: [u64; SPREAD_MS.len() + 1],
    /// The longest, milliseconds.
    pub max_ms: u64,
}

impl Spread {
    fn add(&mut self, ms: u64) {
        let place = SPREAD_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.max_ms = self.max_ms.max(ms);
    }
}

/// The ends of many sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// To the kernel's mark.
    pub mark: Spread,
    /// To the last member gone.
    pub members: Spread,
    /// To the last flow closed.
    pub flows: Spread,
}

impl Ends {
    /// Counts one more.
    pub fn add(&mut self, took: &Took) {
        self.mark.add(took.mark_ms);
        took.members_ms.into_iter().for_each(|ms| self.members.add(ms));
        took.flows_ms.into_iter().for_each(|ms| self.flows.add(ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_counted_from_when_it_was_due() {
        let ending = Ending::new(1_000 * MS, 1_001 * MS + 1);
        let took = ending.took(Some(1_030 * MS), None);
        assert_eq!(took, Took { mark_ms: 2, members_ms: Some(30), flows_ms: None }, "never less than it was");
        // a flow that the kernel closed by itself before
        assert_eq!(ending.took(None, Some(999 * MS)).flows_ms, Some(0));
        // who waits for nobody any more ends before the limit
        assert_eq!(Ending::new(5_000 * MS, 4_000 * MS).took(None, None).mark_ms, 0);
    }

    #[test]
    fn each_duration_is_counted_once_and_by_the_bound_that_it_keeps() {
        let mut spread = Spread::default();
        let mut all = 0;
        for (place, bound) in SPREAD_MS.into_iter().enumerate() {
            let below = place.checked_sub(1).map_or(0, |n| SPREAD_MS[n] + 1);
            for ms in [below, bound] {
                let before = spread.counts[place];
                spread.add(ms);
                assert_eq!(spread.counts[place], before + 1, "{ms} ms");
                all += 1;
            }
        }
        spread.add(30_001);
        assert_eq!((spread.counts[SPREAD_MS.len()], spread.max_ms), (1, 30_001));
        assert_eq!(spread.counts.iter().sum::<u64>(), all + 1);
    }

    #[test]
    fn what_did_not_come_is_not_counted() {
        let mut ends = Ends::default();
        ends.add(&Took { mark_ms: 1, members_ms: None, flows_ms: Some(4) });
        let sums = [ends.mark, ends.members, ends.flows].map(|spread| spread.counts.iter().sum::<u64>());
        assert_eq!(sums, [1, 0, 1]);
    }
}
