//! Two sessions of one ordinary user are apart in everything: what one is refused, loses or ends by is nothing to the other.

use std::{collections::BTreeSet, fs};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    attach::members,
    scene::{only, refused_exec, report, stamps},
};
use crate::harness::{
    launch::bare,
    prelude::*,
    sandbox::OPERATORS,
    server::Server,
    wait::{all_gone, boot_ns, gone},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("neighbours::of-one-user", WHEREVER, neighbours),
    Test::sharing("neighbours::looks", FULL, looks),
    Test::sharing("neighbours::an-operator-is-no-neighbours-master", FULL, operators),
];

/// Who both sessions are.
const USER: u32 = 64_011;

/// One of the two: a flow to a server that only it may reach and one to a server that both may, and a member that tries each
/// server and each of two programs whenever it is told to.
struct Neighbour {
    running: Running,
    session: String,
    own: Server,
    /// From where the flows come: that to its own server, and the other.
    flows: [String; 2],
    answers: String,
    rounds: [String; 3],
    made: usize,
}

impl Neighbour {
    /// What the member is told in the next round.
    fn next(&mut self) -> Result<Vec<String>> {
        const TRIES: usize = 5;
        fs::write(&self.rounds[self.made], "now")?;
        self.made += 1;
        Ok(report(&self.answers, self.made * TRIES)?.split_off((self.made - 1) * TRIES))
    }

    /// Its processes: the first, and one for each flow.
    fn processes(&self, s: &Sandbox) -> Result<Vec<u32>> {
        let all: BTreeSet<u32> = members(s, &self.session)?.into_iter().map(|(pid, _)| pid).collect();
        ensure!(all.len() == 3 && all.contains(&self.running.pid()), "its processes: {all:?}");
        Ok(all.into_iter().collect())
    }

    /// Of its sockets that were destroyed those that are of these flows: for which cause, where they led, and from where.
    fn cut(&self, s: &Sandbox, flows: &[String]) -> Result<BTreeSet<[String; 3]>> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut all = BTreeSet::new();
        for record in s.records(&self.session, "flows-cut")? {
            let sockets = record["sockets"].as_array().context("a record of no sockets")?;
            all.extend(sockets.iter().map(|r| [word(&record["cause"]), word(&r["to"]), word(&r["from"])]));
        }
        // a connection of its tries may be on its way to be closed
        all.retain(|[_, _, from]| flows.contains(from));
        Ok(all)
    }

    /// As [`Neighbour::cut`], where the flow that both servers have was cut for that cause, and the other at the end.
    fn expected(&self, shared: &Server, cause: &str) -> BTreeSet<[String; 3]> {
        let of = |cause: &str, server: &Server, from: &String| [cause.to_owned(), server.address(), from.clone()];
        [of("end", &self.own, &self.flows[0]), of(cause, shared, &self.flows[1])].into()
    }
}

/// Bytes that were made from now on arrive.
fn carries_on(server: &Server) -> Result<()> {
    let now = boot_ns()?;
    let later = || Ok(stamps(&server.received()).into_iter().any(|at| at > now).then_some(()));
    until(&format!("a flow to {} to go on", server.address()), patience(), later)
}

/// No bytes arrive that were made after `since`.
fn is_silent(server: &Server, since: u64) -> Result<()> {
    let last = stamps(&server.received()).into_iter().max().unwrap_or(0);
    ensure!(last <= since, "{} heard something {} ns after its flow was cut", server.address(), last - since);
    Ok(())
}

