//! Which addresses a session may reach.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::{
    scene::{Fifo, only, reach, report},
    sockets::FAMILIES,
};
use crate::harness::{
    capture::{Capture, add_address, add_address_to, own_network, set},
    interface::tunnel,
    prelude::*,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("net::tcp-v4", WHEREVER, tcp_v4),
    Test::sharing("net::tcp-v6", WHEREVER, tcp_v6),
    Test::sharing("net::udp-connect", WHEREVER, udp_connect),
    Test::sharing("net::udp-send-without-connect", WHEREVER, udp_send),
    Test::sharing("net::v4-mapped-address-is-v4", WHEREVER, mapped),
    Test::sharing("net::v4-address-on-a-v6-socket", WHEREVER, v4_on_v6),
    Test::sharing("net::tcp-fast-open", WHEREVER, fast_open),
    Test::sharing("net::second-connect-is-judged", WHEREVER, reconnect),
    Test::sharing("net::port-range", WHEREVER, port_range),
    Test::sharing("net::protocol", WHEREVER, protocol),
    Test::sharing("net::deny-beats-allow", WHEREVER, deny_beats_allow),
    Test::sharing("net::metadata-address", WHEREVER, metadata),
    Test::sharing("net::daemonised-child", WHEREVER, daemonised),
    Test::sharing("net::observe-lets-through-and-records", WHEREVER, observe),
    Test::sharing("net::in-a-namespace-that-a-member-made", WHEREVER, namespace),
    Test::sharing("net::what-the-network-lacks", WHEREVER, lacking),
    Test::sharing("net::an-interface-that-appears-later", WHEREVER, appearing),
];

/// A member does `how` with the address of a server that is in scope, and with that of one that is not.
fn both(s: &mut Sandbox, prefix: &str, how: &str, good: &Server, bad: &Server) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = only(&member).to("server", prefix, good.port());
    reach(s, &policy, &member, &format!("{how} {}", bad.words()))?.was_refused(s, bad, "default")?;
    reach(s, &policy, &member, &format!("{how} {}", good.words()))?.arrived(s, good, "server")
}

fn tcp_v4(s: &mut Sandbox) -> Result<()> {
    both(s, "127.0.0.1/32", "connect tcp", &Server::tcp("127.0.0.1")?, &Server::tcp("127.0.0.1")?)
}

fn tcp_v6(s: &mut Sandbox) -> Result<()> {
    both(s, "::1/128", "connect tcp", &Server::tcp("::1")?, &Server::tcp("::1")?)
}

fn udp_connect(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")] {
        let (good, bad) = (Server::udp(address)?, Server::udp(address)?);
        let policy = only(&member).to("server", prefix, good.port());
        let refused = reach(s, &policy, &member, &format!("connect udp {}", bad.words()))?;
        refused.was_refused(s, &bad, "default")?;
        let allowed = reach(s, &policy, &member, &format!("connect udp {}", good.words()))?;
        allowed.was_let_through(s, &good.address(), "server")?;
    }
    Ok(())
}

fn udp_send(s: &mut Sandbox) -> Result<()> {
    both(s, "127.0.0.1/32", "send", &Server::udp("127.0.0.1")?, &Server::udp("127.0.0.1")?)?;
    let (good, bad, member) = (Server::udp("::1")?, Server::udp("::1")?, s.program("member")?);
    let policy = only(&member).to("server", "::1/128", good.port());
    reach(s, &policy, &member, &format!("send {}", bad.words()))?.was_refused(s, &bad, "default")?;
    let allowed = reach(s, &policy, &member, &format!("send {}", good.words()))?;
    allowed.arrived(s, &good, "server")
}

/// The rules of `127.0.0.1` hold for `::ffff:127.0.0.1`, for connect and for send.
fn mapped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for how in ["connect tcp", "send"] {
        let server = if how == "send" { Server::udp } else { Server::tcp };
        let (good, bad) = (server("127.0.0.1")?, server("127.0.0.1")?);
        let policy = only(&member).to("server", "127.0.0.1/32", good.port()).to("six", "::/0", "");
        let line = |to: &Server| format!("{how} ::ffff:127.0.0.1 {}", to.port());
        reach(s, &policy, &member, &line(&bad))?.was_refused(s, &bad, "default")?;
        reach(s, &policy, &member, &line(&good))?.arrived(s, &good, "server")?;
    }
    Ok(())
}

fn v4_on_v6(s: &mut Sandbox) -> Result<()> {
    both(s, "127.0.0.1/32", "send-v4-on-v6", &Server::udp("127.0.0.1")?, &Server::udp("127.0.0.1")?)
}

