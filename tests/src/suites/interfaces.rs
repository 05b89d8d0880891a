//! Interfaces: an address of loopback is this host, and nobody beyond it who answers to it.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    process::Command,
};

use serde_json::Value;

use super::{
    inbound::port_in,
    scene::{Fifo, only},
    wire::{FAMILIES, member},
};
use crate::harness::{
    capture::{Capture, add_address_to, own_network, set},
    interface::{leads_everywhere, tunnel, whole},
    prelude::*,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("wire::loopback-stays-on-the-host", WHEREVER, stays),
    Test::sharing("wire::loopback-comes-from-the-host", WHEREVER, comes),
];

/// Of the interface that leads away.
const AWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// A member that may go to loopback tells the kernel to leave by another interface, whose neighbours would get what it sends:
/// without a session it leaves, by a message or a socket that says so, with the first packet of TCP too.
fn stays(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    s.program("member")?;
    own_network(&[])?;
    set("ipv4/tcp_fastopen", "519")?;
    let (_away, number) = tunnel(AWAY)?;
    add_address_to(number, "2001:db8:77::1".parse()?)?;
    leads_everywhere(number)?;
    let wire = Capture::new()?;
    for family in &FAMILIES {
        let (server, to) = (Server::udp(family.good)?, family.good.parse::<IpAddr>()?);
        let bits = if to.is_ipv4() { "127.0.0.0/8" } else { "::1/128" };
        let policy = s.policy(&only(&member(s)).to("loopback", bits, ""))?;
        let mut shown = 0;
        for way in ["udp-by-interface", "udp-on-interface", "open-on-interface"] {
            let line = format!("by {way} mark-of-{way} {} {} {number}", family.good, server.port());
            let left = || Ok::<_, anyhow::Error>(wire.left()?.iter().any(|p| p.to == to && p.has("mark-of")));
            wire.left()?;
            Command::new(member(s)).arg("--work").args(line.split(' ')).output()?;
            let leaves = left()?;
            shown += u32::from(leaves);
            let running = s.run(&policy, &member(s), &line)?;
            let session = running.session(s)?;
            running.wait()?;
            s.session_ended(&session, "completed")?;
            ensure!(!left()?, "{way} to {to}: it left");
            if leaves {
                let refused = |r: &Value| r["session"] == session && r["verdict"] == "deny" && r["via"] == "packet";
                let seen = s.wait_evidence("the refusal", |r| refused(r) && r["rule"] == "socket-option")?;
                ensure!(seen["to"].as_str().is_some_and(|seen| seen.contains(family.good)), "recorded is {seen}");
            }
        }
        ensure!(
            shown >= if to.is_ipv4() { 3 } else { 1 },
            "{to}: {shown} ways leave without a session: nothing is shown"
        );
        // the number of loopback itself, and no number
        let twin = Server::udp(family.good)?;
        let line = format!(
            "by udp-by-interface good {good} {port} 1 + by udp-on-interface good {good} {port} 1 + by udp good {good} {port}",
            good = family.good,
            port = twin.port()
        );
        s.run(&policy, &member(s), &line)?.wait()?.said("ok\nok\nok")?;
        twin.accepted(3)?;
        server.untouched()?;
    }
    Ok(())
}

/// What comes in by another interface as from loopback, where the host lets it come (`route_localnet`, as Kubernetes sets it, and
/// `accept_local`): nobody whom a rule for loopback lets in.
fn comes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    for (name, value) in [("route_localnet", "1"), ("accept_local", "1"), ("rp_filter", "0")] {
        ["all", "default"].iter().try_for_each(|of| set(&format!("ipv4/conf/{of}/{name}"), value))?;
    }
    let (mut away, _) = tunnel(AWAY)?;
    for (from, heard) in [(Ipv4Addr::new(127, 0, 0, 9), "received 2"), (Ipv4Addr::new(10, 77, 0, 9), "received 7")] {
        let [asked, stranger] = [UdpSocket::bind((AWAY, 0))?, UdpSocket::bind((AWAY, 0))?];
        for socket in [&asked, &stranger] {
            socket.set_read_timeout(Some(patience()))?;
        }
        let policy = only(&member).to("own", &format!("{AWAY}/32"), asked.local_addr()?.port()).net("listen: allow");
        let policy = policy.net(format!("inbound: [{{ from: {from} }}]"));
        let (file, mut fifo) = (s.file("port"), Fifo::new(s)?);
        let line = format!("hear-serving {file} {} {AWAY} {}", fifo.path, asked.local_addr()?.port());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let port = port_in(&file)?;
        // who is in no session gets it, and after the member would have
        for port in [port, stranger.local_addr()?.port()] {
            away.write_all(&whole("unasked", from, SocketAddrV4::new(AWAY, port)))?;
        }
        let mut buffer = [0; 8];
        let (length, peer) = stranger.recv_from(&mut buffer).with_context(|| format!("nothing came from {from}"))?;
        ensure!((length, peer.ip()) == (7, IpAddr::from(from)), "{length} bytes came from {peer}");
        fifo.wake()?;
        asked.recv_from(&mut buffer)?;
        asked.send_to(b"in", (AWAY, port))?;
        running.wait()?.said(heard).with_context(|| format!("from {from}"))?;
    }
    Ok(())
}
