//! The right file is judged, or it is denied: with another root directory, in other mount namespaces, on overlayfs, and
//! where fs-verity vouches for it.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    digests::sha256,
    programs::Tries,
    scene::{only, refusal, refused_exec},
};
use crate::{
    escapes,
    harness::{
        disk::on_disk,
        mounts::{Mounted, root_is_a_mount},
        prelude::*,
        verity,
    },
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("views::other-roots-and-mounts", WHEREVER, apart),
    Test::sharing("views::overlay", WHEREVER, overlay),
    Test::sharing("views::overlay-changes", WHEREVER, changes),
    Test::sharing("views::number-of-a-removed-file", WHEREVER, number),
    Test::sharing("views::verity", WHEREVER, by_verity).guests_only("takes a loop device"),
];

/// What becomes of a program that is tried.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It runs, by this rule.
    Runs(&'static str),
    /// It does not, for this rule or reason.
    Refused(&'static str),
}

/// One try.
#[derive(Clone)]
struct Case {
    /// What the member does, up to the program's arguments.
    words: String,
    /// The path that the kernel is given.
    path: String,
    fate: Fate,
    /// The root directory of who tries it, where it is another.
    root: String,
}

fn spawn(path: impl Into<String>, fate: Fate) -> Case {
    let path = path.into();
    Case { words: format!("spawn {path}"), path, fate, root: String::new() }
}

/// A member of one session tries all; each answer and each record is what was expected, and what ran has left its mark.
fn holds(s: &Sandbox, policy: &Policy, cases: &[Case]) -> Result<()> {
    let member = s.program("seat/member")?;
    let policy = policy.clone().allow("seat", &member);
    // in another root directory, at its top
    let mark = |case: &Case| {
        let mark = s.file("mark");
        if case.root.is_empty() {
            mark
        } else {
            mark.rsplit_once('/').map(|(_, name)| format!("/{name}")).unwrap_or(mark)
        }
    };
    let marks: Vec<String> = cases.iter().map(mark).collect();
    let tries = cases.iter().zip(&marks).map(|(case, mark)| format!("{} --work mark {mark}", case.words));
    let line: Vec<String> = tries.collect();
    let running = s.run(&s.policy(&policy)?, &member, &line.join(" + "))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    s.session_ended(&session, "completed")?;
    let answers: Vec<&str> = finished.stdout.lines().collect();
    ensure!(answers.len() == cases.len(), "{} tries were answered {finished:?}", cases.len());
    let mut execs = s.records(&session, "exec")?;
    execs.sort_by_key(|record| record["seq"].as_u64());
    // the first is the member's own start
    let execs: Vec<&Value> = execs.iter().skip(1).collect();
    ensure!(execs.len() == cases.len(), "{} tries, of which there are the records {execs:?}", cases.len());
    for (((case, mark), answer), record) in cases.iter().zip(&marks).zip(answers).zip(execs) {
        let Case { words, path, fate, root } = case;
        let (expected, verdict, rule) = match fate {
            Fate::Runs(rule) => ("exit 0", "allow", *rule),
            Fate::Refused(rule) => (refused_exec(s), refusal(s), *rule),
        };
        ensure!(answer == expected, "{words}: {answer} where {expected} was expected; {record}");
        let fits = record["path"] == path.as_str() && record["verdict"] == verdict && record["rule"] == rule;
        ensure!(fits, "{words}: {verdict} by {rule} was expected, not {record}");
        let marked = Path::new(&format!("{root}{mark}")).exists();
        ensure!(marked == matches!(fate, Fate::Runs(_)), "{words}: that it left its mark is {marked}");
    }
    Ok(())
}

/// A directory that is a good root: the standard library opens `/dev/null` for a child.
fn root(path: &str) -> Result<()> {
    fs::create_dir_all(format!("{path}/dev"))?;
    fs::write(format!("{path}/dev/null"), "").map_err(Into::into)
}

/// Members that are root and change what paths mean, for themselves.
fn apart(s: &mut Sandbox) -> Result<()> {
    // else what is below it cannot be made private, and would be mounted for everybody
    root_is_a_mount()?;
    s.start()?;
    let (good, bad, one) = (s.program("good")?, s.program("bad")?, s.program("in/one")?);
    s.program("out/other/one")?;
    let place = |name: &str| format!("{}/{name}", s.bin());
    let tree = place("tree");
    let same = s.program(&format!("tree/{good}"))?;
    ensure!(same == format!("{tree}/{good}") && Path::new(&format!("{tree}{good}")).exists(), "{same}");
    root(&tree)?;
    root(&place("in"))?;
    fs::hard_link(&good, place("tree/linked"))?;
    for file in ["tree/empty", "out/file"] {
        fs::write(place(file), "")?;
    }
    fs::create_dir(place("out/place"))?;
    let (inside, file, elsewhere, other) = (place("in"), place("out/file"), place("out/place"), place("out/other"));
    let case = |mounts: String, root: &str, words: &str, path: &str, fate: Fate| {
        let words = format!("apart {mounts} {root} {}", words.replace("{}", path));
        Case { words, path: path.to_owned(), fate, root: root.trim_end_matches('/').to_owned() }
    };
    let none = || "-".to_owned();
    let copied = format!("made copy {good} {{}}");
    let (runs, refused) = (Fate::Runs, Fate::Refused("default"));
    let cases = [
        // another file at the path that is allowed, and the file that is allowed at another path
        case(none(), &tree, "spawn {}", &good, refused),
        case(none(), &tree, "spawn {}", "/linked", runs("good")),
        case(format!("{good}={tree}/empty"), &tree, "spawn {}", "/empty", runs("good")),
        case(format!("{bad}={tree}/linked"), &tree, "spawn {}", "/linked", refused),
        case(format!("{tree}{good}={good}"), "/", "spawn {}", &good, refused),
        case(format!("{bad}={good}"), "/", "spawn {}", &good, refused),
        case(format!("{good}={file}"), "/", "spawn {}", &file, runs("good")),
        // a directory: what is mounted somewhere is not moved into it, nor out of it
        case(none(), &inside, "spawn {}", "/one", runs("in")),
        case(format!("{bad}={one}"), "/", "spawn {}", &one, refused),
        case(format!("{one}={file}"), "/", "spawn {}", &file, runs("in")),
        case(format!("{inside}={elsewhere}"), "/", "spawn {}", &format!("{elsewhere}/one"), runs("in")),
        case(format!("{other}={inside}"), "/", "spawn {}", &one, refused),
        case(format!("tmpfs={inside}"), "/", &copied, &one, refused),
    ];
    let policy = Policy::new().allow("good", &good).allow_dir("in", &inside);
    holds(s, &policy.scope("privileges: { allow: [mount, chroot, namespaces] }"), &cases)
}

/// Layers, and what is made of them.
struct Layers {
    folder: PathBuf,
    mounts: Mounted,
}

impl Layers {
    fn new(s: &Sandbox) -> Result<Self> {
        let folder = s.folder().join("layers");
        fs::create_dir(&folder)?;
        Ok(Self { folder, mounts: Mounted::default() })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A copy of this program, of its own.
    fn program(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().context("a name in a folder")?)?;
        fs::copy("/proc/self/exe", path).map(drop).map_err(Into::into)
    }

    /// What is written goes to `upper`; without one nothing can be.
    fn overlay(&mut self, lower: &[&str], upper: Option<&str>, at: &str) -> Result<()> {
        let lower: Vec<String> = lower.iter().map(|name| self.path(name)).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some(upper) = upper {
            let (upper, work) = (self.make(upper)?, self.make(&format!("{upper}-work"))?);
            options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        }
        let at = self.make(at)?;
        if !fs::read_to_string("/proc/filesystems")?.contains("overlay") {
            return Err(Lacking("the kernel has no overlayfs".to_owned()).into());
        }
        self.mounts.add(("overlay", Some("overlay")), &at, Some(&options))
    }
}

/// A file of a layer and the same file of the overlay are two; each rule is for its own.
fn overlay(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut layers = Layers::new(s)?;
    for name in ["below", "above", "folder/tool", "digest"] {
        layers.program(&format!("lower/{name}"))?;
    }
    layers.overlay(&["lower"], Some("upper"), "merged")?;
    layers.program("merged/fresh")?;
    // two file systems whose files have the same numbers
    for (layer, name) in [("one", "good"), ("two", "bad")] {
        let at = layers.make(layer)?;
        layers.mounts.add(("tmpfs", Some("tmpfs")), &at, None)?;
        layers.program(&format!("{layer}/{name}"))?;
    }
    let number = |name: &str| fs::metadata(layers.path(name)).map(|file| file.ino());
    ensure!(number("one/good")? == number("two/bad")?, "the files have numbers of their own");
    layers.overlay(&["one", "two"], None, "both")?;
    let path = |name: &str| layers.path(name);
    let digest = sha256(&path("lower/digest"))?;
    let vouched = format!("{{ path: \"{}\", sha256: \"{digest}\", id: vouched }}", path("merged/digest"));
    let policy = Policy::new()
        .allow("below", path("lower/below"))
        .allow("above", path("merged/above"))
        .allow("fresh", path("merged/fresh"))
        .allow_dir("folder", path("merged/folder"))
        .allow("both", path("both/good"))
        .exec_rule("allow", &vouched);
    let (runs, refused) = (Fate::Runs, Fate::Refused);
    let made = path("merged/folder/made");
    let cases = [
        spawn(path("lower/below"), runs("below")),
        spawn(path("merged/below"), refused("default")),
        spawn(path("merged/above"), runs("above")),
        spawn(path("lower/above"), refused("default")),
        spawn(path("merged/fresh"), runs("fresh")),
        spawn(path("upper/fresh"), refused("default")),
        spawn(path("merged/folder/tool"), runs("folder")),
        spawn(path("lower/folder/tool"), refused("default")),
        spawn(path("both/good"), runs("both")),
        // an overlay does not tell whether a file is still the same
        spawn(path("merged/digest"), refused("identity-unknown")),
        Case { words: format!("made copy {} {made}", path("merged/above")), ..spawn(made.clone(), refused("written")) },
    ];
    holds(s, &policy, &cases)?;
    // whatever numbers an overlay gives its files, another is never taken for the one that is allowed
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let line = format!("spawn {} --work mark {mark}", path("both/bad"));
    let both = s.policy(&policy.allow("member", &member))?;
    let tried = s.run(&both, &member, &line)?.wait()?;
    tried
        .said(refused_exec(s))?
        .complained(&["rule vouched denies", "does not tell whether a file is still the same"])?;
    ensure!(!Path::new(&mark).exists(), "a file ran that no rule names");
    // and a command is refused with the reason before anything starts
    let refused = s.run(&both, &path("merged/digest"), "nothing")?.wait()?;
    refused.ended(125)?.complained(&["tipstaff: ", &path("merged/digest"), "such as ext4"])?;
    Ok(())
}

/// What a file of an overlay becomes when it is copied up, and what stands in its place after it was removed.
fn changes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut layers = Layers::new(s)?;
    for name in ["kept", "touched", "gone"] {
        layers.program(&format!("lower/{name}"))?;
    }
    fs::set_permissions(&layers.folder, PermissionsExt::from_mode(0o755))?;
    layers.overlay(&["lower"], Some("upper"), "merged")?;
    let path = |name: &str| layers.path(&format!("merged/{name}"));
    let names = ["kept", "touched", "gone"];
    let member = s.program("member")?;
    let policy = names.iter().fold(only(&member), |policy, name| policy.allow(name, path(name)));
    let policy = s.policy(&policy)?;
    let tries = vec![names.map(path).to_vec(); 200];
    // root's session could have changed them itself: what changed is final
    let mut roots = Tries::new(s, &policy, &member, &tries, None)?;
    let mut others = Tries::new(s, &policy, &member, &tries, Some((64_010, crate::harness::sandbox::OPERATORS)))?;
    let refused = refused_exec(s);
    for run in [&mut roots, &mut others] {
        ensure!(run.three()? == ["exit 0"; 3], "before anything was changed");
    }
    // a whiteout, and another file in its place; then a copy, for a change that leaves the bytes alone
    fs::remove_file(path("gone"))?;
    fs::copy("/proc/self/exe", path("gone"))?;
    ensure!(!Path::new(&layers.path("upper/touched")).exists(), "it was copied up before it was touched");
    fs::set_permissions(path("touched"), PermissionsExt::from_mode(0o711))?;
    ensure!(Path::new(&layers.path("upper/touched")).exists(), "it was not copied up");
    ensure!(roots.three()? == ["exit 0", refused, refused], "after the changes, in root's session");
    // nobody but root can have put them there: the agent looks again
    others.until(|[kept, touched, gone]| {
        ensure!(kept == "exit 0", "what was not changed: {kept}");
        Ok(touched == "exit 0" && gone == "exit 0")
    })?;
    ensure!(roots.three()? == ["exit 0", refused, refused], "later, in root's session");
    roots.stop(s)?;
    others.stop(s)
}

