//! Random policies and programs: what the kernel does is what a policy means.
//!
//! What a policy means is said here once more, from `docs/policy.md` and nothing else, and held against what the kernel does
//! with every program and against the agent's own decision (its reference) on one of them, which it takes before a command
//! is started. That the agent's decision and its tables agree is tested where they are. The programs lie on a disk, so that
//! rules can ask for digests, where there is one.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{digests::sha256, scene::refused_exec};
use crate::harness::{disk::on_disk, mounts::Mounted, prelude::*, wait::in_guest};

pub(super) const TESTS: &[Test] = &[Test::sharing("random::kernel-does-what-a-policy-means", WHEREVER, agree)];

/// Policies, on this machine and in a guest, where each takes much longer.
const POLICIES: (u32, u32) = (12, 6);
/// Says which random numbers are drawn, as a failure told.
pub(super) const SEED: &str = "TIPSTAFF_TEST_SEED";

/// Xorshift.
pub(super) struct Dice(u64);

/// Dice by the seed that was chosen, or by the clock's; and the seed.
pub(super) fn rolled() -> Result<(u64, Dice)> {
    let chosen = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = chosen.unwrap_or_else(|| u64::from(clock.subsec_nanos()) << 20 | 1);
    Ok((seed, Dice(seed)))
}

impl Dice {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }

    pub(super) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A program's name, and which file it leads to: its own, or another's.
const FILES: [(&str, &str); 12] = [
    ("a/one", "a/one"),
    ("a/two", "a/two"),
    ("a/deep/three", "a/deep/three"),
    ("a/alias", "b/four"),
    ("b/four", "b/four"),
    ("b/ld-linux-x86-64.so.2", "b/ld-linux-x86-64.so.2"),
    ("b/busybox", "b/busybox"),
    ("b/link", "a/one"),
    ("c/two", "a/two"),
    ("c/deep/three", "a/deep/three"),
    ("b/../a/one", "a/one"),
    (SCRIPT, SCRIPT),
];
/// A script, and the program that it names as its interpreter.
const SCRIPT: &str = "a/script";
const INTERPRETER: &str = "a/two";
/// Directories, and what they lead to.
const DIRECTORIES: [(&str, &str); 6] =
    [("", ""), ("a", "a"), ("a/deep", "a/deep"), ("b", "b"), ("c", "a"), ("gone", "gone")];
/// Patterns, and the files that match them.
const GLOBS: [(&str, &[&str]); 5] = [
    ("a/*", &["a/one", "a/two", "b/four", SCRIPT]),
    ("*/t*", &["a/two"]),
    ("b/[l]*", &["b/ld-linux-x86-64.so.2", "a/one"]),
    ("?/deep/*", &["a/deep/three"]),
    ("b/none-*", &[]),
];
const CLASSES: [&str; 6] = ["loader", "multi-call", "by-descriptor", "memfd", "deleted", "written"];
const KINDS: [&str; 5] = ["service", "ci", "agent", "operator", "breakglass"];
/// The first argument of every program here is the first of these, that of the interpreter the last.
const WORDS: [&str; 3] = ["--work", "status", "--script"];

#[derive(Clone, Debug)]
enum Target {
    File(usize),
    Directory(usize),
    Glob(usize),
    Class(&'static str),
}

#[derive(Clone, Debug)]
struct Rule {
    id: String,
    allow: bool,
    target: Target,
    /// First arguments; none: whatever they are.
    words: Vec<&'static str>,
    /// It asks for a digest: that of all programs here, or another.
    digest: Option<bool>,
}

impl Rule {
    fn roll(dice: &mut Dice, id: String, digests: bool) -> Self {
        let target = match dice.below(8) {
            0 => Target::Class(CLASSES[dice.below(CLASSES.len())]),
            1 | 2 => Target::Directory(dice.below(DIRECTORIES.len())),
            3 => Target::Glob(dice.below(GLOBS.len())),
            _ => Target::File(dice.below(FILES.len())),
        };
        let files = matches!(target, Target::File(_) | Target::Glob(_));
        let words = if files && dice.below(5) == 0 { vec![*dice.of(&WORDS)] } else { Vec::new() };
        let allow = dice.below(5) < 3;
        let digest = (digests && allow && files && dice.below(4) == 0).then(|| dice.below(3) > 0);
        Self { id, allow, target, words, digest }
    }

