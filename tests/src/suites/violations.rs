//! What the first refusal does to a session whose policy says that it ends it.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use super::scene::{Fifo, only, refusal, refused_exec};
use crate::harness::{prelude::*, server::Server, wait::all_gone};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("violations::first-use-of-what-is-not-listed-ends", WHEREVER, first_use),
    Test::new("violations::the-one-after-so-many-ends", WHEREVER, so_many),
    Test::sharing("violations::each-part-by-itself", WHEREVER, parts),
    Test::sharing("violations::strangers-end-nothing", WHEREVER, strangers),
];

/// A program that is not listed does not run, and the session is gone; where it is recorded only, the session goes on.
fn first_use(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    for (on, ends) in [("end", true), ("record", false), ("{ exec: end }", true), ("{ net: end }", false)] {
        let [ran, mark, pid, after] = [s.file("ran"), s.file("mark"), s.file("pid"), s.file("after")];
        let line = format!(
            "background pid {pid} idle + await {pid} spawn {good} --work mark {ran} + spawn {bad} --work mark {mark} + \
             count {after}"
        );
        let running = s.run(&s.policy(&policy.clone().spec(format!("on: {{ violation: {on} }}")))?, &member, &line)?;
        let session = running.session(s)?;
        let beside = s.pid_in(&pid)?;
        s.saw_exec(&session, &bad, refusal(s), "default")?;
        if ends {
            s.session_ended(&session, "violation")?;
            running.wait()?.ended(137)?;
            all_gone(&[beside])?;
        } else {
            let said = format!("exit 0\n{}\n", refused_exec(s));
            until("the member to go on", patience(), || {
                Ok((running.said() == said && Path::new(&after).exists()).then_some(()))
            })?;
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
        ensure!(Path::new(&ran).exists() && !Path::new(&mark).exists(), "{on}: what is listed runs, and nothing else");
    }
    Ok(())
}

/// With four that are let pass by a session goes on, whatever they are of, and ends with the fifth, one that an agent reads which
/// was not there for those before.
fn so_many(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bad) = (s.program("member")?, s.program("bad")?);
    for address in ["127.0.0.1", "::1"] {
        let (closed, mark, mut fifo) = (Server::udp(address)?, s.file("mark"), Fifo::new(s)?);
        let policy = s.policy(&only(&member).spec("budgets: { denials: 4 }"))?;
        let line = format!(
            "connect-many 3 {0} + spawn {bad} --work mark {mark} + fifo {1} connect udp {0} + idle",
            closed.words(),
            fifo.path
        );
        let running = s.run(&policy, &member, &line)?;
        let session = running.session(s)?;
        let said = format!("0 done 3 refused\n{}\n", refused_exec(s));
        until("the member to have tried", patience(), || Ok((running.said() == said).then_some(())))?;
        s.saw_exec(&session, &bad, refusal(s), "default")?;
        s.kill_agent()?;
        s.start()?;
        ensure!(s.json(&["inspect", &session])?["session"]["state"] == "active", "it ended with the fourth refusal");
        fifo.wake()?;
        s.session_ended(&session, "violation")?;
        let denied = s.records(&session, "connect")?.iter().filter(|r| r["verdict"] == "deny").count();
        ensure!(denied == 4, "{denied} connects are recorded as refused");
        closed.untouched()?;
        running.wait()?.ended(137)?;
    }
    Ok(())
}

/// Each part of the scope has a word of its own; what is used up is no violation.
fn parts(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bad) = (s.program("member")?, s.program("bad")?);
    let (good, closed) = (Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = only(&member)
        .to("good", "127.0.0.1/32", good.port())
        .spec("budgets: { connects: 1 }")
        .spec("on: { violation: { net: end, exec: record } }");
    let (mut fifo, mark) = (Fifo::new(s)?, s.file("mark"));
    let line = format!(
        "connect udp {0} + connect udp {0} + spawn {bad} --work mark {mark} + fifo {1} connect udp {2} + idle",
        good.words(),
        fifo.path,
        closed.words()
    );
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    let said = format!("ok\nerrno 1\n{}\n", refused_exec(s));
    until("the member to have tried", patience(), || Ok((running.said() == said).then_some(())))?;
    s.wait_evidence("what was used up", |r| r["session"] == session && r["rule"] == "budget-connects")?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    ensure!(s.json(&["inspect", &session])?["session"]["state"] == "active", "it has ended by what is only recorded");
    fifo.wake()?;
    s.session_ended(&session, "violation")?;
    s.saw_connect(&session, &closed.address(), "deny", "default")?;
    closed.untouched()?;
    running.wait()?.ended(137).map(drop)
}

/// Who may not come in is refused and recorded, and an open flow is cut when the scope is narrowed; the session goes on, until
/// a member does what it may not.
fn strangers(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, closed, open) = (s.program("member")?, Server::udp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let policy = only(&member)
        .to("open", "127.0.0.1/32", open.port())
        .net("listen: allow")
        .net("inbound: deny")
        .spec("on: { violation: end }");
    let (file, idle, mut fifo) = (s.file("port"), Fifo::new(s)?, Fifo::new(s)?);
    let line = format!(
        "background hold {} {} + background serve 127.0.0.1 {file} idle + fifo {} connect udp {} + idle",
        open.words(),
        idle.path,
        fifo.path,
        closed.words()
    );
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    let port = until("the member to listen", patience(), || {
        Ok(fs::read_to_string(&file).ok().and_then(|text| text.parse::<u16>().ok()))
    })?;
    let came = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_millis(700));
    ensure!(came.is_err(), "a stranger came in");
    open.accepted(1)?;
    s.cli(&["narrow", &session, "--remove", "open"])?.ended(0)?;
    open.reset(1)?;
    let since = Instant::now();
    s.wait_evidence("who came", |r| r["session"] == session && r["via"] == "accept" && r["verdict"] == "deny")?;
    // the counts are looked at once a second, and the record was read
    until("another look at the counts", patience(), || Ok((since.elapsed() > Duration::from_secs(2)).then_some(())))?;
    ensure!(s.json(&["inspect", &session])?["session"]["state"] == "active", "a stranger ended the session");
    fifo.wake()?;
    s.session_ended(&session, "violation")?;
    closed.untouched()?;
    running.wait()?.ended(137).map(drop)
}