/// A file of which the kernel holds every byte against a digest.
fn by_verity(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = s.folder().join("disk");
    let device = verity::disk(&s.fresh("image"))?;
    fs::create_dir(&disk)?;
    mounts.add((&device, Some("ext4")), &disk, None)?;
    let path = |name: &str| disk.join(name).display().to_string();
    for name in ["sealed", "other", "plain"] {
        fs::copy("/proc/self/exe", path(name))?;
    }
    // one byte more is another digest
    fs::write(path("other"), [fs::read(path("other"))?, b"!".to_vec()].concat())?;
    let (right, other) = (verity::enable(&File::open(path("sealed"))?)?, verity::enable(&File::open(path("other"))?)?);
    ensure!(right != other, "two files have one digest");
    let written = File::options().write(true).open(path("sealed"));
    ensure!(written.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)), "a sealed file can be written");
    let own = s.program("own")?;
    let rule = |path: &str, digest: &str, id: &str| format!("{{ path: \"{path}\", verity: \"{digest}\", id: {id} }}");
    let policy = |digest: &str| {
        let bound = [("sealed", digest), ("other", right.as_str()), ("plain", right.as_str())];
        let policy = Policy::new().allow_dir("disk", disk.display()).exec_rule("allow", &rule(&own, digest, "own"));
        bound.iter().fold(policy, |policy, (name, digest)| policy.exec_rule("allow", &rule(&path(name), digest, name)))
    };
    let refused = Fate::Refused;
    let rest = || {
        [
            spawn(path("other"), refused("digest")),
            spawn(path("plain"), refused("digest")),
            spawn(&own, refused("identity-unknown")),
        ]
    };
    holds(s, &policy(&right), &[&[spawn(path("sealed"), Fate::Runs("disk"))][..], &rest()].concat())?;
    // its plain SHA-256 is another; without its digest not even the rule on its directory lets it run
    let plain = sha256(&path("sealed"))?;
    holds(s, &policy(&plain), &[&[spawn(path("sealed"), refused("digest"))][..], &rest()].concat())?;
    let told = s.run(&s.policy(&policy(&right))?, &path("sealed"), "nothing")?.wait()?;
    told.ended(0)?.complained(&["plain has no fs-verity", "own is on a file system without fs-verity"])?;
    // another file in its place, with a digest of its own
    let member = s.program("member")?;
    let bound = only(&member).exec_rule("allow", &rule(&path("sealed"), &right, "sealed"));
    let tries = vec![vec![path("sealed")]; 2];
    let mut run = Tries::new(s, &s.policy(&bound)?, &member, &tries, None)?;
    ensure!(run.next(1)? == "exit 0", "the sealed file");
    fs::rename(path("other"), path("sealed"))?;
    ensure!(run.next(1)? == refused_exec(s), "another sealed file in its place");
    run.stop(s)
}

