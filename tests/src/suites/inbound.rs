//! Who may come in: listeners, and datagrams that nobody asked for.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use serde_json::Value;

use super::{
    scene::{Fifo, only, reach},
    sockets::FAMILIES,
};
use crate::{
    harness::{
        capture::{Capture, own_network},
        prelude::*,
    },
    work::held::associate,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("sockets::bind-and-listen", WHEREVER, bind_and_listen),
    Test::sharing("sockets::bind-and-listen-in-a-ring", WHEREVER, in_a_ring)
        .since((6, 11), "bind and listen by io_uring"),
    Test::sharing("sockets::who-may-come-in", WHEREVER, inbound),
    Test::sharing("sockets::listening-on-all-addresses", WHEREVER, everywhere),
    Test::sharing("sockets::datagrams-nobody-asked-for", WHEREVER, datagrams),
    Test::sharing("sockets::datagrams-to-a-port-of-ones-choice", WHEREVER, serving),
    Test::sharing("sockets::who-may-associate", WHEREVER, associations).each_kernel(),
    Test::sharing("sockets::answers-take-a-rule-for-the-way-out", WHEREVER, answered),
];

/// The port that a member writes to a file.
pub(super) fn port_in(file: &str) -> Result<u16> {
    until("the member's port", patience(), || {
        Ok(fs::read_to_string(file).ok().and_then(|text| text.parse::<u16>().ok()))
    })
}

fn bind_and_listen(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, _) in FAMILIES {
        // a port that was free a moment ago
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let to = std::net::SocketAddr::new(address.parse()?, port).to_string();
        let policy = only(&member).net(format!("listen: [{{ on: \"{address}\", ports: [{port}], id: own }}]"));
        for protocol in ["tcp", "udp"] {
            let line = format!("bind {protocol} {address} {port}");
            reach(s, &only(&member), &member, &line)?.was_refused_to(s, &to, "default")?;
            reach(s, &policy, &member, &line)?.was_let_through(s, &to, "own")?;
        }
    }
    Ok(())
}

/// The same asked for by io_uring.
fn in_a_ring(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, _) in FAMILIES {
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let to = std::net::SocketAddr::new(address.parse()?, port).to_string();
        let closed = only(&member).scope("privileges: { allow: [io-uring] }");
        let open = closed.clone().net(format!("listen: [{{ on: \"{address}\", ports: [{port}], id: own }}]"));
        // a listener on a port that the kernel chose is told by nobody in tier no-lsm, and nobody reaches it
        let refused = if s.tier == Tier::Full { "errno 1\nerrno 1" } else { "errno 1\nok" };
        for (policy, answers, verdict, rule) in [(closed, refused, "deny", "default"), (open, "ok\nok", "allow", "own")]
        {
            let running = s.run(&s.policy(&policy)?, &member, &format!("bind-in-ring {address} {port}"))?;
            let session = running.session(s)?;
            running.wait()?.said(answers)?;
            s.saw_connect(&session, &to, verdict, rule)?;
        }
    }
    Ok(())
}

/// Who may come in is let in, nobody else; a listener out of scope is as good as none.
fn inbound(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    for (address, _) in FAMILIES {
        let closed = only(&member).net("listen: allow").net("inbound: deny");
        let open = only(&member).net("listen: allow").net(format!("inbound: [{{ from: \"{address}\", id: friends }}]"));
        let strangers = if address == "::1" { "2001:db8::/32" } else { "192.0.2.0/24" };
        let others = only(&member).net("listen: allow").net(format!("inbound: [{{ from: \"{strangers}\" }}]"));
        for (policy, rule) in [(closed, None), (others, None), (open, Some("friends"))] {
            let (file, mut fifo) = (s.file("port"), Fifo::new(s)?);
            let line = format!("serve {address} {file} fifo {} nothing", fifo.path);
            let running = s.run(&s.policy(&policy)?, &member, &line)?;
            let session = running.session(s)?;
            let port = port_in(&file)?;
            let to = std::net::SocketAddr::new(address.parse()?, port);
            wire.left()?;
            let wait = if rule.is_some() { patience() } else { Duration::from_millis(700) };
            let came = TcpStream::connect_timeout(&to, wait);
            if rule.is_some() {
                came?.read_exact(&mut [0; 3])?;
                // not before: the end resets what is still open, and the caller would see that
                fifo.wake()?;
                running.wait()?.said("ok")?;
            } else {
                ensure!(came.is_err(), "{to} was reached");
                let answer = wire.left()?.into_iter().find(|packet| packet.from_port == port);
                ensure!(answer.is_none(), "{to} answered: {answer:?}");
                s.cli(&["end", &session])?.ended(0)?;
            }
            let (verdict, rule) = rule.map_or(("deny", "default"), |rule| ("allow", rule));
            let fits = |r: &Value| r["session"] == session && r["via"] == "accept" && r["rule"] == rule;
            let seen = s.wait_evidence("who came", fits)?;
            ensure!(seen["verdict"] == verdict, "who came is recorded as {seen}");
        }
        no_listener(s, &member, address)?;
    }
    Ok(())
}

