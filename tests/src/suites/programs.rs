//! Which file a program is, what it is made of, and how it is called.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use nix::sys::inotify::{InitFlags, Inotify};

use super::{
    privileges::tried,
    scene::{Fifo, attempt, only, refusal, refused_exec},
};
use crate::harness::{mounts::Mounted, prelude::*};

/// Where programs name their dynamic loader; guests have the one of the machine that made them.
const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "/lib/ld-linux-aarch64.so.1" } else { "/lib64/ld-linux-x86-64.so.2" };

pub(super) const TESTS: &[Test] = &[
    Test::sharing("programs::globs-and-classes", WHEREVER, classes),
    Test::sharing("programs::real-loader", WHEREVER, real_loader),
    Test::sharing("programs::the-right-file-or-none", WHEREVER, identities),
    Test::sharing("programs::replaced-files-are-looked-at-again", WHEREVER, replaced),
    Test::sharing("programs::what-changed-is-no-program-of-roots-session", WHEREVER, changed),
    Test::sharing("programs::a-folder-on-the-way-is-swapped", WHEREVER, swapped),
    Test::sharing("programs::a-rule-never-gets-another-rules-file", WHEREVER, borrowed),
    Test::new("programs::another-agent-holds-to-the-same-files", WHEREVER, adopted),
    Test::new("programs::nothing-left-to-watch-with", WHEREVER, unwatched)
        .guests_only("takes every inotify instance")
        .alone(),
    Test::sharing("programs::subcommands-are-judged-in-place", WHEREVER, subcommands),
];

/// More than a test can need.
pub(super) const TRIES: u32 = 200;

/// A member of a session of its own that tries programs, a round of them each time it is told. Each would leave a mark.
pub(super) struct Tries {
    running: Running,
    session: String,
    fifo: Fifo,
    said: usize,
    /// Of a round's programs, in their order.
    marks: Vec<String>,
}

impl Tries {
    pub(super) fn new(
        s: &Sandbox,
        policy: &str,
        member: &str,
        rounds: &[Vec<String>],
        user: Option<(u32, u32)>,
    ) -> Result<Self> {
        let fifo = Fifo::new(s)?;
        fs::set_permissions(&fifo.path, PermissionsExt::from_mode(0o666))?;
        let most = rounds.iter().map(Vec::len).max().context("a round")?;
        let marks: Vec<String> = (0..most).map(|_| s.file("mark")).collect();
        let round = |programs: &Vec<String>| {
            let tries =
                programs.iter().zip(&marks).map(|(program, mark)| format!("spawn {program} --work mark {mark}"));
            format!("fifo {} {}", fifo.path, tries.collect::<Vec<_>>().join(" + "))
        };
        let line = rounds.iter().map(round).collect::<Vec<_>>().join(" + ");
        let mut launch = s.launch(policy, member, &format!("{line} + fifo {} nothing", fifo.path));
        if let Some((uid, gid)) = user {
            launch = launch.user(uid, gid);
        }
        let running = launch.start()?;
        let session = running.session(s)?;
        Ok(Self { running, session, fifo, said: 0, marks })
    }

    /// What the next round of so many programs comes to, a line each: what ran left its mark, and nothing else did.
    pub(super) fn next(&mut self, programs: usize) -> Result<String> {
        for mark in self.marks.iter().filter(|mark| Path::new(mark).exists()) {
            fs::remove_file(mark)?;
        }
        self.fifo.wake()?;
        let text = until("the next answer", patience(), || {
            let said = self.running.said();
            let new = said.get(self.said..).unwrap_or_default();
            Ok((new.matches('\n').count() == programs).then(|| new.to_owned()))
        })?;
        self.said += text.len();
        for (answer, mark) in text.lines().zip(&self.marks) {
            let marked = Path::new(mark).exists();
            ensure!(marked == (answer == "exit 0"), "{answer}, and that it left its mark is {marked}: {text}");
        }
        Ok(text.trim_end().to_owned())
    }

