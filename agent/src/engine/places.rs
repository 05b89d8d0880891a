//! Where what rules name stands, or will: of each rule that is about places the names that lead there, as the kernel's hooks
//! will see them.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use tipstaff_common::place::{Place, Way};

use super::{look::look, resolve};
use crate::{
    enforce::walk,
    kernel::{Kernel, KernelError},
    policy::{ExecRule, ExecTarget, Policy},
};

/// Directories that are open at once.
const CHUNK: usize = 256;

/// A directory, and the names that lead on from there.
type From = (PathBuf, Vec<OsString>);

/// The places of each rule, in the order of `Policy::exec`. A path that leads through links has one by the names that it is
/// written with and one behind each link; where something is mounted on the way, one beneath the mount as well. What of it does
/// not exist yet is taken for ordinary directories.
pub(super) fn of_rules(kernel: &mut Kernel, policy: &Policy) -> Result<Vec<Vec<Place>>, KernelError> {
    let mut links = Links::default();
    let froms: Vec<Vec<From>> =
        policy.exec.iter().map(|rule| paths(rule).iter().flat_map(|path| links.froms(path)).collect()).collect();
    let directories: BTreeSet<&Path> = froms.iter().flatten().map(|(directory, _)| directory.as_path()).collect();
    let directories: Vec<&Path> = directories.into_iter().collect();
    let mut ways: HashMap<&Path, Option<Way>> = HashMap::with_capacity(directories.len());
    for chunk in directories.chunks(CHUNK) {
        let found = look(kernel, chunk)?;
        let there = chunk.iter().zip(found).filter_map(|(path, found)| Some((*path, found?.seen.way)));
        ways.extend(there);
    }
    let place = |(directory, rest): &From| {
        let way = ways.get(directory.as_path())?;
        // no program is in the place of one that is too deep: those that are as deep are denied
        let below = |way: Way| rest.iter().fold(way, |way, name| way.below(name.as_encoded_bytes())).place;
        Some(way.map_or_else(Place::default, below))
    };
    let places = |froms: &Vec<From>| {
        let all: BTreeSet<Place> = froms.iter().filter_map(place).collect();
        all.into_iter().collect()
    };
    Ok(froms.iter().map(places).collect())
}

/// The paths that a rule names. Of a pattern those that match, and where its last name is no pattern those that will in the
/// directories that are there.
fn paths(rule: &ExecRule) -> Vec<PathBuf> {
    if !rule.is_of_places() {
        return Vec::new();
    }
    match &rule.target {
        ExecTarget::Path(path) | ExecTarget::Dir(path) => vec![path.clone()],
        ExecTarget::Glob(pattern) => match Path::new(pattern).file_name().and_then(|name| name.to_str()) {
            Some(name) if !resolve::is_pattern(name) => {
                resolve::parents(pattern).into_iter().map(|directory| directory.join(name)).collect()
            }
            _ => resolve::matching(pattern),
        },
        ExecTarget::Class(_) => Vec::new(),
    }
}

/// Where the links lead that were met.
#[derive(Debug, Default)]
struct Links(HashMap<PathBuf, Option<PathBuf>>);

impl Links {
    /// The directories on the way to a path, also through links, each with the names that are left there.
    fn froms(&mut self, path: &Path) -> Vec<From> {
        let mut found = Vec::new();
        let leads = |link: &Path| {
            let to = self.0.entry(link.to_owned()).or_insert_with_key(|link| fs::read_link(link).ok());
            to.clone()
        };
        walk(path, leads, |at, name, rest| found.extend(straight(name, rest).map(|left| (at.to_owned(), left))));
        found
    }
}

/// A name and those after it, which stand with the last first; `None`: they lead out of where they begin.
fn straight(name: &OsString, rest: &[OsString]) -> Option<Vec<OsString>> {
    let mut left = vec![name.clone()];
    for name in rest.iter().rev() {
        if name == ".." {
            left.pop()?;
        } else {
            left.push(name.clone());
        }
    }
    (!left.is_empty()).then_some(left)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_leads_by_its_own_names_and_behind_each_link() {
        let dir = tempfile::tempdir().expect("a folder");
        let base = fs::canonicalize(dir.path()).expect("a path");
        fs::create_dir_all(base.join("releases/1/bin")).expect("folders");
        fs::create_dir(base.join("app")).expect("a folder");
        symlink("../releases/1", base.join("app/current")).expect("a link");
        symlink("real", base.join("releases/1/bin/x")).expect("a link");
        let whole = |path: &str| -> BTreeSet<PathBuf> {
            let froms = Links::default().froms(&base.join(path));
            froms.into_iter().map(|(at, left)| left.into_iter().fold(at, |path, name| path.join(name))).collect()
        };
        let expected = |paths: &[&str]| -> BTreeSet<PathBuf> { paths.iter().map(|path| base.join(path)).collect() };
        assert_eq!(
            whole("app/current/bin/x"),
            expected(&["app/current/bin/x", "releases/1/bin/x", "releases/1/bin/real"])
        );
        assert_eq!(whole("none/such"), expected(&["none/such"]));
        assert_eq!(whole("app/../releases/1/bin/y"), expected(&["releases/1/bin/y"]));
        symlink("loop", base.join("loop")).expect("a link");
        assert_eq!(whole("loop"), expected(&["loop"]));
        assert_eq!(Links::default().froms(Path::new("/")), []);
    }

    #[test]
    fn a_pattern_with_a_plain_last_name_is_about_what_is_not_there_yet() {
        let dir = tempfile::tempdir().expect("a folder");
        let base = dir.path().to_str().expect("text");
        fs::create_dir_all(format!("{base}/one/bin")).expect("folders");
        fs::create_dir_all(format!("{base}/two/bin")).expect("folders");
        fs::write(format!("{base}/two/bin/there"), "").expect("a file");
        let of = |pattern: String| -> Vec<PathBuf> {
            paths(&ExecRule {
                id: String::new(),
                effect: crate::policy::Effect::Deny,
                target: ExecTarget::Glob(pattern),
                digest: None,
                subcommands: Vec::new(),
            })
        };
        let expected = ["one", "two"].map(|name| PathBuf::from(format!("{base}/{name}/bin/there")));
        assert_eq!(of(format!("{base}/*/bin/there")), expected);
        assert_eq!(of(format!("{base}/*/bin/th*")), expected[1..]);
    }
}
