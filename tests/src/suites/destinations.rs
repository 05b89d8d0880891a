//! Random rules on addresses: what the kernel does with a connect is what a policy means.
//!
//! What a policy means is said here once more, from `docs/policy.md` and nothing else, and held against what the kernel's
//! tables make of it. That the agent's own reference decision and those tables agree is tested where they are. Datagram
//! sockets are connected, which sends nothing, and streams where nobody listens, in a network that leads nowhere.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use serde_json::Value;

use super::{
    random::{Dice, SEED, rolled},
    scene::only,
};
use crate::harness::{capture::own_network, prelude::*, wait::in_guest};

pub(super) const TESTS: &[Test] = &[Test::sharing("random::addresses-as-a-policy-means", WHEREVER, agree)];

/// Policies, on this machine and in a guest.
const POLICIES: (u32, u32) = (30, 12);
/// Of a session's member.
const TRIES: usize = 60;

/// Networks in and around each other, in both families and in the mapped form; the unspecified addresses and the class.
const NETS: [&str; 26] = [
    "0.0.0.0/0",
    "127.0.0.0/8",
    "127.0.0.0/29",
    "127.0.0.0/30",
    "127.0.0.2/31",
    "127.0.0.1/32",
    "127.1.0.0/16",
    "127.1.2.0/24",
    "127.1.2.3/32",
    "::ffff:0:0/96",
    "::ffff:127.0.0.0/126",
    "::ffff:127.1.2.3/128",
    "0.0.0.0/32",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "::/0",
    "::/128",
    "::1/128",
    "fd00::/8",
    "fd00:5e5::/32",
    "fd00:5e5::/64",
    "fd00:5e5::4/126",
    "fd00:5e5::6/127",
    "fd00:5e5::7/128",
    "fd00:ec2::254/128",
    METADATA,
];
/// The class of such addresses.
const METADATA: &str = "metadata";
/// Those of the class that are tried.
const SERVICES: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// What the member's network has beside 127.0.0.0/8 and ::1.
const OWN: [&str; 5] = ["fd00:5e5::4", "fd00:5e5::5", "fd00:5e5::6", "fd00:5e5::7", "fd00:5e5:0:1::1"];
const ADDRESSES: [&str; 25] = [
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.3",
    "127.0.0.4",
    "127.0.0.9",
    "127.1.2.3",
    "127.1.2.4",
    "127.1.9.9",
    "::ffff:127.0.0.1",
    "::ffff:127.0.0.3",
    "::ffff:127.1.2.3",
    "::ffff:127.1.2.9",
    "::1",
    OWN[0],
    OWN[1],
    OWN[2],
    OWN[3],
    OWN[4],
    "fdff::1",
    "2001:db8::1",
    "192.0.2.1",
    SERVICES[0],
    SERVICES[1],
    "0.0.0.0",
    "::",
];
const LOOPBACK: (IpAddr, IpAddr) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
const PORTS: [u16; 9] = [1, 7, 8, 22, 53, 80, 443, 1000, 65535];
const RANGES: [&str; 10] = ["7", "8", "22", "53", "7-8", "1-22", "50-80", "8-1000", "443-65535", "1-65535"];
const PROTOCOLS: [&str; 4] = ["tcp", "udp", "udplite", "sctp"];
/// Each with whether it allows what no rule names.
const KINDS: [(&str, bool); 5] =
    [("service", false), ("ci", false), ("agent", false), ("operator", true), ("breakglass", true)];

#[derive(Clone, Debug)]
struct Rule {
    id: String,
    allow: bool,
    to: &'static str,
    /// None: every port.
    ports: BTreeSet<&'static str>,
    /// None: every protocol.
    protocols: BTreeSet<&'static str>,
}

