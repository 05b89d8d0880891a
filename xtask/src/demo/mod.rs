//! `./x demo`: the main job on real input. An agent with a throw-away state, a policed workload of real programs that
//! outlives it, a new agent that ends what is left, a readable timeline from the evidence, and nothing left behind.

mod ground;
mod interrupt;
mod server;
mod stream;
mod timeline;

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::{
    build,
    exec::{output, say, which},
    packages,
    workspace::Workspace,
};
use ground::Ground;
use interrupt::Interrupt;
use server::Server;
use stream::{Fate, Stream};

/// How long the demo's session may last.
const TTL: &str = "20s";
/// When the agent is killed, after the session's start: the workload had the time to do everything that it does.
const KILLED: Duration = Duration::from_secs(8);
/// So long before its deadline the session has lost its agent.
const ALONE: Duration = Duration::from_secs(5);
/// When a member is woken and a server that it asks for is there, after the session's deadline.
const WOKEN: Duration = Duration::from_millis(200);
/// When it is looked what came of that, after the deadline: everybody had the time to try.
const LOOKED: Duration = Duration::from_millis(1_400);
/// When the kernel's clock, after the deadline, has killed what computes: ten times a second it looks at what each
/// processor runs, which on a busy host is not always this.
const CLOCK: Duration = Duration::from_secs(5);
/// How long the far end of a destroyed connection waits for its reset.
const RESET: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);
/// Programs that the workload is made of, and Debian's packages for them.
const PROGRAMS: [(&str, &str); 3] = [("git", "git"), ("curl", "curl"), ("setsid", "util-linux")];

/// What the session runs. Every line is a real program that does, or tries, something.
const WORKLOAD: &str = r#"#!/bin/sh
say() { echo "  | $*"; }
try() { "$@" >/dev/null 2>&1; code=$?; if [ $code = 0 ]; then echo "worked"; else echo "refused (status $code)"; fi; }
say "git clone of a repository:           $(try git clone -q origin clone)"
say "git log:                             $(try git -C clone log -1)"
say "curl to a server in scope:           $(try curl -q -sf -m 3 "$GOOD4")"
say "curl to a server in scope, IPv6:     $(try curl -q -gsf -m 3 "$GOOD6")"
say "curl to a server out of scope:       $(try curl -q -sf -m 3 "$BAD4")"
say "curl to a server out of scope, IPv6: $(try curl -q -gsf -m 3 "$BAD6")"
say "curl to the metadata address:        $(try curl -q -sf -m 3 http://169.254.169.254/latest/meta-data/)"
say "tee, a program out of scope:         $(try tee marker </dev/null)"
setsid -f ./daemon.sh </dev/null >/dev/null 2>&1
say "a child daemonised and went its own way"
./spin.sh & echo $! > spinner
sleep 300 | curl -q -sN "telnet://127.0.0.1:$STREAM" >/dev/null 2>&1 &
curl -q -s --retry 90 --retry-delay 1 --retry-all-errors "http://127.0.0.1:$LATER/" >/dev/null 2>&1 &
./late.sh </dev/null >/dev/null 2>&1 &
say "one child computes, one holds a connection open, one asks each second for a server that is not there yet"
exec sleep 300
"#;

/// A child that only computes.
const SPIN: &str = "#!/bin/sh\nwhile :; do :; done\n";

/// A child that is woken after the session's end and tries a program that was in its scope.
const LATE: &str = "#!/bin/sh\nread line < wake\n: > woken\ngit --version && : > late-marker\nread line < wake\n";

/// What the double-forked child runs.
const DAEMON: &str = "#!/bin/sh\nsleep 1\ntee daemon-marker </dev/null\nsleep 300\n";

