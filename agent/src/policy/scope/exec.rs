//! `spec.scope.exec`: programs.

use std::path::PathBuf;

use super::{Ids, RuleAt, path, rule_id, rules};
use crate::policy::{
    problem::Problems,
    types::{ExecRule, ExecTarget},
    walk::{Field, Fields, Keys, fields},
};

const EXEC: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };
const RULE: Keys = Keys { known: &["path", "dir", "id"], later: &["sha256", "subcommands", "mode"] };

pub(super) fn read(scope: &Fields<'_>, ids: &mut Ids, problems: &mut Problems) -> Vec<ExecRule> {
    let Some(field) = scope.get("exec") else { return Vec::new() };
    let Some(section) = fields(field.at(), EXEC, problems) else { return Vec::new() };
    let found = rules(&section, "exec", RULE, problems);
    found.iter().filter_map(|rule| exec_rule(rule, ids, problems)).collect()
}

fn exec_rule(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<ExecRule> {
    let id = rule_id(rule, ids, problems);
    let target = match (rule.fields.get("path"), rule.fields.get("dir")) {
        (Some(field), None) => path(&field, problems).and_then(|path| program(path, &field, problems)),
        (None, Some(field)) => path(&field, problems).map(ExecTarget::Dir),
        (Some(_), Some(_)) => {
            problems.add(rule.fields.at, &rule.path, "has both path and dir: make two rules of it");
            None
        }
        (None, None) => {
            problems.add(rule.fields.at, &rule.path, "names nothing: add path: /usr/bin/… or dir: /opt/…");
            None
        }
    };
    Some(ExecRule { id: id?, effect: rule.effect, target: target? })
}

fn program(path: PathBuf, field: &Field<'_>, problems: &mut Problems) -> Option<ExecTarget> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let message = "ends in /, as a directory does: name a program, or write dir instead of path";
        problems.add(field.at().node.at, &field.path, message);
        return None;
    }
    Some(ExecTarget::Path(path))
}