impl Rule {
    fn roll(dice: &mut Dice, id: String) -> Self {
        let allow = dice.below(5) < 3;
        let some = |dice: &mut Dice, all: &[&'static str], most: usize| -> BTreeSet<&'static str> {
            (0..dice.below(most + 1)).map(|_| *dice.of(all)).collect()
        };
        let (to, ports) = (*dice.of(&NETS), some(dice, &RANGES, 2));
        Self { id, allow, to, ports, protocols: some(dice, &PROTOCOLS, 2) }
    }

    fn text(&self) -> String {
        let list = |key: &str, words: &BTreeSet<&str>, quote: &str| {
            let words: Vec<String> = words.iter().map(|word| format!("{quote}{word}{quote}")).collect();
            if words.is_empty() { String::new() } else { format!(", {key}: [{}]", words.join(", ")) }
        };
        let (ports, protocols) = (list("ports", &self.ports, "\""), list("proto", &self.protocols, ""));
        format!("{{ to: \"{}\"{ports}{protocols}, id: {} }}", self.to, self.id)
    }

    /// Whether it names the address, which is not in mapped form.
    fn names(&self, to: IpAddr) -> Result<bool> {
        let service = SERVICES.contains(&to.to_string().as_str());
        if self.to == METADATA {
            return Ok(service);
        }
        if service && self.allow {
            let (net, length) = self.to.split_once('/').context("a network has a length")?;
            return Ok(net.parse() == Ok(to) && matches!(length, "32" | "128"));
        }
        // Linux connects the unspecified addresses to the host itself
        let also: &[IpAddr] = match to {
            _ if self.allow || !to.is_unspecified() => &[],
            IpAddr::V4(_) => &[LOOPBACK.0],
            IpAddr::V6(_) => &[LOOPBACK.0, LOOPBACK.1],
        };
        let mut found = covers(self.to, to)?;
        for address in also {
            found |= covers(self.to, *address)?;
        }
        Ok(found)
    }

    fn fits(&self, port: u16, protocol: &str) -> Result<bool> {
        let within = |range: &&str| -> Result<bool> {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            Ok((low.parse::<u16>()?..=high.parse::<u16>()?).contains(&port))
        };
        let ports = self.ports.iter().map(within).collect::<Result<Vec<_>>>()?;
        let port_fits = ports.is_empty() || ports.contains(&true);
        Ok(port_fits && (self.protocols.is_empty() || self.protocols.contains(protocol)))
    }
}

/// Whether a network has the address. Mapped IPv4 is IPv4, and is in no network of IPv6.
fn covers(net: &str, address: IpAddr) -> Result<bool> {
    let (net, length) = net.split_once('/').context("a network has a length")?;
    let (net, length): (IpAddr, u32) = (net.parse()?, length.parse()?);
    let mapped = net.is_ipv6() && net.to_canonical().is_ipv4();
    let (net, length) = (net.to_canonical(), if mapped { length - 96 } else { length });
    let same = |one: u128, other: u128, bits: u32| length == 0 || (one ^ other) >> (bits - length) == 0;
    Ok(match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => same(net.to_bits().into(), address.to_bits().into(), 32),
        (IpAddr::V6(net), IpAddr::V6(address)) => same(net.to_bits(), address.to_bits(), 128),
        _ => false,
    })
}

/// What a member tries.
#[derive(Clone, Debug)]
struct Try {
    protocol: &'static str,
    address: &'static str,
    port: u16,
}

impl Try {
    /// Each address once, and more by chance.
    fn all(dice: &mut Dice) -> Vec<Self> {
        let each = (0..TRIES).map(|n| if n < ADDRESSES.len() { ADDRESSES[n] } else { *dice.of(&ADDRESSES) });
        let each: Vec<&'static str> = each.collect();
        let roll = |address: &'static str| {
            let protocol = if dice.below(4) == 0 && !is_unspecified(address) { "tcp" } else { "udp" };
            Self { protocol, address, port: *dice.of(&PORTS) }
        };
        each.into_iter().map(roll).collect()
    }

    /// Not in mapped form.
    fn to(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address.parse::<IpAddr>()?.to_canonical(), self.port))
    }
}

/// A stream to such an address would go on to another, whose rules its packets are judged by.
fn is_unspecified(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "::")
}

