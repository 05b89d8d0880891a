//! A cgroup whose processes become a session's, also those that are made meanwhile.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{
    attach::{attached, family, members, session_of, threads_of, workload},
    scene::{Fifo, only, refused_exec, report},
};
use crate::harness::{
    launch::{User, bare},
    prelude::*,
    sandbox::OPERATORS,
    wait::{all_gone, gone},
};

pub(super) const TESTS: &[Test] =
    &[Test::new("attach::cgroup", WHEREVER, cgroup), Test::sharing("attach::cgroup-of-two-users", WHEREVER, two_users)];

const USER: User = (64_010, OPERATORS);

/// What makes processes all the time in a cgroup, and has a thread more.
struct Crowd {
    running: Running,
    stop: String,
    wakes: Fifo,
    answers: String,
    mark: String,
    threaded: u32,
}

impl Crowd {
    /// Its other thread tries `bad` when it is woken.
    fn new(s: &Sandbox, member: &str, place: &str, bad: &str) -> Result<Self> {
        let (stop, ready, answers, wakes) = (s.file("stop"), s.file("pid"), s.file("answers"), Fifo::new(s)?);
        let mark = s.file("mark");
        let line = format!(
            "cgroup {place} background storm {stop} + background storm {stop} \
             + background report {answers} thread fifo {} spawn {bad} --work mark {mark} + pid {ready} await {stop} nothing",
            wakes.path
        );
        let running = workload(s, member, &line)?;
        s.pid_in(&ready)?;
        let threaded = || Ok(family(running.pid())?.into_iter().find(|pid| threads_of(*pid).len() == 2));
        let threaded = until("a process with two threads", patience(), threaded)?;
        Ok(Self { running, stop, wakes, answers, mark, threaded })
    }

    fn threads(&self) -> Result<BTreeSet<(u32, u32)>> {
        let threads = |pid: u32| threads_of(pid).into_iter().map(move |tid| (pid, tid));
        Ok(family(self.running.pid())?.into_iter().flat_map(threads).collect())
    }

    /// Each of its threads is a member, of those that are there before it is asked and after, and so is who is born.
    fn is_in(&self, s: &Sandbox, session: &str) -> Result<()> {
        let (before, listed) = (self.threads()?, members(s, session)?);
        let stayed = self.threads()?;
        for thread in before.intersection(&stayed) {
            // one that has ended and waits to be reaped is there, and no member
            ensure!(
                listed.contains(thread) || gone(thread.0),
                "thread {thread:?} of {before:?} is no member: {listed:?}"
            );
        }
        let lasting = before.iter().filter(|(pid, _)| *pid == self.threaded).count();
        ensure!(lasting == 2 && listed.len() > 4, "{listed:?} are members, of {before:?}");
        let own: Vec<u32> = before.into_iter().map(|(pid, _)| pid).collect();
        let born = |r: &Value| r["type"] == "fork" && r["session"] == session && own.iter().any(|pid| r["pid"] == *pid);
        s.wait_evidence("a birth", born).map(drop)
    }

    /// Its thread is refused the program, and it ends by itself.
    fn ends(mut self, s: &Sandbox) -> Result<()> {
        self.wakes.wake()?;
        ensure!(report(&self.answers, 1)?[0] == refused_exec(s), "{:?}", report(&self.answers, 1)?);
        ensure!(!fs::exists(&self.mark)?, "a thread ran a program out of scope");
        let lasting = family(self.running.pid())?.into_iter().collect::<Vec<_>>();
        fs::write(&self.stop, "")?;
        self.running.wait()?.ended(0)?;
        all_gone(&lasting)
    }
}

/// What runs in a cgroup and below it, also what makes processes meanwhile, thread by thread; the session goes on with what
/// is left, with another agent too.
fn cgroup(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let (place, nested) = (s.part("elsewhere"), s.part("elsewhere").child("nested")?);
    let mark = s.file("mark");
    let fifos = [Fifo::new(s)?, Fifo::new(s)?, Fifo::new(s)?];
    let line = format!("fifo {} spawn {bad} --work mark {mark} + spawn {good} --work nothing", fifos[0].path);
    let first = workload(s, &member, &line)?;
    let second = workload(s, &member, &format!("fifo {} spawn {bad} --work mark {mark}", fifos[1].path))?;
    let bystander = workload(s, &member, &format!("fifo {} spawn {bad} --work nothing", fifos[2].path))?;
    place.take(first.pid())?;
    nested.take(second.pid())?;
    let crowd = Crowd::new(s, &member, &nested.path().display().to_string(), &bad)?;
    let path = place.path().display().to_string();
    let attached = attached(s, &["attach", "--policy", &policy, "--from-cgroup", &path])?;
    let session = session_of(&attached)?;
    let listed: BTreeSet<u32> = members(s, &session)?.into_iter().map(|(pid, _)| pid).collect();
    ensure!(listed.is_superset(&[first.pid(), second.pid()].into()), "{listed:?} are members");
    ensure!(!listed.contains(&bystander.pid()), "who is beside it is a member");
    until("nobody to stay behind", patience(), || Ok(place.processes().is_empty().then_some(())))?;
    crowd.is_in(s, &session)?;
    let inspected = s.json(&["inspect", &session])?;
    ensure!(inspected["context"]["attached"] == format!("cgroup {path}"), "{}", inspected["context"]);
    let [mut one, mut two, mut three] = fifos;
    three.wake()?;
    bystander.wait()?.said("exit 0")?;
    one.wake()?;
    first.wait()?.said(&format!("{}\nexit 0", refused_exec(s)))?;
    crowd.ends(s)?;
    s.kill_agent()?;
    s.start()?;
    let rows = s.json(&["ps"])?;
    ensure!(rows["sessions"][0]["id"] == session, "the session ended with its first process: {rows}");
    two.wake()?;
    second.wait()?.said(refused_exec(s))?;
    ensure!(!fs::exists(&mark)?, "a program out of scope ran");
    s.session_ended(&session, "completed")?;
    Ok(())
}

/// A user attaches a cgroup whose processes are its own; while there is another's in it, nothing is attached.
fn two_users(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let place = s.part("elsewhere").child("shared")?;
    let mut command = bare(member.as_ref());
    command.args(["--work", "idle"]);
    let own = Running::spawn(s, command, Some(USER))?;
    let other = workload(s, &member, "idle")?;
    [&own, &other].into_iter().try_for_each(|running| place.take(running.pid()))?;
    let path = place.path().display().to_string();
    let words = ["attach", "--policy", &policy, "--from-cgroup", &path];
    let whose = format!("process {} is not user {}'s alone", other.pid(), USER.0);
    s.cli_as(Some(USER), &words)?.ended(3)?.complained(&[&whose, "let root attach it"])?;
    ensure!(s.json(&["ps"])?["sessions"].as_array().is_some_and(Vec::is_empty), "something was attached");
    let inside: BTreeSet<u32> = place.processes().into_iter().collect();
    ensure!(inside == [own.pid(), other.pid()].into(), "{inside:?} are where both were");
    ensure!(!gone(own.pid()) && !gone(other.pid()), "who was refused was ended");
    // its twin: the other is gone
    let theirs = other.pid();
    drop(other);
    all_gone(&[theirs])?;
    let told = s.cli_as(Some(USER), &[&words[..], &["-o", "json"]].concat())?;
    ensure!(matches!(told.code, 0 | 4), "{told:?}");
    let session = session_of(&serde_json::from_str(&told.stdout)?)?;
    ensure!(members(s, &session)? == [(own.pid(), own.pid())].into(), "{:?} are members", members(s, &session)?);
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    all_gone(&[own.pid()])
}
