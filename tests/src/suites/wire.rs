//! What leaves, by a capture of the wire in a network namespace of the test's own: of what is refused nothing, neither its
//! address nor its bytes, by whatever way a member tries to send.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{Backlog, SockaddrIn6, bind, listen},
};

use super::scene::only;
use crate::{
    harness::{
        capture::{Capture, Packet, own_network, set},
        prelude::*,
        server::Server,
        wait::in_guest,
    },
    work::ways::{AFTER, BEFORE},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("wire::every-way-to-send", WHEREVER, every_way),
    Test::sharing("wire::every-way-by-mapped-addresses", WHEREVER, mapped_ways),
    Test::sharing("wire::protocols-of-a-class", WHEREVER, classes).each_kernel(),
    Test::sharing("wire::udp-lite", WHEREVER, lite).each_kernel(),
    Test::sharing("wire::other-ways-to-the-same-address", WHEREVER, hops),
    Test::sharing("wire::a-verdict-is-kept-for-its-address-alone", WHEREVER, alike),
];

/// Of each family an address that the policy allows, one that it denies, the rules that say so, and an address on the way.
pub(super) struct Family {
    pub(super) good: &'static str,
    pub(super) bad: &'static str,
    pub(super) allows: &'static str,
    pub(super) denies: &'static str,
    pub(super) hop: &'static str,
    pub(super) allows_hop: &'static str,
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        good: "127.0.0.1",
        bad: "127.0.0.9",
        allows: "good4",
        denies: "bad4",
        hop: "127.0.0.2",
        allows_hop: "good4",
    },
    Family { good: "::1", bad: "fd00:77::9", allows: "good6", denies: "bad6", hop: "fd00:77::2", allows_hop: "near6" },
];

/// IPv4 on sockets of IPv6.
const MAPPED: [Family; 1] = [Family {
    good: "::ffff:127.0.0.1",
    bad: "::ffff:127.0.0.9",
    allows: "good4",
    denies: "bad4",
    hop: "::ffff:127.0.0.2",
    allows_hop: "good4",
}];

/// The rule by which the bad address of a family is refused.
type Denial = fn(&Family) -> &'static str;

/// A namespace with all these addresses, and what leaves in it.
pub(super) fn wire(s: &mut Sandbox) -> Result<Capture> {
    s.start()?;
    s.program("member")?;
    own_network(&["fd00:77::2", "fd00:77::9"])?;
    // data goes with the first packet, without a cookie, both ways
    set("ipv4/tcp_fastopen", "519")?;
    set("ipv4/ping_group_range", "0 2147483647")?;
    set("ipv4/conf/all/accept_source_route", "1")?;
    set("ipv4/conf/lo/accept_source_route", "1")?;
    set("ipv4/conf/lo/route_localnet", "1")?;
    set("ipv4/conf/lo/accept_local", "1")?;
    Capture::new()
}

/// The program that tries.
pub(super) fn member(s: &Sandbox) -> String {
    format!("{}/member", s.bin())
}

/// Everything near may be reached but one address of each family.
pub(super) fn policy(member: &str) -> Policy {
    only(member)
        .to("good4", "127.0.0.0/8", "")
        .to("good6", "::1/128", "")
        .to("near6", "fd00:77::/64", "")
        .not_to("bad4", "127.0.0.9/32", "")
        .not_to("bad6", "fd00:77::9/128", "")
        .scope("privileges: { allow: [io-uring] }")
}

/// One way to send, and a server that is reached by it at every address.
struct Way {
    name: &'static str,
    server: Server,
}

/// What a member tried.
struct Tried {
    families: &'static [Family],
    session: String,
    answers: Vec<String>,
    left: Vec<Packet>,
}

fn mark(name: &str, address: &str) -> String {
    format!("mark-of-{name}-to-{address}")
}