/// Starts both; the programs are the one that the first may run and the one that the second may.
fn both(s: &Sandbox, shared: &Server, member: &str, programs: &[String; 2]) -> Result<[Neighbour; 2]> {
    let servers = [Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?];
    let connects = servers.each_ref().map(|server| format!("connect tcp {}", server.words()));
    let spawns = programs.each_ref().map(|program| format!("spawn {program} --work nothing"));
    let tries = format!("{} + connect tcp {} + {}", connects.join(" + "), shared.words(), spawns.join(" + "));
    let mut made = Vec::new();
    for (own, program) in servers.into_iter().zip(programs) {
        let policy = only(member).allow("tool", program);
        let policy = policy.to("own", "127.0.0.1/32", own.port()).to("shared", "::1/128", shared.port());
        let (answers, pid, rounds) = (s.file("answers"), s.file("pid"), ["one", "two", "three"].map(|n| s.file(n)));
        let flows = [&own, shared].map(|server| format!("background flow {}", server.words())).join(" + ");
        let awaits = rounds.each_ref().map(|file| format!("await {file} {tries}")).join(" + ");
        let line = format!("{flows} + pid {pid} report {answers} {awaits} + idle");
        let running = s.launch(&s.policy(&policy)?, member, &line).user(USER, OPERATORS).start()?;
        let session = running.session(s)?;
        s.pid_in(&pid)?;
        own.accepted(1)?;
        shared.accepted(made.len() + 1)?;
        let known: Vec<&String> = made.iter().map(|other: &Neighbour| &other.flows[1]).collect();
        let [to_own, to_shared] = [&own, shared].map(Server::callers);
        let flows = [to_own.into_iter().next(), to_shared.into_iter().find(|from| !known.contains(&from))];
        let [Some(to_own), Some(to_shared)] = flows else { anyhow::bail!("a flow comes from nowhere") };
        let flows = [to_own, to_shared];
        made.push(Neighbour { running, session, own, flows, answers, rounds, made: 0 });
    }
    made.try_into().ok().context("two sessions")
}

/// The first is narrowed, then ended. Of the other no process, no flow and no rule is touched, and neither reaches or runs what
/// only the other may at any time.
fn neighbours(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, programs) = (s.program("member")?, [s.program("first")?, s.program("second")?]);
    let shared = Server::tcp("::1")?;
    let [mut first, mut second] = both(s, &shared, &member, &programs)?;
    for session in [&first.session, &second.session] {
        let uid = s.json(&["inspect", session])?["session"]["uid"].clone();
        ensure!(uid == USER, "session {session} is user {uid}'s");
    }
    let refused = refused_exec(s);
    let of_second = ["errno 1", "ok", "ok", refused, "exit 0"];
    ensure!(first.next()? == ["ok", "errno 1", "ok", "exit 0", refused], "the first, before");
    ensure!(second.next()? == of_second, "the second, before");
    let (ends, stays) = (first.processes(s)?, second.processes(s)?);
    ensure!(!ends.iter().any(|pid| stays.contains(pid)), "a process is in both sessions: {ends:?}, {stays:?}");

    s.cli(&["narrow", &first.session, "--remove", "shared"])?.ended(0)?;
    // of two flows to one server the one is cut
    shared.reset(1)?;
    for server in [&shared, &first.own, &second.own] {
        carries_on(server)?;
    }
    ensure!(first.next()? == ["ok", "errno 1", "errno 1", "exit 0", refused], "the first, narrowed");
    ensure!(second.next()? == of_second, "the second, when the first was narrowed");
    ensure!(first.processes(s)? == ends && second.processes(s)? == stays, "a process is gone by a narrower scope");

    s.cli(&["end", &first.session])?.ended(0)?;
    let ended = boot_ns()?;
    s.session_ended(&first.session, "operator")?;
    first.own.reset(1)?;
    all_gone(&ends)?;
    is_silent(&first.own, ended)?;
    for server in [&shared, &second.own] {
        carries_on(server)?;
    }
    ensure!(second.next()? == of_second, "the second, when the first was over");
    ensure!(second.processes(s)? == stays && !stays.iter().any(|pid| gone(*pid)), "of the second a process is gone");

    // what the receipts say: two flows of the first, each its own, and none of the second
    let flows = [&first.flows[..], &second.flows].concat();
    let cut = first.cut(s, &flows)?;
    ensure!(cut == first.expected(&shared, "narrow"), "of the first: {cut:?}");
    ensure!(second.cut(s, &flows)?.is_empty(), "of the second: {:?}", second.cut(s, &flows)?);
    s.cli(&["end", &second.session])?.ended(0)?;
    s.session_ended(&second.session, "operator")?;
    shared.reset(2)?;
    second.own.reset(1)?;
    all_gone(&stays)?;
    let cut = second.cut(s, &flows)?;
    ensure!(cut == second.expected(&shared, "end"), "of the second: {cut:?}");
    for neighbour in [first, second] {
        neighbour.running.wait()?.ended(128 + Signal::SIGKILL as i32)?;
    }
    Ok(())
}

