//! The rules of a policy: everything below `spec.scope`. Owns the keys of its sections, and the ids of rules.

mod exec;
mod net;
mod privileges;
mod sockets;
mod unix;

use std::{collections::BTreeMap, path::PathBuf, rc::Rc};

use super::{
    problem::{Problems, quote},
    traffic::{Access, NetRule, UnixRule},
    types::{Effect, ExecRule, REASONS, RULES},
    walk::{At, Field, Fields, Keys, fields, list, text},
};

pub(super) use privileges::PRIVILEGE_CLASSES;
pub use privileges::{Privileges, privilege_name};
pub use sockets::Classes;
pub(super) use sockets::SOCKET_CLASSES;

const SCOPE: Keys = Keys { known: &["exec", "net", "unix", "sockets", "privileges"], later: &[] };

const EFFECTS: [(&str, Effect); 2] = [("allow", Effect::Allow), ("deny", Effect::Deny)];

/// Bytes of a path: what the kernel takes, less the terminating 0.
const PATH_BYTES: usize = 4095;
/// Bytes of an id.
const ID_BYTES: usize = 64;

/// Everything below `spec.scope`. Rules with problems are left out.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) exec: Vec<ExecRule>,
    pub(super) net: Vec<Rc<NetRule>>,
    pub(super) listen: Access,
    pub(super) inbound: Access,
    pub(super) unix: Option<Vec<UnixRule>>,
    pub(super) sockets: Option<Classes>,
    pub(super) privileges: Option<Privileges>,
}

/// Ids seen so far, and the line of each.
type Ids = BTreeMap<String, u32>;

/// One rule's mapping, its place, its effect, and the id it has if it names none.
struct RuleAt<'a> {
    fields: Fields<'a>,
    path: String,
    effect: Effect,
    default_id: String,
}

/// Reads all rules.
pub(super) fn read(scope: Option<Field<'_>>, problems: &mut Problems) -> Scope {
    let Some(field) = scope else { return Scope::default() };
    let Some(fields) = fields(field.at(), SCOPE, problems) else { return Scope::default() };
    let mut ids = Ids::new();
    let exec = exec::read(&fields, &mut ids, problems);
    let (net, listen, inbound) = net::read(&fields, &mut ids, problems);
    let unix = unix::read(&fields, &mut ids, problems);
    let sockets = sockets::read(&fields, problems);
    let privileges = privileges::read(&fields, problems);
    let scope = Scope { exec, net, listen, inbound, unix, sockets, privileges };
    let count = scope.count();
    if count > RULES {
        let message = format!("has {count} rules: a policy has at most {RULES}; use directories and networks");
        problems.add(field.key, &field.path, message);
    }
    scope
}

impl Scope {
    /// Every rule's id and effect.
    pub(super) fn effects(&self) -> impl Iterator<Item = (&str, Effect)> {
        let net = self.net.iter().chain(&self.listen.rules).chain(&self.inbound.rules);
        let unix = self.unix.iter().flatten().map(|rule| (rule.id.as_str(), rule.effect));
        let exec = self.exec.iter().map(|rule| (rule.id.as_str(), rule.effect));
        exec.chain(net.map(|rule| (rule.id.as_str(), rule.effect))).chain(unix)
    }

    fn count(&self) -> usize {
        let unix = self.unix.as_ref().map_or(0, Vec::len);
        self.exec.len() + self.net.len() + self.listen.rules.len() + self.inbound.rules.len() + unix
    }
}

/// The rules below `allow` and `deny` of a section: those that allow, then those that deny, whatever their order in the
/// text. `name` begins their default ids.
fn rules<'a>(section: &Fields<'a>, name: &str, rule_keys: Keys, problems: &mut Problems) -> Vec<RuleAt<'a>> {
    let mut rules = Vec::new();
    for (word, effect) in EFFECTS {
        let Some(field) = section.get(word) else { continue };
        rules.extend(rule_list(&field, &format!("{name}.{word}"), effect, rule_keys, problems));
    }
    rules
}

/// The rules of one list.
fn rule_list<'a>(
    field: &Field<'a>,
    name: &str,
    effect: Effect,
    rule_keys: Keys,
    problems: &mut Problems,
) -> Vec<RuleAt<'a>> {
    let nodes = list(field.at(), problems).unwrap_or_default();
    let rules = nodes.iter().enumerate().filter_map(|(index, node)| {
        let path = format!("{}[{index}]", field.path);
        let fields = fields(At { node, path: &path }, rule_keys, problems)?;
        Some(RuleAt { fields, path, effect, default_id: format!("{name}[{index}]") })
    });
    rules.collect()
}

fn rule_id(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<String> {
    let Some(field) = rule.fields.get("id") else { return Some(rule.default_id.clone()) };
    let id = text(field.at(), problems)?;
    let at = field.at().node.at;
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let message = if id.is_empty() || id.len() > ID_BYTES || !id.bytes().all(good) {
        format!("{} is no good id: write 1 to {ID_BYTES} of a-z, 0-9, '.', '_' and '-'", quote(id))
    } else if id == net::RESOLVER || REASONS.iter().any(|(_, reason)| *reason == id) {
        format!("{} is a word of the evidence's own: choose another id", quote(id))
    } else if let Some(line) = ids.insert(id.to_owned(), at.line) {
        format!("{} is also the id of the rule in line {line}: choose another", quote(id))
    } else {
        return Some(id.to_owned());
    };
    problems.add(at, &field.path, message);
    None
}

/// An absolute path.
fn path(field: &Field<'_>, problems: &mut Problems) -> Option<PathBuf> {
    let written = text(field.at(), problems)?;
    let checked = absolute(written);
    checked.map_err(|message| problems.add(field.at().node.at, &field.path, message)).ok()
}

fn absolute(written: &str) -> Result<PathBuf, String> {
    if let Some(c) = written.chars().find(|c| c.is_control()) {
        Err(format!("{} has the control character U+{:04X}: remove it", quote(written), u32::from(c)))
    } else if !written.starts_with('/') {
        Err(format!("{} is not absolute: begin it with /", quote(written)))
    } else if written.split('/').any(|part| part == "..") {
        Err(format!("{} has a .. component: write the path that it leads to", quote(written)))
    } else if written.len() > PATH_BYTES {
        Err(format!("has {} bytes: a path has at most {PATH_BYTES}", written.len()))
    } else {
        Ok(PathBuf::from(written))
    }
}
