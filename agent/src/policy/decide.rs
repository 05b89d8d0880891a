//! Decisions. [`decide_exec`], [`decide_net`] and their kin say what a policy means, straight from its rules: they are
//! the reference. [`Plan::judge_exec`], [`Plan::judge_net`] and their kin do with the compiled tables what the kernel
//! programs do; both must always agree.

use std::net::IpAddr;

use tipstaff_common::{
    limits::DEPTH,
    place::{Place, place_key},
    rule::{
        self, ExecKey, FileId, KNOWN_ONLY, NO_RULE, PINNED, PORT_REASONS, PortRule, ProgramEntry, STRICT, WORDS,
        WORDS_ONLY, class_key, word_key,
    },
    session::{HAS_DIRECTORIES, HAS_PLACES, HAS_UNIX_DIRECTORIES},
};

use super::{
    compile::{Plan, unix_key},
    exec::{class_rule, without_digest},
    metadata,
    programs::{Program, ProgramClass, word_bytes},
    resolved::{Hashed, Resolved},
    table::{NetKey, NetTable, is_login},
    traffic::{NetRule, UnixTarget},
    types::{Effect, ExecRule, ExecTarget, Policy, rule_number},
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
    const CHANGED: Self = Self { verdict: Effect::Deny, rule: rule::REASON_CHANGED };
    const UNRESOLVED: Self = Self { verdict: Effect::Deny, rule: rule::REASON_UNRESOLVED };

    const fn by_default(verdict: Effect) -> Self {
        Self { verdict, rule: rule::REASON_DEFAULT }
    }
}

/// Directories that a `dir` rule is looked for in.
fn depth() -> usize {
    usize::try_from(DEPTH).unwrap_or(usize::MAX)
}

/// What the policy says of a program.
pub fn decide_exec(policy: &Policy, host: &Resolved, program: &Program<'_>) -> Decision {
    let default = Decision::by_default(policy.kind.exec_default());
    if program.is(ProgramClass::Memfd) {
        return class_rule(policy, ProgramClass::Memfd).map_or(default, |(verdict, rule)| Decision { verdict, rule });
    }
    let near = &program.ancestors[..program.ancestors.len().min(depth())];
    let names = |index: usize, rule: &ExecRule| match rule.target {
        ExecTarget::Path(_) | ExecTarget::Glob(_) => host.of(index).contains(&program.file),
        ExecTarget::Dir(_) => host.of(index).iter().any(|directory| near.contains(directory)),
        ExecTarget::Class(_) => false,
    };
    let is_dir = |rule: &ExecRule| matches!(rule.target, ExecTarget::Dir(_));
    let first = |wanted: &dyn Fn(&ExecRule) -> bool| {
        let mut rules = policy.exec.iter().enumerate();
        let (index, rule) = rules.find(|(index, rule)| wanted(rule) && names(*index, rule))?;
        Some(Decision { verdict: rule.effect, rule: rule_number(index) })
    };
    if let Some(denied) = first(&|rule| rule.effect == Effect::Deny && rule.is_plain() && !is_dir(rule)) {
        return denied;
    }
    let hashed = host.digests.get(&program.file);
    let differs = |rule: &ExecRule| {
        let has = |wanted| matches!(hashed, Some(Hashed::As(digest)) if *digest == wanted);
        rule.digest.is_some_and(|wanted| !has(wanted))
    };
    if first(&differs).is_some() {
        return Decision { verdict: Effect::Deny, rule: without_digest(hashed) };
    }
    let stale = !stands(host, program);
    let denies_words = |rule: &ExecRule| !rule.is_plain() && rule.effect == Effect::Deny;
    let strict = first(&|rule| rule.digest.is_some() || denies_words(rule)).is_some();
    if strict && (stale || program.writers && host.contents.contains_key(&program.file)) {
        return Decision::CHANGED;
    }
    if let Some(denied) = first(&|rule| rule.effect == Effect::Deny && is_dir(rule)) {
        return denied;
    }
    let directories = policy.exec.iter().enumerate().any(|(index, rule)| is_dir(rule) && !host.of(index).is_empty());
    if program.ancestors.len() > depth() && directories {
        return Decision::UNRESOLVED;
    }
    let by_word = if stale { None } else { by_word(policy, program, &names) };
    let holds = |rule: &ExecRule| is_dir(rule) || !stale;
    let allowed = || first(&|rule| rule.effect == Effect::Allow && rule.is_plain() && holds(rule));
    let decision = by_word.or_else(allowed).unwrap_or(default);
    if decision.verdict == Effect::Deny {
        let named = first(&|rule| !is_dir(rule)).is_some();
        return if stale && named && decision == default { Decision::CHANGED } else { decision };
    }
    let vetted = !stale && host.contents.contains_key(&program.file) && first(&|rule| !is_dir(rule)).is_some();
    let known = host.classes.get(&program.file).copied().unwrap_or(0);
    let of = |class: &ProgramClass| {
        (program.classes | known) & class.bit() != 0 && !(vetted && *class == ProgramClass::Written)
    };
    let denied = ProgramClass::ALL.into_iter().filter(of).find_map(|class| {
        let (verdict, rule) = class_rule(policy, class)?;
        (verdict == Effect::Deny).then_some(Decision { verdict, rule })
    });
    let looked_at = strict && host.contents.contains_key(&program.file);
    // by nothing but rules on the file itself
    let by_directory = first(&|rule| rule.effect == Effect::Allow && is_dir(rule)).is_some();
    let own = vetted && default.verdict == Effect::Deny && !by_directory;
    let stood = host.stood.get(&program.file).filter(|names| own && **names != 0);
    denied.or_else(|| by_place(policy, host, program, (looked_at, stood))).unwrap_or(decision)
}

