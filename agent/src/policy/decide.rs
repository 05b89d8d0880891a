//! Decisions. [`decide_exec`], [`decide_net`] and their kin say what a policy means, straight from its rules: they are
//! the reference. [`Plan::judge_exec`], [`Plan::judge_net`] and their kin do with the compiled tables what the kernel
//! programs do; both must always agree.

use std::net::IpAddr;

use tipstaff_common::{
    limits::DEPTH,
    rule::{self, ExecKey, FileId, PORT_REASONS, PortRule},
    session::{HAS_DIRECTORIES, HAS_UNIX_DIRECTORIES},
};

use super::{
    compile::{Plan, Resolved, unix_key},
    metadata,
    table::{NetKey, NetTable},
    traffic::{NetRule, UnixTarget},
    types::{Effect, ExecTarget, Policy, rule_number},
};

/// What happens to one operation, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// Whether it may go on.
    pub verdict: Effect,
    /// A rule number, or `rule::REASON_DEFAULT` or `rule::REASON_UNRESOLVED`.
    pub rule: u32,
}

impl Decision {
    const UNRESOLVED: Self = Self { verdict: Effect::Deny, rule: rule::REASON_UNRESOLVED };

    const fn by_default(verdict: Effect) -> Self {
        Self { verdict, rule: rule::REASON_DEFAULT }
    }
}

/// Directories that a `dir` rule is looked for in.
fn depth() -> usize {
    usize::try_from(DEPTH).unwrap_or(usize::MAX)
}

/// What the policy says of a program. `ancestors` are the directories above it in its file system, the nearest first,
/// up to the file system's root.
pub fn decide_exec(policy: &Policy, files: &Resolved, file: FileId, ancestors: &[FileId]) -> Decision {
    let near = &ancestors[..ancestors.len().min(depth())];
    let named_by = |effect: Effect| {
        let rules = policy.exec.iter().enumerate().filter(|(_, rule)| rule.effect == effect);
        let mut named = rules.filter(|(index, rule)| match rule.target {
            ExecTarget::Path(_) => files.of(*index).contains(&file),
            ExecTarget::Dir(_) => files.of(*index).iter().any(|directory| near.contains(directory)),
        });
        named.next().map(|(index, _)| Decision { verdict: effect, rule: rule_number(index) })
    };
    if let Some(denied) = named_by(Effect::Deny) {
        return denied;
    }
    let is_dir = |index: usize| matches!(policy.exec[index].target, ExecTarget::Dir(_)) && !files.of(index).is_empty();
    if ancestors.len() > depth() && (0..policy.exec.len()).any(is_dir) {
        return Decision::UNRESOLVED;
    }
    named_by(Effect::Allow).unwrap_or_else(|| Decision::by_default(policy.kind.exec_default()))
}

/// What the policy says of a destination. `protocol` is `IPPROTO_*`; mapped IPv4 is IPv4.
pub fn decide_net(policy: &Policy, host: &Resolved, to: IpAddr, port: u16, protocol: u8) -> Decision {
    let to = to.to_canonical();
    let named_by = |effect: Effect| {
        let names = |rule: &NetRule| rule.effect == effect && rule.names_destination(host, to, port, protocol);
        let index = policy.net.iter().position(names)?;
        Some(Decision { verdict: effect, rule: policy.net_number(index) })
    };
    let otherwise = || {
        if metadata::contains(to) {
            return Decision { verdict: Effect::Deny, rule: rule::REASON_METADATA };
        }
        Decision::by_default(policy.kind.net_default())
    };
    named_by(Effect::Deny).or_else(|| named_by(Effect::Allow)).unwrap_or_else(otherwise)
}

/// What the policy says of a bind or listen on a local address.
pub fn decide_listen(policy: &Policy, host: &Resolved, on: IpAddr, port: u16, protocol: u8) -> Decision {
    let on = on.to_canonical();
    match policy.listen.rules.iter().position(|rule| rule.names(host, on, port, protocol)) {
        Some(index) => Decision { verdict: Effect::Allow, rule: policy.listen_number(index) },
        None => Decision::by_default(policy.listen_default()),
    }
}

