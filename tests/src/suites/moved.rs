//! Sockets that outlive a narrowing: those that it does not cut, because each of their packets is judged, and those of a member that
//! was moved away, which no program on Tipstaff's cgroup sees.

use std::net::UdpSocket;

use super::{
    scene::{Fifo, only},
    sockets::{FAMILIES, said},
    wire::{bound, listener},
};
use crate::harness::{
    capture::{Capture, own_network},
    prelude::*,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("sockets::moved-member-after-a-narrowing", FULL, narrowed).each_kernel(),
    Test::sharing("narrow::a-socket-that-goes-on", WHEREVER, goes_on),
    Test::sharing("narrow::a-class-that-goes", WHEREVER, class_goes),
    Test::sharing("narrow::what-cannot-be-destroyed-is-silent", WHEREVER, associations).each_kernel(),
];

/// A datagram socket that is connected to nobody is not cut: by the same one members send to whom the narrower scope has, and to
/// nobody else.
fn goes_on(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    for (address, prefix) in FAMILIES {
        for (removed, told, packets) in [("server", "errno 1", 1), ("other", "ok", 2)] {
            let server = Server::udp(address)?;
            let policy = only(&member).to("server", prefix, server.port()).to("other", prefix, 9);
            let mut fifo = Fifo::new(s)?;
            let line = format!("hold-to {address} {} {}", server.port(), fifo.path);
            wire.left()?;
            let running = s.run(&s.policy(&policy)?, &member, &line)?;
            let session = running.session(s)?;
            until("the first message", patience(), || Ok((running.said() == "ok\n").then_some(())))?;
            s.cli(&["narrow", &session, "--remove", removed])?.ended(0)?;
            fifo.wake()?;
            running.wait()?.said(&format!("ok\n{told}")).with_context(|| format!("{address} without {removed}"))?;
            let left = wire.left()?.iter().filter(|packet| packet.to_port == server.port()).count();
            ensure!(left == packets, "{left} packets left for {address} without {removed}");
            let to = std::net::SocketAddr::new(address.parse()?, server.port()).to_string();
            let (verdict, rule) = if told == "ok" { ("allow", "server") } else { ("deny", "default") };
            let fits = |r: &serde_json::Value| {
                r["session"] == session && r["to"] == to && r["verdict"] == verdict && r["rule"] == rule
            };
            s.wait_evidence(&format!("{to} {verdict} {rule}"), fits)?;
            s.session_ended(&session, "completed")?;
        }
    }
    Ok(())
}

/// Its connection to an address that a narrower scope does not have carries nothing more, though the kernel cannot destroy it
/// (UDP-Lite) and no message names the address.
fn narrowed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, elsewhere) = (s.program("member")?, s.part("elsewhere").path().display().to_string());
    own_network(&[])?;
    let wire = Capture::new()?;
    for (address, prefix) in FAMILIES {
        for (removed, told, packets) in [("server", "errno 1", 1), ("other", "ok", 2)] {
            let Some(socket) = bound(libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)? else {
                return Err(Lacking("this kernel has no UDP-Lite".to_owned()).into());
            };
            let server = Server::datagrams(UdpSocket::from(socket))?;
            let policy = only(&member).to("server", prefix, server.port()).to("other", prefix, 9);
            let mut fifo = Fifo::new(s)?;
            let line = format!("cgroup {elsewhere} hold-lite {address} {} {}", server.port(), fifo.path);
            wire.left()?;
            let running = s.run(&s.policy(&policy)?, &member, &line)?;
            let session = running.session(s)?;
            until("the first message", patience(), || Ok((running.said() == "ok\nok\n").then_some(())))?;
            s.cli(&["narrow", &session, "--remove", removed])?.ended(0)?;
            fifo.wake()?;
            let all = format!("ok\nok\n{told}\n");
            until("the second message", patience(), || Ok(running.said().starts_with(&all).then_some(())))
                .with_context(|| format!("{address} without {removed}: {:?}", running.said()))?;
            let left = wire.left()?.iter().filter(|packet| packet.to_port == server.port()).count();
            ensure!(left == packets, "{left} packets left for {address} without {removed}");
            if told != "ok" {
                said(s, &session, "socket", "crossed-socket")?;
            }
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
    }
    Ok(())
}

