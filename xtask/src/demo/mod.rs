//! `./x demo`: the main job on real input. An agent with a throw-away state, a policed workload of real programs, a
//! readable timeline from its evidence, and nothing left behind.

mod ground;
mod server;
mod timeline;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build,
    exec::{output, say, which},
    packages,
    workspace::Workspace,
};
use ground::Ground;
use server::Server;

/// How long the demo's session may last.
const TTL: &str = "6s";
/// Programs that the workload is made of, and Debian's packages for them.
const PROGRAMS: [(&str, &str); 3] = [("git", "git"), ("curl", "curl"), ("setsid", "util-linux")];

/// What the session runs. Every line is a real program that does, or tries, something.
const WORKLOAD: &str = r#"#!/bin/sh
say() { echo "  | $*"; }
try() { "$@" >/dev/null 2>&1; code=$?; if [ $code = 0 ]; then echo "worked"; else echo "refused (status $code)"; fi; }
say "git clone of a repository:           $(try git clone -q origin clone)"
say "git log:                             $(try git -C clone log -1)"
say "curl to a server in scope:           $(try curl -sf -m 3 "$GOOD4")"
say "curl to a server in scope, IPv6:     $(try curl -gsf -m 3 "$GOOD6")"
say "curl to a server out of scope:       $(try curl -sf -m 3 "$BAD4")"
say "curl to a server out of scope, IPv6: $(try curl -gsf -m 3 "$BAD6")"
say "curl to the metadata address:        $(try curl -sf -m 3 http://169.254.169.254/latest/meta-data/)"
say "tee, a program out of scope:         $(try tee marker </dev/null)"
setsid -f ./daemon.sh </dev/null >/dev/null 2>&1
say "a child daemonised and went its own way; now everything waits for the end of the ttl"
exec sleep 300
"#;

/// What the double-forked child runs.
const DAEMON: &str = "#!/bin/sh\nsleep 1\ntee daemon-marker </dev/null\nsleep 300\n";

/// Builds, runs the demo, and cleans up after it.
pub(crate) fn demo(workspace: &Workspace) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo loads programs into the kernel and makes cgroups: run ./x demo, which asks for sudo");
    }
    build::build(workspace)?;
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(p, _)| which(p).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        ensure!(packages::is_debian(), "the demo's workload needs {}: install it", missing.join(", "));
        packages::install(&missing)?;
    }
    let ground = Ground::prepare(workspace)?;
    let result = play(&ground);
    let left = ground.clean_up();
    result?;
    left?;
    Ok(ExitCode::SUCCESS)
}

fn play(ground: &Ground) -> Result<()> {
    let [good4, bad4] = [Server::start("127.0.0.1")?, Server::start("127.0.0.1")?];
    let six = [Server::start("::1").ok(), Server::start("::1").ok()];
    if six.iter().any(Option::is_none) {
        say("this host has no IPv6 loopback: those lines of the workload fail for that reason");
    }
    let [good6, bad6] = six;
    prepare_work(&ground.work())?;
    let policy = ground.policy();
    let port6 = good6.as_ref().map_or(good4.port, |s| s.port);
    fs::write(&policy, policy_text(&ground.work(), good4.port, port6)?).context("cannot write the policy")?;
    ground.start_agent()?;

    heading("A program out of scope is refused before anything starts");
    let refused = ground.run(&policy).args(["env"]).status().context("cannot start tipstaff run")?;
    ensure!(refused.code() == Some(125), "`tipstaff run -- env` ended with {refused}, and should have with 125");

    heading(&format!("A session of {TTL}: what the workload itself says"));
    let mut workload = ground.run(&policy);
    workload.arg("./work.sh").current_dir(ground.work());
    workload.env("GOOD4", good4.url()).env("BAD4", bad4.url());
    workload.env("GOOD6", good6.as_ref().map_or_else(String::new, Server::url));
    workload.env("BAD6", bad6.as_ref().map_or_else(String::new, Server::url));
    let status = workload.status().context("cannot start tipstaff run")?;
    ground.wait_for_end()?;

    heading("The same from the kernel: the evidence");
    timeline::print(&ground.evidence())?;
    heading("What is left");
    check(ground, status, &[&bad4], &[&good4])?;
    heading("The evidence");
    println!("  {}", ground.evidence().display());
    for line in output(&mut ground.tipstaff(&["verify"]))?.lines() {
        println!("  {line}");
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}");
}

/// A repository to clone, and the scripts.
fn prepare_work(work: &Path) -> Result<()> {
    let origin = work.join("origin");
    fs::create_dir_all(&origin)?;
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "init.defaultBranch=main"];
        output(Command::new("git").arg("-C").arg(&origin).args(identity).args(arguments))
    };
    git(&["init", "-q"])?;
    fs::write(origin.join("README"), "a repository\n")?;
    git(&["add", "README"])?;
    git(&["commit", "-q", "-m", "one commit"])?;
    for (name, text) in [("work.sh", WORKLOAD), ("daemon.sh", DAEMON)] {
        fs::write(work.join(name), text)?;
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The workload's scope: these programs and these two servers, and nothing else.
fn policy_text(work: &Path, port4: u16, port6: u16) -> Result<String> {
    let path = |program: &str| {
        let found = which(program).with_context(|| format!("{program} is not on the PATH"))?;
        Ok::<String, anyhow::Error>(found.display().to_string())
    };
    let git_programs = output(Command::new("git").arg("--exec-path"))?;
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
        - {{ path: {work}/work.sh, id: workload }}
        - {{ path: {work}/daemon.sh, id: daemon }}
    net:
      allow:
        - {{ to: 127.0.0.1, ports: [{port4}], proto: tcp, id: server }}
        - {{ to: \"::1\", ports: [{port6}], proto: tcp, id: server-6 }}
",
        path("sh")?,
        path("git")?,
        git_programs.trim(),
        path("curl")?,
        path("setsid")?,
        path("sleep")?,
        work = work.display(),
    ))
}

/// Says what came of it, and fails where it is not what was promised.
fn check(ground: &Ground, status: ExitStatus, refused: &[&Server], reached: &[&Server]) -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    ensure!(status.signal() == Some(9), "the workload ended with {status}, and should have been killed at its ttl");
    println!("  the workload was killed at the end of its ttl");
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
