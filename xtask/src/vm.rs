//! Boots a guest under qemu and runs the black-box tests in it, as its init.
//!
//! The contract with the tests: they print `TIPSTAFF-INIT` when they run, their records as they come, and at last
//! `TIPSTAFF-EXIT <status>`; then the guest powers off. Their arguments and the tier are on the kernel's command line.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build,
    exec::{Watched, say, watch},
    initramfs,
    kernels::{self, Kernel},
    report::{self, Records},
    setup,
    workspace::Workspace,
};

/// A boot takes about ten seconds without hardware virtualisation; one that takes this long hangs.
const BOOT: Duration = Duration::from_secs(90);
/// What makes an emulated kernel faster. qemu keeps the code that it translated by its virtual address: a program that is
/// mapped elsewhere each time is translated each time. A look at the HPET, which the kernel prefers here, leaves the
/// emulated processor; the TSC does not. Debian's kernels clear all memory that they hand out. A test took 2.3 s of
/// processor instead of 3.8 s. What keeps processors from telling too much is of no use to one that is emulated (`net::`, 7.2:
/// 31.9 s instead of 33.3).
const EMULATED: &str = "norandmaps clocksource=tsc tsc=reliable init_on_alloc=0 mitigations=off";
/// The emulated processor, without the marks of fast string instructions: where they are there, the kernel copies by `rep
/// movsb`, which is emulated byte by byte (the tests of bad input, 6.1: 37 s of processor instead of 49; 7.2: the same). And
/// without SMAP: each copy from and to user space is between two instructions for it, and each of them ends a piece of code
/// that is translated as one (`net::`, 6.1: 29.5 s instead of 30.2).
const PROCESSOR: &str = "max,-erms,-fsrm,-smap";
/// The kernel cuts a longer command line without a word.
const COMMAND_LINE: usize = 2047;

/// Options of `vm`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// 5.10, 6.1, 6.12, unstable, or a kernel image
    #[arg(long)]
    kernel: String,
    /// Whether the guest's kernel runs BPF LSM programs
    #[arg(long, value_enum, default_value_t = Lsm::Full)]
    lsm: Lsm,
    /// Look for a newer image of that kernel
    #[arg(long)]
    refresh: bool,
    /// Seconds until the guest is stopped
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// More words for the kernel's command line, such as ipv6.disable=1
    #[arg(long, default_value = "")]
    append: String,
    /// Arguments of the tests
    #[arg(last = true)]
    args: Vec<String>,
}

/// The Linux security modules of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lsm {
    /// With `bpf`: tier full
    Full,
    /// Without: tier no-lsm
    None,
}

impl Lsm {
    fn command_line(self) -> &'static str {
        match self {
            Self::Full => "lsm=capability,landlock,bpf",
            Self::None => "lsm=capability,landlock",
        }
    }
}

/// The verb.
pub(crate) fn vm(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    build::build(workspace)?;
    setup::guest_tools()?;
    let kernel = kernels::get(workspace, &options.kernel, options.refresh)?;
    let mut records = Records::default();
    let guest =
        Guest { kernel: &kernel, lsm: options.lsm, args: &options.args, clock: Clock::Time, append: &options.append };
    guest.write_initramfs(workspace)?;
    let ran = guest.run(workspace, Duration::from_secs(options.timeout), &mut records)?;
    Ok(ExitCode::from(ran.status))
}

/// What a guest's tests came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Their exit status.
    pub(crate) status: u8,
    /// What they reported, a line each.
    pub(crate) reports: Vec<String>,
}

/// One guest to boot.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) lsm: Lsm,
    pub(crate) args: &'a [String],
    pub(crate) clock: Clock,
    /// More words for its kernel's command line.
    pub(crate) append: &'a str,
}

/// What makes a guest's clock go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Time,
    /// Each instruction is a nanosecond, and a processor that waits waits no time. On one processor, so that only what is
    /// measured is counted.
    Instructions,
}

impl Clock {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Time => &["-smp", "2"],
            Self::Instructions => &["-smp", "1", "-icount", "shift=0,sleep=off"],
        }
    }
}

