//! `spec.scope.exec`: programs.

use tipstaff_common::rule::WORD_BYTES;

use super::{Ids, RuleAt, path, rule_id, rules};
use crate::policy::{
    problem::{Problems, quote},
    programs::{FileDigest, ProgramClass},
    types::{Effect, ExecRule, ExecTarget},
    walk::{At, Field, Fields, Keys, fields, list, text},
};

const EXEC: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };
const RULE: Keys = Keys {
    known: &["path", "dir", "glob", "class", "sha256", "verity", "subcommands", "id"],
    later: &["mode", "args"],
};
const TARGETS: [&str; 4] = ["path", "dir", "glob", "class"];

pub(super) fn read(scope: &Fields<'_>, ids: &mut Ids, problems: &mut Problems) -> Vec<ExecRule> {
    let Some(field) = scope.get("exec") else { return Vec::new() };
    let Some(section) = fields(field.at(), EXEC, problems) else { return Vec::new() };
    let found = rules(&section, "exec", RULE, problems);
    found.iter().filter_map(|rule| exec_rule(rule, ids, problems)).collect()
}

fn exec_rule(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<ExecRule> {
    let id = rule_id(rule, ids, problems);
    let named: Vec<Field<'_>> = TARGETS.iter().filter_map(|key| rule.fields.get(key)).collect();
    let [field] = named.as_slice() else {
        if let (true, Some(field)) = (named.is_empty(), rule.fields.get("sha256").or_else(|| rule.fields.get("verity")))
        {
            let message = "names no file by itself, for which files have a digest is not known before they run: add path: \
                           /usr/bin/… or glob: /opt/*/bin/…";
            problems.add(field.at().node.at, &field.path, message);
            return None;
        }
        let message = match named.as_slice() {
            [] => "names nothing: add path: /usr/bin/…, dir: /opt/…, glob: /opt/*/bin/… or class: …".to_owned(),
            [one, other, ..] => {
                let key = |field: &Field<'_>| field.path.rsplit('.').next().unwrap_or_default().to_owned();
                format!("has both {} and {}: make two rules of it", key(one), key(other))
            }
            [_] => return None,
        };
        problems.add(rule.fields.at, &rule.path, message);
        return None;
    };
    let target = match field.path.rsplit('.').next() {
        Some("path") => path(field, problems).and_then(|path| program(path, field, problems)),
        Some("dir") => path(field, problems).map(ExecTarget::Dir),
        Some("glob") => glob(field, problems),
        _ => class(field, problems),
    };
    let of_files = matches!(target, None | Some(ExecTarget::Path(_) | ExecTarget::Glob(_)));
    let digest = digest(rule, of_files, problems);
    let subcommands = subcommands(rule, of_files, problems);
    Some(ExecRule { id: id?, effect: rule.effect, target: target?, digest: digest?, subcommands: subcommands? })
}

fn program(path: std::path::PathBuf, field: &Field<'_>, problems: &mut Problems) -> Option<ExecTarget> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let message = "ends in /, as a directory does: name a program, or write dir instead of path";
        problems.add(field.at().node.at, &field.path, message);
        return None;
    }
    Some(ExecTarget::Path(path))
}

fn glob(field: &Field<'_>, problems: &mut Problems) -> Option<ExecTarget> {
    let pattern = path(field, problems)?.to_string_lossy().into_owned();
    let message = if pattern.contains("**") {
        "has **: write dir, which holds for everything below a directory".to_owned()
    } else if pattern.ends_with('/') {
        "ends in /, as a directory does: name programs, or write dir instead of glob".to_owned()
    } else if !pattern.contains(['*', '?', '[']) {
        "has none of *, ? and […]: write path instead of glob".to_owned()
    } else if let Err(error) = glob::Pattern::new(&pattern) {
        format!("is no pattern: {} at its character {}", error.msg, error.pos + 1)
    } else {
        return Some(ExecTarget::Glob(pattern));
    };
    problems.add(field.at().node.at, &field.path, message);
    None
}

fn class(field: &Field<'_>, problems: &mut Problems) -> Option<ExecTarget> {
    let written = text(field.at(), problems)?;
    let found = ProgramClass::ALL.into_iter().find(|class| class.word() == written);
    if found.is_none() {
        let words = ProgramClass::ALL.map(ProgramClass::word).join(", ");
        problems.add(field.at().node.at, &field.path, format!("{} is no class: write one of {words}", quote(written)));
    }
    found.map(ExecTarget::Class)
}

/// `None`: there is a problem.
fn digest(rule: &RuleAt<'_>, of_files: bool, problems: &mut Problems) -> Option<Option<FileDigest>> {
    let (bytes, verity) = (rule.fields.get("sha256"), rule.fields.get("verity"));
    let both = bytes.is_some() && verity.is_some();
    let of_bytes = verity.is_none();
    let Some(field) = verity.or(bytes) else { return Some(None) };
    let message = if both {
        "stands beside sha256: one of them is enough, and neither is the other".to_owned()
    } else if !of_files {
        "needs a path or a glob beside it: which files of a directory or a class to hash is not known before they run"
            .to_owned()
    } else if rule.effect == Effect::Deny {
        "in a deny rule would let the same program with one more byte run: deny its path or its directory".to_owned()
    } else {
        let written = text(field.at(), problems)?;
        match if of_bytes { FileDigest::of_bytes(written) } else { FileDigest::of_verity(written) } {
            Ok(digest) => return Some(Some(digest)),
            Err(message) => message,
        }
    };
    problems.add(field.at().node.at, &field.path, message);
    None
}

/// `None`: there is a problem.
fn subcommands(rule: &RuleAt<'_>, of_files: bool, problems: &mut Problems) -> Option<Vec<String>> {
    let Some(field) = rule.fields.get("subcommands") else { return Some(Vec::new()) };
    let nodes = list(field.at(), problems)?;
    if nodes.is_empty() || !of_files {
        let message = if of_files {
            "is empty: name first arguments, or leave it out"
        } else {
            "needs a path or a glob beside it: name the program whose first argument is meant"
        };
        problems.add(field.at().node.at, &field.path, message);
        return None;
    }
    let mut words = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let place = format!("{}[{index}]", field.path);
        let word = text(At { node, path: &place }, problems)?;
        let message = if word.is_empty() || word.contains('\0') {
            format!("{} is no argument", quote(word))
        } else if word.len() > WORD_BYTES {
            format!("has {} bytes: a subcommand has at most {WORD_BYTES}", word.len())
        } else {
            words.push(word.to_owned());
            continue;
        };
        problems.add(node.at, &place, message);
        return None;
    }
    Some(words)
}
