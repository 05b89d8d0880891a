//! What a policy says of traffic beyond addresses: names, metadata addresses, many rules, rules that cannot be.

use std::{fs, net::IpAddr};

use super::{
    scene::{only, reach},
    sockets::FAMILIES,
};
use crate::harness::{prelude::*, server::Server};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("scope::names-need-the-resolver", WHEREVER, names),
    Test::sharing("scope::loopback-needs-a-rule", WHEREVER, loopback),
    Test::sharing("scope::metadata-is-denied-in-every-kind", WHEREVER, metadata),
    Test::sharing("scope::ten-thousand-rules", WHEREVER, ten_thousand_rules),
    Test::sharing("scope::strict-asks-for-what-is-written", WHEREVER, strict),
    Test::sharing("scope::the-same-network-twice", WHEREVER, twice),
    Test::sharing("scope::too-many-port-rules-name-the-network", WHEREVER, too_many_port_rules),
];

/// The first resolver of this host, as resolv.conf(5) has it.
pub(super) fn resolver() -> String {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let first = addresses.filter_map(|rest| rest.trim().parse::<IpAddr>().ok()).next();
    first.map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string())
}

/// Connecting a UDP socket sends nothing, so the host's resolver is not asked.
fn names(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let resolver = resolver();
    let to = std::net::SocketAddr::new(resolver.parse()?, 53).to_string();
    let line = format!("connect udp {resolver} 53");
    let closed = reach(s, &only(&member), &member, &line)?;
    closed.was_refused_to(s, &to, "dns-denied")?;
    let record = s.saw_connect(&closed.session, &to, "deny", "dns-denied")?;
    let remedy = "add `resolver: allow` to spec.scope.net";
    ensure!(record["remedy"] == remedy, "the record has no remedy: {record}");
    s.cli(&["events"])?.ended(0)?.told(&["dns-denied", remedy])?;
    // a query that is refused is not sent
    for way in ["send", "connect tcp"] {
        let refused = reach(s, &only(&member), &member, &format!("{way} {resolver} 53"))?;
        refused.was_refused_to(s, &to, "dns-denied")?;
    }
    let open = reach(s, &only(&member).net("resolver: allow"), &member, &line)?;
    open.was_let_through(s, &to, "net.resolver")?;
    // nothing but port 53 of it is open
    let other = reach(s, &only(&member).net("resolver: allow"), &member, &format!("connect udp {resolver} 54"))?;
    let other_to = std::net::SocketAddr::new(resolver.parse()?, 54).to_string();
    other.was_refused_to(s, &other_to, "default")
}

/// Loopback is a destination as any other: closed by the kind, and by a denial where the kind is open; a rule for another
/// address of loopback does not open it, its own does.
fn loopback(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let connect = |to: &Server| format!("connect tcp {}", to.words());
        for kind in ["service", "ci", "agent"] {
            let (good, bad) = (Server::tcp(address)?, Server::tcp(address)?);
            let closed = only(&member).kind(kind).to("other4", "127.0.0.2/32", "").to("other6", "::2/128", "");
            reach(s, &closed, &member, &connect(&bad))?.was_refused(s, &bad, "default")?;
            let open = closed.to("own", prefix, good.port());
            reach(s, &open, &member, &connect(&good))?.arrived(s, &good, "own")?;
        }
        let (good, bad) = (Server::tcp(address)?, Server::tcp(address)?);
        let open = only(&member).kind("operator").not_to("none", prefix, bad.port());
        reach(s, &open, &member, &connect(&bad))?.was_refused(s, &bad, "none")?;
        reach(s, &open, &member, &connect(&good))?.arrived(s, &good, "default")?;
    }
    Ok(())
}

/// Connecting a UDP socket sends nothing.
fn metadata(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for kind in ["service", "ci", "agent", "operator", "breakglass"] {
        let wide = only(&member).kind(kind).to("four", "0.0.0.0/0", "").to("link", "169.254.0.0/16", "");
        let wide = wide.to("six", "::/0", "").to("near", "fd00:ec2::/32", "");
        let named = wide.clone().net("resolver: deny").to("cloud", "metadata", 80);
        for (address, shown) in [
            ("169.254.169.254", "169.254.169.254:80"),
            ("::ffff:169.254.169.254", "169.254.169.254:80"),
            ("100.100.100.200", "100.100.100.200:80"),
            ("fd00:ec2::254", "[fd00:ec2::254]:80"),
            ("fd20:ce::254", "[fd20:ce::254]:80"),
        ] {
            let line = format!("connect udp {address} 80");
            reach(s, &wide, &member, &line)?.was_refused_to(s, shown, "metadata")?;
            reach(s, &named, &member, &line)?.was_let_through(s, shown, "cloud")?;
        }
        // what lies beside one is in its network
        let beside = reach(s, &wide, &member, "connect udp fd00:ec2::253 80")?;
        beside.was_let_through(s, "[fd00:ec2::253]:80", "near")?;
    }
    Ok(())
}

