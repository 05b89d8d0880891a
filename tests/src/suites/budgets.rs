//! What all members of a session together may use up.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    time::Instant,
};

use super::{
    losses::REFUSALS,
    scene::{Fifo, only},
    sockets::FAMILIES,
    wire::RST,
};
use crate::harness::{
    capture::{Capture, own_network},
    launch::Finished,
    prelude::*,
    server::Server,
    wait::all_gone,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("budgets::cut-in-the-kernel", WHEREVER, budgets),
    Test::sharing("budgets::all-members-share-each", WHEREVER, shared),
    Test::sharing("budgets::bytes-of-a-moved-member", FULL, moved),
    Test::sharing("budgets::bytes-of-one-second-after-another", WHEREVER, seconds),
    Test::sharing("budgets::a-stream-that-is-over-its-bytes", WHEREVER, stream),
    Test::new("budgets::no-place-for-a-destination", NO_LSM, places).agents_own(),
    Test::sharing("budgets::end-where-asked", WHEREVER, ends),
    Test::new("budgets::end-though-the-agent-was-away", WHEREVER, ends_later),
];

/// Counted in the kernel, with the agent stopped: a loop of 10,000 connects is cut at the bound.
fn budgets(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = |budgets: &str| {
        let policy = only(&member).to("loopback", "127.0.0.0/8", "").to("loopback6", "::1/128", "");
        s.policy(&policy.spec(format!("budgets: {{ {budgets} }}")))
    };
    loops(s, &member, &policy)?;
    FAMILIES.into_iter().zip(PLACES).try_for_each(|((ip, _), (_, headers))| bytes(s, &member, &policy, ip, headers))?;
    let server = Server::udp("127.0.0.1")?;
    let cases = [
        (
            "destinations: 2",
            "connect udp 127.0.0.1 9 + connect udp 127.0.0.2 9 + connect udp 127.0.0.3 9 + connect udp 127.0.0.1 9",
            "ok\nok\nerrno 1\nok",
            "budget-destinations",
        ),
        // an address is one, however it is written
        (
            "destinations: 1",
            "connect udp 127.0.0.1 9 + connect udp ::ffff:127.0.0.1 9 + connect udp ::ffff:127.0.0.2 9",
            "ok\nok\nerrno 1",
            "budget-destinations",
        ),
        // what one budget refuses uses nothing of another up
        (
            "destinations: 1, connectsPerSecond: 2",
            "connect udp 127.0.0.1 9 + connect-many 40 127.0.0.2 9 + connect udp 127.0.0.1 9",
            "ok\n0 done 40 refused\nok",
            "budget-destinations",
        ),
    ];
    for (budget, line, expected, rule) in cases {
        // a socket of the port, so that no ICMP error comes back
        let _sink = UdpSocket::bind(("127.0.0.1", 0))?;
        let line = line.replace("127.0.0.1 9", &server.words());
        let running = s.run(&policy(budget)?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(expected)?;
        s.wait_evidence(rule, |r| r["session"] == session && r["rule"] == rule)?;
    }
    let began = Instant::now();
    let many = s.run(&policy("connectsPerSecond: 10")?, &member, &format!("connect-many 2000 {}", server.words()))?;
    let session = many.session(s)?;
    let said = many.wait()?.stdout;
    let seconds = began.elapsed().as_secs();
    let number = |at: usize| said.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok()).context("no count");
    let (done, refused) = (number(0)?, number(2)?);
    // the first second and the last may be of the clock's for a part only
    ensure!(done >= 10 && done <= 10 * (seconds + 2) && refused > 0, "{said} in {seconds} s");
    s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-connect-rate")?;
    Ok(())
}

