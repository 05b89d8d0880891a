//! Exec rules → the table of programs: what each file, directory, class and first argument comes to.

use std::collections::BTreeMap;

use tipstaff_common::{
    place::place_key,
    rule::{
        self, ALLOW, DENY, ExecKey, FileId, KNOWN_ONLY, NO_RULE, PINNED, ProgramEntry, REASON_CLASSES, REASON_DEFAULT,
        REASON_DIGEST, REASON_IDENTITY, STRICT, WORDS, WORDS_ONLY, class_key, word_key,
    },
};

use super::{
    note::Note,
    programs::{ProgramClass, word_bytes},
    resolved::{Hashed, Resolved},
    types::{Effect, ExecRule, ExecTarget, Policy, rule_number},
};

type Table = BTreeMap<ExecKey, ProgramEntry>;

/// What the rules on one file come to.
#[derive(Default)]
struct Named {
    /// The first rule that denies it, whatever its arguments.
    denied: Option<u32>,
    /// The first rule that allows it, whatever its arguments.
    allowed: Option<u32>,
    /// A rule asks for a digest.
    digest: bool,
    /// It does not have it: for which reason.
    differs: Option<u32>,
    /// First arguments, and what rules say of them; denials first.
    words: Vec<(String, Effect, u32)>,
}

/// The table, and what the policy's author should know.
pub(super) fn exec_table(policy: &Policy, host: &Resolved) -> (Table, Vec<Note>) {
    let mut table = Table::new();
    let mut notes = Vec::new();
    let mut named: BTreeMap<FileId, Named> = BTreeMap::new();
    // denials first: what they name stays theirs
    let by_effect = |effect| policy.exec.iter().enumerate().filter(move |(_, rule)| rule.effect == effect);
    for (index, rule) in by_effect(Effect::Deny).chain(by_effect(Effect::Allow)) {
        let number = rule_number(index);
        let found = host.of(index);
        let overridden = match &rule.target {
            ExecTarget::Class(_) => continue,
            ExecTarget::Dir(_) => {
                let entry = ProgramEntry { verdict: rule.effect.code(), rule: number, ..ProgramEntry::default() };
                let key = |file: &FileId| ExecKey { file: *file, kind: rule::KIND_DIRECTORY, pad: 0 };
                let put = found.iter().map(|file| *table.entry(key(file)).or_insert(entry));
                let first = put.map(|first| (first.verdict != entry.verdict).then_some(first.rule));
                all(first.collect())
            }
            ExecTarget::Path(_) | ExecTarget::Glob(_) => {
                let files = found.iter().map(|file| {
                    let entry = named.entry(*file).or_default();
                    note_file(entry, rule, number, *file, host, &mut notes);
                    entry.denied.filter(|_| rule.effect == Effect::Allow)
                });
                all(files.collect())
            }
        };
        put_places(&mut table, (index, rule), host);
        if host.mistaken.contains(&rule.id) {
            let (rule, target, is_dir) =
                (rule.id.clone(), rule.target.to_string(), matches!(rule.target, ExecTarget::Dir(_)));
            notes.push(if is_dir { Note::File { rule, target } } else { Note::Directory { rule, target } });
        } else if found.is_empty() {
            notes.push(Note::Missing { rule: rule.id.clone(), effect: rule.effect, target: rule.target.to_string() });
        }
        if let Some(first) = overridden {
            let (ExecTarget::Path(path) | ExecTarget::Dir(path)) = &rule.target else { continue };
            let (by, path) = (policy.rule_name(first).to_owned(), path.display().to_string());
            notes.push(Note::Overridden { rule: rule.id.clone(), path, by });
        }
    }
    let numbered = named.iter().zip(1..);
    for ((file, named), words) in numbered {
        put_file(&mut table, *file, named, words, host);
    }
    for (file, classes) in &host.classes {
        let key = ExecKey { file: *file, kind: rule::KIND_FILE, pad: 0 };
        let nothing = ProgramEntry { flags: NO_RULE, ..ProgramEntry::default() };
        table.entry(key).or_insert(nothing).flags |= classes;
    }
    for class in ProgramClass::ALL {
        if let Some((effect, rule)) = class_rule(policy, class) {
            let entry = ProgramEntry { verdict: effect.code(), rule, ..ProgramEntry::default() };
            table.insert(class_key(class.code()), entry);
        }
    }
    (table, notes)
}

