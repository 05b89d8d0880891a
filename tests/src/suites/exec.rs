//! Which programs a session may run.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use super::scene::{attempt, only, refusal};
use crate::harness::prelude::*;

pub(super) const TESTS: &[Test] = &[
    Test::sharing("exec::path-allows-and-default-denies", WHEREVER, by_path),
    Test::sharing("exec::deny-rule-beats-allowed-folder", WHEREVER, deny_beats_folder),
    Test::sharing("exec::folder-allows-all-below", WHEREVER, by_folder),
    Test::sharing("exec::denied-folder-beats-allowed-folder", WHEREVER, denied_folder),
    Test::sharing("exec::symlink-is-judged-by-its-target", WHEREVER, by_symlink),
    Test::sharing("exec::hard-link-is-the-same-program", WHEREVER, by_hard_link),
    Test::sharing("exec::name-of-an-allowed-program-is-not-enough", WHEREVER, renamed),
    Test::sharing("exec::by-descriptor-and-relative-path", WHEREVER, by_relative_path),
    Test::sharing("exec::observe-lets-run-and-records", WHEREVER, observe),
    Test::sharing("exec::run-refuses-a-command-out-of-scope", WHEREVER, run_refuses),
    Test::sharing("exec::script-is-judged", FULL, script),
    Test::sharing("exec::interpreter-is-judged", WHEREVER, interpreter),
    Test::sharing("exec::script-whose-interpreter-is-a-script", WHEREVER, script_of_a_script),
];

fn by_path(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")
}

fn deny_beats_folder(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = Policy::new().allow_dir("all", s.bin()).deny("not-bad", &bad);
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "not-bad")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "all")
}

fn by_folder(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let (good, deep, bad) = (s.program("in/good")?, s.program("in/a/b/deep")?, s.program("out/bad")?);
    let policy = only(&member).allow_dir("folder", format!("{}/in", s.bin()));
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "spawn", &deep)?.ran(s, "folder")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "folder")
}

fn denied_folder(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("closed/deep/bad")?);
    // the program itself is allowed by name as well: a denial anywhere wins
    let closed = format!("{}/closed", s.bin());
    let policy = Policy::new().allow_dir("all", s.bin()).allow("bad", &bad).deny_dir("closed", closed);
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "closed")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "all")
}

fn by_symlink(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("out/bad")?);
    let (to_good, to_bad) = (format!("{}/out/to-good", s.bin()), format!("{}/in/to-bad", s.bin()));
    fs::create_dir(format!("{}/in", s.bin()))?;
    symlink(&good, &to_good)?;
    symlink(&bad, &to_bad)?;
    let policy = only(&member).allow("good", &good).allow_dir("in", format!("{}/in", s.bin()));
    attempt(s, &policy, &member, "spawn", &to_bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "spawn", &to_good)?.ran(s, "good")
}

fn by_hard_link(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (as_good, as_bad) = (format!("{}/other-good", s.bin()), format!("{}/other-bad", s.bin()));
    fs::hard_link(&good, &as_good)?;
    fs::hard_link(&bad, &as_bad)?;
    let policy = Policy::new().allow_dir("all", s.bin()).deny("not-bad", &bad);
    attempt(s, &policy, &member, "spawn", &as_bad)?.was_refused(s, "not-bad")?;
    attempt(s, &policy, &member, "spawn", &as_good)?.ran(s, "all")?;
    // and a link to an allowed program from outside every allowed folder is that program
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "spawn", &as_good)?.ran(s, "good")
}

fn renamed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let (mark, mut fifo) = (s.file("mark"), super::scene::Fifo::new(s)?);
    let line = format!("spawn {good} --work nothing + fifo {} spawn {good} --work mark {mark}", fifo.path);
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    until("the allowed program to have run", patience(), || Ok((running.said() == "exit 0\n").then_some(())))?;
    fs::rename(&bad, &good)?;
    fifo.wake()?;
    running.wait()?.said(&format!("exit 0\n{}", super::scene::refused_exec(s)))?;
    ensure!(!fs::exists(&mark)?, "the other program ran under the allowed name");
    let refusal = refusal(s);
    s.wait_evidence("the refusal of the other program", |r| {
        r["session"] == session && r["path"] == good && r["verdict"] == refusal && r["rule"] == "default"
    })?;
    s.session_ended(&session, "completed").map(drop)
}

