//! A policy as `policy check` shows it. Owns the form for people and programs; decides nothing.

use std::rc::Rc;

use serde::Serialize;

use super::{
    delegates,
    phases::Phases,
    resolved::Resolved,
    scope::{PRIVILEGE_CLASSES, SOCKET_CLASSES},
    traffic::{Budgets, NetRule},
    types::{Effect, Kind, Mode, Policy},
};
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
    /// The other limits, and what comes at the end, one line each.
    pub limits: Vec<String>,
    /// Whether members may start sessions within their own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// `spec.reviewBy`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review_by: Option<String>,
    /// SHA-256 of the text.
    pub digest: String,
    /// What happens to a program that no rule names.
    pub exec_default: Effect,
    /// What happens to a destination that no rule names.
    pub net_default: Effect,
    /// What happens to a bind or listen that no rule names.
    pub listen_default: Effect,
    /// What happens to a flow from outside that no rule names.
    pub inbound_default: Effect,
    /// What happens to a unix socket that no rule names.
    pub unix_default: Effect,
    /// Classes of sockets that may be made.
    pub sockets: Vec<&'static str>,
    /// Classes of privileges that may be used.
    pub privileges: Vec<&'static str>,
    /// What all members together may use up.
    pub budgets: Budgets,
    /// Parts of the scope that a session can be narrowed to: of the rules that allow, those that stay.
    pub phases: Phases,
    /// In the order of the kernel's rule numbers.
    pub rules: Vec<RuleSummary>,
    /// Rules that do less than they seem to.
    pub notes: Vec<String>,
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleSummary {
    /// The rule's id.
    pub id: String,
    /// `exec`, `net`, `listen`, `inbound` or `unix`.
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
            what: rule.to_string(),
        });
        let addresses = |scope: &'static str, rules: &[Rc<NetRule>]| {
            let one = |rule: &Rc<NetRule>| {
                let (id, effect, what) = (rule.id.clone(), rule.effect, rule.to_string());
                RuleSummary { id, scope, effect, what }
            };
            rules.iter().map(one).collect::<Vec<_>>()
        };
        let unix = self.unix_rules().iter().map(|rule| RuleSummary {
            id: rule.id.clone(),
            scope: "unix",
            effect: rule.effect,
            what: rule.target.to_string(),
        });
        let net = addresses("net", &self.net).into_iter();
        let net = net.chain(addresses("listen", &self.listen.rules)).chain(addresses("inbound", &self.inbound.rules));
        Summary {
            name: self.name.clone(),
            kind: self.kind,
            mode: self.mode,
            strict: self.strict,
            ttl: duration::format(self.ttl),
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            limits: self.limits.lines(),
            nested: self.nested,
            review_by: self.review_by.map(|day| day.to_string()),
            digest: self.digest.clone(),
            exec_default: self.kind.exec_default(),
            net_default: self.kind.net_default(),
            listen_default: self.listen_default(),
            inbound_default: self.inbound_default(),
            unix_default: self.kind.unix_default(),
            sockets: words(&SOCKET_CLASSES, self.socket_classes()),
            privileges: words(&PRIVILEGE_CLASSES, self.privilege_classes()),
            budgets: self.budgets,
            phases: self.phases.clone(),
            rules: exec.chain(net).chain(unix).collect(),
            notes: delegates::notes(self, &Resolved::default()).iter().map(ToString::to_string).collect(),
        }
    }
}

/// The words of the classes in a mask.
fn words(classes: &[(&'static str, u32)], mask: u32) -> Vec<&'static str> {
    classes.iter().filter(|(_, class)| mask & class != 0).map(|(word, _)| *word).collect()
}