/// The entries of where a rule's files or directory stand. What is denied there whatever it is stays so.
fn put_places(table: &mut Table, (index, rule): (usize, &ExecRule), host: &Resolved) {
    let kind = if matches!(rule.target, ExecTarget::Dir(_)) { rule::KIND_PLACE_DIRECTORY } else { rule::KIND_PLACE };
    let flags = if rule.denies_places() { 0 } else { KNOWN_ONLY };
    let entry = ProgramEntry { verdict: DENY, rule: rule_number(index), flags, ..ProgramEntry::default() };
    for place in host.places_of(index) {
        let put = table.entry(place_key(*place, kind)).or_insert(entry);
        if put.flags & KNOWN_ONLY != 0 && rule.denies_places() {
            *put = entry;
        }
    }
}

/// The first, where there is one for each; `None` where there is nothing at all.
fn all(found: Vec<Option<u32>>) -> Option<u32> {
    let first = found.first().copied()??;
    found.iter().all(Option::is_some).then_some(first)
}

/// What is said of a class: the rules' number or a reason. `None`: nothing that matters.
pub(super) fn class_rule(policy: &Policy, class: ProgramClass) -> Option<(Effect, u32)> {
    let named = |effect: Effect| {
        let names = |rule: &ExecRule| rule.effect == effect && rule.target == ExecTarget::Class(class);
        policy.exec.iter().position(names).map(rule_number)
    };
    if let Some(number) = named(Effect::Deny) {
        return Some((Effect::Deny, number));
    }
    if let Some(number) = named(Effect::Allow) {
        // a file without a name is named by nothing else
        return (class == ProgramClass::Memfd).then_some((Effect::Allow, number));
    }
    (policy.kind.class_default() == Effect::Deny).then_some((Effect::Deny, REASON_CLASSES + class.code()))
}

fn note_file(entry: &mut Named, rule: &ExecRule, number: u32, file: FileId, host: &Resolved, notes: &mut Vec<Note>) {
    if !rule.is_plain() {
        entry.words.extend(rule.subcommands.iter().map(|word| (word.clone(), rule.effect, number)));
    } else if rule.effect == Effect::Deny {
        entry.denied.get_or_insert(number);
    } else {
        entry.allowed.get_or_insert(number);
    }
    let Some(wanted) = rule.digest else { return };
    entry.digest = true;
    let hashed = host.digests.get(&file);
    let found = match hashed {
        Some(Hashed::As(digest)) if *digest == wanted => return,
        Some(Hashed::As(_)) => format!("{} has another digest", rule.target),
        Some(Hashed::Not(why) | Hashed::Unknown(why)) => format!("{} {why}", rule.target),
        None => format!("{} was not hashed", rule.target),
    };
    entry.differs = Some(without_digest(hashed));
    notes.push(Note::Digest { rule: rule.id.clone(), found });
}

/// Why a file is denied that does not have the digest that its rule asks for.
pub(super) const fn without_digest(hashed: Option<&Hashed>) -> u32 {
    match hashed {
        Some(Hashed::Unknown(_)) => REASON_IDENTITY,
        _ => REASON_DIGEST,
    }
}

/// The entry of one file, and those of its first arguments.
fn put_file(table: &mut Table, file: FileId, named: &Named, words: u32, host: &Resolved) {
    let key = ExecKey { file, kind: rule::KIND_FILE, pad: 0 };
    if let Some(rule) = named.denied {
        table.insert(key, ProgramEntry { verdict: DENY, rule, ..ProgramEntry::default() });
        return;
    }
    if let Some(rule) = named.differs {
        table.insert(key, ProgramEntry { verdict: DENY, rule, ..ProgramEntry::default() });
        return;
    }
    let content = host.contents.get(&file);
    let denies_words = named.words.iter().any(|(_, effect, _)| *effect == Effect::Deny);
    let by_word = || named.words.iter().rfind(|(_, effect, _)| *effect == Effect::Allow).map(|(_, _, rule)| *rule);
    let rule = named.allowed.or_else(by_word);
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(content.is_some(), PINNED)
        | flag(content.is_some() && (named.digest || denies_words), STRICT)
        | flag(!named.words.is_empty(), WORDS)
        | flag(named.allowed.is_none(), WORDS_ONLY);
    let entry = ProgramEntry {
        verdict: ALLOW,
        rule: rule.unwrap_or(REASON_DEFAULT),
        flags,
        words: if named.words.is_empty() { 0 } else { words },
        content: content.copied().unwrap_or_default(),
        place: host.stood.get(&file).copied().filter(|_| content.is_some()).unwrap_or(0),
    };
    table.insert(key, entry);
    // denials come first
    for (word, effect, rule) in &named.words {
        let Some(bytes) = word_bytes(word.as_bytes()) else { continue };
        let entry = ProgramEntry { verdict: effect.code(), rule: *rule, ..ProgramEntry::default() };
        table.entry(word_key(bytes, words)).or_insert(entry);
    }
}
