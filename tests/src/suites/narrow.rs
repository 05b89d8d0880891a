//! A live session gets a stricter scope, never a wider one.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::scene::{only, report};
use crate::harness::{prelude::*, server::Server, wait::in_guest};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("narrow::rules-are-removed", WHEREVER, removal),
    Test::sharing("narrow::to-a-stricter-policy", WHEREVER, policy),
    Test::sharing("narrow::never-wider", WHEREVER, wider),
    Test::sharing("narrow::never-to-other-files", WHEREVER, files),
    Test::sharing("narrow::what-cannot-be-narrowed", WHEREVER, bad),
    Test::sharing("narrow::ten-thousand-rules-flip-under-load", WHEREVER, flip),
];

/// Waits for a record of a connect by `session` that was decided so, and is not one of `before`.
fn decided(s: &Sandbox, session: &str, server: &Server, verdict: &str, rule: &str) -> Result<()> {
    let what = format!("{} {verdict} by {rule}", server.address());
    s.wait_evidence(&what, |r| {
        r["session"] == session && r["to"] == server.address() && r["verdict"] == verdict && r["rule"] == rule
    })
    .map(drop)
}

/// The member is the same process before and after; a session with the same policy keeps its scope.
fn removal(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (one, two, member) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?, s.program("member")?);
    let policy = only(&member).to("one", "127.0.0.1/32", one.port()).to("two", "127.0.0.1/32", two.port());
    let policy = s.policy(&policy)?;
    let (answers, others, again) = (s.file("answers"), s.file("others"), s.file("again"));
    let both = format!("connect tcp {} + connect tcp {}", one.words(), two.words());
    let line = |file: &str| format!("report {file} {both} + await {again} {both} + idle");
    let (running, other) = (s.run(&policy, &member, &line(&answers))?, s.run(&policy, &member, &line(&others))?);
    let (session, neighbour) = (running.session(s)?, other.session(s)?);
    ensure!(report(&answers, 2)? == ["ok", "ok"] && report(&others, 2)? == ["ok", "ok"], "before: not both");
    let before = s.json(&["inspect", &session])?;
    ensure!(before["policy"]["revision"] == 1, "a fresh session has revision 1: {}", before["policy"]);

    let narrowed = s.json(&["narrow", &session, "--remove", "two"])?;
    let (from, to) = (&narrowed["from"], &narrowed["to"]);
    ensure!(narrowed["revision"] == 2 && *from == before["policy"]["digest"] && from != to, "{narrowed}");
    fs::write(&again, "now")?;
    ensure!(report(&answers, 4)?[2..] == ["ok", "errno 1"], "after: {:?}", report(&answers, 4)?);
    ensure!(report(&others, 4)?[2..] == ["ok", "ok"], "the other session: {:?}", report(&others, 4)?);
    decided(s, &session, &two, "deny", "default")?;
    decided(s, &session, &one, "allow", "one")?;

    let record = s.wait_evidence("the narrowing", |r| r["type"] == "session-narrowed" && r["session"] == session)?;
    ensure!(record["from"]["digest"] == *from && record["to"]["digest"] == *to, "{record}");
    ensure!(record["removed"][0] == "two" && record["revision"] == 2, "{record}");
    let after = s.json(&["inspect", &session])?;
    ensure!(after["policy"]["revision"] == 2 && after["policy"]["digest"] == *to, "{}", after["policy"]);
    ensure!(after["session"]["pid"] == before["session"]["pid"], "another process: {}", after["session"]);
    ensure!(s.json(&["inspect", &neighbour])?["policy"]["revision"] == 1, "the other session was narrowed too");
    for session in [session, neighbour] {
        s.cli(&["end", &session])?.ended(0)?;
    }
    Ok(())
}

/// Programs and addresses; the text form; twice in a row.
fn policy(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (one, two) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.2")?);
    let (member, tool) = (s.program("member")?, s.program("tool")?);
    let first = Policy::new().allow_dir("all", s.bin()).to("wide", "127.0.0.0/8", "");
    let (answers, again) = (s.file("answers"), s.file("again"));
    let all = format!("connect tcp {} + connect tcp {} + spawn {tool} --work nothing", one.words(), two.words());
    let running =
        s.run(&s.policy(&first)?, &member, &format!("report {answers} {all} + await {again} {all} + idle"))?;
    let session = running.session(s)?;
    ensure!(report(&answers, 3)? == ["ok", "ok", "exit 0"], "before: {:?}", report(&answers, 3)?);
    // a program that a directory allows may be named by its path, a network by a part of it
    let second = Policy::new().allow("self", &member).allow("tool", &tool).to("one", "127.0.0.1/32", "1-65535");
    let told = s.cli(&["narrow", &session, "--policy", &s.policy(&second)?])?;
    told.ended(0)?.told(&["narrowed to revision 2", "policy before", "policy now"])?;
    ensure!(s.json(&["inspect", &session])?["session"]["left_ms"].as_u64() > Some(301_000), "less time than it had");
    let third = Policy::new().ttl("5m").allow("self", &member).to("one", "127.0.0.1/32", one.port());
    s.cli(&["narrow", &session, "--policy", &s.policy(&third)?])?.ended(0)?.told(&["revision 3"])?;
    ensure!(s.json(&["inspect", &session])?["session"]["left_ms"].as_u64() <= Some(300_000), "the longer time holds");
    fs::write(&again, "now")?;
    let refused = super::scene::refused_exec(s);
    ensure!(report(&answers, 6)?[3..] == ["ok", "errno 1", refused], "after: {:?}", report(&answers, 6)?);
    decided(s, &session, &one, "allow", "one")?;
    decided(s, &session, &two, "deny", "default")?;
    s.cli(&["events"])?.ended(0)?.told(&["session-narrowed", "revision 3"])?;
    s.cli(&["end", &session])?.ended(0)?;
    Ok(())
}

