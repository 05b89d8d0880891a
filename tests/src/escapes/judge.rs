//! What became of each attempt: by what the caller was told, by the effect, by the twin and by the evidence; and whether it
//! may have.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    attempt::{Attempt, EVERYBODY, Effect, Must, Who},
    driver::Outcome,
    stage::Part,
};
use crate::harness::{prelude::*, runner::running_kernel, wait::in_guest};

/// How long after an attempt its record may say that it was, nanoseconds: what is dropped in the end is tried again. Never
/// longer than until the next attempt of the same session begins, whose record would be taken for this one's.
const AFTER_NS: u64 = 50_000_000;

/// An attempt, or a twin, as it went.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) outcome: Outcome,
    /// Whether its effect exists.
    pub(super) did: bool,
}

/// One field of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    As(Must),
    /// It succeeded; under which number that is known.
    Open(Option<u32>),
    /// This user could not do it outside of a session either, or the kernel lacks it.
    Moot(String),
    /// Neither.
    Unclear(String),
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::As(must) => must.name().to_owned(),
            Self::Open(Some(number)) => format!("OPEN O{number}"),
            Self::Open(None) => "OPEN".to_owned(),
            Self::Moot(_) => "-".to_owned(),
            Self::Unclear(_) => "unclear".to_owned(),
        }
    }
}