/// What rules that are about places say of where a program stands that is allowed: of the file first, then of the directories
/// above it. `looked_at`: its own rules hold it to what it was when the agent looked; `stood`: and to where it stood then, or
/// their paths lead elsewhere by now.
fn by_place(
    policy: &Policy,
    host: &Resolved,
    program: &Program<'_>,
    (looked_at, stood): (bool, Option<&u64>),
) -> Option<Decision> {
    if host.places.iter().all(Vec::is_empty) && stood.is_none() {
        return None;
    }
    if program.ancestors.len() > depth() {
        return Some(Decision::UNRESOLVED);
    }
    let (own, above) = program.places.split_first()?;
    let first = |wanted: &dyn Fn(&ExecRule) -> bool, place: &Place| {
        let mut rules = policy.exec.iter().enumerate();
        let (index, rule) = rules.find(|(index, rule)| wanted(rule) && host.places_of(*index).contains(place))?;
        Some(Decision { verdict: rule.effect, rule: rule_number(index) })
    };
    let is_dir = |rule: &ExecRule| matches!(rule.target, ExecTarget::Dir(_));
    if let Some(denied) = first(&|rule| !is_dir(rule) && rule.denies_places(), own) {
        return Some(denied);
    }
    let known_only = first(&|rule| !is_dir(rule) && !rule.denies_places(), own).is_some();
    if known_only && !looked_at || stood.is_some_and(|then| *then != own.names) {
        return Some(Decision::CHANGED);
    }
    above.iter().find_map(|place| first(&is_dir, place))
}

/// Whether a file is what it was when the rules were resolved.
fn stands(host: &Resolved, program: &Program<'_>) -> bool {
    let Some(then) = host.contents.get(&program.file) else { return true };
    program.content.is_none_or(|now| now == *then)
}

/// What rules with first arguments say. Before the program is in place those that allow let it go on, but for a script, whose
/// interpreter alone is seen later.
fn by_word(policy: &Policy, program: &Program<'_>, names: &dyn Fn(usize, &ExecRule) -> bool) -> Option<Decision> {
    let rules = policy.exec.iter().enumerate().filter(|(index, rule)| !rule.is_plain() && names(*index, rule));
    let rules: Vec<_> = rules.map(|(index, rule)| (rule_number(index), rule)).collect();
    rules.last()?;
    let Some(word) = program.word else {
        if program.script {
            return Some(Decision::UNRESOLVED);
        }
        let is_file = |rule: &ExecRule| matches!(rule.target, ExecTarget::Path(_) | ExecTarget::Glob(_));
        let allows =
            |(index, rule): &(usize, &ExecRule)| rule.effect == Effect::Allow && is_file(rule) && names(*index, rule);
        let (index, _) = policy.exec.iter().enumerate().find(allows)?;
        return Some(Decision { verdict: Effect::Allow, rule: rule_number(index) });
    };
    let said = |effect: Effect| {
        let has = |rule: &ExecRule| rule.subcommands.iter().any(|own| Some(own.as_bytes()) == word);
        let found = rules.iter().find(|(_, rule)| rule.effect == effect && has(rule))?;
        Some(Decision { verdict: effect, rule: found.0 })
    };
    said(Effect::Deny).or_else(|| said(Effect::Allow))
}

