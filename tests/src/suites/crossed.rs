//! Sockets that were made elsewhere, where the programs on cgroups are attached to the root (in a guest, the tree's; else
//! the confinement): what a member may not use puts nothing on the wire, and nobody else notices.

use std::{
    fs,
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
};

use serde_json::Value;

use super::{
    attach::{attach, session_of, workload},
    cut::{flows_are_cut, told},
    scene::{Fifo, attach_to, only, reach},
    sockets::closed,
    wire::{FAMILIES, Family, member, wire},
};
use crate::harness::{
    capture::Capture, cgroup::Cgroup, descriptors, launch::bare, mounts::cgroup2, prelude::*, runner::running_kernel,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[Test::new("crossed::seen-from-the-root", WHEREVER, from_root)];

fn prefix(family: &Family) -> &'static str {
    if family.good.contains(':') { "::1/128" } else { "127.0.0.1/32" }
}

/// One agent, and each way in which a socket crosses.
fn from_root(s: &mut Sandbox) -> Result<()> {
    attach_to(s, "root")?;
    let wire = wire(s)?;
    says_so(s)?;
    for family in &FAMILIES {
        made_before(s, &wire, family).context("made before")?;
        inherited(s, &wire, family).context("inherited")?;
        ended(s, family).context("ended")?;
        passed_on(s, &wire, family).context("passed on")?;
        passed_in(s, &wire, family).context("passed in")?;
    }
    moved(s).context("moved")?;
    // what an attached workload had connected before, and what of it waits to be sent
    let begin = |_: &Policy, line: &str| workload(s, &member(s), line);
    let attached = |running: &Running, policy: &Policy| {
        let policy = policy.clone().spec("attach: { sockets: keep }");
        session_of(&attach(s, &s.policy(&policy)?, running.pid())?)
    };
    flows_are_cut(s, &wire, &FAMILIES, begin, attached).context("attached")
}

fn says_so(s: &Sandbox) -> Result<()> {
    let (status, probe) = (s.json(&["status"])?, s.json(&["probe"])?);
    ensure!(status["attach"] == "root" && probe["attach"] == "root", "{status} {probe}");
    let controls = probe["controls"].as_array().context("no controls")?;
    let own = controls.iter().find(|control| control["control"] == "crossed-sockets").context("no such control")?;
    let state = if s.tier == Tier::Full { "enforced" } else { "best-effort" };
    ensure!(own["state"] == state && own["why"].to_string().contains("attached to the root"), "{own}");
    let start = s.evidence()?.into_iter().find(|record| record["type"] == "agent-start");
    ensure!(start.as_ref().is_some_and(|start| start["attach"] == "root"), "{start:?}");
    Ok(())
}

/// A socket from before its user joined is refused its first address, in scope or not; one that is made then goes there. A
/// stranger in the same tree does the same with both, and is let alone.
fn made_before(s: &Sandbox, wire: &Capture, family: &Family) -> Result<()> {
    let (server, stream) = (Server::udp(family.good)?, Server::tcp(family.good)?);
    let policy = only(&member(s)).to("server", prefix(family), server.port());
    let running = s.run(&s.policy(&policy)?, &member(s), "idle")?;
    let session = running.session(s)?;
    ensure!(s.json(&["inspect", &session])?["attach"] == "root", "inspect does not say where the programs are");
    let newcomer = |rest: &str| -> Result<(Running, Fifo)> {
        let (pid, fifo) = (s.file("pid"), Fifo::new(s)?);
        let mut command = bare(member(s).as_ref());
        let line = format!("--work early {pid} {} {} {rest}", fifo.path, server.words());
        command.args(line.split_whitespace());
        let newcomer = Running::spawn(s, command, None)?;
        s.pid_in(&pid)?;
        Ok((newcomer, fifo))
    };
    let (insider, mut fifo) = newcomer(&format!("+ send {} + idle", server.words()))?;
    let homes = s.part("sessions").descendants();
    let home = homes.into_iter().find(|cgroup| cgroup.processes().contains(&running.pid()));
    home.context("the session has no cgroup of its own")?.take(insider.pid())?;
    wire.left()?;
    fifo.wake()?;
    until("the insider's answers", patience(), || Ok((insider.said() == "errno 1\nok\n").then_some(())))?;
    let kind = if s.tier == Tier::Full { "socket" } else { "connect" };
    let fits = |r: &Value| r["session"] == session && r["type"] == kind && r["rule"] == "crossed-socket";
    s.wait_evidence("the refusal", |r| fits(r) && r["verdict"] == "deny")?;
    server.accepted(1)?;
    let sent = wire.left()?.iter().filter(|packet| packet.to_port == server.port()).count();
    ensure!(sent == 1, "{sent} datagrams left where one was to");
    // what it was refused to use, and holds still, is destroyed at the next look
    let cut = s.wait_evidence("the end of that socket", |r| {
        r["session"] == session && r["type"] == "flows-cut" && r["cause"] == "crossed"
    })?;
    let receipts = cut["sockets"].as_array().map_or(&[][..], Vec::as_slice);
    ensure!(receipts.len() == 1 && receipts[0]["outcome"] == "destroyed", "{cut}");
    let (stranger, mut fifo) = newcomer(&format!("+ send {} + connect tcp {}", server.words(), stream.words()))?;
    s.part("elsewhere").take(stranger.pid())?;
    fifo.wake()?;
    stranger.wait()?.said("ok\nok\nok")?;
    server.accepted(3)?;
    stream.accepted(1)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}

