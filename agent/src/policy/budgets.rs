//! `spec.budgets` and `spec.on.budget`: how numbers and sizes are written, and which of them end a session.

use tipstaff_common::rule;

use super::{
    problem::{Problems, quote},
    traffic::Budgets,
    walk::{Field, Fields, Keys, article, fields, word},
    yaml::Value,
};

const KEYS: Keys = Keys {
    known: &["connects", "connectsPerSecond", "destinations", "egressBytes", "egressBytesPerSecond", "denials"],
    later: &["execs", "forks"],
};
/// Those that refuse something.
const REFUSING: Keys =
    Keys { known: &["connects", "connectsPerSecond", "destinations", "egressBytes", "egressBytesPerSecond"], ..KEYS };
/// What a refusal by each of them is called.
const REFUSALS: [(&str, u32); 5] = [
    ("connects", rule::REASON_BUDGET_CONNECTS),
    ("connectsPerSecond", rule::REASON_BUDGET_CONNECT_RATE),
    ("destinations", rule::REASON_BUDGET_DESTINATIONS),
    ("egressBytes", rule::REASON_BUDGET_EGRESS),
    ("egressBytesPerSecond", rule::REASON_BUDGET_EGRESS_RATE),
];
const USED_UP: [(&str, bool); 2] = [("deny", false), ("end", true)];
const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
/// What the kernel can count in one second.
const RATE: u64 = (1 << 40) - 1;
/// Addresses that all sessions together can be counted for.
const DESTINATIONS: u64 = tipstaff_common::limits::DESTINATIONS as u64;

pub(super) fn read(spec: &Fields<'_>, problems: &mut Problems) -> Budgets {
    let Some(field) = spec.get("budgets") else { return Budgets::default() };
    let Some(fields) = fields(field.at(), KEYS, problems) else { return Budgets::default() };
    let none = "to allow none, name none in spec.scope.net";
    let mut one = |key: &str, bytes: bool, most: u64| number(fields.get(key)?, bytes, most, none, problems);
    Budgets {
        connects: one("connects", false, u64::MAX >> 1),
        connects_per_second: one("connectsPerSecond", false, RATE),
        destinations: one("destinations", false, DESTINATIONS),
        egress_bytes: one("egressBytes", true, u64::MAX >> 1),
        egress_bytes_per_second: one("egressBytesPerSecond", true, RATE),
    }
}

/// Reads `spec.budgets.denials`: violations that a session may go on after.
pub(super) fn denials(spec: &Fields<'_>, problems: &mut Problems) -> Option<u64> {
    // what is wrong with the others is told where they are read
    let budgets = fields(spec.get("budgets")?.at(), KEYS, &mut Problems::new(""))?;
    number(budgets.get("denials")?, false, u64::MAX >> 1, "to end at the first, write on: { violation: end }", problems)
}

fn number(field: Field<'_>, bytes: bool, most: u64, none: &str, problems: &mut Problems) -> Option<u64> {
    let value = if bytes { size(&field, problems) } else { count(&field, problems) }?;
    if (1..=most).contains(&value) {
        return Some(value);
    }
    let remedy = if value == 0 { none } else { "write a smaller number" };
    problems.add(field.at().node.at, &field.path, format!("must be from 1 to {most}, not {value}: {remedy}"));
    None
}

/// Reads `spec.on.budget`, a word for all budgets or one for each: refusals, by their codes, of which the first ends the
/// session.
pub(super) fn ends(spec: &Fields<'_>, field: &Field<'_>, problems: &mut Problems) -> Vec<u32> {
    // what is wrong with the budgets themselves is told where they are read
    let budgets = spec.get("budgets").and_then(|budgets| fields(budgets.at(), KEYS, &mut Problems::new("")));
    let has = |key: &str| budgets.as_ref().is_some_and(|budgets| budgets.get(key).is_some());
    let all = REFUSALS.iter().filter(|(key, _)| has(key));
    if !matches!(field.at().node.value, Value::Map(_)) {
        let ends = word(field.at(), &USED_UP, problems).unwrap_or_default();
        if ends && all.clone().next().is_none() {
            problems.add(
                field.at().node.at,
                &field.path,
                "the policy has no budget that refuses something: add one to spec.budgets, or remove this",
            );
        }
        return all.filter(|_| ends).map(|(_, code)| *code).collect();
    }
    let Some(each) = fields(field.at(), REFUSING, problems) else { return Vec::new() };
    let mut found = Vec::new();
    for (key, code) in REFUSALS {
        let Some(field) = each.get(key) else { continue };
        if !has(key) {
            let message = format!("the policy has no such budget: add spec.budgets.{key}, or remove this");
            problems.add(field.at().node.at, &field.path, message);
        }
        found.extend(word(field.at(), &USED_UP, problems).filter(|ends| *ends).map(|_| code));
    }
    found
}

fn count(field: &Field<'_>, problems: &mut Problems) -> Option<u64> {
    let node = field.at().node;
    let number = match &node.value {
        Value::Number(written) => decimal(written),
        _ => None,
    };
    if number.is_none() {
        problems.add(node.at, &field.path, format!("must be a whole number, not {}", article(node)));
    }
    number
}

fn size(field: &Field<'_>, problems: &mut Problems) -> Option<u64> {
    let node = field.at().node;
    let (Value::Number(written) | Value::Text(written)) = &node.value else {
        problems.add(node.at, &field.path, format!("must be a size such as 200MiB, not {}", article(node)));
        return None;
    };
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((written.strip_suffix(unit)?, *factor)));
    let (digits, factor) = unit.unwrap_or((written, 1));
    let bytes = decimal(digits).and_then(|number| number.checked_mul(factor));
    if bytes.is_none() {
        let shown = quote(written);
        let message = format!("{shown} is no size: write whole bytes, or a whole number and KiB, MiB, GiB or TiB");
        problems.add(node.at, &field.path, message);
    }
    bytes
}

/// Digits only.
fn decimal(digits: &str) -> Option<u64> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}