    pub(super) fn session(&self) -> &str {
        &self.session
    }

    pub(super) fn three(&mut self) -> Result<[String; 3]> {
        let said = self.next(3)?;
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.try_into().ok().context("three answers")
    }

    /// Tries until the answers are what `holds` waits for.
    pub(super) fn until(&mut self, holds: impl Fn(&[String; 3]) -> Result<bool>) -> Result<()> {
        until("the files to be looked at again", patience(), || {
            // the tries last as long as the patience
            std::thread::sleep(patience() / TRIES);
            Ok(holds(&self.three()?)?.then_some(()))
        })
    }

    pub(super) fn stop(self, s: &Sandbox) -> Result<()> {
        s.cli(&["end", &self.session])?.ended(0)?;
        s.session_ended(&self.session, "operator").map(drop)
    }
}

fn classes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("tools/good")?);
    let (busybox, loader) = (s.program("tools/busybox")?, s.program("tools/ld-linux-x86-64.so.2")?);
    let glob = format!("{{ glob: \"{}/tool?/*\", id: tools }}", s.bin());
    let policy = only(&member).exec_rule("allow", &glob);
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "tools")?;
    attempt(s, &policy, &member, "spawn", &s.program("other/good")?)?.was_refused(s, "default")?;
    for (program, class) in [(&busybox, "multi-call"), (&loader, "loader")] {
        attempt(s, &policy, &member, "spawn", program)?.was_refused(s, class)?;
        attempt(s, &policy.clone().kind("agent"), &member, "spawn", program)?.was_refused(s, class)?;
        let open = policy.clone().exec_rule("allow", &format!("{{ class: {class}, id: open }}"));
        attempt(s, &open, &member, "spawn", program)?.ran(s, "tools")?;
    }
    // loaders of other days: what the link to them is called counts, and the name of a file that no rule names
    let (old, musl) = (s.program("tools/ld-2.31.so")?, s.program("tools/libc.so")?);
    symlink(&musl, format!("{}/tools/ld-musl-x86_64.so.1", s.bin()))?;
    let folder = only(&member).allow_dir("folder", s.bin());
    for (policy, program) in [(&policy, &old), (&policy, &musl), (&folder, &old)] {
        attempt(s, policy, &member, "spawn", program)?.was_refused(s, "loader")?;
    }
    let open = policy.clone().exec_rule("allow", "{ class: loader, id: open }");
    attempt(s, &open, &member, "spawn", &musl)?.ran(s, "tools")?;
    // by another name it is still the same file
    let renamed = format!("{}/tools/renamed", s.bin());
    fs::hard_link(&busybox, &renamed)?;
    attempt(s, &policy, &member, "spawn", &renamed)?.was_refused(s, "multi-call")?;
    // a kind that denies no class can have a rule that does
    let operator = Policy::new().kind("operator");
    attempt(s, &operator, &member, "spawn", &busybox)?.ran(s, "default")?;
    let closed = operator.exec_rule("deny", "{ class: multi-call, id: closed }");
    attempt(s, &closed, &member, "spawn", &busybox)?.was_refused(s, "closed")?;
    let all = Policy::new().allow_dir("all", s.folder().display());
    for (how, class) in [("memfd", "memfd"), ("deleted", "deleted"), ("copy", "written")] {
        let line = |mark: &str| format!("made {how} {good} {} --work mark {mark}", s.file("made"));
        let (closed, open) = (s.file("mark"), s.file("mark"));
        for kind in ["ci", "agent"] {
            let running = s.run(&s.policy(&all.clone().kind(kind))?, &member, &line(&closed))?;
            let session = running.session(s)?;
            let finished = running.wait()?;
            let told = |kind| s.records(&session, kind).unwrap_or_default();
            finished.said(refused_exec(s)).with_context(|| {
                format!("{how} refused, kind {kind}; recorded: {:?}", ["exec", "fork", "session-end"].map(told))
            })?;
            ensure!(!Path::new(&closed).exists(), "{how}: a program of a denied class ran, kind {kind}");
            s.wait_evidence("its refusal", |r| {
                r["session"] == session && r["type"] == "exec" && r["rule"] == class && r["verdict"] == refusal(s)
            })?;
        }
        let mut policy = all.clone();
        for class in ["memfd", "deleted", "written", "by-descriptor"] {
            policy = policy.exec_rule("allow", &format!("{{ class: {class}, id: {class}-open }}"));
        }
        s.run(&s.policy(&policy)?, &member, &line(&open))?.wait()?.said("exit 0")?;
        ensure!(Path::new(&open).exists(), "{how}: a program of an allowed class did not run");
    }
    Ok(())
}

