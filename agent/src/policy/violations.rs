//! `spec.on.violation`: what that is refused ends a session.

use tipstaff_common::event::{KIND_CONNECT, KIND_EXEC, KIND_PRIVILEGE, KIND_SOCKET, KIND_UNIX};

use super::{
    problem::Problems,
    walk::{Field, Keys, fields, word},
    yaml::Value,
};

/// The parts of a scope, as policies spell them, and the records of what is refused by them.
const PARTS: [(&str, &[u16]); 4] = [
    ("exec", &[KIND_EXEC]),
    ("net", &[KIND_CONNECT, KIND_SOCKET]),
    ("unix", &[KIND_UNIX]),
    ("privileges", &[KIND_PRIVILEGE]),
];
const KEYS: Keys = Keys { known: &["exec", "net", "unix", "privileges"], later: &[] };
const ENDS: [(&str, bool); 2] = [("record", false), ("end", true)];

/// Kinds of records; a word for all parts of the scope, or one for each.
pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Vec<u16> {
    if !matches!(field.at().node.value, Value::Map(_)) {
        let ends = word(field.at(), &ENDS, problems).unwrap_or_default();
        return PARTS.iter().filter(|_| ends).flat_map(|(_, kinds)| *kinds).copied().collect();
    }
    let Some(each) = fields(field.at(), KEYS, problems) else { return Vec::new() };
    let mut found = Vec::new();
    for (part, kinds) in PARTS {
        if each.get(part).and_then(|field| word(field.at(), &ENDS, problems)).unwrap_or_default() {
            found.extend(kinds);
        }
    }
    found
}

/// What they say, for people.
pub(super) fn line(ends: &[u16]) -> Option<String> {
    let parts = PARTS.iter().filter(|(_, kinds)| kinds.iter().all(|kind| ends.contains(kind)));
    let names: Vec<&str> = parts.map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| format!("ends at the first refusal of {}", names.join(" or ")))
}