/// What the policy says of a destination. `protocol` is `IPPROTO_*`; mapped IPv4 is IPv4.
pub fn decide_net(policy: &Policy, host: &Resolved, to: IpAddr, port: u16, protocol: u8) -> Decision {
    let to = to.to_canonical();
    let named_by = |effect: Effect| {
        let names = |rule: &NetRule| rule.effect == effect && rule.names_destination(host, to, port, protocol);
        let index = policy.net.iter().position(|rule| names(rule))?;
        Some(Decision { verdict: effect, rule: policy.net_number(index) })
    };
    let otherwise = || {
        if metadata::contains(to) {
            return Decision { verdict: Effect::Deny, rule: rule::REASON_METADATA };
        }
        Decision::by_default(policy.kind.net_default())
    };
    let login = || {
        let denied = !policy.may_delegate() && is_login(host, to, port, protocol);
        denied.then_some(Decision { verdict: Effect::Deny, rule: rule::REASON_DELEGATION })
    };
    named_by(Effect::Deny).or_else(login).or_else(|| named_by(Effect::Allow)).unwrap_or_else(otherwise)
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
    pub fn judge_exec(&self, program: &Program<'_>) -> Decision {
        let default = Decision::by_default(effect(self.exec_default));
        if program.is(ProgramClass::Memfd) {
            return self.exec_entry(class_key(rule::CLASS_MEMFD)).map_or(default, of_entry);
        }
        let nothing = ProgramEntry { flags: NO_RULE, ..ProgramEntry::default() };
        let key = ExecKey { file: program.file, kind: rule::KIND_FILE, pad: 0 };
        let mut named = self.exec_entry(key).unwrap_or(nothing);
        let mut stale = false;
        if named.flags & PINNED != 0 && !entry_stands(program, &named) {
            if named.flags & STRICT != 0 {
                return Decision::CHANGED;
            }
            stale = true;
            named.flags |= NO_RULE;
        }
        let mut best = default;
        let mut own = false;
        if named.flags & NO_RULE == 0 {
            if effect(named.verdict) == Effect::Deny {
                return of_entry(named);
            }
            if named.flags & WORDS_ONLY == 0 {
                best = of_entry(named);
                own = true;
            }
        }
        let before = best.rule;
        best = match self.by_directories(program.ancestors, best) {
            Ok(best) => best,
            Err(denied) => return denied,
        };
        own = own && best.rule == before;
        if named.flags & (WORDS | NO_RULE) == WORDS {
            match program.word {
                None if program.script => return Decision::UNRESOLVED,
                None if named.rule == rule::REASON_DEFAULT => {}
                None => (best, own) = (of_entry(named), own || best.verdict == Effect::Deny),
                Some(word) => {
                    let key = word.and_then(word_bytes).map(|bytes| word_key(bytes, named.words));
                    let found = key.and_then(|key| self.exec_entry(key)).map(of_entry);
                    own = own || found.is_some() && best.verdict == Effect::Deny;
                    best = found.unwrap_or(best);
                }
            }
        }
        if best.verdict == Effect::Deny {
            return if stale && best.rule == rule::REASON_DEFAULT { Decision::CHANGED } else { best };
        }
        let mut classes = program.classes | named.flags & ((1 << rule::CLASSES) - 1);
        if named.flags & (PINNED | NO_RULE) == PINNED {
            classes &= !ProgramClass::Written.bit();
        }
        let denied = (0..rule::CLASSES).filter(|class| classes & (1 << class) != 0).find_map(|class| {
            let found = self.exec_entry(class_key(class)).map(of_entry)?;
            (found.verdict == Effect::Deny).then_some(found)
        });
        let known = named.flags & (STRICT | NO_RULE) == STRICT;
        let stood = if own && default.verdict == Effect::Deny { named.place } else { 0 };
        denied.or_else(|| self.by_place(program, known, stood)).unwrap_or(best)
    }

    /// As the kernel's `rules_on_place`; `stood`: where alone it is allowed to be, or 0.
    fn by_place(&self, program: &Program<'_>, known: bool, stood: u64) -> Option<Decision> {
        if self.flags & HAS_PLACES == 0 && stood == 0 {
            return None;
        }
        if program.ancestors.len() > depth() {
            return Some(Decision::UNRESOLVED);
        }
        let (own, above) = program.places.split_first()?;
        match self.exec_entry(place_key(*own, rule::KIND_PLACE)) {
            Some(found) if found.flags & KNOWN_ONLY == 0 => return Some(of_entry(found)),
            Some(_) if !known => return Some(Decision::CHANGED),
            _ if stood != 0 && stood != own.names => return Some(Decision::CHANGED),
            _ => {}
        }
        above.iter().find_map(|place| self.exec_entry(place_key(*place, rule::KIND_PLACE_DIRECTORY)).map(of_entry))
    }

    /// The walk up; `Err`: a directory denies, or there are too many.
    fn by_directories(&self, ancestors: &[FileId], mut best: Decision) -> Result<Decision, Decision> {
        let directories: &[FileId] = if self.flags & HAS_DIRECTORIES == 0 { &[] } else { ancestors };
        for (above, directory) in directories.iter().enumerate() {
            if above == depth() {
                return Err(Decision::UNRESOLVED);
            }
            let key = ExecKey { file: *directory, kind: rule::KIND_DIRECTORY, pad: 0 };
            if let Some(found) = self.exec_entry(key).map(of_entry) {
                best = found;
                if best.verdict == Effect::Deny {
                    return Err(best);
                }
            }
        }
        Ok(best)
    }

    fn exec_entry(&self, key: ExecKey) -> Option<ProgramEntry> {
        self.exec.get(&key).copied()
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

fn of_entry(entry: ProgramEntry) -> Decision {
    Decision { verdict: effect(entry.verdict), rule: entry.rule }
}

fn entry_stands(program: &Program<'_>, entry: &ProgramEntry) -> bool {
    program.content.is_none_or(|now| now == entry.content) && !(entry.flags & STRICT != 0 && program.writers)
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
    longest
        .and_then(|rules| rules.iter().find(fits))
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
