//! What a new agent makes of what it finds: sessions in every state that they can be in, and what is of an earlier boot.

use std::{fs, os::unix::process::CommandExt as _, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    badinput::own_mounts,
    control::{freeze_still, grows, stands_still},
    scene::{Fifo, SmallDisk, Wall, bulky, only, report},
    scope::resolver,
};
use crate::harness::{
    mounts,
    prelude::*,
    server::Server,
    wait::{all_gone, gone, in_guest, state_of},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("adopt::every-state-goes-on", WHEREVER, states).lasting(60).agents_own(),
    Test::new("adopt::narrowed-stays-narrow", WHEREVER, narrowed).agents_own(),
    Test::new("adopt::narrowing-is-whole-or-not-at-all", WHEREVER, cut_short).agents_own(),
    Test::new("adopt::full-disk-never-widens", WHEREVER, full_disk).agents_own(),
    Test::new("adopt::reboot-ends-sessions-and-keeps-stays", WHEREVER, reboot).agents_own(),
    Test::new("adopt::newer-store-and-other-cgroup-are-refused", WHEREVER, not_its_own).agents_own(),
];

/// A session as `inspect` shows it.
fn shown(s: &Sandbox, session: &str) -> Result<Value> {
    s.json(&["inspect", session])
}

fn state(s: &Sandbox, session: &str, state: &str) -> Result<()> {
    let shown = shown(s, session)?["session"]["state"].clone();
    ensure!(shown == state, "session {session} is {shown} where {state} was expected");
    Ok(())
}