fn fast_open(s: &mut Sandbox) -> Result<()> {
    both(s, "127.0.0.1/32", "fast-open", &Server::tcp("127.0.0.1")?, &Server::tcp("127.0.0.1")?)?;
    let (good, bad, member) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?, s.program("member")?);
    let policy = only(&member).to("server", "127.0.0.1/32", good.port());
    reach(s, &policy, &member, &format!("fast-open-connect {}", bad.words()))?.was_refused(s, &bad, "default")?;
    reach(s, &policy, &member, &format!("fast-open-connect {}", good.words()))?.arrived(s, &good, "server")
}

/// One socket connects to an allowed address, disconnects, and connects to another.
fn reconnect(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (good, bad, member) = (Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?, s.program("member")?);
    let policy = s.policy(&only(&member).to("server", "127.0.0.1/32", good.port()))?;
    let line = |last: &Server| format!("reconnect {} {}", good.words(), last.words());
    for (last, said, verdict, rule) in
        [(&bad, "ok\nok\nerrno 1", "deny", "default"), (&good, "ok\nok\nok", "allow", "server")]
    {
        let running = s.run(&policy, &member, &line(last))?;
        let session = running.session(s)?;
        running.wait()?.said(said)?;
        s.saw_connect(&session, &last.address(), verdict, rule)?;
    }
    bad.untouched()
}

fn port_range(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let good = Server::tcp(address)?;
        let (low, high) = (good.port() - 1, good.port().saturating_add(1));
        let bad = until("a server outside the range", patience(), || {
            let server = Server::tcp(address)?;
            Ok((!(low..=high).contains(&server.port())).then_some(server))
        })?;
        let policy = only(&member).to("range", prefix, format!("{low}-{high}"));
        reach(s, &policy, &member, &format!("connect tcp {}", bad.words()))?.was_refused(s, &bad, "default")?;
        reach(s, &policy, &member, &format!("connect tcp {}", good.words()))?.arrived(s, &good, "range")?;
    }
    Ok(())
}

/// A rule for TCP does not open UDP, nor one for UDP TCP.
fn protocol(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let stream = |server: &Server| format!("connect tcp {}", server.words());
        let datagram = |server: &Server| format!("send {}", server.words());
        let (tcp, udp) = (Server::tcp(address)?, Server::udp(address)?);
        let policy = only(&member).by_protocol("tcp-only", prefix, "tcp");
        reach(s, &policy, &member, &datagram(&udp))?.was_refused(s, &udp, "default")?;
        reach(s, &policy, &member, &stream(&tcp))?.arrived(s, &tcp, "tcp-only")?;
        let (tcp, udp) = (Server::tcp(address)?, Server::udp(address)?);
        let policy = only(&member).by_protocol("udp-only", prefix, "udp");
        reach(s, &policy, &member, &stream(&tcp))?.was_refused(s, &tcp, "default")?;
        reach(s, &policy, &member, &datagram(&udp))?.arrived(s, &udp, "udp-only")?;
    }
    Ok(())
}

/// A denial holds whether it is the wider rule or the narrower one.
fn deny_beats_allow(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&["fd00:44::1", "fd00:44::2"])?;
    for (good, bad, all) in [("127.0.0.1", "127.0.0.2", "127.0.0.0/8"), ("fd00:44::1", "fd00:44::2", "fd00:44::/64")] {
        let connect = |to: &Server| format!("connect tcp {}", to.words());
        let (one, two) = (Server::tcp(good)?, Server::tcp(bad)?);
        let narrow = only(&member).to("all", all, "").not_to("not-two", bad, "");
        reach(s, &narrow, &member, &connect(&two))?.was_refused(s, &two, "not-two")?;
        reach(s, &narrow, &member, &connect(&one))?.arrived(s, &one, "all")?;
        let (open, closed) = (Server::tcp(good)?, Server::tcp(good)?);
        let wide = only(&member).to("one", good, "").not_to("not-all", all, closed.port());
        reach(s, &wide, &member, &connect(&closed))?.was_refused(s, &closed, "not-all")?;
        reach(s, &wide, &member, &connect(&open))?.arrived(s, &open, "one")?;
    }
    Ok(())
}

