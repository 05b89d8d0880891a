//! A workload that runs becomes a session's: all of it, with what it holds, or nothing.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    scene::{Fifo, only, refusal, refused_exec, report},
    sockets::FAMILIES,
};
use crate::harness::{
    bpf::{Map, pidfd},
    launch::bare,
    prelude::*,
    sandbox::OPERATORS,
    server::Server,
    wait::{all_gone, gone, in_guest},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("attach::tree-to-a-fixed-point", WHEREVER, tree),
    Test::sharing("attach::what-it-holds", WHEREVER, holds),
    Test::sharing("attach::what-a-child-holds-elsewhere", WHEREVER, elsewhere),
    Test::sharing("attach::what-is-kept-is-judged", WHEREVER, kept),
    Test::sharing("attach::refused", WHEREVER, refusals),
    Test::sharing("attach::host-is-refused", WHEREVER, host)
        .guests_only("names the root cgroup, process 1 and kernel threads"),
    Test::new("attach::failed-leaves-nothing", WHEREVER, failed),
    Test::new("attach::failed-midway-leaves-all-running", WHEREVER, failed_midway),
];

/// Starts a workload beside the sessions.
pub(crate) fn workload(s: &Sandbox, program: &str, line: &str) -> Result<Running> {
    let mut command = bare(program.as_ref());
    command.arg("--work").args(line.split_whitespace());
    Running::spawn(s, command, None)
}

pub(super) fn attach(s: &Sandbox, policy: &str, pid: u32) -> Result<Value> {
    attached(s, &["attach", "--policy", policy, "--pid", &pid.to_string()])
}

/// What the agent says that it attached. It gives what grows five seconds: where the machine stood still meanwhile, it is asked
/// again.
pub(super) fn attached(s: &Sandbox, words: &[&str]) -> Result<Value> {
    let told = until("what grows to be attached", patience(), || {
        let told = s.cli(&[words, &["-o", "json"]].concat())?;
        Ok((!told.stderr.contains("it still grows")).then_some(told))
    })?;
    ensure!(matches!(told.code, 0 | 4), "tipstaff {words:?}: {told:?}");
    Ok(serde_json::from_str(&told.stdout)?)
}

pub(super) fn session_of(attached: &Value) -> Result<String> {
    Ok(attached["session"].as_str().context("no session")?.to_owned())
}

