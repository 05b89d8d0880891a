//! Below a directory that was renamed a program is not the one that the path of its rule leads to, whether or not an agent looks.

use std::{fs, path::Path};

use nix::sys::signal::Signal;

use super::{
    programs::{TRIES, Tries},
    scene::{only, refusal, refused_exec},
};
use crate::harness::{
    mounts::{Mounted, root_is_a_mount},
    prelude::*,
};

pub(super) const TESTS: &[Test] = &[Test::new("names::below-a-directory-that-was-renamed", WHEREVER, renamed)];

/// Whether a program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Runs,
    Refused,
    Absent,
}
use Fate::{Absent, Refused, Runs};

/// What is renamed, and to what.
const MOVES: [(&str, &str); 4] = [("house", "was"), ("pair", "pear"), ("barn/box", "barn/crate"), ("vault", "safe")];

/// Programs; what becomes of them before, while [`MOVES`] are done, and then once an agent looked: what their rules' paths lead to is
/// nothing then.
const CASES: [(&str, Fate, Fate, Fate); 12] = [
    ("house/tool", Runs, Absent, Absent),
    ("house/picky", Runs, Absent, Absent),
    ("was/tool", Absent, Refused, Refused),
    ("was/picky", Absent, Refused, Refused),
    // a file of two names
    ("pair/tool", Runs, Absent, Absent),
    ("pear/tool", Absent, Runs, Refused),
    ("other/alias", Runs, Runs, Refused),
    // what a directory allows, whatever its first argument
    ("barn/box/tool", Runs, Absent, Absent),
    ("barn/box/choosy", Runs, Absent, Absent),
    ("barn/crate/tool", Absent, Runs, Runs),
    ("barn/crate/choosy", Absent, Runs, Runs),
    // in a folder that is mounted elsewhere: its path leads where it led
    ("shown/tool", Runs, Runs, Runs),
];

/// The files, and a folder of them that is mounted.
fn make(s: &Sandbox, place: &dyn Fn(&str) -> String) -> Result<Mounted> {
    for name in ["house/tool", "house/picky", "pair/tool", "barn/box/tool", "barn/box/choosy", "vault/shelf/tool"] {
        s.program(name)?;
    }
    for name in ["other", "shown"] {
        fs::create_dir(place(name))?;
    }
    fs::hard_link(place("pair/tool"), place("other/alias"))?;
    let mut mounts = Mounted::default();
    mounts.add((&place("vault/shelf"), None), Path::new(&place("shown")), None)?;
    Ok(mounts)
}

fn policy(member: &str, place: &dyn Fn(&str) -> String) -> Policy {
    let word =
        |name: &str, word: &str, id: &str| format!("{{ path: \"{}\", subcommands: [{word}], id: {id} }}", place(name));
    only(member)
        .allow("tool", place("house/tool"))
        .allow("picky", place("house/picky"))
        .exec_rule("deny", &word("house/picky", "other", "no-other"))
        .allow("pair", place("pair/tool"))
        .allow("box", place("barn/box/tool"))
        .exec_rule("allow", &word("barn/box/choosy", "--work", "choosy"))
        .allow_dir("barn", place("barn"))
        .allow("shown", place("shown/tool"))
}

/// With the agent stopped and dead; where the directory is renamed back the program is its rule's again.
fn renamed(s: &mut Sandbox) -> Result<()> {
    // only below a mount that it sees whole the agent holds files to where they stand
    root_is_a_mount()?;
    s.start()?;
    let (member, bin) = (s.program("member")?, s.bin());
    let place = |name: &str| format!("{bin}/{name}");
    let mounts = make(s, &place)?;
    let tries = vec![CASES.map(|case| place(case.0)).to_vec(); TRIES as usize];
    let mut run = Tries::new(s, &s.policy(&policy(&member, &place))?, &member, &tries, None)?;
    let refused = refused_exec(s);
    let answer = |fate: Fate| match fate {
        Runs => "exit 0",
        Refused => refused,
        Absent => "errno 2",
    };
    let all = |fates: [Fate; 12]| fates.map(answer).join("\n");
    let (before, after, looked) =
        (all(CASES.map(|case| case.1)), all(CASES.map(|case| case.2)), all(CASES.map(|case| case.3)));
    let forth = || MOVES.iter().try_for_each(|(from, to)| fs::rename(place(from), place(to)));
    let back = || MOVES.iter().try_for_each(|(from, to)| fs::rename(place(to), place(from)));
    let mut said = vec![run.next(CASES.len())?];
    s.signal_agent(Signal::SIGSTOP)?;
    let mut stopped = || -> Result<()> {
        forth()?;
        said.push(run.next(CASES.len())?);
        back()?;
        said.push(run.next(CASES.len())?);
        Ok(())
    };
    let done = stopped();
    s.signal_agent(Signal::SIGCONT)?;
    done?;
    s.kill_agent()?;
    forth()?;
    said.push(run.next(CASES.len())?);
    ensure!(said == [&before, &after, &before, &after].map(String::as_str), "stopped, and without an agent: {said:?}");
    s.start()?;
    until("the next agent to have looked", patience(), || {
        std::thread::sleep(patience() / TRIES);
        Ok((run.next(CASES.len())? == looked).then_some(()))
    })?;
    let session = run.session().to_owned();
    for name in ["was/tool", "was/picky"] {
        let moved =
            |r: &serde_json::Value| r["session"] == session && r["path"] == place(name) && r["rule"] == "changed";
        s.wait_evidence("the refusal of what moved", |r| moved(r) && r["verdict"] == refusal(s))?;
    }
    s.saw_exec(&session, &place("house/tool"), "allow", "tool")?;
    run.stop(s)?;
    drop(mounts);
    Ok(())
}
