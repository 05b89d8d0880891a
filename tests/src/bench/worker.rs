//! The driver's end of a measuring process, and the places in which one can run.

use std::{
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::place;
use crate::{
    harness::{
        cgroup::Cgroup,
        launch::enter,
        policy::Policy,
        sandbox::Sandbox,
        wait::{patience, until},
    },
    work::measure::{DESTINATIONS, STRIDE, network},
};

/// The programs that the measuring is done with, in the sandbox's folder.
#[derive(Debug)]
pub(super) struct Programs {
    /// This binary, with an inode of its own.
    pub(super) worker: String,
    /// A program that ends at once.
    pub(super) nothing: String,
    /// The same, which no policy allows.
    pub(super) forbidden: String,
    /// A program that sleeps until it is killed, and needs next to no memory.
    pub(super) sleeper: String,
}

impl Programs {
    pub(super) fn make(sandbox: &Sandbox) -> Result<Self> {
        let bin = sandbox.folder().join("bin");
        Ok(Self {
            worker: sandbox.program("worker")?,
            nothing: smallest(&bin.join("nothing"))?,
            forbidden: smallest(&bin.join("forbidden"))?,
            sleeper: write(&bin.join("sleeper"), &SLEEP)?,
        })
    }

    /// The policy of a measured session: so many rules on addresses, of which the destinations use their part.
    pub(super) fn policy(&self, rules: u32) -> Policy {
        let base = Policy::new().allow("worker", &self.worker).allow("nothing", &self.nothing).listening();
        networks(rules)
            .into_iter()
            .enumerate()
            .fold(base, |policy, (n, (network, bits))| policy.to(&format!("net-{n}"), &format!("{network}/{bits}"), ""))
    }
}

/// So many networks that cover all destinations.
fn networks(count: u32) -> Vec<(Ipv4Addr, u8)> {
    if count < DESTINATIONS {
        return vec![(Ipv4Addr::new(127, 0, 0, 0), 8)];
    }
    let reached = (0..DESTINATIONS).map(|n| n * STRIDE);
    let others = (0..DESTINATIONS * STRIDE + STRIDE).filter(|n| !(n % STRIDE == 0 && n / STRIDE < DESTINATIONS));
    reached.chain(others).take(count as usize).map(|n| (network(n), 24)).collect()
}

/// The smallest program: `exit(0)` and nothing else.
pub(super) fn smallest(path: &Path) -> Result<String> {
    write(path, &EXIT)
}

/// A program of this code, in an ELF file of one segment.
fn write(path: &Path, code: &[u8]) -> Result<String> {
    std::fs::write(path, elf(code)).with_context(|| format!("{} cannot be made", path.display()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    Ok(path.display().to_string())
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
/// `exit(0)`: `xor edi, edi; mov eax, 60; syscall`
#[cfg(target_arch = "x86_64")]
const EXIT: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
/// `pause()` again and again: `mov eax, 34; syscall; jmp -9`
#[cfg(target_arch = "x86_64")]
const SLEEP: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
/// `exit(0)`: `mov x0, #0; mov x8, #93; svc #0`
#[cfg(target_arch = "aarch64")]
const EXIT: [u8; 12] = [0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4];
/// `ppoll(0, 0, 0, 0)` again and again: all registers are 0 at the start; `mov x0, #0; mov x8, #73; svc #0; b -12`
#[cfg(target_arch = "aarch64")]
const SLEEP: [u8; 16] = [0, 0, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 1, 0, 0, 0xd4, 0xfd, 0xff, 0xff, 0x17];

fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut put = |bytes: &[u8]| file.extend(bytes);
    // an executable, of this machine, version 1
    put(&2_u16.to_le_bytes());
    put(&MACHINE.to_le_bytes());
    put(&1_u32.to_le_bytes());
    // entry, program headers, no sections
    [BASE + HEADERS, 64, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&0_u32.to_le_bytes());
    [64_u16, 56, 1, 0, 0, 0].iter().for_each(|half| put(&half.to_le_bytes()));
    // one segment, to be loaded, readable and executable: the whole file
    put(&1_u32.to_le_bytes());
    put(&5_u32.to_le_bytes());
    let size = HEADERS + code.len() as u64;
    [0, BASE, BASE, size, size, 0x1000].iter().for_each(|word| put(&word.to_le_bytes()));
    put(code);
    file
}

/// A measuring process. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    /// Gone once it was told to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// In `cgroup`, in no session.
    pub(super) fn outside(programs: &Programs, cgroup: &Cgroup) -> Result<Self> {
        Self::start(Command::new(&programs.worker), &[], programs, cgroup)
    }

    /// The same as a child of a guard, which is of `work::guard`'s.
    pub(super) fn under(guard: &str, programs: &Programs, cgroup: &Cgroup) -> Result<Self> {
        Self::start(Command::new(&programs.worker), &["under", guard], programs, cgroup)
    }

    /// In a session of its own under the policy in `file`.
    pub(super) fn inside(programs: &Programs, sandbox: &Sandbox, file: &str) -> Result<Self> {
        Self::inside_for(programs, sandbox, file, "10m")
    }

    /// In such a session with a shorter ttl.
    pub(super) fn inside_for(programs: &Programs, sandbox: &Sandbox, file: &str, ttl: &str) -> Result<Self> {
        let mut command = sandbox.tipstaff();
        command.args(["run", "--policy", file, "--ttl", ttl, "--", &programs.worker]);
        Self::start(command, &[], programs, sandbox.callers())
    }

    fn start(mut command: Command, guard: &[&str], programs: &Programs, cgroup: &Cgroup) -> Result<Self> {
        let processor = place::WORKER.to_string();
        command.arg("--work").args(guard).args(["measure", &processor, &programs.nothing, &programs.forbidden]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        enter(&mut command, cgroup, None)?;
        // in a session it could not any more; a host that refuses it is told of by the process itself
        let first = || {
            place::first(true).unwrap_or_default();
            Ok(())
        };
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(first) };
        let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a piped output is missing")?;
        let mut worker = Self { child, input, output: BufReader::new(output) };
        let said = worker.line()?;
        ensure!(said == "ready", "a measuring process said {said:?}");
        Ok(worker)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What an operation's `count` runs took, in nanoseconds for one.
    pub(super) fn time(&mut self, operation: &str, count: u32) -> Result<f64> {
        self.time_to(operation, count, 0)
    }

    /// As [`Worker::time`], with a server's port for the operations that need one.
    pub(super) fn time_to(&mut self, operation: &str, count: u32, port: u16) -> Result<f64> {
        let line = self.ask(&format!("{operation} {count} {port}"))?;
        let ns: f64 = line.parse().with_context(|| format!("{operation}: a measuring process said {line:?}"))?;
        Ok(ns / f64::from(count))
    }

    /// Sends a line, and reads the answer.
    pub(super) fn ask(&mut self, line: &str) -> Result<String> {
        let input = self.input.as_mut().context("a piped input is missing")?;
        writeln!(input, "{line}").context("a measuring process ended")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "a measuring process ended");
        Ok(line.trim().to_owned())
    }

    /// Ends it by ending its input.
    pub(super) fn end(mut self) -> Result<()> {
        self.input = None;
        let status = until("a measuring process to end", patience(), || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "a measuring process ended with {status}");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // both fail where it was waited for: then there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
