//! Rules with a digest that name scripts. The digest holds for the file that the kernel looks at; the interpreter opens it
//! again by its path and reads on, and nobody looks then.

use std::path::PathBuf;

use super::{look, resolve};
use crate::{
    api::wire::ApiError,
    enforce::only_root_can_replace,
    policy::{ExecTarget, Note, Policy},
};

/// Notes on rules with a digest that name a script: what others than root can change, and in a
/// session of root's all of them.
#[must_use]
pub fn notes(policy: &Policy, by_root: bool) -> Vec<Note> {
    let with_digest = policy.exec.iter().filter(|rule| rule.digest.is_some());
    let notes = with_digest.filter_map(|rule| {
        let files: Vec<PathBuf> = match &rule.target {
            ExecTarget::Path(path) => vec![path.clone()],
            ExecTarget::Glob(pattern) => resolve::matching(pattern),
            ExecTarget::Dir(_) | ExecTarget::Class(_) => return None,
        };
        let changes = |path: &PathBuf| look::is_script(path) && (by_root || !only_root_can_replace(path));
        files.iter().find(|path| changes(path))?;
        // what a pattern matches is not everybody's to know
        let path = match &rule.target {
            ExecTarget::Glob(pattern) => pattern.to_string(),
            _ => files.first()?.display().to_string(),
        };
        Some(Note::Script { rule: rule.id.clone(), path })
    });
    notes.collect()
}

/// The same for a start; under `strict` it is refused.
pub(super) fn check(policy: &Policy, by_root: bool) -> Result<Vec<String>, ApiError> {
    let notes: Vec<String> = notes(policy, by_root).iter().map(ToString::to_string).collect();
    match notes.first() {
        Some(note) if policy.strict => {
            let remedy = "the policy is strict: do so, or leave strict out".into();
            Err(ApiError::Refused { message: note.clone(), rule: None, remedy })
        }
        _ => Ok(notes),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn policy(rules: &[String], strict: bool) -> Policy {
        let text = format!(
            "apiVersion: tipstaff.dev/v1alpha1\nkind: SessionPolicy\nmetadata: {{ name: p }}\nspec:\n  kind: ci\n  strict: \
             {strict}\n  limits: {{ ttl: 1m }}\n  scope: {{ exec: {{ allow: [{}] }} }}\n",
            rules.join(", ")
        );
        crate::policy::parse("p.yaml", text.as_bytes()).unwrap()
    }

    #[test]
    fn a_script_with_a_digest_is_told_of_and_strict_refuses_it() {
        let dir = tempfile::tempdir().unwrap();
        let (script, program) = (dir.path().join("script"), dir.path().join("program"));
        fs::write(&script, "#!/bin/sh\n").unwrap();
        fs::write(&program, b"\x7fELF\x02").unwrap();
        let digest = format!("sha256: \"{}\"", "0".repeat(64));
        let rules = [
            format!("{{ path: {}, {digest}, id: program }}", program.display()),
            format!("{{ path: {}, id: plain }}", script.display()),
        ];
        assert_eq!(notes(&policy(&rules, true), true), []);
        assert_eq!(check(&policy(&rules, true), true).unwrap(), Vec::<String>::new());
        for (key, path) in [("path", script.display().to_string()), ("glob", format!("{}/*", dir.path().display()))] {
            let rules = [format!("{{ {key}: \"{path}\", {digest}, id: pinned }}")];
            let note = Note::Script { rule: "pinned".into(), path };
            assert_eq!(notes(&policy(&rules, false), true), std::slice::from_ref(&note));
            assert_eq!(check(&policy(&rules, false), true).unwrap(), [note.to_string()]);
            let refused = check(&policy(&rules, true), true).unwrap_err().to_string();
            assert!(refused.starts_with(&note.to_string()) && refused.contains("the policy is strict"), "{refused}");
        }
    }
}
