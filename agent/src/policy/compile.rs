//! Policy and file identities → the tables that the kernel programs look up. Owns the folding that lets one look-up
//! decide where deny must beat allow; puts nothing into the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use tipstaff_common::{
    limits::UNIX_NAME,
    place::{Place, place_of},
    rule::{self, ExecEntry, ExecKey, FileId, ProgramEntry, UnixKey},
    session::{
        HAS_DIRECTORIES, HAS_PLACE_DIRECTORIES, HAS_PLACES, HAS_UNIX_DENIALS, HAS_UNIX_DIRECTORIES, PolicyEntry,
    },
};

use super::{
    delegates,
    exec::exec_table,
    note::Note,
    resolved::{Resolved, UnixFound},
    scope::SOCKET_CLASSES,
    table::{CompileProblem, Folded, NetTable, Rules},
    traffic::{Access, NetRule, UnixTarget},
    types::{Effect, Policy, reason_name},
};

/// What the kernel needs to know of a policy. Equal plans can share a revision in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// An inner map of `EXEC_RULES`.
    pub exec: BTreeMap<ExecKey, ProgramEntry>,
    /// An inner trie of `NET_RULES`.
    pub net: NetTable,
    /// An inner trie of `LISTEN_RULES`.
    pub listen: NetTable,
    /// An inner trie of `INBOUND_RULES`.
    pub inbound: NetTable,
    /// An inner map of `UNIX_RULES`.
    pub unix: BTreeMap<UnixKey, ExecEntry>,
    /// `rule::ALLOW` or `rule::DENY`.
    pub exec_default: u32,
    /// `rule::ALLOW` or `rule::DENY`.
    pub net_default: u32,
    /// `rule::ALLOW` or `rule::DENY`.
    pub listen_default: u32,
    /// `rule::ALLOW` or `rule::DENY`.
    pub inbound_default: u32,
    /// `rule::ALLOW` or `rule::DENY`.
    pub unix_default: u32,
    /// Classes of sockets that may be made and used for something: `socket::SOCKET_*`.
    pub sockets: u32,
    /// Classes of privileges that may be used: `privilege::PRIVILEGE_*`.
    pub privileges: u32,
    /// Those that may be used on members of other sessions too.
    pub neighbours: u32,
    /// `HAS_DIRECTORIES`, `HAS_PLACES` and the like
    pub flags: u32,
    /// The id of each rule number.
    pub rules: Rc<[String]>,
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
            listen_default: self.listen_default,
            inbound_default: self.inbound_default,
            unix_default: self.unix_default,
            sockets: self.sockets,
            privileges: self.privileges,
            neighbours: self.neighbours,
        }
    }

    /// The same plan with the rule numbers that `names` gives, so that records of a policy before it and of this one are
    /// told apart by nobody: an id that `names` has keeps its number, the others come after. `None`: there are more names
    /// than numbers.
    #[must_use]
    pub fn renumbered(mut self, names: &Rc<[String]>) -> Option<Self> {
        let (own, fresh) = numbers(&self.rules, names)?;
        let all = if fresh.is_empty() { Rc::clone(names) } else { names.iter().chain(fresh).cloned().collect() };
        let of = |number: usize| own.get(number).copied();
        // an entry that no rule made has no number, and may be the only one
        let made = self.exec.values_mut().filter(|entry| entry.flags & rule::NO_RULE == 0);
        let entries = made.map(|entry| &mut entry.rule);
        for rule in entries.chain(self.unix.values_mut().map(|entry| &mut entry.rule)) {
            if *rule < rule::REASONS {
                *rule = u32::from(of(usize::try_from(*rule).ok()?)?);
            }
        }
        for table in [&mut self.net, &mut self.listen, &mut self.inbound] {
            for port in table.values_mut().flatten() {
                if port.rule < rule::PORT_REASONS {
                    port.rule = of(usize::from(port.rule))?;
                }
            }
        }
        self.rules = all;
        Some(self)
    }

    /// Takes the tables that are in the kernel for those that the rules come to by now.
    pub fn put(
        &mut self,
        exec: BTreeMap<ExecKey, ProgramEntry>,
        unix: BTreeMap<UnixKey, ExecEntry>,
        net: [NetTable; 3],
    ) {
        (self.exec, self.unix, [self.net, self.listen, self.inbound]) = (exec, unix, net);
        self.flags = flags(&self.exec, &self.unix);
    }

    /// Takes everything but the rules on programs from another plan of the same policy.
    pub fn keep_but_programs(&mut self, of: &Self) {
        let exec = std::mem::take(&mut self.exec);
        self.put(exec, of.unix.clone(), [&of.net, &of.listen, &of.inbound].map(Clone::clone));
    }

    /// The directories, and the files that are denied, whatever their first argument or with some, by their rules' ids.
    pub(super) fn named(&self) -> BTreeMap<&str, BTreeSet<FileId>> {
        let with_words = self.exec.iter().filter(|(key, entry)| key.kind == rule::KIND_FILE && entry.words != 0);
        let words: BTreeMap<u32, FileId> = with_words.map(|(key, entry)| (entry.words, key.file)).collect();
        let mut named: BTreeMap<&str, BTreeSet<FileId>> = BTreeMap::new();
        for (key, entry) in self.exec.iter().filter(|(_, entry)| entry.rule < rule::REASONS) {
            let file = match key.kind {
                rule::KIND_DIRECTORY => Some(key.file),
                rule::KIND_FILE if entry.verdict != rule::ALLOW => Some(key.file),
                rule::KIND_WORD if entry.verdict != rule::ALLOW => words.get(&key.pad).copied(),
                _ => None,
            };
            if let Some(file) = file {
                named.entry(self.rule_name(entry.rule)).or_default().insert(file);
            }
        }
        named
    }

    /// The places that rules are about, by the rules' ids.
    pub(super) fn places(&self) -> BTreeMap<&str, Vec<Place>> {
        let mut places: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
        for (key, entry) in self.exec.iter().filter(|(key, _)| is_place(key)) {
            places.entry(self.rule_name(entry.rule)).or_default().push(place_of(key));
        }
        places
    }

    /// The files that are allowed, by the ids of the rules that their entries name.
    pub(super) fn allowed(&self) -> BTreeMap<&str, Vec<FileId>> {
        let mut allowed: BTreeMap<&str, Vec<FileId>> = BTreeMap::new();
        let files = |(key, entry): &(&ExecKey, &ProgramEntry)| {
            key.kind == rule::KIND_FILE && entry.verdict == rule::ALLOW && entry.rule < rule::REASONS
        };
        for (key, entry) in self.exec.iter().filter(files) {
            allowed.entry(self.rule_name(entry.rule)).or_default().push(key.file);
        }
        allowed
    }

    /// As `Policy::rule_name`.
    #[must_use]
    pub fn rule_name(&self, code: u32) -> &str {
        let id = usize::try_from(code).ok().and_then(|index| self.rules.get(index));
        id.map_or_else(|| reason_name(code), String::as_str)
    }
}