/// The loader of this machine, or the guest's, runs a program: only where its class is allowed. The program is in scope:
/// glibc's loader starts one that is linked statically by an exec (2.36, measured).
fn real_loader(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let loader = fs::canonicalize(LOADER).context(LOADER)?.display().to_string();
    let policy = only(&member).allow("good", &good).allow("this", &loader);
    let open = policy.clone().exec_rule("allow", "{ class: loader, id: open }");
    let agents = policy.clone().kind("agent");
    let refused = (refused_exec(s), refusal(s), "loader");
    for (policy, (answer, verdict, rule)) in
        [(&policy, refused), (&agents, refused), (&open, ("exit 0", "allow", "this"))]
    {
        let mark = s.file("mark");
        let (said, session) = tried(s, policy, &member, &format!("spawn {loader} {good} --work mark {mark}"))?;
        said.said(answer)?;
        ensure!(Path::new(&mark).exists() == (answer == "exit 0"), "{answer}, but the mark says otherwise");
        s.saw_exec(&session, &loader, verdict, rule)?;
    }
    Ok(())
}

/// Each way to call a program by another name, or another by its name.
fn identities(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let place = |name: &str| format!("{}/{name}", s.bin());
    let make = |name: &str| fs::create_dir_all(place(name));
    for (name, to) in [("to-good", &good), ("to-bad", &bad)] {
        symlink(to, place(name))?;
        symlink(name, place(&format!("{name}-again")))?;
    }
    symlink(place("loop"), place("loop"))?;
    // bind mounts: of a file over another, of a folder at another place
    make("in")?;
    make("elsewhere")?;
    fs::copy(&good, place("in/covered"))?;
    let mut mounts = Mounted::default();
    let mut cover = |from: &str, to: String| mounts.add((from, None), Path::new(&to), None);
    let deep = (0..60).map(|_| "d").collect::<Vec<_>>().join("/");
    make(&format!("in/{deep}"))?;
    fs::copy(&good, place(&format!("in/{deep}/good")))?;
    let long = "d/../".repeat(700);
    make("d")?;
    let policy = only(&member).allow("good", &good).allow_dir("in", place("in"));
    // denied by the file that is there now, not by the name that was allowed
    cover(&bad, place("in/covered"))?;
    cover(&s.bin(), place("elsewhere"))?;
    let cases = [
        (place("to-good"), "exit 0"),
        (place("to-bad"), "refused"),
        (place("to-good-again"), "exit 0"),
        (place("to-bad-again"), "refused"),
        (place("loop"), "errno 40"),
        (place("in"), "errno 13"),
        (place("d/../good"), "exit 0"),
        (place("d/../bad"), "refused"),
        (place("in/covered"), "refused"),
        (place("elsewhere/good"), "exit 0"),
        (place("elsewhere/bad"), "refused"),
        // more folders above it than are looked at
        (place(&format!("in/{deep}/good")), "refused"),
        (place(&format!("{long}good")), "exit 0"),
        (place(&format!("{long}bad")), "refused"),
        (place(&format!("{}good", "d/../".repeat(900))), "errno 36"),
    ];
    let tries: Vec<Vec<String>> = cases.iter().map(|(path, _)| vec![path.clone()]).collect();
    let mut member = Tries::new(s, &s.policy(&policy)?, &member, &tries, None)?;
    for (path, expected) in &cases {
        let said = member.next(1)?;
        let expected = if *expected == "refused" { refused_exec(s) } else { expected };
        let end = path.len().saturating_sub(60);
        ensure!(said == expected, "…{}: {said} where {expected} was expected", &path[end..]);
    }
    member.stop(s)
}