/// The processes that descend from `pid`, and itself.
pub(super) fn family(pid: u32) -> Result<BTreeSet<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        parents.extend(parent(child).map(|parent| (parent, child)));
    }
    let mut found = BTreeSet::from([pid]);
    loop {
        let more: Vec<u32> = parents.iter().filter(|(parent, _)| found.contains(parent)).map(|(_, c)| *c).collect();
        let before = found.len();
        found.extend(more);
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// Page faults of the children that a process has waited for: more with each.
fn faults_of_children(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(8).find_map(|field| field.parse().ok()).unwrap_or(0)
}

/// Process and thread ids that a session lists.
pub(super) fn members(s: &Sandbox, session: &str) -> Result<BTreeSet<(u32, u32)>> {
    let inspected = s.json(&["inspect", session])?;
    let number = |m: &Value, key: &str| m[key].as_u64().and_then(|n| u32::try_from(n).ok());
    let list = inspected["members"].as_array().context("no members")?;
    Ok(list.iter().filter_map(|m| Some((number(m, "pid")?, number(m, "tid")?))).collect())
}

pub(super) fn threads_of(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// A tree that makes processes all the time, with threads and a child that were there before: each thread is a member,
/// each tries a program out of scope, and nothing of it is left at the end.
fn tree(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, bad) = (s.program("member")?, s.program("good")?, s.program("bad")?);
    let (open, closed) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
    let policy = only(&member).allow("good", &good).to("open", "127.0.0.1/32", open.port());
    let policy = s.policy(&policy)?;
    let marks = [s.file("mark"), s.file("mark"), s.file("mark")];
    let answers = [s.file("answers"), s.file("answers")];
    let (pid, stop) = (s.file("pid"), s.file("stop"));
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?, Fifo::new(s)?];
    let line = format!(
        "background report {} fifo {} spawn {bad} --work mark {} + background report {} thread fifo {} spawn {bad} --work mark {} \
         + background storm {stop} + background storm {stop} \
         + pid {pid} fifo {} spawn {bad} --work mark {} + spawn {good} --work nothing + connect tcp {} + connect tcp {} + idle",
        answers[0],
        fifos[0].path,
        marks[0],
        answers[1],
        fifos[1].path,
        marks[1],
        fifos[2].path,
        marks[2],
        closed.words(),
        open.words(),
    );
    let running = workload(s, &member, &line)?;
    s.pid_in(&pid)?;
    let threaded = || Ok(family(running.pid())?.into_iter().find(|pid| threads_of(*pid).len() == 2));
    let threaded = until("a process with two threads", patience(), threaded)?;
    let attached = attach(s, &policy, running.pid())?;
    let session = session_of(&attached)?;
    let (before, listed) = (family(running.pid())?, members(s, &session)?);
    for process in before.iter().filter(|pid| !gone(**pid)) {
        ensure!(listed.iter().any(|(pid, _)| pid == process) || gone(*process), "process {process} is no member");
    }
    for thread in threads_of(threaded) {
        ensure!(listed.contains(&(threaded, thread)), "thread {thread} of process {threaded} is no member");
    }
    ensure!(attached["threads"].as_u64() > attached["processes"].as_u64(), "threads are not counted: {attached}");
    let record = s.wait_evidence("the attachment", |r| r["type"] == "attached" && r["session"] == session)?;
    ensure!(record["history"] == "unknown" && record["by"]["uid"] == 0, "{record}");
    let start = s.wait_evidence("its start", |r| r["type"] == "session-start" && r["session"] == session)?;
    ensure!(start["context"]["pid"] == running.pid() && start["attached"]["home"].is_string(), "{start}");
    let inspected = s.json(&["inspect", &session])?;
    ensure!(inspected["context"]["attached"] == format!("process {}", running.pid()), "{}", inspected["context"]);
    fifos.iter_mut().try_for_each(Fifo::wake)?;
    for file in &answers {
        ensure!(report(file, 1)?[0] == refused_exec(s), "a program out of scope ran: {:?}", report(file, 1)?);
    }
    let expected = format!("{}\nexit 0\nerrno 1\nok\n", refused_exec(s));
    until("the first process to have tried all", patience(), || {
        Ok((running.said().len() >= expected.len()).then_some(()))
    })?;
    ensure!(running.said() == expected, "the first process said {:?}", running.said());
    for mark in &marks {
        ensure!(!fs::exists(mark)?, "a program out of scope left its mark");
    }
    closed.untouched()?;
    open.accepted(1)?;
    s.saw_exec(&session, &bad, refusal(s), "default")?;
    s.cli(&["end", &session])?.ended(0)?;
    let end = s.session_ended(&session, "operator")?;
    ensure!(end["members_left"] == 0, "members are left: {end}");
    all_gone(&before.into_iter().collect::<Vec<_>>())
}

