//! The results: judged against their targets, as lines, as Markdown and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::stats::{self, NOISY, least, median, most, quantile, spread};

/// What a measure is held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// `P1` and so on, as `docs/performance.md` has them.
    pub(super) name: &'static str,
    pub(super) bound: Bound,
}

/// The bound of a target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// What must be exactly so: [`Figures::Exact`].
    Exactly,
    /// At most this, in the measure's unit.
    AtMost(f64),
    /// A difference of at most this, or one that is not told from none.
    Nothing(f64),
    /// No difference: at most three nanoseconds or three hundredths of the value without the agent, whichever is more.
    None,
    /// A difference of at most this share of the value without the agent, or one that is not told from none.
    Share(f64),
}

/// What is no difference in nanoseconds, where the unit is that, and as a share.
const NONE_NS: f64 = 3.0;
const NONE_SHARE: f64 = 0.03;

/// What a target came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Met,
    Missed,
    /// Not judged: the rounds without the agent differ too much among themselves.
    Noisy,
    /// There is no target.
    None,
}

impl Judgement {
    const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Noisy => "noisy",
            Self::None => "",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The benchmark's name.
    pub(super) bench: &'static str,
    /// What was measured, and under which circumstances.
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) target: Option<Target>,
    pub(super) figures: Figures,
}

/// The measured values.
#[derive(Clone, Debug)]
pub(super) enum Figures {
    /// Rounds without and with, and the rounds with empty programs where there are some.
    Compared { off: Vec<f64>, on: Vec<f64>, floor: Option<Vec<f64>> },
    /// Trials, of which the 99th percentile is held to the target.
    Spread(Vec<f64>),
    /// One value.
    Single(f64),
    /// What must be exactly so: what was found, and whether it is.
    Exact { found: String, holds: bool },
}

impl Row {
    pub(super) fn judge(&self) -> Judgement {
        let Some(target) = self.target else {
            return match self.figures {
                Figures::Exact { holds: true, .. } => Judgement::Met,
                Figures::Exact { holds: false, .. } => Judgement::Missed,
                _ => Judgement::None,
            };
        };
        let value = match &self.figures {
            Figures::Compared { off, .. } if spread(off) > NOISY => return Judgement::Noisy,
            Figures::Compared { off, on, .. } => least(on) - least(off),
            Figures::Spread(values) => quantile(values, 0.99),
            Figures::Single(value) => *value,
            Figures::Exact { holds, .. } => return if *holds { Judgement::Met } else { Judgement::Missed },
        };
        let met = match target.bound {
            Bound::Exactly => false,
            Bound::AtMost(bound) => value <= bound,
            Bound::Nothing(bound) => value <= bound || self.is_not_told_from_none(),
            Bound::None => value <= (NONE_SHARE * self.base()).max(NONE_NS),
            Bound::Share(share) => value <= share * self.base() || self.is_not_told_from_none(),
        };
        if met { Judgement::Met } else { Judgement::Missed }
    }

    /// The least value without the agent.
    fn base(&self) -> f64 {
        if let Figures::Compared { off, .. } = &self.figures { least(off) } else { f64::NAN }
    }

    /// Whether the confidence interval of the difference reaches to nothing.
    fn is_not_told_from_none(&self) -> bool {
        let Figures::Compared { off, on, .. } = &self.figures else { return false };
        stats::interval(&stats::differences(off, on)).0 <= 0.0
    }

