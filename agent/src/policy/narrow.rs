//! Whether one plan allows anything that another does not. For addresses, ports and protocols the answer is exact, on
//! the compiled tables; for programs and unix sockets it goes by identity and by where they are now.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use tipstaff_common::rule::{self, ExecKey, FileId, KNOWN_ONLY, NO_RULE, PINNED, PortRule, ProgramEntry, STRICT};

use super::{
    compile::{Plan, is_place},
    decide::UnixSocket,
    programs::{Program, ProgramClass},
    resolved::Resolved,
    scope::{PRIVILEGE_CLASSES, SOCKET_CLASSES},
    table::{NetKey, NetTable},
    traffic::{Protocol, UnixTarget},
    types::{Effect, ExecRule, ExecTarget, Mode, Policy},
};

/// A policy that is to take the place of another, with what is known of this host.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What its rules name.
    pub host: &'a Resolved,
    /// Its tables.
    pub plan: &'a Plan,
    /// The directories above each program and directory that its rules name, the nearest first.
    pub above: &'a HashMap<FileId, Vec<FileId>>,
}

/// The first thing found that a candidate allows and the plan in force does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wider {
    /// It would only observe.
    Mode,
    /// What no rule names: `programs`, `destinations` and so on.
    Default(&'static str),
    /// An address, port and protocol.
    Address {
        /// `destination`, `local address` or `peer`.
        what: &'static str,
        /// The address; IPv4 in its own form.
        address: IpAddr,
        /// Port.
        port: u16,
        /// `IPPROTO_*`
        protocol: u8,
    },
    /// What an allow rule names.
    Rule(String),
    /// What an allow rule can come to name: a file that is not there yet, or has not its digest yet.
    Later(String),
    /// What a deny rule of the plan in force names.
    Denial(String),
    /// A class of sockets.
    Class(&'static str),
    /// A class of privileges.
    Privilege(&'static str),
    /// A class of privileges, on members of other sessions.
    Neighbours(&'static str),
    /// A class of programs.
    Programs(&'static str),
}

impl fmt::Display for Wider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode => f.write_str("it only observes"),
            Self::Default(what) => write!(f, "it allows {what} that no rule names"),
            Self::Address { what, address, port, protocol } => {
                let name = Protocol::of_number(*protocol).map_or("protocol", Protocol::as_str);
                let number = if name == "protocol" { format!(" {protocol}") } else { String::new() };
                write!(f, "it allows the {what} {address}, port {port}, {name}{number}")
            }
            Self::Rule(id) => write!(f, "its rule {id} allows what is not allowed now"),
            Self::Later(id) => {
                write!(f, "its rule {id} allows what can come to be, and no rule of the session's covers it")
            }
            Self::Denial(id) => write!(f, "it does not have rule {id}, which denies what it could allow"),
            Self::Programs(word) => write!(f, "it allows programs of the class {word}"),
            Self::Privilege(word) => write!(f, "it allows the privilege {word}"),
            Self::Neighbours(word) => write!(f, "it allows the privilege {word} on other sessions"),
            Self::Class(word) => write!(f, "it allows sockets of the class {word}"),
        }
    }
}

/// The first thing that `new` allows and `old` does not; `None`: everything that `new` allows is allowed by `old`.
#[must_use]
pub fn wider(old: &Plan, old_mode: Mode, new: &Candidate<'_>) -> Option<Wider> {
    if old_mode == Mode::Enforce && new.policy.mode == Mode::Observe {
        return Some(Wider::Mode);
    }
    let classes = SOCKET_CLASSES.iter().find(|(_, mask)| new.plan.sockets & !old.sockets & mask != 0);
    let privileges = PRIVILEGE_CLASSES.iter().find(|(_, mask)| new.plan.privileges & !old.privileges & mask != 0);
    let neighbours = PRIVILEGE_CLASSES.iter().find(|(_, mask)| new.plan.neighbours & !old.neighbours & mask != 0);
    wider_addresses(old, new.plan)
        .or_else(|| wider_exec(old, new))
        .or_else(|| wider_unix(old, new))
        .or_else(|| classes.map(|(word, _)| Wider::Class(word)))
        .or_else(|| privileges.map(|(word, _)| Wider::Privilege(word)))
        .or_else(|| neighbours.map(|(word, _)| Wider::Neighbours(word)))
}

/// As [`wider`], for destinations, local addresses and peers.
pub(super) fn wider_addresses(old: &Plan, new: &Plan) -> Option<Wider> {
    let tables = [
        ("destination", "destinations", (&old.net, old.net_default), (&new.net, new.net_default)),
        (
            "local address",
            "listening on addresses",
            (&old.listen, old.listen_default),
            (&new.listen, new.listen_default),
        ),
        ("peer", "peers", (&old.inbound, old.inbound_default), (&new.inbound, new.inbound_default)),
    ];
    tables.into_iter().find_map(|(what, unnamed, old, new)| {
        if new.1 == rule::ALLOW && old.1 != rule::ALLOW {
            return Some(Wider::Default(unnamed));
        }
        let (address, port, protocol) = wider_table(old, new)?;
        Some(Wider::Address { what, address: Ipv6Addr::from_bits(address).to_canonical(), port, protocol })
    })
}

/// Whether a file that the plan in force binds to a digest would run under the new one whatever its bytes are: a rule that
/// allows binds it too. `above` has the directories above each file that the rules in force name, the nearest first.
#[must_use]
pub fn unbound(old: &Plan, new: &Plan, above: &HashMap<FileId, Vec<FileId>>) -> bool {
    let bound = |entry: &ProgramEntry| {
        let differs = entry.verdict != rule::ALLOW && matches!(entry.rule, rule::REASON_DIGEST | rule::REASON_IDENTITY);
        differs || entry.flags & STRICT != 0
    };
    let is = |key: &ExecKey, kind: u32| key.kind == kind;
    // the place of a file that does not exist yet, or has another digest, is held for it by its rule alone
    let there: BTreeSet<u32> =
        old.exec.iter().filter(|(key, e)| is(key, rule::KIND_FILE) && bound(e)).map(|(_, e)| e.rule).collect();
    let held = |(key, entry): (&ExecKey, &ProgramEntry)| {
        entry.flags & KNOWN_ONLY != 0 && !new.exec.contains_key(key) && !there.contains(&entry.rule)
    };
    let allows_dirs = new.exec.iter().any(|(key, e)| is(key, rule::KIND_DIRECTORY) && e.verdict == rule::ALLOW);
    if (allows_dirs || new.exec_default == rule::ALLOW) && old.exec.iter().any(held) {
        return true;
    }
    let mut files = old.exec.iter().filter(|(key, entry)| is(key, rule::KIND_FILE) && bound(entry));
    files.any(|(key, _)| match new.exec.get(key).filter(|entry| entry.flags & NO_RULE == 0) {
        Some(own) => !bound(own) && own.verdict == rule::ALLOW,
        None => {
            let above = above.get(&key.file).map_or(&[][..], Vec::as_slice);
            new.judge_exec(&Program::of(key.file, above)).verdict == Effect::Allow
        }
    })
}

/// The first allow rule for programs that allows more once a file comes to be: one that names nothing now, names what matches,
/// or asks for a digest. No file that is there says whether it is wider, so a rule of the policy in force must cover it.
#[must_use]
pub fn wider_later(old: &Policy, old_default: u32, new: &Candidate<'_>) -> Option<Wider> {
    if old_default == rule::ALLOW {
        return None;
    }
    let allows = |rule: &&ExecRule| rule.effect == Effect::Allow;
    let covers = |old: &ExecRule, own: &ExecRule| {
        let below = |directory: &Path, path: &Path| path != directory && path.starts_with(directory);
        let names = match (&old.target, &own.target) {
            (ExecTarget::Dir(directory), ExecTarget::Path(path)) => below(directory, path),
            (ExecTarget::Dir(directory), ExecTarget::Glob(pattern)) => below(directory, Path::new(pattern)),
            (before, now) => before == now,
        };
        let digest = old.digest.is_none() || old.digest == own.digest;
        let any = old.subcommands.is_empty();
        names && digest && (any || !own.is_plain() && own.subcommands.iter().all(|word| old.subcommands.contains(word)))
    };
    let open = |index: usize, own: &ExecRule| match own.target {
        ExecTarget::Path(_) => own.digest.is_some() || new.host.of(index).is_empty(),
        ExecTarget::Glob(_) => true,
        ExecTarget::Dir(_) | ExecTarget::Class(_) => false,
    };
    let rules = new.policy.exec.iter().enumerate().filter(|(_, rule)| allows(rule));
    let covered = |own: &ExecRule| old.exec.iter().filter(allows).any(|old| covers(old, own));
    let more = rules.into_iter().find(|(index, own)| open(*index, own) && !covered(own));
    more.map(|(_, rule)| Wider::Later(rule.id.clone()))
}

fn wider_exec(old: &Plan, new: &Candidate<'_>) -> Option<Wider> {
    let plan = new.plan;
    if plan.exec_default == rule::ALLOW && old.exec_default != rule::ALLOW {
        return Some(Wider::Default("programs"));
    }
    let denies = |entry: &ProgramEntry| entry.verdict != rule::ALLOW && entry.flags & KNOWN_ONLY == 0;
    let is_denied = |plan: &Plan, key: &ExecKey| plan.exec.get(key).is_some_and(denies);
    let class = |class: &ProgramClass| {
        let key = rule::class_key(class.code());
        let more = plan.exec.get(&key).is_some_and(|own| own.verdict == rule::ALLOW) && !old.exec.contains_key(&key);
        (is_denied(old, &key) && !is_denied(plan, &key)) || (more && old.exec_default != rule::ALLOW)
    };
    if let Some(class) = ProgramClass::ALL.into_iter().find(class) {
        return Some(Wider::Programs(class.word()));
    }
    let allows = |entry: &ProgramEntry| entry.verdict == rule::ALLOW && entry.flags & NO_RULE == 0;
    let is = |key: &ExecKey, kind: u32| key.kind == kind;
    let allows_dirs = plan.exec.iter().any(|(key, e)| is(key, rule::KIND_DIRECTORY) && allows(e));
    if allows_dirs || plan.exec_default == rule::ALLOW {
        let named = |key: &ExecKey| is(key, rule::KIND_FILE) || is(key, rule::KIND_DIRECTORY) || is_place(key);
        let files = old.exec.iter().filter(|(key, _)| named(key));
        let lost = files.into_iter().find(|(key, entry)| denies(entry) && !is_denied(plan, key));
        if let Some((_, entry)) = lost {
            return Some(Wider::Denial(old.rule_name(entry.rule).to_owned()));
        }
    }
    let mut allowed = plan.exec.iter().filter(|(_, entry)| allows(entry));
    let more = allowed.find(|(key, entry)| {
        let known = new.above.get(&key.file);
        let above = known.map_or(&[][..], Vec::as_slice);
        match key.kind {
            // a file of which nobody knows where it is could be anywhere
            rule::KIND_FILE => known.is_none() || wider_program(old, plan, key, entry, above),
            rule::KIND_DIRECTORY => {
                // no file has this identity: what decides are the directory and those above it
                let tree: Vec<FileId> = std::iter::once(key.file).chain(above.iter().copied()).collect();
                old.judge_exec(&Program::of(FileId::default(), &tree)).verdict == Effect::Deny
            }
            _ => false,
        }
    });
    more.map(|(_, entry)| Wider::Rule(plan.rule_name(entry.rule).to_owned()))
}

/// Whether the new plan lets a program that it names do more: with any first argument, or none, or once it has changed.
fn wider_program(old: &Plan, new: &Plan, key: &ExecKey, entry: &ProgramEntry, above: &[FileId]) -> bool {
    let strict = |entry: &ProgramEntry| entry.flags & STRICT;
    // a file that changed since, or is elsewhere, is denied now, and would be allowed as it is
    let moved = |before: &ProgramEntry| before.place != 0 && before.place != entry.place;
    let changed =
        |before: &ProgramEntry| before.flags & PINNED != 0 && (before.content != entry.content || moved(before));
    if old.exec.get(key).is_some_and(|before| strict(before) & !strict(entry) != 0 || changed(before)) {
        return true;
    }
    let words = |plan: &Plan| -> Vec<Vec<u8>> {
        let number = plan.exec.get(key).map_or(0, |entry| entry.words);
        let own = plan.exec.keys().filter(|key| key.kind == rule::KIND_WORD && key.pad == number);
        own.map(|key| rule::word_of(key).into_iter().take_while(|byte| *byte != 0).collect()).collect()
    };
    let mut tried: Vec<Option<Vec<u8>>> = words(old).into_iter().chain(words(new)).map(Some).collect();
    tried.push(None);
    tried.iter().any(|word| {
        let program = Program { word: Some(word.as_deref()), ..Program::of(key.file, above) };
        new.judge_exec(&program).verdict == Effect::Allow && old.judge_exec(&program).verdict == Effect::Deny
    })
}

fn wider_unix(old: &Plan, new: &Candidate<'_>) -> Option<Wider> {
    let plan = new.plan;
    if plan.unix_default == rule::ALLOW && old.unix_default != rule::ALLOW {
        return Some(Wider::Default("unix sockets"));
    }
    let allows_many = plan.unix_default == rule::ALLOW;
    let allows_dirs = plan.unix.iter().any(|(key, e)| key.kind == rule::UNIX_DIRECTORY && e.verdict == rule::ALLOW);
    let lost = old.unix.iter().find(|(key, entry)| {
        let matters = allows_many || (allows_dirs && key.kind != rule::UNIX_ABSTRACT);
        // what a path is spelled like stands beside what it is
        let names = key.kind != rule::UNIX_SPELLED;
        names
            && matters
            && entry.verdict != rule::ALLOW
            && plan.unix.get(key).is_none_or(|own| own.verdict == rule::ALLOW)
    });
    if let Some((_, entry)) = lost {
        return Some(Wider::Denial(old.rule_name(entry.rule).to_owned()));
    }
    let rules = new.policy.unix_rules().iter().enumerate().filter(|(_, rule)| rule.effect == Effect::Allow);
    let more = rules.into_iter().find(|(index, rule)| {
        let found = new.host.of_unix(*index).cloned().unwrap_or_default();
        let above = |file: &FileId| -> Vec<FileId> {
            std::iter::once(*file).chain(new.above.get(file).into_iter().flatten().copied()).collect()
        };
        let refused = |file: FileId, name: &[u8], ancestors: &[FileId]| {
            old.judge_unix(&UnixSocket::File { file, name, ancestors }).verdict == Effect::Deny
        };
        match &rule.target {
            UnixTarget::Abstract(name) => {
                old.judge_unix(&UnixSocket::Abstract(name.as_bytes())).verdict == Effect::Deny
            }
            UnixTarget::Dir(_) => found.files.iter().any(|file| refused(FileId::default(), b"", &above(file))),
            UnixTarget::Path(_) => found.place.as_ref().is_some_and(|(directory, name)| {
                let file = found.files.first().copied().unwrap_or_default();
                refused(file, name, &above(directory))
            }),
        }
    });
    more.map(|(_, rule)| Wider::Rule(rule.id.clone()))
}

/// One prefix of either table.
struct Prefix<'t> {
    first: u128,
    last: u128,
    /// The longest match's entry for what lies in this prefix and in no longer one.
    old: Option<&'t [PortRule]>,
    new: Option<&'t [PortRule]>,
    /// What is not covered by longer prefixes that were seen begins here; `None`: nothing is left.
    rest: Option<u128>,
    /// The first address that is not covered by longer prefixes.
    own: Option<u128>,
}