/// All addresses are an address of their own: whom a rule lets listen there is reached by each, by IPv4 on a socket of IPv6 too; one
/// for a single address does not let it.
fn everywhere(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (all, ip) in [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::", "127.0.0.1")] {
        for (on, comes) in [(all, true), (ip, false)] {
            let policy = only(&member)
                .net(format!("listen: [{{ on: \"{on}\", id: own }}]"))
                .net(format!("inbound: [{{ from: \"{ip}\", id: friends }}]"));
            let file = s.file("port");
            let running = s.run(&s.policy(&policy)?, &member, &format!("serve {all} {file} idle"))?;
            let session = running.session(s)?;
            if s.tier == Tier::Full && !comes {
                running.wait()?.complained(&["Operation not permitted"])?;
                s.wait_evidence("the refusal", |r| r["session"] == session && r["via"] == "listen")?;
                continue;
            }
            let port = port_in(&file)?;
            let to = std::net::SocketAddr::new(ip.parse()?, port);
            let wait = if comes { patience() } else { Duration::from_millis(700) };
            let came = TcpStream::connect_timeout(&to, wait).and_then(|mut stream| stream.read_exact(&mut [0; 3]));
            ensure!(came.is_ok() == comes, "on {all}, where {on} may be listened on: {came:?}");
            let (via, verdict, rule) =
                if comes { ("accept", "allow", "friends") } else { ("listen", "deny", "default") };
            let fits = |r: &Value| r["session"] == session && r["via"] == via && r["rule"] == rule;
            let seen = s.wait_evidence("who came", fits)?;
            let told = seen["to"].as_str().unwrap_or_default();
            ensure!(seen["verdict"] == verdict && !told.contains("ffff"), "{seen}");
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
    }
    Ok(())
}

/// Where nothing may be listened on, a port that the kernel picks is none either, whoever may come in.
fn no_listener(s: &Sandbox, member: &str, address: &str) -> Result<()> {
    let policy = s.policy(&only(member).net("inbound: allow"))?;
    let file = s.file("port");
    let running = s.run(&policy, member, &format!("serve {address} {file} nothing"))?;
    let session = running.session(s)?;
    if s.tier == Tier::Full {
        running.wait()?.complained(&["Operation not permitted"])?;
        ensure!(!std::path::Path::new(&file).exists(), "the member listens");
    } else {
        let port = port_in(&file)?;
        let to = std::net::SocketAddr::new(address.parse()?, port);
        ensure!(TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_err(), "{to} was reached");
        s.cli(&["end", &session])?.ended(0)?;
    }
    let fits = |r: &Value| r["session"] == session && r["via"] == "listen" && r["verdict"] == "deny";
    s.wait_evidence("the listener that is none", fits).map(drop)
}

/// To a port that the kernel picked comes what was asked for, and nothing else unless the rules let it be listened on.
fn datagrams(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (asked, outsider) = (UdpSocket::bind((address, 0))?, UdpSocket::bind((address, 0))?);
        let to = asked.local_addr()?;
        let policy = only(&member).to("server", prefix, to.port());
        let strangers = if address == "::1" { "2001:db8::/32" } else { "192.0.2.0/24" };
        let from = |who: &str| policy.clone().net("listen: allow").net(format!("inbound: [{{ from: \"{who}\" }}]"));
        let cases = [
            (policy.clone(), "received 2", Some("listen")),
            (policy.clone().net("listen: allow"), "received 7", None),
            // who may be sent to may answer, whoever may come in
            (from(strangers), "received 2", Some("accept")),
            (from(address), "received 7", None),
        ];
        for (policy, heard, refused) in cases {
            let file = s.file("port");
            let running = s.run(&s.policy(&policy)?, &member, &format!("hear {file} {address} {}", to.port()))?;
            let session = running.session(s)?;
            let port = port_in(&file)?;
            outsider.send_to(b"outside", (address, port))?;
            asked.send_to(b"in", (address, port))?;
            running.wait()?.said(heard)?;
            if let Some(via) = refused {
                let fits = |r: &Value| r["session"] == session && r["via"] == via && r["verdict"] == "deny";
                let seen = s.wait_evidence("the datagram", |r| fits(r) && r["rule"] == "default")?;
                ensure!(seen["protocol"] == "udp", "the datagram is recorded as {seen}");
            }
        }
    }
    Ok(())
}