/// Of datagrams, each with so many bytes of headers, as many leave as the budget has bytes for; a connect is told where its
/// first segment would be dropped, which would wait for minutes.
fn bytes(s: &Sandbox, member: &str, policy: &dyn Fn(&str) -> Result<String>, ip: &str, headers: usize) -> Result<()> {
    let (server, listener) = (Server::udp(ip)?, Server::tcp(ip)?);
    let sends = |count: u32, size: u32| format!("send-many {count} {size} {}", server.words());
    let connects = format!("{} + connect tcp {}", sends(5, 1000), listener.words());
    let (four, segments) = (4 * (1000 + headers), 64 * (1 + headers));
    let cut = format!("send-segments 64 {}", server.words());
    for (budget, line, expected, rule) in [
        (format!("egressBytes: {}", four + 1000), sends(20, 1000), "4 done 16 refused", "budget-egress"),
        // a first segment has up to 80 bytes
        (format!("egressBytes: {}", four + 78), connects.clone(), "4 done 1 refused\nerrno 1", "budget-egress"),
        (format!("egressBytes: {}", four + 1000), connects, "4 done 1 refused\nok", "budget-egress"),
        // each datagram that a message is cut into has headers on the wire
        (format!("egressBytes: {}", segments - 1), cut.clone(), "errno 1", "budget-egress"),
        (
            format!("egressBytes: {segments}"),
            format!("{cut} + {}", sends(1, 1)),
            "ok\n0 done 1 refused",
            "budget-egress",
        ),
        // what was too large uses nothing up
        (
            format!("egressBytesPerSecond: {}", four - 1),
            format!("{} + {}", sends(1, 8000), sends(3, 1000)),
            "0 done 1 refused\n3 done 0 refused",
            "budget-egress-rate",
        ),
    ] {
        let running = s.run(&policy(&budget)?, member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(expected).with_context(|| format!("{budget} by {ip}"))?;
        s.wait_evidence(rule, |r| r["session"] == session && r["rule"] == rule)?;
    }
    listener.accepted(1)
}

/// Of each family addresses of loopback, and the bytes of a datagram's headers.
const PLACES: [([&str; 4], usize); 2] = [
    (["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"], 28),
    (["::1", "fd00:33::2", "fd00:33::3", "fd00:33::4"], 48),
];

/// All members have one budget together, of each kind and in each family.
fn shared(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&PLACES[1].0[1..])?;
    for (places, headers) in PLACES {
        let server = Server::udp(places[0])?;
        let scope = only(&member).to("four", "127.0.0.0/8", "").to("six", "::/0", "");
        let policy = |budget: &str| s.policy(&scope.clone().spec(format!("budgets: {{ {budget} }}")));
        let connects = |count: u32| format!("connect-many {count} {}", server.words());
        let sends = |count: u32| format!("send-many {count} 1000 {}", server.words());
        let bytes = 25 * (1000 + headers);
        for (budget, line, rule) in [
            ("connects: 25".to_owned(), connects(20), "budget-connects"),
            (format!("egressBytes: {bytes}"), sends(20), "budget-egress"),
        ] {
            let (session, done) = together(s, &policy(&budget)?, &member, &line)?;
            ensure!(done == 25, "two members with {budget} did {done}");
            s.wait_evidence(rule, |r| r["session"] == session && r["rule"] == rule)?;
        }
        server.accepted(25)?;
        let port = server.port();
        let visit = |place: &&str| format!("background connect-many 1 {place} {port}");
        let (there, back) = (places.iter().map(visit), places.iter().rev().map(visit));
        let line = there.chain(back).collect::<Vec<_>>().join(" + ");
        let (session, _) = finished(s, &policy("destinations: 3")?, &member, &line, 8)?;
        s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-destinations")?;
        let all = s.records(&session, "connect")?;
        let visited: BTreeSet<String> =
            all.iter().filter(|r| r["verdict"] == "allow").map(|r| r["to"].to_string()).collect();
        ensure!(visited.len() == 3, "with 3 destinations, members were at {visited:?}");
        for (budget, line, rule) in [
            ("connectsPerSecond: 10".to_owned(), connects(2000), "budget-connect-rate"),
            (format!("egressBytesPerSecond: {}", 10 * (1000 + headers)), sends(2000), "budget-egress-rate"),
        ] {
            let began = Instant::now();
            let (session, done) = together(s, &policy(&budget)?, &member, &line)?;
            let most = 10 * (began.elapsed().as_secs() + 2);
            ensure!((10..=most).contains(&done), "two members with {budget} did {done}, at most {most} are right");
            s.wait_evidence(rule, |r| r["session"] == session && r["rule"] == rule)?;
        }
    }
    Ok(())
}

