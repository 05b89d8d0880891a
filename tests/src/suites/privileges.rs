//! What a member does beyond its own session: by class, by mode, and what no policy allows.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use super::scene::only;
use crate::{
    harness::{
        launch::{Finished, bare},
        prelude::*,
        sandbox::files_below,
    },
    work::privilege::add_key,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("privileges::classes", FULL, classes),
    Test::sharing("privileges::gain-at-exec", FULL, gain),
    Test::sharing("privileges::by-a-command-on-a-file", FULL, commands),
    Test::sharing("privileges::others-without-a-signal", FULL, others),
    Test::sharing("privileges::the-agent-is-out-of-reach", FULL, agent),
    Test::sharing("privileges::the-agents-files-are-kept", FULL, files),
    Test::sharing("privileges::nothing-takes-the-place-of-the-agents-files", FULL, places),
];

/// Every class that a member tries here: by which words, and what comes of it where it is allowed. Of those with several
/// hooks each hook is asked.
pub(super) fn attempts() -> Result<[(&'static str, String, &'static str); 24]> {
    // a key of this process's, as long as it is there; none where the kernel has no keys
    let key = match add_key() {
        Err(Errno::ENOSYS) => 0,
        key => key.context("a key")?,
    };
    // this process: it is in no session
    let on_own = |act: &str| format!("{act} {}", std::process::id());
    Ok([
        ("signal", on_own("signal"), "ok"),
        ("ptrace", on_own("ptrace"), "errno 14"),
        ("ptrace", on_own("write-memory"), "errno 14"),
        ("ptrace", on_own("seize"), "ok"),
        ("bpf", "bpf 11".to_owned(), "ok"),
        ("modules", "modules".to_owned(), "errno 8"),
        ("modules", "module-file".to_owned(), "errno 8"),
        ("kexec", "kexec".to_owned(), "errno 22"),
        ("kexec", "kexec-file".to_owned(), "errno 8"),
        ("mount", "mount".to_owned(), "errno 22"),
        ("mount", "remount".to_owned(), "ok"),
        ("mount", "unmount".to_owned(), "errno 22"),
        ("mount", "move-mount".to_owned(), "errno 22"),
        ("mount", "pivot-root".to_owned(), "errno 22"),
        ("chroot", "chroot".to_owned(), "ok"),
        ("namespaces", "namespaces".to_owned(), "ok"),
        ("keyring", "keyring".to_owned(), "ok"),
        ("keyring", format!("keyctl {key}"), "ok"),
        ("perf-event", "perf-event".to_owned(), "ok"),
        ("userfaultfd", "userfaultfd".to_owned(), "ok"),
        ("io-uring", "io-uring".to_owned(), "ok"),
        ("kernel-settings", "kernel-settings".to_owned(), "ok"),
        ("raw-devices", "raw-devices".to_owned(), "ok"),
        ("raw-devices", "verbs".to_owned(), "errno 6"),
    ])
}

/// What an ioctl(2) does is of the class of what it comes to: nobody writes to a file system that is frozen, and whoever has a
/// terminal that is hung up is ended.
fn commands(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (class, words, allowed) in [("mount", "privilege freeze", "errno 95"), ("signal", "privilege hang-up", "ok")] {
        let (finished, session) = tried(s, &only(&member), &member, words)?;
        finished.said("errno 1")?;
        let found = recorded(s, &session)?;
        ensure!(found == [(class.to_owned(), "deny privilege".to_owned())], "recorded of {words}: {found:?}");
        tried(s, &only(&member).privileges(class), &member, words)?.0.said(allowed)?;
    }
    Ok(())
}

/// What is tried, each once.
pub(super) fn named(attempts: &[(&'static str, String, &'static str)]) -> Vec<&'static str> {
    let mut names: Vec<&str> = attempts.iter().map(|(class, ..)| *class).collect();
    names.dedup();
    names
}

/// All of it in one line.
pub(super) fn line_of(attempts: &[(&'static str, String, &'static str)]) -> String {
    attempts.iter().map(|(_, words, _)| format!("privilege {words}")).collect::<Vec<_>>().join(" + ")
}

