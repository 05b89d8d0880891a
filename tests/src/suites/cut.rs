//! How an open flow ends on the wire when its session does, or when it is out of a narrower scope: with a reset that carries
//! nothing, whatever was waiting to be sent.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt},
        time::TimeVal,
    },
};
use serde_json::Value;

use super::{
    scene::only,
    wire::{FAMILIES, Family, RST, member, wire},
};
use crate::harness::{
    capture::{Capture, Packet, own_network},
    prelude::*,
    server::Server,
    wait::all_gone,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("wire::cut-flow-ends-with-a-bare-reset", WHEREVER, cut),
    Test::sharing("flows::narrowing-cuts-who-may-not-come-in", WHEREVER, callers),
    Test::new("wire::silent-where-nothing-is-destroyed", WHEREVER, silenced)
        .since((6, 9), "the right to attach programs to cgroups by CAP_SYS_ADMIN in the place of CAP_NET_ADMIN"),
];

/// `CAP_NET_ADMIN` (`linux/capability.h`), without which the kernel destroys nobody's sockets, as one does that was built
/// without `CONFIG_INET_DIAG_DESTROY`.
const NET_ADMIN: libc::c_ulong = 12;

/// IPv4 by sockets of IPv6.
const MAPPED: Family = Family { good: "::ffff:127.0.0.1", ..FAMILIES[0] };

/// Two flows of a member to ports that one rule each allows: one is idle, of the other the peer's window is closed.
struct Pair {
    idle: Server,
    listener: TcpListener,
    file: String,
    mark: String,
}

impl Pair {
    fn new(s: &Sandbox, address: &str, name: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        Ok(Self { idle: Server::tcp(address)?, listener, file: s.file("taken"), mark: format!("queued-{name}-") })
    }

    fn ports(&self) -> Result<[u16; 2]> {
        Ok([self.idle.port(), self.listener.local_addr()?.port()])
    }

    fn words(&self, address: &str) -> Result<String> {
        let [idle, stuffed] = self.ports()?;
        Ok(format!(
            "background open 1 tcp {address} {idle} idle + background stuff {} {} {address} {stuffed}",
            self.file, self.mark
        ))
    }

    /// Waits until both are open, and the kernel asks whether the peer reads again. What it holds back has never left.
    fn ready(&self, wire: &Capture) -> Result<TcpStream> {
        let (stream, _) = self.listener.accept()?;
        until("the idle flow to have carried a byte", patience(), || {
            Ok((self.idle.received().len() == 1).then_some(()))
        })?;
        let taken: usize = until("the kernel to take no more", patience(), || {
            Ok(fs::read_to_string(&self.file).ok().and_then(|text| text.parse().ok()))
        })?;
        let port = stream.local_addr()?.port();
        let mut carried = 0;
        until("the window to be closed", patience(), || {
            let left: Vec<Packet> = wire.left()?.into_iter().filter(|packet| packet.to_port == port).collect();
            carried += left.iter().map(|packet| packet.payload).sum::<usize>();
            Ok(left.last().is_some_and(|packet| packet.payload == 0).then_some(()))
        })?;
        ensure!(carried < taken, "of {taken} bytes {carried} left: none waits");
        Ok(stream)
    }

    /// Both ended with one reset; nothing was carried, and nothing came after it.
    fn was_cut(&self, left: &[Packet]) -> Result<()> {
        let waits = left.iter().find(|packet| packet.has(&self.mark));
        ensure!(waits.is_none(), "what waited to be sent left: {waits:?}");
        for port in self.ports()? {
            let own: Vec<&Packet> = left.iter().filter(|packet| packet.to_port == port).collect();
            let resets = own.iter().filter(|packet| packet.flags & RST != 0).count();
            let last = own.last().is_some_and(|packet| packet.flags & RST != 0);
            ensure!(resets == 1 && last, "not one reset, and as the last: {own:?}");
            ensure!(own.iter().all(|packet| packet.payload == 0), "a packet that carries something: {own:?}");
            // until the mark the kernel may have asked once more whether the peer reads
            ensure!(own.len() == 1 || port != self.idle.port(), "more than a reset: {own:?}");
        }
        Ok(())
    }
}

/// Of sockets that a member made.
fn cut(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let begin = |policy: &Policy, line: &str| s.run(&s.policy(policy)?, &member(s), line);
    flows_are_cut(s, &wire, &FAMILIES, begin, |running, _| running.session(s))?;
    flows_are_cut(s, &wire, &[MAPPED], begin, |running, _| running.session(s)).context("mapped")
}