/// Builds, runs the demo, and cleans up after it.
pub(crate) fn demo(workspace: &Workspace) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo loads programs into the kernel and makes cgroups: run ./x demo, which asks for sudo");
    }
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(p, _)| which(p).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        ensure!(packages::is_debian(), "the demo's workload needs {}: install it", missing.join(", "));
        packages::install(&missing)?;
    }
    build::build(workspace)?;
    let start = Instant::now();
    let ground = Ground::prepare(workspace, Interrupt::watch()?)?;
    // a terminal that is gone makes printing panic; what was made goes all the same
    let result = panic::catch_unwind(AssertUnwindSafe(|| play(&ground)));
    let signal = ground.interrupt.signal();
    let left = ground.clean_up();
    if let Some(signal) = signal {
        left?;
        say(&format!("{signal}: the demo ends early, and has cleaned up"));
        return Ok(ExitCode::from(128 + u8::try_from(signal as i32)?));
    }
    result.unwrap_or_else(|panic| panic::resume_unwind(panic))?;
    left?;
    println!("\nThe demo took {:.0} s, and left nothing behind", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn play(ground: &Ground) -> Result<()> {
    let [good4, bad4] = [Server::start("127.0.0.1")?, Server::start("127.0.0.1")?];
    let six = [Server::start("::1").ok(), Server::start("::1").ok()];
    if six.iter().any(Option::is_none) {
        say("this host has no IPv6 loopback: those lines of the workload fail for that reason");
    }
    let [good6, bad6] = six;
    let (stream, later) = (Stream::start()?, Server::free_port()?);
    prepare_work(ground)?;
    let policy = ground.policy();
    let port6 = good6.as_ref().map_or(good4.port, |s| s.port);
    fs::write(&policy, policy_text(ground, [good4.port, stream.port, later], port6)?)
        .context("cannot write the policy")?;
    ground.start_agent()?;
    ground.show_controls()?;

    heading("A program out of scope is refused before anything starts");
    let refused = ground.run(&policy).args(["env"]).status().context("cannot start tipstaff run")?;
    ensure!(refused.code() == Some(125), "`tipstaff run -- env` ended with {refused}, and should have with 125");

    heading(&format!("A session of {TTL}: what the workload itself says"));
    let mut workload = ground.run(&policy);
    workload.arg("./work.sh").current_dir(ground.work());
    workload.env("GOOD4", good4.url()).env("BAD4", bad4.url());
    workload.env("GOOD6", good6.as_ref().map_or_else(String::new, Server::url));
    workload.env("BAD6", bad6.as_ref().map_or_else(String::new, Server::url));
    workload.env("STREAM", stream.port.to_string()).env("LATER", later.to_string());
    let mut workload = workload.spawn().context("cannot start tipstaff run")?;
    let refused = without_agent(ground, &mut workload, &stream, later)?;

    heading("A new agent starts");
    ground.start_agent()?;
    let status = ground.interrupt.until(Instant::now() + PATIENCE, || Ok(workload.try_wait()?))?;
    let status = status.context("the workload does not end")?;
    ground.wait_for_end()?;

    heading("The same from the kernel: the evidence");
    timeline::print(&ground.evidence())?;
    heading("What is left");
    let good: Vec<&Server> = [Some(&good4), good6.as_ref()].into_iter().flatten().collect();
    let bad: Vec<&Server> = [Some(&bad4), bad6.as_ref()].into_iter().flatten().collect();
    let never: Vec<&Server> = bad.iter().copied().chain([&refused]).collect();
    check(ground, status, &never, &good)?;
    let woken = ground.work().join("woken").exists();
    check_records(&timeline::records(&ground.evidence())?, &bad, &good, woken)?;
    ensure!(timeline::destroyed(&ground.evidence(), stream.port)?, "no receipt says that the connection is destroyed");
    let fate = || Some(stream.fate()).filter(|fate| *fate != Fate::Open);
    let fate = ground.interrupt.until(Instant::now() + RESET, || Ok(fate()))?;
    ensure!(fate == Some(Fate::Reset), "the other end of the open connection was not told of its end: {fate:?}");
    println!("  the open connection is destroyed, with a receipt; its other end was reset");
    heading("The evidence");
    println!("  {}", ground.evidence().display());
    let verified = output(&mut ground.tipstaff(&["verify"]))?;
    for line in verified.lines() {
        println!("  {line}");
    }
    ensure!(verified.contains("intact, with 1 gap") && verified.contains("agent-absent"), "verify names no gap");
    Ok(())
}

/// From the agent's death to after the session's end: what the kernel holds alone. The server that the session asks for
/// each second is there only after the end.
fn without_agent(ground: &Ground, workload: &mut Child, stream: &Stream, later: u16) -> Result<Server> {
    let wait = &ground.interrupt;
    let life = wait.until(Instant::now() + PATIENCE, || Life::of_session(&ground.evidence(), workload))?;
    let Life { began, over } = life.context("no record says that the session began")?;
    let ready = || {
        let pid = fs::read_to_string(ground.work().join("spinner")).ok()?.trim().parse::<u32>().ok()?;
        (stream.fate() == Fate::Open).then_some(pid)
    };
    let pid = wait.until(over - ALONE, || Ok(ready()))?.context("the workload was not ready before its agent died")?;
    wait.rest(began + KILLED)?;
    heading(&format!("After {:.0} s the agent is killed; nobody takes its place", began.elapsed().as_secs_f64()));
    ensure!(stream.fate() == Fate::Open, "the session has no open connection");
    ground.kill_agent()?;
    let killed = Instant::now();
    wait.rest(over + WOKEN)?;
    let server = Server::start_on("127.0.0.1", later)?;
    let wake = ground.work().join("wake");
    let mut wake = fs::File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(wake)?;
    wake.write_all(b"now\n").context("no child waits to be woken")?;
    wait.rest(over + LOOKED)?;
    let dead = || (!Path::new("/proc").join(pid.to_string()).exists() || is_dead(pid)).then_some(());
    let dead = wait.until(over + CLOCK, || Ok(dead()))?;
    let ago = |then: Instant| then.elapsed().as_secs_f64();
    println!("  the session was over {:.1} s ago, and the agent died {:.1} s ago:", ago(over), ago(killed));
    dead.context("the child that computes lives")?;
    println!("  the child that computed is dead: the kernel's clock killed it");
    ensure!(!ground.work().join("late-marker").exists(), "a program ran after the session's end");
    match ground.work().join("woken").exists() {
        true => println!("  a child woke and tried git, which was in scope: it did not run"),
        false => println!("  a child was woken, and was dead before it could try git"),
    }
    ensure!(server.connections() == 0, "a member reached a server after the session's end");
    println!("  a child asked for a server in scope, which is there now: it was not reached");
    println!("  {} processes of it sleep on; what sleeps needs an agent to be removed", ground.members()?.len());
    Ok(server)
}

/// What the kernel reported is what the workload tried.
fn check_records(records: &[Value], refused: &[&Server], reached: &[&Server], woken: bool) -> Result<()> {
    let all = |kind: &'static str| records.iter().filter(move |record| record["type"] == kind);
    let connect = |to: &str, verdict: &str| all("connect").any(|r| r["to"] == to && r["verdict"] == verdict);
    let addresses = refused.iter().map(|server| server.address()).chain(["169.254.169.254:80".to_owned()]);
    for to in addresses {
        ensure!(connect(&to, "deny") && !connect(&to, "allow"), "no record says that {to} was refused");
    }
    for to in reached.iter().map(|server| server.address()) {
        ensure!(connect(&to, "allow"), "no record says that {to} was reached");
    }
    let ran = |program: &'static str, allowed: bool| {
        let path = move |r: &&Value| r["path"].as_str().is_some_and(|path| path.ends_with(program));
        all("exec").filter(path).filter(move |r| (r["verdict"] == "allow") == allowed)
    };
    ensure!(ran("/git", true).next().is_some(), "no record says that git ran");
    let who: BTreeSet<u64> = ran("/tee", false).filter_map(|r| r["pid"].as_u64()).collect();
    ensure!(who.len() == 2, "tee was to be refused to the workload and to its daemonised child, and was to {who:?}");
    ensure!(ran("/tee", true).next().is_none(), "tee ran");
    println!(
        "  the evidence has each refusal: two addresses, the metadata address, tee, and tee by the daemonised child"
    );
    let over = |kind| all(kind).any(|r| r["rule"] == "expired");
    ensure!(over("connect") || over("socket"), "no record says that a connection was refused after the end");
    ensure!(!woken || over("exec"), "no record says that a program was refused after the end");
    Ok(())
}

