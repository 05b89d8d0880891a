//! `tipstaff run`: the command is the caller's own in everything but its scope.

use std::{fs, fs::File, os::unix::fs::PermissionsExt, path::Path};

use super::scene::only;
use crate::harness::{
    launch::Launch,
    prelude::*,
    sandbox::{OPERATORS, READERS},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("run::exit-status-and-signals", WHEREVER, status),
    Test::sharing("run::input-output-environment-folder", WHEREVER, surroundings),
    Test::sharing("run::user-and-groups", WHEREVER, user),
    Test::sharing("run::no-descriptor-beyond-0-to-2", WHEREVER, descriptors),
    Test::sharing("run::no-such-command", WHEREVER, no_such_command),
    Test::sharing("run::many-at-once", WHEREVER, many),
];

fn status(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    for (line, code) in [("nothing", 0), ("status 3", 3), ("status 125", 125), ("raise 15", 143), ("raise 9", 137)] {
        let running = s.run(&policy, &member, line)?;
        let session = running.session(s)?;
        running.wait()?.ended(code).with_context(|| line.to_owned())?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

fn surroundings(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let input = s.fresh("input");
    fs::write(&input, "in and out\n")?;
    s.launch(&policy, &member, "cat").stdin(&input).start()?.wait()?.ended(0)?.said("in and out")?;
    let launch = s.launch(&policy, &member, "env COLOUR").variable("COLOUR", "blue and green");
    launch.start()?.wait()?.ended(0)?.said("blue and green")?;
    let folder = Path::new(s.folder()).join("work");
    let here = folder.display().to_string();
    s.launch(&policy, &member, "cwd").folder(&folder).start()?.wait()?.ended(0)?.said(&here)?;
    // a command without a slash is found as a shell finds it
    let words = ["member", "--work", "say", "found"].map(str::to_owned).to_vec();
    let launch = Launch::new(s, &policy, words).variable("PATH", &s.bin());
    launch.start()?.wait()?.ended(0)?.said("found")?;
    Ok(())
}

fn user(s: &mut Sandbox) -> Result<()> {
    const UID: u32 = 1000;
    s.start()?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let policy = s.policy(&only(&member))?;
    // who is in no group may start nothing, and who may read may not start
    for group in [UID, READERS] {
        let refused = s.launch(&policy, &member, &format!("mark {mark}")).user(UID, group).start()?;
        refused.wait()?.ended(125)?.complained(&["tipstaff: "])?;
        ensure!(!fs::exists(&mark)?, "a user of group {group} started a session");
    }
    let running = s.launch(&policy, &member, "ids").user(UID, OPERATORS).start()?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?.said(&format!("{UID} {OPERATORS} {OPERATORS}"))?;
    let start = s.records(&session, "session-start")?.remove(0);
    let principal = &start["principal"];
    ensure!(principal["uid"] == UID && principal["gid"] == OPERATORS, "the principal is {principal}");
    s.cli_as(Some((UID, READERS)), &["ps"])?.ended(0)?;
    s.cli_as(Some((UID, UID)), &["ps"])?.complained(&["tipstaff: "])?;
    Ok(())
}

fn descriptors(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let launch = s.launch(&policy, &member, "descriptors").extra(File::open("/proc/self/status")?);
    launch.start()?.wait()?.ended(0)?.said("0 1 2")?;
    Ok(())
}

fn no_such_command(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let policy = s.policy(&Policy::new().allow_dir("all", s.bin()))?;
    let missing = format!("{}/missing", s.bin());
    s.run(&policy, &missing, "nothing")?.wait()?.ended(127)?.complained(&["tipstaff: ", &missing])?;
    s.run(&policy, "missing-from-every-path", "nothing")?.wait()?.ended(127)?;
    let plain = s.program("plain")?;
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o644))?;
    s.run(&policy, &plain, "nothing")?.wait()?.ended(126)?.complained(&["tipstaff: ", &plain])?;
    let folder = s.bin();
    s.run(&policy, &folder, "nothing")?.wait()?.ended(126)?;
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o755))?;
    s.run(&policy, &plain, "say here")?.wait()?.ended(0)?.said("here")?;
    Ok(())
}

fn many(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let running = (0..12).map(|_| s.run(&policy, &member, "say one of many")).collect::<Result<Vec<_>>>()?;
    for run in running {
        let session = run.session(s)?;
        run.wait()?.ended(0)?.said("one of many")?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}