impl Guest<'_> {
    /// The tier that the tests are to find.
    pub(crate) fn tier(&self) -> &'static str {
        match self.lsm {
            _ if self.kernel.old => "old",
            Lsm::Full => "full",
            Lsm::None => "no-lsm",
        }
    }

    /// What the tests' reports begin with.
    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.kernel.name, self.tier())
    }

    /// Its file system; one for each guest: others may run beside it.
    pub(crate) fn initramfs(&self, workspace: &Workspace) -> PathBuf {
        workspace.vm().join(format!("initramfs-{}-{}.cpio", self.kernel.name, self.tier()))
    }

    /// Writes its file system, from what is built.
    pub(crate) fn write_initramfs(&self, workspace: &Workspace) -> Result<()> {
        initramfs::write(workspace, self.kernel.modules.as_deref(), &self.initramfs(workspace))
    }

    /// Boots, and runs the tests. A boot that dies before init is tried once more.
    pub(crate) fn run(&self, workspace: &Workspace, limit: Duration, records: &mut Records) -> Result<Ran> {
        let label = self.label();
        say(&format!("{label}: {}", self.kernel.package));
        let initramfs = self.initramfs(workspace);
        for attempt in [1, 2] {
            let (early, reports) = (String::new(), Vec::new());
            let mut console = Console { label: &label, started: false, early, reports, status: None, records };
            let end = watch(&mut self.qemu(&initramfs)?, |line| console.line(line, limit), Instant::now() + BOOT)?;
            match (console.started, console.status) {
                (_, Some(status)) => return Ok(Ran { status, reports: console.reports }),
                (false, None) if attempt == 1 => say(&format!("{label}: the boot died before init; trying once more")),
                (false, None) => bail!("{label}: the boot died before init; its console:\n{}", console.early),
                (true, None) if end == Watched::Late => bail!("{label}: stopped after {} s", limit.as_secs()),
                (true, None) => bail!("{label}: the guest went down in the middle of the tests"),
            }
        }
        bail!("{label}: the guest did not boot")
    }

    /// No hardware virtualisation (it is often not there), no network card: loopback is all that the tests use.
    pub(crate) fn qemu(&self, initramfs: &Path) -> Result<Command> {
        let args: Vec<String> = self.args.iter().map(|arg| percent_encode(arg)).collect();
        let (lsm, tier) = (self.lsm.command_line(), self.tier());
        let mut line = format!("console=ttyS0 quiet panic=-1 {EMULATED} {lsm} tipstaff.tier={tier}");
        if !args.is_empty() {
            line += &format!(" tipstaff.args={}", args.join(","));
        }
        if !self.append.is_empty() {
            line += &format!(" {}", self.append);
        }
        if line.len() > COMMAND_LINE {
            bail!("the tests' arguments are too long for a kernel's command line ({COMMAND_LINE} bytes)");
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        // one thread for both CPUs: with two, 7.2 hung in one of three runs on a busy machine (both CPUs spinning)
        qemu.args(["-accel", "tcg,thread=single", "-cpu", PROCESSOR, "-m", "1024", "-no-reboot"]);
        qemu.args(self.clock.options());
        qemu.args(["-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initramfs).args(["-append", &line]);
        Ok(qemu)
    }
}

/// What has been read from a guest's console.
struct Console<'a> {
    label: &'a str,
    started: bool,
    /// What came before init: shown only when init never comes.
    early: String,
    /// The tests' reports.
    reports: Vec<String>,
    status: Option<u8>,
    records: &'a mut Records,
}

impl Console<'_> {
    /// Takes a line; returns until when the guest may run.
    fn line(&mut self, line: &str, limit: Duration) -> Option<Instant> {
        if line.contains("TIPSTAFF-INIT") {
            self.started = true;
            return Some(Instant::now() + limit);
        }
        if !self.started {
            self.early += line;
            self.early.push('\n');
        } else if self.status.is_some() {
            // the kernel's farewell
        } else if let Some(status) = line.split("TIPSTAFF-EXIT ").nth(1) {
            self.status = Some(status.trim().parse().unwrap_or(u8::MAX));
        } else {
            if report::is_report(line) {
                self.reports.push(line.to_owned());
            }
            if let Some(text) = self.records.take(line) {
                println!("{} | {text}", self.label);
            }
        }
        None
    }
}

/// Everything but what is safe between commas in a kernel's command line.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._/:=".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::percent_encode;

    #[test]
    fn arguments_survive_a_kernel_command_line() {
        assert_eq!(percent_encode("--tier=no-lsm"), "--tier=no-lsm");
        assert_eq!(percent_encode("a b,c%\"ü"), "a%20b%2Cc%25%22%C3%BC");
    }
}