    /// Whether an exact invariant is broken: no noise explains that.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.figures, Figures::Exact { holds: false, .. })
    }

    /// Takes away what it is held to: the machine was too busy. What must be exact must be so all the same.
    pub(super) fn leave_unjudged(&mut self) {
        if !matches!(self.figures, Figures::Exact { .. }) {
            self.target = None;
        }
    }

    pub(super) fn is_noisy(&self) -> bool {
        matches!(&self.figures, Figures::Compared { off, .. } if spread(off) > NOISY)
    }

    pub(super) fn json(&self) -> Value {
        let target = self.target.map(|t| match t.bound {
            Bound::Exactly | Bound::None => json!({"name": t.name}),
            Bound::AtMost(bound) => json!({"name": t.name, "at_most": bound}),
            Bound::Nothing(bound) => json!({"name": t.name, "at_most_or_none": bound}),
            Bound::Share(share) => json!({"name": t.name, "share": share}),
        });
        let figures = match &self.figures {
            Figures::Compared { off, on, floor } => {
                let differences = stats::differences(off, on);
                json!({"off": off, "on": on, "floor": floor, "difference_of_minima": least(on) - least(off),
                    "median_difference": median(&differences), "interval": stats::interval(&differences),
                    "spread": spread(off)})
            }
            Figures::Spread(values) => json!({"values": values, "p50": quantile(values, 0.5),
                "p99": quantile(values, 0.99), "max": most(values)}),
            Figures::Single(value) => json!({"value": value}),
            Figures::Exact { found, holds } => json!({"found": found, "holds": holds}),
        };
        json!({"bench": self.bench, "what": self.what, "unit": self.unit, "target": target,
            "judgement": self.judge().name(), "figures": figures})
    }

    fn cells(&self) -> Vec<String> {
        let unit = self.unit;
        let mut cells = vec![self.bench.to_owned(), self.what.clone()];
        cells.extend(match &self.figures {
            Figures::Compared { off, on, floor } => {
                let differences = stats::differences(off, on);
                let (low, high) = stats::interval(&differences);
                let ratio = floor.as_ref().map_or_else(String::new, |floor| {
                    let (ours, empty) = (least(on) - least(off), least(floor) - least(off));
                    if empty > 0.0 { format!("{} ({:.1} ×)", signed(empty), ours / empty) } else { signed(empty) }
                });
                let base = format!("{} {unit}", plain(least(off)));
                let difference = signed(least(on) - least(off));
                vec![
                    base,
                    difference,
                    format!("{} [{}, {}]", signed(median(&differences)), signed(low), signed(high)),
                    ratio,
                ]
            }
            Figures::Spread(values) => {
                let quantiles = [0.5, 0.99].map(|share| plain(quantile(values, share)));
                let [half, most_of] = quantiles;
                let top = plain(most(values));
                vec![
                    format!("p50 {half} {unit}"),
                    format!("p99 {most_of}"),
                    format!("max {top} of {}", values.len()),
                    String::new(),
                ]
            }
            Figures::Single(value) => {
                vec![format!("{} {unit}", plain(*value)), String::new(), String::new(), String::new()]
            }
            Figures::Exact { found, .. } => vec![found.clone(), String::new(), String::new(), String::new()],
        });
        let target = self.target.map_or_else(String::new, |t| match t.bound {
            Bound::Exactly => format!("{} exactly", t.name),
            Bound::AtMost(bound) => format!("{} ≤ {} {unit}", t.name, plain(bound)),
            Bound::None => format!("{} none", t.name),
            Bound::Nothing(bound) => format!("{} ≤ {} {unit} or none", t.name, plain(bound)),
            Bound::Share(share) => format!("{} ≤ {} % or none", t.name, plain(share * 100.0)),
        });
        cells.push(target);
        cells.push(if self.is_noisy() { Judgement::Noisy } else { self.judge() }.name().to_owned());
        cells
    }
}

/// What it was measured on.
pub(super) fn head(machine: &Value) -> String {
    let word = |key: &str| machine[key].to_string().replace('"', "");
    let kind = if machine["virtual"] == true { "virtual machine" } else { "machine" };
    format!(
        "{} processors ({}), {kind}, kernel {}, cgroup2 {}, load {} at the start, others used {:.0} % of the processors\n",
        word("processors"),
        word("architecture"),
        word("kernel"),
        word("cgroup"),
        word("load"),
        machine["others"].as_f64().unwrap_or(0.0) * 100.0
    )
}

