//! The verbs that look.

use super::scene::only;
use crate::harness::{prelude::*, runner::running_kernel, wait::in_guest};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("cli::ps-and-inspect-show-a-live-session", WHEREVER, ps_and_inspect).agents_own(),
    Test::sharing("cli::events-follow", WHEREVER, events).agents_own(),
    Test::sharing("cli::status-and-probe-agree", WHEREVER, status_and_probe).each_kernel(),
    Test::sharing("cli::policy-check-accepts", WHEREVER, policy_check).agents_own(),
    Test::sharing("cli::strict-refuses-what-is-unavailable", WHEREVER, strict),
    Test::sharing("cli::refused-lsm-is-tier-no-lsm", NO_LSM, refused_lsm),
];

fn ps_and_inspect(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let session = running.session(s)?;
    let ps = s.json(&["ps"])?;
    let row = ps["sessions"].as_array().and_then(|rows| rows.iter().find(|row| row["id"] == session));
    let row = row.with_context(|| format!("ps does not show session {session}: {ps}"))?;
    ensure!(row["pid"] == running.pid() && row["state"] == "active", "ps shows {row}");
    ensure!(s.cli(&["ps"])?.ended(0)?.stdout.contains(&session[..8]), "the table of ps does not show the session");
    let seen = s.json(&["inspect", &session[..12]])?;
    ensure!(seen["session"]["id"] == session, "inspect shows {seen}");
    let is_member = seen["members"].as_array().is_some_and(|all| all.iter().any(|m| m["pid"] == running.pid()));
    ensure!(is_member, "inspect does not show the member: {seen}");
    s.cli(&["end", &session])?.ended(0)?;
    let ps = s.json(&["ps"])?;
    ensure!(ps["sessions"].as_array().is_some_and(Vec::is_empty), "ps shows an ended session: {ps}");
    Ok(())
}

fn events(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let mut command = s.tipstaff();
    command.args(["events", "-f", "-o", "json"]);
    let follower = Running::spawn(s, command, None)?;
    let running = s.run(&s.policy(&only(&member))?, &member, "say something")?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?;
    s.session_ended(&session, "completed")?;
    until("the follower to see the session's end", patience(), || {
        let said = follower.said();
        Ok(said.lines().any(|line| line.contains("session-end") && line.contains(&session)).then_some(()))
    })?;
    let history = s.cli(&["events", "-o", "json"])?;
    ensure!(history.ended(0)?.stdout.contains(&session), "the history does not show session {session}");
    Ok(())
}

fn status_and_probe(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (status, probe) = (s.json(&["status"])?, s.json(&["probe"])?);
    // on one line, from which `cargo xtask probe` makes the table in docs/probed.md
    println!("TIPSTAFF-PROBE {probe}");
    ensure!(status["tier"] == s.tier.name() && probe["tier"] == s.tier.name(), "{status} {probe}");
    let state = |name: &str| {
        let controls = probe["controls"].as_array();
        controls
            .and_then(|all| all.iter().find(|c| c["control"] == name))
            .map(|c| c["state"].clone())
            .unwrap_or_default()
    };
    for name in ["connect-deny", "send-deny", "packet-drop", "flow-destroy", "listen", "raw-sockets", "budgets"] {
        ensure!(state(name) == "enforced", "control {name} is {}: {probe}", state(name));
    }
    // without LSM programs what decides is a tracepoint, which a kernel can skip
    let expected = if s.tier == Tier::Full { "enforced" } else { "best-effort" };
    for name in ["membership", "exec-deny"] {
        ensure!(state(name) == expected, "control {name} is {}: {probe}", state(name));
    }
    let expected = if s.tier == Tier::Full { "enforced" } else { "unavailable" };
    for name in ["exec-script", "crossed-sockets", "other-sockets"] {
        ensure!(state(name) == expected, "control {name} is {}: {probe}", state(name));
    }
    // without LSM the names of unix sockets are judged, where the kernel asks for that
    let names = if running_kernel()? >= (6, 7) { "best-effort" } else { "unavailable" };
    let expected = if s.tier == Tier::Full { "enforced" } else { names };
    ensure!(state("unix-sockets") == expected, "control unix-sockets is {}: {probe}", state("unix-sockets"));
    // without LSM nobody is asked: what `run` takes away is what is held, and the control says what that leaves
    let best_effort = state("privileges") == "best-effort";
    let why = probe["controls"].to_string();
    let parts = [
        "who is attached",
        "root's own files",
        "limits and priorities",
        "delegation only by the names",
        "in a message",
    ];
    let said = parts.iter().all(|part| why.contains(part));
    ensure!(s.tier == Tier::Full || (best_effort && said), "control privileges: {probe}");
    Ok(())
}

fn policy_check(s: &mut Sandbox) -> Result<()> {
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).to("one", "10.0.0.0/8", "443"))?;
    // it needs no agent
    s.cli(&["policy", "check", &policy])?.ended(0)?;
    Ok(())
}

/// A rule for a script asks for control `exec-script`, which tier no-lsm does not have.
fn strict(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let script = s.file("script");
    std::fs::write(&script, "#!/bin/sh\n")?;
    let policy = only(&member).allow("script", &script);
    let glob = format!("{{ glob: \"{script}*\", id: scripts }}");
    for policy in [&policy, &only(&member).deny("script", &script), &only(&member).exec_rule("deny", &glob)] {
        let finished = s.run(&s.policy(&policy.clone().strict())?, &member, "nothing")?.wait()?;
        if s.tier == Tier::Full {
            finished.ended(0)?;
        } else {
            finished.ended(125)?.complained(&["exec-script", "strict"])?;
            ensure!(s.json(&["ps"])?["sessions"].as_array().is_some_and(Vec::is_empty), "a refused session is there");
        }
    }
    let finished = s.run(&s.policy(&policy)?, &member, "nothing")?.wait()?;
    finished.ended(0)?;
    if s.tier == Tier::NoLsm {
        finished.complained(&["note", "exec-script is unavailable"])?;
    }
    Ok(())
}

/// LSM programs that are refused, or attach and never run, are no failure: the other tier is found, and says why.
fn refused_lsm(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let probe = s.json(&["probe"])?;
    ensure!(probe["tier"] == "no-lsm", "{probe}");
    let exec = probe["controls"].as_array().and_then(|all| all.iter().find(|c| c["control"] == "exec-deny").cloned());
    let exec = exec.unwrap_or_default();
    // the guests' kernels would take such programs, and never run them; the others refuse them
    let reason = if in_guest() { "not among the active security modules" } else { "kernel refused" };
    ensure!(exec["state"] == "best-effort" && exec["why"].to_string().contains(reason), "{reason:?}: {exec}");
    Ok(())
}
