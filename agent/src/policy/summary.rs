//! A policy as `policy check` shows it. Owns the form for people and programs; decides nothing.

use serde::Serialize;

use super::types::{Effect, Kind, Mode, NetRule, Policy, Protocol};
use crate::duration;

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// `metadata.name`
    pub name: String,
    /// `spec.kind`
    pub kind: Kind,
    /// `spec.mode`
    pub mode: Mode,
    /// `spec.strict`
    pub strict: bool,
    /// `spec.limits.ttl`, as people write it.
    pub ttl: String,
    /// `spec.limits.ttl` in milliseconds.
    pub ttl_ms: u64,
    /// SHA-256 of the text.
    pub digest: String,
    /// What happens to a program that no rule names.
    pub exec_default: Effect,
    /// What happens to a destination that no rule names.
    pub net_default: Effect,
    /// In the order of the kernel's rule numbers.
    pub rules: Vec<RuleSummary>,
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleSummary {
    /// The rule's id.
    pub id: String,
    /// `exec` or `net`.
    pub scope: &'static str,
    /// What it does.
    pub effect: Effect,
    /// What it names, such as `path /usr/bin/git` or `10.20.0.0/16 tcp 443,8000-8100`.
    pub what: String,
}

impl Policy {
    /// The policy as `policy check` shows it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let exec = self.exec.iter().map(|rule| RuleSummary {
            id: rule.id.clone(),
            scope: "exec",
            effect: rule.effect,
            what: rule.target.to_string(),
        });
        let net = self.net.iter().map(|rule| RuleSummary {
            id: rule.id.clone(),
            scope: "net",
            effect: rule.effect,
            what: destination(rule),
        });
        Summary {
            name: self.name.clone(),
            kind: self.kind,
            mode: self.mode,
            strict: self.strict,
            ttl: duration::format(self.ttl),
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            digest: self.digest.clone(),
            exec_default: self.kind.exec_default(),
            net_default: self.kind.net_default(),
            rules: exec.chain(net).collect(),
        }
    }
}

fn destination(rule: &NetRule) -> String {
    let protocol = match rule.protocol {
        None => "",
        Some(Protocol::Tcp) => " tcp",
        Some(Protocol::Udp) => " udp",
    };
    let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() { String::new() } else { format!(" {}", ports.join(",")) };
    format!("{}{protocol}{ports}", rule.to)
}