fn by_relative_path(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    let winding = |path: &str| path.replace("/bin/", "/bin/../bin/./");
    attempt(s, &policy, &member, "spawn", &winding(&bad))?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "spawn", &winding(&good))?.ran(s, "good")?;
    let by_descriptor = format!("spawn-by-descriptor {bad}");
    let mark = s.file("mark");
    let policy = s.policy(&policy)?;
    let folder = Path::new(&good).parent().context("a program without a folder")?;
    for (path, ran) in [("./bad", false), ("../bin/bad", false), ("../bin/good", true), ("./good", true)] {
        let near = s.file("mark");
        let finished =
            s.launch(&policy, &member, &format!("spawn {path} --work mark {near}")).folder(folder).start()?.wait()?;
        ensure!(fs::exists(&near)? == ran, "{path}: {}", finished.stdout);
        finished.said(if ran { "exit 0" } else { super::scene::refused_exec(s) })?;
    }
    let refused = s.run(&policy, &member, &format!("{by_descriptor} --work mark {mark}"))?.wait()?;
    refused.said(super::scene::refused_exec(s))?;
    ensure!(!fs::exists(&mark)?, "a program that is out of scope ran from a descriptor");
    // an allowed program is of a class that the kind denies, if it is called so
    let line = format!("spawn-by-descriptor {good} --work mark {mark}");
    for kind in ["ci", "agent"] {
        let running = s.run(&s.policy(&only(&member).allow("good", &good).kind(kind))?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(super::scene::refused_exec(s))?;
        s.wait_evidence("the refusal of its class", |r| {
            r["session"] == session && r["type"] == "exec" && r["rule"] == "by-descriptor"
        })?;
        ensure!(!fs::exists(&mark)?, "a program of a denied class ran, kind {kind}");
    }
    let open = only(&member).allow("good", &good).exec_rule("allow", "{ class: by-descriptor, id: open }");
    s.run(&s.policy(&open)?, &member, &line)?.wait()?.said("exit 0")?;
    ensure!(fs::exists(&mark)?, "an allowed program did not run from a descriptor");
    Ok(())
}

fn observe(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good).observe();
    attempt(s, &policy, &member, "spawn", &bad)?.was_only_observed(s, "default")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")?;
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "default")
}

fn run_refuses(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (good, bad, mark) = (s.program("good")?, s.program("bad")?, s.file("mark"));
    let policy = s.policy(&Policy::new().allow_dir("all", s.bin()).deny("not-bad", &bad))?;
    let refused = s.run(&policy, &bad, &format!("mark {mark}"))?.wait()?;
    refused.ended(125)?.complained(&["tipstaff: ", &bad, "change rule not-bad of the policy"])?;
    let unnamed = s.run(&s.policy(&only(&good))?, &bad, &format!("mark {mark}"))?.wait()?;
    unnamed.ended(125)?.complained(&["tipstaff: ", &bad, "denies what no rule names", "spec.scope.exec.allow"])?;
    ensure!(!fs::exists(&mark)?, "the refused command ran");
    let record = s.wait_evidence("a refusal", |r| r["type"] == "refused")?;
    ensure!(record["rule"] == "not-bad", "the refusal does not name its rule: {record}");
    let starts = s.evidence()?.iter().filter(|r| r["type"] == "session-start").count();
    ensure!(starts == 0, "a refused command started a session");
    s.run(&policy, &good, &format!("mark {mark}"))?.wait()?.ended(0)?;
    ensure!(fs::exists(&mark)?, "the allowed command did not run");
    Ok(())
}