/// Waits until a change to a file is told from the last one of `path`.
fn tick_after(s: &Sandbox, path: &str) -> Result<()> {
    let changed = |path: &str| -> Result<(i64, i64)> {
        let file = fs::metadata(path)?;
        Ok((file.ctime(), file.ctime_nsec()))
    };
    let last = changed(path)?;
    until("the clock to tick", patience(), || {
        let probe = s.file("tick");
        fs::write(&probe, "")?;
        Ok((changed(&probe)? > last).then_some(()))
    })
}

fn replaced(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, sentinel) = (s.program("member")?, s.program("good")?, s.program("sentinel")?);
    let (other, theirs, newer) = (s.program("new/other")?, s.program("new/theirs")?, s.program("new/newer")?);
    let old = format!("{}/old", s.bin());
    let policy = s.policy(&only(&member).allow("good", &good).allow("sentinel", &sentinel))?;
    let all = [&good, &old, &sentinel].map(String::clone).to_vec();
    // who is not root cannot be the package manager
    let user = Some((64_010, crate::harness::sandbox::OPERATORS));
    let mut run = Tries::new(s, &policy, &member, &vec![all; TRIES as usize], user)?;
    let refused = refused_exec(s);
    ensure!(run.three()? == ["exit 0", "errno 2", "exit 0"], "before anything was replaced");
    // as a package manager does: the new file takes the place of the old in one step
    fs::hard_link(&good, &old)?;
    // before 6.13 a file's times move with the clock's tick: what changes twice within one has changed once
    tick_after(s, &good)?;
    fs::rename(&other, &good)?;
    run.until(|[good, old, _]| {
        ensure!(old == refused, "the old file under another name: {old}");
        Ok(good == "exit 0")
    })?;
    // what others than root could have put there is not taken for the program; the sentinel tells that it was looked at
    fs::set_permissions(&theirs, PermissionsExt::from_mode(0o777))?;
    fs::rename(&theirs, &good)?;
    fs::rename(&newer, &sentinel)?;
    run.until(|[good, _, sentinel]| {
        ensure!(good == refused, "a file that anybody can write: {good}");
        Ok(sentinel == "exit 0")
    })?;
    ensure!(run.three()?[0] == refused, "a file that anybody can write ran later");
    // until it is root's alone
    fs::set_permissions(&good, PermissionsExt::from_mode(0o755))?;
    run.until(|[good, ..]| Ok(good == "exit 0"))?;
    run.stop(s)
}

/// Root could have changed a file in the session that it started, so that session has it no more, also when the agent has looked
/// again; one that starts later has it.
fn changed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, linked, written) = (s.program("member")?, s.program("linked")?, s.program("written")?);
    let (moved, sentinel) = (s.program("moved")?, s.program("sentinel")?);
    let all = [&linked, &written, &moved].map(String::clone).to_vec();
    let policy = only(&member).allow("link", &linked).allow("write", &written).allow("move", &moved);
    let policy = policy.allow("sentinel", &sentinel);
    let rounds = vec![all; TRIES as usize];
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &rounds, None)?;
    // who is not root has its rules looked at again: that the sentinel runs there tells that the agent looked
    let user = Some((64_010, crate::harness::sandbox::OPERATORS));
    let seen = vec![vec![sentinel.clone(); 3]; TRIES as usize];
    let mut users = Tries::new(s, &s.policy(&policy)?, &member, &seen, user)?;
    ensure!(run.three()? == ["exit 0", "exit 0", "exit 0"], "before anything was changed");
    tick_after(s, &sentinel)?;
    fs::hard_link(&linked, format!("{}/another-name", s.bin()))?;
    fs::File::options().append(true).open(&written)?.write_all(b"x")?;
    let away = format!("{}/away", s.bin());
    fs::rename(&moved, &away)?;
    fs::rename(&away, &moved)?;
    let refused = [refused_exec(s); 3];
    ensure!(run.three()? == refused, "what was changed ran");
    fs::rename(s.program("new/sentinel")?, &sentinel)?;
    users.until(|said| Ok(said[0] == "exit 0"))?;
    ensure!(run.three()? == refused, "what was changed ran once the agent had looked");
    let session = run.session().to_owned();
    run.stop(s)?;
    users.stop(s)?;
    let execs = s.records(&session, "exec")?;
    let rules: Vec<_> = execs.iter().filter(|r| r["verdict"] == refusal(s)).map(|r| &r["rule"]).collect();
    ensure!(rules.len() == 6 && rules.iter().all(|rule| *rule == "changed"), "the rules were {rules:?}");
    for (rule, program) in [("link", &linked), ("write", &written), ("move", &moved)] {
        attempt(s, &policy, &member, "spawn", program)?.ran(s, rule)?;
    }
    Ok(())
}