/// Frozen, in its grace, with an idle limit and renewed, warned: each is the same for the next agent.
fn states(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, server) = (s.program("member")?, Server::tcp("127.0.0.1")?);
    let scope = || only(&member).to("server", "127.0.0.1/32", server.port());
    let calls = |fifo: &Fifo| format!("fifo {} connect tcp {}", fifo.path, server.words());

    let mut asleep = Fifo::new(s)?;
    let frozen = s.run(&s.policy(&scope())?, &member, &format!("{} + idle", calls(&asleep)))?;
    let frozen_id = frozen.session(s)?;
    freeze_still(s, &frozen_id, &[])?;

    let (mut left, pid) = (Fifo::new(s)?, s.file("pid"));
    let policy = s.policy(&scope().limit("leftovers: 1h").ttl("2h"))?;
    let line = format!("daemonise pid {pid} {} + daemonise idle + await {pid} nothing", calls(&left));
    let first = s.run(&policy, &member, &line)?;
    let grace_id = first.session(s)?;
    first.wait()?.ended(0)?;
    until("the grace to begin", patience(), || Ok(state(s, &grace_id, "ending").is_ok().then_some(())))?;
    let grace_end = shown(s, &grace_id)?["limits"]["deadline_boot_ns"].clone();

    // one told to end, whose agent dies before it could tell; one that is frozen outside its cgroup; one that runs there
    let told = s.policy(&only(&member).spec("on: { expiry: { term: 9m } }"))?;
    let caught = [s.file("caught"), s.file("caught")];
    let line = format!("catch 15 {} catch 15 {} idle", caught[0], caught[1]);
    // enough for its command to begin and to wait for the signal
    let ttl = if in_guest() { "560s" } else { "545s" };
    let told = s.launch(&told, &member, &line).ttl(ttl).start()?;
    let told_id = told.session(s)?;
    let has_term = |n: usize| Ok((fs::read_to_string(&caught[n]).is_ok_and(|text| text == "15")).then_some(()));
    until("SIGTERM", patience(), || has_term(0))?;
    until("the next to be waited for", patience(), || Ok(Path::new(&caught[1]).exists().then_some(())))?;
    let (still, runs) = (s.file("still"), s.file("runs"));
    let policy = s.policy(&only(&member))?;
    let (halted, loose) =
        (s.run(&policy, &member, &format!("count {still}"))?, s.run(&policy, &member, &format!("count {runs}"))?);
    let (halted_id, loose_id) = (halted.session(s)?, loose.session(s)?);
    for running in [&halted, &loose] {
        s.part("elsewhere").take(running.pid())?;
    }
    freeze_still(s, &halted_id, &[halted.pid()])?;

    // longer than a start takes where others start too
    let after = if in_guest() { 90 } else { 20 };
    let limit = format!("idle: {{ after: {after}s, activity: [exec, connect] }}");
    let idle = s.launch(&s.policy(&scope().limit(limit))?, &member, "idle").ttl("5m").start()?;
    let idle_id = idle.session(s)?;
    s.cli(&["renew", &idle_id, "--ttl", "9m"])?.ended(0)?;
    let renewed = shown(s, &idle_id)?["limits"]["ttl_ms"].clone();

    let warned = s.launch(&s.policy(&scope())?, &member, "idle").ttl("61s").start()?;
    let warned_id = warned.session(s)?;
    // of the first of the two that it gets: a minute before its end, not ten seconds
    let warnings = |s: &Sandbox| -> Result<usize> {
        let all = s.records(&warned_id, "warning")?;
        Ok(all.iter().filter(|warning| warning["left_ms"].as_u64() > Some(10_000)).count())
    };
    until("a warning", patience(), || Ok((warnings(s)? == 1).then_some(())))?;
    // once it answers, it has also stored that it warned
    s.cli(&["ps"])?.ended(0)?;

    s.kill_agent()?;
    // as an agent leaves them that dies between two steps
    let signal = |running: &Running, signal| kill(Pid::from_raw(running.pid().cast_signed()), signal);
    let freezer = |id: &str, to: &str| fs::write(s.part("sessions").path().join(id).join("cgroup.freeze"), to);
    signal(&halted, Signal::SIGCONT)?;
    freezer(&halted_id, "0")?;
    signal(&loose, Signal::SIGSTOP)?;
    freezer(&loose_id, "1")?;
    until("what runs to stop", patience(), || Ok((state_of(loose.pid()) == Some('T')).then_some(())))?;
    grows(&still)?;
    rewrite(s, &told_id, "\"unasked\":false", "\"unasked\":true")?;
    let config = fs::read_to_string(s.folder().join("tipstaff.toml"))?;
    fs::write(s.folder().join("tipstaff.toml"), format!("{config}[limits]\nmax_ttl = \"595s\"\n"))?;
    asleep.wake()?;
    s.start()?;
    stands_still(&still)?;
    state(s, &halted_id, "frozen")?;
    grows(&runs)?;
    state(s, &loose_id, "active")?;
    until("SIGTERM by the next agent", patience(), || has_term(1))?;
    ensure!(s.records(&told_id, "terminate")?.len() == 2, "the signals are not recorded");
    capped(s, &loose_id)?;
    for id in [&halted_id, &loose_id, &told_id] {
        s.cli(&["end", id])?.ended(0)?;
    }
    let answer = s.cli(&["end", &warned_id])?;
    ensure!(matches!(answer.code, 0 | 5), "end answered {}", answer.code);
    ensure!(warnings(s)? == 1, "it was warned {} times", warnings(s)?);

    let limits = shown(s, &idle_id)?["limits"].clone();
    ensure!(limits["ttl_ms"] == renewed && limits["winner"] == "idle", "{limits}, and it was renewed to {renewed}");
    ensure!(limits["activity"] == serde_json::json!(["exec", "connect"]), "{limits}");

    state(s, &grace_id, "ending")?;
    s.cli(&["narrow", &grace_id, "--remove", "server"])?.ended(3)?.complained(&["is ending (completed)"])?;
    let now = shown(s, &grace_id)?["limits"]["deadline_boot_ns"].clone();
    ensure!(now == grace_end, "the grace lasts until {now} and not until {grace_end}");
    let leftover = s.pid_in(&pid)?;
    ensure!(!gone(leftover), "what was left has no grace with another agent");
    left.wake()?;
    server.accepted(1).context("what is left, in its scope")?;
    s.cli(&["end", &grace_id])?.ended(0)?;
    s.session_ended(&grace_id, "completed")?;
    all_gone(&[leftover])?;

    state(s, &frozen_id, "frozen")?;
    ensure!(s.records(&frozen_id, "connect")?.is_empty(), "a frozen member went on without an agent");
    s.cli(&["thaw", &frozen_id])?.ended(0)?;
    server.accepted(2).context("the member that was thawed")?;
    ensure!(!gone(frozen.pid()), "it is another process");
    s.cli(&["end", &frozen_id])?.ended(0)?;

    until("the idle session to end", 2 * patience(), || {
        Ok((!s.records(&idle_id, "session-end")?.is_empty()).then_some(()))
    })?;
    s.session_ended(&idle_id, "idle")?;
    idle.wait()?.ended(137)?;
    Ok(())
}

