//! Decisions. [`decide_exec`] and [`decide_net`] say what a policy means, straight from its rules: they are the
//! reference. [`Plan::judge_exec`] and [`Plan::judge_net`] do with the compiled tables what the kernel programs do;
//! both must always agree.

use std::net::IpAddr;

use tipstaff_common::{
    limits::DEPTH,
    rule::{self, ExecKey, FileId, PortRule},
    session::HAS_DIRECTORIES,
};

use super::{
    compile::{NetKey, Plan, Resolved},
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
pub fn decide_net(policy: &Policy, to: IpAddr, port: u16, protocol: u8) -> Decision {
    let to = to.to_canonical();
    let named_by = |effect: Effect| {
        let index = policy.net.iter().position(|rule| rule.effect == effect && rule.names(to, port, protocol))?;
        Some(Decision { verdict: effect, rule: policy.net_number(index) })
    };
    named_by(Effect::Deny)
        .or_else(|| named_by(Effect::Allow))
        .unwrap_or_else(|| Decision::by_default(policy.kind.net_default()))
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
        let address = match to {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let longest = (0..=128).rev().find_map(|prefix_len: u32| {
            let kept = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
            self.net.get(&NetKey { prefix_len, address: (address & kept).to_be_bytes() })
        });
        let fits = |rule: &&PortRule| {
            (rule.low..=rule.high).contains(&port) && (rule.protocol == 0 || rule.protocol == protocol)
        };
        let used = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        longest
            .and_then(|entry| entry.ports.iter().take(used(entry.count)).find(fits))
            .map(|rule| Decision { verdict: effect(u32::from(rule.verdict)), rule: u32::from(rule.rule) })
            .unwrap_or_else(|| Decision::by_default(effect(self.net_default)))
    }
}

/// Anything but `rule::ALLOW` denies.
const fn effect(code: u32) -> Effect {
    if code == rule::ALLOW { Effect::Allow } else { Effect::Deny }
}