/// Takes what was seen, and prints the table's rows.
pub(super) struct Judge<'a> {
    tier: Tier,
    kernel: (u32, u32),
    release: String,
    attempts: &'a [&'a Attempt],
    seen: BTreeMap<(usize, &'static str, bool), Seen>,
    sessions: Vec<(Who, String)>,
    /// When each session was refused something.
    refusals: BTreeMap<&'static str, Vec<u64>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(tier: Tier, attempts: &'a [&'a Attempt]) -> Result<Self> {
        let kernel = running_kernel()?;
        let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        let (seen, refusals) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { tier, kernel, release, attempts, seen, sessions: Vec::new(), refusals })
    }

    pub(super) fn session(&mut self, who: Who, session: String) {
        self.sessions.push((who, session));
    }

    pub(super) fn saw(&mut self, part: Part, seen: Seen) {
        self.seen.insert((part.number, part.who.name(), part.twin), seen);
    }

    pub(super) fn add_evidence(&mut self, records: &[Value]) {
        for (who, session) in &self.sessions {
            let refused = |record: &&Value| {
                record["session"] == *session && (record["verdict"] == "deny" || record["verdict"] == "kill")
            };
            let times = records.iter().filter(refused).filter_map(|record| record["at_boot_ns"].as_u64());
            self.refusals.entry(who.name()).or_default().extend(times);
        }
    }

    /// Prints a row for each attempt; fails where one is not as it must be.
    pub(super) fn close(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (number, attempt) in self.attempts.iter().enumerate() {
            let cells = EVERYBODY.map(|who| (who, self.cell(attempt, number, who)));
            let notes: Vec<String> =
                cells.iter().filter_map(|(who, cell)| self.note(attempt, number, *who, cell)).collect();
            for (who, cell) in &cells {
                if let Some(why) = self.is_wrong(attempt, number, *who, cell) {
                    wrong.push(format!("{} as {}: {why}", attempt.full_name(), who.name()));
                }
            }
            let moot = cells.iter().all(|(_, cell)| matches!(cell, Cell::Moot(_)));
            // outside of guests a machine may keep its own root from much
            if moot && in_guest() && !attempt.may_lack {
                wrong.push(format!("{}: it works for nobody, {cells:?}", attempt.full_name()));
            }
            self.print(attempt, &cells, &notes);
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    fn print(&self, attempt: &Attempt, cells: &[(Who, Cell)], notes: &[String]) {
        let fields: serde_json::Map<String, Value> =
            cells.iter().map(|(who, cell)| (who.name().to_owned(), json!(cell.text()))).collect();
        let (promise, name, what) = (attempt.promise.name(), attempt.name, attempt.what);
        let line = json!({"kernel": self.release, "tier": self.tier.name(), "promise": promise, "name": name, "what": what, "cells": fields,
            "notes": notes});
        println!("TIPSTAFF-ESCAPE {line}");
    }

    fn of(&self, number: usize, who: Who, twin: bool) -> Option<&Seen> {
        self.seen.get(&(number, who.name(), twin))
    }

    fn cell(&self, attempt: &Attempt, number: usize, who: Who) -> Cell {
        let (Some(seen), Some(twin)) = (self.of(number, who, false), self.of(number, who, true)) else {
            return Cell::Unclear("it was not made".to_owned());
        };
        let Outcome { status, answer, .. } = &seen.outcome;
        if seen.did || status == "hung" {
            return Cell::Open(attempt.known(self.tier, who, self.kernel));
        }
        if !twin.did {
            return Cell::Moot(format!("{}, {}", twin.outcome.status, twin.outcome.answer));
        }
        let refused = answer == "errno 1" || answer == "errno 13" || attempt.refusals.contains(&answer.as_str());
        match attempt.must_in(self.tier) {
            Must::Attributed if refused || answer == "signal 9" => Cell::As(Must::Attributed),
            _ if refused => Cell::As(Must::Denied),
            _ if answer == "signal 9" || status == "signal 9" => Cell::As(Must::Killed),
            _ if matches!(attempt.effect, Effect::Wire | Effect::Victim) => Cell::As(Must::Dropped),
            _ => Cell::Unclear(format!("{status}, {answer}")),
        }
    }

    fn is_wrong(&self, attempt: &Attempt, number: usize, who: Who, cell: &Cell) -> Option<String> {
        let known = attempt.known(self.tier, who, self.kernel).is_some();
        let must = attempt.must_in(self.tier);
        let told = || self.of(number, who, false).map(|seen| format!("{:?}", seen.outcome)).unwrap_or_default();
        match cell {
            Cell::Open(None) => Some(format!("OPEN, and not in docs/threat-model.md: {}", told())),
            Cell::Open(Some(_)) | Cell::Moot(_) => None,
            Cell::Unclear(what) => Some(format!("what came of it is not clear: {what}")),
            Cell::As(found) if *found != must && !known && (must, *found) != (Must::Dropped, Must::Denied) => {
                Some(format!("{} where {} was expected: {}", found.name(), must.name(), told()))
            }
            Cell::As(_) if !attempt.is_silent_in(self.tier) && !known && !self.is_recorded(number, who) => {
                let nearest = self.nearest_refusal(number, who);
                Some(format!("{} and no record says so (the nearest: {nearest:?}): {}", cell.text(), told()))
            }
            Cell::As(_) => None,
        }
    }

    /// Whether the session's evidence has a refusal from the time of the attempt.
    fn is_recorded(&self, number: usize, who: Who) -> bool {
        let Some(seen) = self.of(number, who, false) else { return false };
        let (begun, ended) = (seen.outcome.begun, seen.outcome.ended);
        let own = self.seen.iter().filter(|((_, name, _), _)| *name == who.name());
        let next = own.map(|(_, other)| other.outcome.begun).filter(|at| *at >= ended).min();
        let time = begun..next.unwrap_or(u64::MAX).min(ended + AFTER_NS);
        self.refusals.get(who.name()).is_some_and(|all| all.iter().any(|at| time.contains(at)))
    }

    /// The times of the session's refusals that are nearest to the attempt's beginning, before and after it.
    fn nearest_refusal(&self, number: usize, who: Who) -> [Option<u64>; 2] {
        let begun = self.of(number, who, false).map_or(0, |seen| seen.outcome.begun);
        let all = || self.refusals.get(who.name()).into_iter().flatten().copied();
        [all().filter(|at| *at < begun).max(), all().filter(|at| *at >= begun).min()]
    }

    fn note(&self, attempt: &Attempt, number: usize, who: Who, cell: &Cell) -> Option<String> {
        match (attempt.known(self.tier, who, self.kernel), cell) {
            (Some(known), Cell::As(found)) => {
                Some(format!("{}: listed as O{known}, {} here", who.name(), found.name()))
            }
            (_, Cell::Open(None) | Cell::Unclear(_)) => {
                let said = self.of(number, who, false).map(|seen| &seen.outcome.answer)?;
                Some(format!("{}: {said}", who.name()))
            }
            (_, Cell::Moot(why)) => Some(format!("{}: outside {why}", who.name())),
            _ => None,
        }
    }
}
