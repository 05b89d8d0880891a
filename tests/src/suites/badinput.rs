//! Wrong input, wrong hosts, wrong times: each with one clear message, its exit status, and nothing half-started.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, net::UnixListener, process::CommandExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, setrlimit},
        utsname::uname,
    },
};

use serde_json::{Value, json};

use super::scene::{Fifo, only, refused_calls};
use crate::harness::{launch::Finished, mounts, prelude::*, sandbox::READERS};

pub(super) const TESTS: &[Test] = &[
    Test::new("badinput::what-an-agent-needs-is-not-there", WHEREVER, lacking),
    Test::new("badinput::no-list-of-security-modules", NO_LSM, no_modules)
        .guests_only("needs a kernel that takes LSM programs and does not run them"),
    Test::new("badinput::locked-memory-cannot-be-raised", WHEREVER, memlock).agents_own(),
    Test::new("badinput::old-kernel", OLD, old_kernel),
    Test::sharing("badinput::every-problem-of-a-policy-at-once", WHEREVER, policy_problems).agents_own(),
    Test::sharing("badinput::policy-cannot-be-read", WHEREVER, policy_unreadable).agents_own(),
    Test::new("badinput::configuration-with-an-unknown-key", WHEREVER, configuration).agents_own(),
    Test::sharing("badinput::second-agent", WHEREVER, second_agent).agents_own(),
    Test::new("badinput::refused-agents-change-nothing", WHEREVER, refused_agents).agents_own(),
    Test::new("badinput::stale-socket-is-replaced", WHEREVER, stale_socket).agents_own(),
    Test::new("badinput::agent-not-running", WHEREVER, no_agent).agents_own(),
    Test::sharing("badinput::unknown-session", WHEREVER, unknown_session).agents_own(),
    Test::new("badinput::unknown-flag", WHEREVER, unknown_flag).agents_own(),
    Test::new("badinput::member-cannot-call-the-agent", WHEREVER, member_calls),
    Test::sharing("badinput::nonsense-on-the-socket", WHEREVER, nonsense).agents_own(),
];

/// Starts an agent that must refuse with exit status 6 and name each of `parts`; `before` is done in its process first. What it
/// said.
fn agent_refuses(
    s: &Sandbox,
    before: impl Fn() -> nix::Result<()> + Send + Sync + 'static,
    parts: &[&str],
) -> Result<String> {
    let mut daemon = s.daemon();
    let action = move || Ok(before()?);
    // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
    unsafe { daemon.pre_exec(action) };
    let refused = Running::spawn(s, daemon, None)?.wait()?;
    refused.ended(6)?.complained(&["tipstaff: "])?.complained(parts)?;
    ensure!(refused.stderr.lines().count() == 1, "more than one line: {}", refused.stderr);
    s.nothing_is_left()?;
    let sockets = [s.folder().join("run/read.sock"), s.folder().join("run/operate.sock")];
    ensure!(!sockets.iter().any(|path| path.exists()), "an agent that refused left a socket");
    Ok(refused.stderr)
}

/// Root, the kernel's types, cgroups: without one of them it refuses, leaves nothing, and starts where they are.
fn lacking(s: &mut Sandbox) -> Result<()> {
    Running::spawn(s, s.daemon(), Some((1000, READERS)))?.wait()?.ended(6)?.complained(&["tipstaff: ", "root"])?;
    s.nothing_is_left()?;
    no_btf(s)?;
    no_cgroup2(s)?;
    s.start()
}

/// A mount namespace of its own, from which nothing gets out. `places` are all mount points: in a chroot, `/` is none of
/// them, and what lies above it is out of reach.
pub(super) fn own_mounts(places: &[PathBuf]) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = |place: &Path| mount(None::<&str>, place, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
    places.iter().try_for_each(|place| match private(place) {
        // mounted over: nothing is mounted there any more
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        other => other,
    })
}

fn no_btf(s: &Sandbox) -> Result<()> {
    let places = mounts::below(Path::new("/"))?;
    let hide = move || {
        own_mounts(&places)?;
        mount(Some("none"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), None::<&str>)
    };
    agent_refuses(s, hide, &["btf"]).map(drop)
}