/// To a port that a member chose others come, and must be let come in, also who may be sent to; who was sent to last may answer.
fn serving(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let strangers = if address == "::1" { "2001:db8::/32" } else { "192.0.2.0/24" };
        let cases = [
            ("ci", format!("inbound: [{{ from: \"{strangers}\" }}]"), "received 2"),
            ("ci", format!("inbound: [{{ from: \"{address}\" }}]"), "received 7"),
            ("operator", "inbound: deny".to_owned(), "received 2"),
            ("operator", "inbound: allow".to_owned(), "received 7"),
        ];
        for (kind, inbound, heard) in cases {
            let asked = UdpSocket::bind((address, 0))?;
            asked.set_read_timeout(Some(patience()))?;
            let policy = only(&member).kind(kind).to("server", prefix, "").net("listen: allow").net(&inbound);
            let (file, mut fifo) = (s.file("port"), Fifo::new(s)?);
            let line = format!("hear-serving {file} {} {address} {}", fifo.path, asked.local_addr()?.port());
            let running = s.run(&s.policy(&policy)?, &member, &line)?;
            let session = running.session(s)?;
            let port = port_in(&file)?;
            // from an address that may be sent to, and nobody asked
            asked.send_to(b"unasked", (address, port))?;
            if heard == "received 2" {
                let fits = |r: &Value| r["session"] == session && r["via"] == "accept" && r["verdict"] == "deny";
                let seen = s.wait_evidence("the datagram", |r| fits(r) && r["rule"] == "default")?;
                ensure!(seen["protocol"] == "udp", "the datagram is recorded as {seen}");
            }
            fifo.wake()?;
            asked.recv_from(&mut [0; 8])?;
            asked.send_to(b"in", (address, port))?;
            running.wait()?.said(heard).with_context(|| format!("{kind}, {inbound}, {address}"))?;
        }
    }
    Ok(())
}

/// As `inbound`, by SCTP, from an address that members may go to.
fn associations(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let rule = format!("inbound: [{{ from: \"{address}\", id: friends }}]");
        let cases = [
            (vec!["listen: allow".to_owned(), rule.clone()], true),
            (vec!["listen: allow".to_owned(), "inbound: deny".to_owned()], false),
            (vec![rule], false),
        ];
        for (net, comes) in cases {
            let policy = only(&member).to("server", prefix, "").scope("sockets: { allow: [sctp] }");
            let policy = net.iter().fold(policy, Policy::net);
            let (file, listens) = (s.file("port"), net.len() == 2);
            let running = s.run(&s.policy(&policy)?, &member, &format!("serve-sctp {address} {file} idle"))?;
            let session = running.session(s)?;
            if s.tier == Tier::Full && !listens {
                running.wait()?.complained(&["Operation not permitted"])?;
                s.wait_evidence("the refusal", |r| r["session"] == session && r["via"] == "listen")?;
                continue;
            }
            let port = until("the member to listen", patience(), || {
                ensure!(!running.said().contains("errno 93"), Lacking("this kernel has no SCTP".to_owned()));
                Ok(fs::read_to_string(&file).ok().and_then(|text| text.parse::<u16>().ok()))
            })?;
            let to = std::net::SocketAddr::new(address.parse()?, port);
            let came = associate(&to, if comes { patience() } else { Duration::from_millis(900) })?;
            ensure!(came == comes, "{address}, {net:?}: an association came about: {came}");
            if !comes {
                let via = if listens { "accept" } else { "listen" };
                let fits = |r: &Value| r["session"] == session && r["via"] == via && r["verdict"] == "deny";
                let seen = s.wait_evidence("who came", |r| fits(r) && r["rule"] == "default")?;
                ensure!(seen["protocol"] == "sctp", "who came is recorded as {seen}");
            }
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
    }
    Ok(())
}

/// Who came in by a datagram is answered by who may go there: a rule that lets it come in opens no way out.
fn answered(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let open = || only(&member).net("listen: allow");
        let by_rule = || open().net(format!("inbound: [{{ from: \"{address}\", id: friends }}]"));
        let cases = [
            (open(), Err("default")),
            (by_rule(), Err("default")),
            (by_rule().not_to("stop", prefix, ""), Err("stop")),
            (open().to("server", prefix, ""), Ok("server")),
        ];
        for ((policy, rule), way) in cases.iter().flat_map(|case| [(case, "sendto"), (case, "connect")]) {
            let (caller, file) = (UdpSocket::bind((address, 0))?, s.file("port"));
            let running = s.run(&s.policy(policy)?, &member, &format!("echo {file} {address} {way}"))?;
            let session = running.session(s)?;
            let port = port_in(&file)?;
            caller.send_to(b"ask", (address, port))?;
            let (told, verdict) = if rule.is_ok() { ("ok", "allow") } else { ("errno 1", "deny") };
            running.wait()?.said(told).with_context(|| format!("{way}, {rule:?}, {address}"))?;
            // what is sent on a loaded machine may come later; what is refused never was on its way
            if rule.is_ok() {
                caller.set_read_timeout(Some(patience()))?
            } else {
                caller.set_nonblocking(true)?
            }
            let heard = caller.recv(&mut [0; 8]).map_err(|error| error.kind());
            ensure!(heard == if rule.is_ok() { Ok(3) } else { Err(ErrorKind::WouldBlock) }, "{rule:?}: {heard:?}");
            let (Ok(rule) | Err(rule)) = rule;
            s.saw_connect(&session, &caller.local_addr()?.to_string(), verdict, rule)?;
        }
    }
    Ok(())
}
