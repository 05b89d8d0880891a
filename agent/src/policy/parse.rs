//! The whole document: text → [`Policy`], or every problem in it. Owns the keys of the format other than rules.

use jiff::civil::Date;

use super::{
    attach, budgets, limits, phases,
    problem::{Problem, Problems, quote},
    scope,
    traffic::Budgets,
    types::{Kind, Mode, Policy, hex_digest},
    walk::{At, Fields, Keys, boolean, fields, is_name, text, word},
    yaml,
};

const API_VERSION: &str = "tipstaff.dev/v1alpha1";

const DOCUMENT: Keys = Keys { known: &["apiVersion", "kind", "metadata", "spec"], later: &["status"] };
const METADATA: Keys = Keys { known: &["name"], later: &["labels", "annotations", "namespace"] };
const SPEC: Keys = Keys {
    known: &[
        "kind", "mode", "strict", "limits", "scope", "phases", "budgets", "on", "attach", "run", "nested", "reviewBy",
    ],
    later: &["select"],
};

const KINDS: [(&str, Kind); 5] = [
    ("service", Kind::Service),
    ("ci", Kind::Ci),
    ("agent", Kind::Agent),
    ("operator", Kind::Operator),
    ("breakglass", Kind::Breakglass),
];
const NESTED: [(&str, bool); 2] = [("deny", false), ("narrower", true)];
const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];

/// Reads a policy. `file` names the text in problems.
///
/// # Errors
/// At least one problem, in the order of the text: every one that can be found in one reading.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Policy, Vec<Problem>> {
    let mut problems = Problems::new(file);
    let policy = yaml::load(bytes, &mut problems).and_then(|root| document(&root, bytes, &mut problems));
    match policy {
        Some(policy) if problems.is_empty() => Ok(policy),
        _ => Err(problems.into_list()),
    }
}

fn document(root: &yaml::Node, bytes: &[u8], problems: &mut Problems) -> Option<Policy> {
    let top = fields(At { node: root, path: "" }, DOCUMENT, problems)?;
    exactly(&top, "apiVersion", API_VERSION, problems);
    exactly(&top, "kind", "SessionPolicy", problems);
    let name = metadata(&top, problems);
    let spec = top.require("spec", "{ kind: …, limits: { ttl: 15m } }", problems)?;
    let spec = fields(spec.at(), SPEC, problems)?;
    let kind = spec.require("kind", "ci", problems).and_then(|f| word(f.at(), &KINDS, problems));
    let mode = spec.get("mode").map_or(Some(Mode::Enforce), |f| word(f.at(), &MODES, problems));
    let strict = spec.get("strict").map_or(Some(false), |f| boolean(f.at(), problems));
    let limits = limits::read(&spec, problems);
    let before = problems.count();
    let scope = scope::read(spec.get("scope"), problems);
    let effects = scope.effects().collect();
    let phases = phases::read(&spec, (problems.count() == before).then_some(&effects), problems);
    let budgets = budgets::read(&spec, problems);
    let attach = attach::read(&spec, problems);
    let run = attach::read_run(&spec, problems);
    let denials = limits.as_ref().is_some_and(|(_, limits)| limits.denials.is_some());
    let nested = nested(&spec, denials || budgets != Budgets::default(), problems);
    let review_by = spec.get("reviewBy").and_then(|field| date(field.at(), problems));
    let (ttl, limits) = limits?;
    Some(Policy {
        name: name?,
        kind: kind?,
        mode: mode?,
        strict: strict?,
        ttl,
        limits,
        exec: scope.exec,
        net: scope.net,
        listen: scope.listen,
        inbound: scope.inbound,
        unix: scope.unix,
        sockets: scope.sockets,
        privileges: scope.privileges,
        phases,
        budgets,
        attach,
        run,
        nested,
        review_by,
        digest: hex_digest(bytes),
    })
}

/// Each session has its budgets to itself: with sessions within it, one would have them again and again.
fn nested(spec: &Fields<'_>, has_budgets: bool, problems: &mut Problems) -> bool {
    let Some(field) = spec.get("nested") else { return false };
    let nested = word(field.at(), &NESTED, problems).unwrap_or(false);
    if nested && has_budgets {
        let why =
            "is narrower, and the policy has budgets, which sessions within it would have once more: leave out one";
        problems.add(field.at().node.at, &field.path, why.to_owned());
    }
    nested
}

/// `2027-03-01`
fn date(at: At<'_, '_>, problems: &mut Problems) -> Option<Date> {
    let written = text(at, problems)?;
    // what is longer has a time as well, which would be left out
    let found = written.parse::<Date>().ok().filter(|_| written.len() == 10);
    if found.is_none() {
        problems.add(at.node.at, at.path, format!("{} is no date: write it as 2027-03-01", quote(written)));
    }
    found
}

fn exactly(top: &Fields<'_>, key: &str, value: &str, problems: &mut Problems) {
    let Some(field) = top.require(key, value, problems) else { return };
    if let Some(found) = text(field.at(), problems)
        && found != value
    {
        problems.add(field.at().node.at, &field.path, format!("is {}: this version reads {value}", quote(found)));
    }
}

fn metadata(top: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    let field = top.require("metadata", "{ name: … }", problems)?;
    let metadata = fields(field.at(), METADATA, problems)?;
    let field = metadata.require("name", "my-policy", problems)?;
    let name = text(field.at(), problems)?;
    if !is_name(name) {
        let rule = "write 1 to 63 of a-z, 0-9 and -, with no - at either end";
        problems.add(field.at().node.at, &field.path, format!("{} is no good name: {rule}", quote(name)));
        return None;
    }
    Some(name.to_owned())
}