/// The host lets no session last as long as this one was given, and the next agent says that it cut it.
fn capped(s: &Sandbox, session: &str) -> Result<()> {
    let limits = shown(s, session)?["limits"].clone();
    ensure!(limits["winner"] == "host cap" && limits["ttl_ms"] == 595_000, "not cut to 595 s: {limits}");
    let start = s.records(session, "session-start")?;
    ensure!(limits["deadline_boot_ns"].as_u64() < start[0]["deadline_boot_ns"].as_u64(), "the kernel holds {limits}");
    let cut = s.records(session, "command")?;
    let told =
        cut.iter().any(|r| r["verb"] == "renew" && r["detail"].to_string().contains("cut to the host's max_ttl"));
    ensure!(told, "that it was cut is not recorded: {cut:?}");
    Ok(())
}

/// Changes what the store holds of a session.
fn rewrite(s: &Sandbox, session: &str, from: &str, to: &str) -> Result<()> {
    let database = redb::Database::open(s.folder().join("state/store.redb"))?;
    let transaction = database.begin_write()?;
    {
        let mut sessions = transaction.open_table(redb::TableDefinition::<&str, &[u8]>::new("sessions"))?;
        let kept = redb::ReadableTable::get(&sessions, session)?.context("the session is not kept")?.value().to_vec();
        let text = String::from_utf8(kept[32..].to_vec())?;
        ensure!(text.contains(from), "{from} is not in {text}");
        let text = text.replace(from, to);
        let value = [Sha256::digest(&text).as_slice(), text.as_bytes()].concat();
        sessions.insert(session, value.as_slice())?;
    }
    Ok(transaction.commit()?)
}