/// By an agent that can destroy no socket: what is cut is silent all the same, and control and receipts say so.
fn silenced(s: &mut Sandbox) -> Result<()> {
    let mut daemon = s.daemon();
    let lay_down = || {
        // SAFETY: integers only.
        Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, NET_ADMIN, 0, 0, 0) }).map(drop)
    };
    // SAFETY: between fork and exec it makes one system call.
    unsafe { daemon.pre_exec(move || Ok(lay_down()?)) };
    s.start_as(daemon)?;
    let status = s.json(&["status"])?;
    let control = status["controls"].as_array().into_iter().flatten().find(|c| c["control"] == "flow-destroy");
    ensure!(control.is_some_and(|c| c["state"] == "unavailable"), "not unavailable: {control:?}");
    s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    for (address, prefix) in [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")] {
        let (pair, kept) = (Pair::new(s, address, "silent")?, Server::tcp(address)?);
        let [a, b] = pair.ports()?;
        let talks = TcpListener::bind((address, 0))?;
        let d = talks.local_addr()?.port();
        let policy =
            only(&member(s)).to("a", prefix, a).to("b", prefix, b).to("c", prefix, kept.port()).to("d", prefix, d);
        let line = format!(
            "{} + background open 1 tcp {} idle + background chat {address} {d} + idle",
            pair.words(address)?,
            kept.words()
        );
        let running = s.run(&s.policy(&policy)?, &member(s), &line)?;
        let (mut talker, _) = talks.accept()?;
        talker.read_exact(&mut [0])?;
        let mut stream = pair.ready(&wire)?;
        until("the other flow", patience(), || Ok((kept.received().len() == 1).then_some(())))?;
        let session = running.session(s)?;
        wire.left()?;
        s.cli(&["narrow", &session, "--remove", "a", "b", "d"])?.ended(0)?;
        // the peer's window opens
        stream.set_nonblocking(true)?;
        while stream.read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {}
        // what comes in does not arrive: the peer's kernel says it again
        talker.write_all(b"late")?;
        let mut left = Vec::new();
        until("what the peer says to be said again", patience(), || {
            left.extend(wire.left()?);
            let said = left.iter().filter(|p| p.from_port == d && p.payload > 0).count();
            Ok((said >= 2).then_some(()))
        })?;
        ensure!(!running.said().contains("received"), "what comes in by a cut flow arrives: {}", running.said());
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator")?;
        all_gone(&[running.pid()])?;
        left.extend(wire.left()?);
        let carries = left.iter().find(|p| [a, b, d, kept.port()].contains(&p.to_port) && p.payload > 0);
        ensure!(carries.is_none(), "a packet left: {carries:?}");
        let cut = s.records(&session, "flows-cut")?;
        for (port, cause) in [(a, "narrow"), (b, "narrow"), (d, "narrow"), (kept.port(), "end")] {
            let to = SocketAddr::new(address.parse()?, port).to_string();
            let said = |r: &Value| r["to"] == to && r["outcome"] == "silenced" && r["why"].is_string();
            let own = cut.iter().filter(|r| r["cause"] == cause).filter_map(|r| r["sockets"].as_array());
            ensure!(own.flatten().any(said), "no receipt for {to} by {cause}: {cut:?}");
        }
    }
    Ok(())
}

/// Narrowing first, which leaves the flows in scope alone, then the end. `begin` starts what does a line of words, under a
/// policy; `session` names the session that it is in once the flows are open.
pub(super) fn flows_are_cut(
    s: &Sandbox,
    wire: &Capture,
    families: &[Family],
    begin: impl Fn(&Policy, &str) -> Result<Running>,
    session: impl Fn(&Running, &Policy) -> Result<String>,
) -> Result<()> {
    let member = member(s);
    for family in families {
        let (first, second) = (Pair::new(s, family.good, "first")?, Pair::new(s, family.good, "second")?);
        // the rules and the receipts have the address as the wire has it
        let on_wire = family.good.parse::<IpAddr>()?.to_canonical();
        let prefix = if on_wire.is_ipv6() { "::1/128" } else { "127.0.0.1/32" };
        let ([a, b], [c, d]) = (first.ports()?, second.ports()?);
        let policy = only(&member).to("a", prefix, a).to("b", prefix, b).to("c", prefix, c).to("d", prefix, d);
        let line = format!("{} + {} + idle", first.words(family.good)?, second.words(family.good)?);
        let running = begin(&policy, &line)?;
        let (mut one, mut two) = (first.ready(wire)?, second.ready(wire)?);
        let session = session(&running, &policy)?;
        wire.left()?;
        s.cli(&["narrow", &session, "--remove", "a", "b"])?.ended(0)?;
        first.idle.reset(1)?;
        told(&mut one)?;
        let left = wire.left()?;
        first.was_cut(&left)?;
        let other = left.iter().find(|p| [c, d].contains(&p.to_port) && (p.flags & RST != 0 || p.payload != 0));
        ensure!(other.is_none(), "a flow in scope was cut: {other:?}");
        s.cli(&["end", &session])?.ended(0)?;
        second.idle.reset(1)?;
        told(&mut two)?;
        s.session_ended(&session, "operator")?;
        let left = wire.left()?;
        second.was_cut(&left)?;
        ensure!(!left.iter().any(|packet| [a, b].contains(&packet.to_port)), "what was cut went on: {left:?}");
        for ports in [first.ports()?, second.ports()?] {
            let receipt = |port: u16| {
                let cut = s.records(&session, "flows-cut")?;
                let mut all = cut.iter().filter_map(|r| r["sockets"].as_array()).flatten();
                let to = SocketAddr::new(on_wire, port).to_string();
                Ok::<_, anyhow::Error>(all.any(|r| r["to"] == to && r["outcome"] == "destroyed" && r["gone"] == true))
            };
            ensure!(receipt(ports[0])? && receipt(ports[1])?, "no receipt for {ports:?}");
        }
    }
    Ok(())
}

