//! Policy and file identities → the tables that the kernel programs look up. Owns the folding that lets one look-up
//! decide where deny must beat allow; puts nothing into the kernel.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tipstaff_common::{
    limits::PORT_RULES,
    rule::{self, ExecEntry, ExecKey, FileId, NetEntry, PortRule},
    session::{HAS_DIRECTORIES, PolicyEntry},
    socket::SOCKET_ALL,
};

use super::{
    net::{MAPPED_BITS, loopbacks},
    types::{Effect, ExecTarget, NetRule, Policy, PortRange, Protocol, reason_name, rule_number},
};

/// Folding of one prefix stops here: it is refused anyway, and its cost stays bounded.
const FOLDED: usize = 8 * PORT_RULES;

/// The addresses that stand for loopback.
const UNSPECIFIED: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
];

/// Which files the exec rules name on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of `Policy::exec`: the program, or the directory and the roots of the mounts below it. None: it
    /// does not exist.
    pub files: Vec<Vec<FileId>>,
}

impl Resolved {
    /// The files of `Policy::exec[index]`.
    #[must_use]
    pub fn of(&self, index: usize) -> &[FileId] {
        self.files.get(index).map_or(&[], Vec::as_slice)
    }
}

/// Key of an inner trie of `NET_RULES`.
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

/// What the kernel needs to know of a policy. Equal plans can share a revision in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// An inner map of `EXEC_RULES`.
    pub exec: BTreeMap<ExecKey, ExecEntry>,
    /// An inner trie of `NET_RULES`.
    pub net: BTreeMap<NetKey, NetEntry>,
    /// `rule::ALLOW` or `rule::DENY`.
    pub exec_default: u32,
    /// `rule::ALLOW` or `rule::DENY`.
    pub net_default: u32,
    /// `HAS_DIRECTORIES`
    pub flags: u32,
    /// The id of each rule number.
    pub rules: Vec<String>,
    /// What the policy's author should know about this host.
    pub notes: Vec<Note>,
}

impl Plan {
    /// The value for `POLICIES` once the tables are in place as `revision`.
    #[must_use]
    pub const fn entry(&self, revision: u32) -> PolicyEntry {
        PolicyEntry {
            revision,
            exec_default: self.exec_default,
            net_default: self.net_default,
            flags: self.flags,
            listen_default: rule::ALLOW,
            inbound_default: rule::ALLOW,
            unix_default: rule::ALLOW,
            sockets: SOCKET_ALL,
        }
    }

    /// As `Policy::rule_name`.
    #[must_use]
    pub fn rule_name(&self, code: u32) -> &str {
        let id = usize::try_from(code).ok().and_then(|index| self.rules.get(index));
        id.map_or_else(|| reason_name(code), String::as_str)
    }
}

/// A rule that does less on this host than it seems to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// What the rule names does not exist here.
    Missing {
        /// The rule's id.
        rule: String,
        /// What it would do.
        effect: Effect,
        /// What it names.
        target: ExecTarget,
    },
    /// Everything that an allow rule names is named by deny rules too, perhaps by another path.
    Overridden {
        /// The allow rule's id.
        rule: String,
        /// What it names.
        path: PathBuf,
        /// The first deny rule's id.
        by: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { rule, effect, target } => {
                let verb = if *effect == Effect::Allow { "allows" } else { "denies" };
                write!(f, "rule {rule} {verb} nothing: {target} does not exist here; what is made later is not covered")
            }
            Self::Overridden { rule, path, by } => {
                write!(f, "rule {rule} has no effect: rule {by} denies the same file as {}", path.display())
            }
        }
    }
}

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

/// Makes the kernel's tables.
///
/// # Errors
/// Every prefix for which too many port rules hold.
pub fn compile(policy: &Policy, files: &Resolved) -> Result<Plan, Vec<CompileProblem>> {
    let net = net_table(policy)?;
    let (exec, notes) = exec_table(policy, files);
    let directories = exec.keys().any(|key| key.kind == rule::KIND_DIRECTORY);
    Ok(Plan {
        exec,
        net,
        exec_default: policy.kind.exec_default().code(),
        net_default: policy.kind.net_default().code(),
        flags: if directories { HAS_DIRECTORIES } else { 0 },
        rules: policy.rules().map(str::to_owned).collect(),
        notes,
    })
}