    fn text(&self, world: &World) -> String {
        let World { place: world, digest } = world;
        let target = match &self.target {
            // a rule has no .. in its path
            Target::File(index) => format!("path: \"{world}/{}\"", FILES[*index].0.replace("b/../", "")),
            Target::Directory(index) => format!("dir: \"{world}/{}\"", DIRECTORIES[*index].0),
            Target::Glob(index) => format!("glob: \"{world}/{}\"", GLOBS[*index].0),
            Target::Class(class) => format!("class: {class}"),
        };
        let words = if self.words.is_empty() { String::new() } else { format!(", subcommands: {:?}", self.words) };
        let digest = self.digest.map_or_else(String::new, |right| {
            let digest = if right { digest.clone() } else { "0".repeat(64) };
            format!(", sha256: \"{digest}\"")
        });
        format!("{{ {target}{words}{digest}, id: {} }}", self.id)
    }

    /// Whether it names the file by itself.
    fn names(&self, file: &str) -> bool {
        match self.target {
            Target::File(index) => FILES[index].1 == file,
            Target::Glob(index) => GLOBS[index].1.contains(&file),
            Target::Directory(_) | Target::Class(_) => false,
        }
    }

    /// Whether it names a directory above the place.
    fn covers(&self, place: &str) -> bool {
        let Target::Directory(index) = self.target else { return false };
        let directory = DIRECTORIES[index].1;
        directory.is_empty() || place.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Where the programs lie, and what all of them are made of.
struct World {
    place: String,
    digest: String,
}

impl World {
    fn new(place: String) -> Result<Self> {
        for name in FILES.iter().filter(|(name, file)| name == file && *name != SCRIPT).map(|(name, _)| name) {
            let path = format!("{place}/{name}");
            fs::create_dir_all(Path::new(&path).parent().context("a program in a folder")?)?;
            fs::copy("/proc/self/exe", path)?;
        }
        fs::hard_link(format!("{place}/b/four"), format!("{place}/a/alias"))?;
        symlink("../a/one", format!("{place}/b/link"))?;
        symlink("a", format!("{place}/c"))?;
        let world = Self { digest: sha256(&format!("{place}/a/one"))?, place };
        let script = format!("{}/{SCRIPT}", world.place);
        fs::write(&script, format!("#!{}/{INTERPRETER} {}\nmark {}\n", world.place, WORDS[2], world.mark()))?;
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        Ok(world)
    }

    /// What the script leaves.
    fn mark(&self) -> String {
        format!("{}/mark", self.place)
    }
}

/// A program that a member tries.
#[derive(Clone, Debug)]
struct Try {
    /// The member's words.
    words: String,
    /// Which of the files it is; a new one that no rule can name has none.
    file: Option<&'static str>,
    /// Where it lies, by the directories that its file system knows. `None`: nowhere.
    place: Option<String>,
    classes: Vec<&'static str>,
    /// Its first argument.
    word: &'static str,
    /// It is a script; then what is judged after it, or alone in tier no-lsm.
    interpreter: Option<Box<Self>>,
}

impl Try {
    fn all(world: &str) -> Vec<Self> {
        let classes = |file: &str| match file {
            "b/busybox" => vec!["multi-call"],
            "b/ld-linux-x86-64.so.2" => vec!["loader"],
            _ => Vec::new(),
        };
        let mut all: Vec<Self> = FILES
            .iter()
            .map(|(name, file)| Self {
                words: format!("spawn {world}/{name}"),
                file: Some(file),
                // a link leads to where its target lies, another name lies where it is
                place: Some(if *name == "a/alias" { *name } else { *file }.to_owned()),
                classes: classes(file),
                word: WORDS[0],
                interpreter: (*file == SCRIPT).then(|| Box::new(Self::interpreter())),
            })
            .collect();
        all.push(Self {
            words: format!("spawn-by-descriptor {world}/a/two"),
            file: Some("a/two"),
            place: Some("a/two".to_owned()),
            classes: vec!["by-descriptor"],
            word: WORDS[0],
            interpreter: None,
        });
        for (how, place, classes) in [
            ("memfd", None, vec!["memfd"]),
            ("deleted", Some("b/removed".to_owned()), vec!["deleted", "written"]),
            ("copy", Some("b/copied".to_owned()), vec!["written"]),
        ] {
            let at = place.clone().unwrap_or_else(|| "memfd".to_owned());
            let words = format!("made {how} {world}/a/one {world}/{at}");
            all.push(Self { words, file: None, place, classes, word: WORDS[0], interpreter: None });
        }
        all
    }

    /// What the script names.
    fn interpreter() -> Self {
        let (file, place) = (Some(INTERPRETER), Some(INTERPRETER.to_owned()));
        Self { words: String::new(), file, place, classes: Vec::new(), word: WORDS[2], interpreter: None }
    }
}

/// What a policy says of a program: whether it runs, and by which rules or for which reasons.
#[derive(Debug)]
struct Meaning {
    runs: bool,
    rules: Vec<String>,
    /// It was judged by its first argument, once it was in place.
    by_word: bool,
}

/// What comes of a program. In tier full it is judged twice: before its image exists, when there is no first argument to
/// read, by what no first argument could change; and once it is in place. What the first look refuses names its reason: a
/// program that rules only deny first arguments of is allowed by none, whatever its first argument is. In tier no-lsm
/// there is only the second look. Which reason is named differs, what runs does not. A script is seen in tier full alone, and
/// before its interpreter.
fn meaning(full: bool, kind: &str, rules: &[Rule], tried: &Try) -> Meaning {
    let before = look(kind, rules, tried, None);
    if let Some(interpreter) = &tried.interpreter {
        return if full && !before.runs { before } else { meaning(full, kind, rules, interpreter) };
    }
    let in_place = look(kind, rules, tried, Some(tried.word));
    if full && !before.runs { before } else { in_place }
}

/// One look at a program; `word`: its first argument, where it is in place.
fn look(kind: &str, rules: &[Rule], tried: &Try, word: Option<&'static str>) -> Meaning {
    let open = matches!(kind, "operator" | "breakglass");
    let found = |wanted: &dyn Fn(&Rule) -> bool| -> Vec<String> {
        rules.iter().filter(|rule| wanted(rule)).map(|rule| rule.id.clone()).collect()
    };
    let class = |class: &str, allow: bool| {
        found(&|rule: &Rule| rule.allow == allow && matches!(rule.target, Target::Class(own) if own == class))
    };
    // a class is denied by a rule, or by the kind where no rule takes that away
    let denied_class = |name: &'static str| {
        let denied = class(name, false);
        let by_kind = matches!(kind, "ci" | "agent") && class(name, true).is_empty();
        if denied.is_empty() && by_kind { vec![name.to_owned()] } else { denied }
    };
    let is = |runs: bool, rules: Vec<String>| Meaning { runs, rules, by_word: false };
    let Some(place) = &tried.place else {
        let denied = denied_class("memfd");
        return match (denied.is_empty(), class("memfd", true)) {
            (false, _) => is(false, denied),
            (true, allowed) if allowed.is_empty() => is(open, vec!["default".to_owned()]),
            (true, allowed) => is(true, allowed),
        };
    };
    let names = |rule: &Rule| tried.file.is_some_and(|file| rule.names(file));
    let denied = found(&|rule: &Rule| !rule.allow && rule.words.is_empty() && names(rule));
    if !denied.is_empty() {
        return is(false, denied);
    }
    // the script is not made of what all others are
    let other = |rule: &Rule| rule.digest.is_some_and(|right| !right || tried.file == Some(SCRIPT));
    if rules.iter().any(|rule| other(rule) && names(rule)) {
        return is(false, vec!["digest".to_owned()]);
    }
    let denied = found(&|rule: &Rule| !rule.allow && rule.covers(place));
    if !denied.is_empty() {
        return is(false, denied);
    }
    // of a script the first argument is never seen
    if tried.interpreter.is_some() && rules.iter().any(|rule| !rule.words.is_empty() && names(rule)) {
        return is(false, vec!["unresolved".to_owned()]);
    }
    let worded = |allow: bool| {
        let fits = |rule: &Rule| !rule.words.is_empty() && word.is_none_or(|word| rule.words.contains(&word));
        found(&|rule: &Rule| rule.allow == allow && fits(rule) && names(rule))
    };
    let by_word = word.is_some() && !found(&|rule: &Rule| !rule.words.is_empty() && names(rule)).is_empty();
    let denied = worded(false);
    // without a first argument, none is denied yet; each that could be allowed counts
    if word.is_some() && !denied.is_empty() {
        return Meaning { runs: false, rules: denied, by_word };
    }
    let mut allowed = found(&|rule: &Rule| rule.allow && rule.words.is_empty() && (names(rule) || rule.covers(place)));
    allowed.extend(worded(true));
    let default = allowed.is_empty();
    if default && !open {
        return Meaning { runs: false, rules: vec!["default".to_owned()], by_word };
    }
    for name in CLASSES.iter().filter(|name| tried.classes.contains(name)) {
        let denied = denied_class(name);
        if !denied.is_empty() {
            return Meaning { runs: false, rules: denied, by_word };
        }
    }
    Meaning { runs: true, rules: if default { vec!["default".to_owned()] } else { allowed }, by_word }
}

/// Nothing allows these programs, and each is denied its first argument.
fn only_denied_words() -> Vec<Rule> {
    let deny = |file| Rule {
        id: format!("r{file}"),
        allow: false,
        target: Target::File(file),
        words: vec![WORDS[0]],
        digest: None,
    };
    vec![deny(0), deny(1)]
}

/// One file has the digest that its rule asks for, one has not, and the script has a rule with first arguments.
fn digests_and_a_script(digests: bool) -> Vec<Rule> {
    let allow = |n: usize, target, words, digest: Option<bool>| {
        let digest = digest.filter(|_| digests);
        Rule { id: format!("r{n}"), allow: true, target, words, digest }
    };
    vec![
        allow(0, Target::Directory(0), Vec::new(), None),
        allow(1, Target::File(0), Vec::new(), Some(true)),
        allow(2, Target::File(4), Vec::new(), Some(false)),
        allow(3, Target::File(FILES.len() - 1), vec![WORDS[0]], None),
    ]
}

fn draw(dice: &mut Dice, digests: bool) -> (&'static str, Vec<Rule>) {
    let kind = *dice.of(&KINDS);
    let count = 1 + dice.below(7);
    (kind, (0..count).map(|n| Rule::roll(dice, format!("r{n}"), digests)).collect())
}

fn agree(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("seat/member")?;
    let mut mounts = Mounted::default();
    let (disk, digests) = match on_disk(s, &mut mounts) {
        Ok(disk) => (disk, true),
        Err(error) if error.is::<Lacking>() => (s.bin(), false),
        Err(error) => return Err(error),
    };
    let world = World::new(format!("{disk}/world"))?;
    let (seed, mut dice) = rolled()?;
    let (begun, tries) = (Instant::now(), Try::all(&world.place));
    let (mut ran, mut refused) = (0, 0);
    for round in 0..if in_guest() { POLICIES.1 } else { POLICIES.0 } {
        // the first two have what chance seldom draws, and reasons that depend on the tier
        let (kind, rules) = match round {
            0 => ("ci", only_denied_words()),
            1 => ("service", digests_and_a_script(digests)),
            _ => draw(&mut dice, digests),
        };
        let policy = rules.iter().fold(Policy::new().kind(kind).allow("seat", &member), |policy, rule| {
            policy.exec_rule(if rule.allow { "allow" } else { "deny" }, &rule.text(&world))
        });
        let of_round = || format!("{SEED}={seed}, policy {round} of kind {kind} with {rules:?}");
        let policy = s.policy(&policy)?;
        let runs = one(s, (&policy, &member), (kind, &rules), (&world, &tries)).with_context(of_round)?;
        ran += runs;
        refused += tries.len() - runs;
        let command = &tries[dice.below(FILES.len())];
        refers(s, &policy, (kind, &rules), (&world, command)).with_context(of_round)?;
    }
    eprintln!("{SEED}={seed}: {ran} programs ran and {refused} were refused in {:?}", begun.elapsed());
    // chance that lets everything run, or nothing, would prove nothing
    ensure!(ran > 0 && refused > 0, "{SEED}={seed}: {ran} ran, {refused} were refused");
    Ok(())
}

/// A member of one session tries every program; how many ran.
fn one(
    s: &Sandbox,
    (policy, member): (&str, &str),
    (kind, rules): (&str, &[Rule]),
    (world, tries): (&World, &[Try]),
) -> Result<usize> {
    let marks: Vec<String> = tries.iter().map(|tried| mark(s, world, tried)).collect::<Result<_>>()?;
    let line: Vec<String> =
        tries.iter().zip(&marks).map(|(tried, mark)| format!("{} --work mark {mark}", tried.words)).collect();
    let running = s.run(policy, member, &line.join(" + "))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    s.session_ended(&session, "completed")?;
    // what was made in this session is no file of the next one's rules
    let copied = tries.iter().filter(|tried| tried.words.starts_with("made copy"));
    for path in copied.filter_map(|tried| tried.words.rsplit(' ').next()) {
        fs::remove_file(path)?;
    }
    let answers: Vec<&str> = finished.stdout.lines().collect();
    let mut execs = s.records(&session, "exec")?;
    execs.sort_by_key(|record| record["seq"].as_u64());
    // the first is the member's own start
    let execs: Vec<&Value> = execs.iter().skip(1).collect();
    ensure!(answers.len() == tries.len() && execs.len() == tries.len(), "{finished:?} with the records {execs:?}");
    let mut ran = 0;
    for (((tried, mark), answer), record) in tries.iter().zip(&marks).zip(answers).zip(execs) {
        let means = meaning(s.tier == Tier::Full, kind, rules, tried);
        let fits = match (means.runs, means.by_word) {
            (true, _) => answer == "exit 0",
            (false, false) => answer == refused_exec(s),
            (false, true) => answer == "signal 9",
        };
        ensure!(fits, "{} was answered {answer} where {means:?}; {record}", tried.words);
        let rule = record["rule"].as_str().unwrap_or_default();
        ensure!(means.rules.iter().any(|own| own == rule), "{}: {means:?}, but the record is {record}", tried.words);
        ensure!(fs::exists(mark)? == means.runs, "{}: its mark is wrong where {means:?}", tried.words);
        ran += usize::from(means.runs);
    }
    Ok(ran)
}

/// What a program leaves where it runs, which is not there yet.
fn mark(s: &Sandbox, world: &World, tried: &Try) -> Result<String> {
    if tried.interpreter.is_none() {
        return Ok(s.file("mark"));
    }
    let mark = world.mark();
    if fs::exists(&mark)? {
        fs::remove_file(&mark)?;
    }
    Ok(mark)
}

/// The agent's own decision on a command, before anything is started.
fn refers(s: &Sandbox, policy: &str, (kind, rules): (&str, &[Rule]), (world, command): (&World, &Try)) -> Result<()> {
    let means = meaning(s.tier == Tier::Full, kind, rules, command);
    let program = command.words.rsplit(' ').next().unwrap_or_default();
    let mark = mark(s, world, command)?;
    let finished = s.run(policy, program, &format!("mark {mark}"))?.wait()?;
    // the agent does not foretell what an interpreter's first argument is
    let in_place = command.interpreter.as_ref().is_some_and(|own| means.by_word && look(kind, rules, own, None).runs);
    let fits = finished.code
        == if means.runs {
            0
        } else if in_place {
            137
        } else {
            125
        };
    ensure!(fits, "the agent's decision on {program} is another: {finished:?} where {means:?}");
    ensure!(fs::exists(&mark)? == means.runs, "{program}: its mark is wrong where {means:?}");
    Ok(())
}