/// Makes a socket where the programs see it: they are attached to the confinement where there is one, and this process is
/// not in it.
fn in_tree<T>(s: &Sandbox, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let line = fs::read_to_string("/proc/self/cgroup")?;
    let own = line.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup")?;
    let home = Cgroup::at(cgroup2()?.join(own));
    s.part("elsewhere").take(std::process::id())?;
    let made = make();
    home.take(std::process::id())?;
    made
}

/// Both ends of a connection.
fn pair(s: &Sandbox, address: &str) -> Result<(TcpStream, TcpStream)> {
    in_tree(s, || {
        let listener = TcpListener::bind((address, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        client.set_read_timeout(Some(patience()))?;
        let server = listener.accept()?.0;
        server.set_read_timeout(Some(patience()))?;
        Ok((client, server))
    })
}

/// A connection that a command has as its descriptor 0 carries what the rules let it carry: to where it went, or, by a rule,
/// to who came.
fn inherited(s: &Sandbox, wire: &Capture, family: &Family) -> Result<()> {
    let (ip, net) = (family.good, prefix(family));
    let (write, file) = ("descriptor 0", "descriptor 0 sendfile");
    for (scope, came_in, way, passes) in [
        ("out", false, write, true),
        ("in", true, write, true),
        ("none", false, write, false),
        ("out", false, file, true),
        ("none", false, file, false),
    ] {
        let (client, server) = pair(s, ip)?;
        let port = server.local_addr()?.port();
        let (own, mut other) = if came_in { (server, client) } else { (client, server) };
        let to = own.peer_addr()?.port();
        let policy = match scope {
            "out" => only(&member(s)).to("peer", net, port),
            "in" => only(&member(s)).net(format!("inbound: [{{ from: '{ip}', ports: [{port}] }}]")),
            _ => only(&member(s)).spec("run: { sockets: keep }"),
        };
        wire.left()?;
        let running = s.launch(&s.policy(&policy)?, &member(s), way).input(own).start()?;
        let session = running.session(s)?;
        // before 6.5 no hook of BPF LSM sees sendfile(2): what it queues is silenced
        let seen = way == write || running_kernel()? >= (6, 5);
        let refused = !passes && s.tier == Tier::Full && seen;
        running.wait()?.said(if refused { "socket errno 1" } else { "socket ok" }).context(scope)?;
        s.session_ended(&session, "completed")?;
        let carried = wire.left()?.iter().any(|packet| packet.to_port == to && packet.payload > 0);
        ensure!(carried == passes, "{scope}, {way}: a packet left: {carried}");
        if passes {
            ensure!(other.read(&mut [0; 2])? == 1, "{scope}: nothing arrived");
        }
    }
    Ok(())
}

/// Such a connection is destroyed when its session ends, and when it is not in a narrower scope.
fn ended(s: &Sandbox, family: &Family) -> Result<()> {
    for cause in ["narrow", "end"] {
        let (client, mut server) = pair(s, family.good)?;
        let (from, to) = (client.local_addr()?, client.peer_addr()?);
        let policy = only(&member(s)).to("peer", prefix(family), to.port());
        let running = s.launch(&s.policy(&policy)?, &member(s), "descriptor 0 + idle").input(client).start()?;
        let session = running.session(s)?;
        ensure!(server.read(&mut [0; 2])? == 1, "nothing arrived");
        if cause == "narrow" {
            s.cli(&["narrow", &session, "--remove", "peer"])?.ended(0)?;
            told(&mut server)?;
        }
        s.cli(&["end", &session])?.ended(0)?;
        if cause == "end" {
            told(&mut server)?;
        }
        s.session_ended(&session, "operator")?;
        let cut = s.records(&session, "flows-cut")?;
        let receipt = cut.iter().find(|record| record["cause"] == cause).map(|record| &record["sockets"][0]);
        let receipt = receipt.with_context(|| format!("no receipt for {cause}: {cut:?}"))?;
        ensure!(receipt["from"] == from.to_string() && receipt["to"] == to.to_string(), "{receipt}");
        ensure!(receipt["outcome"] == "destroyed" && receipt["gone"] == true, "{receipt}");
        drop(running);
    }
    Ok(())
}

/// A member that left its cgroup makes sockets elsewhere: they are its session's all the same.
fn moved(s: &Sandbox) -> Result<()> {
    let (member, elsewhere) = (member(s), s.part("elsewhere").path().display().to_string());
    for family in &FAMILIES {
        let (good, bad) = (Server::tcp(family.good)?, Server::udp(family.good)?);
        let policy = only(&member).to("server", prefix(family), good.port());
        let line = format!("cgroup {elsewhere} send {}", bad.words());
        reach(s, &policy, &member, &line)?.was_refused(s, &bad, "default")?;
        let line = format!("cgroup {elsewhere} connect tcp {}", good.words());
        reach(s, &policy, &member, &line)?.arrived(s, &good, "server")?;
    }
    Ok(())
}

/// A connection that somebody passes in does not arrive (tier full); without LSM it is destroyed at the next look, in scope
/// or not, and carries nothing after that.
fn passed_in(s: &Sandbox, wire: &Capture, family: &Family) -> Result<()> {
    let server = Server::tcp(family.good)?;
    let name = closed(s)?.join("giver").display().to_string();
    let listener = UnixListener::bind(&name)?;
    fs::set_permissions(&name, PermissionsExt::from_mode(0o666))?;
    let socket = in_tree(s, || Ok(OwnedFd::from(TcpStream::connect((family.good, server.port()))?)))?;
    let giver = std::thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept()?;
        descriptors::pass(&stream, b"x", &[socket.as_raw_fd()])
    });
    let policy =
        only(&member(s)).to("server", prefix(family), server.port()).scope(format!("unix: {{ allow: [{name}] }}"));
    let running = s.run(&s.policy(&policy)?, &member(s), &format!("take-flow {name}"))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    giver.join().map_err(|_panic| anyhow::anyhow!("the giver died"))??;
    if s.tier == Tier::Full {
        finished.said("none")?;
        let fits = |r: &Value| r["session"] == session && r["type"] == "socket" && r["rule"] == "crossed-socket";
        s.wait_evidence("the refusal", fits)?;
        ensure!(server.received().is_empty(), "{:?} was received", server.received());
        return Ok(());
    }
    finished.said(&format!("errno {}", libc::ECONNABORTED))?;
    server.reset(1)?;
    s.session_ended(&session, "completed")?;
    let cut = s.records(&session, "flows-cut")?;
    let receipt = cut.iter().find(|record| record["cause"] == "crossed").map(|record| &record["sockets"][0]);
    ensure!(receipt.is_some_and(|r| r["to"] == server.address() && r["outcome"] == "destroyed"), "{cut:?}");
    let sent: Vec<_> = wire.left()?.into_iter().filter(|packet| packet.to_port == server.port()).collect();
    let reset = sent.last().is_some_and(|packet| packet.flags & super::wire::RST != 0 && packet.payload == 0);
    ensure!(reset, "the last packet is no bare reset: {:?}", sent.last());
    Ok(())
}

/// A member's socket that it passes to a stranger reaches what the session reaches and no more.
fn passed_on(s: &Sandbox, wire: &Capture, family: &Family) -> Result<()> {
    let (good, bad) = (Server::udp(family.good)?, Server::udp(family.good)?);
    let policy = only(&member(s)).to("server", prefix(family), good.port());
    let name = s.file("taker");
    let running = s.run(&s.policy(&policy)?, &member(s), &format!("hand-out {name} {} + idle", good.words()))?;
    let session = running.session(s)?;
    // not bound yet, or not listening
    let passed = || descriptors::receive(&UnixStream::connect(&name)?);
    let taken =
        until("the member's socket", patience(), || Ok(passed().ok().and_then(|mut passed| passed.files.pop())))?;
    good.accepted(1)?;
    wire.left()?;
    let sent = UdpSocket::from(taken).send_to(b"x", bad.address());
    let answer = sent.err().and_then(|error| error.raw_os_error());
    ensure!(answer == Some(libc::EPERM), "a stranger with a member's socket was answered {answer:?}");
    let out = wire.left()?.into_iter().find(|packet| packet.to_port == bad.port());
    ensure!(out.is_none(), "a packet left: {out:?}");
    bad.untouched()?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}
