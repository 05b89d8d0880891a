//! Rules on programs that name nothing, that say what none can, and as many as anybody writes.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::symlink},
};

use super::{
    attach::workload,
    programs::{TRIES, Tries},
    scene::{attempt, only},
};
use crate::harness::{prelude::*, sandbox::OPERATORS};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("programs::rules-that-name-nothing", WHEREVER, bad_rules),
    Test::sharing("programs::ten-thousand-rules-and-odd-names", WHEREVER, many_rules),
];

fn bad_rules(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let bin = s.bin();
    symlink("loop", format!("{bin}/loop"))?;
    let policy = only(&member)
        .allow("gone", format!("{bin}/gone"))
        .allow("folder", &bin)
        .allow("through", format!("{member}/gone"))
        .allow("loop", format!("{bin}/loop"))
        .allow("long", format!("{bin}/{}", "x".repeat(300)))
        .allow_dir("file", &member)
        .exec_rule("allow", &format!("{{ glob: \"{bin}/none-*\", id: nothing }}"));
    let started = s.run(&s.policy(&policy)?, &member, "say here")?.wait()?;
    started.ended(0)?.complained(&[
        "rule gone allows nothing",
        "rule through allows nothing",
        "rule loop allows nothing",
        "rule long allows nothing",
        "rule file names no directory",
        "is a file; write path",
        "rule folder names no program",
        "is a directory; write dir",
        "rule nothing allows nothing",
    ])?;
    refused_rules(s, &member)?;
    denied_rules(s, &member)?;
    // what is not there yet is the rule's once the agent found it
    let gone = format!("{bin}/gone");
    let user = Some((64_010, OPERATORS));
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &vec![vec![gone.clone()]; TRIES as usize], user)?;
    ensure!(run.next(1)? == "errno 2", "a file that is not there");
    s.program("gone")?;
    until("the agent to find it", patience(), || {
        std::thread::sleep(patience() / TRIES);
        Ok((run.next(1)? == "exit 0").then_some(()))
    })?;
    // before that it was nobody's, and denied
    let session = run.session().to_owned();
    s.wait_evidence("the program that came later", |r| {
        r["session"] == session && r["path"] == gone && r["verdict"] == "allow" && r["rule"] == "gone"
    })?;
    run.stop(s)
}

/// A rule that denies what is not there denies it once it is; one that takes a directory for a program, or a program for a
/// directory, denies neither it nor what is below it. Each is told.
fn denied_rules(s: &Sandbox, member: &str) -> Result<()> {
    let (bin, good, below) = (s.bin(), s.program("good")?, s.program("folder/below")?);
    let policy = Policy::new()
        .kind("operator")
        .deny("late", format!("{bin}/late"))
        .deny("folder", format!("{bin}/folder"))
        .deny_dir("file", &good)
        .exec_rule("deny", &format!("{{ glob: \"{bin}/none-*\", id: nothing }}"));
    let started = s.run(&s.policy(&policy)?, member, "say here")?.wait()?;
    started.ended(0)?.complained(&[
        "rule late denies nothing yet",
        "rule folder names no program",
        "is a directory; write dir",
        "rule file names no directory",
        "is a file; write path",
        "rule nothing denies nothing yet",
    ])?;
    for program in [&good, &below] {
        attempt(s, &policy, member, "spawn", program)?.ran(s, "default")?;
    }
    for (name, rule) in [("late", "late"), ("none-1", "nothing")] {
        attempt(s, &policy, member, "spawn", &s.program(name)?)?.was_refused(s, rule)?;
    }
    Ok(())
}

/// What a rule cannot say is refused, with its place in the policy, and nothing runs.
fn refused_rules(s: &Sandbox, member: &str) -> Result<()> {
    let short = format!("{{ path: \"{member}\", sha256: \"{}\", id: short }}", "0".repeat(63));
    let deep = format!("{{ path: \"/{}\", id: deep }}", "a".repeat(4095));
    for (rule, told) in [
        ("{ path: bin/git, id: relative }", "is not absolute"),
        (&short, "has 63 characters"),
        (&deep, "has 4096 bytes"),
        ("{ path: /odd, id: odd }", "not UTF-8"),
    ] {
        let (mark, file) = (s.file("mark"), s.policy(&only(member).exec_rule("allow", rule))?);
        if told == "not UTF-8" {
            let text = fs::read(&file)?;
            let at = text.windows(4).position(|part| part == b"/odd").context("the path")?;
            fs::write(&file, [&text[..at], b"/\xff", &text[at + 1..]].concat())?;
        }
        let rule_named = "spec.scope.exec.allow[1]";
        let finished = s.run(&file, member, &format!("mark {mark}"))?.wait()?;
        finished.ended(125)?.complained(&[&file, rule_named, told])?;
        // whoever reads a policy says the same of it
        let other = workload(s, member, "idle")?;
        let pid = other.pid().to_string();
        s.cli(&["policy", "check", &file])?.ended(2)?.told(&[&file, rule_named, told])?;
        s.cli(&["attach", "--policy", &file, "--pid", &pid])?.ended(2)?.complained(&[&file, rule_named, told])?;
        ensure!(!fs::exists(&mark)?, "a command ran under a policy that is refused: {rule}");
    }
    Ok(())
}

/// As many rules as anybody writes, the last as good as the first; names that are not text.
fn many_rules(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bin) = (s.program("member")?, s.program("good")?, s.bin());
    let many = (0..9_998).fold(only(&member), |policy, n| policy.allow(&format!("r{n}"), format!("{bin}/gone-{n}")));
    let many = many.allow("last", &good);
    attempt(s, &many, &member, "spawn", &s.program("bad")?)?.was_refused(s, "default")?;
    attempt(s, &many, &member, "spawn", &good)?.ran(s, "last")?;
    // names that are not text are no rule's, and a folder's all the same
    let odd = OsString::from_vec([bin.as_bytes(), b"/odd\xff"].concat());
    fs::copy(&good, &odd)?;
    let link = format!("{bin}/link");
    symlink(&odd, &link)?;
    attempt(s, &only(&member), &member, "spawn", &link)?.was_refused(s, "default")?;
    attempt(s, &only(&member).allow_dir("all", &bin), &member, "spawn", &link)?.ran(s, "all")
}