/// The same scope holds in a network of a member's own: of what is refused nothing leaves there.
fn namespace(s: &mut Sandbox) -> Result<()> {
    const PORTS: [u16; 2] = [7777, 7778];
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let policy = s.policy(&only(&member).to("good", prefix, PORTS[1]).privileges("capabilities"))?;
        for (port, answer, verdict, rule) in
            [(PORTS[0], "errno 1", "deny", "default"), (PORTS[1], "ok", "allow", "good")]
        {
            let (pid, go) = (s.file("pid"), s.file("go"));
            let line = format!("unshare net loopback pid {pid} await {go} connect tcp {address} {port}");
            let running = s.run(&policy, &member, &line)?;
            let session = running.session(s)?;
            let inside = s.pid_in(&pid)?;
            let (server, wire) = (Server::tcp_within(inside, address, port)?, Capture::within(inside)?);
            std::fs::write(&go, "")?;
            running.wait()?.said(&format!("{answer}\nexit 0"))?;
            s.saw_connect(&session, &server.address(), verdict, rule)?;
            let left = wire.left()?.iter().filter(|packet| packet.to_port == port).count();
            server.accepted(usize::from(verdict == "allow"))?;
            ensure!((left > 0) == (verdict == "allow"), "{left} packets left for {}", server.address());
        }
    }
    Ok(())
}

/// The addresses of both families are reached by an interface of the test's own, where nobody answers: nothing leaves for one that no
/// rule names.
fn metadata(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let (_device, number) = match tunnel("169.254.169.1".parse()?) {
        Err(errno @ (Errno::ENOENT | Errno::ENODEV)) => {
            return Err(Lacking(format!("no TUN interface can be made here: {errno}")).into());
        }
        made => made?,
    };
    add_address_to(number, "fd00:ec2::1".parse()?)?;
    let wire = Capture::new()?;
    let closed = only(&member);
    let open = only(&member).to("cloud", "169.254.169.254/32", 80).to("cloud6", "fd00:ec2::254/128", 80);
    for (to, rule) in [("169.254.169.254", "cloud"), ("fd00:ec2::254", "cloud6")] {
        let shown = SocketAddr::new(to.parse()?, 80).to_string();
        let address: IpAddr = to.parse()?;
        for line in [format!("by udp the-mark {to} 80"), format!("connect-waiting tcp {to} 80")] {
            wire.left()?;
            reach(s, &closed, &member, &line)?.was_refused_to(s, &shown, "metadata")?;
            let out = wire.left()?.into_iter().find(|packet| packet.to == address);
            ensure!(out.is_none(), "{line}: a packet left: {out:?}");
            reach(s, &open, &member, &line)?.was_let_through(s, &shown, rule)?;
            let out = wire.left()?.iter().any(|packet| packet.to == address);
            ensure!(out, "{line}: nothing left where a rule allows it");
        }
    }
    Ok(())
}

fn daemonised(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (good, bad) = (Server::tcp(address)?, Server::tcp(address)?);
        let policy = s.policy(&only(&member).to("server", prefix, good.port()))?;
        for (server, expected) in [(&bad, "errno 1"), (&good, "ok")] {
            let answers = s.file("answers");
            let line = format!("daemonise report {answers} connect tcp {} + idle", server.words());
            let running = s.run(&policy, &member, &line)?;
            let session = running.session(s)?;
            ensure!(report(&answers, 1)?[0] == expected, "a daemonised child: {:?}", report(&answers, 1)?);
            let (verdict, rule) = if expected == "ok" { ("allow", "server") } else { ("deny", "default") };
            s.saw_connect(&session, &server.address(), verdict, rule)?;
            s.cli(&["end", &session])?.ended(0)?;
            s.session_ended(&session, "operator")?;
        }
        bad.untouched()?;
        good.accepted(1)?;
    }
    Ok(())
}

fn observe(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member).observe())?;
    for (address, _) in FAMILIES {
        let (server, closed) = (Server::tcp(address)?, Server::tcp(address)?);
        let running = s.run(&policy, &member, &format!("connect tcp {}", server.words()))?;
        let session = running.session(s)?;
        running.wait()?.said("ok")?;
        server.accepted(1)?;
        s.saw_connect(&session, &server.address(), "would-deny", "default")?;
        let refused = reach(s, &only(&member), &member, &format!("connect tcp {}", closed.words()))?;
        refused.was_refused(s, &closed, "default")?;
    }
    Ok(())
}