/// Without the list only the canary can tell that LSM programs attach and never run; with it they are not loaded.
fn no_modules(s: &mut Sandbox) -> Result<()> {
    let places = mounts::below(Path::new("/"))?;
    let hide = move || {
        own_mounts(&places)?;
        mount(Some("none"), "/sys/kernel/security", Some("tmpfs"), MsFlags::empty(), None::<&str>)
    };
    let mut daemon = s.daemon();
    // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
    unsafe { daemon.pre_exec(move || Ok(hide()?)) };
    s.start_as(daemon)?;
    let says = |s: &Sandbox, part: &str| -> Result<()> {
        let status = s.json(&["status"])?;
        let controls = status["controls"].as_array().context("no controls")?;
        let exec = controls.iter().find(|c| c["control"] == "exec-deny").context("no exec-deny")?;
        let fits = status["tier"] == "no-lsm" && exec["why"].as_str().is_some_and(|why| why.contains(part));
        ensure!(fits, "{} where {part:?} was expected", exec);
        Ok(())
    };
    says(s, "they attach and do not decide")?;
    s.stop_agent()?;
    s.start()?;
    says(s, "bpf is not among the active security modules")
}

fn no_cgroup2(s: &Sandbox) -> Result<()> {
    let (places, trees) = (mounts::below(Path::new("/"))?, mounts::all_of("cgroup2")?);
    let hide = move || {
        own_mounts(&places)?;
        trees.iter().try_for_each(|place| umount2(place, MntFlags::MNT_DETACH))
    };
    agent_refuses(s, hide, &["cgroup2"]).map(drop)
}

/// Kernels since 5.11 count no locked memory for programs and maps: the agent does not ask for any.
fn memlock(s: &mut Sandbox) -> Result<()> {
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let mut daemon = s.daemon();
    let lower = || {
        setrlimit(Resource::RLIMIT_MEMLOCK, 65_536, 65_536)?;
        // SAFETY: integers only; the capability is gone after the exec.
        Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE) })?;
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made, and nothing is allocated.
    unsafe { daemon.pre_exec(lower) };
    s.start_as(daemon)?;
    ensure!(!s.said_by_agent().contains("memory"), "the agent said {:?}", s.said_by_agent());
    let member = s.program("member")?;
    s.run(&s.policy(&only(&member))?, &member, "say well")?.wait()?.ended(0)?.said("well")?;
    Ok(())
}

fn old_kernel(s: &mut Sandbox) -> Result<()> {
    let refused = agent_refuses(s, || Ok(()), &["task", "storage", "5.11"])?;
    let release = uname()?.release().to_string_lossy().into_owned();
    println!("TIPSTAFF-PROBE {}", json!({"kernel": release, "tier": s.tier.name(), "refused": refused}));
    Ok(())
}

const BROKEN: &str = "\
apiVersion: tipstaff.dev/v1alpha1
kind: SessionPolicy
metadata:
  name: broken
spec:
  kind: ci
  mod: enforce
  limits:
    idle_: 2m
  scope:
    exec:
      allow:
        - { path: 17 }
    net:
      allow:
        - { to: 300.1.2.3/8 }
";

fn policy_problems(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let policy = s.policy_text(BROKEN)?;
    // line and column of each: two unknown keys, no ttl, a number for a path, no address
    let places = [
        format!("{policy}:7:3: "),
        format!("{policy}:9:5: "),
        format!("{policy}:13:19: "),
        format!("{policy}:16:17: "),
    ];
    let mut parts: Vec<&str> = places.iter().map(String::as_str).collect();
    parts.extend(["mod", "idle_", "ttl", "300.1.2.3/8"]);
    s.cli(&["policy", "check", &policy])?.ended(2)?.told(&parts)?;
    s.run(&policy, &member, &format!("mark {mark}"))?.wait()?.ended(125)?.complained(&parts)?;
    ensure!(!fs::exists(&mark)?, "a command ran under a broken policy");
    let starts = s.evidence()?.iter().filter(|r| r["type"] == "session-start").count();
    ensure!(starts == 0, "a broken policy started a session");
    s.run(&s.policy(&only(&member))?, &member, "say well")?.wait()?.ended(0)?.said("well")?;
    Ok(())
}

