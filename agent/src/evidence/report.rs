//! What verification found, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::record::Mark;

/// Damages and gaps that a report lists; it counts all.
pub(super) const LISTED: usize = 100;

/// Whether the chain holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Soundness {
    /// Every record is as it was written, and none is missing but those that gap records speak of.
    Intact,
    /// Not so.
    Damaged,
}

impl fmt::Display for Soundness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Intact => "intact",
            Self::Damaged => "damaged",
        })
    }
}

/// One thing that is wrong. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "damage", rename_all = "kebab-case")]
pub enum Damage {
    /// The line is no record.
    Malformed {
        /// Where.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The record is not what it was when its hash was made.
    BadHash {
        /// Where.
        line: u64,
    },
    /// The record does not follow the one before it.
    BrokenLink {
        /// Where.
        line: u64,
    },
    /// Numbers are missing, or come twice.
    BadNumber {
        /// Where.
        line: u64,
        /// The number that comes next.
        expected: u64,
        /// The number that is there.
        found: u64,
    },
    /// The record is of a format that this program does not know.
    UnknownFormat {
        /// Where.
        line: u64,
        /// Its format.
        version: u32,
    },
    /// No record is as long.
    TooLong {
        /// Where.
        line: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// The last line is unfinished.
    TornTail {
        /// Where.
        line: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// The head file knows of later records.
    CutTail {
        /// Number of the last record that is there.
        last: u64,
        /// Number of the last record that was.
        head: u64,
    },
    /// The record that the head file names is another one.
    HeadDiffers {
        /// Its number.
        n: u64,
    },
    /// There is no head file, so nobody knows whether the end was cut off.
    HeadMissing,
    /// The head file cannot be read, so nobody knows whether the end was cut off.
    HeadUnreadable {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { line, why } => write!(f, "line {line}: not a record: {why}"),
            Self::BadHash { line } => write!(f, "line {line}: its bytes do not have the hash that it states"),
            Self::BrokenLink { line } => write!(f, "line {line}: it does not follow the record before it"),
            Self::BadNumber { line, expected, found } => {
                write!(f, "line {line}: record {found} where {expected} belongs")
            }
            Self::UnknownFormat { line, version } => write!(f, "line {line}: format {version} is unknown"),
            Self::TooLong { line, bytes } => write!(f, "line {line}: {bytes} bytes, no record is as long"),
            Self::TornTail { line, bytes } => write!(f, "line {line}: unfinished after {bytes} bytes"),
            Self::CutTail { last, head } => {
                write!(f, "the log ends with record {last}, and the head file names {head}")
            }
            Self::HeadDiffers { n } => write!(f, "record {n} is not the one that the head file names"),
            Self::HeadMissing => f.write_str("there is no head file: the end may have been cut off"),
            Self::HeadUnreadable { why } => {
                write!(f, "the head file is unreadable, the end may have been cut off: {why}")
            }
        }
    }
}

/// A gap that the log itself speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotedGap {
    /// Number of the gap record.
    pub n: u64,
    /// Why something is missing.
    pub cause: String,
    /// How many records, where that is known.
    pub lost: Option<u64>,
    /// Where the gap begins, where that is known.
    pub since: Option<Mark>,
    /// Where it ends.
    pub until: Mark,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the chain holds.
    pub verdict: Soundness,
    /// Lines that are records.
    pub records: u64,
    /// Sessions that started in this log.
    pub sessions: u64,
    /// The first record's time.
    pub first: Option<Mark>,
    /// The last record's time.
    pub last: Option<Mark>,
    /// Whether the end was compared with a head file.
    pub head_checked: bool,
    /// An agent was writing the last line at that moment; this is no damage.
    pub being_written: bool,
    /// Gap records.
    pub gaps: u64,
    /// The first 100 of them.
    pub gap_list: Vec<NotedGap>,
    /// Records that the gap records say are missing, without those of full rings: `lost_in_kernel` has them.
    pub lost_in_gaps: u64,
    /// Records that the kernel produced and that did not reach the agent, by the sessions' last records.
    pub lost_in_kernel: u64,
    /// Damages.
    pub damages: u64,
    /// The first 100 of them.
    pub damage_list: Vec<Damage>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            verdict: Soundness::Intact,
            records: 0,
            sessions: 0,
            first: None,
            last: None,
            head_checked: false,
            being_written: false,
            gaps: 0,
            gap_list: Vec::new(),
            lost_in_gaps: 0,
            lost_in_kernel: 0,
            damages: 0,
            damage_list: Vec::new(),
        }
    }

    pub(super) fn damaged(&mut self, damage: Damage) {
        self.verdict = Soundness::Damaged;
        self.damages += 1;
        if self.damage_list.len() < LISTED {
            self.damage_list.push(damage);
        }
    }

    pub(super) fn gap(&mut self, gap: NotedGap) {
        self.gaps += 1;
        // what a ring had no room for stands in the session's last record as well
        if gap.cause != "ring-full" {
            self.lost_in_gaps = self.lost_in_gaps.saturating_add(gap.lost.unwrap_or(0));
        }
        if self.gap_list.len() < LISTED {
            self.gap_list.push(gap);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |mark: &Option<Mark>| mark.as_ref().map_or_else(|| "-".to_owned(), |mark| mark.time.to_string());
        match (self.verdict, self.gaps) {
            (Soundness::Damaged, _) | (Soundness::Intact, 0) => writeln!(f, "verdict    {}", self.verdict)?,
            (Soundness::Intact, 1) => writeln!(f, "verdict    intact, with 1 gap")?,
            (Soundness::Intact, gaps) => writeln!(f, "verdict    intact, with {gaps} gaps")?,
        }
        writeln!(f, "records    {}", self.records)?;
        writeln!(f, "sessions   {}", self.sessions)?;
        writeln!(f, "first      {}", time(&self.first))?;
        writeln!(f, "last       {}", time(&self.last))?;
        let end = match (self.head_checked, self.being_written) {
            (true, false) => "compared with the head file",
            (true, true) => "compared with the head file; one more record was being written",
            (false, _) => "not compared with a head file: a cut end would not be noticed",
        };
        writeln!(f, "end        {end}")?;
        writeln!(f, "lost       {} in gaps, {} in the kernel", self.lost_in_gaps, self.lost_in_kernel)?;
        writeln!(f, "gaps       {}", self.gaps)?;
        for NotedGap { n, cause, lost, since, until } in &self.gap_list {
            let lost = lost.map_or_else(|| "an unknown number of records".to_owned(), |lost| format!("{lost} records"));
            writeln!(f, "  record {n}: {} ({lost}), {} to {}", cause.escape_debug(), time(since), until.time)?;
        }
        writeln!(f, "damage     {}", self.damages)?;
        for damage in &self.damage_list {
            writeln!(f, "  {}", damage.to_string().escape_debug())?;
        }
        Ok(())
    }
}