/// The number of each of `rules`, which are all different: that of its name, or one after those of all names; and those that are no
/// names. `None`: there are more than numbers.
fn numbers<'r>(rules: &'r [String], names: &[String]) -> Option<(Vec<u16>, Vec<&'r String>)> {
    let mut own = Vec::with_capacity(rules.len());
    // a session that loses rules has the others in the order that they had
    let mut left = names.iter().enumerate();
    let in_order = rules.iter().map_while(|rule| left.find(|(_, name)| *name == rule));
    own.extend(in_order.map_while(|(number, _)| u16::try_from(number).ok()));
    let rest = &rules[own.len()..];
    if rest.is_empty() {
        return Some((own, Vec::new()));
    }
    let mut known: HashMap<&str, u16> = HashMap::with_capacity(names.len());
    for (number, name) in names.iter().enumerate() {
        known.entry(name).or_insert(u16::try_from(number).ok()?);
    }
    let mut fresh = Vec::new();
    for rule in rest {
        let number = match known.get(rule.as_str()) {
            Some(number) => *number,
            None => {
                let number = u16::try_from(names.len() + fresh.len()).ok();
                fresh.push(rule);
                number.filter(|number| *number < rule::PORT_REASONS)?
            }
        };
        own.push(number);
    }
    Some((own, fresh))
}