/// What the policy says of a peer that comes to a local port.
pub fn decide_inbound(policy: &Policy, host: &Resolved, from: IpAddr, port: u16, protocol: u8) -> Decision {
    let from = from.to_canonical();
    match policy.inbound.rules.iter().position(|rule| rule.names(host, from, port, protocol)) {
        Some(index) => Decision { verdict: Effect::Allow, rule: policy.inbound_number(index) },
        None => Decision::by_default(policy.inbound_default()),
    }
}

/// A unix socket as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixSocket<'a> {
    /// Bound to a path.
    File {
        /// Its inode.
        file: FileId,
        /// Its name in the nearest of `ancestors`.
        name: &'a [u8],
        /// The directories above it in its file system, the nearest first.
        ancestors: &'a [FileId],
    },
    /// Bound to an abstract name, without its leading 0 byte.
    Abstract(&'a [u8]),
}

/// What the policy says of a unix socket.
pub fn decide_unix(policy: &Policy, host: &Resolved, socket: &UnixSocket<'_>) -> Decision {
    let names = |index: usize, target: &UnixTarget| {
        let found = host.of_unix(index);
        match (target, socket) {
            (UnixTarget::Abstract(own), UnixSocket::Abstract(name)) => own.as_bytes() == *name,
            (UnixTarget::Path(_), UnixSocket::File { file, name, ancestors }) => found.is_some_and(|found| {
                let here = found
                    .place
                    .as_ref()
                    .is_some_and(|(directory, own)| ancestors.first() == Some(directory) && own.as_slice() == *name);
                here || found.files.contains(file)
            }),
            (UnixTarget::Dir(_), UnixSocket::File { ancestors, .. }) => {
                let near = &ancestors[..ancestors.len().min(depth())];
                found.is_some_and(|found| found.files.iter().any(|directory| near.contains(directory)))
            }
            _ => false,
        }
    };
    let named_by = |effect: Effect| {
        let named =
            |(index, rule): (usize, &super::traffic::UnixRule)| rule.effect == effect && names(index, &rule.target);
        let index = policy.unix_rules().iter().enumerate().position(named)?;
        Some(Decision { verdict: effect, rule: policy.unix_number(index) })
    };
    if let Some(denied) = named_by(Effect::Deny) {
        return denied;
    }
    let is_dir = |(index, rule): (usize, &super::traffic::UnixRule)| {
        matches!(rule.target, UnixTarget::Dir(_)) && host.of_unix(index).is_some_and(|found| !found.files.is_empty())
    };
    let deep = matches!(socket, UnixSocket::File { ancestors, .. } if ancestors.len() > depth());
    if deep && policy.unix_rules().iter().enumerate().any(is_dir) {
        return Decision::UNRESOLVED;
    }
    named_by(Effect::Allow).unwrap_or_else(|| Decision::by_default(policy.kind.unix_default()))
}

impl Plan {
    /// As the kernel judges a program: see [`decide_exec`].
    pub fn judge_exec(&self, file: FileId, ancestors: &[FileId]) -> Decision {
        let mut found = self.exec_entry(file, rule::KIND_FILE);
        let directories: &[FileId] = if self.flags & HAS_DIRECTORIES == 0 { &[] } else { ancestors };
        for (above, directory) in directories.iter().enumerate() {
            if found.is_some_and(|decision| decision.verdict == Effect::Deny) {
                break;
            }
            if above == depth() {
                return Decision::UNRESOLVED;
            }
            let entry = self.exec_entry(*directory, rule::KIND_DIRECTORY);
            found = entry.filter(|decision| decision.verdict == Effect::Deny).or(found).or(entry);
        }
        found.unwrap_or_else(|| Decision::by_default(effect(self.exec_default)))
    }