/// Of a socket that no program sees on its packets, the messages count, without headers.
fn moved(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, elsewhere) = (s.program("member")?, s.part("elsewhere").path().display().to_string());
    for (address, prefix) in FAMILIES {
        let server = Server::udp(address)?;
        let scope = only(&member).to("server", prefix, server.port());
        let sends = format!("cgroup {elsewhere} send-many 20 1000 {}", server.words());
        for (budget, said, rule) in [
            ("egressBytes: 5120", "5 done 15 refused", "budget-egress"),
            ("egressBytes: 20000", "20 done 0 refused", ""),
            ("egressBytesPerSecond: 2500", "", "budget-egress-rate"),
        ] {
            let policy = s.policy(&scope.clone().spec(format!("budgets: {{ {budget} }}")))?;
            let running = s.run(&policy, &member, &sends)?;
            let session = running.session(s)?;
            let finished = running.wait()?;
            if !said.is_empty() {
                finished.said(said).with_context(|| format!("{budget}, {address}"))?;
            }
            if !rule.is_empty() {
                s.wait_evidence(rule, |r| r["session"] == session && r["rule"] == rule)?;
            }
        }
    }
    Ok(())
}

/// Two members at once, each with the same line that counts; the session, and what both did.
fn together(s: &Sandbox, policy: &str, member: &str, line: &str) -> Result<(String, u64)> {
    finished(s, policy, member, &format!("background {line} + background {line}"), 2)
}

/// Runs a line whose so many children count, and then ends the session; the session, and what all of them did.
fn finished(s: &Sandbox, policy: &str, member: &str, line: &str, children: usize) -> Result<(String, u64)> {
    let running = s.run(policy, member, &format!("{line} + idle"))?;
    let session = running.session(s)?;
    let done = until("all members to be done", patience(), || {
        let said = running.said();
        let counts = said.lines().filter(|line| line.ends_with("refused"));
        let counts: Vec<u64> = counts.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
        Ok((counts.len() == children).then_some(counts))
    })?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    Ok((session, done.iter().sum()))
}