/// What a user's processes have in their environment and memory is not seen from another session of the same user. What is in
/// no session is, and so are one's own; ps(1) fails nowhere.
fn looks(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let idle = s.launch(&s.policy(&only(&member))?, &member, "idle").user(USER, OPERATORS).start()?;
    let other = idle.session(s)?;
    let mut command = bare(member.as_ref());
    command.args(["--work", "idle"]);
    let outside = Running::spawn(s, command, Some((USER, OPERATORS)))?;
    let look = |policy: &Policy, at: &str| -> Result<(String, String)> {
        let line = ["environ", "maps", "stat"].map(|file| format!("own-file look /proc/{at}/{file}")).join(" + ");
        let running = s.launch(&s.policy(policy)?, &member, &line).user(USER, OPERATORS).start()?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        s.session_ended(&session, "completed")?;
        Ok((finished.stdout, session))
    };
    let ends = only(&member).spec("on: { violation: end }");
    let (said, session) = look(&ends, &idle.pid().to_string())?;
    ensure!(said == "errno 13\nerrno 13\nok", "at another session: {said}");
    let records = s.records(&session, "privilege")?;
    let fits = |r: &Value| {
        r["class"] == "ptrace" && r["verdict"] == "deny" && r["rule"] == "look" && r["target"] == idle.pid()
    };
    ensure!(records.len() == 2 && records.iter().all(fits), "recorded: {records:?}");
    for (policy, at) in [
        (ends.clone(), outside.pid().to_string()),
        (ends, "self".to_owned()),
        (only(&member).privileges("ptrace"), idle.pid().to_string()),
    ] {
        let (said, session) = look(&policy, &at)?;
        ensure!(said == "ok\nok\nok", "at {at}: {said}");
        ensure!(s.records(&session, "privilege")?.is_empty(), "a look that passes is recorded");
    }
    s.cli(&["end", &other])?.ended(0)?;
    s.session_ended(&other, "operator").map(drop)
}

/// In a session of `user`'s: what it said, and its records of classes, each as class, verdict, rule and target.
fn tried(
    s: &Sandbox,
    policy: &Policy,
    (member, user): (&str, u32),
    acts: &[String],
) -> Result<(Vec<String>, Vec<[Value; 4]>)> {
    let running = s.launch(&s.policy(policy)?, member, &acts.join(" + ")).user(user, OPERATORS).start()?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    s.session_ended(&session, "completed")?;
    let parts = |r: &Value| ["class", "verdict", "rule", "target"].map(|key| r[key].clone());
    let records = s.records(&session, "privilege")?.iter().map(parts).collect();
    Ok((finished.stdout.lines().map(str::to_owned).collect(), records))
}

/// The record of a signal, or what is as good as one, that was refused; none: nobody knows to whom.
fn denied(target: Option<u32>) -> [Value; 4] {
    ["signal".into(), "deny".into(), "privilege".into(), target.into()]
}

