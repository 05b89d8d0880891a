//! Limits beside the time to live: idleness, windows, credentials, warnings, renewal.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::scene::{Fifo, only};
use crate::harness::{
    launch::bare,
    prelude::*,
    server::Server,
    wait::{all_gone, gone, in_guest},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("limits::idle-ends-what-does-nothing", WHEREVER, idle).waiting().agents_own(),
    Test::sharing("limits::bytes-count-as-activity", WHEREVER, bytes).waiting().agents_own(),
    Test::sharing("limits::terminal-counts-as-activity", WHEREVER, terminal).waiting().agents_own(),
    Test::sharing("limits::windows-and-credentials-at-the-start", WHEREVER, at_the_start).agents_own(),
    Test::sharing("limits::credential-ends-its-session", WHEREVER, credential).waiting().agents_own(),
    Test::new("limits::renewed-and-refused", WHEREVER, renewed).waiting().agents_own(),
    Test::sharing("limits::warned-before-the-end", WHEREVER, warned).waiting().agents_own(),
    Test::sharing("limits::nonsense-is-refused", WHEREVER, nonsense).agents_own(),
];

fn secs(native: u64, guest: u64) -> u64 {
    if in_guest() { guest } else { native }
}

/// A moment from now on the wall clock, in whole seconds, as RFC 3339 has it.
pub(super) fn in_seconds(seconds: u64) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    rfc3339(now + seconds)
}

pub(super) fn rfc3339(unix: u64) -> Result<String> {
    let (days, rest) = (i64::try_from(unix / 86_400)?, unix % 86_400);
    // days from civil, the other way round: http://howardhinnant.github.io/date_algorithms.html
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    Ok(format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60))
}

pub(super) fn inspect(s: &Sandbox, session: &str) -> Result<Value> {
    Ok(s.json(&["inspect", session])?["limits"].clone())
}

/// What is woken often enough lives on, and is ended when nobody wakes it any more: with the reason, and not before. What
/// counts as activity is what the policy lists, and nothing else.
fn idle(s: &mut Sandbox) -> Result<()> {
    const WAKES: usize = 8;
    s.start()?;
    let after = secs(2, 12);
    let (member, good, server) = (s.program("member")?, s.program("good")?, Server::udp("127.0.0.1")?);
    let start = |activity: &str, action: &str| -> Result<(Running, String, Vec<Fifo>)> {
        let limit = format!("idle: {{ after: {after}s, activity: [{activity}] }}");
        let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port()).limit(limit);
        let fifos = (0..WAKES).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
        let wakes: Vec<String> = fifos.iter().map(|fifo| format!("fifo {} {action}", fifo.path)).collect();
        let running = s.run(&s.policy(&policy)?, &member, &format!("{} + idle", wakes.join(" + ")))?;
        let session = running.session(s)?;
        Ok((running, session, fifos))
    };
    let (spawn, connect) = (format!("spawn {good} --work nothing"), format!("connect udp {}", server.words()));
    let mut idle = [start("connect", &spawn)?, start("exec", &connect)?];
    let mut busy = [start("exec", &spawn)?, start("connect", &connect)?];
    let limits = inspect(s, &busy[0].1)?;
    ensure!(limits["winner"] == "idle" && limits["idle_ms"] == after * 1000, "inspect says {limits}");
    let start = Instant::now();
    for wake in 0..WAKES {
        busy.iter_mut().chain(&mut idle).try_for_each(|(_, _, fifos)| fifos[wake].wake())?;
        let next = Instant::now() + Duration::from_secs(after) / 4;
        until("a quarter of the idle limit to pass", patience(), || Ok((Instant::now() > next).then_some(())))?;
    }
    let took = start.elapsed();
    for (running, session, _) in &idle {
        ensure!(gone(running.pid()), "a session that did what does not count was not ended within {took:?}");
        s.session_ended(session, "idle")?;
    }
    for (running, ..) in &busy {
        ensure!(!gone(running.pid()), "a session that was busy for {took:?} was ended");
    }
    let last = Instant::now();
    for ((running, session, _), kind) in busy.into_iter().zip(["exec", "connect"]) {
        let end = s.session_ended(&session, "idle")?;
        ensure!(last.elapsed() >= Duration::from_secs(after) / 2, "idle for {:?} only", last.elapsed());
        ensure!(end["produced"][kind].as_u64() >= Some(WAKES as u64), "it did not do what it was woken for: {end}");
        running.wait()?.ended(137)?;
    }
    Ok(())
}