/// The table of all rows.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| benchmark | measure | without | more with it | median [95 %] | empty programs | target | |\n\
         |---|---|---:|---:|---:|---:|---|---|\n",
    );
    // the peers have a table of their own
    for row in rows.iter().filter(|row| row.bench != "peers") {
        // a string takes everything
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

/// With three digits that mean something.
pub(super) fn plain(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

pub(super) fn signed(value: f64) -> String {
    if value < 0.0 { format!("−{}", plain(-value)) } else { format!("+{}", plain(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(off: &[f64], on: &[f64], bound: Bound) -> Row {
        let figures = Figures::Compared { off: off.to_vec(), on: on.to_vec(), floor: None };
        let target = Some(Target { name: "P0", bound });
        Row { bench: "bench", what: "what".into(), unit: "ns", target, figures }
    }

    #[test]
    fn a_difference_is_judged_by_the_minima() {
        let row = |on: &[f64]| compared(&[100.0, 105.0, 101.0], on, Bound::AtMost(10.0)).judge();
        assert_eq!(row(&[109.0, 150.0, 140.0]), Judgement::Met);
        assert_eq!(row(&[111.0, 112.0, 113.0]), Judgement::Missed);
    }

    #[test]
    fn noise_is_not_judged() {
        let row = compared(&[100.0, 120.0, 101.0], &[100.0, 100.0, 100.0], Bound::AtMost(10.0));
        assert_eq!(row.judge(), Judgement::Noisy);
        assert!(row.is_noisy() && !row.is_broken());
    }

    #[test]
    fn a_share_is_met_where_no_difference_can_be_told() {
        let off = [100.0, 110.0, 104.0, 108.0, 106.0];
        let unclear = [104.0, 109.0, 103.0, 110.0, 107.0];
        let slower = [110.0, 121.0, 114.0, 118.0, 116.0];
        assert_eq!(compared(&off, &unclear, Bound::Share(0.02)).judge(), Judgement::Met);
        assert_eq!(compared(&off, &slower, Bound::Share(0.02)).judge(), Judgement::Missed);
        assert_eq!(compared(&off, &slower, Bound::Share(0.10)).judge(), Judgement::Met);
    }

    #[test]
    fn none_is_three_nanoseconds_or_three_hundredths() {
        let judge = |off: f64, on: f64| compared(&[off; 3], &[on; 3], Bound::None).judge();
        assert_eq!((judge(50.0, 53.0), judge(50.0, 53.5)), (Judgement::Met, Judgement::Missed));
        assert_eq!((judge(1000.0, 1030.0), judge(1000.0, 1031.0)), (Judgement::Met, Judgement::Missed));
    }

    #[test]
    fn trials_are_judged_by_their_99th_percentile() {
        let mut values = vec![1.0; 200];
        values[0] = 50.0;
        let row = |values: Vec<f64>, bound| Row {
            bench: "bench",
            what: String::new(),
            unit: "ms",
            target: Some(Target { name: "P0", bound }),
            figures: Figures::Spread(values),
        };
        assert_eq!(row(values.clone(), Bound::AtMost(2.0)).judge(), Judgement::Met);
        values[..3].fill(50.0);
        assert_eq!(row(values, Bound::AtMost(2.0)).judge(), Judgement::Missed);
    }

    #[test]
    fn what_must_be_exact_is_broken_or_not() {
        let row = |holds| Row {
            bench: "bench",
            what: String::new(),
            unit: "",
            target: None,
            figures: Figures::Exact { found: "1 of 1".into(), holds },
        };
        assert!(row(false).is_broken() && row(false).judge() == Judgement::Missed);
        assert!(!row(true).is_broken() && row(true).judge() == Judgement::Met);
        let mut busy = [row(false), compared(&[1.0, 1.0], &[9.0, 9.0], Bound::AtMost(1.0))];
        assert!(busy.iter().all(|row| row.judge() == Judgement::Missed));
        busy.iter_mut().for_each(Row::leave_unjudged);
        assert_eq!(busy.map(|row| row.judge()), [Judgement::Missed, Judgement::None]);
    }

    #[test]
    fn the_table_has_as_many_cells_in_each_line() {
        let mut rows = vec![compared(&[1.0, 1.0], &[2.0, 2.0], Bound::AtMost(1.0))];
        rows.push(Row { figures: Figures::Spread(vec![1.0]), ..rows[0].clone() });
        rows.push(Row { figures: Figures::Single(1.0), ..rows[0].clone() });
        rows.push(Row { figures: Figures::Exact { found: "x".into(), holds: true }, ..rows[0].clone() });
        let text = markdown(&rows);
        assert!(text.lines().all(|line| line.matches('|').count() == 9), "{text}");
        assert!(text.contains("| +1.00 |") && text.contains("P0 ≤ 1.00 ns"), "{text}");
    }
}
