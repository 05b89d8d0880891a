//! What comes to stand where a rule denies is denied from its first moment, whichever file it is and whether or not an agent
//! looks; and what comes to stand where a rule allows is, until one looked.

use std::{fs, os::unix::fs::symlink, path::Path};

use nix::sys::signal::Signal;

use super::{
    programs::{TRIES, Tries},
    scene::{attempt, only, refusal, refused_exec},
};
use crate::harness::{
    disk::on_disk,
    mounts::{Mounted, root_is_a_mount},
    prelude::*,
    wait::in_guest,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("names::what-takes-a-denied-place-is-denied-unseen", WHEREVER, unseen),
    Test::sharing("names::ten-thousand-places", WHEREVER, many),
    Test::new("names::a-digest-holds-for-its-place", WHEREVER, digest),
    Test::new("names::a-link-changed-while-no-agent-ran", WHEREVER, link),
    Test::new("names::allowed-by-a-path-that-leads-elsewhere-by-now", WHEREVER, led_elsewhere),
];

/// Bytes of a path that is recorded as a whole.
const RECORDED: usize = 200;

/// Whether a program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Runs,
    Refused,
    /// Refused for having changed.
    Unknown,
    Absent,
}
use Fate::{Absent, Refused, Runs, Unknown};

/// Programs below the test's folder, each with the rule that is against it.
struct Scene {
    bin: String,
    tried: Vec<(String, &'static str)>,
    fresh: u32,
}

impl Scene {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.bin)
    }

    /// Puts a new program in a place in one step, as a package manager does.
    fn put(&mut self, s: &Sandbox, name: &str) -> Result<()> {
        self.fresh += 1;
        let new = s.program(&format!("new-{}", self.fresh))?;
        fs::rename(new, self.path(name)).with_context(|| format!("putting {name} in place"))
    }

    /// A round of tries, each of which comes out as expected.
    fn round(&self, s: &Sandbox, run: &mut Tries, expected: &[Fate]) -> Result<()> {
        let said = run.next(self.tried.len())?;
        for (((name, _), fate), answer) in self.tried.iter().zip(expected).zip(said.lines()) {
            let wanted = match fate {
                Runs => "exit 0",
                Absent => "errno 2",
                Refused | Unknown => refused_exec(s),
            };
            ensure!(answer == wanted, "{name}: {answer} where {wanted} was expected: {said}");
        }
        Ok(())
    }
}

/// With an agent that is stopped, then killed: new files, a new directory, a directory that is moved away and back, other views.
fn unseen(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let long = |end: &str| format!("in/{}{end}", "x".repeat(254));
    let (mut scene, mounts, overlay) = make(s, &long)?;
    let policy = denials(&scene, &long);
    let cases = [
        // name, rule, before, after
        ("in/bad", "no-bad", Refused, Refused),
        ("in/good", "", Runs, Runs),
        ("out/linked", "no-bad", Refused, Refused),
        ("elsewhere/bad", "no-bad", Refused, Refused),
        ("elsewhere/good", "", Runs, Runs),
        ("out/bad", "", Absent, Runs),
        (&long("y"), "no-long", Refused, Refused),
        (&long("z"), "", Runs, Runs),
        ("in/later", "no-later", Absent, Refused),
        ("out/later", "", Absent, Runs),
        ("none/such/later", "no-way", Absent, Refused),
        ("closed/deep/x", "no-closed", Refused, Refused),
        ("open/deep/x", "", Runs, Runs),
        ("was/deep/x", "no-closed", Absent, Refused),
        ("gone/deep/x", "", Absent, Absent),
        ("out/evil", "no-evil", Absent, Refused),
        ("releases/1/tool", "no-tool", Refused, Refused),
        ("app/current/tool", "no-tool", Refused, Refused),
        ("in/free", "", Runs, Unknown),
        ("merged/tool", "no-merged", if overlay { Refused } else { Absent }, if overlay { Refused } else { Absent }),
        ("lower/tool", "", if overlay { Runs } else { Absent }, if overlay { Runs } else { Absent }),
    ];
    scene.tried = cases.iter().map(|(name, rule, ..)| ((*name).to_owned(), *rule)).collect();
    let before: Vec<Fate> = cases.iter().map(|case| case.2).collect();
    let mut after: Vec<Fate> = cases.iter().map(|case| case.3).collect();
    let paths: Vec<String> = scene.tried.iter().map(|(name, _)| scene.path(name)).collect();
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &vec![paths; 8], None)?;
    scene.round(s, &mut run, &before).context("before anything was replaced")?;

    let fate = |after: &mut [Fate], name: &str, fate: Fate| {
        let found = cases.iter().position(|case| case.0 == name).context("a case")?;
        after[found] = fate;
        Ok::<_, anyhow::Error>(())
    };
    s.signal_agent(Signal::SIGSTOP)?;
    let mut stopped = || {
        replace(s, &mut scene, &long, overlay)?;
        scene.round(s, &mut run, &after).context("while the agent is stopped")?;
        // at another place it is any directory; where it is moved back to it is not
        fs::rename(scene.path("closed"), scene.path("gone"))?;
        fate(&mut after, "closed/deep/x", Absent)?;
        fate(&mut after, "gone/deep/x", Runs)?;
        scene.round(s, &mut run, &after).context("with the directory away")?;
        fs::rename(scene.path("gone"), scene.path("closed"))?;
        fate(&mut after, "closed/deep/x", Refused)?;
        fate(&mut after, "gone/deep/x", Absent)?;
        scene.round(s, &mut run, &after).context("with the directory back")
    };
    let held = stopped();
    s.signal_agent(Signal::SIGCONT)?;
    held?;
    s.kill_agent()?;
    replace_again(s, &mut scene, &long)?;
    scene.round(s, &mut run, &after).context("without an agent")?;
    s.start()?;
    // the next agent has looked at what stands there, and first arguments are judged again
    fate(&mut after, "in/free", Runs)?;
    scene.round(s, &mut run, &after).context("with the next agent")?;
    recorded(s, &run, &scene, &cases.map(|case| case.3))?;
    run.stop(s)?;
    drop(mounts);
    Ok(())
}