/// Bytes of an open connection are activity where the policy says so, and only there.
fn bytes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let after = secs(2, 12);
    let member = s.program("member")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let start = |activity: &str| -> Result<(Running, TcpStream)> {
        let limit = format!("idle: {{ after: {after}s, activity: [{activity}] }}");
        let policy = only(&member).to("server", "127.0.0.1/32", port).limit(limit);
        let running = s.run(&s.policy(&policy)?, &member, &format!("open 1 tcp 127.0.0.1 {port} idle"))?;
        let (stream, _) = listener.accept()?;
        Ok((running, stream))
    };
    let (idle, mut unheard) = start("exec")?;
    let (busy, mut heard) = start("bytes")?;
    let (busy_session, idle_session) = (busy.session(s)?, idle.session(s)?);
    for _ in 0..8 {
        heard.write_all(b"x")?;
        // its session may be over
        let _ = unheard.write_all(b"x");
        let next = Instant::now() + Duration::from_secs(after) / 4;
        until("a quarter of the idle limit to pass", patience(), || Ok((Instant::now() > next).then_some(())))?;
    }
    ensure!(!gone(busy.pid()), "a session whose connection was busy was ended");
    ensure!(gone(idle.pid()), "bytes kept a session whose policy counts execs only");
    s.session_ended(&idle_session, "idle")?;
    idle.wait()?.ended(137)?;
    s.session_ended(&busy_session, "idle")?;
    busy.wait()?.ended(137)?;
    Ok(())
}

