//! Rules on addresses → a table that the kernel programs look up. Owns the folding that lets the longest match alone
//! decide where deny must beat allow.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tipstaff_common::{
    limits::PORT_RULES,
    rule::{self, PORT_REASONS, PortRule},
};

use super::{
    metadata,
    net::{MAPPED_BITS, loopbacks},
    resolved::Resolved,
    traffic::{NetRule, PortRange},
    types::Effect,
};

/// Folding of one prefix stops here: it is refused anyway, and its cost stays bounded.
const FOLDED: usize = 8 * PORT_RULES;

/// The addresses that stand for loopback.
const UNSPECIFIED: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
];

/// Ends the entry of every metadata address: what no rule names is not decided by the kind.
const METADATA: PortRule = PortRule {
    low: 0,
    high: u16::MAX,
    protocol: 0,
    // 1
    verdict: rule::DENY as u8,
    rule: PORT_REASONS + (rule::REASON_METADATA - rule::REASONS) as u16,
};

/// Where who listens on this host is reached by itself, whatever addresses it has.
const LOCAL: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// The port of sshd(8).
const SSH_PORT: u16 = 22;

/// Of every address of this host, where the policy does not allow class `delegation`.
const SSH: PortRule = PortRule {
    low: SSH_PORT,
    high: SSH_PORT,
    // `IPPROTO_TCP`
    protocol: 6,
    // 1
    verdict: rule::DENY as u8,
    rule: PORT_REASONS + (rule::REASON_DELEGATION - rule::REASONS) as u16,
};

/// The networks and addresses at which this host reaches itself.
fn of_this_host(host: &Resolved) -> impl Iterator<Item = IpNet> {
    LOCAL.into_iter().chain(UNSPECIFIED).chain(host.own.iter().copied().map(IpNet::from))
}

/// Whether it is a login on this host, where sshd(8) starts what is asked for.
pub(super) fn is_login(host: &Resolved, to: IpAddr, port: u16, protocol: u8) -> bool {
    port == SSH_PORT && protocol == SSH.protocol && of_this_host(host).any(|net| net.contains(&to))
}

/// Whether a rule names nothing but logins on this host.
pub(super) fn names_logins(host: &Resolved, rule: &NetRule) -> bool {
    let nets = rule.to.nets(host);
    let own = |net: &IpNet| of_this_host(host).any(|own| own.contains(net));
    let port = |range: &PortRange| (range.low, range.high) == (SSH_PORT, SSH_PORT);
    !nets.is_empty() && nets.iter().all(own) && !rule.ports.is_empty() && rule.ports.iter().all(port)
}

/// Key of an inner trie of `NET_RULES`, `LISTEN_RULES` or `INBOUND_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetKey {
    /// Bits of `address` that count, 0 to 128.
    pub prefix_len: u32,
    /// Network order; IPv4 as `::ffff:a.b.c.d`; bits that do not count are 0.
    pub address: [u8; 16],
}

impl From<IpNet> for NetKey {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self {
                prefix_len: u32::from(MAPPED_BITS) + u32::from(net.prefix_len()),
                address: net.network().to_ipv6_mapped().octets(),
            },
            IpNet::V6(net) => Self { prefix_len: u32::from(net.prefix_len()), address: net.network().octets() },
        }
    }
}

/// What an inner trie holds: of each prefix the rules that hold for it, as in `rule::NetEntry`.
pub type NetTable = BTreeMap<NetKey, Vec<PortRule>>;

/// Why a policy cannot be put into the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileProblem {
    /// Too many port rules of a prefix and of those that cover it.
    #[error(
        "{count} or more port rules hold for {prefix}, the limit is {limit}: join ports into ranges or rules into one"
    )]
    PortRules {
        /// The prefix.
        prefix: IpNet,
        /// What was counted, without duplicates and rules that others hide; counting stops at 257.
        count: usize,
        /// `limits::PORT_RULES`
        limit: usize,
    },
}

/// Rules with their numbers, as a table is made of them.
pub(super) struct Rules<'a> {
    pub(super) host: &'a Resolved,
    pub(super) rules: Vec<(&'a NetRule, u32)>,
    /// They are for destinations: unspecified and metadata addresses are more than their bits say.
    pub(super) destinations: bool,
    /// They are for destinations, and nobody logs in on this host.
    pub(super) no_logins: bool,
}

/// The folded rules of every prefix, in the prefixes' order: what covers another comes before it.
pub(super) struct Folded(Vec<(IpNet, Vec<PortRule>)>);

impl Folded {
    pub(super) fn table(self) -> NetTable {
        self.0.into_iter().map(|(net, rules)| (NetKey::from(net), rules)).collect()
    }

    fn of(&self, net: IpNet) -> Option<&[PortRule]> {
        let index = self.0.binary_search_by_key(&net, |(net, _)| *net).ok()?;
        Some(&self.0[index].1)
    }

    /// The rule that denies the first thing that `rule` allows, if rules deny all of it.
    pub(super) fn overrides(&self, host: &Resolved, rule: &NetRule) -> Option<u32> {
        let by = rule.to.with_nets(host, |nets| {
            let mut by = None;
            for net in nets {
                let folded = self.of(*net)?;
                for own in port_rules(rule, 0, is_v6(*net)) {
                    let denied = folded.iter().find(|r| u32::from(r.verdict) == rule::DENY && hides(r, &own))?;
                    by = by.or_else(|| Some(u32::from(denied.rule)));
                }
            }
            by
        });
        by.filter(|number| *number < u32::from(PORT_REASONS))
    }
}