fn policy_unreadable(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, missing, folder) = (s.program("member")?, s.file("missing.yaml"), s.folder().display().to_string());
    let device = "/dev/zero".to_owned();
    for path in [&missing, &folder, &device] {
        let what = if *path == missing { "" } else { "name a regular file" };
        s.cli(&["policy", "check", path])?.ended(2)?.told(&[path, what])?;
        s.run(path, &member, "nothing")?.wait()?.ended(125)?.complained(&["tipstaff: ", path, what])?;
        s.cli(&["narrow", "ab", "--policy", path])?.ended(2)?.complained(&["tipstaff: ", path, what])?;
        s.cli(&["revoke", "--credential", path])?.ended(2)?.complained(&["the credential", path, what])?;
    }
    let fifo = s.file("fifo.yaml");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU)?;
    s.run(&fifo, &member, "nothing")?.wait()?.ended(125)?.complained(&[&fifo, "nobody wrote to"])?;
    // one that cannot be read does not hide what is wrong, or right, with the others
    let (text, good) = (s.policy_text("spec: [\n")?, s.policy(&only(&member))?);
    let check = ["policy", "check", &missing, &text, &good];
    s.cli(&check)?.ended(2)?.told(&[&format!("{missing}:1:1: cannot be read"), &text, &format!("{good}: ok")])?;
    let found: Value = serde_json::from_str(&s.cli(&[&check[..], &["-o", "json"]].concat())?.ended(2)?.stdout)?;
    let ok = |n: usize| (found[n]["ok"].clone(), found[n]["problems"].as_array().is_some_and(Vec::is_empty));
    ensure!([ok(0), ok(1), ok(2)] == [(false.into(), false), (false.into(), false), (true.into(), true)], "{found}");
    let mut command = s.tipstaff();
    command.args(["policy", "check"]).arg(OsStr::from_bytes(b"/nowhere/\xff.yaml"));
    Running::spawn(s, command, None)?.wait()?.ended(2)?.told(&["/nowhere/", "cannot be read"])?;
    Ok(())
}

fn configuration(s: &mut Sandbox) -> Result<()> {
    let path = s.folder().join("tipstaff.toml");
    let right = fs::read_to_string(&path)?;
    fs::write(&path, format!("{right}\n[limit]\nmax_ttl = \"1h\"\n"))?;
    let place = format!("{}:5", path.display());
    Running::spawn(s, s.daemon(), None)?.wait()?.ended(2)?.complained(&["tipstaff: ", &place, "limit"])?;
    s.nothing_is_left()?;
    fs::write(&path, format!("{right}\n[limits]\nmax_ttl = \"1h\"\n"))?;
    s.start()
}

fn second_agent(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let running = s.run(&policy, &member, "idle")?;
    let session = running.session(s)?;
    let second = Running::spawn(s, s.daemon(), None)?.wait()?;
    second.ended(1)?.complained(&["tipstaff: ", "running"])?;
    // the first and its session are as they were
    ensure!(s.json(&["ps"])?["sessions"][0]["id"] == session, "the session is gone");
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    s.run(&policy, &member, "say well")?.wait()?.ended(0)?.said("well")?;
    Ok(())
}

/// Beside an agent that runs, each of these must not start, and is gone without a trace: one on whatever the first has, and
/// those whose flags or configuration are wrong. The first one's evidence is whole all the time.
fn refused_agents(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let session = running.session(s)?;
    let top = s.folder().to_owned();
    let (second, long) = (top.join("second"), top.join("r".repeat(120)));
    let (pins, cgroup) = (s.pins().with_file_name("second"), s.part("second").path().to_owned());
    let config = top.join("nobody.toml");
    fs::write(&config, "[groups]\nread = \"nosuchgroup\"\n")?;
    let own = |name: &str| second.join(name).display().to_string();
    let (pins, deep) = (pins.display().to_string(), cgroup.join("deep").display().to_string());
    let all = [
        ("--pin-dir", pins.clone()),
        ("--cgroup", deep.clone()),
        ("--runtime-dir", own("run")),
        ("--state-dir", own("state")),
        ("--evidence-dir", own("evidence")),
        ("--confine", s.part("").path().display().to_string()),
    ];
    let of_first = |name: &str| top.join(name).display().to_string();
    let elsewhere = s.part("elsewhere").path().display().to_string();
    let cases = [
        ("--runtime-dir", of_first("run"), 1, "answers on"),
        ("--state-dir", of_first("state"), 1, "store.redb"),
        ("--cgroup", s.part("sessions").path().display().to_string(), 1, "holds cgroup"),
        ("--runtime-dir", long.display().to_string(), 2, "too long"),
        ("--config", config.display().to_string(), 2, "nosuchgroup"),
        ("--confine", elsewhere, 2, "--confine"),
        ("--confine", of_first("nowhere"), 2, "nowhere"),
    ];
    for (flag, value, code, told) in cases {
        let mut daemon = s.tipstaff();
        daemon.arg("daemon");
        for (name, own) in all.iter().filter(|(name, _)| *name != flag) {
            daemon.arg(name).arg(own);
        }
        daemon.arg(flag).arg(&value);
        let refused = Running::spawn(s, daemon, None)?.wait()?;
        refused.ended(code)?.complained(&["tipstaff: ", told]).with_context(|| format!("{flag} {value}"))?;
        for made in [Path::new(&pins), &cgroup, &long] {
            ensure!(!made.exists(), "{flag} {value} left {}", made.display());
        }
        s.cli(&["verify"])?.ended(0).with_context(|| format!("after {flag} {value}"))?;
    }
    ensure!(s.json(&["ps"])?["sessions"][0]["id"] == session, "the session is gone");
    s.cli(&["end", &session])?.ended(0)?;
    running.wait()?.ended(137).map(drop)
}