/// The scope that a session was narrowed to is its scope for the next agent, in the kernel, in `inspect`, in records, and
/// for what may be narrowed further.
fn narrowed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (one, two, member) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?, s.program("member")?);
    let policy = only(&member).to("one", "127.0.0.1/32", one.port()).to("two", "127.0.0.1/32", two.port());
    let policy = s.policy(&policy)?;
    let (answers, again, last) = (s.file("answers"), s.file("again"), s.file("last"));
    let both = format!("connect tcp {} + connect tcp {}", one.words(), two.words());
    let line = format!("report {answers} {both} + await {again} {both} + await {last} {both} + idle");
    let running = s.run(&policy, &member, &line)?;
    let session = running.session(s)?;
    ensure!(report(&answers, 2)? == ["ok", "ok"], "before: not both");
    s.cli(&["narrow", &session, "--remove", "two"])?.ended(0)?;
    let (asked, answered) = (s.file("asked"), s.file("answered"));
    let resolver = resolver();
    let asks = |file: &str| {
        let ask = format!("connect udp {resolver} 53");
        format!("report {file} {ask} + await {last} {ask} + idle")
    };
    let without = s.policy(&only(&member).to("one", "127.0.0.2/32", 9))?;
    let with = s.policy(&only(&member).to("one", "127.0.0.2/32", 9).net("resolver: allow"))?;
    let (closed, open) = (s.run(&without, &member, &asks(&asked))?, s.run(&with, &member, &asks(&answered))?);
    let (closed, open) = (closed.session(s)?, open.session(s)?);
    ensure!(report(&asked, 1)? == ["errno 1"] && report(&answered, 1)? == ["ok"], "the resolver: before");
    // it began without a resolver: by that word it gets none
    s.cli(&["narrow", &closed, "--policy", &with])?.ended(0)?;
    let before = shown(s, &session)?["policy"].clone();
    s.kill_agent()?;
    // what is kept is not asked for again: here the host has no answer (a read of this file is an error)
    let places = mounts::below(Path::new("/"))?;
    let mut daemon = s.daemon();
    let no_resolvers = move || {
        own_mounts(&places)?;
        let silent = Some("/proc/self/mem");
        match mount(silent, "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>) {
            // a guest may have no such file
            Err(nix::errno::Errno::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    };
    // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
    unsafe { daemon.pre_exec(no_resolvers) };
    s.start_as(daemon)?;
    ensure!(shown(s, &session)?["policy"] == before, "{before} became {}", shown(s, &session)?["policy"]);
    fs::write(&again, "now")?;
    ensure!(report(&answers, 4)?[2..] == ["ok", "errno 1"], "after: {:?}", report(&answers, 4)?);
    s.wait_evidence("who allowed it", |r| {
        r["session"] == session && r["to"] == one.address() && r["rule"] == "one" && r["n"].as_u64() > Some(3)
    })?;
    s.cli(&["narrow", &session, "--policy", &policy])?.ended(3)?.complained(&["is wider than the session's"])?;
    s.cli(&["narrow", &session, "--remove", "two"])?.ended(2)?.complained(&["has no rule \"two\""])?;
    s.cli(&["narrow", &session, "--remove", "one"])?.ended(0)?.told(&["revision 3"])?;
    // of what is looked at again nothing comes back
    for session in [&closed, &open] {
        s.cli(&["narrow", session, "--remove", "one"])?.ended(0)?;
    }
    fs::write(&last, "now")?;
    ensure!(report(&asked, 2)?[1] == "errno 1", "the resolver, for whom it was closed: {:?}", report(&asked, 2)?);
    ensure!(report(&answered, 2)?[1] == "ok", "the resolver, for whom it was open: {:?}", report(&answered, 2)?);
    for session in [&closed, &open] {
        s.cli(&["end", session])?.ended(0)?;
    }
    ensure!(report(&answers, 6)?[4..] == ["errno 1", "errno 1"], "at last: {:?}", report(&answers, 6)?);
    s.cli(&["end", &session])?.ended(0)?;
    Ok(())
}

/// The agent dies somewhere in a narrowing: what the next one shows is what the kernel holds, the scope before or the one
/// after, and each record has its rule's name.
fn cut_short(s: &mut Sandbox) -> Result<()> {
    let (count, step) = if in_guest() { (300, 400) } else { (5_000, 60) };
    s.start()?;
    let member = s.program("member")?;
    let ports = [1001, 1002, 1003];
    // the first `denied` of the ports are denied by a rule of their own, in the midst of many rules
    let scope = |denied: usize| {
        let each = (0..count).map(|n| (n, format!("10.{}.{}.1/32", n % 200, n / 200)));
        let many = each.fold(only(&member), |policy, (n, net)| policy.to(&format!("r{n}"), &net, 443));
        let open = ports.iter().fold(many, |policy, port| policy.to(&format!("open-{port}"), "127.0.0.0/8", port));
        ports[..denied].iter().fold(open, |policy, port| policy.not_to(&format!("shut-{port}"), "127.0.0.1/32", port))
    };
    let mut fifos = (0..ports.len()).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
    let tries = ports.map(|port| format!("connect tcp 127.0.0.1 {port}")).join(" + ");
    let line: Vec<String> = fifos.iter().map(|fifo| format!("fifo {} {tries}", fifo.path)).collect();
    let answers = s.file("answers");
    let running = s.run(&s.policy(&scope(0))?, &member, &format!("report {answers} {} + idle", line.join(" + ")))?;
    let session = running.session(s)?;
    let mut denied = 0;
    for (round, fifo) in fifos.iter_mut().enumerate() {
        let before = shown(s, &session)?["policy"]["revision"].as_u64();
        let mut narrow = s.tipstaff();
        narrow.args(["narrow", &session, "--policy", &s.policy(&scope(denied + 1))?]);
        let narrow = Running::spawn(s, narrow, None)?;
        std::thread::sleep(std::time::Duration::from_millis(step * (1 + u64::try_from(round)?)));
        s.kill_agent()?;
        narrow.wait()?;
        s.start()?;
        let after = shown(s, &session)?["policy"]["revision"].as_u64();
        denied += usize::from(after > before);
        fifo.wake()?;
        let lines = (round + 1) * ports.len();
        let said = report(&answers, lines)?;
        let expected: Vec<String> = (0..ports.len())
            .map(|n| format!("errno {}", if n < denied { libc::EPERM } else { libc::ECONNREFUSED }))
            .collect();
        ensure!(said[lines - ports.len()..] == expected, "revision {after:?} after {before:?}: {said:?}");
    }
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    for record in s.records(&session, "connect")? {
        let port = record["to"].as_str().and_then(|to| to.rsplit(':').next()).unwrap_or_default();
        let verb = if record["verdict"] == "allow" { "open" } else { "shut" };
        ensure!(record["rule"] == format!("{verb}-{port}"), "{record}");
    }
    Ok(())
}

/// A narrowing that cannot be kept is none: whatever the disk holds, the next agent goes on with what the kernel holds, and
/// a neighbour under the same policy is what it was.
fn full_disk(s: &mut Sandbox) -> Result<()> {
    let disk = SmallDisk::over(s, "state", 4096)?;
    s.start()?;
    let (one, two, member) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?, s.program("member")?);
    let narrow = || only(&member).to("one", "127.0.0.1/32", one.port());
    let wide = s.policy(&narrow().to("two", "127.0.0.1/32", two.port()).ttl("2h"))?;
    let narrow = bulky(s, &narrow().ttl("1h"))?;
    let both = format!("connect tcp {} + connect tcp {}", one.words(), two.words());
    let begin = |s: &Sandbox| -> Result<_> {
        let (mut fifos, answers) = (Vec::new(), s.file("answers"));
        for _ in 0..3 {
            fifos.push(Fifo::new(s)?);
        }
        let tries: Vec<String> = fifos.iter().map(|fifo| format!("fifo {} {both}", fifo.path)).collect();
        let running = s.run(&wide, &member, &format!("report {answers} {} + idle", tries.join(" + ")))?;
        let session = running.session(s)?;
        Ok((running, session, answers, fifos))
    };
    let (_running, session, answers, mut fifos) = begin(s)?;
    let (_other, neighbour, theirs, mut others) = begin(s)?;
    let mut told = |round: usize, expected: [&str; 2]| -> Result<()> {
        for (fifo, answers, expected) in
            [(&mut fifos[round], &answers, expected), (&mut others[round], &theirs, ["ok", "ok"])]
        {
            fifo.wake()?;
            let said = report(answers, 2 * round + 2)?.split_off(2 * round);
            ensure!(said == expected, "round {round}: {said:?} where {expected:?} was expected");
        }
        Ok(())
    };
    let held = |s: &Sandbox| -> Result<_> {
        let shown = shown(s, &session)?;
        Ok((shown["policy"].clone(), shown["limits"]["deadline_boot_ns"].clone()))
    };
    let before = held(s)?;
    disk.fill()?;
    let refused = s.cli(&["narrow", &session, "--policy", &narrow])?;
    refused.ended(1)?.complained(&[
        "is as it was: its narrower scope cannot be kept",
        "store.redb",
        "No space left",
    ])?;
    ensure!(refused.stderr.trim_end().lines().count() == 1, "more than one line: {}", refused.stderr);
    ensure!(held(s)? == before, "{before:?} became {:?}", held(s)?);
    s.kill_agent()?;
    let full = Running::spawn(s, s.daemon(), None)?.wait()?;
    full.ended(1)?.complained(&["No space left"])?;
    told(0, ["ok", "ok"])?;
    disk.make_room()?;
    s.start()?;
    ensure!(held(s)? == before, "with another agent: {before:?} became {:?}", held(s)?);
    told(1, ["ok", "ok"])?;
    // with room it is narrowed, and stays so on a disk that is full again
    s.cli(&["narrow", &session, "--policy", &narrow])?.ended(0)?.told(&["revision 2"])?;
    let after = held(s)?;
    ensure!(after.1.as_u64() < before.1.as_u64(), "the deadline stayed {}", after.1);
    disk.fill()?;
    s.kill_agent()?;
    disk.make_room()?;
    s.start()?;
    ensure!(held(s)? == after, "with another agent: {after:?} became {:?}", held(s)?);
    told(2, ["ok", "errno 1"])?;
    let longer = s.cli(&["renew", &session, "--ttl", "90m"])?;
    longer.ended(3)?.complained(&["longer than policy", "ask for 1h at most"])?;
    for session in [session, neighbour] {
        s.cli(&["end", &session])?.ended(0)?;
    }
    Ok(())
}

