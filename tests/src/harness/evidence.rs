//! What tests ask of the evidence. The file is read as it stands, never through the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Seek, SeekFrom},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    sandbox::Sandbox,
    wait::{patience, until},
};

impl Sandbox {
    /// Every finished record of the test's time.
    pub(crate) fn evidence(&self) -> Result<Vec<Value>> {
        self.whole_lines(self.since).lines().map(parse).collect()
    }

    /// What stands in the evidence from `offset` on, without a line that is being written.
    fn whole_lines(&self, offset: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.evidence_file())?;
            file.seek(SeekFrom::Start(offset))?;
            std::io::read_to_string(file)
        };
        let mut text = read().unwrap_or_default();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    /// The records of one type about one session.
    pub(crate) fn records(&self, session: &str, kind: &str) -> Result<Vec<Value>> {
        let text = self.whole_lines(self.since);
        // a line without the session's id need not be parsed: a test may fill the log
        let about = text.lines().filter(|line| line.contains(session)).map(parse);
        about.filter(|r| r.as_ref().map_or(true, |r| r["session"] == session && r["type"] == kind)).collect()
    }

    /// Waits for a record that fits.
    pub(crate) fn wait_evidence(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut seen = self.since;
        let found = until(what, patience(), || {
            // each line once: a test may fill the log faster than all of it can be read again and again
            let text = self.whole_lines(seen);
            seen += text.len() as u64;
            for line in text.lines() {
                let record = parse(line)?;
                if fits(&record) {
                    return Ok(Some(record));
                }
            }
            Ok(None)
        });
        found.with_context(|| format!("no evidence of {what}"))
    }

    /// The session that the process `pid` is about to be started as: its start is recorded before it is a member.
    pub(crate) fn session_of(&self, pid: u32) -> Result<String> {
        let start = self.wait_evidence(&format!("the start of a session by process {pid}"), |r| {
            r["type"] == "session-start" && r["context"]["pid"] == pid
        })?;
        Ok(start["session"].as_str().context("a session is named by a string")?.to_owned())
    }

    /// Waits until the session's first process is a member of it.
    pub(crate) fn session_active(&self, session: &str) -> Result<()> {
        let active = |r: &Value| r["type"] == "state" && r["session"] == session && r["to"] == "active";
        self.wait_evidence(&format!("session {session} to be active"), active).map(drop)
    }

    /// Waits for the session's end and for its reason to be `reason`, with no member left.
    pub(crate) fn session_ended(&self, session: &str, reason: &str) -> Result<Value> {
        let end = self.wait_evidence(&format!("the end of session {session}"), |r| {
            r["type"] == "session-end" && r["session"] == session
        })?;
        ensure!(end["reason"] == reason, "the session ended because of {}, not {reason}", end["reason"]);
        ensure!(end["members_left"] == 0, "the session ended with members left: {end}");
        Ok(end)
    }

    /// Waits for an exec of `path` by a member and its `verdict` by `rule`; all execs of it must have that verdict.
    pub(crate) fn saw_exec(&self, session: &str, path: &str, verdict: &str, rule: &str) -> Result<Value> {
        self.saw(session, "exec", "path", path, verdict, rule)
    }

    /// As [`Sandbox::saw_exec`] for a connect or send to `to`.
    pub(crate) fn saw_connect(&self, session: &str, to: &str, verdict: &str, rule: &str) -> Result<Value> {
        self.saw(session, "connect", "to", to, verdict, rule)
    }

    fn saw(&self, session: &str, kind: &str, key: &str, value: &str, verdict: &str, rule: &str) -> Result<Value> {
        let about = |r: &Value| r["session"] == session && r["type"] == kind && r[key] == value;
        let what = format!("{kind} {value} {verdict} by {rule}");
        let found = self.wait_evidence(&what, |r| about(r) && r["verdict"] == verdict && r["rule"] == rule);
        let all = self.records(session, kind)?;
        let found = found.with_context(|| format!("of that kind there are {}", Value::from(all.clone())))?;
        let other: Vec<&Value> = all.iter().filter(|r| about(r) && r["verdict"] != verdict).collect();
        ensure!(other.is_empty(), "{what}, but also {other:?}");
        Ok(found)
    }

    /// Every session ended once, and what its end counts is what the evidence holds.
    pub(crate) fn evidence_adds_up(&self) -> Result<()> {
        let all = self.evidence()?;
        let first = if self.since == 0 { 1 } else { all.first().and_then(|record| record["n"].as_u64()).unwrap_or(1) };
        for (n, record) in (first..).zip(&all) {
            ensure!(record["n"] == n, "record {n} of the evidence calls itself {}", record["n"]);
        }
        let sessions = by_session(&all);
        let gaps: Vec<&Value> = all.iter().filter(|r| r["type"] == "gap").collect();
        for (session, own) in sessions {
            let of = |kind: &'static str| own.iter().filter(move |r| r["type"] == kind);
            let ends = of("session-end").count();
            ensure!(
                ends == 1 || of("session-start").next().is_none(),
                "session {session} has {ends} ends in the evidence"
            );
            of("session-end").try_for_each(|end| balanced(&own, &gaps, end))?;
        }
        Ok(())
    }
}