fn stale_socket(s: &mut Sandbox) -> Result<()> {
    for name in ["read.sock", "operate.sock"] {
        // a listener that is dropped leaves its socket's file, as a killed agent does
        drop(UnixListener::bind(s.folder().join("run").join(name))?);
    }
    s.start()?;
    let member = s.program("member")?;
    s.run(&s.policy(&only(&member))?, &member, "say well")?.wait()?.ended(0)?.said("well")?;
    Ok(())
}

fn no_agent(s: &mut Sandbox) -> Result<()> {
    let socket = s.folder().join("run").display().to_string();
    for words in [&["ps"][..], &["status"], &["inspect", "00"], &["end", "00"], &["events"]] {
        s.cli(words)?.ended(7).with_context(|| format!("{words:?}"))?.complained(&["tipstaff: ", &socket])?;
    }
    s.cli(&["disarm", "--yes"])?.ended(0)?.said("disarmed: nothing was in force")?;
    // without an agent it loads programs of its own, and takes them away
    let probe = s.json(&["probe"])?;
    ensure!(probe["tier"] == s.tier.name() && probe["controls"].is_array(), "probe without an agent says {probe}");
    s.nothing_is_left()?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let policy = s.policy(&only(&member))?;
    let line = format!("mark {mark}");
    s.run(&policy, &member, &line)?.wait()?.ended(125)?.complained(&["tipstaff: ", &socket])?;
    ensure!(!fs::exists(&mark)?, "a command ran without an agent");
    s.start()?;
    s.cli(&["ps"])?.ended(0)?;
    s.run(&policy, &member, &line)?.wait()?.ended(0)?;
    ensure!(fs::exists(&mark)?, "a command did not run with an agent");
    Ok(())
}

fn unknown_session(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    for verb in ["inspect", "end"] {
        s.cli(&[verb, "0123456789abcdef"])?.ended(5)?.complained(&["tipstaff: ", "0123456789abcdef"])?;
    }
    let member = s.program("member")?;
    let running = s.run(&s.policy(&only(&member))?, &member, "idle")?;
    let session = running.session(s)?;
    s.cli(&["inspect", &session])?.ended(0)?;
    s.cli(&["end", &session])?.ended(0)?;
    Ok(())
}

fn unknown_flag(s: &mut Sandbox) -> Result<()> {
    for words in [&["ps", "--nothing"][..], &["nothing"], &["end"], &["ps", "-o", "xml"], &["daemon", "--confine"]] {
        let finished = s.cli(words)?;
        finished.ended(2).with_context(|| format!("{words:?}"))?;
        ensure!(!finished.stderr.is_empty(), "{words:?} says nothing");
    }
    s.cli(&["--help"])?.ended(0)?;
    let mut command = s.tipstaff();
    command.args(["policy", "check", "/nonexistent"]).env("TIPSTAFF_LOG", "bad[[[");
    Running::spawn(s, command, None)?.wait()?.ended(2)?.complained(&["TIPSTAFF_LOG", "bad[[[", "is ignored"])?;
    Ok(())
}