/// In a new session a member sends by each way to each address that `to` picks.
fn attempt(s: &Sandbox, wire: &Capture, policy: &Policy, ways: &[Way], to: fn(&Family) -> &str) -> Result<Tried> {
    attempt_in(&FAMILIES, s, wire, policy, ways, to)
}

/// As [`attempt`], in other families.
fn attempt_in(
    families: &'static [Family],
    s: &Sandbox,
    wire: &Capture,
    policy: &Policy,
    ways: &[Way],
    to: fn(&Family) -> &str,
) -> Result<Tried> {
    let each = ways.iter().flat_map(|way| families.iter().map(move |family| (way, to(family))));
    let line = each
        .map(|(way, to)| format!("by {} {} {to} {}", way.name, mark(way.name, to), way.server.port()))
        .collect::<Vec<_>>()
        .join(" + ");
    let running = s.run(&s.policy(policy)?, &member(s), &line)?;
    let session = running.session(s)?;
    let finished = running.wait_for(2 * patience())?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    let answers: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    ensure!(answers.len() == families.len() * ways.len(), "{} answers: {finished:?}", answers.len());
    Ok(Tried { families, session, answers, left: wire.left()? })
}

/// As the evidence writes it.
fn at(address: &str, port: u16) -> Result<String> {
    Ok(SocketAddr::new(address.parse::<IpAddr>()?.to_canonical(), port).to_string())
}

impl Tried {
    /// The answers, in the order of the ways and of the families in each.
    fn each<'a>(&'a self, ways: &'a [Way]) -> impl Iterator<Item = (&'a Way, &'a Family, &'a str)> {
        let pairs = ways.iter().flat_map(|way| self.families.iter().map(move |family| (way, family)));
        pairs.zip(&self.answers).map(|((way, family), answer)| (way, family, answer.as_str()))
    }

    /// Nothing went to an address that is denied, and nothing bears the mark of what was sent there.
    fn nothing_left(&self, ways: &[Way]) -> Result<()> {
        for family in self.families {
            let bad = family.bad.parse::<IpAddr>()?.to_canonical();
            let out = self.left.iter().find(|packet| packet.to == bad);
            ensure!(out.is_none(), "a packet left for {bad}: {out:?}");
            for way in ways {
                let mark = mark(way.name, family.bad);
                let out = self.left.iter().find(|packet| packet.has(&mark));
                ensure!(out.is_none(), "{mark} left: {out:?}");
                let heard = String::from_utf8_lossy(&way.server.received()).contains(&mark);
                ensure!(!heard, "{mark} arrived");
            }
        }
        Ok(())
    }

    /// It left, for the address that it was meant for, and arrived.
    fn arrived(&self, way: &Way, address: &str) -> Result<()> {
        let (mark, to) = (mark(way.name, address), address.parse::<IpAddr>()?.to_canonical());
        let out = |packet: &&Packet| packet.has(&mark) && packet.to == to && packet.to_port == way.server.port();
        let seen = self.left.iter().find(out).with_context(|| format!("{mark} was not seen on the wire"))?;
        let early = way.name.starts_with("open") == (seen.flags & SYN != 0 && seen.protocol == TCP);
        ensure!(early, "{mark} left in another packet than it should: {seen:?}");
        until(&format!("{mark} to arrive"), patience(), || {
            Ok(String::from_utf8_lossy(&way.server.received()).contains(&mark).then_some(()))
        })
    }
}

const TCP: u8 = 6;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

fn tcp(name: &'static str) -> Result<Way> {
    Ok(Way { name, server: Server::tcp("::")? })
}

fn udp(name: &'static str) -> Result<Way> {
    Ok(Way { name, server: Server::udp("::")? })
}

/// A listener of another protocol, at every address; `None`: the kernel has it not.
pub(super) fn listener(kind: i32, protocol: i32) -> Result<Option<TcpListener>> {
    let Some(socket) = bound(kind, protocol)? else { return Ok(None) };
    listen(&socket, Backlog::new(8)?)?;
    Ok(Some(TcpListener::from(socket)))
}