fn wider(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (one, member, tool) = (Server::tcp("127.0.0.1")?, s.program("member")?, s.program("tool")?);
    let policy = || only(&member).to("one", "127.0.0.0/8", one.port());
    let base = policy().not_to("not", "127.0.0.2/32", "").deny("no-tool", &tool);
    let (answers, again) = (s.file("answers"), s.file("again"));
    let two = format!("connect tcp 127.0.0.2 {}", one.port());
    let line = format!("report {answers} {two} + await {again} {two} + connect tcp {} + idle", one.words());
    let running = s.run(&s.policy(&base)?, &member, &line)?;
    let session = running.session(s)?;
    ensure!(report(&answers, 1)? == ["errno 1"], "before: {:?}", report(&answers, 1)?);
    let address = format!("the destination 127.0.0.2, port {}", one.port());
    for (wider, part) in [
        (policy(), address.as_str()),
        (base.clone().to("more", "10.0.0.0/8", 443), "the destination 10.0.0.0, port 443"),
        (base.clone().kind("operator"), "destinations that no rule names"),
        (base.clone().observe(), "it only observes"),
        (base.clone().allow("tool", s.program("other")?), "its rule tool allows"),
        (base.clone().net("listen: [{ ports: [80] }]"), "the local address"),
        (base.clone().scope("sockets: { allow: [raw] }"), "sockets of the class raw"),
        (base.clone().scope("unix: { allow: [\"@x\"] }"), "its rule unix.allow[0] allows"),
    ] {
        let refused = s.cli(&["narrow", &session, "--policy", &s.policy(&wider)?])?;
        refused.ended(3)?.complained(&["is wider than the session's", part, "can only be narrowed"])?;
    }
    s.cli(&["narrow", &session, "--remove", "one", "not"])?.ended(3)?.complained(&["rule not denies"])?;
    // nothing of all this changed anything
    let inspect = s.json(&["inspect", &session])?;
    ensure!(inspect["policy"]["revision"] == 1, "{}", inspect["policy"]);
    fs::write(&again, "now")?;
    ensure!(report(&answers, 3)?[1..] == ["errno 1", "ok"], "after: {:?}", report(&answers, 3)?);
    s.cli(&["end", &session])?.ended(0)?;
    ensure!(s.records(&session, "session-narrowed")?.is_empty(), "a refused narrowing was recorded as one");
    Ok(())
}

/// A file that changed since the session began, and files of a glob below a folder that is denied.
fn files(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, tool) = (s.program("member")?, s.program("tool")?);
    s.program("in/tool")?;
    s.program("other/tool")?;
    let pinned = s.policy(&only(&member).allow("tool", &tool))?;
    let glob = |folder: &str| {
        let rule = format!("{{ glob: \"{}/{folder}/*\", id: files }}", s.bin());
        s.policy(&only(&member).exec_rule("allow", &rule))
    };
    let open = s.policy(&Policy::new().kind("operator").deny_dir("in", format!("{}/in", s.bin())))?;
    let (first, second) = (s.run(&pinned, &member, "idle")?, s.run(&open, &member, "idle")?);
    let (first, second) = (first.session(s)?, second.session(s)?);
    let refused = |session: &str, policy: &str, rule: &str| {
        let answer = s.cli(&["narrow", session, "--policy", policy])?;
        answer.ended(3)?.complained(&["is wider than the session's", rule]).map(drop)
    };
    s.cli(&["narrow", &first, "--policy", &pinned])?.ended(0)?;
    let mut file = fs::File::options().append(true).open(&tool)?;
    std::io::Write::write_all(&mut file, b"!")?;
    drop(file);
    refused(&first, &pinned, "its rule tool allows")?;
    refused(&second, &glob("in")?, "its rule files allows")?;
    s.cli(&["narrow", &second, "--policy", &glob("other")?])?.ended(0)?;
    for session in [&first, &second] {
        s.cli(&["end", session])?.ended(0)?;
    }
    Ok(())
}