/// The first address, port and protocol that `new` allows and `old` does not. Each is a table and its default.
fn wider_table(old: (&NetTable, u32), new: (&NetTable, u32)) -> Option<(u128, u16, u8)> {
    let keys: BTreeSet<(u128, u32)> = old.0.keys().chain(new.0.keys()).map(|key| place(*key)).chain([(0, 0)]).collect();
    let mut open: Vec<Prefix<'_>> = Vec::new();
    let mut found = None;
    let close = |prefix: Prefix<'_>, open: &mut Vec<Prefix<'_>>, found: &mut Option<(u128, u16, u8)>| {
        if let Some(outer) = open.last_mut() {
            if outer.own.is_none() {
                outer.own = outer.rest.filter(|rest| *rest < prefix.first);
            }
            outer.rest = prefix.last.checked_add(1).filter(|next| *next <= outer.last);
        }
        if let Some(address) = prefix.own.or(prefix.rest)
            && found.is_none()
        {
            let more = wider_entry((prefix.old, old.1), (prefix.new, new.1));
            *found = more.map(|(port, protocol)| (address, port, protocol));
        }
    };
    // a shorter prefix comes before those in it
    for (first, length) in keys {
        while open.last().is_some_and(|outer| outer.last < first) {
            if let Some(done) = open.pop() {
                close(done, &mut open, &mut found);
            }
        }
        let key = NetKey { prefix_len: length, address: first.to_be_bytes() };
        let outer = open.last().map_or((None, None), |outer| (outer.old, outer.new));
        open.push(Prefix {
            first,
            last: first | u128::MAX.checked_shr(length).unwrap_or(0),
            old: old.0.get(&key).map(Vec::as_slice).or(outer.0),
            new: new.0.get(&key).map(Vec::as_slice).or(outer.1),
            rest: Some(first),
            own: None,
        });
    }
    while let Some(done) = open.pop() {
        close(done, &mut open, &mut found);
    }
    found
}

