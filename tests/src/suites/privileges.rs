//! What a member does beyond its own session: by class, by mode, and what no policy allows.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
};

use super::scene::only;
use crate::harness::{launch::Finished, prelude::*, sandbox::files_below};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("privileges::classes", FULL, classes),
    Test::sharing("privileges::gain-at-exec", FULL, gain),
    Test::sharing("privileges::the-agent-is-out-of-reach", FULL, agent),
    Test::sharing("privileges::the-agents-files-are-kept", FULL, files),
];

/// Every class that a member tries here, with its argument, and what comes of it where it is allowed.
pub(super) fn attempts() -> [(&'static str, String, &'static str); 14] {
    // this process: it is in no session
    let own = std::process::id().to_string();
    [
        ("signal", own.clone(), "ok"),
        ("ptrace", own, "errno 14"),
        ("bpf", "11".to_owned(), "ok"),
        ("modules", String::new(), "errno 8"),
        ("kexec", String::new(), "errno 22"),
        ("mount", String::new(), "errno 22"),
        ("chroot", String::new(), "ok"),
        ("namespaces", String::new(), "ok"),
        ("keyring", String::new(), "ok"),
        ("perf-event", String::new(), "ok"),
        ("userfaultfd", String::new(), "ok"),
        ("io-uring", String::new(), "ok"),
        ("kernel-settings", String::new(), "ok"),
        ("raw-devices", String::new(), "ok"),
    ]
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
    let attempts = attempts();
    let line: Vec<String> = attempts.iter().map(|(class, with, _)| format!("privilege {class} {with}")).collect();
    let line = format!("{} + own-child", line.join(" + "));
    let names: Vec<&str> = attempts.iter().map(|(class, ..)| *class).collect();
    let all = format!("privileges: {{ allow: [{}] }}", names.join(", "));
    let (ci, operator) = (only(&member), only(&member).kind("operator"));
    let cases = [
        ("nothing is said", ci.clone(), &[][..], "deny"),
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
        for ((class, _, answer), said) in attempts.iter().zip(said) {
            let refused = !open.contains(class);
            let expected = if refused && verdict == "deny" { "errno 1" } else { answer };
            ensure!(said == expected, "{what}: {class} came out as {said}, and not as {expected}");
            let own: Vec<&str> =
                found.iter().filter(|(name, _)| name == class).map(|(_, said)| said.as_str()).collect();
            let right = if refused { own.contains(&format!("{verdict} privilege").as_str()) } else { own.is_empty() };
            ensure!(right, "{what}: {class} is recorded as {own:?}");
        }
    }
    Ok(())
}

/// A program that runs as somebody else, and one that gives back what its caller had laid down.
fn gain(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, other) = (s.program("member")?, s.program("good")?, s.program("other")?);
    std::os::unix::fs::chown(&other, Some(12345), Some(12345))?;
    fs::set_permissions(&other, PermissionsExt::from_mode(0o4755))?;
    let policy = || only(&member).allow("good", &good).allow("other", &other);
    let cases = [("setuid", String::new(), &other), ("capabilities", "drop-capabilities + ".to_owned(), &good)];
    for (class, before, program) in cases {
        let line = format!("{before}spawn {program} --work own-child");
        let last = |finished: &Finished| finished.stdout.lines().last().unwrap_or_default().to_owned();
        let (finished, session) = tried(s, &policy(), &member, &line)?;
        ensure!(last(&finished) == "errno 1", "{class}: {}", finished.stdout);
        let found = recorded(s, &session)?;
        ensure!(found == [(class.to_owned(), "deny privilege".to_owned())], "{class}: {found:?}");
        let open = policy().scope(format!("privileges: {{ allow: [{class}] }}"));
        let (finished, session) = tried(s, &open, &member, &line)?;
        ensure!(last(&finished) == "exit 0", "{class}, allowed: {}", finished.stdout);
        ensure!(recorded(s, &session)?.is_empty(), "{class}, allowed, is recorded");
        // what has no more than its caller needs no class
        let (finished, session) = tried(s, &policy(), &member, &format!("spawn {good} --work own-child"))?;
        ensure!(last(&finished) == "exit 0", "a plain program: {}", finished.stdout);
        ensure!(recorded(s, &session)?.is_empty(), "a plain program is recorded");
    }
    Ok(())
}

/// Neither by a kind that allows every class nor in a mode that refuses nothing.
fn agent(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, pid) = (s.program("member")?, s.agent_pid()?);
    // by its pins, and its maps and links by their numbers
    let commands = [7, 14, 30].map(|command| format!("privilege bpf {command}")).join(" + ");
    let own = std::process::id();
    let line = format!("privilege signal {pid} + privilege ptrace {pid} + {commands} + privilege signal {own}");
    for policy in [only(&member).kind("breakglass"), only(&member).kind("breakglass").observe()] {
        let (finished, session) = tried(s, &policy, &member, &line)?;
        finished.said(&format!("{}ok", "errno 1\n".repeat(5)))?;
        let found = recorded(s, &session)?;
        let all =
            ["signal", "ptrace", "bpf", "bpf", "bpf"].map(|class| (class.to_owned(), "deny protected".to_owned()));
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
    let is_map = |pin: &std::path::PathBuf| pin.ends_with("map_SESSION_STATE");
    let pin = files_below(s.pins()).into_iter().find(is_map).context("there is no pin")?;
    let device = fs::metadata(s.pins())?.dev();
    let same = |folder: &&std::path::Path| fs::metadata(folder).is_ok_and(|found| found.dev() == device);
    let mounted = s.pins().ancestors().take_while(same).last().context("the pins are in no file system")?;
    let pins = s.pins().display().to_string();
    let made = ["make", "mkdir", "mknod", "symlink", "link"];
    let changed = ["write", "empty", "chmod", "chown", "touch", "truncate", "rename", "unlink"];
    let mut tried = acts(&made, &evidence);
    tried.extend(acts(&changed, &evidence));
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
    Ok(())
}

fn tried_in(s: &Sandbox, policy: &Policy, member: &str, acts: &[String]) -> Result<(Finished, String)> {
    tried(s, policy, member, &acts.join(" + "))
}
