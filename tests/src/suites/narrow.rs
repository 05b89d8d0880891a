//! A live session gets a stricter scope, never a wider one.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::scene::{only, report};
use crate::harness::{disk::on_disk, mounts::Mounted, prelude::*, server::Server, wait::in_guest};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("narrow::rules-are-removed", WHEREVER, removal),
    Test::sharing("narrow::to-a-stricter-policy", WHEREVER, policy).agents_own(),
    Test::sharing("narrow::never-wider", WHEREVER, wider).agents_own(),
    Test::sharing("narrow::never-to-other-files", WHEREVER, files),
    Test::sharing("narrow::what-cannot-be-narrowed", WHEREVER, bad).agents_own(),
    Test::new("narrow::phases-only-take-away", WHEREVER, phases).agents_own(),
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

/// A pipeline that builds and then signs: from then on the tool and the address of the build are denied, the signer and its
/// service work, in the same processes, with another agent too; and there is no way back.
fn phases(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (forge, service) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let (member, push, signer) = (s.program("member")?, s.program("push")?, s.program("signer")?);
    let part = "phases: { build: [member, push, forge, signer], sign: [member, signer, service], done: [member] }";
    let scope = only(&member).allow("push", &push).allow("signer", &signer).not_to("never", "127.0.0.3/32", "");
    let scope = scope.to("forge", "127.0.0.1/32", forge.port()).to("service", "127.0.0.1/32", service.port());
    let policy = s.policy(&scope.clone().spec(part))?;
    s.cli(&["policy", "check", &policy])?.ended(0)?.told(&["phase sign keeps member, service, signer"])?;
    let wrong = s.policy(&scope.spec("phases: { sign: [member, sinner] }"))?;
    s.cli(&["policy", "check", &wrong])?
        .ended(2)?
        .told(&[":9:28: spec.phases.sign[1]: no rule has the id \"sinner\""])?;

    let pids = s.file("pids");
    let rounds = [s.file("answers"), s.file("again"), s.file("once-more")];
    let all = format!(
        "pid {pids} spawn {push} --work nothing + spawn {signer} --work nothing + connect tcp {} + connect tcp {}",
        forge.words(),
        service.words()
    );
    let [answers, again, more] = &rounds;
    let line = format!("report {answers} {all} + await {again} {all} + await {more} {all} + idle");
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    ensure!(report(answers, 4)? == ["exit 0", "exit 0", "ok", "ok"], "before: {:?}", report(answers, 4)?);
    let before = s.json(&["inspect", &session])?;
    ensure!(before["policy"]["phase"].is_null() && before["policy"]["phases"].to_string().contains("sign"), "{before}");
    let members = |shown: &Value| shown["members"].clone();

    let narrowed = s.json(&["narrow", &session, "--to", "sign"])?;
    ensure!(narrowed["phase"] == "sign" && narrowed["revision"] == 2, "{narrowed}");
    ensure!(narrowed["removed"] == serde_json::json!(["forge", "push"]), "{narrowed}");
    fs::write(again, "now")?;
    let refused = super::scene::refused_exec(s);
    let held = [refused, "exit 0", "errno 1", "ok"];
    ensure!(report(answers, 8)?[4..] == held, "after: {:?}", report(answers, 8)?);
    decided(s, &session, &forge, "deny", "default")?;
    decided(s, &session, &service, "allow", "service")?;
    s.saw_exec(&session, &signer, "allow", "signer")?;
    let record = s.wait_evidence("the narrowing", |r| r["type"] == "session-narrowed" && r["session"] == session)?;
    ensure!(record["phase"] == "sign" && record["to"]["digest"] == narrowed["to"], "{record}");

    s.kill_agent()?;
    s.start()?;
    let after = s.json(&["inspect", &session])?;
    ensure!(after["policy"]["phase"] == "sign" && members(&after) == members(&before), "with another agent: {after}");
    s.cli(&["inspect", &session])?.ended(0)?.told(&["sign, of build, done, sign"])?;
    for (phase, code, part) in [
        ("build", 3, "phase build has rule forge, which phase sign took"),
        ("sign", 3, "is in phase sign already"),
        ("ship", 2, "has no phase \"ship\": its phases are build, done, sign"),
    ] {
        s.cli(&["narrow", &session, "--to", phase])?.ended(code)?.complained(&[part])?;
    }
    fs::write(more, "now")?;
    ensure!(report(answers, 12)?[8..] == held, "with another agent: {:?}", report(answers, 12)?);
    // what an operator took away does not come back with a phase that has it
    s.cli(&["narrow", &session, "--remove", "member"])?.ended(0)?;
    let done = s.cli(&["narrow", &session, "--to", "done"])?;
    done.ended(0)?.told(&["revision 4, phase done"])?.complained(&["removed before", "member"])?;
    s.cli(&["end", &session])?.ended(0)?;
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
    let digest = format!("{{ path: \"{tool}\", sha256: \"{}\", id: bound }}", "0".repeat(64));
    for (wider, part) in [
        (policy(), address.as_str()),
        (base.clone().to("more", "10.0.0.0/8", 443), "the destination 10.0.0.0, port 443"),
        (base.clone().kind("operator"), "destinations that no rule names"),
        (base.clone().observe(), "it only observes"),
        (base.clone().allow("tool", s.program("other")?), "its rule tool allows"),
        (base.clone().allow("later", "/no/such/program"), "its rule later allows what can come to be"),
        (base.clone().exec_rule("allow", &digest), "its rule bound allows what can come to be"),
        (base.clone().net("listen: [{ ports: [80] }]"), "the local address"),
        (base.clone().scope("sockets: { allow: [raw] }"), "sockets of the class raw"),
        (base.clone().scope("privileges: { allow: [mount] }"), "the privilege mount"),
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
    // a rule with a digest denies the file with any other, in a directory that is allowed
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let kept = format!("{disk}/bound");
    fs::copy(&tool, &kept)?;
    let digest: String = Sha256::digest(fs::read(&kept)?).iter().map(|byte| format!("{byte:02x}")).collect();
    let rule = format!("{{ path: \"{kept}\", sha256: \"{digest}\", id: pinned }}");
    let bound = only(&member).allow_dir("all", &disk).exec_rule("allow", &rule);
    let third = s.run(&s.policy(&bound)?, &member, "idle")?;
    let third = third.session(s)?;
    let free = s.policy(&only(&member).allow_dir("all", &disk))?;
    for words in [["--remove", "pinned"], ["--policy", &free]] {
        let refused = s.cli(&[&["narrow", third.as_str()][..], &words].concat())?;
        refused.ended(3)?.complained(&["would run with any", "sha256"])?;
    }
    s.cli(&["narrow", &third, "--remove", "all"])?.ended(0)?;
    s.cli(&["narrow", &third, "--remove", "pinned"])?.ended(0)?;
    s.cli(&["end", &third])?.ended(0)?;
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

/// Two members connect in a loop, by TCP and by UDP, to ports of which each narrowing denies one more. Whatever a decision met, it was made
/// by one revision as a whole: a port is allowed by its rule until it is denied by its rule, and never by anything else.
fn flip(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    s.program("member")?;
    flip_over(s, "127.0.0.1", ["127.0.0.0/8", "127.0.0.1/32"]).context("over IPv4")?;
    flip_over(s, "::1", ["::1/128", "::/0"]).context("over IPv6")
}

/// The address, a network with it that is allowed, and one that is denied.
fn flip_over(s: &Sandbox, ip: &str, [open_to, shut_to]: [&str; 2]) -> Result<()> {
    let member = format!("{}/member", s.bin());
    // an emulated processor reads 10,000 for longer than a caller waits for its answer
    let count = if in_guest() { 3_000 } else { 10_000 };
    let ports = [1001, 1002, 1003];
    // `denied` of the ports by a rule of their own, in the midst of many rules
    let revision = |denied: usize| {
        let each = (0..count).map(|n| (n, format!("10.{}.{}.1/32", n % 200, n / 200)));
        let many = each.fold(only(&member), |policy, (n, net)| policy.to(&format!("r{n}"), &net, 443));
        let open = ports.iter().fold(many, |policy, port| policy.to(&format!("open-{port}"), open_to, port));
        ports[..denied].iter().fold(open, |policy, port| policy.not_to(&format!("shut-{port}"), shut_to, port))
    };
    let stop = s.file("stop");
    let line = |protocol: &str| format!("flips {stop} {protocol} {ip} 1001 1002 1003");
    let address = ip.parse::<IpAddr>()?;
    let first = s.policy(&revision(0))?;
    // two sessions of so many rules have no room in a guest: there one has both loops
    let loops = if in_guest() { &["both"][..] } else { &["tcp", "udp"] };
    let running = loops.iter().map(|loops| s.run(&first, &member, &line(loops))).collect::<Result<Vec<_>>>()?;
    let sessions = running.iter().map(|running| running.session(s)).collect::<Result<Vec<_>>>()?;
    // every member met `verdict` at the port, and so at those before it in its round
    let all_met = |port: u16, verdict: &str| {
        let to = SocketAddr::new(address, port).to_string();
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
        for (line, shut) in lines.iter().zip([true, true, false].into_iter().cycle()) {
            // PORT allowed N refused N cut N back N other N error N
            let counts: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).skip(1).collect();
            let [allowed, refused, cut, back, other, _] = counts[..] else { anyhow::bail!("not understood: {line}") };
            ensure!(allowed > 0 && (refused > 0) == shut && back == 0 && other == 0, "{lines:?}");
            // one that had begun when its port was shut was refused by the later rules, and nothing else is
            ensure!(cut <= u64::from(shut), "{lines:?}");
        }
        ensure!(lines.len() * loops.len() == 2 * ports.len(), "{lines:?}");
    }
    for session in &sessions {
        s.session_ended(session, "completed")?;
        let seen: BTreeSet<String> = s
            .records(session, "connect")?
            .iter()
            .map(|r| format!("{} {} {}", r["to"], r["verdict"], r["rule"]).replace('"', ""))
            .collect();
        for said in &seen {
            let port = said.split(' ').next().and_then(|to| to.rsplit(':').next()).unwrap_or_default();
            let (open, shut) = (format!("allow open-{port}"), format!("deny shut-{port}"));
            ensure!(said.ends_with(&open) || said.ends_with(&shut), "by neither revision: {said}");
        }
        ensure!(!seen.is_empty(), "no connect was recorded");
    }
    Ok(())
}