/// A member is refused on both sockets, with a record; who is in no session is answered, and leaves none.
fn member_calls(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let run = s.runtime();
    // where unix sockets are judged, the agent's are out of scope as any other; it answers for itself where they are not
    let scope = format!("unix: {{ allow: [{0}/read.sock, {0}/operate.sock] }}", run.display());
    let policy = s.policy(&only(&member).scope(scope))?;
    let own = nix::unistd::geteuid().as_raw();
    for (socket, method) in [("read", "Ps"), ("operate", "Ps"), ("operate", "Disarm")] {
        let path = run.join(format!("{socket}.sock"));
        let running = s.run(&policy, &member, &format!("call {} dev.tipstaff.{method}", path.display()))?;
        let session = running.session(s)?;
        let Finished { pid, stdout: answer, .. } = running.wait()?;
        ensure!(
            answer.contains("dev.tipstaff.Member"),
            "a member called {method} on {socket}.sock and was answered {answer:?}"
        );
        let end = s.session_ended(&session, "completed")?;
        let (records, calls) = refused_calls(s, &session)?;
        ensure!(calls == 1 && records[0]["n"].as_u64() < end["n"].as_u64(), "{method} on {socket}.sock: {records:?}");
        let expected = json!([pid, own, socket, "member"]);
        let told = ["pid", "uid", "socket", "reason"].map(|key| records[0][key].clone());
        ensure!(json!(told) == expected, "not {expected}: {}", records[0]);
    }
    calls_in_a_loop(s, &policy, &member)?;
    // whoever connected has ended, and its label with it
    let line = format!("call-by-child {} dev.tipstaff.Ps", run.join("operate.sock").display());
    let answer = s.run(&policy, &member, &line)?.wait()?.stdout;
    ensure!(
        ["dev.tipstaff.Denied", "dev.tipstaff.Failed"].iter().any(|error| answer.contains(error)),
        "a member called by a child that had ended, and was answered {answer:?}"
    );
    // where one who asked whether the agent is ready gave up, that was recorded before, and this waits for its minute to pass
    let nobodys = |r: &Value| r["type"] == "calls-refused" && r["session"].is_null() && r["socket"] == "operate";
    let record = until("a call of who had ended", patience() + std::time::Duration::from_secs(60), || {
        Ok(s.evidence()?.into_iter().find(nobodys))
    })?;
    ensure!(record["reason"] == "unknown" && record["uid"] == own, "{record}");
    outsider_calls(s, &member)
}

/// The first refusal is told at once, and all the others of a minute in one record, at the latest with the session's end.
fn calls_in_a_loop(s: &Sandbox, policy: &str, member: &str) -> Result<()> {
    const MORE: usize = 40;
    let mut fifo = Fifo::new(s)?;
    let call = format!("call {} dev.tipstaff.Ps", s.runtime().join("read.sock").display());
    let line = format!("{call} + fifo {} {}", fifo.path, vec![call.as_str(); MORE].join(" + "));
    let running = s.run(policy, member, &line)?;
    let session = running.session(s)?;
    let first = s.wait_evidence("a refused call", |r| r["type"] == "calls-refused" && r["session"] == session)?;
    ensure!(first["count"] == 1, "it waits for the others: {first}");
    fifo.wake()?;
    let answers = running.wait()?.stdout;
    ensure!(answers.matches("dev.tipstaff.Member").count() == MORE + 1, "answered {answers:?}");
    let end = s.session_ended(&session, "completed")?;
    let (records, calls) = refused_calls(s, &session)?;
    ensure!(calls == MORE as u64 + 1, "{calls} of {} calls are recorded: {records:?}", MORE + 1);
    let time = |record: &Value| record["boot_ns"].as_u64().unwrap_or_default();
    let minutes = (time(&end) - time(&first)) / 60_000_000_000;
    ensure!(records.len() as u64 <= 2 + minutes, "a record for each call: {records:?}");
    Ok(())
}

/// Who is in no session is answered on both sockets, and that is no refusal.
fn outsider_calls(s: &Sandbox, member: &str) -> Result<()> {
    let mut pids = Vec::new();
    for socket in ["read.sock", "operate.sock"] {
        let mut command = crate::harness::launch::bare(Path::new(member));
        command.args(["--work", "call"]).arg(s.runtime().join(socket)).arg("dev.tipstaff.Ps");
        let Finished { pid, stdout: answer, .. } = Running::spawn(s, command, None)?.wait()?;
        ensure!(answer.contains(r#""sessions""#), "an outsider called {socket} and was answered {answer:?}");
        pids.push(pid);
    }
    // once it has answered this, it has written what it had to of the calls before
    s.cli(&["ps"])?.ended(0)?;
    let of_outsiders = |r: &Value| r["type"] == "calls-refused" && pids.iter().any(|pid| r["pid"] == *pid);
    let recorded = s.evidence()?.into_iter().find(of_outsiders);
    ensure!(recorded.is_none(), "a call that was answered is recorded as refused: {recorded:?}");
    Ok(())
}

fn nonsense(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for method in ["dev.tipstaff.Nothing", "\",\"more\":", ""] {
        let mut command = crate::harness::launch::bare(Path::new(&member));
        let socket = s.runtime().join("operate.sock");
        command.arg("--work").arg("call").arg(socket).arg(method);
        let answer = Running::spawn(s, command, None)?.wait()?.stdout;
        ensure!(answer.contains("dev.tipstaff.BadRequest"), "{method:?} was answered {answer:?}");
    }
    s.cli(&["ps"])?.ended(0)?;
    Ok(())
}