/// The records of each session, in their order.
fn by_session(all: &[Value]) -> BTreeMap<&str, Vec<&Value>> {
    let mut sessions: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for record in all {
        if let Some(session) = record["session"].as_str() {
            sessions.entry(session).or_default().push(record);
        }
    }
    sessions
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("record {line:?}"))
}

/// For each kind: produced is consumed and lost; what was consumed stands in the evidence, each record once; and what was
/// lost is what gaps tell of, where nothing else is missing from the session's time. `records` are the session's, `gaps` all.
fn balanced(records: &[&Value], gaps: &[&Value], end: &Value) -> Result<()> {
    let parts = ["produced", "consumed", "lost"];
    for part in parts {
        ensure!(end[part].is_object(), "session-end without {part}: {end}");
    }
    let session = &end["session"];
    let start = records.iter().find(|r| r["type"] == "session-start");
    let from = start.and_then(|r| r["n"].as_u64()).unwrap_or(0);
    let within = |r: &&&Value| r["n"].as_u64() > Some(from) && r["n"].as_u64() < end["n"].as_u64();
    let gaps = |cause: &'static str| gaps.iter().filter(within).filter(move |gap| gap["cause"] == cause).copied();
    let unwritten = ["not-written", "torn", "altered", "cut"].iter().any(|cause| gaps(cause).next().is_some());
    let untold: u64 = gaps("agent-absent").filter_map(|gap| gap["lost"].as_u64()).sum();
    // of a session of which nothing was kept a gap tells, and the end how much it was
    let named =
        |gap: &Value| gap["lost"].is_null() && gap["detail"].to_string().contains(session.as_str().unwrap_or("-"));
    let forgotten = gaps("agent-absent").find(|gap| named(gap));
    // so many more, by the numbers of those that are there
    let detail = forgotten.map(|gap| gap["detail"].to_string()).unwrap_or_default();
    let more =
        detail.split_once("that are written, ").and_then(|(_, more)| more.split(' ').next()?.parse::<u64>().ok());
    let forgotten = forgotten.is_some();
    let mut written: BTreeMap<&str, u64> = BTreeMap::new();
    for kind in records.iter().filter(within).filter_map(|r| r["type"].as_str()) {
        *written.entry(kind).or_default() += 1;
    }
    let kinds: BTreeSet<&String> =
        parts.iter().filter_map(|part| end[part].as_object()).flat_map(|map| map.keys()).collect();
    for kind in kinds {
        let count = |part: &str| end[part][kind].as_u64().unwrap_or(0);
        let (produced, consumed, lost) = (count("produced"), count("consumed"), count("lost"));
        let written = written.get(kind.as_str()).copied().unwrap_or(0);
        let full = gaps("ring-full").filter(|gap| gap["session"] == *session);
        let told: u64 = full.filter_map(|gap| gap["kinds"][kind].as_u64()).sum();
        let counts = format!("{produced} records {kind} produced, {consumed} consumed, {lost} lost");
        ensure!(produced == consumed + lost, "session {session}: {counts}");
        ensure!(unwritten || written == consumed, "session {session}: {counts}, {written} in the evidence");
        let silent = end["members_left"] == 0 && untold == 0 && !unwritten && !forgotten;
        ensure!(told <= lost && (told == lost || !silent), "session {session}: {counts}, gaps tell of {told}");
    }
    let sum = |part: &str| end[part].as_object().map_or(0, |kinds| kinds.values().filter_map(Value::as_u64).sum());
    let (produced, lost): (u64, u64) = (sum("produced"), sum("lost"));
    let numbers: Vec<u64> = records.iter().filter(within).filter_map(|r| r["seq"].as_u64()).collect();
    let distinct: BTreeSet<u64> = numbers.iter().copied().collect();
    ensure!(distinct.len() == numbers.len(), "session {session}: a record stands twice among {}", numbers.len());
    let last = distinct.last().copied().unwrap_or(0);
    let more = more.unwrap_or(0);
    ensure!(last <= produced + more, "session {session}: record {last} of {produced}, and a gap tells of {more} more");
    // every number that is not there was lost, before the last that is there or after it
    let missing = produced - distinct.len() as u64;
    ensure!(unwritten || missing == lost, "session {session}: {missing} numbers are missing, {lost} were lost");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(end: Value) -> Vec<Value> {
        let mut all = vec![
            json!({"n": 1, "type": "session-start", "session": "a"}),
            json!({"n": 2, "type": "exec", "session": "a", "seq": 1}),
            json!({"n": 3, "type": "exec", "session": "a", "seq": 3}),
            json!({"n": 4, "type": "fork", "session": "a", "seq": 4}),
            json!({"n": 5, "type": "gap", "session": "a", "cause": "ring-full", "lost": 1, "kinds": {"exec": 1}}),
            end,
        ];
        all[5]["n"] = 6.into();
        all
    }

    fn end(lost: Value) -> Value {
        let counts = json!({"exec": 3, "fork": 1});
        json!({"type": "session-end", "session": "a", "members_left": 0, "produced": counts,
            "consumed": {"exec": 2, "fork": 1}, "lost": lost})
    }

    fn judged(all: &[Value]) -> Result<()> {
        let gaps: Vec<&Value> = all.iter().filter(|r| r["type"] == "gap").collect();
        let end = all.last().context("an end")?;
        balanced(by_session(all).get("a").context("its records")?, &gaps, end)
    }

    #[test]
    fn a_balance_must_hold_for_every_kind() {
        assert!(judged(&log(end(json!({"exec": 1})))).is_ok());
        assert!(judged(&log(end(json!({})))).is_err());
        assert!(judged(&log(end(json!({"exec": 1, "exit": 1})))).is_err());
        assert!(judged(&log(json!({"session": "a", "produced": {}, "consumed": {}}))).is_err());
    }

    #[test]
    fn it_is_held_against_the_records() {
        let well = log(end(json!({"exec": 1})));
        // a record that nobody wrote; one that stands twice; a loss that no gap tells of
        for (at, field, value) in [(2, "type", json!("other")), (2, "seq", json!(1)), (4, "kinds", json!({}))] {
            let mut all = well.clone();
            all[at][field] = value;
            assert!(judged(&all).is_err(), "{field} of record {at}");
        }
        // without the kernel's counts: by the numbers of those that are there so many more were made, and no others
        for (more, right) in
            [("; by the numbers of those that are written, 1 more at least were made", true), ("", false)]
        {
            let counts = json!({"exec": 2, "fork": 1});
            let end = json!({"type": "session-end", "session": "a", "members_left": 0, "produced": counts, "consumed": counts,
                "lost": {}});
            let mut all = log(end);
            let detail = format!("the kernel's counts of session a are gone: what it did is not known{more}");
            all[4] = json!({"n": 5, "type": "gap", "session": "a", "cause": "agent-absent", "detail": detail});
            assert_eq!(judged(&all).is_ok(), right, "{more:?}");
        }
        // with a gap of unwritten records nobody knows
        let mut all = well;
        all[2] = json!({"n": 3, "type": "gap", "cause": "not-written", "lost": 1});
        assert!(judged(&all).is_ok());
    }
}