/// The files, and views of them. Whether there is an overlay among these.
fn make(s: &Sandbox, long: &dyn Fn(&str) -> String) -> Result<(Scene, Mounted, bool)> {
    let scene = Scene { bin: s.bin(), tried: Vec::new(), fresh: 0 };
    let ordinary = ["in/bad", "in/good", "in/choosy", "in/free", "closed/deep/x", "open/deep/x", "releases/1/tool"];
    for name in ordinary.map(str::to_owned).into_iter().chain(["y", "z"].map(long)) {
        s.program(&name)?;
    }
    for folder in ["app", "out", "elsewhere", "lower", "upper", "work", "merged"] {
        fs::create_dir_all(scene.path(folder))?;
    }
    symlink("../releases/1", scene.path("app/current"))?;
    fs::hard_link(scene.path("in/bad"), scene.path("out/linked"))?;
    let mut mounts = Mounted::default();
    mounts.add((&scene.path("in"), None), Path::new(&scene.path("elsewhere")), None)?;
    let overlay = fs::read_to_string("/proc/filesystems")?.contains("overlay");
    if overlay {
        s.program("lower/tool")?;
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scene.path(name));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mounts.add(("overlay", Some("overlay")), Path::new(&scene.path("merged")), Some(&options))?;
    }
    Ok((scene, mounts, overlay))
}

fn denials(scene: &Scene, long: &dyn Fn(&str) -> String) -> Policy {
    let mut policy = Policy::new().kind("operator");
    let rules = [
        ("path", "in/bad", "no-bad"),
        ("path", &long("y"), "no-long"),
        ("path", "in/later", "no-later"),
        ("path", "none/such/later", "no-way"),
        ("dir", "closed", "no-closed"),
        ("glob", "*/evil", "no-evil"),
        ("path", "app/current/tool", "no-tool"),
        ("path", "merged/tool", "no-merged"),
    ];
    for (key, name, id) in rules {
        policy = policy.exec_rule("deny", &format!("{{ {key}: \"{}\", id: {id} }}", scene.path(name)));
    }
    for (name, word) in [("in/choosy", "--work"), ("in/free", "other")] {
        let path = scene.path(name);
        let id = name.replace('/', "-");
        policy = policy.exec_rule("deny", &format!("{{ path: \"{path}\", subcommands: [{word}], id: {id} }}"));
    }
    policy
}

