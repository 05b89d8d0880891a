//! What a test gets: folders, a cgroup, pins and an agent of its own, and the proof afterwards that nothing is left.
//! The runner removes it all when the test's process has ended.
//!
//! The cgroup is `<cgroup2>/tipstaff-test-<pid>`: the confinement. In it `agent/` has the agent, `callers/` every
//! process that calls it, `elsewhere/` is for tests that move members, `sessions/` is the agent's.

use std::{
    cell::Cell,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::MsFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    agent::Agent,
    cgroup::Cgroup,
    launch::{Finished, Launch, Running, User, bare},
    mounts,
    policy::Policy,
    registry::Tier,
    shared::Shared,
    sweep,
    wait::{in_guest, patience, until},
};

/// The group that may read from the agent; nobody's on any host.
pub(crate) const READERS: u32 = 64_100;
/// The group that may start and end sessions; nobody's on any host.
pub(crate) const OPERATORS: u32 = 64_101;

/// Name of the agent's binary in its folder.
const NEAR: &str = "tipstaff";

/// A test's own world. It has no agent until [`Sandbox::start`].
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) tier: Tier,
    /// The agent's folder.
    home: PathBuf,
    /// The test's folder; the same where the agent is the test's own.
    folder: PathBuf,
    pins: PathBuf,
    cgroup: Cgroup,
    callers: Cgroup,
    binary: PathBuf,
    agent: Option<Agent>,
    shared: Option<Shared>,
    /// Where in the evidence the test begins.
    pub(super) since: u64,
    armed: bool,
    damaged: bool,
    counted: bool,
    count: Cell<u32>,
    /// The longest that it took until all was as before a fault.
    healed: Cell<Option<Duration>>,
}