/// Of who came in, the one whose rule is taken away is cut, and nobody comes by that rule any more; the other goes on.
/// Without the rule of the listener nobody comes, and who is there goes on.
fn callers(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&["fd00:55::1", "fd00:55::2", "fd00:55::3"])?;
    for [own, goes, stays] in [["127.0.0.1", "127.0.0.2", "127.0.0.3"], ["fd00:55::1", "fd00:55::2", "fd00:55::3"]] {
        let inbound = format!("inbound: [{{ from: \"{goes}\", id: goes }}, {{ from: \"{stays}\", id: stays }}]");
        let policy = only(&member).net(format!("listen: [{{ on: \"{own}\", id: place }}]")).net(inbound);
        let file = s.file("port");
        let running = s.run(&s.policy(&policy)?, &member, &format!("host {own} {file}"))?;
        let session = running.session(s)?;
        let port = until("the member to listen", patience(), || {
            Ok(fs::read_to_string(&file).ok().and_then(|text| text.parse::<u16>().ok()))
        })?;
        let to = SocketAddr::new(own.parse()?, port);
        let (mut lost, mut kept) = (call(goes, to)?, call(stays, to)?);
        answered(&mut lost).and_then(|()| answered(&mut kept)).context("before")?;
        let removed = |rule: &str| -> Result<Vec<Value>> {
            let before = s.records(&session, "flows-cut")?.len();
            s.cli(&["narrow", &session, "--remove", rule])?.ended(0)?;
            let records = s.records(&session, "flows-cut")?.split_off(before);
            ensure!(records.iter().all(|r| r["cause"] == "narrow"), "{records:?}");
            Ok(records.iter().filter_map(|r| r["sockets"].as_array()).flatten().cloned().collect())
        };
        let cut = removed("goes")?;
        told(&mut lost)?;
        let caller = lost.local_addr()?.to_string();
        let whole = |r: &Value| r["from"] == to.to_string() && r["outcome"] == "destroyed" && r["gone"] == true;
        ensure!(cut.len() == 1 && whole(&cut[0]) && cut[0]["to"] == caller, "{caller} has the receipts {cut:?}");
        answered(&mut kept).context("who is in scope")?;
        ensure!(call(goes, to).is_err(), "{goes} comes in without a rule");
        let refused = |r: &Value| r["session"] == session && r["via"] == "accept" && r["verdict"] == "deny";
        s.wait_evidence("who may not come in any more", refused)?;
        answered(&mut call(stays, to)?).context("who comes by the other rule")?;
        let cut = removed("place")?;
        ensure!(cut.len() == 1 && whole(&cut[0]), "the listener has the receipts {cut:?}");
        ensure!(call(stays, to).is_err(), "somebody came to a listener out of scope");
        answered(&mut kept).context("who is in scope, without the listener")?;
        s.cli(&["end", &session])?.ended(0)?;
        told(&mut kept)?;
        s.session_ended(&session, "operator")?;
    }
    Ok(())
}

/// A connection from an address of this host; one that nobody answers is given up soon.
fn call(from: &str, to: SocketAddr) -> Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from.parse()?, 0)))?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(0, 700_000))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from} to {to}"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience()))?;
    Ok(stream)
}

/// A byte goes there, and one comes back.
fn answered(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"a")?;
    Ok(stream.read_exact(&mut [0])?)
}

/// The peer reads what came before, which opens its window, and is told that the connection was reset.
pub(super) fn told(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(patience()))?;
    let mut buffer = vec![0; 1 << 16];
    let told = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error.kind()),
        }
    };
    ensure!(told == Some(ErrorKind::ConnectionReset), "the other end was told {told:?}");
    Ok(())
}
