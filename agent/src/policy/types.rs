//! A checked policy. Owns the meaning of kinds, modes and rules; knows neither YAML nor the kernel's tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tipstaff_common::{privilege, rule};

use super::{
    attach::{Descriptors, Inherited},
    limits::Limits,
    phases::Phases,
    programs::{FileDigest, ProgramClass},
    resolved::Resolved,
    scope::{Classes, Privileges},
    traffic::{Access, Budgets, NetRule, UnixRule},
};

/// Rules of a policy. Their indexes must fit `rule::PortRule::rule`, below `rule::PORT_REASONS`.
pub(super) const RULES: usize = 16_384;
const _: () = assert!(RULES < rule::PORT_REASONS as usize);

/// The words for codes that are no rule's index. No rule may have such an id.
pub(super) const REASONS: [(u32, &str); 32] = [
    (rule::REASON_DEFAULT, "default"),
    (rule::REASON_EXPIRED, "expired"),
    (rule::REASON_ENDED, "ended"),
    (rule::REASON_UNRESOLVED, "unresolved"),
    (rule::REASON_UNLABELLED, "unlabelled"),
    (rule::REASON_LEAVES, "leaves"),
    (rule::REASON_FAULT, "fault"),
    (rule::REASON_BUDGET_CONNECTS, "budget-connects"),
    (rule::REASON_BUDGET_CONNECT_RATE, "budget-connect-rate"),
    (rule::REASON_BUDGET_DESTINATIONS, "budget-destinations"),
    (rule::REASON_BUDGET_EGRESS, "budget-egress"),
    (rule::REASON_BUDGET_EGRESS_RATE, "budget-egress-rate"),
    (rule::REASON_FAMILY, "socket-class"),
    (rule::REASON_METADATA, "metadata"),
    (rule::REASON_DNS, "dns-denied"),
    (rule::REASON_CROSSED, "crossed-socket"),
    (rule::REASON_OPTION, "socket-option"),
    (rule::REASON_PRIVILEGE, "privilege"),
    (rule::REASON_PROTECTED, "protected"),
    (rule::REASON_DELEGATION, "delegation"),
    (rule::REASON_UNSEEN, "unseen-program"),
    (rule::REASON_LOOK, "look"),
    (rule::REASON_NARROWED, "narrowed"),
    (rule::REASON_CHANGED, "changed"),
    (rule::REASON_DIGEST, "digest"),
    (rule::REASON_IDENTITY, "identity-unknown"),
    (rule::REASON_CLASSES + rule::CLASS_LOADER, "loader"),
    (rule::REASON_CLASSES + rule::CLASS_MULTI_CALL, "multi-call"),
    (rule::REASON_CLASSES + rule::CLASS_BY_DESCRIPTOR, "by-descriptor"),
    (rule::REASON_CLASSES + rule::CLASS_MEMFD, "memfd"),
    (rule::REASON_CLASSES + rule::CLASS_DELETED, "deleted"),
    (rule::REASON_CLASSES + rule::CLASS_WRITTEN, "written"),
];

/// The kind of a session. It decides what happens to an operation that no rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A service account's work: what no rule names is denied.
    Service,
    /// A build, test or release job: what no rule names is denied.
    Ci,
    /// A program that chooses its own actions: what no rule names is denied.
    Agent,
    /// A person's shell: what no rule names is allowed.
    Operator,
    /// A person's shell in an emergency: what no rule names is allowed.
    Breakglass,
}

impl Kind {
    /// What happens to a program that no rule names.
    #[must_use]
    pub const fn exec_default(self) -> Effect {
        match self {
            Self::Service | Self::Ci | Self::Agent => Effect::Deny,
            Self::Operator | Self::Breakglass => Effect::Allow,
        }
    }

    /// What happens to a destination that no rule names.
    #[must_use]
    pub const fn net_default(self) -> Effect {
        self.exec_default()
    }
}

/// Whether verdicts are carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Decide, record and refuse.
    #[default]
    Enforce,
    /// Decide and record; refuse nothing.
    Observe,
}

/// What becomes of a session whose agent went away, when the next one comes. Until then the kernel holds it either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentLoss {
    /// It goes on.
    #[default]
    Continue,
    /// It ends, with the reason `agent-loss`.
    End,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// What it names may go on.
    Allow,
    /// What it names is refused, whatever allows it.
    Deny,
}

impl Effect {
    /// `rule::ALLOW` or `rule::DENY`.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Allow => rule::ALLOW,
            Self::Deny => rule::DENY,
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Service => "service",
            Self::Ci => "ci",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Breakglass => "breakglass",
        })
    }
}

/// What an exec rule names. Paths are absolute, without `..` and control characters, of at most 4095 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecTarget {
    /// This program.
    Path(PathBuf),
    /// Every program below this directory, in its file system and in those mounted below it when the policy is loaded.
    Dir(PathBuf),
    /// Every program whose path matches, when the policy is loaded: `*`, `?` and `[…]`, each within one component.
    Glob(String),
    /// Every program of the class.
    Class(ProgramClass),
}