/// What ends, starves or stops others by other calls than kill(2) is of class `signal`; of the agent it is nobody's.
fn others(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let mut command = bare(member.as_ref());
    command.args(["--work", "idle"]);
    let outside = Running::spawn(s, command, None)?;
    let cell = s.part("elsewhere").child("others")?;
    cell.take(outside.pid())?;
    let on = |who: &str| {
        ["limit WHO same", "schedule WHO same", "owner WHO fcntl 23"]
            .map(|act| format!("act {}", act.replace("WHO", who)))
    };
    let pid = outside.pid().to_string();
    let mut all = on(&pid).to_vec();
    all.extend(["ex", "ioctl"].map(|how| format!("act owner {pid} {how} 23")));
    all.extend(["nice", "nice-disk"].map(|how| format!("act {how} {pid}")));
    all.extend(
        ["cgroup.freeze 0", "cgroup.max.depth max"].map(|what| format!("act write {}/{what}", cell.path().display())),
    );
    let count = all.len();
    let answers = |policy: &Policy, acts: &[String]| tried_in(s, policy, &member, acts);
    let (finished, session) = answers(&only(&member), &all)?;
    finished.said(&vec!["errno 1"; count].join("\n"))?;
    let found = recorded(s, &session)?;
    ensure!(found == vec![("signal".to_owned(), "deny privilege".to_owned()); count], "recorded: {found:?}");
    answers(&only(&member).privileges("signal"), &all)?.0.said(&vec!["ok"; count].join("\n"))?;
    // what it does to itself is no class's, and neither is a cgroup of its own
    let mut own = on("self").to_vec();
    own.push("nest act freeze-none".to_owned());
    answers(&only(&member), &own)?.0.said(&vec!["ok"; own.len()].join("\n"))?;
    // by its own number in a pid namespace too
    let inside = ["unshare pid act owner self fcntl 23".to_owned()];
    let said = answers(&only(&member), &inside)?.0.stdout;
    ensure!(said.starts_with("ok\n"), "its own, by its number in a pid namespace: {said}");
    // who may signal others may not touch the agent
    let (finished, session) = answers(&only(&member).kind("breakglass"), &on(&s.agent_pid()?.to_string())[..2])?;
    finished.said("errno 1\nerrno 1")?;
    let found = recorded(s, &session)?;
    ensure!(found == vec![("signal".to_owned(), "deny protected".to_owned()); 2], "recorded: {found:?}");
    drop(outside);
    cell.remove()
}

/// In a new session, `line`: what it said, and the session.
pub(super) fn tried(s: &Sandbox, policy: &Policy, member: &str, line: &str) -> Result<(Finished, String)> {
    let running = s.run(&s.policy(policy)?, member, line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    Ok((finished, session))
}

/// The records of a session on classes, each as class and `verdict rule`.
fn recorded(s: &Sandbox, session: &str) -> Result<Vec<(String, String)>> {
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = s.evidence()?;
    let own = all.iter().filter(|r| r["type"] == "privilege" && r["session"] == session);
    Ok(own.map(|r| (word(&r["class"]), format!("{} {}", word(&r["verdict"]), word(&r["rule"])))).collect())
}

fn classes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    // a hook that is not found counts as one that this kernel does not have, and is named here
    let status = s.json(&["status"])?;
    let all = status["controls"].as_array().context("no controls")?;
    let control = all.iter().find(|control| control["control"] == "privileges").context("no control on privileges")?;
    ensure!(control["state"] == "enforced", "privileges: {control}");
    let member = s.program("member")?;
    let attempts = attempts()?;
    let line = format!("{} + own-child", line_of(&attempts));
    let names = named(&attempts);
    let all = format!("privileges: {{ allow: [{}] }}", names.join(", "));
    let (ci, operator) = (only(&member), only(&member).kind("operator"));
    let cases = [
        ("nothing is said", ci.clone(), &[][..], "deny"),
        ("an agent's", only(&member).kind("agent"), &[], "deny"),
        ("all are allowed", ci.clone().scope(all), &names, ""),
        ("observed", ci.clone().observe(), &[], "would-deny"),
        ("an operator's is empty", operator.scope("privileges: { allow: [] }"), &[], "deny"),
        ("one is allowed", ci.scope("privileges: { allow: [chroot] }"), &["chroot"], "deny"),
    ];
    for (what, policy, open, verdict) in cases {
        let (finished, session) = tried(s, &policy, &member, &line)?;
        let found = recorded(s, &session)?;
        let said: Vec<&str> = finished.stdout.lines().collect();
        ensure!(said.len() == attempts.len() + 1 && said.last() == Some(&"ok"), "{what}: {said:?}");
        for ((class, words, answer), said) in attempts.iter().zip(said) {
            let expected = if !open.contains(class) && verdict == "deny" { "errno 1" } else { answer };
            ensure!(said == expected, "{what}: {words} came out as {said}, and not as {expected}");
        }
        for class in &names {
            let own: Vec<&str> =
                found.iter().filter(|(name, _)| name == class).map(|(_, said)| said.as_str()).collect();
            let tried = attempts.iter().filter(|(name, ..)| name == class).count();
            let as_refused = own.len() >= tried && own.iter().all(|said| *said == format!("{verdict} privilege"));
            let right = if open.contains(class) { own.is_empty() } else { as_refused };
            ensure!(right, "{what}: {class}, tried {tried} times, is recorded as {own:?}");
        }
    }
    Ok(())
}

