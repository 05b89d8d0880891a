//! Labels and their mirror where the kernel has no room for them, or what it has of them is of before: of a member whose
//! exit nobody saw, or whose number was written late.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::{
    attach::{members, workload},
    privileges::tried,
    scene::{Fifo, only, refusal, refused_exec, report},
};
use crate::harness::{
    bpf::{Map, find},
    cgroup::Cgroup,
    launch::Finished,
    mounts,
    prelude::*,
    server::Server,
    wait::all_gone,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("faults::number-that-was-written-late", WHEREVER, late),
    Test::new("faults::exit-not-seen", WHEREVER, unseen_exit).since((5, 5), "clone3 with a process id"),
    Test::new("faults::label-without-memory", WHEREVER, no_memory)
        .since((6, 4), "memory of labels that is refused")
        .guests_only("has the kernel account for the memory of cgroups"),
];

/// The mirror has an earlier number of a member's exec, as where a move wrote it during the exec: programs on addresses, which
/// know the mirror alone, take its program for one that nobody saw, until the clock or the member's next child.
fn late(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, server) = (s.program("member")?, Server::tcp("127.0.0.1")?);
    let (spins, calls, mut fifo) = (s.file("pid"), s.file("pid"), Fifo::new(s)?);
    let connect = format!("connect tcp {}", server.words());
    let line = format!(
        "background pid {spins} spin + pid {calls} fifo {} {connect} + fork nothing + {connect} + idle",
        fifo.path
    );
    let policy = s.policy(&only(&member).to("server", "127.0.0.1/32", server.port()))?;
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    let (spins, calls, mirror) = (s.pid_in(&spins)?, s.pid_in(&calls)?, Map::of(s, "MIRROR")?);
    let number = |pid: u32| mirror.word_where_last_is(pid).with_context(|| format!("{pid} is not in the mirror"));
    let right = [number(spins)?, number(calls)?];
    for (pid, right) in [spins, calls].into_iter().zip(right) {
        mirror.set_word_where_last_is(pid, right - 1)?;
    }
    until("the clock to have written it", patience(), || Ok((number(spins)? == right[0]).then_some(())))?;
    fifo.wake()?;
    let said = until("the member to have tried all", patience(), || {
        let said = running.said();
        Ok((said.lines().count() == 3).then_some(said))
    })?;
    // the clock can come before its first try
    ensure!(["errno 1\nexit 0\nok\n", "ok\nexit 0\nok\n"].contains(&said.as_str()), "it was answered {said:?}");
    ensure!(number(calls)? == right[1], "its child did not write it");
    if said.starts_with("errno") {
        let unseen = |r: &serde_json::Value| r["session"] == session && r["rule"] == "unseen-program";
        s.wait_evidence("the refusal", unseen)?;
    }
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}

/// Members whose exits nobody saw leave their entries in the mirror. Who is given such a number, in the same place in memory
/// as well where the kernel has it so, is nobody's.
fn unseen_exit(s: &mut Sandbox) -> Result<()> {
    const TIMES: usize = 12;
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let policy = only(&member).allow("good", &good);
    fs::remove_file(find(s.pins(), "link_exit").context("link_exit is not pinned")?)?;
    // the kernel takes it off when it comes to it
    until("the program to be away", patience(), || {
        let (_, session) = tried(s, &policy, &member, &format!("spawn {good} --work nothing"))?;
        Ok(s.records(&session, "exit")?.is_empty().then_some(()))
    })?;
    let numbers: Vec<String> = (0..TIMES).map(|_| s.file("pid")).collect();
    let marks: Vec<String> = (0..TIMES).map(|_| s.file("mark")).collect();
    let dies = |n: usize| format!("spawn {good} --work pid {} nothing + await {}", numbers[n], marks[n]);
    let lives = |n: usize| format!("await {0} numbered {0} exec {bad} --work mark {1}", numbers[n], marks[n]);
    let line = (0..TIMES).map(dies).collect::<Vec<_>>().join(" ");
    let running =
        s.run(&s.policy(&policy)?, &member, &format!("{line} nothing + spawn {bad} --work nothing + idle"))?;
    let session = running.session(s)?;
    let outsider = workload(s, &member, &(0..TIMES).map(lives).collect::<Vec<_>>().join(" + "))?;
    outsider.wait_for(2 * patience())?.said(&["exit 0"; TIMES].join("\n"))?;
    let expected = format!("{}{}\n", "exit 0\n".repeat(TIMES), refused_exec(s));
    until("the member to have tried all", patience(), || Ok((running.said() == expected).then_some(())))?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    // what the member's own children wrote their entries over is gone; of the others, some go with births elsewhere
    let numbers = numbers.iter().map(|file| s.pid_in(file)).collect::<Result<Vec<_>>>()?;
    let mirror = Map::of(s, "MIRROR")?;
    let left = || numbers.iter().filter(|number| mirror.word_where_last_is(**number).is_some()).count();
    let (before, stop) = (left(), s.file("stop"));
    // so many at a time that no free place among the kernel's is left out
    let births = workload(s, &member, &format!("throngs {stop} 200"))?;
    until("births in their places", patience(), || Ok((before == 0 || left() < before).then_some(())))?;
    fs::write(&stop, "")?;
    births.wait()?.ended(0)?;
    let about = s.evidence()?.into_iter().filter(|r| r["path"] == bad).count();
    ensure!(about == 1, "{about} records about what is out of scope: one is the member's own");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}

/// The account of the memory that the agent's cgroup uses, its maps' too.
struct Account {
    own: Cgroup,
    above: [PathBuf; 2],
}

