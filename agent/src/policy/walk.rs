//! Checks of one node at a time: is it a mapping with known keys, a list, a text. Each check adds its problem and
//! yields `None`, so that the reading goes on and finds the others.

use super::{
    problem::{Mark, Problems, quote},
    yaml::{Entry, Node, Value, join},
};

/// A value and the path of its key.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a, 'p> {
    pub(super) node: &'a Node,
    pub(super) path: &'p str,
}

/// The keys that a mapping may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    /// Read by this version.
    pub(super) known: &'static [&'static str],
    /// Part of the format, but of a later version: never ignored, because that would weaken the policy.
    pub(super) later: &'static [&'static str],
}

/// A mapping whose keys were checked.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) at: Mark,
    path: String,
    entries: &'a [Entry],
}

/// A key's value and its path.
#[derive(Debug)]
pub(super) struct Field<'a> {
    node: &'a Node,
    pub(super) path: String,
    /// The key's place.
    pub(super) key: Mark,
}

impl<'a> Field<'a> {
    pub(super) fn at(&self) -> At<'a, '_> {
        At { node: self.node, path: &self.path }
    }
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(Field { node: &entry.value, path: join(&self.path, key), key: entry.at })
    }

    /// A key that must be there. `example` shows how to write it.
    pub(super) fn require(&self, key: &str, example: &str, problems: &mut Problems) -> Option<Field<'a>> {
        let field = self.get(key);
        if field.is_none() {
            problems.add(self.at, &join(&self.path, key), format!("is missing: add {key}: {example}"));
        }
        field
    }
}

pub(super) fn fields<'a>(at: At<'a, '_>, keys: Keys, problems: &mut Problems) -> Option<Fields<'a>> {
    let Value::Map(entries) = &at.node.value else {
        let known = keys.known.join(", ");
        problems.add(at.node.at, at.path, format!("must be a mapping with the keys {known}, not {}", article(at.node)));
        return None;
    };
    for entry in entries.iter().filter(|entry| !keys.known.contains(&entry.key.as_str())) {
        let message = if keys.later.contains(&entry.key.as_str()) {
            "is not supported by this version: remove it, or use a version that enforces it".to_owned()
        } else if let Some(near) = nearest(&entry.key, keys) {
            format!("unknown key {}: did you mean {near}?", quote(&entry.key))
        } else {
            format!("unknown key {}: remove it; known here are {}", quote(&entry.key), keys.known.join(", "))
        };
        problems.add(entry.at, &join(at.path, &entry.key), message);
    }
    Some(Fields { at: at.node.at, path: at.path.to_owned(), entries })
}

pub(super) fn list<'a>(at: At<'a, '_>, problems: &mut Problems) -> Option<&'a [Node]> {
    if let Value::List(nodes) = &at.node.value {
        return Some(nodes);
    }
    let message = format!("must be a list, not {}: write [ … ], or one item a line after a dash", article(at.node));
    problems.add(at.node.at, at.path, message);
    None
}

pub(super) fn text<'a>(at: At<'a, '_>, problems: &mut Problems) -> Option<&'a str> {
    if let Value::Text(text) = &at.node.value {
        return Some(text);
    }
    let remedy = match at.node.value {
        Value::Null => "write a value, or remove the key",
        Value::Bool(_) | Value::Number(_) => "put it in quotes",
        _ => "write one value",
    };
    problems.add(at.node.at, at.path, format!("must be a text, not {}: {remedy}", article(at.node)));
    None
}

pub(super) fn boolean(at: At<'_, '_>, problems: &mut Problems) -> Option<bool> {
    if let Value::Bool(value) = at.node.value {
        return Some(value);
    }
    problems.add(at.node.at, at.path, format!("must be true or false, not {}", article(at.node)));
    None
}

/// One of a closed set of words.
pub(super) fn word<T: Copy>(at: At<'_, '_>, words: &[(&str, T)], problems: &mut Problems) -> Option<T> {
    let text = text(at, problems)?;
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        problems.add(at.node.at, at.path, format!("unknown value {}: write {}", quote(text), known.join(", ")));
    }
    found.map(|(_, value)| *value)
}

/// 1 to 63 of `a-z`, `0-9` and `-`, with no `-` at either end.
pub(super) fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// What a value is, for a message.
pub(super) fn article(node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the truth value {value}"),
        Value::Number(number) => format!("the number {}", quote(number).trim_matches('"')),
        Value::Text(text) => format!("the text {}", quote(text)),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
    }
}

/// The key that was probably meant: another case, or at most two letters added, removed or replaced, and fewer than
/// half of the word.
fn nearest(key: &str, keys: Keys) -> Option<&'static str> {
    if key.len() > 32 {
        return None;
    }
    let lower = key.to_lowercase();
    let candidates = keys.known.iter().map(|known| (edits(&lower, &known.to_lowercase()), *known));
    let (distance, known) = candidates.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2 && distance * 2 < known.len()).then_some(known)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named_only_if_near() {
        let keys = Keys { known: &["kind", "mode", "limits", "to"], later: &[] };
        for (key, near) in [
            ("limit", Some("limits")),
            ("Kind", Some("kind")),
            ("lmiits", Some("limits")),
            ("mod", Some("mode")),
            ("go", None),
            ("entirely", None),
        ] {
            assert_eq!(nearest(key, keys), near, "{key}");
        }
    }
}