/// As releases are put in place: a link to a folder is swapped.
fn swapped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, old, new) = (s.program("member")?, s.program("releases/1/good")?, s.program("releases/2/good")?);
    let place = |name: &str| format!("{}/{name}", s.bin());
    fs::create_dir(place("app"))?;
    symlink("../releases/1", place("app/current"))?;
    let good = place("app/current/good");
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let all = [&good, &old, &new].map(String::clone).to_vec();
    let user = Some((64_010, crate::harness::sandbox::OPERATORS));
    let mut run = Tries::new(s, &policy, &member, &vec![all; TRIES as usize], user)?;
    let refused = refused_exec(s);
    ensure!(run.three()? == ["exit 0", "exit 0", refused], "before the swap");
    symlink("../releases/2", place("app/next"))?;
    fs::rename(place("app/next"), place("app/current"))?;
    run.until(|said| Ok(said[0] == "exit 0"))?;
    ensure!(run.three()? == ["exit 0", refused, "exit 0"], "after the swap");
    run.stop(s)
}

/// A rule on a folder that members can write to is led to a file of which another rule allows little.
fn borrowed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, git, tool) = (s.program("member")?, s.program("git")?, s.program("open/tool")?);
    let (sentinel, newer) = (s.program("sentinel")?, s.program("new/newer")?);
    let open = format!("{}/open", s.bin());
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777))?;
    let words = format!("{{ path: \"{git}\", subcommands: [status], id: git }}");
    let policy = only(&member).exec_rule("allow", &words).allow("tool", &tool).allow("sentinel", &sentinel);
    let all = [&git, &tool, &sentinel].map(String::clone).to_vec();
    let user = Some((64_010, crate::harness::sandbox::OPERATORS));
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &vec![all; TRIES as usize], user)?;
    ensure!(run.three()? == ["signal 9", "exit 0", "exit 0"], "before the link");
    let link = format!("{open}/link");
    symlink(&git, &link)?;
    fs::rename(&link, &tool)?;
    // tells that the link was looked at
    fs::rename(&newer, &sentinel)?;
    let kept = |[git, tool, _]: &[String; 3]| {
        ensure!(git != "exit 0" && tool != "exit 0", "a rule on {tool} opened what it was led to: {git}");
        Ok(())
    };
    run.until(|said| {
        kept(said)?;
        Ok(said[2] == "exit 0")
    })?;
    kept(&run.three()?)?;
    run.stop(s)
}

/// Where the kernel has no inotify instance left the agent starts, says so, and judges as ever.
fn unwatched(s: &mut Sandbox) -> Result<()> {
    let mut told = false;
    // other tests' agents may give one back just then
    for _ in 0..8 {
        let mut taken = Vec::new();
        while let Ok(one) = Inotify::init(InitFlags::IN_CLOEXEC) {
            taken.push(one);
        }
        let started = s.start();
        // others start agents too
        drop(taken);
        started?;
        told = s.said_by_agent().contains("fs.inotify.max_user_instances");
        if told {
            break;
        }
        s.stop_agent()?;
    }
    ensure!(told, "it said {:?}", s.said_by_agent());
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    attempt(s, &policy, &member, "spawn", &bad)?.was_refused(s, "default")?;
    attempt(s, &policy, &member, "spawn", &good)?.ran(s, "good")
}

