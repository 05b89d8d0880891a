//! What `run` takes away in tier no-lsm, where no kernel program judges privileges later.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{
    privileges::{attempts, line_of, named, tried},
    scene::only,
};
use crate::{
    harness::{
        launch::{Finished, Running, bare},
        prelude::*,
        runner::running_kernel,
        sandbox::OPERATORS,
        wait::in_guest,
    },
    work::privilege::user_namespace,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("taken::from-root", NO_LSM, root),
    Test::sharing("taken::what-was-raised-before", NO_LSM, raised),
    Test::sharing("taken::from-an-ordinary-user", NO_LSM, ordinary),
    Test::sharing("taken::no-way-round", NO_LSM, round),
    Test::sharing("taken::strict-and-root", NO_LSM, strict),
    Test::sharing("taken::not-from-who-runs", NO_LSM, later),
    Test::sharing("taken::kept-by-another-launcher", NO_LSM, kept),
];

/// An ordinary user.
const USER: u32 = 64_020;
/// What tier no-lsm does not hold for root, whose files those are.
const ROOTS_FILES: [&str; 2] = ["kernel-settings", "raw-devices"];

/// Whether a control is enforced, as all here are but for `landlock`, which older kernels lack.
pub(super) fn is_enforced(s: &Sandbox, name: &str) -> Result<bool> {
    let probe = s.json(&["probe"])?;
    let all = probe["controls"].as_array().context("no controls")?;
    let control = all.iter().find(|control| control["control"] == name);
    let control = control.with_context(|| format!("there is no control {name}: {probe}"))?;
    ensure!(control["state"] == "enforced" || name == "landlock", "{control}");
    Ok(control["state"] == "enforced")
}

fn last(finished: &Finished) -> &str {
    finished.stdout.lines().last().unwrap_or_default()
}

/// A user's session: what it said.
fn tried_by_user(s: &Sandbox, policy: &Policy, member: &str, line: &str) -> Result<Finished> {
    let running = s.launch(&s.policy(policy)?, member, line).user(USER, OPERATORS).start()?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    Ok(finished)
}

/// Each class is refused that is not allowed, and let go that is.
fn root(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    is_enforced(s, "seccomp")?;
    let keeps_signals = is_enforced(s, "landlock")?;
    ensure!(!in_guest() || keeps_signals == (running_kernel()? >= (6, 12)), "landlock keeps signals: {keeps_signals}");
    let attempts: Vec<_> = attempts()?.into_iter().filter(|(class, ..)| !ROOTS_FILES.contains(class)).collect();
    let line = format!("{} + own-standing", line_of(&attempts));
    let names = named(&attempts);
    let cases = [
        (only(&member), &[][..]),
        // no attempt is of that class, which has calls all the same
        (only(&member).privileges(&format!("{}, delegation", names.join(", "))), &names),
        (only(&member).observe(), &names),
        (only(&member).kind("breakglass"), &names),
        (only(&member).privileges("capabilities, mount"), &["mount"]),
        (only(&member).privileges("chroot"), &["chroot"]),
    ];
    for (policy, open) in cases {
        let (finished, _) = tried(s, &policy, &member, &line)?;
        let said: Vec<&str> = finished.stdout.lines().collect();
        ensure!(said.len() == attempts.len() + 1, "{policy}: {said:?}");
        for ((class, words, answer), said) in attempts.iter().zip(&said) {
            let right = if open.contains(class) {
                // a kernel that is not a guest's may lack it, and where it makes no user namespaces that is no refusal
                let lacks = *said == "errno 38" || (*class == "namespaces" && user_namespace()?.is_err());
                said == answer || (lacks && !in_guest())
            } else {
                *said == "errno 1" || (*class == "signal" && !keeps_signals && said == answer)
            };
            ensure!(right, "{policy}\n{words} came out as {said}");
        }
        let standing = last(&finished);
        let nothing = "CapPrm: 0000000000000000, CapEff: 0000000000000000, CapBnd: 0000000000000000, \
                       CapAmb: 0000000000000000, NoNewPrivs: 1, Seccomp: 2";
        ensure!(standing.ends_with(nothing) == open.is_empty(), "{policy}\n{standing}");
        ensure!(standing.ends_with("Seccomp: 0") == (open.len() == names.len()), "{policy}\n{standing}");
    }
    Ok(())
}