fn bad(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).to("one", "127.0.0.1/32", 9))?;
    let running = s.run(&policy, &member, "idle")?;
    let session = running.session(s)?;
    let broken = s.policy_text("kind: nothing\n")?;
    for (words, code, part) in [
        (vec!["narrow", "ffffffff", "--remove", "one"], 5, "no live session has an id that begins with"),
        (vec!["narrow", &session], 2, "--policy"),
        (vec!["narrow", &session, "--remove"], 2, "--remove"),
        (vec!["narrow", &session, "--policy", &policy, "--remove", "one"], 2, "cannot be used with"),
        (vec!["narrow", &session, "--remove", "nobody"], 2, "has no rule \"nobody\""),
        (vec!["narrow", &session, "--policy", "/nonexistent"], 2, "cannot read the policy /nonexistent"),
        (vec!["narrow", &session, "--policy", &broken], 2, "apiVersion"),
    ] {
        s.cli(&words)?.ended(code)?.complained(&[part])?;
    }
    // a rule that is gone cannot be removed again
    s.cli(&["narrow", &session, "--remove", "one"])?.ended(0)?;
    s.cli(&["narrow", &session, "--remove", "one"])?.ended(2)?.complained(&["has no rule \"one\""])?;
    s.cli(&["end", &session])?.ended(0)?;
    s.cli(&["narrow", &session, "--remove", "one"])?.ended(5)?.complained(&["no live session"])?;
    Ok(())
}

/// Two members connect in a loop, to ports of which each narrowing denies one more. Whatever a decision met, it was made
/// by one revision as a whole: a port is allowed by its rule until it is denied by its rule, and never by anything else.
fn flip(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let count = if in_guest() { 500 } else { 10_000 };
    let ports = [1001, 1002, 1003];
    // `denied` of the ports by a rule of their own, in the midst of many rules
    let revision = |denied: usize| {
        let each = (0..count).map(|n| (n, format!("10.{}.{}.1/32", n % 200, n / 200)));
        let many = each.fold(only(&member), |policy, (n, net)| policy.to(&format!("r{n}"), &net, 443));
        let open = ports.iter().fold(many, |policy, port| policy.to(&format!("open-{port}"), "127.0.0.0/8", port));
        ports[..denied].iter().fold(open, |policy, port| policy.not_to(&format!("shut-{port}"), "127.0.0.1/32", port))
    };
    let stop = s.file("stop");
    let line = format!("flips {stop} 127.0.0.1 1001 1002 1003");
    let first = s.policy(&revision(0))?;
    let running = [s.run(&first, &member, &line)?, s.run(&first, &member, &line)?];
    let sessions = [running[0].session(s)?, running[1].session(s)?];
    // every member met `verdict` at the port, and so at those before it in its round
    let all_met = |port: u16, verdict: &str| {
        let to = format!("127.0.0.1:{port}");
        sessions.iter().try_for_each(|session| {
            let met = |r: &Value| r["session"] == *session && r["to"] == to && r["verdict"] == verdict;
            s.wait_evidence(&format!("{to} {verdict}"), met).map(drop)
        })
    };
    all_met(ports[2], "allow")?;
    for denied in 1..ports.len() {
        let policy = s.policy(&revision(denied))?;
        for session in &sessions {
            let narrowed = s.json(&["narrow", session, "--policy", &policy])?;
            ensure!(narrowed["revision"] == denied + 1, "{narrowed}");
        }
        all_met(ports[denied - 1], "deny")?;
    }
    fs::write(&stop, "now")?;
    for running in running {
        let finished = running.wait()?;
        let lines: Vec<&str> = finished.stdout.lines().collect();
        for (line, shut) in lines.iter().zip([true, true, false]) {
            // PORT allowed N refused N back N other N
            let counts: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).skip(1).collect();
            let [allowed, refused, back, other] = counts[..] else { anyhow::bail!("not understood: {line}") };
            ensure!(allowed > 0 && (refused > 0) == shut && back == 0 && other == 0, "{lines:?}");
        }
        ensure!(lines.len() == ports.len(), "{lines:?}");
    }
    for session in &sessions {
        s.session_ended(session, "completed")?;
        let seen: BTreeSet<String> = s
            .records(session, "connect")?
            .iter()
            .map(|r| format!("{} {} {}", r["to"], r["verdict"], r["rule"]).replace('"', ""))
            .collect();
        for said in &seen {
            let port = said.split([':', ' ']).nth(1).unwrap_or_default();
            let (open, shut) = (format!("allow open-{port}"), format!("deny shut-{port}"));
            ensure!(said.ends_with(&open) || said.ends_with(&shut), "by neither revision: {said}");
        }
        ensure!(!seen.is_empty(), "no connect was recorded");
    }
    Ok(())
}