/// When a session began, and when it is over.
struct Life {
    began: Instant,
    over: Instant,
}

impl Life {
    /// As the session's first record says, once it is there.
    fn of_session(evidence: &Path, workload: &mut Child) -> Result<Option<Self>> {
        if let Some(status) = workload.try_wait()? {
            bail!("the workload ended with {status} before its session began");
        }
        let Some((deadline, ttl)) = timeline::deadline(evidence)? else { return Ok(None) };
        let over = Instant::now() + deadline.saturating_sub(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?));
        Ok(Some(Self { began: over - ttl, over }))
    }
}

/// Whether a process only waits to be reaped.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn heading(text: &str) {
    println!("\n{text}");
}

/// A repository to clone, and the scripts.
fn prepare_work(ground: &Ground) -> Result<()> {
    let work = ground.work();
    let origin = work.join("origin");
    fs::create_dir_all(&origin)?;
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "init.defaultBranch=main"];
        let mut git = Command::new("git");
        ground.bare(&mut git);
        output(git.arg("-C").arg(&origin).args(identity).args(arguments))
    };
    git(&["init", "-q"])?;
    fs::write(origin.join("README"), "a repository\n")?;
    git(&["add", "README"])?;
    git(&["commit", "-q", "-m", "one commit"])?;
    for (name, text) in [("work.sh", WORKLOAD), ("daemon.sh", DAEMON), ("spin.sh", SPIN), ("late.sh", LATE)] {
        fs::write(work.join(name), text)?;
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(0o755))?;
    }
    nix::unistd::mkfifo(&work.join("wake"), nix::sys::stat::Mode::S_IRWXU).context("cannot make a fifo")?;
    Ok(())
}