/// Who types is not idle, however little the session does otherwise. The kernel keeps the times of a terminal in steps
/// of eight seconds, so nothing shorter can be asked for.
fn terminal(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let after = secs(11, 24);
    let member = s.program("member")?;
    let limit = format!("idle: {{ after: {after}s, activity: [terminal] }}");
    let policy = s.policy(&only(&member).limit(limit))?;
    let pty = nix::pty::openpty(None, None).context("openpty")?;
    let terminal = nix::unistd::ttyname(&pty.slave).context("ttyname")?.display().to_string();
    let caller = s.tipstaff();
    let mut command = bare(member.as_ref());
    command.args(["--work", "terminal", &terminal, "exec"]).arg(caller.get_program());
    command.args(["run", "--policy", &policy, "--", &member, "--work", "cat"]);
    command.envs(caller.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let running = Running::spawn(s, command, None)?;
    let session = running.session(s)?;
    let typed = Instant::now();
    while typed.elapsed() < Duration::from_secs(after + 9) {
        nix::unistd::write(&pty.master, b"a\n").context("typing")?;
        let next = Instant::now() + Duration::from_secs(1);
        until("a second to pass", patience(), || Ok((Instant::now() > next).then_some(())))?;
        ensure!(!gone(running.pid()), "a session was ended as idle after {:?} of typing", typed.elapsed());
    }
    s.session_ended(&session, "idle")?;
    running.wait()?.ended(137)?;
    // without a terminal there is nothing to wait for, and that is said
    let none = s.run(&policy, &member, "idle")?;
    let session = none.session(s)?;
    s.cli(&["end", &session])?.ended(0)?;
    none.wait()?.complained(&["only a terminal counts as activity, and the session has none"])?;
    Ok(())
}

/// `HH:MM` of a moment of the day, UTC.
pub(super) fn clock(unix: u64) -> String {
    format!("{:02}:{:02}", unix / 3600 % 24, unix / 60 % 60)
}

pub(super) fn now() -> Result<u64> {
    Ok(u64::try_from(clock_gettime(ClockId::CLOCK_REALTIME)?.tv_sec())?)
}

fn at_the_start(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let now = now()?;
    let window = |from: u64, to: u64| format!("windows: [\"{}-{} UTC\"]", clock(from), clock(to));
    // an hour that is not now
    let shut = s.policy(&only(&member).limit(window(now + 7_200, now + 10_800)))?;
    let refused = s.run(&shut, &member, "say in")?.wait()?;
    refused.ended(125)?.complained(&["lets sessions run only at", "the next window opens at 20"])?;
    s.wait_evidence("the refusal", |r| r["type"] == "refused" && r["message"].to_string().contains("only at"))?;
    // closes in an hour or a little more, and is the limit that ends the session
    let open = only(&member).ttl("3h").limit(window(now - 3_600, now + 3_660));
    let running =
        s.launch(&s.policy(&open)?, &member, "idle").flag("--credential-expires", &in_seconds(7_000)?).start()?;
    let session = running.session(s)?;
    let limits = inspect(s, &session)?;
    ensure!(limits["winner"] == "window", "inspect says {limits}");
    let left = limits["left_ms"].as_u64().unwrap_or(0) / 1000;
    ensure!((3_500..=3_720).contains(&left), "{left} s are left of the window");
    let start = s.records(&session, "session-start")?;
    ensure!(start[0]["limits"]["window_closes"].is_string(), "the start names no close: {start:?}");
    s.cli(&["end", &session])?.ended(0)?;
    for (expires, code, part) in
        [("2001-01-01T00:00:00Z", 125, "the credential expired at"), ("soon", 125, "is no time: write RFC 3339")]
    {
        let refused = s.launch(&s.policy(&only(&member))?, &member, "say in").flag("--credential-expires", expires);
        refused.start()?.wait()?.ended(code)?.said("")?.complained(&[part])?;
    }
    Ok(())
}

fn credential(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let expires = in_seconds(secs(6, 15))?;
    let running =
        s.launch(&s.policy(&only(&member))?, &member, "idle").flag("--credential-expires", &expires).start()?;
    let session = running.session(s)?;
    ensure!(inspect(s, &session)?["winner"] == "credential-expired", "another limit wins");
    let start = s.records(&session, "session-start")?;
    let deadline = start[0]["deadline_boot_ns"].as_u64().context("session-start without a deadline")?;
    let end = s.session_ended(&session, "credential-expired")?;
    running.wait()?.ended(137)?;
    ensure!(end["boot_ns"].as_u64() >= Some(deadline), "it ended before its credential did: {end}");
    let late = Duration::from_nanos(end["boot_ns"].as_u64().unwrap_or(0).saturating_sub(deadline));
    ensure!(late < Duration::from_secs(secs(5, 20)), "it ended {late:?} after its credential");
    // its twin without one lives on
    let twin = s.run(&s.policy(&only(&member))?, &member, "say on")?;
    twin.wait()?.ended(0)?.said("on")?;
    Ok(())
}

fn renewed(s: &mut Sandbox) -> Result<()> {
    let config = std::fs::read_to_string(s.folder().join("tipstaff.toml"))?;
    std::fs::write(s.folder().join("tipstaff.toml"), format!("{config}[limits]\nmax_ttl = \"20m\"\n"))?;
    s.start()?;
    let (short, more) = (secs(3, 20), secs(6, 40));
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let running = s.launch(&policy, &member, "idle").ttl(&format!("{short}s")).start()?;
    let session = running.session(s)?;
    let started = Instant::now();
    s.cli(&["renew", &session, "--ttl", &format!("{more}s")])?.ended(0)?;
    let limits = inspect(s, &session)?;
    ensure!(limits["winner"] == "renew", "inspect says {limits}");
    let asked = s.records(&session, "command")?;
    ensure!(asked.first().is_some_and(|r| r["verb"] == "renew" && r["principal"]["uid"] == 0), "recorded: {asked:?}");
    let old = started + Duration::from_secs(short) + Duration::from_millis(500);
    until("the first deadline to pass", patience(), || Ok((Instant::now() > old).then_some(())))?;
    ensure!(!gone(running.pid()), "it was renewed and ended all the same");
    s.session_ended(&session, "ttl")?;
    running.wait()?.ended(137)?;
    s.cli(&["renew", &session])?.ended(5)?.complained(&["no live session", "tipstaff ps"])?;

    let running = s.launch(&policy, &member, "idle").start()?;
    let session = running.session(s)?;
    for (ttl, part) in
        [("11m", "longer than policy test allows; ask for 10m at most"), ("5m", "longer to live than 5m")]
    {
        s.cli(&["renew", &session, "--ttl", ttl])?.ended(3)?.complained(&[part])?;
    }
    s.cli(&["renew", &session, "--ttl", "0s"])?.ended(2)?.complained(&["must be longer than zero"])?;
    s.cli(&["end", &session])?.ended(0)?;

    let fixed = s.run(&s.policy(&only(&member).limit("renew: false"))?, &member, "idle")?;
    let session = fixed.session(s)?;
    s.cli(&["renew", &session])?.ended(3)?.complained(&["forbids to renew", "limits.renew"])?;
    s.cli(&["end", &session])?.ended(0)?;

    // what the policy allows and the host does not
    let long = s.run(&s.policy(&only(&member).ttl("2h"))?, &member, "idle")?;
    let session = long.session(s)?;
    ensure!(inspect(s, &session)?["winner"] == "host cap", "the cap does not win");
    s.cli(&["renew", &session])?.ended(3)?.complained(&["the host's max_ttl of"])?;
    s.cli(&["end", &session])?.ended(0)?;
    long.wait()?.complained(&["a ttl of 2h is over the host's max_ttl: the session lasts 20m"])?;
    Ok(())
}

/// The first process is sent the policy's signal a minute and ten seconds before the end, and the evidence says so.
fn warned(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, caught) = (s.program("member")?, s.file("caught"));
    let policy = s.policy(&only(&member).limit("warn: USR1"))?;
    let ttl = format!("{}s", secs(13, 25));
    let running = s.launch(&policy, &member, &format!("catch 10 {caught} idle")).ttl(&ttl).start()?;
    let session = running.session(s)?;
    // a minute before its end another one is warned, and lives on
    let early = s.file("caught");
    let ttl = format!("{}s", secs(62, 70));
    let longer = s.launch(&policy, &member, &format!("catch 10 {early} idle")).ttl(&ttl).start()?;
    let other = longer.session(s)?;
    let warning = s.wait_evidence("a warning a minute before", |r| r["type"] == "warning" && r["session"] == other)?;
    ensure!(warning["limit"] == "ttl" && warning["signal"] == "SIGUSR1" && warning["delivered"] == true, "{warning}");
    let left = warning["left_ms"].as_u64().unwrap_or(0);
    ensure!((50_000..=60_000).contains(&left), "warned {left} ms before the end");
    until("the first signal to arrive", patience(), || Ok((std::fs::read_to_string(&early)? == "10").then_some(())))?;
    ensure!(!gone(longer.pid()), "a warning ended its session");
    s.cli(&["end", &other])?.ended(0)?;
    let warning = s.wait_evidence("a warning", |r| r["type"] == "warning" && r["session"] == session)?;
    ensure!(warning["limit"] == "ttl" && warning["signal"] == "SIGUSR1" && warning["delivered"] == true, "{warning}");
    let left = warning["left_ms"].as_u64().unwrap_or(0);
    ensure!((5_000..=10_000).contains(&left), "warned {left} ms before the end");
    until("the signal to arrive", patience(), || Ok((std::fs::read_to_string(&caught)? == "10").then_some(())))?;
    s.session_ended(&session, "ttl")?;
    ensure!(s.records(&session, "warning")?.len() == 1, "it was warned more than once");
    all_gone(&[running.pid()])
}