/// A second's bytes, and then the next one's: no more, and no less where a member always has something to send.
fn seconds(s: &mut Sandbox) -> Result<()> {
    const SECONDS: u64 = 2;
    s.start()?;
    let member = s.program("member")?;
    for ((address, prefix), (_, headers)) in FAMILIES.into_iter().zip(PLACES) {
        let server = Server::udp(address)?;
        let budget = format!("budgets: {{ egressBytesPerSecond: {} }}", 10 * (1000 + headers));
        let policy = s.policy(&only(&member).to("server", prefix, server.port()).spec(budget))?;
        let began = Instant::now();
        let running = s.run(&policy, &member, &format!("send-through {SECONDS} 1000 {}", server.words()))?;
        let session = running.session(s)?;
        let said = running.wait()?.stdout;
        let most = 10 * (began.elapsed().as_secs() + 2);
        let number =
            |at: usize| said.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok()).context("no count");
        let (done, refused) = (number(0)?, number(2)?);
        ensure!((10 * SECONDS + 1..=most).contains(&done), "{said}, at most {most} are right");
        ensure!(refused >= SECONDS, "{said}");
        server.accepted(usize::try_from(done)?)?;
        s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-egress-rate")?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

/// Of a stream that is over its session's bytes no more than the budget leaves, and its sender is told, also where each message
/// would fit and the kernel joins them; without BPF LSM nobody is told, and the connection is destroyed. What is within it arrives.
fn stream(s: &mut Sandbox) -> Result<()> {
    const BUDGET: usize = 60_000;
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    // what is more than all bytes by itself is refused in tier full before any of it leaves
    let ways = if s.tier == Tier::Full { &["", "joined "][..] } else { &["", "joined ", "whole "] };
    let ways = FAMILIES.into_iter().flat_map(|family| ways.iter().map(move |way| (family, *way)));
    for ((address, prefix), way) in ways {
        let (over, within) = (Server::tcp(address)?, Server::tcp(address)?);
        let policy = only(&member).to("over", prefix, over.port()).to("within", prefix, within.port());
        let policy = s.policy(&policy.spec(format!("budgets: {{ egressBytes: {BUDGET} }}")))?;
        wire.left()?;
        let running = s.run(&policy, &member, &format!("stream {} {way}{}", 4 * BUDGET, over.words()))?;
        let session = running.session(s)?;
        let told = if s.tier == Tier::Full { libc::EPERM } else { libc::ECONNABORTED };
        running.wait()?.said(&format!("errno {told}")).with_context(|| format!("{way}{address}"))?;
        if s.tier == Tier::NoLsm {
            // who waited was let go by the end of the connection, of which the peer learnt too
            let cut = s.wait_evidence("the cut", |r| r["type"] == "flows-cut" && r["session"] == session)?;
            let receipt = &cut["sockets"][0];
            let right = cut["cause"] == "budget" && receipt["outcome"] == "destroyed" && receipt["gone"] == true;
            ensure!(right && cut["sockets"].as_array().is_some_and(|all| all.len() == 1), "{way}{address}: {cut}");
        }
        s.session_ended(&session, "completed")?;
        s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-egress")?;
        until("something to arrive", patience(), || Ok((!over.received().is_empty()).then_some(())))?;
        let packets = wire.left()?;
        let to_server = || packets.iter().filter(|p| p.to_port == over.port());
        ensure!(
            s.tier == Tier::Full || to_server().any(|p| p.flags & RST != 0 && p.payload == 0),
            "{way}{address}: the peer was not told"
        );
        let left: Vec<usize> = to_server().filter(|p| p.payload > 0).map(|p| p.bytes.len()).collect();
        let (left, received) = (left.iter().sum::<usize>(), over.received().len());
        ensure!(received > 0 && received <= left && left <= BUDGET, "{left} bytes left, {received} arrived");
        let running = s.run(&policy, &member, &format!("stream {} {way}{}", BUDGET / 2, within.words()))?;
        running.wait()?.said("ok")?;
        until("all to arrive", patience(), || Ok((within.received().len() == BUDGET / 2).then_some(())))?;
    }
    FAMILIES.into_iter().try_for_each(|(address, prefix)| reader(s, &member, address, prefix))
}

/// Who waits for what comes in is let go as well, once nothing is acknowledged any more.
fn reader(s: &Sandbox, member: &str, address: &str, prefix: &str) -> Result<()> {
    let (source, sink) = (TcpListener::bind((address, 0))?, Server::udp(address)?);
    source.set_nonblocking(true)?;
    let to = source.local_addr()?;
    let policy = only(member).to("source", prefix, to.port()).to("sink", prefix, sink.port());
    let policy = s.policy(&policy.spec("budgets: { egressBytes: 9000 }"))?;
    let line = format!("read-when-spent {} {} {}", to.ip(), to.port(), sink.words());
    let running = s.run(&policy, member, &line)?;
    let session = running.session(s)?;
    let (mut stream, _) = until("the member to come", patience(), || Ok(source.accept().ok()))?;
    until("all bytes to be used up", patience(), || Ok((running.said() == "spent\n").then_some(())))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"more")?;
    running.wait()?.said(&format!("spent\nerrno {}", libc::ECONNABORTED)).with_context(|| address.to_owned())?;
    let told = stream.read(&mut [0]).expect_err("the member has sent something");
    ensure!(told.kind() == std::io::ErrorKind::ConnectionReset, "the peer was told {told}");
    s.wait_evidence("the cut", |r| r["session"] == session && r["cause"] == "budget").map(drop)
}