/// What a policy says of a destination: whether it may be reached, and by which rules or for which reason.
fn meaning((kind, open): (&str, bool), rules: &[Rule], tried: &Try) -> Result<(bool, Vec<String>)> {
    let to = tried.to()?;
    let mut named = [Vec::new(), Vec::new()];
    for rule in rules {
        if rule.names(to.ip())? && rule.fits(to.port(), tried.protocol)? {
            named[usize::from(rule.allow)].push(rule.id.clone());
        }
    }
    let [denied, allowed] = named;
    if !denied.is_empty() {
        return Ok((false, denied));
    }
    let here = to.ip().is_loopback() || to.ip().is_unspecified();
    if here && to.port() == 22 && tried.protocol == "tcp" && matches!(kind, "service" | "ci" | "agent") {
        return Ok((false, vec!["delegation".to_owned()]));
    }
    if !allowed.is_empty() {
        return Ok((true, allowed));
    }
    let reason = match to.ip().to_string() {
        service if SERVICES.contains(&service.as_str()) => return Ok((false, vec![METADATA.to_owned()])),
        _ if to.port() == 53 && !open => "dns-denied",
        _ => "default",
    };
    Ok((open, vec![reason.to_owned()]))
}

/// A denial of loopback and one of a network around what is allowed, so that the first policy has what chance seldom draws.
fn denials_all_round() -> Vec<Rule> {
    let rule = |n: usize, allow: bool, to: &'static str| Rule {
        id: format!("r{n}"),
        allow,
        to,
        ports: BTreeSet::new(),
        protocols: BTreeSet::new(),
    };
    let mut rules = vec![
        rule(0, true, "0.0.0.0/0"),
        rule(1, true, "::/0"),
        rule(2, false, "127.0.0.1/32"),
        rule(3, false, "fd00:5e5::4/126"),
        rule(4, true, "fd00:5e5::7/128"),
        rule(5, true, "::/128"),
    ];
    rules[3].ports.insert("1-22");
    rules
}

fn agree(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&OWN)?;
    let (seed, mut dice) = rolled()?;
    let (begun, mut counts) = (Instant::now(), [0; 2]);
    for round in 0..if in_guest() { POLICIES.1 } else { POLICIES.0 } {
        let count = 1 + dice.below(6);
        let (kind, rules) = match round {
            0 => (KINDS[1], denials_all_round()),
            _ => (*dice.of(&KINDS), (0..count).map(|n| Rule::roll(&mut dice, format!("r{n}"))).collect()),
        };
        let tries = Try::all(&mut dice);
        let of_round = || format!("{SEED}={seed}, policy {round} of kind {} with {rules:?}", kind.0);
        let allowed = one(s, &member, kind, &rules, &tries).with_context(of_round)?;
        counts = [counts[0] + tries.len() - allowed, counts[1] + allowed];
    }
    eprintln!("{SEED}={seed}: {counts:?} connects were refused and allowed in {:?}", begun.elapsed());
    // chance that lets everything through, or nothing, would prove nothing
    ensure!(counts.iter().all(|count| *count > 0), "{SEED}={seed}: {counts:?} were refused and allowed");
    Ok(())
}

/// A member of one session tries them all; how many were allowed.
fn one(s: &Sandbox, member: &str, kind: (&'static str, bool), rules: &[Rule], tries: &[Try]) -> Result<usize> {
    let policy = rules.iter().fold(only(member).kind(kind.0), |policy, rule| {
        policy.net_rule(if rule.allow { "allow" } else { "deny" }, &rule.text())
    });
    let words = tries.iter().map(|tried| format!("connect {} {} {}", tried.protocol, tried.address, tried.port));
    let running = s.run(&s.policy(&policy)?, member, &words.collect::<Vec<_>>().join(" + "))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    let answers: Vec<&str> = finished.stdout.lines().collect();
    let mut records = s.records(&session, "connect")?;
    records.sort_by_key(|record| record["seq"].as_u64());
    let records: Vec<&Value> = records.iter().filter(|record| record["via"] == "connect").collect();
    let (said, told) = (answers.len(), records.len());
    ensure!(said == tries.len() && told == tries.len(), "{said} answers and {told} records: {finished:?}");
    let mut through = 0;
    for ((tried, answer), record) in tries.iter().zip(answers).zip(records) {
        let (allowed, by) = meaning(kind, rules, tried)?;
        ensure!((answer != "errno 1") == allowed, "{tried:?} was answered {answer} where {allowed} {by:?}; {record}");
        ensure!(record["to"] == tried.to()?.to_string(), "{tried:?} has the record {record}");
        let rule = record["rule"].as_str().unwrap_or_default();
        let verdict = if allowed { "allow" } else { "deny" };
        ensure!(record["verdict"] == verdict && by.iter().any(|own| own == rule), "{tried:?}: {by:?}, but {record}");
        through += usize::from(allowed);
    }
    Ok(through)
}