/// Makes the kernel's tables, and says what in the policy does nothing.
///
/// # Errors
/// Every prefix for which too many port rules hold.
pub fn compile(policy: &Policy, host: &Resolved) -> Result<Plan, Vec<CompileProblem>> {
    compiled(policy, host, true)
}

/// As [`compile`], of a policy that was told of with more rules: nothing is said of rules on addresses. Its plan is shared with its
/// like only, since notes are compared too.
///
/// # Errors
/// As above.
pub fn compile_less(policy: &Policy, host: &Resolved) -> Result<Plan, Vec<CompileProblem>> {
    compiled(policy, host, false)
}

fn compiled(policy: &Policy, host: &Resolved, told: bool) -> Result<Plan, Vec<CompileProblem>> {
    let numbered = |rules: &'_ [Rc<NetRule>], number: fn(&Policy, usize) -> u32| -> Vec<u32> {
        (0..rules.len()).map(|index| number(policy, index)).collect()
    };
    let (exec, mut notes) = exec_table(policy, host);
    let net = Rules {
        host,
        rules: policy.net.iter().map(Rc::as_ref).zip(numbered(&policy.net, Policy::net_number)).collect(),
        destinations: true,
        no_logins: !policy.may_delegate(),
    };
    let net = net.fold()?;
    let listen = fold_access(host, &policy.listen, &numbered(&policy.listen.rules, Policy::listen_number))?;
    let inbound = fold_access(host, &policy.inbound, &numbered(&policy.inbound.rules, Policy::inbound_number))?;
    if told {
        net_notes(policy, host, &net, &mut notes);
    }
    let unix = unix_table(policy, host, &mut notes);
    notes.extend(delegates::notes(policy, host));
    let flags = flags(&exec, &unix);
    let useless = policy.useless_classes();
    let named = SOCKET_CLASSES.iter().filter(|(_, mask)| useless & mask != 0);
    notes.extend(named.map(|(class, _)| Note::Useless { class }));
    Ok(Plan {
        exec,
        net: net.table(),
        listen: listen.table(),
        inbound: inbound.table(),
        unix,
        exec_default: policy.kind.exec_default().code(),
        net_default: policy.kind.net_default().code(),
        listen_default: policy.listen_default().code(),
        inbound_default: policy.inbound_default().code(),
        unix_default: policy.kind.unix_default().code(),
        sockets: policy.socket_classes() & !useless,
        privileges: policy.privilege_classes(),
        neighbours: policy.classes_on_neighbours(),
        flags,
        rules: policy.rules().map(str::to_owned).collect(),
        notes,
    })
}

/// Whether the key is that of a place, of a program or a directory.
pub(super) const fn is_place(key: &ExecKey) -> bool {
    matches!(key.kind, rule::KIND_PLACE | rule::KIND_PLACE_DIRECTORY)
}

/// `HAS_DIRECTORIES`, `HAS_PLACES`, `HAS_PLACE_DIRECTORIES`, `HAS_UNIX_DIRECTORIES`, `HAS_UNIX_DENIALS`
fn flags(exec: &BTreeMap<ExecKey, ProgramEntry>, unix: &BTreeMap<UnixKey, ExecEntry>) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let of_file = |key: &UnixKey| key.kind != rule::UNIX_ABSTRACT;
    let any = |kind: u32| exec.keys().any(|key| key.kind == kind);
    flag(any(rule::KIND_DIRECTORY), HAS_DIRECTORIES)
        | flag(exec.keys().any(is_place), HAS_PLACES)
        | flag(any(rule::KIND_PLACE_DIRECTORY), HAS_PLACE_DIRECTORIES)
        | flag(unix.keys().any(|key| key.kind == rule::UNIX_DIRECTORY), HAS_UNIX_DIRECTORIES)
        | flag(unix.iter().any(|(key, entry)| of_file(key) && entry.verdict != rule::ALLOW), HAS_UNIX_DENIALS)
}