/// A loop of 10,000 connects, of both families, by UDP and by TCP, with the agent stopped: so many in all; and so many in each second
/// that it takes.
fn loops(s: &Sandbox, member: &str, policy: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    for ip in ["127.0.0.1", "::1"] {
        let (server, listener) = (Server::udp(ip)?, Server::tcp(ip)?);
        for to in [server.words(), format!("tcp {}", listener.words())] {
            let (fifo, pid) = (Fifo::new(s)?, s.file("pid"));
            let line = format!("pid {pid} fifo {} connect-many 10000 {to}", fifo.path);
            let total = s.run(&policy("connects: 25")?, member, &line)?;
            let session = total.session(s)?;
            s.pid_in(&pid)?;
            cut_when_stopped(s, fifo, total)?.said("25 done 9975 refused").with_context(|| to.clone())?;
            s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-connects")?;
            fs::remove_file(&pid)?;
        }
        listener.accepted(25)?;
        let (fifo, pid) = (Fifo::new(s)?, s.file("pid"));
        let line = format!("pid {pid} fifo {} connect-many 10000 {}", fifo.path, server.words());
        let began = Instant::now();
        let rate = s.run(&policy("connectsPerSecond: 20")?, member, &line)?;
        let session = rate.session(s)?;
        s.pid_in(&pid)?;
        let finished = cut_when_stopped(s, fifo, rate)?;
        let most = 20 * (began.elapsed().as_secs() + 2);
        let done: u64 = finished.stdout.split(' ').next().unwrap_or_default().parse()?;
        ensure!((20..=most).contains(&done), "{done} connects where {most} have their second: {finished:?}");
        s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-connect-rate")?;
    }
    Ok(())
}

/// Lets a workload go on while the agent is stopped.
fn cut_when_stopped(s: &Sandbox, mut fifo: Fifo, running: Running) -> Result<Finished> {
    s.signal_agent(nix::sys::signal::Signal::SIGSTOP)?;
    fifo.wake()?;
    let finished = running.wait();
    s.signal_agent(nix::sys::signal::Signal::SIGCONT)?;
    finished
}

/// Where the sessions with such a budget have been everywhere that there is a place for, another is refused a new one, and has
/// it when the first is over.
fn places(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = |count: u32| {
        let policy = only(&member).to("loopback", "127.0.0.0/8", "");
        s.policy(&policy.spec(format!("budgets: {{ destinations: {count} }}")))
    };
    let mut fifo = Fifo::new(s)?;
    let first = s.run(&policy(65_536)?, &member, &format!("visit 65536 9 + fifo {} visit 65537 9", fifo.path))?;
    let one = first.session(s)?;
    until("all to be visited", patience(), || Ok((!first.said().is_empty()).then_some(())))?;
    let other = s.run(&policy(5)?, &member, "visit 2 9")?;
    let two = other.session(s)?;
    other.wait()?.said("0 done 2 refused")?;
    s.wait_evidence("the refusal", |r| r["session"] == two && r["rule"] == "fault" && r["verdict"] == "deny")?;
    fifo.wake()?;
    first.wait()?.said("65536 done 0 refused\n65536 done 1 refused")?;
    s.session_ended(&one, "completed")?;
    s.run(&policy(5)?, &member, "visit 2 9")?.wait()?.said("2 done 0 refused").map(drop)
}

/// Each budget has a verdict of its own: what is refused ends the session, or it does not.
fn ends(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    s.program("member")?;
    for ip in ["127.0.0.1", "::1"] {
        ends_in(s, ip).with_context(|| format!("by {ip}"))?;
    }
    Ok(())
}

