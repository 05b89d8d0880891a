//! `spec.phases`: names for parts of the scope that a session can be narrowed to. Owns that key.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    problem::{Problems, quote},
    types::Effect,
    walk::{At, Fields, article, is_name, list, text},
    yaml::{Entry, Value, join},
};

/// Phases of one policy.
const PHASES: usize = 64;

/// By its name, the ids of the rules that allow and that stay.
pub type Phases = BTreeMap<String, BTreeSet<String>>;

/// Reads `spec.phases`. `effects` are those of the rules by id; none: some rules have problems, and ids are not looked up.
pub(super) fn read(spec: &Fields<'_>, effects: Option<&BTreeMap<&str, Effect>>, problems: &mut Problems) -> Phases {
    let Some(field) = spec.get("phases") else { return Phases::new() };
    let Value::Map(entries) = &field.at().node.value else {
        let message = format!("must be a mapping from names to lists of rule ids, not {}", article(field.at().node));
        problems.add(field.at().node.at, &field.path, message);
        return Phases::new();
    };
    if entries.is_empty() || entries.len() > PHASES {
        let message = format!("has {} phases: write 1 to {PHASES}, or remove the key", entries.len());
        problems.add(field.key, &field.path, message);
    }
    entries.iter().filter_map(|entry| phase(entry, &field.path, effects, problems)).collect()
}

fn phase(
    entry: &Entry,
    above: &str,
    effects: Option<&BTreeMap<&str, Effect>>,
    problems: &mut Problems,
) -> Option<(String, BTreeSet<String>)> {
    let path = join(above, &entry.key);
    if !is_name(&entry.key) {
        let rule = "write 1 to 63 of a-z, 0-9 and -, with no - at either end";
        problems.add(entry.at, &path, format!("{} is no good name: {rule}", quote(&entry.key)));
        return None;
    }
    let mut ids = BTreeSet::new();
    for (index, node) in list(At { node: &entry.value, path: &path }, problems)?.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(id) = text(At { node, path: &path }, problems) else { continue };
        let message = match effects.map(|effects| effects.get(id)) {
            Some(None) => format!("no rule has the id {}: write the id of a rule that allows", quote(id)),
            Some(Some(Effect::Deny)) => {
                format!("rule {} denies, and so it stays in every phase: remove it here", quote(id))
            }
            _ if !ids.insert(id.to_owned()) => format!("{} stands here twice: remove one", quote(id)),
            _ => continue,
        };
        problems.add(node.at, &path, message);
    }
    Some((entry.key.clone(), ids))
}