/// Capabilities that the caller made ambient, so that they outlive each exec, are gone as well.
fn raised(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (policy, kept) in [(only(&member), false), (only(&member).observe(), true)] {
        let running = s.launch(&s.policy(&policy)?, &member, "own-standing").raised().start()?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        ensure!(finished.stdout.contains("CapAmb: 0000000000001000") == kept, "{policy}\n{}", finished.stdout);
        ensure!(finished.stdout.contains("CapAmb: 0000000000000000") != kept, "{policy}\n{}", finished.stdout);
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

/// Who has no capabilities: what takes none is refused all the same, and no program gives any.
fn ordinary(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, root) = (s.program("member")?, s.program("good")?, s.program("other")?);
    fs::set_permissions(&root, PermissionsExt::from_mode(0o4755))?;
    let policy = || only(&member).allow("good", &good).allow("root", &root);
    let classes = ["keyring", "namespaces", "ptrace"];
    let line = |class: &str| match class {
        "ptrace" => "own-child".to_owned(),
        class => format!("privilege {class}"),
    };
    let all = classes.map(line).join(" + ");
    let finished = tried_by_user(s, &policy(), &member, &format!("{all} + own-standing"))?;
    let refused: Vec<&str> = finished.stdout.lines().take(3).collect();
    ensure!(refused == ["errno 1"; 3], "{}", finished.stdout);
    ensure!(last(&finished).ends_with("NoNewPrivs: 1, Seccomp: 2"), "{}", finished.stdout);
    for class in classes {
        let finished =
            tried_by_user(s, &policy().privileges(class), &member, &format!("{} + own-standing", line(class)))?;
        let lacks = class == "namespaces" && !in_guest() && user_namespace()?.is_err();
        ensure!(finished.stdout.starts_with("ok\n") || lacks, "{class}, allowed: {}", finished.stdout);
        ensure!(last(&finished).ends_with("NoNewPrivs: 1, Seccomp: 2"), "{class}: {}", finished.stdout);
    }
    // a program that is root's whoever starts it
    let line = format!("spawn {root} --work own-standing");
    let finished = tried_by_user(s, &policy(), &member, &line)?;
    let own = format!("Uid: {USER} {USER}");
    ensure!(
        finished.stdout.contains(&own) && finished.stdout.contains("CapEff: 0000000000000000"),
        "{}",
        finished.stdout
    );
    let finished = tried_by_user(s, &policy().privileges("setuid"), &member, &line)?;
    ensure!(finished.stdout.contains(&format!("Uid: {USER} 0 ")), "{}", finished.stdout);
    finished.complained(&["note", "seccomp"]).map(drop)
}

/// By the numbers of other architectures, by clone(2), or by what root's programs have.
fn round(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let policy = || only(&member).allow("good", &good);
    let line = "by-number x32 + by-number i386";
    let (finished, _) = tried(s, &policy(), &member, line)?;
    let refused: Vec<&str> = finished.stdout.lines().collect();
    let (finished, _) = tried(s, &policy().kind("breakglass"), &member, line)?;
    let open: Vec<&str> = finished.stdout.lines().collect();
    for (refused, open) in refused.iter().zip(&open) {
        // where there are no 32-bit programs the interrupt itself kills
        let none = refused == open && refused.contains("SIGSEGV");
        ensure!((*refused == "errno 1" && *open != "errno 1") || none, "{refused}, and {open} where all is allowed");
    }
    ensure!(refused.len() == 2 && refused[0] == "errno 1", "{refused:?}");
    // root's exec has the bounding set, which is empty
    let (finished, _) = tried(s, &policy(), &member, &format!("spawn {good} --work own-standing"))?;
    ensure!(finished.stdout.contains("Uid: 0 0 0 0, CapPrm: 0000000000000000"), "{}", finished.stdout);
    // the C library's own way to make a child is refused and another taken
    let (finished, _) = tried(s, &policy(), &member, "fork say forked + thread say threaded")?;
    ensure!(finished.stdout.contains("forked") && finished.stdout.contains("threaded"), "{}", finished.stdout);
    Ok(())
}

/// Root with capabilities is refused where the policy is strict, and told of where not.
fn strict(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let keeps = only(&member).privileges("capabilities");
    let refused = s.run(&s.policy(&keeps.clone().strict())?, &member, "nothing")?.wait()?;
    refused.ended(125)?.complained(&["root keeps", "strict", "run it as another user"])?;
    s.wait_evidence("the refusal", |r| r["type"] == "refused" && r["message"].to_string().contains("root keeps"))?;
    s.run(&s.policy(&keeps)?, &member, "nothing")?.wait()?.ended(0)?.complained(&["note", "root keeps"])?;
    let none = only(&member).privileges("");
    s.run(&s.policy(&none.clone().strict())?, &member, "say runs")?.wait()?.ended(0)?.said("runs")?;
    let kept = s.launch(&s.policy(&keeps.clone().strict())?, &member, "say runs").user(USER, OPERATORS);
    kept.start()?.wait()?.ended(0)?.said("runs").map(drop)
}

/// Who runs already is not made to lay anything down, nor a session that is narrowed.
fn later(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let (keeps, none) = (only(&member).privileges("capabilities"), only(&member).privileges(""));
    let mut command = bare(member.as_ref());
    command.args(["--work", "idle"]);
    let outside = Running::spawn(s, command, None)?;
    let pid = outside.pid().to_string();
    let attach = |policy: &Policy| s.cli(&["attach", "--policy", &s.policy(policy)?, "--pid", &pid]);
    let refused = attach(&none.clone().strict())?;
    refused.complained(&["privileges", "strict"])?;
    ensure!(refused.code != 0, "a strict policy was held to what nothing takes");
    attach(&none)?.ended(0)?.told(&["privileges is unavailable", "start it with `run`"])?;
    let session = s.session_of(outside.pid())?;
    let inspected = s.json(&["inspect", &session])?;
    let controls = inspected["controls"].as_array().context("no controls")?;
    let own = controls.iter().find(|control| control["control"] == "privileges");
    ensure!(own.is_some_and(|control| control["state"] == "unavailable"), "{inspected}");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;

    let running = s.run(&s.policy(&keeps)?, &member, "idle")?;
    let session = running.session(s)?;
    let narrowed = s.cli(&["narrow", &session, "--policy", &s.policy(&none)?])?;
    narrowed.ended(0)?.told(&["keeps the privileges that it began with"])?;
    let refused = s.cli(&["narrow", &session, "--policy", &s.policy(&none.strict())?])?;
    refused.complained(&["privileges", "strict"])?;
    ensure!(refused.code != 0, "a strict policy took away what nothing takes");
    s.cli(&["end", &session])?.ended(0)?;
    Ok(())
}

/// A launcher that is not ours and lays nothing down: its session ends, and the evidence says why.
fn kept(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let begin = |policy: &Policy| -> Result<(Running, String)> {
        let mut command = bare(member.as_ref());
        let socket = s.runtime().join("operate.sock");
        command.args(["--work", "begin"]).arg(socket).arg(s.policy(policy)?).args([&member, "--work", "idle"]);
        let running = Running::spawn(s, command, None)?;
        let session = s.session_of(running.pid())?;
        Ok((running, session))
    };
    let (running, session) = begin(&only(&member))?;
    let start = s.wait_evidence("the start", |r| r["type"] == "session-start" && r["session"] == session)?;
    let taken = &start["taken"];
    ensure!(taken["no_new_privs"] == true && taken["kept"] == serde_json::json!([]), "{start}");
    ensure!(taken["calls"].as_array().is_some_and(|calls| calls.iter().any(|call| call == "mount")), "{start}");
    let end = s.session_ended(&session, "violation")?;
    ensure!(end["members_left"] == 0, "{end}");
    running.wait()?.ended(137)?;
    let about = |r: &serde_json::Value| r["message"].as_str().is_some_and(|why| why.contains(&session));
    let refused = s.wait_evidence("what was kept", |r| r["type"] == "refused" && about(r))?;
    ensure!(refused["message"].to_string().contains("did not give up"), "{refused}");
    // where nothing is to be laid down
    let (running, session) = begin(&only(&member).kind("breakglass"))?;
    s.wait_evidence("the command", |r| r["type"] == "exec" && r["session"] == session)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    drop(running);
    Ok(())
}