/// A program that runs as another user or group, one that gives back what its caller had laid down, and one whose file has a
/// capability.
fn gain(s: &mut Sandbox) -> Result<()> {
    const USER: u32 = 64_020;
    s.start()?;
    let [member, good, other, group, capable] = ["member", "good", "other", "group", "capable"].map(|n| s.program(n));
    let (member, good, other, group, capable) = (member?, good?, other?, group?, capable?);
    std::os::unix::fs::chown(&other, Some(12345), Some(12345))?;
    fs::set_permissions(&other, PermissionsExt::from_mode(0o4755))?;
    std::os::unix::fs::chown(&group, None, Some(12345))?;
    fs::set_permissions(&group, PermissionsExt::from_mode(0o2755))?;
    give_capability(&capable)?;
    let policy = || {
        let all = only(&member).allow("good", &good).allow("other", &other);
        all.allow("group", &group).allow("capable", &capable)
    };
    let user = format!("act another-user {USER} ");
    let cases = [
        ("setuid", "", &other),
        ("setuid", "", &group),
        ("capabilities", "drop-capabilities + ", &good),
        ("capabilities", &user, &capable),
    ];
    let last = |finished: &Finished| finished.stdout.lines().last().unwrap_or_default().to_owned();
    // whoever they run as
    let marks = s.file("marks");
    fs::create_dir(&marks)?;
    fs::set_permissions(&marks, PermissionsExt::from_mode(0o777))?;
    for (number, (class, before, program)) in cases.into_iter().enumerate() {
        let mark = format!("{marks}/{number}");
        let line = format!("{before}spawn {program} --work mark {mark}");
        let (finished, session) = tried(s, &policy(), &member, &line)?;
        ensure!(last(&finished) == "errno 1", "{class}, {program}: {}", finished.stdout);
        ensure!(!fs::exists(&mark)?, "{class}, {program}: it ran");
        let found = recorded(s, &session)?;
        ensure!(found == [(class.to_owned(), "deny privilege".to_owned())], "{class}, {program}: {found:?}");
        let open = policy().scope(format!("privileges: {{ allow: [{class}] }}"));
        let (finished, session) = tried(s, &open, &member, &line)?;
        ensure!(last(&finished) == "exit 0", "{class}, {program}, allowed: {}", finished.stdout);
        ensure!(fs::exists(&mark)?, "{class}, {program}, allowed: it did not run");
        ensure!(recorded(s, &session)?.is_empty(), "{class}, {program}, allowed, is recorded");
    }
    // what has no more than its caller needs no class
    for before in ["", &user] {
        let (finished, session) = tried(s, &policy(), &member, &format!("{before}spawn {good} --work own-child"))?;
        ensure!(last(&finished) == "exit 0", "a plain program: {}", finished.stdout);
        ensure!(recorded(s, &session)?.is_empty(), "a plain program is recorded");
    }
    Ok(())
}