fn ends_in(s: &Sandbox, ip: &str) -> Result<()> {
    let (member, server) = (format!("{}/member", s.bin()), Server::udp(ip)?);
    let policy = |spec: &str| only(&member).to("loopback", "127.0.0.0/8", "").to("loopback6", "::1/128", "").spec(spec);
    let connects = format!("connect-many 9 {} + idle", server.words());
    let bytes = format!("send-many 20 1000 {} + idle", server.words());
    let visits = "visit 3 9 + idle".to_owned();
    let both = "connects: 5, egressBytes: 5120";
    for (budgets, on, line, rule, end) in [
        (both, "{ budget: end }", &connects, "budget-connects", true),
        (both, "{ budget: deny }", &connects, "budget-connects", false),
        (both, "{ budget: { connects: end, egressBytes: deny } }", &bytes, "budget-egress", false),
        (both, "{ budget: { connects: deny, egressBytes: end } }", &bytes, "budget-egress", true),
        ("connectsPerSecond: 2", "{ budget: end }", &connects, "budget-connect-rate", true),
        ("connectsPerSecond: 2", "{ budget: deny }", &connects, "budget-connect-rate", false),
        ("destinations: 2", "{ budget: end }", &visits, "budget-destinations", true),
        ("destinations: 2", "{ budget: deny }", &visits, "budget-destinations", false),
        ("egressBytesPerSecond: 4000", "{ budget: end }", &bytes, "budget-egress-rate", true),
        ("egressBytesPerSecond: 4000", "{ budget: deny }", &bytes, "budget-egress-rate", false),
    ] {
        let policy = policy(&format!("budgets: {{ {budgets} }}")).spec(format!("on: {on}"));
        let running = s.run(&s.policy(&policy)?, &member, line)?;
        let session = running.session(s)?;
        s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == rule)?;
        if end {
            s.session_ended(&session, "budget").with_context(|| format!("{on}, {rule}"))?;
            all_gone(&[running.pid()])?;
            continue;
        }
        until("all to be tried", patience(), || Ok(running.said().contains("refused").then_some(())))?;
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator").with_context(|| format!("{on}, {rule}"))?;
    }
    // what is only observed ends nothing, and nothing ends as long as there is some left
    for (policy, line, said) in [
        (policy("budgets: { connects: 5 }").observe(), connects.replace(" + idle", ""), "9 done 0 refused"),
        (policy("budgets: { connects: 9 }"), connects.replace(" + idle", ""), "9 done 0 refused"),
    ] {
        let running = s.run(&s.policy(&policy.spec("on: { budget: end }"))?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(said)?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

/// What was used up, was against the policy, or moved, while no agent ran, ends the session when one runs again, also where no
/// record of it is left.
fn ends_later(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bad) = (s.program("member")?, Server::udp("127.0.0.1")?);
    let servers = [Server::udp("127.0.0.1")?, Server::udp("::1")?];
    let (mut full, mut fifos) = (Fifo::new(s)?, [Fifo::new(s)?, Fifo::new(s)?]);
    let policy = only(&member).to("loopback", "127.0.0.0/8", "").to("loopback6", "::1/128", "");
    let policy = policy.spec("budgets: { connects: 5 }");
    let end = s.policy(&policy.clone().spec("on: { budget: end }"))?;
    let mut ends = Vec::new();
    for (fifo, server) in fifos.iter().zip(&servers) {
        let line = format!("fifo {} connect-many 9 {} + idle", fifo.path, server.words());
        let running = s.run(&end, &member, &line)?;
        ends.push((running.session(s)?, running));
    }
    let moves = s.run(&s.policy(&only(&member).spec("on: { moved: end }"))?, &member, "idle")?;
    let stays = s.run(&s.policy(&policy)?, &member, "idle")?;
    let line = format!("fifo {} flood {REFUSALS} {} + idle", full.path, bad.words());
    let fills = s.run(&s.policy(&only(&member).spec("on: { violation: end }"))?, &member, &line)?;
    let other = stays.session(s)?;
    let others = [(fills.session(s)?, "violation"), (moves.session(s)?, "context-changed")];
    s.kill_agent()?;
    full.wake()?;
    let said = format!("0 of {REFUSALS}\n");
    until("the ring to be full", 4 * patience(), || Ok((fills.said() == said).then_some(())))?;
    s.part("elsewhere").take(moves.pid())?;
    for ((_, running), fifo) in ends.iter().zip(&mut fifos) {
        fifo.wake()?;
        until("the budget to be used up", patience(), || {
            Ok(running.said().contains("5 done 4 refused").then_some(()))
        })?;
    }
    s.start()?;
    for (session, _) in &ends {
        let end = s.session_ended(session, "budget")?;
        let refused = s.records(session, "connect")?.iter().filter(|r| r["rule"] == "budget-connects").count();
        ensure!(refused == 0 && end["lost"]["connect"].as_u64() >= Some(4), "{refused} refusals are told, and {end}");
    }
    others.iter().try_for_each(|(session, reason)| s.session_ended(session, reason).map(drop))?;
    all_gone(&[ends[0].1.pid(), ends[1].1.pid(), fills.pid(), moves.pid()])?;
    bad.untouched()?;
    s.cli(&["end", &other])?.ended(0)?;
    s.session_ended(&other, "operator").map(drop)
}
