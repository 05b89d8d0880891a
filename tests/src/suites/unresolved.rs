//! What cannot be resolved is denied, and says why.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
};

use super::{
    exec::{spawn_script, write_script},
    privileges::tried,
    scene::{attempt, only, refusal, refused_exec},
};
use crate::harness::{mounts::Mounted, prelude::*};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("unresolved::too-deep", WHEREVER, too_deep),
    Test::sharing("unresolved::place-longer-than-any-path", WHEREVER, too_long),
    Test::sharing("unresolved::script-with-subcommands", WHEREVER, worded_script),
];

/// Directories above a program that are looked at.
const DEPTH: usize = 48;

/// A program below more directories than are looked at, and one below just as many.
fn too_deep(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, disk) = (s.program("member")?, s.folder().join("deep"));
    fs::create_dir(&disk)?;
    let mut mounts = Mounted::default();
    // a file system of its own, whose root is the topmost of them
    mounts.add(("tmpfs", Some("tmpfs")), &disk, None)?;
    let disk = disk.display().to_string();
    let place = |above: usize| format!("{disk}/{}", vec!["d"; above - 1].join("/"));
    fs::create_dir_all(place(DEPTH + 1))?;
    let [near, deep] = [place(DEPTH), place(DEPTH + 1)].map(|folder| format!("{folder}/tool"));
    for path in [&near, &deep] {
        fs::copy("/proc/self/exe", path)?;
    }
    let policy = only(&member).allow_dir("disk", &disk);
    attempt(s, &policy, &member, "spawn", &deep)?.was_refused(s, "unresolved")?;
    attempt(s, &policy, &member, "spawn", &near)?.ran(s, "disk")?;
    // a rule on the program itself takes nothing from one on a directory that may be above it, in no kind
    let named = policy.clone().allow("named", &deep);
    attempt(s, &named, &member, "spawn", &deep)?.was_refused(s, "unresolved")?;
    let open = Policy::new().kind("operator").deny_dir("closed", &disk);
    attempt(s, &open, &member, "spawn", &deep)?.was_refused(s, "unresolved")?;
    // what denies it is told; where no rule names a directory it need not be looked for
    attempt(s, &named.clone().deny("not", &deep), &member, "spawn", &deep)?.was_refused(s, "not")?;
    let closed = named.clone().deny_dir("closed", place(DEPTH));
    attempt(s, &closed, &member, "spawn", &deep)?.was_refused(s, "closed")?;
    attempt(s, &only(&member).allow("named", &deep), &member, "spawn", &deep)?.ran(s, "named")?;
    // as a command: refused before anything starts, with the reason
    let mark = s.file("mark");
    let told = s.run(&s.policy(&named)?, &deep, &format!("mark {mark}"))?.wait()?;
    told.ended(125)?.complained(&["tipstaff: ", &deep, "more than 48 directories stand above it"])?;
    ensure!(!Path::new(&mark).exists(), "the refused command ran");
    Ok(())
}

/// A program whose place no path can name: 30 directories of 200 bytes each. It is judged by what it is and by what stands
/// above it.
fn too_long(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, top, name) = (s.program("member")?, s.folder().join("long"), "d".repeat(200));
    fs::create_dir(&top)?;
    let mut at: OwnedFd = fs::File::open(&top)?.into();
    for _ in 0..30 {
        mkdirat(&at, name.as_str(), Mode::S_IRWXU)?;
        at = openat(&at, name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    }
    let here = format!("/proc/self/fd/{}", at.as_raw_fd());
    let place = fs::read_link(&here).map_err(|error| error.raw_os_error());
    ensure!(place == Err(Some(libc::ENAMETOOLONG)), "its place is {place:?}");
    fs::copy("/proc/self/exe", format!("{here}/tool"))?;
    let (folder, open) = (only(&member).allow_dir("top", top.display()), Policy::new().kind("operator"));
    for (policy, answer, verdict, rule) in [
        (&folder, "exit 0", "allow", "top"),
        (&only(&member), refused_exec(s), refusal(s), "default"),
        (&open, "exit 0", "allow", "default"),
        (&open.clone().deny_dir("closed", top.display()), refused_exec(s), refusal(s), "closed"),
    ] {
        let mark = s.file("mark");
        let line = format!("below {} 1 below {name} 30 spawn ./tool --work mark {mark}", top.display());
        let (said, session) = tried(s, policy, &member, &line)?;
        said.said(answer).context(rule)?;
        ensure!(Path::new(&mark).exists() == (answer == "exit 0"), "{answer} by {rule}, but the mark says otherwise");
        s.saw_exec(&session, "./tool", verdict, rule)?;
    }
    Ok(())
}

/// A script of which a rule asks for first arguments: they are seen of its interpreter alone.
fn worded_script(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let (script, mark) = (format!("{}/script", s.bin()), s.file("mark"));
    write_script(&script, &interpreter, &mark)?;
    let words = format!("{{ path: \"{script}\", subcommands: [status], id: words }}");
    let worded = only(&member).exec_rule("allow", &words);
    let both = worded.clone().allow("interpreter", &interpreter);
    let (said, ran, session) = spawn_script(s, &both, &member, &script, &mark)?;
    if s.tier == Tier::Full {
        ensure!(said == refused_exec(s) && !ran, "a script whose rule has words: {said}, ran: {ran}");
        s.saw_exec(&session, &script, refusal(s), "unresolved")?;
        let told = s.run(&s.policy(&both)?, &script, "")?.wait()?;
        told.ended(125)?.complained(&["tipstaff: ", &script, "leave out the subcommands of its rules"])?;
        ensure!(!fs::exists(&mark)?, "the refused command ran");
    } else {
        // the script is not seen, and its rule does not matter
        ensure!(said == "exit 0" && ran, "an interpreter in scope: {said}, ran: {ran}");
        s.saw_exec(&session, &script, "allow", "interpreter")?;
        fs::remove_file(&mark)?;
        let (said, ran, session) = spawn_script(s, &worded, &member, &script, &mark)?;
        ensure!(said == refused_exec(s) && !ran, "an interpreter out of scope: {said}, ran: {ran}");
        s.saw_exec(&session, &script, refusal(s), "default")?;
    }
    // without words it is a script as any other
    let plain = only(&member).allow("interpreter", &interpreter).allow("script", &script);
    let (said, ran, session) = spawn_script(s, &plain, &member, &script, &mark)?;
    ensure!(said == "exit 0" && ran, "a script in scope: {said}, ran: {ran}");
    s.saw_exec(&session, &script, "allow", "interpreter").map(drop)
}