    fn exec_entry(&self, file: FileId, kind: u32) -> Option<Decision> {
        let entry = self.exec.get(&ExecKey { file, kind, pad: 0 })?;
        Some(Decision { verdict: effect(entry.verdict), rule: entry.rule })
    }

    /// As the kernel judges a destination: see [`decide_net`].
    pub fn judge_net(&self, to: IpAddr, port: u16, protocol: u8) -> Decision {
        judge(&self.net, self.net_default, to, port, protocol)
    }

    /// As the kernel judges a local address: see [`decide_listen`].
    pub fn judge_listen(&self, on: IpAddr, port: u16, protocol: u8) -> Decision {
        judge(&self.listen, self.listen_default, on, port, protocol)
    }

    /// As the kernel judges a peer: see [`decide_inbound`].
    pub fn judge_inbound(&self, from: IpAddr, port: u16, protocol: u8) -> Decision {
        judge(&self.inbound, self.inbound_default, from, port, protocol)
    }

    /// As the kernel judges a unix socket: see [`decide_unix`].
    pub fn judge_unix(&self, socket: &UnixSocket<'_>) -> Decision {
        let entry = |file: FileId, kind: u32, name: &[u8]| {
            let found = self.unix.get(&unix_key(file, kind, name)?)?;
            Some(Decision { verdict: effect(found.verdict), rule: found.rule })
        };
        let stricter = |one: Option<Decision>, other: Option<Decision>| match (one, other) {
            (Some(one), _) if one.verdict == Effect::Deny => Some(one),
            (_, Some(other)) if other.verdict == Effect::Deny => Some(other),
            (one, other) => one.or(other),
        };
        let otherwise = Decision::by_default(effect(self.unix_default));
        let (file, name, ancestors) = match socket {
            UnixSocket::Abstract(name) => {
                return entry(FileId::default(), rule::UNIX_ABSTRACT, name).unwrap_or(otherwise);
            }
            UnixSocket::File { file, name, ancestors } => (file, name, ancestors),
        };
        let place = ancestors.first().and_then(|directory| entry(*directory, rule::UNIX_PLACE, name));
        let mut found = stricter(entry(*file, rule::UNIX_FILE, b""), place);
        let directories: &[FileId] = if self.flags & HAS_UNIX_DIRECTORIES == 0 { &[] } else { ancestors };
        for (above, directory) in directories.iter().enumerate() {
            if found.is_some_and(|decision| decision.verdict == Effect::Deny) {
                break;
            }
            if above == depth() {
                return Decision::UNRESOLVED;
            }
            found = stricter(found, entry(*directory, rule::UNIX_DIRECTORY, b""));
        }
        found.unwrap_or(otherwise)
    }
}

/// The longest match alone decides, and in it the first port rule that fits.
fn judge(table: &NetTable, default: u32, address: IpAddr, port: u16, protocol: u8) -> Decision {
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let longest = (0..=128).rev().find_map(|prefix_len: u32| {
        let kept = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
        table.get(&NetKey { prefix_len, address: (address & kept).to_be_bytes() })
    });
    let fits =
        |rule: &&PortRule| (rule.low..=rule.high).contains(&port) && (rule.protocol == 0 || rule.protocol == protocol);
    let used = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    longest
        .and_then(|entry| entry.ports.iter().take(used(entry.count)).find(fits))
        .map(|found| Decision { verdict: effect(u32::from(found.verdict)), rule: code(found.rule) })
        .unwrap_or_else(|| Decision::by_default(effect(default)))
}

/// A port rule's number, or the reason that it stands for.
fn code(number: u16) -> u32 {
    number.checked_sub(PORT_REASONS).map_or_else(|| u32::from(number), |reason| rule::REASONS + u32::from(reason))
}

/// Anything but `rule::ALLOW` denies.
const fn effect(code: u32) -> Effect {
    if code == rule::ALLOW { Effect::Allow } else { Effect::Deny }
}