/// Each with one clear message, and nothing starts.
fn nonsense(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let zone = |window: &str| only(&member).limit(format!("windows: [{window}]"));
    for (policy, part) in [
        (only(&member).ttl("0s"), "spec.limits.ttl: \"0s\" must be longer than zero"),
        (only(&member).ttl("-5m"), "spec.limits.ttl: \"-5m\" is no length of time"),
        (zone("\"Mon 08:00-08:00 UTC\""), "\"Mon 08:00-08:00 UTC\" never opens"),
        (zone("\"Mon 08:00-09:00 Europe/Nowhere\""), "unknown time zone \"Europe/Nowhere\""),
        (
            zone("\"Mon 08:00-10:00 UTC\", \"Mon 09:00-11:00 UTC\""),
            "overlaps \"Mon 08:00-10:00 UTC\": write one window",
        ),
        (only(&member).limit("idle: 10ms"), "10ms is too short"),
    ] {
        let path = s.policy(&policy)?;
        s.cli(&["policy", "check", &path])?.ended(2)?.told(&[part])?;
        s.run(&path, &member, "say in")?.wait()?.ended(125)?.said("")?.complained(&[part])?;
    }
    let policy = s.policy(&only(&member))?;
    for (flag, value, part) in [
        ("--ttl", "0", "must be longer than zero"),
        ("--ttl", "1y", "is no length of time"),
        ("--ttl", "-5s", "is no length of time"),
        ("--label", "novalue", "is no label: write key=value"),
        ("--label", "a b=c", "label key \"a b\" is not"),
    ] {
        let refused = s.launch(&policy, &member, "say in").flag(flag, value).start()?.wait()?;
        refused.ended(125)?.said("")?.complained(&[part])?;
    }
    for verb in ["renew", "freeze", "thaw", "end", "inspect"] {
        s.cli(&[verb, "00000000000000000000000000000000"])?.ended(5)?.complained(&["no live session has an id"])?;
    }
    let starts = s.evidence()?.iter().filter(|r| r["type"] == "session-start").count();
    ensure!(starts == 0, "{starts} sessions started");
    Ok(())
}