/// A socket that is bound to a port of every address; `None`: the kernel has no such protocol.
pub(super) fn bound(kind: i32, protocol: i32) -> Result<Option<OwnedFd>> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET6, kind | libc::SOCK_CLOEXEC, protocol) };
    let socket = match Errno::result(socket) {
        // SAFETY: the kernel just made it, and nobody else has it.
        Ok(socket) => unsafe { OwnedFd::from_raw_fd(socket) },
        Err(Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    if let SocketAddr::V6(everywhere) = everywhere {
        bind(socket.as_raw_fd(), &SockaddrIn6::from(everywhere))?;
    }
    Ok(Some(socket))
}

/// TCP, UDP, TCP Fast Open, MPTCP and io_uring: refused with `EPERM` in every tier, by a hook that comes before the packet.
fn every_way(s: &mut Sandbox) -> Result<()> {
    let (wire, ways) = (wire(s)?, ways()?);
    let refused = ways_are_judged(s, &wire, &ways, &FAMILIES)?;
    // of several datagrams in one call, those before the refused one are sent, and none after it
    let count = |mark: &str| refused.left.iter().filter(|packet| packet.has(mark)).count();
    ensure!((count(BEFORE), count(AFTER)) == (4, 0), "{} before, {} after", count(BEFORE), count(AFTER));
    Ok(())
}

/// As above, to IPv4 by sockets of IPv6.
fn mapped_ways(s: &mut Sandbox) -> Result<()> {
    let (wire, ways) = (wire(s)?, ways()?);
    ways_are_judged(s, &wire, &ways, &MAPPED).map(drop)
}

/// The ways, each with its server.
fn ways() -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for name in
        ["tcp", "tcp-again", "open-to", "open-message", "open-connect", "ring-tcp", "ringworker-tcp", "ringpoller-tcp"]
    {
        ways.push(tcp(name)?);
    }
    for name in ["udp", "udp-again", "udp-aside", "udp-to", "udp-message", "udp-many", "udp-marked"] {
        ways.push(udp(name)?);
    }
    for name in ["ring-udp", "ringworker-udp", "ringpoller-udp"] {
        ways.push(udp(name)?);
    }
    for name in ["ring-message", "ringworker-message", "ringpoller-message", "ring-pages", "ring-to", "ringworker-to"] {
        ways.push(udp(name)?);
    }
    ways.push(Way { name: "query", server: Server::udp_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 53))? });
    let multipath = listener(libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    ways.push(Way { name: "mptcp", server: Server::serve(multipath.context("the kernel has no MPTCP")?)? });
    Ok(ways)
}

/// Each way is refused to a bad address, of which nothing leaves, and goes to a good one. What was refused.
fn ways_are_judged(s: &Sandbox, wire: &Capture, ways: &[Way], families: &'static [Family]) -> Result<Tried> {
    let rules = policy(&member(s));
    let refused = attempt_in(families, s, wire, &rules, ways, |family| family.bad)?;
    for (way, family, answer) in refused.each(ways) {
        ensure!(answer == "errno 1", "{} to {}: {answer}", way.name, family.bad);
        s.saw_connect(&refused.session, &at(family.bad, way.server.port())?, "deny", family.denies)?;
    }
    refused.nothing_left(ways)?;
    let allowed = attempt_in(families, s, wire, &rules, ways, |family| family.good)?;
    for (way, family, answer) in allowed.each(ways) {
        ensure!(answer == "ok", "{} to {}: {answer}", way.name, family.good);
        allowed.arrived(way, family.good)?;
        s.saw_connect(&allowed.session, &at(family.good, way.server.port())?, "allow", family.allows)?;
    }
    Ok(refused)
}