impl Rules<'_> {
    /// # Errors
    /// Every prefix for which too many port rules hold.
    pub(super) fn fold(&self) -> Result<Folded, Vec<CompileProblem>> {
        let mut problems = Vec::new();
        let own = self.own();
        let mut folded: Vec<(IpNet, Vec<PortRule>)> = Vec::with_capacity(own.len());
        // those that cover the next one, the widest first. An IPv6 prefix around mapped IPv4 does not cover what is IPv4
        let mut around: Vec<usize> = Vec::new();
        let mut rules_of_it: Vec<PortRule> = Vec::new();
        for same in own.chunk_by(|(a, _), (b, _)| a == b) {
            let prefix = same[0].0;
            while around.pop_if(|above| !folded[*above].0.contains(&prefix)).is_some() {}
            let own = same.iter().filter_map(|(_, index)| self.rules.get((*index)?));
            rules_of_it.clear();
            rules_of_it.extend(own.flat_map(|(rule, number)| port_rules(rule, *number, is_v6(prefix))));
            let above = around.last().map_or(&[][..], |above| &folded[*above].1);
            let rules = self.fold_one(prefix, &rules_of_it, above);
            if rules.len() > PORT_RULES {
                problems.push(CompileProblem::PortRules { prefix, count: rules.len(), limit: PORT_RULES });
            }
            around.push(folded.len());
            folded.push((prefix, rules));
        }
        if problems.is_empty() { Ok(Folded(folded)) } else { Err(problems) }
    }

    /// `above` holds for what covers the prefix.
    fn fold_one(&self, prefix: IpNet, own: &[PortRule], above: &[PortRule]) -> Vec<PortRule> {
        let mut all;
        let mut above = above;
        if self.no_logins && of_this_host(self.host).any(|own| own == prefix) {
            // after the denials of rules, which have names
            all = above.to_vec();
            all.push(SSH);
            above = &all;
        }
        if !self.destinations || metadata::named_by(prefix).is_none() {
            return fold(own, above);
        }
        let denials: Vec<_> = above.iter().copied().filter(|r| u32::from(r.verdict) == rule::DENY).collect();
        let mut rules = fold(own, &denials);
        rules.push(METADATA);
        rules
    }

    /// Every prefix that needs an entry, once for each of the rules that are its own, by their indices; in the prefixes' order,
    /// and those of a prefix in the rules'.
    fn own(&self) -> Vec<(IpNet, Option<usize>)> {
        let mut own: Vec<(IpNet, Option<usize>)> = Vec::with_capacity(self.rules.len() + UNSPECIFIED.len());
        for (index, (rule, _)) in self.rules.iter().enumerate() {
            let denies = self.destinations && rule.effect == Effect::Deny;
            rule.to.with_nets(self.host, |nets| own_of(nets, index, denies, &mut own));
        }
        if self.no_logins {
            own.extend(of_this_host(self.host).map(|net| (net, None)));
        }
        if self.destinations {
            own.extend(metadata::ADDRESSES.map(|address| (IpNet::from(address), None)));
        }
        own.sort_by_key(|(net, _)| *net);
        own
    }
}

/// The prefixes that need an entry for one rule's networks; `denies`: it denies destinations.
fn own_of(nets: &[IpNet], index: usize, denies: bool, own: &mut Vec<(IpNet, Option<usize>)>) {
    for net in nets {
        own.push((*net, Some(index)));
        if covers_mapped(*net) {
            // stops the trie from finding a rule for IPv6 where it looks for IPv4
            own.push((IpNet::V4(Ipv4Net::default()), None));
        }
    }
    for unspecified in UNSPECIFIED.into_iter().filter(|_| denies) {
        let meant = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
        if loopbacks(unspecified.addr()).iter().any(meant) {
            own.push((unspecified, Some(index)));
        }
    }
}

const fn is_v6(net: IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn covers_mapped(net: IpNet) -> bool {
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < MAPPED_BITS && v6.contains(&mapped))
}

fn port_rules(rule: &NetRule, number: u32, v6: bool) -> impl Iterator<Item = PortRule> {
    const EVERY: &[PortRange] = &[PortRange { low: 0, high: u16::MAX }];
    let ports = if rule.ports.is_empty() { EVERY } else { &rule.ports };
    let any = rule.protocols.is_empty().then_some(0);
    let protocols = rule.protocols.iter().map(move |protocol| protocol.number(v6)).chain(any);
    let one = move |range: &PortRange, protocol: u8| PortRule {
        low: range.low,
        high: range.high,
        protocol,
        // 0 or 1
        verdict: rule.effect.code() as u8,
        // a checked policy has fewer rules
        rule: u16::try_from(number).unwrap_or(PORT_REASONS - 1),
    };
    protocols.flat_map(move |protocol| ports.iter().map(move |range| one(range, protocol)))
}

/// A prefix's own port rules and those of what covers it: denials first, the own before the others, without those
/// that an earlier one hides.
fn fold(own: &[PortRule], above: &[PortRule]) -> Vec<PortRule> {
    let mut kept: Vec<PortRule> = Vec::new();
    for verdict in [rule::DENY, rule::ALLOW] {
        for new in own.iter().chain(above).filter(|r| u32::from(r.verdict) == verdict) {
            if kept.len() <= FOLDED && !kept.iter().any(|earlier| hides(earlier, new)) {
                kept.push(*new);
            }
        }
    }
    if (PORT_RULES + 1..=FOLDED).contains(&kept.len()) {
        // a later, wider rule with the same verdict decides no differently
        let all = kept.clone();
        let mut index = 0;
        kept.retain(|r| {
            index += 1;
            !all[index..].iter().any(|later| later.verdict == r.verdict && hides(later, r))
        });
    }
    kept
}

/// Whether `a` fits wherever `b` fits.
const fn hides(a: &PortRule, b: &PortRule) -> bool {
    a.low <= b.low && b.high <= a.high && (a.protocol == 0 || a.protocol == b.protocol)
}