/// A program that has `CAP_NET_BIND_SERVICE`, effective, whoever starts it (capabilities(7), the attribute's second version).
fn give_capability(program: &str) -> Result<()> {
    let words: [u32; 5] = [0x0200_0001, 1 << 10, 0, 0, 0];
    let value = words.map(u32::to_le_bytes).concat();
    let path = std::ffi::CString::new(program)?;
    let name = c"security.capability".as_ptr();
    // SAFETY: strings and bytes that outlive the call, as many as is said.
    let done = unsafe { libc::setxattr(path.as_ptr(), name, value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop).context("the capability of a file")
}

/// Neither by a kind that allows every class nor in a mode that refuses nothing.
fn agent(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, pid) = (s.program("member")?, s.agent_pid()?);
    // by its pins, and its maps and links by their numbers
    let commands = [7, 14, 30].map(|command| format!("privilege bpf {command}")).join(" + ");
    let own = std::process::id();
    let looks = ["ptrace", "write-memory", "seize"].map(|act| format!("privilege {act} {pid}")).join(" + ");
    let line = format!("privilege signal {pid} + {looks} + {commands} + privilege signal {own}");
    for policy in [only(&member).kind("breakglass"), only(&member).kind("breakglass").observe()] {
        let (finished, session) = tried(s, &policy, &member, &line)?;
        finished.said(&format!("{}ok", "errno 1\n".repeat(7)))?;
        let found = recorded(s, &session)?;
        let all = ["signal", "ptrace", "ptrace", "ptrace", "bpf", "bpf", "bpf"];
        let all = all.map(|class| (class.to_owned(), "deny protected".to_owned()));
        ensure!(found == all, "recorded: {found:?}");
    }
    ensure!(s.json(&["status"])?["pid"] == pid, "the agent is another");
    Ok(())
}

/// The agent's files and folders, its pins, and what they are mounted in; and the same with files of the member's own.
fn files(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let acts = |acts: &[&str], file: &str| -> Vec<String> {
        acts.iter().map(|act| format!("own-file {act} {file}")).collect()
    };
    let evidence = s.evidence_file().display().to_string();
    let is_map = |pin: &PathBuf| pin.ends_with("map_SESSION_STATE");
    let pin = files_below(s.pins()).into_iter().find(is_map).context("there is no pin")?;
    let device = fs::metadata(s.pins())?.dev();
    let same = |folder: &&Path| fs::metadata(folder).is_ok_and(|found| found.dev() == device);
    let mounted = s.pins().ancestors().take_while(same).last().context("the pins are in no file system")?;
    let pins = s.pins().display().to_string();
    let made = ["make", "mkdir", "mknod", "symlink", "link"];
    let changed = ["write", "empty", "chmod", "chown", "touch", "truncate", "rename", "unlink"];
    let attributes = ["acl", "attribute", "no-acl", "no-attribute"];
    let mut tried = acts(&made, &evidence);
    tried.extend(acts(&changed, &evidence));
    tried.extend(acts(&attributes, &evidence));
    tried.extend(acts(&["rmdir", "rename", "make"], &s.runtime().display().to_string()));
    tried.extend(acts(&["unlink", "rename", "chmod"], &pin.display().to_string()));
    tried.extend(acts(&["rmdir", "rename"], &pins));
    tried.extend(acts(&["unmount"], &mounted.display().to_string()));
    for policy in [only(&member).kind("breakglass"), only(&member).kind("breakglass").observe()] {
        let (finished, session) = tried_in(s, &policy, &member, &tried)?;
        for (act, said) in tried.iter().zip(finished.stdout.lines()) {
            // beside a folder is not in it
            let expected = if act.starts_with("own-file make") && act.ends_with("/run") { "ok" } else { "errno 1" };
            ensure!(said == expected, "{act}: {said}");
        }
        let found = recorded(s, &session)?;
        let own = found.iter().filter(|(class, said)| class == "agent-files" && said == "deny protected");
        ensure!(own.count() == tried.len() - 1, "recorded: {found:?}");
        fs::remove_file(format!("{}-beside", s.runtime().display()))?;
    }
    ensure!(pin.exists(), "the pin is gone");
    // a file of nobody in particular
    let own = s.file("own");
    fs::write(&own, "")?;
    let mut free = acts(&["write", "empty", "chmod", "chown", "touch", "truncate"], &own);
    // each of them is made beside it, and in the way of the next
    let beside = format!("{own}-beside");
    for (make, remove) in [("mkdir", "rmdir"), ("mknod", "unlink"), ("symlink", "unlink"), ("link", "unlink")] {
        free.extend(acts(&[make], &own));
        free.extend(acts(&[remove], &beside));
    }
    free.extend(acts(&["make", "rename"], &own));
    free.extend(acts(&["unlink"], &beside));
    let (finished, session) = tried_in(s, &only(&member), &member, &free)?;
    ensure!(finished.stdout == vec!["ok"; free.len()].join("\n"), "of its own: {}", finished.stdout);
    ensure!(recorded(s, &session)?.is_empty(), "its own files are recorded");
    fs::write(&own, "")?;
    let (finished, session) = tried_in(s, &only(&member), &member, &acts(&attributes, &own))?;
    // not every file system has them
    ensure!(finished.stdout.lines().all(|said| ["ok", "errno 95"].contains(&said)), "of its own: {}", finished.stdout);
    ensure!(recorded(s, &session)?.is_empty(), "its own files' attributes are recorded");
    Ok(())
}

