//! Agents that tests share. Starting one is most of what a small test costs, in a guest several seconds; so tests that
//! only start sessions and ask use, one after the other, an agent that is there. Each has folders of its own, sees only
//! the evidence from its own start on, and must leave the agent as it found it.
//!
//! The agent's world is the sandbox of a child of the runner, the host, which lives as long as its agent is shared.

use std::{
    fmt::{self, Display},
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    cgroup::Cgroup,
    registry::Tier,
    runner::wait_or_kill,
    sandbox::Sandbox,
    sweep,
    wait::{patience, until},
};

/// The exit status of who got no answer from the agent.
const NO_ANSWER: i32 = 7;

/// A running agent that is there to be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Name of the host's sandbox.
    pub(crate) name: String,
    /// Process id of the agent.
    pub(crate) agent: u32,
}

impl Shared {
    /// As [`Display`] writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, agent) = text.split_once('=')?;
        Some(Self { name: name.to_owned(), agent: agent.parse().ok()? })
    }

    /// The folder in the host's sandbox that is the test's own.
    pub(crate) fn folder(&self, test: u32) -> PathBuf {
        sweep::folder(&self.name).join(format!("test-{test}"))
    }
}

impl Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.agent)
    }
}

/// The runner's handle of a host. One that was not ended is swept.
#[derive(Debug)]
pub(crate) struct Host {
    child: Child,
    /// Closed, it tells the host to end.
    stdin: Option<ChildStdin>,
    shared: Shared,
}

impl Host {
    /// Starts one and waits until its agent answers.
    pub(crate) fn start(tier: Tier, agent: &Path) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--host", "--tier", tier.name(), "--agent"]).arg(agent);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a host cannot start")?;
        let stdin = child.stdin.take();
        let name = sweep::name(child.id());
        let mut line = String::new();
        if let Some(pipe) = child.stdout.as_mut() {
            BufReader::with_capacity(1, pipe).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(agent) => Ok(Self { child, stdin, shared: Shared { name, agent } }),
            Err(_) => {
                child.kill()?;
                child.wait()?;
                sweep::one(&name)?;
                bail!("no agent to share: {}", line.trim())
            }
        }
    }

    pub(crate) const fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Lets the host end its agent and look whether all is well with it.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = wait_or_kill(&mut self.child, 4 * patience())?;
        let mut said = String::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_string(&mut said)?;
        }
        ensure!(status.success(), "an agent that tests shared: {}", said.trim());
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // both fail where it has ended: then there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = sweep::one(&self.shared.name) {
            eprintln!("after an agent that tests shared: {error:#}");
        }
    }
}

/// In the host: starts the agent, says so, and keeps it until stdin is closed.
pub(crate) fn host(sandbox: &mut Sandbox) -> Result<()> {
    sandbox.start()?;
    // each test that shares the agent adds up its own part
    sandbox.was_counted();
    println!("{}", sandbox.agent_pid()?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    sandbox.finish().context("afterwards")
}

impl Sandbox {
    /// Waits until nothing of this test is left with the agent that it shares; fails where something stays.
    pub(super) fn hand_back(&self, shared: &Shared) -> Result<()> {
        let idle = until("the test's sessions to be gone", 2 * patience(), || {
            let asked = self.cli(&["status", "-o", "json"])?;
            // an agent that stood still for as long as a caller waits is asked again
            if asked.code == NO_ANSWER {
                return Ok(None);
            }
            ensure!(matches!(asked.code, 0 | 4), "tipstaff status: {asked:?}");
            let status: Value = serde_json::from_str(&asked.stdout)?;
            ensure!(status["foreign"] == 0, "{} decisions fell on tasks outside the confinement", status["foreign"]);
            ensure!(status["pid"] == shared.agent, "the agent is another: {status}");
            Ok((status["sessions"] == 0).then_some(()))
        });
        idle.with_context(|| format!("left: {}", self.json(&["ps"]).unwrap_or(Value::Null)))?;
        for part in ["callers", "elsewhere", "sessions"] {
            self.empty(&self.part(part))?;
        }
        self.sessions_leave_nothing()?;
        self.evidence_adds_up()?;
        let own = self.folder();
        fs::remove_dir_all(own).with_context(|| format!("{} cannot be removed", own.display()))
    }

    /// Waits until no process is in `cgroup`; a killed task stays in `cgroup.procs` until it is reaped.
    pub(super) fn empty(&self, cgroup: &Cgroup) -> Result<()> {
        let empty = until("the processes to be gone", patience(), || Ok(cgroup.processes().is_empty().then_some(())));
        empty.with_context(|| format!("left over: {:?}", cgroup.processes().iter().map(describe).collect::<Vec<_>>()))
    }
}

fn describe(pid: &u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " "))
}

#[cfg(test)]
mod tests {
    use super::Shared;

    #[test]
    fn what_is_shared_is_handed_on_as_a_word() {
        let shared = Shared { name: "tipstaff-test-7".into(), agent: 9 };
        assert_eq!(Shared::parse(&shared.to_string()), Some(shared));
        assert_eq!(Shared::parse("tipstaff-test-7"), None);
    }
}
