//! Multipath TCP: the sockets under one of a member's are the kernel's own, made and connected where no member is.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::errno::Errno;

use super::{
    flows::{all_destroyed, receipts_of},
    scene::{only, report},
    wire::{FAMILIES, RST, listener as listening, member, policy, wire},
};
use crate::{
    harness::{capture::Packet, paths, prelude::*, server::Server},
    work::ways::multipath,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("wire::multipath-listener", WHEREVER, listener),
    Test::sharing("wire::further-path-of-a-kernel-worker", WHEREVER, further),
];

/// A listener on a port that the kernel chose, bound to an address and not bound at all: who may come in is answered, by TCP
/// too, and nobody else hears anything.
fn listener(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    for family in &FAMILIES {
        let nobody = if family.good.contains(':') { "::" } else { "0.0.0.0" };
        let strangers = if family.good.contains(':') { "2001:db8::/32" } else { "192.0.2.0/24" };
        for (from, verdict, rule) in
            [(Some(strangers), "deny", "default"), (Some(family.good), "allow", "friends"), (None, "allow", "default")]
        {
            let answered = verdict == "allow";
            let from = from.map_or_else(|| "allow".to_owned(), |from| format!("[{{ from: \"{from}\", id: friends }}]"));
            let policy = only(&member).net("listen: allow").net(format!("inbound: {from}"));
            for own in [family.good, nobody] {
                let file = s.file("port");
                let running = s.run(&s.policy(&policy)?, &member, &format!("multipath-serve {own} {file} 2"))?;
                let session = running.session(s)?;
                let port: u16 = until("the member to listen", patience(), || {
                    Ok(fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()))
                })?;
                let to = SocketAddr::new(family.good.parse::<IpAddr>()?, port);
                wire.left()?;
                let wait = if answered { patience() } else { Duration::from_millis(300) };
                let came = [multipath(&to, wait).map(TcpStream::from), plain(&to, wait)];
                let fits = |packet: &Packet| packet.from_port == port;
                if answered {
                    for came in came {
                        came.with_context(|| format!("{to} does not answer"))?.read_exact(&mut [0; 3])?;
                    }
                    running.wait()?.said("ok")?;
                    ensure!(wire.left()?.iter().any(fits), "who came in was answered and nothing was seen");
                } else {
                    ensure!(came.iter().all(Result::is_err), "{to} was reached");
                    s.cli(&["end", &session])?.ended(0)?;
                    let left = wire.left()?;
                    ensure!(!left.iter().any(fits), "{to} answered who may not come in: {left:?}");
                }
                s.wait_evidence("who came", |r| {
                    r["session"] == session && r["via"] == "accept" && r["verdict"] == verdict && r["rule"] == rule
                })?;
            }
        }
    }
    Ok(())
}

fn plain(to: &SocketAddr, wait: Duration) -> Result<TcpStream, Errno> {
    let stream = TcpStream::connect_timeout(to, wait);
    stream.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::ETIMEDOUT)))
}

/// A server tells a member's kernel of another of its addresses, and a worker of the kernel connects there: nothing leaves for
/// one that is out of scope.
fn further(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    let policy = s.policy(&policy(&member))?;
    let multipath = listening(libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    let server = Server::serve(multipath.context("the kernel has no MPTCP")?)?;
    for family in &FAMILIES {
        for (address, allowed) in [(family.bad, false), (family.hop, true)] {
            let other: IpAddr = address.parse()?;
            paths::announce(other)?;
            let line = format!("multipath-hold {} {}", family.good, server.port());
            let running = s.run(&policy, &member, &line)?;
            let session = running.session(s)?;
            let to = SocketAddr::new(other, server.port()).to_string();
            let (verdict, rule) = if allowed { ("allow", family.allows_hop) } else { ("deny", family.denies) };
            let seen = s.saw_connect(&session, &to, verdict, rule)?;
            ensure!(seen["via"] == "packet", "the path is recorded as {seen}");
            let mut left = Vec::new();
            if allowed {
                until(&format!("a path to {other}"), patience(), || {
                    left.extend(wire.left()?);
                    // the answer of the other end to the first packet
                    Ok(left
                        .iter()
                        .any(|packet| packet.from == other && packet.from_port == server.port())
                        .then_some(()))
                })?;
            }
            let to_server = |packet: &&Packet| packet.to_port == server.port();
            until("what the member sends", patience(), || {
                left.extend(wire.left()?);
                Ok(left.iter().filter(to_server).any(|packet| packet.payload > 0).then_some(()))
            })?;
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
            let cut = wire.left()?;
            let out = left.iter().chain(&cut).find(|packet| packet.to == other && packet.to_port == server.port());
            ensure!(out.is_some() == allowed, "to {other}: {out:?}");
            // every path ends as a connection of TCP does
            let paths: BTreeSet<u16> =
                left.iter().filter(|packet| packet.to_port == server.port()).map(|packet| packet.from_port).collect();
            ensure!(paths.len() == 1 + usize::from(allowed), "paths from {paths:?}");
            for path in paths {
                // before it may stand what was on its way when the end came: an acknowledgement, an address that is told, the
                // member's byte once more where a kernel waits too long for its acknowledgement
                let own: Vec<&Packet> =
                    cut.iter().filter(to_server).filter(|packet| packet.from_port == path).collect();
                let is_reset = |packet: &&&Packet| packet.flags & RST != 0;
                let last = own.last().filter(is_reset).is_some_and(|packet| packet.payload == 0);
                ensure!(last && own.iter().filter(is_reset).count() == 1, "no reset alone at the end: {own:?}");
                let repeats =
                    |packet: &&Packet| packet.payload == 0 || left.iter().any(|old| old.carries_the_same(packet));
                ensure!(own.iter().all(repeats), "something was sent after the end: {own:?}");
            }
        }
    }
    Ok(())
}

/// Of two connections the one that a narrower scope does not name loses its path, which is destroyed as TCP is, and the other
/// goes on. (No kernel destroys the socket over a path: its owner waits until the kernel gives it up.)
pub(super) fn narrowed(s: &Sandbox, member: &str, address: &str, prefix: &str) -> Result<()> {
    let serve = || -> Result<Server> {
        let multipath = listening(libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
        Server::serve(multipath.context("the kernel has no MPTCP")?)
    };
    let (stays, goes, kept) = (serve()?, serve()?, s.file("kept"));
    let policy = only(member).to("stays", prefix, stays.port()).to("goes", prefix, goes.port());
    let chat = |server: &Server| format!("multipath-chat {address} {}", server.port());
    let line = format!("background report {kept} {} + {}", chat(&stays), chat(&goes));
    let running = s.run(&s.policy(&policy)?, member, &line)?;
    let session = running.session(s)?;
    for server in [&stays, &goes] {
        until("the connections to be open", patience(), || Ok((server.received() == b"x").then_some(())))?;
    }
    s.cli(&["narrow", &session, "--remove", "goes"])?.ended(0)?;
    let cut = receipts_of(s, &session, "narrow")?;
    all_destroyed(&cut, 1)?;
    let to = SocketAddr::new(address.parse()?, goes.port()).to_string();
    ensure!(cut[0]["protocol"] == "tcp" && cut[0]["to"] == to, "the path to {to}: {cut:?}");
    stays.send(b"y")?;
    let told = report(&kept, 2)?.swap_remove(1);
    ensure!(told == "received 1", "the connection in scope: {told}");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}