fn fold_access(host: &Resolved, access: &Access, numbers: &[u32]) -> Result<Folded, Vec<CompileProblem>> {
    let rules = access.rules.iter().map(Rc::as_ref).zip(numbers.iter().copied()).collect();
    Rules { host, rules, destinations: false, no_logins: false }.fold()
}

/// Rules on addresses that do nothing, because of others.
fn net_notes(policy: &Policy, host: &Resolved, net: &Folded, notes: &mut Vec<Note>) {
    for rules in [&policy.net, &policy.listen.rules, &policy.inbound.rules] {
        let mut seen = HashMap::with_capacity(rules.len());
        for rule in rules {
            let same = (rule.effect, rule.to, rule.ports.as_slice(), rule.protocols.as_slice());
            let first = *seen.entry(same).or_insert(rule.id.as_str());
            if first != rule.id {
                notes.push(Note::Repeated { rule: rule.id.clone(), first: first.to_owned() });
            }
        }
    }
    if policy.net.iter().all(|rule| rule.effect == Effect::Allow) {
        return;
    }
    for rule in policy.net.iter().filter(|rule| rule.effect == Effect::Allow) {
        if let Some(number) = net.overrides(host, rule) {
            let by = policy.rule_name(number).to_owned();
            notes.push(Note::Denied { rule: rule.id.clone(), by });
        }
    }
}

fn unix_table(policy: &Policy, host: &Resolved, notes: &mut Vec<Note>) -> BTreeMap<UnixKey, ExecEntry> {
    let mut table = BTreeMap::new();
    let by_effect = |effect| policy.unix_rules().iter().enumerate().filter(move |(_, rule)| rule.effect == effect);
    for (index, rule) in by_effect(Effect::Deny).chain(by_effect(Effect::Allow)) {
        let keys = unix_keys(rule.effect, &rule.target, host.of_unix(index));
        if keys.iter().all(|key| key.kind == rule::UNIX_SPELLED) {
            let (rule, effect, target) = (rule.id.clone(), rule.effect, rule.target.to_string());
            notes.push(Note::Missing { rule, effect, target });
        }
        let entry = ExecEntry { verdict: rule.effect.code(), rule: policy.unix_number(index) };
        for key in keys {
            table.entry(key).or_insert(entry);
        }
    }
    table
}

fn unix_keys(effect: Effect, target: &UnixTarget, found: Option<&UnixFound>) -> Vec<UnixKey> {
    let files = found.map_or(&[][..], |found| &found.files);
    let of = |kind: u32| files.iter().filter_map(move |file| unix_key(*file, kind, b""));
    match target {
        UnixTarget::Abstract(name) => {
            unix_key(FileId::default(), rule::UNIX_ABSTRACT, name.as_bytes()).into_iter().collect()
        }
        UnixTarget::Dir(_) => of(rule::UNIX_DIRECTORY).collect(),
        UnixTarget::Path(path) => {
            let place = found.and_then(|found| found.place.as_ref());
            let place = place.and_then(|(directory, name)| unix_key(*directory, rule::UNIX_PLACE, name));
            let speaks = effect == Effect::Deny || found.is_some_and(|found| found.trusted);
            let spelled =
                speaks.then(|| unix_key(FileId::default(), rule::UNIX_SPELLED, path.as_os_str().as_encoded_bytes()));
            of(rule::UNIX_FILE).chain(place).chain(spelled.flatten()).collect()
        }
    }
}

/// `None`: no socket can have such a long name.
pub(super) fn unix_key(file: FileId, kind: u32, name: &[u8]) -> Option<UnixKey> {
    let mut key = UnixKey { file, kind, length: u32::try_from(name.len()).ok()?, name: [0; UNIX_NAME] };
    key.name.get_mut(..name.len())?.copy_from_slice(name);
    Some(key)
}
