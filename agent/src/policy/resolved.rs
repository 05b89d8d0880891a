//! What the rules of a policy name on a host, found elsewhere; taken back to what a plan in force holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tipstaff_common::{
    place::Place,
    rule::{self, Content, ExecKey, FileId, ProgramEntry, word_key},
};

use super::{
    compile::Plan,
    programs::{FileDigest, word_bytes},
    types::{Effect, ExecRule, ExecTarget, Policy},
};

/// What the rules of a policy name on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of `Policy::exec`: the program, or the directory and the roots of the mounts below it. None: it
    /// does not exist.
    pub files: Vec<Vec<FileId>>,
    /// In the order of `Policy::exec`, of rules that are about places (`ExecRule::is_of_places`): where the file or directory
    /// stands, or will. Others, and those beyond the last, have none.
    pub places: Vec<Vec<Place>>,
    /// What the programs among them were when they were looked at.
    pub contents: BTreeMap<FileId, Content>,
    /// `Place::names` of where those among them stood that can stand nowhere else for the paths of their rules to lead there. 0:
    /// they can.
    pub stood: BTreeMap<FileId, u64>,
    /// Ids of rules whose `path` leads to a directory, and of those whose `dir` leads to a file.
    pub mistaken: BTreeSet<String>,
    /// Programs that are of a class by what they are called, a bit each (`ProgramClass::bit`).
    pub classes: BTreeMap<FileId, u32>,
    /// Of the files of rules that ask for a digest.
    pub digests: BTreeMap<FileId, Hashed>,
    /// In the order of `Policy::unix_rules`.
    pub unix: Vec<UnixFound>,
    /// The host's resolvers, not in mapped form.
    pub resolvers: Vec<IpAddr>,
    /// The host's own addresses, where the policy does not let members log in there; not in mapped form.
    pub own: Vec<IpAddr>,
}

/// A file that was hashed, or could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hashed {
    /// It was hashed, under a lease: what came out.
    As(FileDigest),
    /// Why not.
    Not(String),
    /// Why not: its file system does not tell whether a file is still the same, or has no fs-verity.
    Unknown(String),
}

/// What a unix rule names on this host. An abstract name names nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixFound {
    /// The socket's file, if it is there, or the directory and the roots of the mounts below it.
    pub files: Vec<FileId>,
    /// Of a path: the directory in which the socket is or will be, and its name there.
    pub place: Option<(FileId, Vec<u8>)>,
    /// Of a path: nobody but root can change where it leads, and no rule denies what can be there.
    pub trusted: bool,
}

impl Resolved {
    /// The files of `Policy::exec[index]`.
    #[must_use]
    pub fn of(&self, index: usize) -> &[FileId] {
        self.files.get(index).map_or(&[], Vec::as_slice)
    }

    /// Where what `Policy::exec[index]` names stands, or will.
    #[must_use]
    pub fn places_of(&self, index: usize) -> &[Place] {
        self.places.get(index).map_or(&[], Vec::as_slice)
    }

    /// Takes back what became of the files of rules since the plan was put in force: rules that allow name what they named,
    /// as it was, also a directory, whatever stands there now; what a rule denied stays denied.
    pub fn as_pinned(&mut self, policy: &Policy, plan: &Plan) {
        let entry = |file: &FileId| plan.exec.get(&ExecKey { file: *file, kind: rule::KIND_FILE, pad: 0 });
        let then = |file: &FileId| {
            entry(file).filter(|entry| entry.flags & (rule::PINNED | rule::NO_RULE) == rule::PINNED).copied()
        };
        let allowed = plan.allowed();
        let named_by = |rule: &ExecRule, file: &FileId| {
            let Some(entry) = then(file) else { return false };
            let has = |word: &String| {
                let word = word_bytes(word.as_bytes()).map(|word| word_key(word, entry.words));
                word.is_none_or(|word| plan.exec.contains_key(&word))
            };
            if rule.is_plain() { entry.flags & rule::WORDS_ONLY == 0 } else { rule.subcommands.iter().all(has) }
        };
        let mut denied = plan.named();
        for (files, rule) in self.files.iter_mut().zip(&policy.exec) {
            let own = denied.remove(rule.id.as_str()).unwrap_or_default();
            match (&rule.target, rule.effect) {
                // of a denial too: what was found beyond it is not in force, and the next look has to tell
                (ExecTarget::Dir(_), _) => *files = own.into_iter().collect(),
                (_, Effect::Deny) => {
                    let lost = own.into_iter().filter(|file| !files.contains(file)).collect::<Vec<_>>();
                    files.extend(lost);
                }
                (_, Effect::Allow) => {
                    // also those that the host did not show now
                    let unseen = allowed.get(rule.id.as_str()).into_iter().flatten();
                    let unseen: Vec<FileId> = unseen.filter(|file| !files.contains(file)).copied().collect();
                    files.extend(unseen);
                    files.retain(|file| named_by(rule, file));
                }
            }
        }
        let mut places = plan.places();
        self.places.resize(policy.exec.len(), Vec::new());
        for (found, rule) in self.places.iter_mut().zip(&policy.exec) {
            *found = places.remove(rule.id.as_str()).unwrap_or_default();
        }
        let files = self.contents.keys().chain(self.files.iter().flatten());
        let files: Vec<(FileId, ProgramEntry)> = files.filter_map(|file| Some((*file, then(file)?))).collect();
        self.contents = files.iter().map(|(file, then)| (*file, then.content)).collect();
        let held = files.iter().filter(|(_, then)| then.place != 0);
        self.stood = held.map(|(file, then)| (*file, then.place)).collect();
        for (key, entry) in plan.exec.iter().filter(|(key, _)| key.kind == rule::KIND_FILE) {
            let classes = entry.flags & ((1 << rule::CLASSES) - 1);
            if classes != 0 {
                *self.classes.entry(key.file).or_default() |= classes;
            }
        }
    }

    /// What `Policy::unix_rules()[index]` names.
    #[must_use]
    pub fn of_unix(&self, index: usize) -> Option<&UnixFound> {
        self.unix.get(index)
    }
}
