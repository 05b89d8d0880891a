//! Sessions that outlived what they were started for: their user, the review of their policy, their work.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::scene::only;
use crate::harness::{prelude::*, sandbox::OPERATORS, server::Server, wait::gone};

pub(super) const TESTS: &[Test] = &[
    Test::new("stale::user-that-is-gone", WHEREVER, user_gone).waiting().agents_own(),
    Test::sharing("stale::review-past-and-idle", WHEREVER, review_and_idle).agents_own(),
];

/// A file of users of the test's own.
struct Users(PathBuf);

impl Users {
    fn write(&self, users: &[(&str, u32)]) -> Result<()> {
        let lines: String = users.iter().map(|(name, uid)| format!("{name}:x:{uid}:{uid}::/:/bin/false\n")).collect();
        let fresh = self.0.with_extension("new");
        fs::write(&fresh, lines)?;
        Ok(fs::rename(fresh, &self.0)?)
    }

    fn daemon(&self, s: &Sandbox) -> Command {
        let mut daemon = s.daemon();
        daemon.env("TIPSTAFF_USERS", &self.0);
        daemon
    }
}

/// Why a session is stale, by `ps --stale`; nothing where it is not listed.
fn reasons(s: &Sandbox, session: &str, idle: &str) -> Result<Vec<String>> {
    let listed = s.json(&["ps", "--stale", "--idle", idle])?;
    let row = listed["sessions"].as_array().and_then(|all| all.iter().find(|row| row["id"] == session).cloned());
    let reasons = row.as_ref().and_then(|row| row["stale"].as_array()).into_iter().flatten();
    Ok(reasons.filter_map(|reason| reason.as_str().map(str::to_owned)).collect())
}

/// The user of two sessions is removed from the host: both are listed, the one whose policy asks for it ends. Its twins, of
/// a user that stays and of one that the host never knew, go on.
fn user_gone(s: &mut Sandbox) -> Result<()> {
    let users = Users(s.folder().join("passwd"));
    let (root, deploy, other) = (("root", 0), ("deploy", 4_001), ("other", 4_002));
    users.write(&[root, deploy, other])?;
    let daemon = users.daemon(s);
    s.start_as(daemon)?;
    let member = s.program("member")?;
    let ends = s.policy(&only(&member).spec("on: { principalGone: end }"))?;
    let stays = s.policy(&only(&member))?;
    let start = |s: &Sandbox, policy: &str, uid: u32| -> Result<(Running, String)> {
        let running = s.launch(policy, &member, "idle").user(uid, OPERATORS).start()?;
        let session = running.session(s)?;
        Ok((running, session))
    };
    let (hit, ended) = start(s, &ends, 4_001)?;
    let (spared, listed) = start(s, &stays, 4_001)?;
    let (twin, known) = start(s, &ends, 4_002)?;
    let (nobody, unknown) = start(s, &ends, 4_003)?;
    let started = s.records(&ended, "session-start")?.swap_remove(0);
    ensure!(started["users"] == serde_json::json!([{"uid": 4001, "name": "deploy"}]), "{started}");
    ensure!(s.records(&unknown, "session-start")?[0]["users"].is_null(), "a user that the host does not know");

    users.write(&[root, other])?;
    s.session_ended(&ended, "context-changed")?;
    hit.wait()?.ended(137)?;
    until("the other to be listed", patience(), || {
        Ok((reasons(s, &listed, "1h")? == ["principal-gone"]).then_some(()))
    })?;
    let told = |s: &Sandbox, session: &str| s.records(session, "principal-gone");
    for (session, ends) in [(&ended, true), (&listed, false)] {
        let records = told(s, session)?;
        let [record] = &records[..] else { anyhow::bail!("principal-gone: {records:?}") };
        ensure!(record["user"]["name"] == "deploy" && record["ends"] == ends, "{record}");
    }
    s.cli(&["ps", "--stale"])?.ended(0)?.told(&[&listed[..12], "4001", "principal-gone"])?;
    s.cli(&["inspect", &listed])?.ended(0)?.told(&["principal-gone"])?;

    // the next agent knows it, and does not tell it again
    s.kill_agent()?;
    let daemon = users.daemon(s);
    s.start_as(daemon)?;
    until(
        "it to be listed again",
        patience(),
        || Ok((reasons(s, &listed, "1h")? == ["principal-gone"]).then_some(())),
    )?;
    ensure!(told(s, &listed)?.len() == 1, "it was told twice");
    for session in [&known, &unknown] {
        ensure!(reasons(s, session, "1h")?.is_empty() && told(s, session)?.is_empty(), "{session} is listed");
    }
    ensure!([&spared, &twin, &nobody].iter().all(|running| !gone(running.pid())), "a session that was not meant ended");
    users.write(&[root, deploy, other])?;
    until("the user to be back", patience(), || Ok(reasons(s, &listed, "1h")?.is_empty().then_some(())))?;
    for session in [&listed, &known, &unknown] {
        s.cli(&["end", session])?.ended(0)?;
    }
    Ok(())
}

fn review_and_idle(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, server) = (s.program("member")?, Server::tcp("127.0.0.1")?);
    let policy = || only(&member).to("server", "127.0.0.1/32", server.port());
    let (past, future) = (policy().spec("reviewBy: 2020-02-29"), policy().spec("reviewBy: 2999-12-31"));
    let said = s.run(&s.policy(&past)?, &member, "nothing")?.wait()?;
    said.ended(0)?.complained(&["note: policy test was to be reviewed by 2020-02-29"])?;
    let quiet = s.run(&s.policy(&past)?, &member, "idle")?;
    let busy = s.run(&s.policy(&future)?, &member, &format!("flow {}", server.words()))?;
    let (quiet, busy) = (quiet.session(s)?, busy.session(s)?);
    until("the flow to flow", patience(), || Ok((server.received().len() > 8).then_some(())))?;
    ensure!(reasons(s, &quiet, "1h")? == ["review-past"], "{:?}", reasons(s, &quiet, "1h")?);
    let idle = until("the quiet one to be idle", patience(), || {
        let quiet = reasons(s, &quiet, "5s")?;
        Ok((quiet == ["review-past", "idle"]).then_some(reasons(s, &busy, "5s")?))
    })?;
    ensure!(idle.is_empty(), "what sends all the time is {idle:?}");
    let rows = s.json(&["ps"])?;
    let row = |session: &str| rows["sessions"].as_array().and_then(|all| all.iter().find(|r| r["id"] == session));
    let idle_ms = |session: &str| row(session).map(|row: &Value| row["idle_ms"].as_u64());
    ensure!(idle_ms(&quiet) > idle_ms(&busy) && idle_ms(&quiet) >= Some(Some(5_000)), "{rows}");
    s.cli(&["ps", "--stale", "--idle", "5"])?.ended(2)?.complained(&["has no unit"])?;
    for session in [&quiet, &busy] {
        s.cli(&["end", session])?.ended(0)?;
    }
    Ok(())
}