/// The power goes, and with it every process, pin and cgroup; the host comes up with another boot id. (This host is not
/// taken down for it: what a reboot removes is removed, and the new agent is shown another boot id.)
fn reboot(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "say there + idle")?;
    let session = running.session(s)?;
    until("the member to run", patience(), || Ok((running.said() == "there\n").then_some(())))?;
    s.wait_evidence("its start", |r| r["type"] == "exec" && r["session"] == session)?;
    s.cli(&["revoke", "--policy", "red"])?.ended(0)?;
    s.kill_agent()?;
    let cgroup = s.part("sessions").path().join(&session);
    fs::write(cgroup.join("cgroup.kill"), "1")?;
    running.wait()?.ended(137)?;
    until("the cgroup to be gone", patience(), || Ok(fs::remove_dir(&cgroup).is_ok().then_some(())))?;
    fs::remove_dir_all(s.pins()).context("the pins cannot be removed")?;

    let (places, boot) = (mounts::below(Path::new("/"))?, s.file("boot"));
    fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let mut daemon = s.daemon();
    let other_boot = move || {
        own_mounts(&places)?;
        let place = "/proc/sys/kernel/random/boot_id";
        Ok(mount(Some(boot.as_str()), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
    unsafe { daemon.pre_exec(other_boot) };
    s.start_as(daemon)?;
    let end = s.session_ended(&session, "reboot")?;
    ensure!(end["members_left"] == 0 && end["rounds"] == serde_json::json!([]), "{end}");
    let gap = s.wait_evidence("what is not known", |r| r["type"] == "gap" && r["session"] == session)?;
    let boots = [&gap["since"]["boot"], &gap["boot"]];
    ensure!(boots[0].is_string() && boots[0] != boots[1], "the gap does not span two boots: {gap}");
    let starts = |name| s.run(&s.policy(&only(&member).name(name))?, &member, "say again")?.wait();
    starts("red")?.ended(125)?.complained(&["policy red is revoked until"])?;
    starts("blue")?.ended(0)?.said("again")?;
    s.cli(&["verify"])?.ended(0)?.told(&["intact, with 1 gap"])?;
    Ok(())
}

/// What this agent cannot go on with it leaves alone: one message, and what is in force stays in force.
fn not_its_own(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut wall = Wall::new(s, 3)?;
    s.kill_agent()?;
    let ours = version(s, |version| version)?;
    version(s, |version| version + 1)?;
    let newer = format!("store.redb is of version {}, this program reads {ours}", ours + 1);
    let refuses = |daemon, code: i32, parts: &[&str]| -> Result<()> {
        let finished = Running::spawn(s, daemon, None)?.wait()?;
        finished.ended(code)?.complained(&["tipstaff: "])?.complained(parts)?;
        ensure!(finished.stderr.trim_end().lines().count() == 1, "more than one line: {}", finished.stderr);
        Ok(())
    };
    refuses(s.daemon(), 6, &[&newer, "use the newer program"])?;
    wall.holds(s)?;
    version(s, |version| version - 1)?;
    let mut elsewhere = s.daemon();
    let other = s.part("sessions").path().join("other");
    elsewhere.env("TIPSTAFF_CGROUP", &other);
    refuses(elsewhere, 2, &[&wall.session, "stands in ", "start it with the earlier one's --cgroup"])?;
    wall.holds(s)?;
    s.start()?;
    wall.holds(s)?;
    s.cli(&["end", &wall.session])?.ended(0)?;
    Ok(())
}

/// Changes the version of what the store holds; the one before.
fn version(s: &Sandbox, change: impl Fn(u64) -> u64) -> Result<u64> {
    let database = redb::Database::open(s.folder().join("state/store.redb"))?;
    let transaction = database.begin_write()?;
    let before = {
        let mut meta = transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta"))?;
        let before = redb::ReadableTable::get(&meta, "version")?.context("the store has no version")?.value();
        meta.insert("version", change(before))?;
        before
    };
    transaction.commit()?;
    Ok(before)
}
