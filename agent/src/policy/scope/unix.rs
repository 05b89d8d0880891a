//! `spec.scope.unix`: sockets with a path or an abstract name.

use super::{EFFECTS, Ids, RuleAt, absolute, path, rule_id};
use crate::policy::{
    problem::{Problems, quote},
    traffic::{UnixRule, UnixTarget},
    types::Effect,
    walk::{At, Field, Fields, Keys, fields, list, text},
    yaml::{Node, Value},
};

const UNIX: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };
const RULE: Keys = Keys { known: &["path", "dir", "name", "id"], later: &["mode"] };

/// Bytes of an abstract name: `sun_path` less the leading 0.
const NAME_BYTES: usize = 107;

/// `None`: the policy does not have the key.
pub(super) fn read(scope: &Fields<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<Vec<UnixRule>> {
    let field = scope.get("unix")?;
    let section = fields(field.at(), UNIX, problems)?;
    let mut rules = Vec::new();
    for (word, effect) in EFFECTS {
        let Some(field) = section.get(word) else { continue };
        for (index, node) in list(field.at(), problems).unwrap_or_default().iter().enumerate() {
            let path = format!("{}[{index}]", field.path);
            let default_id = format!("unix.{word}[{index}]");
            rules.extend(unix_rule(node, path, effect, default_id, ids, problems));
        }
    }
    Some(rules)
}

/// A text, or a mapping that may have an id.
fn unix_rule(
    node: &Node,
    place: String,
    effect: Effect,
    default_id: String,
    ids: &mut Ids,
    problems: &mut Problems,
) -> Option<UnixRule> {
    if let Value::Text(written) = &node.value {
        let target = short(written).map_err(|message| problems.add(node.at, &place, message)).ok()?;
        return Some(UnixRule { id: default_id, effect, target });
    }
    let fields = fields(At { node, path: &place }, RULE, problems)?;
    let rule = RuleAt { fields, path: place, effect, default_id };
    let id = rule_id(&rule, ids, problems);
    let named: Vec<Field<'_>> = ["path", "dir", "name"].iter().filter_map(|key| rule.fields.get(key)).collect();
    let [field] = named.as_slice() else {
        let message = if named.is_empty() {
            "names nothing: add path: /run/…, dir: /run/… or name: \"@…\""
        } else {
            "has more than one of path, dir and name: make a rule of each"
        };
        problems.add(rule.fields.at, &rule.path, message);
        return None;
    };
    let target = match field.path.rsplit('.').next() {
        Some("path") => path(field, problems).map(UnixTarget::Path),
        Some("dir") => path(field, problems).map(UnixTarget::Dir),
        _ => text(field.at(), problems).and_then(|written| {
            abstract_name(written).map_err(|m| problems.add(field.at().node.at, &field.path, m)).ok()
        }),
    };
    Some(UnixRule { id: id?, effect, target: target? })
}

/// `@name`, `/directory/` or `/path`.
fn short(written: &str) -> Result<UnixTarget, String> {
    if written.starts_with('@') {
        return abstract_name(written);
    }
    let directory = written.ends_with('/');
    absolute(written).map(if directory { UnixTarget::Dir } else { UnixTarget::Path })
}

fn abstract_name(written: &str) -> Result<UnixTarget, String> {
    let Some(name) = written.strip_prefix('@') else {
        return Err(format!("{} is no abstract name: begin it with @", quote(written)));
    };
    if let Some(c) = name.chars().find(|c| c.is_control()) {
        return Err(format!("{} has the control character U+{:04X}: remove it", quote(written), u32::from(c)));
    }
    if name.is_empty() || name.len() > NAME_BYTES {
        let length = name.len();
        return Err(format!("has {length} bytes after the @: an abstract name has 1 to {NAME_BYTES}"));
    }
    Ok(UnixTarget::Abstract(name.to_owned()))
}