fn ten_thousand_rules(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (good, bad, member) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.2")?, s.program("member")?);
    let (good6, bad6) = (Server::tcp("::1")?, Server::tcp("::1")?);
    let many = |count: u32| {
        let each = (0..count).map(|n| (n, format!("10.{}.{}.{}/32", n % 200, n / 200, n % 251)));
        each.fold(only(&member), |policy, (n, net)| policy.to(&format!("r{n}"), &net, "443"))
    };
    let policy = many(9_997).to("last", "fd00:9997::/64", "443").to("good", "127.0.0.1/32", good.port());
    let policy = policy.to("good6", "::1/128", good6.port());
    reach(s, &policy, &member, &format!("connect tcp {}", bad6.words()))?.was_refused(s, &bad6, "default")?;
    reach(s, &policy, &member, &format!("connect tcp {}", good6.words()))?.arrived(s, &good6, "good6")?;
    reach(s, &policy, &member, "connect udp fd00:9997::1 443")?.was_let_through(s, "[fd00:9997::1]:443", "last")?;
    reach(s, &policy, &member, "connect udp fd00:9997::1 444")?.was_refused_to(s, "[fd00:9997::1]:444", "default")?;
    reach(s, &policy, &member, &format!("connect tcp {}", bad.words()))?.was_refused(s, &bad, "default")?;
    reach(s, &policy, &member, &format!("connect tcp {}", good.words()))?.arrived(s, &good, "good")?;
    // the last rule of many is as good as the first
    let line = |port: u16| format!("connect udp 10.196.49.207 {port}");
    reach(s, &policy, &member, &line(443))?.was_let_through(s, "10.196.49.207:443", "r9996")?;
    reach(s, &policy, &member, &line(444))?.was_refused_to(s, "10.196.49.207:444", "default")?;
    let too_many = s.policy(&many(16_385))?;
    let refused = s.cli(&["policy", "check", &too_many])?;
    refused.ended(2)?.told(&["spec.scope: has 16386 rules: a policy has at most 16384"])?;
    Ok(())
}

/// A key that is written asks for its control; the kind's default alone does not.
fn strict(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let controls = s.json(&["probe"])?["controls"].clone();
    let state = |name: &str| {
        let all = controls.as_array().into_iter().flatten();
        all.filter(|c| c["control"] == name).map(|c| c["state"].clone()).next().unwrap_or_default()
    };
    let policy = || only(&member).strict();
    s.run(&s.policy(&policy())?, &member, "say runs")?.wait()?.ended(0)?.said("runs")?;
    for (control, policy) in [
        ("listen", policy().net("listen: []")),
        ("listen", policy().net("inbound: deny")),
        ("unix-sockets", policy().scope("unix: {}")),
        // the kind denies raw sockets and some of the other families
        ("other-sockets", policy().scope("sockets: {}")),
        ("other-sockets", policy().scope("sockets: { deny: [vsock, netlink] }")),
        ("privileges", policy().scope("privileges: {}")),
        ("budgets", policy().spec("budgets: { connects: 5 }")),
    ] {
        let ran = s.run(&s.policy(&policy)?, &member, "say runs")?.wait()?;
        if state(control) == "unavailable" {
            ran.ended(125)?.complained(&[control, "strict"])?;
        } else {
            ran.ended(0)?.said("runs")?;
        }
    }
    Ok(())
}

/// Rules for one network add up, whatever their order; one that says what another does is noted and changes nothing; one
/// that a denial covers is noted and allows nothing.
fn twice(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (one, two, bad) = (Server::tcp(address)?, Server::tcp(address)?, Server::tcp(address)?);
        let policy = only(&member).to("one", prefix, one.port()).to("two", prefix, two.port());
        let policy = policy.to("again", prefix, one.port()).to("lost", prefix, bad.port());
        let policy = s.policy(&policy.not_to("not", prefix, bad.port()))?;
        let notes =
            ["rule again says what rule one says: keep one", "rule lost has no effect: rule not denies what it allows"];
        let line = [&one, &two, &bad].map(|server| format!("connect tcp {}", server.words())).join(" + ");
        let running = s.run(&policy, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said("ok\nok\nerrno 1")?.complained(&notes)?;
        for (server, verdict, rule) in [(&one, "allow", "one"), (&two, "allow", "two"), (&bad, "deny", "not")] {
            s.saw_connect(&session, &server.address(), verdict, rule)?;
        }
        one.accepted(1)?;
        two.accepted(1)?;
        bad.untouched()?;
    }
    Ok(())
}

fn too_many_port_rules(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let ports = |count: u16| {
        let each = (1..=count).map(|n| (n, n * 2));
        each.fold(only(&member), |policy, (n, port)| policy.to(&format!("r{n}"), "10.1.0.0/16", port))
    };
    s.run(&s.policy(&ports(32))?, &member, "say fits")?.wait()?.ended(0)?.said("fits")?;
    let refused = s.run(&s.policy(&ports(33))?, &member, "say fits")?.wait()?;
    refused.ended(125)?.complained(&["33 or more port rules hold for 10.1.0.0/16, the limit is 32"])?;
    Ok(())
}