impl fmt::Display for ExecTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path {}", path.display()),
            Self::Dir(path) => write!(f, "dir {}", path.display()),
            Self::Glob(pattern) => write!(f, "glob {pattern}"),
            Self::Class(class) => write!(f, "class {}", class.word()),
        }
    }
}

/// A rule of `spec.scope.exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRule {
    /// Unique in the policy.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// What it names.
    pub target: ExecTarget,
    /// What the file must have, of its bytes or by fs-verity; of rules that allow paths and globs.
    pub digest: Option<FileDigest>,
    /// First arguments that the rule is about; empty: whatever the arguments.
    pub subcommands: Vec<String>,
}

impl ExecRule {
    /// Whether it is about programs by their files, whatever their arguments.
    pub(super) const fn is_plain(&self) -> bool {
        self.subcommands.is_empty()
    }

    /// Whether it is about where its file or directory stands, too: what comes to stand there is denied, or has to be looked
    /// at before it runs.
    #[must_use]
    pub const fn is_of_places(&self) -> bool {
        let of_class = matches!(self.target, ExecTarget::Class(_));
        !of_class && (matches!(self.effect, Effect::Deny) || self.digest.is_some())
    }

    /// Of such a rule: whether it denies whatever comes to stand there.
    pub(super) const fn denies_places(&self) -> bool {
        matches!(self.effect, Effect::Deny) && self.is_plain()
    }
}

impl fmt::Display for ExecRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.target)?;
        if let Some(digest) = &self.digest {
            write!(f, " {} {digest}", digest.key())?;
        }
        if !self.is_plain() {
            let words = self.subcommands.join(", ");
            write!(f, " subcommands {words}: judged once the program is in place, and refused by a kill")?;
        }
        Ok(())
    }
}

/// A checked policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `metadata.name`: lower-case letters, digits and `-`, at most 63.
    pub name: String,
    /// What kind of session it governs.
    pub kind: Kind,
    /// Whether verdicts are carried out.
    pub mode: Mode,
    /// Refuse to start where a control that is asked for is unavailable.
    pub strict: bool,
    /// How long a session may last, before the host's own limit: 1 ms to 365 days.
    pub ttl: Duration,
    /// Its other limits, and what comes at the end.
    pub limits: Limits,
    /// Rules for programs: those that allow, then those that deny.
    pub exec: Vec<ExecRule>,
    /// Rules for destinations: those that allow, those that deny, then what `net.resolver` says.
    pub net: Vec<Rc<NetRule>>,
    /// `net.listen`: rules for local addresses.
    pub listen: Access,
    /// `net.inbound`: rules for peers that come in, and the local ports that they come to.
    pub inbound: Access,
    /// Rules for unix sockets: those that allow, then those that deny. `None`: the policy does not have the key.
    pub unix: Option<Vec<UnixRule>>,
    /// Classes of sockets. `None`: the policy does not have the key.
    pub sockets: Option<Classes>,
    /// Classes of privileges. `None`: the policy does not have the key.
    pub privileges: Option<Privileges>,
    /// Parts of the scope that a session can be narrowed to.
    pub phases: Phases,
    /// What all members together may use up.
    pub budgets: Budgets,
    /// What becomes of what a workload holds that is attached.
    pub attach: Inherited,
    /// What becomes of sockets that a command inherits.
    pub run: Descriptors,
    /// Whether a member may start a session within its own, which can only be narrower.
    pub nested: bool,
    /// The last day on which nobody need have looked at it again.
    pub review_by: Option<Date>,
    /// SHA-256 of the policy's text, in lower-case hex. Of a policy without some of its rules: of the digest before, and
    /// a blank, a minus and the id for each.
    pub digest: String,
}