fn exec_table(policy: &Policy, files: &Resolved) -> (BTreeMap<ExecKey, ExecEntry>, Vec<Note>) {
    let mut table: BTreeMap<ExecKey, ExecEntry> = BTreeMap::new();
    let mut notes = Vec::new();
    // denials first: what they name stays theirs
    let by_effect = |effect| policy.exec.iter().enumerate().filter(move |(_, rule)| rule.effect == effect);
    for (index, rule) in by_effect(Effect::Deny).chain(by_effect(Effect::Allow)) {
        let (kind, path) = match &rule.target {
            ExecTarget::Path(path) => (rule::KIND_FILE, path),
            ExecTarget::Dir(path) => (rule::KIND_DIRECTORY, path),
        };
        let found = files.of(index);
        if found.is_empty() {
            notes.push(Note::Missing { rule: rule.id.clone(), effect: rule.effect, target: rule.target.clone() });
        }
        let entry = ExecEntry { verdict: rule.effect.code(), rule: rule_number(index) };
        let put = found.iter().map(|file| *table.entry(ExecKey { file: *file, kind, pad: 0 }).or_insert(entry));
        let denied = put.filter(|first| first.verdict != entry.verdict).collect::<Vec<_>>();
        if let Some(first) = denied.first()
            && denied.len() == found.len()
        {
            let by = policy.rule_name(first.rule).to_owned();
            notes.push(Note::Overridden { rule: rule.id.clone(), path: path.clone(), by });
        }
    }
    (table, notes)
}

fn net_table(policy: &Policy) -> Result<BTreeMap<NetKey, NetEntry>, Vec<CompileProblem>> {
    let mut problems = Vec::new();
    let mut folded: BTreeMap<IpNet, Vec<PortRule>> = BTreeMap::new();
    let own = own_rules(policy);
    let mut prefixes: Vec<_> = own.keys().copied().collect();
    // what covers is folded before what it covers
    prefixes.sort_by_key(IpNet::prefix_len);
    for prefix in prefixes {
        let above = covering(&folded, prefix).map_or(&[][..], Vec::as_slice);
        let rules = fold(&own[&prefix], above);
        if rules.len() > PORT_RULES {
            problems.push(CompileProblem::PortRules { prefix, count: rules.len(), limit: PORT_RULES });
        }
        folded.insert(prefix, rules);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(folded.into_iter().map(|(net, rules)| (NetKey::from(net), net_entry(&rules))).collect())
}

/// Every prefix that needs an entry, with the port rules that are its own.
fn own_rules(policy: &Policy) -> BTreeMap<IpNet, Vec<PortRule>> {
    let mut own: BTreeMap<IpNet, Vec<PortRule>> = BTreeMap::new();
    for (index, rule) in policy.net.iter().enumerate() {
        let number = policy.net_number(index);
        own.entry(rule.to).or_default().extend(port_rules(rule, number));
        if covers_mapped(rule.to) {
            // stops the trie from finding a rule for IPv6 where it looks for IPv4
            own.entry(IpNet::V4(Ipv4Net::default())).or_default();
        }
        for unspecified in UNSPECIFIED {
            let loopback = loopbacks(unspecified.addr()).iter().any(|address| rule.to.contains(address));
            if rule.effect == Effect::Deny && loopback {
                own.entry(unspecified).or_default().extend(port_rules(rule, number));
            }
        }
    }
    own
}

fn covers_mapped(net: IpNet) -> bool {
    let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < MAPPED_BITS && v6.contains(&mapped))
}

fn port_rules(rule: &NetRule, number: u32) -> impl Iterator<Item = PortRule> {
    const EVERY: &[PortRange] = &[PortRange { low: 0, high: u16::MAX }];
    let ports = if rule.ports.is_empty() { EVERY } else { &rule.ports };
    let protocol = rule.protocol.map_or(0, Protocol::number);
    ports.iter().map(move |range| PortRule {
        low: range.low,
        high: range.high,
        protocol,
        // 0 or 1
        verdict: rule.effect.code() as u8,
        rule: u16::try_from(number).unwrap_or(u16::MAX),
    })
}

/// The folded rules of the longest prefix that covers `prefix` and is not itself.
fn covering(folded: &BTreeMap<IpNet, Vec<PortRule>>, prefix: IpNet) -> Option<&Vec<PortRule>> {
    let mut above = prefix.supernet();
    while let Some(net) = above {
        if let Some(rules) = folded.get(&net) {
            return Some(rules);
        }
        above = net.supernet();
    }
    None
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

fn net_entry(rules: &[PortRule]) -> NetEntry {
    let mut entry = NetEntry::default();
    for (slot, rule) in entry.ports.iter_mut().zip(rules) {
        *slot = *rule;
        entry.count += 1;
    }
    entry
}