/// No way to an address in scope is no refusal, and who then takes IPv4 gets there; one that is refused is told at once and may
/// do so too. An address that comes later is in scope from then on, and IPv4 goes on where the host gives up IPv6.
fn lacking(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let server = Server::tcp("::")?;
    let (port, mut fifo) = (server.port(), Fifo::new(s)?);
    let policy = only(&member)
        .to("far", "2001:db8::/32", "")
        .to("later", "fd00:88::/64", "")
        .to("near", "127.0.0.0/8", "")
        .to("loopback", "::1/128", port);
    let connect = |to: &str| format!("connect tcp {to} {port}");
    let none = [connect("2001:db8::1"), connect("fd00:88::1"), connect("fd00:99::1"), connect("127.0.0.1")].join(" + ");
    let line = format!("{none} + fifo {} {}", fifo.path, connect("fd00:88::1"));
    let policy = s.policy(&policy)?;
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    let answers = format!("errno {0}\nerrno {0}\nerrno {1}\nok\n", libc::ENETUNREACH, libc::EPERM);
    until("the member to have tried all", patience(), || Ok((running.said().len() >= answers.len()).then_some(())))?;
    ensure!(running.said() == answers, "{:?}", running.said());
    s.saw_connect(&session, &format!("[2001:db8::1]:{port}"), "allow", "far")?;
    s.saw_connect(&session, &format!("[fd00:99::1]:{port}"), "deny", "default")?;
    add_address("fd00:88::1".parse()?)?;
    fifo.wake()?;
    running.wait()?.said(&format!("{answers}ok"))?;
    server.accepted(2)?;
    // who does not wait in connect(2) is told the same
    let waiting = none.replace("connect tcp", "connect-waiting tcp").replace("fd00:88::1", "fd00:89::1");
    let told = format!("errno {0}\nerrno {1}\nerrno {1}\nok", libc::ENETUNREACH, libc::EPERM);
    s.run(&policy, &member, &waiting)?.wait()?.said(&told)?;
    server.accepted(3)?;
    set("ipv6/conf/all/disable_ipv6", "1")?;
    let running = s.run(&policy, &member, &format!("{} + {}", connect("::1"), connect("127.0.0.1")))?;
    let said = running.wait()?.stdout;
    let (six, four) = said.split_once('\n').context("two answers")?;
    ensure!(six.starts_with("errno ") && six != "errno 1" && four.trim_end() == "ok", "{said}");
    server.accepted(4)
}

/// A network that is not there when the session starts, on an interface that is not: what is in scope leaves by it once it is, and
/// nothing else does.
fn appearing(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    let mut fifo = Fifo::new(s)?;
    let policy = only(&member).to("four", "10.77.0.0/28", 9).to("six", "fd00:77::/112", 9);
    let (good, bad) = (["10.77.0.2", "fd00:77::2"], ["10.77.0.99", "fd00:77::1:2"]);
    let all: Vec<String> = good.iter().chain(&bad).map(|to| format!("by udp mark-of-{to} {to} 9")).collect();
    let (before, after) = (all.join(" + "), all.join(" + "));
    let running = s.run(&s.policy(&policy)?, &member, &format!("{before} + fifo {} {after}", fifo.path))?;
    let session = running.session(s)?;
    let none = format!("errno {0}\nerrno {0}\nerrno {1}\nerrno {1}\n", libc::ENETUNREACH, libc::EPERM);
    until("the member to have tried all", patience(), || Ok((running.said().len() >= none.len()).then_some(())))?;
    ensure!(running.said() == none, "{:?}", running.said());
    let (_device, number) = match tunnel("10.77.0.1".parse()?) {
        Err(errno @ (Errno::ENOENT | Errno::ENODEV)) => {
            return Err(Lacking(format!("no TUN interface can be made here: {errno}")).into());
        }
        made => made?,
    };
    add_address_to(number, "fd00:77::1".parse()?)?;
    wire.left()?;
    fifo.wake()?;
    running.wait()?.said(&format!("{none}ok\nok\nerrno {0}\nerrno {0}", libc::EPERM))?;
    let left = wire.left()?;
    for (to, leaves) in good.iter().map(|to| (to, true)).chain(bad.iter().map(|to| (to, false))) {
        let there = left.iter().any(|packet| packet.has(&format!("mark-of-{to}")) || packet.to.to_string() == *to);
        ensure!(there == leaves, "what was sent to {to}: {left:?}");
        let (verdict, rule) = if !leaves {
            ("deny", "default")
        } else if to.contains(':') {
            ("allow", "six")
        } else {
            ("allow", "four")
        };
        s.saw_connect(&session, &SocketAddr::new(to.parse()?, 9).to_string(), verdict, rule)?;
    }
    s.session_ended(&session, "completed").map(drop)
}