/// A socket of a class that a narrower scope does not have sends nothing more, to whom it may send too; one of a class that it has goes
/// on. Packet sockets only LSM programs see.
fn class_goes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    crate::harness::capture::set("ipv4/ping_group_range", "0 2147483647")?;
    let wire = Capture::new()?;
    let all = ["ping", "raw", "ping-to", "raw-to", "packet"];
    let classes = &all[..if s.tier == Tier::Full { 5 } else { 4 }];
    for (class, (address, prefix)) in classes.iter().flat_map(|class| FAMILIES.map(|family| (class, family))) {
        for kept in [false, true] {
            let reaching = only(&member).to("server", prefix, "");
            let allowing = |list: &str| reaching.clone().scope(format!("sockets: {{ allow: [{list}] }}"));
            let word = class.trim_end_matches("-to");
            let narrower = if kept { allowing(word) } else { allowing("") };
            let (narrower, mut fifo) = (s.policy(&narrower)?, Fifo::new(s)?);
            let line = format!("hold-class {class} {address} {}", fifo.path);
            wire.left()?;
            let running = s.run(&s.policy(&allowing(&format!("{word}, sctp")))?, &member, &line)?;
            let session = running.session(s)?;
            until("the first message", patience(), || Ok((running.said() == "ok\n").then_some(())))?;
            s.cli(&["narrow", &session, "--policy", &narrower])?.ended(0)?;
            fifo.wake()?;
            let finished = running.wait()?;
            let left = wire.left()?;
            let there = |mark: &str| left.iter().any(|packet| packet.has(mark));
            let what = format!("{class} to {address}, kept: {kept}: {finished:?}");
            ensure!(there("first-message"), "the first did not leave: {what}");
            ensure!(there("second-message") == kept, "the second left: {}: {what}", !kept);
            if !kept {
                ensure!(*class != "packet" || finished.stdout == "ok\nerrno 1", "{what}");
                let kind = if *class == "packet" { "socket" } else { "connect" };
                said(s, &session, kind, "narrowed")?;
            }
            s.session_ended(&session, "completed")?;
        }
    }
    Ok(())
}

/// An association of SCTP, which no kernel destroys, carries nothing more once the scope does not have its peer, and its receipt says
/// that it is silenced; another goes on.
fn associations(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    for (address, prefix) in FAMILIES {
        for (removed, silent) in [("server", true), ("other", false)] {
            let Some(listener) = listener(libc::SOCK_STREAM, libc::IPPROTO_SCTP)? else {
                return Err(Lacking("this kernel has no SCTP".to_owned()).into());
            };
            let port = listener.local_addr()?.port();
            let policy = only(&member).to("server", prefix, port).to("other", prefix, 9);
            let mut fifo = Fifo::new(s)?;
            let line = format!("hold-sctp {address} {port} {}", fifo.path);
            let running = s.run(&s.policy(&policy.scope("sockets: { allow: [sctp] }"))?, &member, &line)?;
            let session = running.session(s)?;
            until("the first message", patience(), || Ok((running.said() == "ok\nok\n").then_some(())))?;
            s.cli(&["narrow", &session, "--remove", removed])?.ended(0)?;
            let cut: Vec<_> =
                s.records(&session, "flows-cut")?.into_iter().filter(|record| record["cause"] == "narrow").collect();
            let told = cut.iter().any(|record| record["sockets"][0]["outcome"] == "silenced");
            ensure!(told == silent && cut.len() == usize::from(silent), "{address} without {removed}: {cut:?}");
            wire.left()?;
            fifo.wake()?;
            until("the second message", patience(), || Ok(running.said().contains("received").then_some(())))?;
            let there = wire.left()?.iter().any(|packet| packet.has("second-message"));
            ensure!(there != silent, "{address} without {removed}: the message left: {there}");
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
    }
    Ok(())
}
