//! Where the demo stands: a folder, three cgroups, a BPF file system of its own, an agent. Made at the start, gone at the
//! end; what a demo that was interrupted left is swept by the next.

use std::{
    cell::RefCell,
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::interrupt::Interrupt;
use crate::{exec::output, workspace::Workspace};

/// Names of the demo's cgroups begin so; the rest is its process id.
const PREFIX: &str = "tipstaff-demo-";
const PATIENCE: Duration = Duration::from_secs(20);
const GLANCE: Duration = Duration::from_millis(20);

/// Everything that the demo made.
pub(super) struct Ground {
    agent: PathBuf,
    folder: PathBuf,
    cgroup: PathBuf,
    running: RefCell<Option<Child>>,
    pub(super) interrupt: Interrupt,
}

impl Ground {
    /// Sweeps what is left of earlier demos, and makes folder, cgroups and mount.
    pub(super) fn prepare(workspace: &Workspace, interrupt: Interrupt) -> Result<Self> {
        let folder = workspace.target.join("demo");
        let tree = cgroup2()?;
        sweep(&folder, &tree)?;
        let cgroup = tree.join(format!("{PREFIX}{}", std::process::id()));
        let ground = Self { agent: workspace.agent(), folder, cgroup, running: RefCell::new(None), interrupt };
        if let Err(error) = ground.make() {
            ground.clean_up()?;
            return Err(error);
        }
        Ok(ground)
    }

    fn make(&self) -> Result<()> {
        for part in ["agent", "callers"] {
            let path = self.cgroup.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        }
        for part in ["work", "bpf", "state", "run"] {
            fs::create_dir_all(self.folder.join(part))?;
        }
        fs::write(self.configuration(), "")?;
        let bpf = self.folder.join("bpf");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpf file system on {}", bpf.display()))
    }

    /// Where the workload runs.
    pub(super) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// The policy's file.
    pub(super) fn policy(&self) -> PathBuf {
        self.folder.join("demo.yaml")
    }

    /// The evidence's file.
    pub(super) fn evidence(&self) -> PathBuf {
        self.folder.join("state/evidence/evidence.jsonl")
    }

    /// The agent's configuration, which says nothing: the host's own is not the demo's.
    fn configuration(&self) -> PathBuf {
        self.folder.join("tipstaff.toml")
    }

    fn pins(&self) -> PathBuf {
        self.folder.join("bpf/pins")
    }

    /// Starts the agent in its own cgroup, confined to the demo's, and waits until it answers.
    pub(super) fn start_agent(&self) -> Result<()> {
        let log = fs::File::options().append(true).create(true).open(self.folder.join("agent.log"))?;
        let mut command = self.inside("agent");
        command
            .arg("daemon")
            .arg("--confine")
            .arg(&self.cgroup)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        *self.running.borrow_mut() = Some(command.spawn().context("cannot start the agent")?);
        let answers = self.interrupt.until(Instant::now() + PATIENCE, || {
            let ended = self.running.borrow_mut().as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(Some(_))));
            let ready = self.tipstaff(&["probe"]).output().is_ok_and(|o| o.status.success() && self.answers());
            Ok((ended || ready).then_some(ready))
        })?;
        if answers != Some(true) {
            bail!("the agent did not start: {}", fs::read_to_string(self.folder.join("agent.log"))?.trim());
        }
        Ok(())
    }

    /// Says what the agent found that it can enforce here.
    pub(super) fn show_controls(&self) -> Result<()> {
        for line in output(&mut self.tipstaff(&["probe"]))?.lines() {
            println!("  {line}");
        }
        Ok(())
    }

    /// Kills the agent as a crash would.
    pub(super) fn kill_agent(&self) -> Result<()> {
        let mut agent = self.running.take().context("there is no agent")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    fn answers(&self) -> bool {
        self.tipstaff(&["status"]).output().is_ok_and(|o| o.status.code() != Some(7))
    }

    /// `tipstaff run` under the policy, from the cgroup of callers.
    pub(super) fn run(&self, policy: &Path) -> Command {
        let mut command = self.inside("callers");
        command.arg("run").arg("--policy").arg(policy).arg("--");
        command
    }

    /// `tipstaff` with the demo's places.
    pub(super) fn tipstaff(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.agent);
        command.args(arguments);
        self.places(&mut command);
        command
    }

    /// `tipstaff` started in one of the demo's cgroups.
    fn inside(&self, part: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(self.cgroup.join(part))
            .arg(&self.agent);
        self.places(&mut command);
        command
    }

    fn places(&self, command: &mut Command) {
        self.bare(command);
        command.env("TIPSTAFF_CONFIG", self.configuration());
        command.env("TIPSTAFF_STATE_DIR", self.folder.join("state"));
        command.env("TIPSTAFF_EVIDENCE_DIR", self.folder.join("state/evidence"));
        command.env("TIPSTAFF_RUNTIME_DIR", self.folder.join("run"));
        command.env("TIPSTAFF_PIN_DIR", self.pins());
        command.env("TIPSTAFF_CGROUP", self.cgroup.join("sessions"));
        command.env("TIPSTAFF_POLICY_DIR", &self.folder);
    }

    /// Of the caller's environment only the PATH: no proxy, no repository and no settings of git, no other agent's places.
    pub(super) fn bare(&self, command: &mut Command) {
        command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("HOME", self.work()).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    }

    /// Waits until no session lives any more.
    pub(super) fn wait_for_end(&self) -> Result<()> {
        let ended = self.interrupt.until(Instant::now() + PATIENCE, || {
            let sessions: Value = serde_json::from_str(&output(&mut self.tipstaff(&["ps", "-o", "json"]))?)?;
            Ok(sessions["sessions"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        ended.context("the session does not end")
    }

    /// Processes in the sessions' cgroups.
    pub(super) fn members(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.cgroup.join("sessions"))?.flatten().filter(|e| e.path().is_dir()) {
            let text = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().map(str::to_owned));
        }
        Ok(found)
    }

    /// Ends the agent and removes everything but the folder.
    pub(super) fn clean_up(self) -> Result<()> {
        let stopped = self.running.take().map_or(Ok(()), |mut agent| stop(&mut agent));
        let disarmed = if self.pins().exists() {
            // in a process group of its own: a second Ctrl-C is not meant for it
            output(self.tipstaff(&["disarm", "--yes"]).process_group(0)).map(|_| ())
        } else {
            Ok(())
        };
        remove(&self.folder, &self.cgroup).and(stopped).and(disarmed)
    }
}

/// Asks the agent to end, and kills it where it does not.
fn stop(agent: &mut Child) -> Result<()> {
    // it may be gone; then there is nothing to end
    let _ = kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM);
    let start = Instant::now();
    while agent.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            agent.kill()?;
            agent.wait()?;
            bail!("the agent did not end {} s after SIGTERM: it was killed", PATIENCE.as_secs());
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// What demos whose process is gone left behind.
fn sweep(folder: &Path, tree: &Path) -> Result<()> {
    for entry in fs::read_dir(tree)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else { continue };
        ensure!(!Path::new("/proc").join(pid).exists(), "another demo runs as process {pid}: wait for its end");
        remove(folder, &entry.path())?;
    }
    if folder.exists() {
        // left mounted by a demo that was killed between its mount and its cgroup
        let _ = umount2(&folder.join("bpf"), MntFlags::MNT_DETACH);
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn remove(folder: &Path, cgroup: &Path) -> Result<()> {
    // the pins go with the file system that they are in, and the programs with the pins
    let _ = umount2(&folder.join("bpf"), MntFlags::MNT_DETACH);
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1").with_context(|| format!("cannot kill {}", cgroup.display()))?;
    let start = Instant::now();
    while let Err(error) = remove_cgroups(cgroup) {
        if start.elapsed() > PATIENCE {
            return Err(error).with_context(|| format!("cannot remove cgroup {}", cgroup.display()));
        }
        thread::sleep(GLANCE);
    }
    Ok(())
}

fn remove_cgroups(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|e| e.path().is_dir()) {
        remove_cgroups(&entry.path())?;
    }
    fs::remove_dir(path)
}

/// Where cgroup2 is mounted.
fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).and_then(|fields| fields.get(1).copied());
    Ok(found.context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")?.into())
}