/// What it holds is listed; a connection out of scope is destroyed and one in scope is kept, or none is, or all are.
fn holds(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let scope = |open: &Server, prefix: &str| only(&member).to("open", prefix, open.port()).listening();
    let (four, six) = (("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128"));
    let cases = [
        ("judge", four, [false, true]),
        ("judge", six, [false, true]),
        ("keep", six, [false; 2]),
        ("destroy", four, [true; 2]),
        ("destroy", six, [true; 2]),
    ];
    for (how, (address, prefix), gone) in cases {
        let (open, closed) = (Server::tcp(address)?, Server::tcp(address)?);
        let (pid, port, unix) = (s.file("pid"), s.file("port"), s.file("socket"));
        let line = format!(
            "open 1 tcp {} open 1 tcp {} listen {address} {port} unix {unix} pid {pid} idle",
            open.words(),
            closed.words()
        );
        let running = workload(s, &member, &line)?;
        s.pid_in(&pid)?;
        let policy = s.policy(&scope(&open, prefix).spec(format!("attach: {{ sockets: {how} }}")))?;
        let session = session_of(&attach(s, &policy, running.pid())?)?;
        let record = s.wait_evidence("the attachment", |r| r["type"] == "attached" && r["session"] == session)?;
        let to = |server: &Server| {
            let mut open = record["open"].as_array().into_iter().flatten();
            open.find(|socket| socket["to"] == server.address() && socket["pid"] == running.pid()).cloned()
        };
        let (good, bad) = (to(&open).context("no open")?, to(&closed).context("no closed")?);
        ensure!(good["destroyed"] == gone[0] && bad["destroyed"] == gone[1], "{how}: {record}");
        let listening = SocketAddr::new(address.parse()?, fs::read_to_string(&port)?.parse()?).to_string();
        let has = |list: &str, key: &str, value: &str| {
            record[list].as_array().into_iter().flatten().any(|socket| socket[key] == value)
        };
        ensure!(has("listening", "from", &listening), "{listening} is not listed: {record}");
        ensure!(has("unix", "name", &unix) && has("unix", "state", "connected"), "no unix sockets: {record}");
        let cut: Vec<Value> =
            s.records(&session, "flows-cut")?.into_iter().filter(|r| r["cause"] == "attach").collect();
        let receipts: Vec<&Value> = cut.iter().filter_map(|r| r["sockets"].as_array()).flatten().collect();
        let odd = receipts.iter().find(|r| r["outcome"] != "destroyed" || r["gone"] != true);
        ensure!(odd.is_none(), "{how}: {odd:?}");
        for (server, gone) in [(&open, gone[0]), (&closed, gone[1])] {
            let told = receipts.iter().filter(|r| r["to"] == server.address()).count();
            ensure!(told == usize::from(gone), "{how}: {} has the receipts {receipts:?}", server.address());
            server.reset(told)?;
        }
        let listener = receipts.iter().any(|r| r["from"] == listening);
        ensure!(listener == (how == "destroy") && receipts.len() <= 3, "{how}: {receipts:?}");
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator")?;
    }
    for (address, prefix) in [four, six] {
        let open = Server::tcp(address)?;
        let pid = s.file("pid");
        let running = workload(s, &member, &format!("open 1 tcp {} pid {pid} idle", open.words()))?;
        s.pid_in(&pid)?;
        let policy = s.policy(&scope(&open, prefix).spec("attach: { sockets: refuse }"))?;
        let refused = s.cli(&["attach", "--policy", &policy, "--pid", &running.pid().to_string()])?;
        refused.ended(3)?.complained(&["holds a tcp socket", &open.address(), "refuses that"])?;
        ensure!(!gone(running.pid()), "who was refused was ended");
    }
    Ok(())
}

/// Datagram sockets too, of a child of who was named, in a network namespace that it made: the one that is in scope is kept.
fn elsewhere(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")] {
        let (child, own) = (s.file("child"), s.file("own"));
        let open = |port: u16| format!("open 1 udp {address} {port}");
        let line =
            format!("background unshare net loopback {} {} pid {child} idle + pid {own} idle", open(1009), open(1010));
        let running = workload(s, &member, &line)?;
        s.pid_in(&own)?;
        let child = s.pid_in(&child)?;
        let policy = only(&member).to("open", prefix, 1009).spec("attach: { sockets: judge }");
        let session = session_of(&attach(s, &s.policy(&policy)?, running.pid())?)?;
        let record = s.wait_evidence("the attachment", |r| r["type"] == "attached" && r["session"] == session)?;
        let netns = fs::metadata(format!("/proc/{child}/ns/net"))?.ino();
        let receipts = s.records(&session, "flows-cut")?;
        let receipts: Vec<&Value> = receipts.iter().filter_map(|r| r["sockets"].as_array()).flatten().collect();
        for (port, gone) in [(1009, false), (1010, true)] {
            let to = SocketAddr::new(address.parse()?, port).to_string();
            let held = record["open"].as_array().into_iter().flatten().find(|socket| socket["to"] == to);
            let held = held.with_context(|| format!("no {to}: {record}"))?;
            let whose = held["pid"] == child && held["protocol"] == "udp" && held["netns"] == netns;
            ensure!(whose && held["destroyed"] == gone, "{held}");
            let cut = receipts.iter().filter(|r| r["to"] == to && r["outcome"] == "destroyed" && r["gone"] == true);
            ensure!(cut.count() == usize::from(gone), "{to}: {receipts:?}");
        }
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator")?;
    }
    Ok(())
}

/// A connection that went out before goes on where the rules let it, and nowhere else (tier full), though anybody may come
/// in; who came in before, or comes now to a listener from before, is answered.
fn kept(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    s.program("member")?;
    for (ip, prefix) in FAMILIES {
        kept_by(s, ip, prefix).with_context(|| format!("by {ip}"))?;
    }
    Ok(())
}