/// A script whose interpreter is `interpreter` and which leaves a mark at `mark`.
pub(super) fn write_script(path: &str, interpreter: &str, mark: &str) -> Result<()> {
    fs::write(path, format!("#!{interpreter} --script\nmark {mark}\n"))?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// A member spawns `script` under `policy`; what it saw, whether the mark is there, and its session.
pub(super) fn spawn_script(
    s: &Sandbox,
    policy: &Policy,
    member: &str,
    script: &str,
    mark: &str,
) -> Result<(String, bool, String)> {
    let running = s.run(&s.policy(policy)?, member, &format!("spawn {script}"))?;
    let session = running.session(s)?;
    let said = running.wait()?.stdout;
    s.session_ended(&session, "completed")?;
    Ok((said, fs::exists(mark)?, session))
}

fn script(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let (script, mark) = (format!("{}/script", s.bin()), s.file("mark"));
    write_script(&script, &interpreter, &mark)?;
    let policy = only(&member).allow("interpreter", &interpreter);
    let (said, ran, session) = spawn_script(s, &policy, &member, &script, &mark)?;
    ensure!(said == "errno 1" && !ran, "a script out of scope: {said}, ran: {ran}");
    s.saw_exec(&session, &script, refusal(s), "default")?;
    let policy = policy.allow("script", &script);
    let (said, ran, session) = spawn_script(s, &policy, &member, &script, &mark)?;
    ensure!(said == "exit 0" && ran, "a script in scope: {said}, ran: {ran}");
    // what runs at last is the interpreter, by its rule and under the script's name
    s.saw_exec(&session, &script, "allow", "interpreter").map(drop)
}

fn interpreter(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let (script, mark) = (format!("{}/script", s.bin()), s.file("mark"));
    write_script(&script, &interpreter, &mark)?;
    let policy = only(&member).allow("script", &script);
    let (said, ran, session) = spawn_script(s, &policy, &member, &script, &mark)?;
    ensure!(said == super::scene::refused_exec(s) && !ran, "an interpreter out of scope: {said}, ran: {ran}");
    // the record has the name that was given, and the file that was judged
    let judged = |session: &str, verdict: &str, rule: &str| -> Result<()> {
        let record = s.saw_exec(session, &script, verdict, rule)?;
        let inode = fs::metadata(&interpreter)?.ino();
        ensure!(record["file"]["inode"] == inode, "not the interpreter, which is {inode}: {record}");
        Ok(())
    };
    judged(&session, refusal(s), "default")?;
    let policy = policy.allow("interpreter", &interpreter);
    let (said, ran, session) = spawn_script(s, &policy, &member, &script, &mark)?;
    ensure!(said == "exit 0" && ran, "an interpreter in scope: {said}, ran: {ran}");
    judged(&session, "allow", "interpreter")
}

/// The kernel starts an interpreter that is a script by that one's interpreter (`exec_binprm`, `fs/exec.c`): tier full judges each
/// of the three.
fn script_of_a_script(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let (outer, inner) = (format!("{}/outer", s.bin()), format!("{}/inner", s.bin()));
    let files = [("outer", &outer), ("inner", &inner), ("interpreter", &interpreter)];
    for missing in ["outer", "inner", "interpreter", "none"] {
        let mark = s.file("mark");
        write_script(&inner, &interpreter, &mark)?;
        write_script(&outer, &inner, &mark)?;
        let named = files.iter().filter(|(name, _)| *name != missing);
        let policy = named.fold(only(&member), |policy, (name, path)| policy.allow(name, path));
        let (said, ran, session) = spawn_script(s, &policy, &member, &outer, &mark)?;
        let unseen = s.tier == Tier::NoLsm && missing != "interpreter";
        if missing == "none" || unseen {
            ensure!(said == "exit 0" && ran, "{missing} out of scope: {said}, ran: {ran}");
            s.saw_exec(&session, &outer, "allow", "interpreter")?;
            continue;
        }
        let refused = if missing == "interpreter" { super::scene::refused_exec(s) } else { "errno 1" };
        ensure!(said == refused && !ran, "{missing} out of scope: {said}, ran: {ran}");
        let record = s.saw_exec(&session, &outer, refusal(s), "default")?;
        let (_, judged) = files.iter().find(|(name, _)| *name == missing).context("no such file")?;
        ensure!(record["file"]["inode"] == fs::metadata(judged)?.ino(), "not {missing}: {record}");
    }
    Ok(())
}