impl Account {
    /// Has the kernel account for it, before an agent runs there.
    fn open(s: &Sandbox) -> Result<Self> {
        let own = s.part("agent");
        let parent = own.path().parent().context("no parent")?.to_owned();
        let above = [mounts::cgroup2()?, parent];
        for place in &above {
            fs::write(place.join("cgroup.subtree_control"), "+memory").context("accounting for memory")?;
        }
        Ok(Self { own, above })
    }

    /// Who is there goes to `place`, because it would get none; what it made stays on the account, and nothing is added.
    fn close(&self, place: &Cgroup) -> Result<()> {
        self.own.processes().into_iter().try_for_each(|pid| place.take(pid))?;
        fs::write(self.own.path().join("memory.max"), "0").context("the limit")
    }

    /// As before.
    fn open_again(&self, place: &Cgroup) -> Result<()> {
        fs::write(self.own.path().join("memory.max"), "max").context("the limit")?;
        place.processes().into_iter().try_for_each(|pid| self.own.take(pid))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for place in self.above.iter().rev() {
            // where it cannot be ended the guest accounts for it on
            let _ = fs::write(place.join("cgroup.subtree_control"), "-memory");
        }
    }
}

/// A member makes children until the kernel has no memory for a label: that fork fails, or (tier no-lsm) who made it is killed
/// and it too. Nobody is without a label, and with memory all is as before.
fn no_memory(s: &mut Sandbox) -> Result<()> {
    // the kernel keeps some in reserve for each processor
    const MOST: u32 = 1000;
    let account = Account::open(s)?;
    s.start()?;
    let (member, good, mut fifo) = (s.program("member")?, s.program("good")?, Fifo::new(s)?);
    // who makes them is there before: the first can be refused
    let (maker, answers) = (s.file("pid"), s.file("answers"));
    let line = format!("background report {answers} pid {maker} fifo {} crowd {MOST} + idle", fifo.path);
    let running = s.run(&s.policy(&only(&member).allow("good", &good))?, &member, &line)?;
    let (session, maker) = (running.session(s)?, s.pid_in(&maker)?);
    let place = s.part("elsewhere").child("agent")?;
    account.close(&place)?;
    fifo.wake()?;
    let held = refused_without_memory(s, &session, maker, &answers)
        .and_then(|()| hold_without_memory(s, &running, &session, &member));
    account.open_again(&place)?;
    place.remove()?;
    held?;
    let (bad, mark) = (s.program("bad")?, s.file("mark"));
    let line = format!("spawn {bad} --work mark {mark} + spawn {good} --work nothing");
    let expected = format!("{}\nexit 0", refused_exec(s));
    // the kernel fills its reserve up again when somebody has found it empty
    until("a fork with memory", 2 * patience(), || {
        let finished = comes_in(s, &session, &member, &line)?;
        Ok((finished.stdout == expected).then_some(()))
    })?;
    ensure!(!fs::exists(&mark)?, "a program out of scope ran");
    s.saw_exec(&session, &good, "allow", "good")?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    s.cli(&["end", &session])?.ended(0)?;
    let end = s.session_ended(&session, "operator")?;
    ensure!(end["members_left"] == 0 && end["faults"].as_u64() > Some(0), "{end}");
    Ok(())
}

/// The cgroup of a session.
fn home(s: &Sandbox, session: &str) -> Result<Cgroup> {
    let inspected = s.json(&["inspect", session])?;
    Ok(Cgroup::at(inspected["context"]["cgroup"].as_str().context("no cgroup")?.into()))
}

/// What becomes of a process that is moved into the session's cgroup, and then does `line`.
fn comes_in(s: &Sandbox, session: &str, member: &str, line: &str) -> Result<Finished> {
    let (pid, mut fifo) = (s.file("pid"), Fifo::new(s)?);
    let newcomer = workload(s, member, &format!("pid {pid} fifo {} {line}", fifo.path))?;
    s.pid_in(&pid)?;
    home(s, session)?.take(newcomer.pid())?;
    fifo.wake()?;
    newcomer.wait()
}

/// The maker is told so, or is gone.
fn refused_without_memory(s: &Sandbox, session: &str, maker: u32, answers: &str) -> Result<()> {
    let about = |r: &serde_json::Value| r["type"] == "fork" && r["session"] == session && r["rule"] == "unlabelled";
    let record = s.wait_evidence("the refusal", about)?;
    ensure!(record["pid"] == maker, "another was refused: {record}");
    if s.tier == Tier::Full {
        ensure!(record["verdict"] == "deny" && report(answers, 1)?[0] == "errno 1", "{record}");
        return Ok(());
    }
    ensure!(record["verdict"] == "kill", "{record}");
    all_gone(&[maker])
}

/// Whoever is there is a member, and who comes in is judged though no label has room.
fn hold_without_memory(s: &Sandbox, running: &Running, session: &str, member: &str) -> Result<()> {
    let full = s.tier == Tier::Full;
    // without BPF LSM the child is there until the agent has killed it
    let cgroup = home(s, session)?;
    let all = until("each to be a member", patience(), || {
        let listed: BTreeSet<u32> = members(s, session)?.into_iter().map(|(pid, _)| pid).collect();
        Ok((cgroup.processes().into_iter().collect::<BTreeSet<u32>>() == listed).then_some(listed))
    })?;
    ensure!(all.contains(&running.pid()), "the first process is no member: {all:?}");
    let (worse, mark) = (s.program("worse")?, s.file("mark"));
    let finished = comes_in(s, session, member, &format!("exec {worse} --work mark {mark}"))?;
    finished.ended(if full { 0 } else { 137 })?.said(if full { "errno 1" } else { "" })?;
    ensure!(!fs::exists(&mark)?, "who came in ran a program out of scope");
    s.saw_exec(session, &worse, refusal(s), "default").map(drop)
}