fn kept_by(s: &Sandbox, ip: &str, prefix: &str) -> Result<()> {
    let member = format!("{}/member", s.bin());
    let (open, closed) = (Server::tcp(ip)?, Server::tcp(ip)?);
    let (pids, answers) = ([s.file("pid"), s.file("pid"), s.file("pid")], [s.file("answers"), s.file("answers")]);
    let (port, said) = (s.file("port"), s.file("answers"));
    let mut fifos = [Fifo::new(s)?, Fifo::new(s)?, Fifo::new(s)?];
    let line = format!(
        "background pid {} report {} hold {} {} + background pid {} report {} hold {} {} \
         + background report {said} answer {ip} {port} {} + pid {} idle",
        pids[0],
        answers[0],
        open.words(),
        fifos[0].path,
        pids[1],
        answers[1],
        closed.words(),
        fifos[1].path,
        fifos[2].path,
        pids[2],
    );
    let running = workload(s, &member, &line)?;
    for file in &pids {
        s.pid_in(file)?;
    }
    let port = until("the member to listen", patience(), || {
        Ok(fs::read_to_string(&port).ok().and_then(|text| text.parse::<u16>().ok()))
    })?;
    let to = SocketAddr::new(ip.parse()?, port);
    let call = || TcpStream::connect_timeout(&to, patience());
    let mut before = call()?;
    until("both connections", patience(), || Ok((open.received() == b"a" && closed.received() == b"a").then_some(())))?;
    let policy = only(&member).to("open", prefix, open.port()).listening();
    let policy = s.policy(&policy.spec("attach: { sockets: keep }"))?;
    let session = session_of(&attach(s, &policy, running.pid())?)?;
    fifos.iter_mut().try_for_each(Fifo::wake)?;
    ensure!(report(&answers[0], 3)?[..3] == ["ok"; 3], "in scope: {:?}", report(&answers[0], 3)?);
    let out = if s.tier == Tier::Full { "errno 1" } else { "ok" };
    ensure!(report(&answers[1], 3)?[2] == out, "out of scope: {:?}", report(&answers[1], 3)?);
    before.set_read_timeout(Some(patience()))?;
    before.read_exact(&mut [0; 3]).context("who came in before is not answered")?;
    let mut now = call()?;
    now.set_read_timeout(Some(patience()))?;
    now.read_exact(&mut [0; 3]).context("who comes to a listener from before is not answered")?;
    ensure!(report(&said, 2)?[..2] == ["ok"; 2], "who came in: {:?}", report(&said, 2)?);
    if s.tier == Tier::Full {
        let crossed = |r: &Value| r["session"] == session && r["type"] == "socket" && r["rule"] == "crossed-socket";
        s.wait_evidence("the refusal", crossed)?;
        closed.reset(1)?;
        let cut = |r: &Value| r["session"] == session && r["type"] == "flows-cut" && r["cause"] == "crossed";
        let cut = s.wait_evidence("the end of that socket", cut)?;
        let receipts = cut["sockets"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(receipts.len() == 1 && receipts[0]["to"] == closed.address(), "{cut}");
        ensure!(closed.received() == b"a", "the server out of scope received {:?}", closed.received());
    }
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    Ok(())
}

/// Everything that is refused wherever it is asked, with its message; what was asked for goes on as before.
fn refusals(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let bad = s.program("bad")?;
    let policy = s.policy(&only(&member))?;
    let refuse = |target: &[&str], code: i32, parts: &[&str]| -> Result<()> {
        let words = [&["attach", "--policy", &policy], target].concat();
        let told = s.cli(&words)?;
        told.ended(code)?.complained(parts).map(drop).with_context(|| format!("{target:?}"))
    };
    let mut fifo = Fifo::new(s)?;
    let ready = s.file("pid");
    let line = format!("pid {ready} thread fifo {} spawn {bad} --work mark {mark}", fifo.path);
    let running = workload(s, &member, &line)?;
    s.pid_in(&ready)?;
    let pid = running.pid();
    let thread = until("a thread", patience(), || Ok(threads_of(pid).into_iter().find(|tid| *tid != pid)))?.to_string();
    let (pid, agent) = (pid.to_string(), s.agent_pid()?.to_string());
    let agents = s.part("agent").path().display().to_string();
    let above = s.part("agent").path().parent().context("no parent")?.display().to_string();
    let sessions = s.part("sessions").path().display().to_string();
    let nobody = s.part("elsewhere").path().display().to_string();
    refuse(&["--pid", "4000000"], 5, &["there is no process 4000000"])?;
    refuse(&["--pid", &thread], 3, &["is a thread of process", &pid])?;
    refuse(&["--pid", &agent], 3, &["is the agent itself"])?;
    refuse(&["--from-cgroup", &agents], 3, &["holds the agent"])?;
    refuse(&["--from-cgroup", &above], 3, &["holds Tipstaff's own"])?;
    refuse(&["--from-cgroup", &sessions], 3, &["holds Tipstaff's own"])?;
    refuse(&["--from-cgroup", &nobody], 3, &["no process is in cgroup"])?;
    refuse(&["--from-cgroup", "/no/such/cgroup"], 5, &["there is no cgroup /no/such/cgroup"])?;
    refuse(&["--pid", &pid, "--pid", &agent], 2, &["more than one"])?;
    refuse(&["--pid", &pid, "--ttl", "never"], 2, &["never"])?;
    refuse(&[], 2, &["--pid"])?;
    // the group may start sessions, and hold nobody else to them
    let other = s.cli_as(Some((1000, OPERATORS)), &["attach", "--policy", &policy, "--pid", &pid])?;
    other.ended(3)?.complained(&[&pid, "is not user 1000's alone", "let root attach it"])?;
    let session = s.run(&policy, &member, "idle")?;
    let id = session.session(s)?;
    refuse(&["--pid", &session.pid().to_string()], 3, &["is in session", &id, "already"])?;
    s.cli(&["end", &id])?.ended(0)?;
    s.session_ended(&id, "operator")?;
    ensure!(s.json(&["ps"])?["sessions"].as_array().is_some_and(Vec::is_empty), "something was attached");
    fifo.wake()?;
    running.wait()?.said("exit 0")?;
    ensure!(fs::exists(&mark)?, "who was refused is held to a policy");
    own_login(s, &member, &policy)
}

/// A caller that is in what it names, a process or a cgroup, has to name it twice.
fn own_login(s: &Sandbox, member: &str, policy: &str) -> Result<()> {
    let login = s.part("elsewhere").child("login")?;
    let login = login.path().display().to_string();
    for (times, answer, cgroup) in
        [(1, "exit 3", None), (2, "exit 0", None), (1, "exit 3", Some(&login)), (2, "exit 0", Some(&login))]
    {
        let tipstaff = s.tipstaff();
        let mut command = Command::new(member);
        command.env_clear().envs(tipstaff.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let program = tipstaff.get_program().to_string_lossy().into_owned();
        command.arg("--work").args(cgroup.iter().flat_map(|cgroup| ["cgroup", cgroup.as_str()]));
        command.args(["attach-itself", &times.to_string(), &program, policy]).args(cgroup);
        let finished = Running::spawn(s, command, None)?.wait()?;
        finished.said(answer)?;
        if times == 1 {
            finished.complained(&["this is your own login", "name it twice"])?;
        } else {
            let start = |r: &Value| r["type"] == "session-start" && r["context"]["pid"] == finished.pid;
            let session = s.wait_evidence("its session", start)?["session"].as_str().unwrap_or_default().to_owned();
            s.session_ended(&session, "completed")?;
        }
    }
    Ok(())
}

/// What the host stands on.
fn host(s: &mut Sandbox) -> Result<()> {
    ensure!(in_guest(), "not on a machine that others use");
    s.start()?;
    let policy = s.policy(&only(&s.program("member")?))?;
    let root = crate::harness::mounts::cgroup2()?.display().to_string();
    for (target, parts) in [
        (["--from-cgroup", root.as_str()], &["the root cgroup holds the whole host"][..]),
        (["--from-cgroup", "/"], &["the root cgroup"]),
        (["--pid", "1"], &["process 1"]),
        (["--pid", "2"], &["process 2 is a kernel thread"]),
    ] {
        let words = [&["attach", "--policy", &policy], &target[..]].concat();
        s.cli(&words)?.ended(3)?.complained(parts)?;
        let twice = [&words[..], &target[..]].concat();
        s.cli(&twice)?.ended(3)?.complained(parts)?;
    }
    ensure!(s.json(&["ps"])?["sessions"].as_array().is_some_and(Vec::is_empty), "something was attached");
    Ok(())
}

/// Where a thread cannot be labelled, nothing is attached: who was meant runs on as before, where it was.
fn failed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, bad, mark) = (s.program("member")?, s.program("bad")?, s.file("mark"));
    let policy = s.policy(&only(&member))?;
    let (mirror, labels) = (Map::of(s, "MIRROR")?, Map::of(s, "TASK_LABELS")?);
    let mut fifo = Fifo::new(s)?;
    let ready = s.file("pid");
    let running = workload(
        s,
        &member,
        &format!("background idle + pid {ready} fifo {} spawn {bad} --work mark {mark}", fifo.path),
    )?;
    s.pid_in(&ready)?;
    let place = || fs::read_to_string(format!("/proc/{}/cgroup", running.pid()));
    let (before, process) = (place()?, pidfd(running.pid())?);
    let keys: Vec<u64> = (1..=65_536).collect();
    let filled = mirror.fill(&keys)?;
    let words = ["attach", "--policy", &policy, "--pid", &running.pid().to_string()];
    let told = s.cli(&words);
    mirror.empty(&keys[..filled as usize])?;
    told?.ended(1)?.complained(&["nothing was attached", "no room"])?;
    ensure!(!labels.has(process.as_fd()), "a label was left");
    ensure!(place()? == before, "it was moved to {} from {before}", place()?);
    s.wait_evidence("the end of what was not attached", |r| {
        r["type"] == "session-end"
            && r["reason"] == "start-failed"
            && r["receipts"].as_array().is_some_and(Vec::is_empty)
    })?;
    let family: Vec<u32> = family(running.pid())?.into_iter().collect();
    ensure!(family.len() == 2 && family.iter().all(|pid| !gone(*pid)), "{family:?} are left");
    fifo.wake()?;
    until("the mark", patience(), || Ok(fs::exists(&mark)?.then_some(())))?;
    // and with room it is attached
    let again = workload(s, &member, "idle")?;
    let session = session_of(&attach(s, &policy, again.pid())?)?;
    ensure!(labels.has(pidfd(again.pid())?.as_fd()), "it has no label");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    kill_all(&family)
}