/// How often a file is to have the number of one that was removed, and in how many rounds at most.
const HITS: u32 = 3;
const ROUNDS: u32 = 12;

/// A file that is given the inode number of the one that a rule names, before anybody could look again.
fn number(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let member = s.program("member")?;
    let make = |path: &str| -> Result<u64> {
        fs::write(path, escapes::PROGRAM)?;
        fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        Ok(fs::metadata(path)?.ino())
    };
    let mut hits = 0;
    for round in 0..ROUNDS {
        let [tool, other] = ["tool", "other"].map(|name| format!("{disk}/{name}{round}"));
        let number = make(&tool)?;
        let policy = s.policy(&only(&member).allow("tool", &tool))?;
        let mut run = Tries::new(s, &policy, &member, &[vec![tool.clone()], vec![other.clone()]], None)?;
        ensure!(run.next(1)? == "exit 0", "the program that the rule names");
        fs::remove_file(&tool)?;
        // most file systems give it to the next; ext4 without a journal takes the others first
        let files: Vec<String> = (0..64).map(|n| format!("{other}-{n}")).collect();
        let taken = files.iter().find(|file| make(file).is_ok_and(|given| given == number));
        // where there is none, somebody else on this disk was given it
        if let Some(taken) = taken {
            fs::rename(taken, &other)?;
            ensure!(run.next(1)? == refused_exec(s), "a file ran that has the number of another");
            s.wait_evidence("its refusal", |r| {
                r["path"] == other && r["verdict"] == refusal(s) && r["rule"] == "default"
            })?;
            fs::remove_file(&other)?;
            hits += 1;
        }
        run.stop(s)?;
        files.iter().filter(|file| Path::new(file).exists()).try_for_each(fs::remove_file)?;
        if hits == HITS {
            return Ok(());
        }
    }
    ensure!(hits > 0, "in {ROUNDS} rounds no new file was given the number of the one before");
    Ok(())
}