fn place(key: NetKey) -> (u128, u32) {
    (u128::from_be_bytes(key.address), key.prefix_len)
}

/// The first port and protocol that the new entry allows and the old one does not.
fn wider_entry(old: (Option<&[PortRule]>, u32), new: (Option<&[PortRule]>, u32)) -> Option<(u16, u8)> {
    let (old_rules, new_rules) = (old.0.unwrap_or_default(), new.0.unwrap_or_default());
    if new.1 != rule::ALLOW && new_rules.iter().all(|r| u32::from(r.verdict) != rule::ALLOW) {
        return None;
    }
    let both = || old_rules.iter().chain(new_rules);
    let mut ports: BTreeSet<u16> = both().map(|r| r.low).chain(both().filter_map(|r| r.high.checked_add(1))).collect();
    ports.insert(0);
    let mut protocols: BTreeSet<u8> = both().map(|r| r.protocol).filter(|protocol| *protocol != 0).collect();
    // stands for all that no rule names
    protocols.extend((1..=u8::MAX).find(|protocol| !protocols.contains(protocol)));
    let allowed = |rules: &[PortRule], default: u32, port: u16, protocol: u8| {
        let fits = |r: &&PortRule| (r.low..=r.high).contains(&port) && (r.protocol == 0 || r.protocol == protocol);
        rules.iter().find(fits).map_or(default, |r| u32::from(r.verdict)) == rule::ALLOW
    };
    let more = |port: u16, protocol: u8| {
        allowed(new_rules, new.1, port, protocol) && !allowed(old_rules, old.1, port, protocol)
    };
    let all = ports.iter().flat_map(|port| protocols.iter().map(|protocol| (*port, *protocol)));
    all.into_iter().find(|(port, protocol)| more(*port, *protocol))
}