impl Policy {
    /// The ids of all rules in the order of the kernel's rule numbers: exec, net, listen, inbound, unix.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        let net = self.net.iter().chain(&self.listen.rules).chain(&self.inbound.rules).map(|r| r.id.as_str());
        self.exec.iter().map(|r| r.id.as_str()).chain(net).chain(self.unix_rules().iter().map(|r| r.id.as_str()))
    }

    /// Rules for unix sockets.
    #[must_use]
    pub fn unix_rules(&self) -> &[UnixRule] {
        self.unix.as_deref().unwrap_or_default()
    }

    /// Whether somebody should have looked at it again: the day is over, in UTC.
    #[must_use]
    pub fn review_is_past(&self, time: Timestamp) -> bool {
        self.review_by.is_some_and(|day| time.to_zoned(TimeZone::UTC).date() > day)
    }

    /// The rule number of `self.net[index]`.
    pub(super) fn net_number(&self, index: usize) -> u32 {
        rule_number(self.exec.len() + index)
    }

    /// The rule number of `self.listen.rules[index]`.
    pub(super) fn listen_number(&self, index: usize) -> u32 {
        self.net_number(self.net.len() + index)
    }

    /// The rule number of `self.inbound.rules[index]`.
    pub(super) fn inbound_number(&self, index: usize) -> u32 {
        self.listen_number(self.listen.rules.len() + index)
    }

    /// The rule number of `self.unix_rules()[index]`.
    pub(super) fn unix_number(&self, index: usize) -> u32 {
        self.inbound_number(self.inbound.rules.len() + index)
    }

    /// The policy without some of its rules, and what the others name on this host. `Err` has the first of `ids` that is no
    /// rule, or one that denies, which nobody may take away from a session.
    ///
    /// # Errors
    /// The id, and whether there is such a rule.
    pub fn without<'i>(&self, host: &Resolved, ids: &'i [String]) -> Result<(Self, Resolved), (&'i str, bool)> {
        let mut denies: BTreeMap<&String, Option<bool>> = ids.iter().map(|id| (id, None)).collect();
        for (id, effect) in self.effects() {
            if let Some(denies) = denies.get_mut(id) {
                *denies = Some(denies.unwrap_or(false) || effect == Effect::Deny);
            }
        }
        if let Some(id) = ids.iter().find(|id| denies.get(id) != Some(&Some(false))) {
            return Err((id, denies.get(id).is_some_and(Option::is_some)));
        }
        let kept = |id: &String| !denies.contains_key(id);
        let mut policy = self.clone();
        let mut host = host.clone();
        let mut exec = self.exec.iter();
        host.files.retain(|_| exec.next().is_none_or(|rule| kept(&rule.id)));
        let mut exec = self.exec.iter();
        host.places.retain(|_| exec.next().is_none_or(|rule| kept(&rule.id)));
        policy.exec.retain(|rule| kept(&rule.id));
        for rules in [&mut policy.net, &mut policy.listen.rules, &mut policy.inbound.rules] {
            rules.retain(|rule| kept(&rule.id));
        }
        let mut unix = self.unix_rules().iter();
        host.unix.retain(|_| unix.next().is_none_or(|rule| kept(&rule.id)));
        policy.unix.iter_mut().for_each(|rules| rules.retain(|rule| kept(&rule.id)));
        let text = ids.iter().fold(self.digest.clone(), |text, id| format!("{text} -{id}"));
        policy.digest = hex_digest(text.as_bytes());
        Ok((policy, host))
    }

    /// The rules that a phase takes away: those that allow and that it does not name. `None`: there is no such phase.
    #[must_use]
    pub fn outside(&self, phase: &str) -> Option<Vec<String>> {
        let stays = self.phases.get(phase)?;
        let goes = |(id, effect): &(&String, Effect)| *effect == Effect::Allow && !stays.contains(*id);
        let gone: BTreeSet<&String> = self.effects().filter(goes).map(|(id, _)| id).collect();
        Some(gone.into_iter().cloned().collect())
    }

    fn effects(&self) -> impl Iterator<Item = (&String, Effect)> {
        let net = self.net.iter().chain(&self.listen.rules).chain(&self.inbound.rules).map(|r| (&r.id, r.effect));
        let unix = self.unix_rules().iter().map(|r| (&r.id, r.effect));
        self.exec.iter().map(|r| (&r.id, r.effect)).chain(net).chain(unix)
    }

    /// What happens to a bind or listen that no rule names.
    #[must_use]
    pub fn listen_default(&self) -> Effect {
        self.listen.default.unwrap_or_else(|| self.kind.listen_default())
    }

    /// What happens to a flow from outside that no rule names.
    #[must_use]
    pub fn inbound_default(&self) -> Effect {
        self.inbound.default.unwrap_or_else(|| self.kind.inbound_default())
    }

    /// Classes of sockets that may be made: `socket::SOCKET_*`.
    #[must_use]
    pub fn socket_classes(&self) -> u32 {
        self.sockets.unwrap_or_default().of(self.kind)
    }

    /// Classes of privileges that may be used: `privilege::PRIVILEGE_*`.
    #[must_use]
    pub fn privilege_classes(&self) -> u32 {
        self.privileges.unwrap_or_default().of(self.kind)
    }

    /// Those of `privilege::PRIVILEGE_ON_OTHERS` that may be used on members of other sessions too.
    #[must_use]
    pub fn classes_on_neighbours(&self) -> u32 {
        self.privileges.unwrap_or_default().on_neighbours(self.kind)
    }

    /// Whether daemons may be asked to start programs outside of the session: class `delegation`.
    #[must_use]
    pub fn may_delegate(&self) -> bool {
        self.privilege_classes() & privilege::PRIVILEGE_DELEGATION != 0
    }

    /// What a rule code of the kernel is called: the rule's id, or the word of a reason that is no rule. A code that is
    /// neither is a fault.
    #[must_use]
    pub fn rule_name(&self, code: u32) -> &str {
        let id = usize::try_from(code).ok().and_then(|index| self.rules().nth(index));
        id.unwrap_or_else(|| reason_name(code))
    }
}

/// SHA-256 in lower-case hex.
pub(super) fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A rule's index as the kernel holds it. A checked policy has at most `RULES` rules.
pub(super) fn rule_number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(rule::REASON_FAULT)
}

/// The word for `rule::REASON_*`.
#[must_use]
pub fn reason_name(code: u32) -> &'static str {
    REASONS.iter().find(|(reason, _)| *reason == code).map_or("fault", |(_, name)| name)
}
