//! Where the demo stands: a folder, three cgroups, a BPF file system of its own, an agent. Made at the start, gone at the
//! end; what a demo that was interrupted left is swept by the next.

use std::{
    cell::RefCell,
    fs,
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
}

impl Ground {
    /// Sweeps what is left of earlier demos, and makes folder, cgroups and mount.
    pub(super) fn prepare(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("demo");
        let tree = cgroup2()?;
        sweep(&folder, &tree)?;
        let cgroup = tree.join(format!("{PREFIX}{}", std::process::id()));
        for part in ["agent", "callers"] {
            let path = cgroup.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        }
        for part in ["work", "bpf", "state", "run"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let bpf = folder.join("bpf");
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpf file system on {}", bpf.display()))?;
        Ok(Self { agent: workspace.agent(), folder, cgroup, running: RefCell::new(None) })
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
        let start = Instant::now();
        while !self.tipstaff(&["probe"]).output().is_ok_and(|o| o.status.success() && self.answers()) {
            let ended = self.running.borrow_mut().as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(Some(_))));
            if ended || start.elapsed() > PATIENCE {
                bail!("the agent did not start: {}", fs::read_to_string(self.folder.join("agent.log"))?.trim());
            }
            thread::sleep(GLANCE);
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
        command.env("TIPSTAFF_STATE_DIR", self.folder.join("state"));
        command.env("TIPSTAFF_RUNTIME_DIR", self.folder.join("run"));
        command.env("TIPSTAFF_PIN_DIR", self.folder.join("bpf/pins"));
        command.env("TIPSTAFF_CGROUP", self.cgroup.join("sessions"));
        command.env("TIPSTAFF_POLICY_DIR", &self.folder);
        command.env_remove("TIPSTAFF_EVIDENCE_DIR").env_remove("TIPSTAFF_CONFIG");
    }

    /// Waits until no session lives any more.
    pub(super) fn wait_for_end(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let sessions: Value = serde_json::from_str(&output(&mut self.tipstaff(&["ps", "-o", "json"]))?)?;
            if sessions["sessions"].as_array().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the session does not end");
            thread::sleep(GLANCE);
        }
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
        if let Some(mut agent) = self.running.take() {
            // it may be gone; then there is nothing to end
            let _ = kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM);
            agent.wait()?;
            output(&mut self.tipstaff(&["disarm", "--yes"]))?;
        }
        remove(&self.folder, &self.cgroup)
    }
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
