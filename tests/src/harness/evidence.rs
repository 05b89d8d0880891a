//! What tests ask of the evidence. The file is read as it stands, never through the agent.

use std::{
    collections::BTreeSet,
    fs::{self, File},
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
        let text = self.since_start().unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parsed = whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("record {line:?}")));
        parsed.collect()
    }

    /// What was written since the test began.
    fn since_start(&self) -> std::io::Result<String> {
        let mut file = File::open(self.evidence_file())?;
        file.seek(SeekFrom::Start(self.since))?;
        std::io::read_to_string(file)
    }

    /// The records of one type about one session.
    pub(crate) fn records(&self, session: &str, kind: &str) -> Result<Vec<Value>> {
        let all = self.evidence()?;
        Ok(all.into_iter().filter(|r| r["session"] == session && r["type"] == kind).collect())
    }

    /// Waits for a record that fits.
    pub(crate) fn wait_evidence(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut seen = None;
        let found = until(what, patience(), || {
            let size = fs::metadata(self.evidence_file()).ok().map(|file| file.len());
            if size == seen {
                return Ok(None);
            }
            seen = size;
            Ok(self.evidence()?.into_iter().find(&fits))
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

    /// Every session ended once, and for each kind of record what was produced was consumed or counted as lost.
    pub(crate) fn evidence_adds_up(&self) -> Result<()> {
        let all = self.evidence()?;
        let first = if self.since == 0 { 1 } else { all.first().and_then(|record| record["n"].as_u64()).unwrap_or(1) };
        for (n, record) in (first..).zip(&all) {
            ensure!(record["n"] == n, "record {n} of the evidence calls itself {}", record["n"]);
        }
        let of = |kind: &'static str| all.iter().filter(move |r| r["type"] == kind);
        for start in of("session-start") {
            let ends = of("session-end").filter(|end| end["session"] == start["session"]).count();
            ensure!(ends == 1, "session {} has {ends} ends in the evidence", start["session"]);
        }
        of("session-end").try_for_each(balanced)
    }
}

/// For each kind: produced = consumed + lost.
fn balanced(end: &Value) -> Result<()> {
    let parts = ["produced", "consumed", "lost"];
    for part in parts {
        ensure!(end[part].is_object(), "session-end without {part}: {end}");
    }
    let kinds: BTreeSet<&String> =
        parts.iter().filter_map(|part| end[part].as_object()).flat_map(|map| map.keys()).collect();
    for kind in kinds {
        let count = |part: &str| end[part][kind].as_u64().unwrap_or(0);
        let (produced, consumed, lost) = (count("produced"), count("consumed"), count("lost"));
        ensure!(
            produced == consumed + lost,
            "session {}: {produced} records {kind} produced, {consumed} consumed, {lost} lost",
            end["session"]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_balance_must_hold_for_every_kind() {
        let end = |lost| json!({"session": "a", "produced": {"exec": 3, "fork": 1}, "consumed": {"exec": 2, "fork": 1}, "lost": lost});
        assert!(balanced(&end(json!({"exec": 1}))).is_ok());
        assert!(balanced(&end(json!({}))).is_err());
        assert!(balanced(&end(json!({"exec": 1, "exit": 1}))).is_err());
        assert!(balanced(&json!({"session": "a", "produced": {}, "consumed": {}})).is_err());
    }
}