/// A tree that makes processes all the time, and room for labels for a part of it: all of it runs on, where it was, without
/// labels.
fn failed_midway(s: &mut Sandbox) -> Result<()> {
    const IDLE: usize = 24;
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let (stop, ready) = (s.file("stop"), s.file("pid"));
    // in a guest each takes the agent's processor from it
    let storms = if in_guest() { 1 } else { 2 };
    let line = format!(
        "{}{}pid {ready} idle",
        "background idle + ".repeat(IDLE),
        format!("background storm {stop} + ").repeat(storms)
    );
    let running = workload(s, &member, &line)?;
    s.pid_in(&ready)?;
    let (mirror, labels) = (Map::of(s, "MIRROR")?, Map::of(s, "TASK_LABELS")?);
    // who is there from the beginning: the others come and go
    let tree = family(running.pid())?;
    let lasting: Vec<u32> = tree.into_iter().filter(|pid| parent(*pid) == Some(running.pid())).collect();
    ensure!(lasting.len() == IDLE + storms, "{} processes are there from the beginning", lasting.len());
    let places = || -> Vec<String> {
        let place = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        lasting.iter().map(place).collect()
    };
    let before = places();
    let keys: Vec<u64> = (1..=65_536).collect();
    let filled = mirror.fill(&keys)? as usize;
    mirror.empty(&keys[..IDLE / 2])?;
    let told = s.cli(&["attach", "--policy", &policy, "--pid", &running.pid().to_string()]);
    mirror.empty(&keys[IDLE / 2..filled])?;
    told?.ended(1)?.complained(&["nothing was attached", "no room"])?;
    for pid in lasting.iter().chain([&running.pid()]) {
        ensure!(!gone(*pid), "process {pid} of what was not attached was ended");
        ensure!(!labels.has(pidfd(*pid)?.as_fd()), "process {pid} still has a label");
    }
    ensure!(places() == before, "moved from {before:?} to {:?}", places());
    let ended = |r: &Value| r["type"] == "session-end" && r["reason"] == "start-failed";
    let end = s.wait_evidence("the end of what was not attached", ended)?;
    ensure!(end["members_left"] == 0 && end["receipts"].as_array().is_some_and(Vec::is_empty), "{end}");
    // who is born and gone between two looks at /proc is in neither
    let made = || lasting.iter().map(|pid| faults_of_children(*pid)).sum::<u64>();
    let before = made();
    until("the tree to go on making processes", patience(), || Ok((made() != before).then_some(())))?;
    ensure!(s.part("sessions").processes().is_empty(), "{:?} are in a session", s.part("sessions").processes());
    // its twin: with room it is attached, and ends as a session does
    let attached = s.json(&["attach", "--policy", &policy, "--pid", &running.pid().to_string()])?;
    let session = session_of(&attached)?;
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    all_gone(&lasting)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Kills those that are there.
pub(super) fn kill_all(pids: &[u32]) -> Result<()> {
    for pid in pids.iter().filter(|pid| !gone(**pid)) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL);
    }
    Ok(())
}