/// What was renamed while an agent lived is denied and allowed by the next one as before, and what stands in its place now
/// is not taken for it.
fn adopted(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for program in ["in/evil", "in/good", "in/words", "new/good"] {
        s.program(program)?;
    }
    let place = |name: &str| format!("{}/{name}", s.bin());
    let words = format!("{{ path: \"{}\", subcommands: [--work], id: words }}", place("in/words"));
    let policy = only(&member).allow_dir("in", place("in")).deny("evil", place("in/evil")).exec_rule("deny", &words);
    let tried = ["was/renamed", "was/reworded", "was/good", "in/good"];
    let tries = vec![tried.map(place).to_vec(); 3];
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &tries, None)?;
    fs::rename(place("in"), place("was"))?;
    fs::rename(place("was/evil"), place("was/renamed"))?;
    fs::rename(place("was/words"), place("was/reworded"))?;
    fs::rename(place("new"), place("in"))?;
    let refused = refused_exec(s);
    let expected = |said: &str| {
        let lines: Vec<&str> = said.lines().collect();
        let [renamed, reworded, good, new] = lines.as_slice() else { anyhow::bail!("{said}") };
        ensure!(*renamed == refused, "a denied file under another name: {renamed}");
        // judged in place, or before for having changed
        ensure!(["signal 9", refused].contains(reworded), "a first argument under another name: {reworded}");
        ensure!(*good == "exit 0", "a file in the folder: {good}");
        ensure!(*new == refused, "a file in the folder that took its place: {new}");
        Ok(())
    };
    expected(&run.next(4)?)?;
    s.kill_agent()?;
    s.start()?;
    expected(&run.next(4)?).context("with another agent")?;
    expected(&run.next(4)?).context("and again")?;
    run.stop(s)
}

fn subcommands(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let line = |word: &str| format!("spawn {good} {word} mark");
    let words = format!("{{ path: \"{good}\", subcommands: [--work, status], id: words }}");
    let narrow = only(&member).exec_rule("allow", &words);
    let wide = only(&member).allow("good", &good);
    let without = wide.clone().exec_rule("deny", &format!("{{ path: \"{good}\", subcommands: [--work], id: not }}"));
    for (policy, runs, rule) in [(&narrow, true, "words"), (&wide, true, "good"), (&without, false, "not")] {
        let mark = s.file("mark");
        let running = s.run(&s.policy(policy)?, &member, &format!("{} {mark}", line("--work")))?;
        let session = running.session(s)?;
        running.wait()?.said(if runs { "exit 0" } else { "signal 9" })?;
        ensure!(Path::new(&mark).exists() == runs, "{rule}: the mark is wrong");
        s.saw_exec(&session, &good, if runs { "allow" } else { "kill" }, rule)?;
    }
    // another word, a word that begins as one does, a longer one, none at all
    for word in ["--wor", "--work-more-than-sixteen", "-", ""] {
        let policy = s.policy(&narrow)?;
        let running = s.run(&policy, &member, &format!("spawn {good} {word}"))?;
        let session = running.session(s)?;
        running.wait()?.said("signal 9").with_context(|| format!("word {word:?}"))?;
        s.saw_exec(&session, &good, "kill", "default")?;
    }
    // a rule that denies a first argument allows no other
    let denies = only(&member).exec_rule("deny", &format!("{{ path: \"{good}\", subcommands: [push], id: push }}"));
    attempt(s, &denies, &member, "spawn", &good)?.was_refused(s, "default")?;
    s.cli(&["policy", "check", &s.policy(&narrow)?])?.ended(0)?.told(&["subcommands --work, status", "kill"])?;
    Ok(())
}