/// The workload's scope: these programs and these two servers, and nothing else.
fn policy_text(ground: &Ground, [port4, stream, later]: [u16; 3], port6: u16) -> Result<String> {
    let path = |program: &str| quoted(&which(program).with_context(|| format!("{program} is not on the PATH"))?);
    let script = |name: &str| quoted(&ground.work().join(name));
    let mut git = Command::new("git");
    ground.bare(&mut git);
    let git_programs = output(git.arg("--exec-path"))?;
    Ok(format!(
        "apiVersion: tipstaff.dev/v1alpha1
kind: SessionPolicy
metadata:
  name: demo
spec:
  kind: agent
  limits:
    ttl: {TTL}
  scope:
    exec:
      allow:
        - {{ path: {}, id: shell }}
        - {{ path: {}, id: git }}
        - {{ dir: {}, id: git-programs }}
        - {{ path: {}, id: curl }}
        - {{ path: {}, id: setsid }}
        - {{ path: {}, id: sleep }}
        - {{ path: {}, id: workload }}
        - {{ path: {}, id: daemon }}
        - {{ path: {}, id: computes }}
        - {{ path: {}, id: late }}
    net:
      allow:
        - {{ to: 127.0.0.1, ports: [{port4}, {stream}, {later}], proto: tcp, id: server }}
        - {{ to: \"::1\", ports: [{port6}], proto: tcp, id: server-6 }}
",
        path("sh")?,
        path("git")?,
        quoted(Path::new(git_programs.trim_end()))?,
        path("curl")?,
        path("setsid")?,
        path("sleep")?,
        script("work.sh")?,
        script("daemon.sh")?,
        script("spin.sh")?,
        script("late.sh")?,
    ))
}

/// A path as YAML has it between double quotes, which is as JSON has it: it may hold what YAML has a meaning for.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8, and a policy is", path.display()))?;
    serde_json::to_string(text).with_context(|| format!("cannot quote {text}"))
}

/// Says what came of it, and fails where it is not what was promised.
fn check(ground: &Ground, status: ExitStatus, refused: &[&Server], reached: &[&Server]) -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    ensure!(status.signal() == Some(9), "the workload ended with {status}, and should have been killed at its ttl");
    println!("  the new agent removed what slept");
    for marker in ["marker", "daemon-marker"] {
        ensure!(!ground.work().join(marker).exists(), "{marker} exists: a program out of scope ran");
    }
    println!("  no marker of a program out of scope exists, nor of the daemonised child's");
    ensure!(refused.iter().all(|s| s.connections() == 0), "a server out of scope was reached");
    ensure!(reached.iter().all(|s| s.connections() > 0), "a server in scope was not reached");
    println!("  the servers out of scope were never connected to");
    let members = ground.members()?;
    ensure!(members.is_empty(), "processes are left: {members:?}");
    println!("  no process of the session is alive");
    Ok(())
}