/// What the agent would find by its paths stays what it was: nothing is mounted over its folders, what the pins are in, and the
/// folders above, nor do these get other names; and all of it with folders of nobody in particular.
fn places(s: &mut Sandbox) -> Result<()> {
    const OVER: [&str; 3] = ["mount-over", "move-over", "pivot-over"];
    s.start()?;
    let member = s.program("member")?;
    let acts = |acts: &[&str], file: &Path| -> Vec<String> {
        acts.iter().map(|act| format!("own-file {act} {}", file.display())).collect()
    };
    let parent = |of: &Path| of.parent().map(Path::to_owned).with_context(|| format!("{} is in none", of.display()));
    let (runtime, log) = (s.runtime(), s.evidence_file());
    // all that is the agent's is in it, and what is the tests' too
    let above = parent(&runtime)?;
    let folders = [runtime, parent(&log)?, s.pins().to_owned(), parent(s.pins())?, above.clone(), "/".into()];
    // who pivots to a place and has the old root there too, as sandboxes do with `/`, puts nothing over it
    let ways = |folder: &PathBuf| if *folder == above || *folder == Path::new("/") { &OVER[..2] } else { &OVER };
    let mut tried: Vec<String> = folders.iter().flat_map(|folder| acts(ways(folder), folder)).collect();
    tried.extend(acts(&OVER[..2], &log));
    tried.extend(acts(&["rename", "rmdir"], &above));
    for policy in [only(&member).kind("operator"), only(&member).kind("breakglass").observe()] {
        let (finished, session) = tried_in(s, &policy, &member, &tried)?;
        let said: Vec<&str> = finished.stdout.lines().collect();
        ensure!(said.len() == tried.len(), "of {tried:?}: {said:?}");
        for (act, said) in tried.iter().zip(said) {
            ensure!(said == "errno 1", "{act}: {said}");
        }
        let found = recorded(s, &session)?;
        let kept = ("agent-files".to_owned(), "deny protected".to_owned());
        ensure!(found == vec![kept; tried.len()], "recorded: {found:?}");
    }
    let (free, renamed) = (s.fresh("free"), s.fresh("renamed"));
    for folder in [&free, &renamed] {
        fs::create_dir(folder)?;
    }
    let mut other: Vec<String> = OVER[..2].iter().flat_map(|over| acts(&[over, "unmount"], &free)).collect();
    other.extend(acts(&["rename"], &renamed));
    other.extend(acts(&["rmdir"], Path::new(&format!("{}-beside", renamed.display()))));
    // what else is done with a folder above is nobody's
    other.extend(acts(&["touch"], &above));
    let (finished, session) = tried_in(s, &only(&member).kind("operator"), &member, &other)?;
    finished.said(&vec!["ok"; other.len()].join("\n"))?;
    ensure!(recorded(s, &session)?.is_empty(), "what is free is recorded");
    let (finished, session) = tried_in(s, &only(&member).kind("operator"), &member, &acts(&["pivot-over"], &above))?;
    // it is no file system of its own
    finished.said("errno 22")?;
    ensure!(recorded(s, &session)?.is_empty(), "who pivots above the agent's folders is recorded");
    // it is where it was, and answers
    s.json(&["status"]).map(drop)
}

fn tried_in(s: &Sandbox, policy: &Policy, member: &str, acts: &[String]) -> Result<(Finished, String)> {
    tried(s, policy, member, &acts.join(" + "))
}