impl Sandbox {
    pub(crate) fn new(tier: Tier, binary: &Path) -> Result<Self> {
        let name = sweep::name(std::process::id());
        let folder = sweep::folder(&name);
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        for part in ["state", "run", "policies", "evidence", "bin", "work", "bpf"] {
            fs::create_dir(folder.join(part))?;
        }
        // sessions of other users write here
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))?;
        fs::set_permissions(folder.join("work"), PermissionsExt::from_mode(0o1777))?;
        let config = format!("[groups]\nread = {READERS}\noperate = {OPERATORS}\n");
        fs::write(folder.join("tipstaff.toml"), config)?;
        let pins = match sweep::shared_pins(&name) {
            Some(path) => path,
            None => own_bpffs(&folder.join("bpf"))?,
        };
        let cgroup = Cgroup::create(mounts::cgroup2()?.join(&name))?;
        for part in ["callers", "agent", "elsewhere", "sessions"] {
            cgroup.child(part)?;
        }
        let binary = within_reach(binary, &folder)?;
        Ok(Self::of(tier, folder.clone(), folder, pins, cgroup, binary))
    }

    /// With the agent of another sandbox, which is there already.
    pub(crate) fn join(tier: Tier, binary: &Path, shared: Shared) -> Result<Self> {
        let (home, folder) = (sweep::folder(&shared.name), shared.folder(std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        for part in ["bin", "work"] {
            fs::create_dir(folder.join(part))?;
        }
        fs::set_permissions(folder.join("work"), PermissionsExt::from_mode(0o1777))?;
        let pins = sweep::shared_pins(&shared.name).unwrap_or_else(|| home.join("bpf/tipstaff"));
        let cgroup = Cgroup::at(mounts::cgroup2()?.join(&shared.name));
        let near = home.join(NEAR);
        let binary = if near.exists() { near } else { binary.to_owned() };
        let mut sandbox = Self::of(tier, home, folder, pins, cgroup, binary);
        sandbox.since = fs::metadata(sandbox.evidence_file()).map_or(0, |file| file.len());
        sandbox.shared = Some(shared);
        Ok(sandbox)
    }

    fn of(tier: Tier, home: PathBuf, folder: PathBuf, pins: PathBuf, cgroup: Cgroup, binary: PathBuf) -> Self {
        let callers = Cgroup::at(cgroup.path().join("callers"));
        Self {
            tier,
            home,
            folder,
            pins,
            cgroup,
            callers,
            binary,
            agent: None,
            shared: None,
            since: 0,
            armed: false,
            damaged: false,
            counted: false,
            count: Cell::new(0),
            healed: Cell::new(None),
        }
    }

    /// Starts the agent and waits until it answers; one that is shared does already.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.shared.is_some() {
            return Ok(());
        }
        self.start_as(self.daemon())
    }

    /// Starts an agent and does not wait for it.
    pub(crate) fn start_unready(&mut self) -> Result<Agent> {
        self.armed = true;
        Agent::start(self.daemon(), &self.part("agent"), &self.log())
    }

    /// As [`Sandbox::start`], with a command that was made from [`Sandbox::daemon`].
    pub(crate) fn start_as(&mut self, daemon: Command) -> Result<()> {
        ensure!(self.shared.is_none(), "a test that starts an agent in its own way cannot share one");
        let (since, again) = (Instant::now(), self.armed);
        let agent = Agent::start(daemon, &self.part("agent"), &self.log())?;
        self.armed = true;
        self.ready(agent)?;
        if again {
            self.healed(since);
        }
        Ok(())
    }

    /// An agent was started in another way than by this.
    pub(crate) fn agent_was_started(&mut self) {
        self.armed = true;
    }

    /// All is as before a fault whose cause was gone at `since`.
    pub(crate) fn healed(&self, since: Instant) {
        self.healed.set(self.healed.get().max(Some(since.elapsed())));
    }

    /// The longest that it took until all was as before a fault; none: nothing had to be waited for.
    pub(crate) fn healed_within(&self) -> Option<Duration> {
        self.healed.get()
    }

    /// As [`Sandbox::start`], where the agent has to wait for the processors.
    pub(crate) fn start_within(&mut self, limit: Duration) -> Result<()> {
        let agent = Agent::start(self.daemon(), &self.part("agent"), &self.log())?;
        self.armed = true;
        self.ready_within(agent, limit)
    }

    /// Waits until an agent that was started answers, and keeps it.
    pub(crate) fn ready(&mut self, agent: Agent) -> Result<()> {
        // in a guest its programs take the verifier seconds, and other tests have the processors too
        self.ready_within(agent, 4 * patience())
    }

    fn ready_within(&mut self, mut agent: Agent, limit: Duration) -> Result<()> {
        // its socket is there long before it answers; asking more than once costs more than waiting
        let socket = self.runtime().join("read.sock");
        let ready = until("the agent to answer", limit, || {
            agent.alive()?;
            Ok((UnixStream::connect(&socket).is_ok() && self.cli(&["status"])?.code != 7).then_some(()))
        });
        ready.with_context(|| format!("the agent said: {}", self.said_by_agent()))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The command that starts the agent, with every path the sandbox's.
    pub(crate) fn daemon(&self) -> Command {
        // on a machine that others use, an agent holds nothing but what comes from here
        if in_guest() { self.daemon_of_the_host() } else { self.confined_daemon() }
    }

    pub(crate) fn confined_daemon(&self) -> Command {
        let mut command = self.daemon_of_the_host();
        command.arg("--confine").arg(self.cgroup.path());
        command
    }

    fn daemon_of_the_host(&self) -> Command {
        let mut command = self.tipstaff();
        command.arg("daemon").env("TIPSTAFF_LOG", "warn,tipstaff::kernel=info");
        command
    }

    /// A `tipstaff` command with the sandbox's paths in its environment and nothing else.
    pub(crate) fn tipstaff(&self) -> Command {
        let mut command = bare(&self.binary);
        command
            .env("TIPSTAFF_CONFIG", self.home.join("tipstaff.toml"))
            .env("TIPSTAFF_STATE_DIR", self.home.join("state"))
            .env("TIPSTAFF_RUNTIME_DIR", self.home.join("run"))
            .env("TIPSTAFF_PIN_DIR", &self.pins)
            .env("TIPSTAFF_CGROUP", self.cgroup.path().join("sessions"))
            .env("TIPSTAFF_POLICY_DIR", self.home.join("policies"))
            .env("TIPSTAFF_EVIDENCE_DIR", self.home.join("evidence"));
        command
    }

    /// What `tipstaff` is here.
    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs `tipstaff` with `words` to its end.
    pub(crate) fn cli(&self, words: &[&str]) -> Result<Finished> {
        self.cli_as(None, words)
    }

    pub(crate) fn cli_as(&self, user: Option<User>, words: &[&str]) -> Result<Finished> {
        let mut command = self.tipstaff();
        command.args(words);
        Running::spawn(self, command, user)?.wait_for(2 * patience()).with_context(|| format!("tipstaff {words:?}"))
    }

    /// Runs `tipstaff` with `words` and `-o json`, which must succeed.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let finished = self.cli(&[words, &["-o", "json"]].concat())?;
        ensure!(matches!(finished.code, 0 | 4), "tipstaff {words:?}: {finished:?}");
        serde_json::from_str(&finished.stdout).with_context(|| format!("tipstaff {words:?}: {:?}", finished.stdout))
    }

    /// Starts a session whose command is `program --work line`.
    pub(crate) fn run(&self, policy: &str, program: &str, line: &str) -> Result<Running> {
        self.launch(policy, program, line).start()
    }

    /// As [`Sandbox::run`], with more to say about it.
    pub(crate) fn launch(&self, policy: &str, program: &str, line: &str) -> Launch<'_> {
        Launch::new(self, policy, [program, "--work"].into_iter().chain(line.split_whitespace()))
    }

    /// A program of its own (its own inode) in `bin/`, which does what `--work` says; `name` may have folders.
    pub(crate) fn program(&self, name: &str) -> Result<String> {
        let path = self.folder.join("bin").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy("/proc/self/exe", &path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(path.display().to_string())
    }

    /// What `tipstaff` is for members: a file that gets no other name while a rule names it.
    pub(crate) fn tipstaff_for_members(&self) -> Result<String> {
        if in_guest() {
            return Ok(self.binary.display().to_string());
        }
        let path = self.folder.join("bin").join(NEAR);
        if !path.exists() {
            fs::copy(&self.binary, &path).with_context(|| format!("{} cannot be made", path.display()))?;
        }
        Ok(path.display().to_string())
    }

    /// The folder of [`Sandbox::program`].
    pub(crate) fn bin(&self) -> String {
        self.folder.join("bin").display().to_string()
    }

    /// A path for a new file in a folder that every user may write to.
    pub(crate) fn file(&self, name: &str) -> String {
        self.fresh(name).display().to_string()
    }

    /// As [`Sandbox::file`].
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        self.count.set(self.count.get() + 1);
        self.folder.join("work").join(format!("{name}-{}", self.count.get()))
    }

    /// Waits for a process id that a workload writes to `file`.
    pub(crate) fn pid_in(&self, file: &str) -> Result<u32> {
        until(&format!("a process id in {file}"), patience(), || {
            Ok(fs::read_to_string(file).ok().and_then(|text| text.parse().ok()))
        })
    }

    /// Writes a policy file.
    pub(crate) fn policy(&self, policy: &Policy) -> Result<String> {
        self.policy_text(&policy.to_string())
    }

    pub(crate) fn policy_text(&self, text: &str) -> Result<String> {
        let path = self.fresh("policy").with_extension("yaml");
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// The test's folder, in which an agent of its own has its folders too.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the agent's sockets are.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.home.join("run")
    }

    pub(crate) fn pins(&self) -> &Path {
        &self.pins
    }

    pub(crate) fn evidence_file(&self) -> PathBuf {
        self.home.join("evidence/evidence.jsonl")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.home.join("agent.log")
    }

    pub(crate) fn said_by_agent(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub(crate) fn callers(&self) -> &Cgroup {
        &self.callers
    }

    /// One of the cgroups in the confinement: `agent`, `elsewhere`, `sessions`.
    pub(crate) fn part(&self, name: &str) -> Cgroup {
        Cgroup::at(self.cgroup.path().join(name))
    }

    pub(crate) fn agent_pid(&self) -> Result<u32> {
        if let Some(shared) = &self.shared {
            return Ok(shared.agent);
        }
        Ok(self.agent.as_ref().context("there is no agent")?.pid())
    }

    pub(crate) fn signal_agent(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.agent_pid()?)?);
        Ok(kill(pid, signal)?)
    }

    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("there is no agent")?.kill()
    }

    pub(crate) fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("there is no agent")?.stop()
    }

    /// Waits until the agent, which was told to, has ended.
    pub(crate) fn agent_ends(&mut self) -> Result<()> {
        self.agent.take().context("there is no agent")?.ends()
    }

    /// The test spoils the evidence: it is not verified at the end.
    pub(crate) fn will_damage_evidence(&mut self) {
        self.damaged = true;
    }

    /// The evidence was added up part by part: at the end it is verified only.
    pub(crate) fn was_counted(&mut self) {
        self.counted = true;
    }

    /// Stops the agent, disarms, and fails where anything is left or the evidence does not add up. A shared agent stays.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(shared) = &self.shared {
            return self.hand_back(shared);
        }
        let status = self.agent.is_some().then(|| self.cli(&["status", "-o", "json"])).transpose()?;
        // an agent that a test disarmed is about to go
        if let Some(status) = status.filter(|status| status.code != 7) {
            let said: Value =
                serde_json::from_str(&status.stdout).with_context(|| format!("status said {status:?}"))?;
            // a verdict on a task that this test's agent was not the first to label: never carried out, never to happen
            ensure!(said["foreign"] == 0, "{} decisions fell on tasks outside the confinement", said["foreign"]);
        }
        if let Some(mut agent) = self.agent.take() {
            agent.alive()?;
            agent.stop()?;
        }
        if self.armed {
            self.cli(&["disarm", "--yes"])?.ended(0).context("disarm")?;
        }
        self.nothing_is_left()?;
        if self.armed && !self.damaged {
            if !self.counted {
                self.evidence_adds_up()?;
            }
            self.cli(&["verify"])?.ended(0).context("verify")?;
        }
        Ok(())
    }

    /// Fails where a session's cgroup is left.
    pub(crate) fn nothing_of_sessions_is_left(&self) -> Result<()> {
        let cgroups = self.part("sessions").descendants();
        ensure!(cgroups.is_empty(), "left over: {cgroups:?}");
        Ok(())
    }

    /// Waits for that: the agent tries again where the kernel still counts a task that has ended.
    pub(super) fn sessions_leave_nothing(&self) -> Result<()> {
        let gone = || Ok(self.nothing_of_sessions_is_left().is_ok().then_some(()));
        until("the sessions' cgroups to be gone", patience(), gone).or_else(|_late| self.nothing_of_sessions_is_left())
    }

    /// Fails where a process, a session's cgroup or a pin is left.
    pub(crate) fn nothing_is_left(&self) -> Result<()> {
        self.empty(&self.cgroup)?;
        self.sessions_leave_nothing()?;
        let pins = files_below(&self.pins);
        ensure!(pins.is_empty(), "left over: {pins:?}");
        Ok(())
    }
}

/// The agent's binary where every user can start it: a checkout may lie in a folder that is closed to others.
fn within_reach(binary: &Path, folder: &Path) -> Result<PathBuf> {
    if in_guest() {
        return Ok(binary.to_owned());
    }
    let near = folder.join(NEAR);
    if fs::hard_link(binary, &near).is_err() {
        fs::copy(binary, &near).with_context(|| format!("{} cannot be copied", binary.display()))?;
    }
    Ok(near)
}

fn own_bpffs(path: &Path) -> Result<PathBuf> {
    nix::mount::mount(Some("none"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("bpffs cannot be mounted at {}", path.display()))?;
    if !mounts::is(path, "bpf")? {
        bail!("bpffs is not at {} although it was mounted there", path.display());
    }
    Ok(path.join("tipstaff"))
}

pub(crate) fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