fn replace(s: &Sandbox, scene: &mut Scene, long: &dyn Fn(&str) -> String, overlay: bool) -> Result<()> {
    for folder in ["none/such", "fresh/deep"] {
        fs::create_dir_all(scene.path(folder))?;
    }
    let places =
        ["in/bad", "in/good", "out/bad", "in/later", "out/later", "none/such/later", "fresh/deep/x", "out/evil"];
    for name in places.into_iter().chain(["releases/1/tool", "in/free"]) {
        scene.put(s, name)?;
    }
    for name in ["y", "z"].map(long) {
        scene.put(s, &name)?;
    }
    if overlay {
        s.program("merged/new")?;
        fs::rename(scene.path("merged/new"), scene.path("merged/tool"))?;
    }
    fs::rename(scene.path("closed"), scene.path("was"))?;
    fs::rename(scene.path("fresh"), scene.path("closed"))?;
    Ok(())
}

fn replace_again(s: &Sandbox, scene: &mut Scene, long: &dyn Fn(&str) -> String) -> Result<()> {
    for name in ["in/bad", "in/good", "in/later", "closed/deep/x", "open/deep/x", "releases/1/tool", "in/free"] {
        scene.put(s, name)?;
    }
    scene.put(s, &long("y"))
}

/// The rule of each refusal stands in the evidence, and that of what ran is none.
fn recorded(s: &Sandbox, run: &Tries, scene: &Scene, fates: &[Fate]) -> Result<()> {
    for ((name, rule), fate) in scene.tried.iter().zip(fates) {
        let path = scene.path(name);
        if path.len() > RECORDED {
            let session = run.session();
            let said = |r: &serde_json::Value| r["session"] == session && r["rule"] == *rule;
            if *fate == Refused {
                s.wait_evidence("the refusal of a long name", said).map(drop)?;
            }
            continue;
        }
        match fate {
            Refused => s.saw_exec(run.session(), &path, refusal(s), rule).map(drop)?,
            // it ran before it was replaced, and again when the agent had looked
            Unknown => {
                let session = run.session();
                let said = |r: &serde_json::Value| {
                    r["session"] == session && r["path"] == path && r["rule"] == "changed" && r["verdict"] == refusal(s)
                };
                s.wait_evidence("the refusal of what was not looked at", said).map(drop)?;
            }
            Runs => s.saw_exec(run.session(), &path, "allow", "default").map(drop)?,
            Absent => {}
        }
    }
    Ok(())
}

/// As many rules as anybody writes on what is not there yet; the last is as good as the first.
fn many(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bin) = (s.program("member")?, s.bin());
    fs::create_dir(format!("{bin}/in"))?;
    let policy = Policy::new().kind("operator");
    let many = if in_guest() { 2_000 } else { 10_000 };
    let policy = (0..many).fold(policy, |policy, n| policy.deny(&format!("r{n}"), format!("{bin}/in/{n}")));
    let names = [format!("in/{}", many - 1), "in/0".to_owned(), format!("in/{many}")];
    let paths: Vec<String> = names.each_ref().map(|name| format!("{bin}/{name}")).into();
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &[paths], None)?;
    for name in &names {
        s.program(name)?;
    }
    let refused = refused_exec(s);
    ensure!(run.three()? == [refused, refused, "exit 0"], "what came to stand where nothing was");
    s.saw_exec(run.session(), &format!("{bin}/{}", names[0]), refusal(s), &format!("r{}", many - 1))?;
    run.stop(s)
}

/// A file that takes the place of one with a digest does not run as any other of an allowed folder does.
fn digest(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let place = format!("{}/digests", on_disk(s, &mut mounts)?);
    fs::create_dir(&place)?;
    let (member, new) = (s.program("member")?, s.program("new")?);
    let [good, other, staged] = ["good", "other", "staged"].map(|name| format!("{place}/{name}"));
    for file in [&good, &other, &staged] {
        fs::copy(&new, file)?;
    }
    // no program, but of other bytes
    let sum = super::digests::sha256(&good)?;
    let mut bytes = fs::read(&staged)?;
    bytes.push(0);
    fs::write(&staged, bytes)?;
    let rule = format!("{{ path: \"{good}\", sha256: \"{sum}\", id: good }}");
    let policy = only(&member)
        .exec_rule("allow", &rule)
        .exec_rule("allow", "{ class: written, id: changes }")
        .allow_dir("folder", &place);
    let policy_file = s.policy(&policy)?;
    let mut run = Tries::new(s, &policy_file, &member, &vec![vec![good.clone(), other.clone()]; 2], None)?;
    ensure!(run.next(2)? == "exit 0\nexit 0", "before it was replaced");
    s.signal_agent(Signal::SIGSTOP)?;
    fs::rename(&staged, &good)?;
    let said = run.next(2)?;
    s.signal_agent(Signal::SIGCONT)?;
    ensure!(said == format!("{}\nexit 0", refused_exec(s)), "after it was replaced: {said}");
    let session = run.session().to_owned();
    s.wait_evidence("the refusal", |r| {
        r["session"] == session && r["path"] == good && r["verdict"] == refusal(s) && r["rule"] == "changed"
    })?;
    run.stop(s)?;
    attempt(s, &policy, &member, "spawn", &other)?.ran(s, "folder")?;
    drop(mounts);
    Ok(())
}