/// Protocols whose sockets a policy allows by their class: their addresses are judged all the same.
fn classes(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let rules = policy(&member(s));
    // whoever may come in is no more to be reached than anybody, where a rule denies it and where none lets members go there
    let visited = |policy: &Policy| policy.clone().net("inbound: [{ from: 127.0.0.9 }, { from: \"fd00:77::9\" }]");
    let unnamed = only(&member(s)).to("good4", "127.0.0.1/32", "").to("good6", "::1/128", "");
    let unnamed = visited(&unnamed.scope("sockets: { allow: [sctp, dccp, ping] }"));
    let rules = rules.scope("sockets: { allow: [sctp, dccp, ping] }");
    let (named, by_none): (Denial, Denial) = (|family| family.denies, |_family| "default");
    let cases = [(&rules, named), (&visited(&rules), named), (&unnamed, by_none)];
    for (rules, denial) in cases {
        echoes(s, &wire, rules, denial)?;
    }
    counted_echoes(s)?;
    let mut ways = Vec::new();
    for (name, kind, protocol) in [
        ("sctp", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("sctp-to", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("sctp-several", libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("dccp", libc::SOCK_DCCP, libc::IPPROTO_DCCP),
    ] {
        match listener(kind, protocol)? {
            Some(listener) => ways.push(Way { name, server: Server::answering(listener)? }),
            None => eprintln!("this kernel has no {name}"),
        }
    }
    if ways.is_empty() {
        return Ok(());
    }
    without_rule(s, &ways)?;
    cases.into_iter().try_for_each(|(rules, denial)| associations(s, &wire, rules, denial, &ways))
}

/// Where no rule lets such a protocol go anywhere, its sockets are not made: a connect would wait in tier no-lsm.
fn without_rule(s: &Sandbox, ways: &[Way]) -> Result<()> {
    let make = |way: &Way| if way.name.starts_with("sctp") { "make 2 1 132" } else { "make 2 6 33" };
    let line = ways.iter().map(make).collect::<Vec<_>>().join(" + ");
    for (protocols, answer) in [("tcp, udp", "errno 1"), ("tcp, sctp, dccp", "ok")] {
        let policy = only(&member(s)).by_protocol("near", "127.0.0.0/8", &format!("[{protocols}]"));
        let running = s.run(&s.policy(&policy.scope("sockets: { allow: [sctp, dccp] }"))?, &member(s), &line)?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        finished.said(&vec![answer; ways.len()].join("\n"))?;
        if answer != "ok" {
            finished.complained(&["sockets of class sctp are not made"])?;
            s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "socket-class")?;
        }
    }
    Ok(())
}

/// Without BPF LSM no hook sees a connect of SCTP and DCCP: their packets are dropped, and the connect comes to nothing.
fn associations(s: &Sandbox, wire: &Capture, rules: &Policy, denial: Denial, ways: &[Way]) -> Result<()> {
    let refused = attempt(s, wire, rules, ways, |family| family.bad)?;
    for (way, family, answer) in refused.each(ways) {
        let none = [libc::EINPROGRESS, libc::EAGAIN, libc::ENOTCONN].map(|errno| format!("errno {errno}"));
        let silent = s.tier == Tier::NoLsm && none.iter().any(|none| none == answer);
        ensure!(answer == "errno 1" || silent, "{} to {}: {answer}", way.name, family.bad);
        s.saw_connect(&refused.session, &at(family.bad, way.server.port())?, "deny", denial(family))?;
    }
    refused.nothing_left(ways)?;
    let allowed = attempt(s, wire, rules, ways, |family| family.good)?;
    for (way, family, answer) in allowed.each(ways) {
        ensure!(answer == "ok", "{} to {}: {answer}", way.name, family.good);
        allowed.arrived(way, family.good)?;
        let to = at(family.good, way.server.port())?;
        let told =
            s.records(&allowed.session, "connect")?.iter().filter(|r| r["verdict"] == "allow" && r["to"] == to).count();
        ensure!(told == 1, "{told} records tell of {} to {to}", way.name);
    }
    Ok(())
}

/// What no hook sees begin is counted by its first packet.
fn counted_echoes(s: &Sandbox) -> Result<()> {
    let policy = only(&member(s)).to("loopback", "127.0.0.0/8", "").scope("sockets: { allow: [ping] }");
    let line = "by ping-to one 127.0.0.1 0 + by ping-to two 127.0.0.2 0";
    let running = s.run(&s.policy(&policy.spec("budgets: { connects: 1 }"))?, &member(s), line)?;
    let session = running.session(s)?;
    running.wait()?.said("ok\nerrno 1")?;
    s.wait_evidence("the refusal", |r| r["session"] == session && r["rule"] == "budget-connects").map(drop)
}

/// ICMP echo, with a connect and without: an answer says that it arrived.
fn echoes(s: &Sandbox, wire: &Capture, rules: &Policy, denial: Denial) -> Result<()> {
    let (member, policy) = (member(s), s.policy(rules)?);
    for family in &FAMILIES {
        // the kernel tells nobody that an echo request of IPv6 was dropped
        let told = if s.tier == Tier::NoLsm && family.bad.contains(':') { "ok\nerrno 1" } else { "errno 1\nerrno 1" };
        for (address, answer) in [(family.bad, told), (family.good, "ok\nok")] {
            let line = format!("by ping-to one-{address} {address} 0 + by ping two-{address} {address} 0");
            let running = s.run(&policy, &member, &line)?;
            let session = running.session(s)?;
            running.wait()?.said(answer)?;
            s.session_ended(&session, "completed")?;
            let (left, ip) = (wire.left()?, address.parse::<IpAddr>()?);
            let allowed = s.records(&session, "connect")?.into_iter().filter(|r| r["verdict"] == "allow").count();
            // a connect is told by the programs on cgroups, a message with an address by LSM, or by its packet
            let told = if address == family.bad { 0 } else { 2 };
            ensure!(allowed == told, "{allowed} records where {told} were to tell of what was let through to {ip}");
            if address == family.bad {
                let out = left.iter().find(|p| p.to == ip || p.has("one-") || p.has("two-"));
                ensure!(out.is_none(), "an echo request left for {ip}: {out:?}");
                s.saw_connect(&session, &at(address, 0)?, "deny", denial(family))?;
                continue;
            }
            for mark in [format!("one-{address}"), format!("two-{address}")] {
                let out = |packet: &&Packet| packet.has(&mark);
                let asked = left.iter().find(|packet| out(packet) && packet.to == ip);
                let replies = left.iter().filter(|packet| out(packet) && packet.from == ip).count();
                ensure!(asked.is_some() && replies > 0, "{mark}: asked {asked:?}, {replies} answers");
            }
        }
    }
    Ok(())
}

/// UDP-Lite: no program on cgroups sees a connect, whose packets are judged; LSM sees it.
fn lite(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let way = |name| -> Result<Option<Way>> {
        let made = bound(libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?;
        made.map(|socket| Ok(Way { name, server: Server::datagrams(UdpSocket::from(socket))? })).transpose()
    };
    let (Some(one), Some(other)) = (way("lite")?, way("lite-to")?) else {
        eprintln!("this kernel has no UDP-Lite");
        return Ok(());
    };
    let (ways, rules) = ([one, other], policy(&member(s)));
    let refused = attempt(s, &wire, &rules, &ways, |family| family.bad)?;
    for (way, family, answer) in refused.each(&ways) {
        ensure!(answer == "errno 1", "{} to {}: {answer}", way.name, family.bad);
        s.saw_connect(&refused.session, &at(family.bad, way.server.port())?, "deny", family.denies)?;
    }
    refused.nothing_left(&ways)?;
    let allowed = attempt(s, &wire, &rules, &ways, |family| family.good)?;
    for (way, family, answer) in allowed.each(&ways) {
        ensure!(answer == "ok", "{} to {}: {answer}", way.name, family.good);
        allowed.arrived(way, family.good)?;
        s.saw_connect(&allowed.session, &at(family.good, way.server.port())?, "allow", family.allows)?;
    }
    let told = s.records(&allowed.session, "connect")?.len();
    ensure!(told == 4, "{told} records of what was let through, where 4 were expected");
    Ok(())
}

/// A datagram to an address in scope whose own ancillary data sends it by another: each packet is judged by where it goes
/// next, and the message by where it goes in the end.
fn hops(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    // such a header wants the capability that packet sockets do
    let policy = s.policy(&policy(&member).scope("sockets: { allow: [packet] }"))?;
    for family in &FAMILIES {
        let server = Server::udp("::")?;
        let port = server.port();
        let line = format!(
            "by hop by-a-bad-one {good} {port} {bad} + by hop to-a-bad-one {bad} {port} {hop} + \
             by hop by-a-good-one {good} {port} {hop}",
            good = family.good,
            bad = family.bad,
            hop = family.hop
        );
        let running = s.run(&policy, &member, &line)?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        s.session_ended(&session, "completed")?;
        let left = wire.left()?;
        let bad: IpAddr = family.bad.parse()?;
        let out = left.iter().find(|p| p.to == bad || p.has("by-a-bad-one") || p.has("to-a-bad-one"));
        ensure!(out.is_none(), "a packet left by a way that is denied: {out:?}");
        // a kernel without mobile IPv6 knows no such header
        if finished.stdout == "errno 22\nerrno 22\nerrno 22" && bad.is_ipv6() && !in_guest() {
            continue;
        }
        finished.said("errno 1\nerrno 1\nok")?;
        let denied = s.records(&session, "connect")?;
        for via in ["packet", "send"] {
            let found = denied.iter().any(|r| {
                r["via"] == via
                    && r["verdict"] == "deny"
                    && r["rule"] == family.denies
                    && r["to"] == at(family.bad, port).unwrap_or_default()
            });
            ensure!(found, "no refusal by {via}: {denied:?}");
        }
        let hop: IpAddr = family.hop.parse()?;
        let seen = left.iter().any(|packet| packet.has("by-a-good-one") && packet.to == hop);
        ensure!(seen, "the datagram did not leave by {hop}: {left:?}");
        if hop.is_ipv4() {
            server.accepted(1)?;
        }
    }
    Ok(())
}

/// One socket sends to an address that is allowed, to one that differs from it in the highest bit of each of its words, and to
/// the first again: what the programs keep of a verdict is kept under one word for the address, and these have the same word
/// in a hash of multiplications, whatever its secret is.
fn alike(s: &mut Sandbox) -> Result<()> {
    const V6: [&str; 2] = ["fd00:77::1", "fd00:77:0:80:0:80:0:81"];
    const V4: [&str; 2] = ["127.0.0.1", "127.0.0.129"];
    s.start()?;
    s.program("member")?;
    own_network(&V6)?;
    let wire = Capture::new()?;
    for ([good, bad], every, bits) in [(V6, "::", "128"), (V4, "0.0.0.0", "32")] {
        let server = Server::udp(every)?;
        let policy = s.policy(&only(&member(s)).to("good", &format!("{good}/{bits}"), ""))?;
        let line = format!("send-each {} {good} {bad} {good}", server.port());
        let running = s.run(&policy, &member(s), &line)?;
        let session = running.session(s)?;
        running.wait()?.said("ok\nerrno 1\nok")?;
        let refused: IpAddr = bad.parse()?;
        s.saw_connect(&session, &at(bad, server.port())?, "deny", "default")?;
        s.saw_connect(&session, &at(good, server.port())?, "allow", "good")?;
        let left = wire.left()?;
        let out = left.iter().find(|packet| packet.to == refused);
        ensure!(out.is_none(), "a packet left for {bad}: {out:?}");
        let allowed: IpAddr = good.parse()?;
        let sent = left.iter().filter(|packet| packet.to == allowed).count();
        ensure!(sent == 2, "{sent} datagrams to {good} instead of 2");
    }
    Ok(())
}