/// What a kind allows on processes outside it does not allow on members of another session: that takes a list, or breakglass.
fn operators(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let idle = s.launch(&s.policy(&only(&member))?, &member, "idle").user(USER, OPERATORS).start()?;
    let (other, pid) = (idle.session(s)?, idle.pid());
    let mut command = bare(member.as_ref());
    command.args(["--work", "idle"]);
    let outside = Running::spawn(s, command, Some((USER, OPERATORS)))?;
    let on = |pid: u32| {
        ["privilege signal PID", "act limit PID same", "act schedule PID same", "act nice PID", "act nice-disk PID"]
            .map(|act| act.replace("PID", &pid.to_string()))
    };
    let operator = || only(&member).kind("operator");
    let user = (member.as_str(), USER);
    let breakglass = only(&member).kind("breakglass");

    let (said, records) = tried(s, &operator(), user, &on(pid))?;
    ensure!(said == ["errno 1"; 5], "at a neighbour: {said:?}");
    ensure!(records == vec![denied(Some(pid)); 5], "at a neighbour: {records:?}");
    let (said, records) = tried(s, &operator(), user, &on(outside.pid()))?;
    ensure!(said == ["ok"; 5] && records.is_empty(), "at a process outside: {said:?}, {records:?}");
    for policy in [operator().privileges("signal"), only(&member).privileges("signal"), breakglass.clone()] {
        let (said, records) = tried(s, &policy, user, &on(pid))?;
        ensure!(said == ["ok"; 5] && records.is_empty(), "at a neighbour, listed: {said:?}, {records:?}");
    }
    // of the news of a file and of a terminal nobody knows whom they end
    let news = [format!("act owner {} fcntl 23", outside.pid()), "privilege hang-up".to_owned()];
    let (said, records) = tried(s, &operator(), (&member, 0), &news)?;
    ensure!(said == ["errno 1"; 2] && records == vec![denied(None); 2], "at anybody: {said:?}, {records:?}");
    // a look, and more than one: no class of an operator's
    let acts = [format!("own-file look /proc/{pid}/environ"), format!("privilege ptrace {pid}")];
    for (policy, answers) in [
        (operator(), ["errno 13", "errno 1"]),
        (operator().privileges("ptrace"), ["ok", "errno 14"]),
        (breakglass, ["ok", "errno 14"]),
    ] {
        let (said, records) = tried(s, &policy, user, &acts)?;
        ensure!(said == answers, "a look at a neighbour: {said:?}, {records:?}");
    }
    cgroups(s, &member, &other)?;
    narrower(s, &member)?;
    s.cli(&["end", &other])?.ended(0)?;
    s.session_ended(&other, "operator").map(drop)
}

/// The settings of a cgroup, which end and starve what is in it, are as its members.
fn cgroups(s: &Sandbox, member: &str, other: &str) -> Result<()> {
    let operator = only(member).kind("operator");
    let cell = s.part("elsewhere").child("operators")?;
    let acts = [s.part("sessions").path().join(other), cell.path().to_owned()]
        .map(|cgroup| [format!("act write {}/cgroup.max.depth max", cgroup.display())]);
    let listed = operator.clone().privileges("signal");
    for (policy, answers) in [(&operator, ["errno 1", "ok"]), (&listed, ["ok", "ok"])] {
        for (act, answer) in acts.iter().zip(answers) {
            let (said, records) = tried(s, policy, (member, 0), act)?;
            let expected = if answer == "ok" { Vec::new() } else { vec![denied(None)] };
            ensure!(said == [answer] && records == expected, "{act:?}: {said:?}, {records:?}");
        }
    }
    cell.remove()
}

/// A session that reaches no others does not come to it by narrowing.
fn narrower(s: &Sandbox, member: &str) -> Result<()> {
    let operator = only(member).kind("operator");
    let running = s.run(&s.policy(&operator)?, member, "idle")?;
    let session = running.session(s)?;
    let to =
        |classes: &str| s.cli(&["narrow", &session, "--policy", &s.policy(&operator.clone().privileges(classes))?]);
    to("signal")?.ended(3)?.complained(&["the privilege signal on other sessions"])?;
    to("mount")?.ended(0)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}