/// A denied directory is where its link leads, also when that was changed while no agent ran.
fn link(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, old, new) = (s.program("member")?, s.program("releases/1/tool")?, s.program("releases/2/tool")?);
    let bin = s.bin();
    let place = |name: &str| format!("{bin}/{name}");
    symlink("releases/1", place("current"))?;
    let policy = only(&member).allow_dir("all", &bin).deny_dir("closed", place("current"));
    let tries = vec![vec![old, new]; TRIES as usize];
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &tries, None)?;
    let refused = refused_exec(s);
    ensure!(run.next(2)? == format!("{refused}\nexit 0"), "before the link was changed");
    s.kill_agent()?;
    symlink("releases/2", place("next"))?;
    fs::rename(place("next"), place("current"))?;
    s.start()?;
    until("the directory to be looked for", patience(), || {
        std::thread::sleep(patience() / TRIES);
        Ok((run.next(2)? == format!("{refused}\n{refused}")).then_some(()))
    })?;
    run.stop(s)
}

/// Allowed programs below a link that is swapped, and below a directory that another takes the place of, unseen by an agent that is
/// stopped: the new files do not run, and of those that the paths led to only the one that stands where it stood; once the agent
/// looked, the new ones alone.
fn led_elsewhere(s: &mut Sandbox) -> Result<()> {
    // only below a mount that it sees whole the agent holds files to where they stand
    root_is_a_mount()?;
    s.start()?;
    let (member, bin) = (s.program("member")?, s.bin());
    let place = |name: &str| format!("{bin}/{name}");
    for name in ["releases/1/good", "releases/2/good", "house/tool", "fresh/tool"] {
        s.program(name)?;
    }
    symlink("releases/1", place("current"))?;
    let policy = only(&member).allow("good", place("current/good")).allow("tool", place("house/tool"));
    let names = ["current/good", "releases/1/good", "releases/2/good", "house/tool", "was/tool"];
    let tries = vec![names.map(place).to_vec(); TRIES as usize];
    // who is not root cannot be the package manager
    let user = Some((64_010, crate::harness::sandbox::OPERATORS));
    let mut run = Tries::new(s, &s.policy(&policy)?, &member, &tries, user)?;
    let (refused, runs) = (refused_exec(s), "exit 0");
    let is = |answers: [&str; 5]| answers.join("\n");
    let said = run.next(5)?;
    ensure!(said == is([runs, runs, refused, runs, "errno 2"]), "before anything was changed: {said}");
    s.signal_agent(Signal::SIGSTOP)?;
    let mut unseen = || {
        symlink("releases/2", place("next"))?;
        fs::rename(place("next"), place("current"))?;
        fs::rename(place("house"), place("was"))?;
        fs::rename(place("fresh"), place("house"))?;
        run.next(5)
    };
    let said = unseen();
    s.signal_agent(Signal::SIGCONT)?;
    let said = said?;
    ensure!(said == is([refused, runs, refused, refused, refused]), "while the agent is stopped: {said}");
    until("the agent to have looked", patience(), || {
        std::thread::sleep(patience() / TRIES);
        let said = run.next(5)?;
        Ok((said == is([runs, refused, runs, runs, refused])).then_some(()))
    })?;
    let session = run.session().to_owned();
    for name in ["current/good", "house/tool"] {
        let refused = |r: &serde_json::Value| r["session"] == session && r["path"] == place(name);
        s.wait_evidence("the refusal of what was not looked at", |r| refused(r) && r["verdict"] == refusal(s))?;
        s.wait_evidence("the allowed one", |r| refused(r) && r["verdict"] == "allow")?;
    }
    run.stop(s)
}
