//! `bench`: what Tipstaff costs, measured on this machine, or counted in a guest. Builds, and starts the driver;
//! `docs/performance.md` has the method.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build,
    exec::say,
    kernels,
    report::Records,
    setup,
    vm::{Clock, Guest, Lsm},
    workspace::Workspace,
};

/// What a guest counts where nothing is named: the rest is measured in milliseconds.
const IN_GUESTS: [&str; 3] = ["tax", "peers", "programs"];
/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure; everything where nothing is named. A name that does not exist lists them all
    names: Vec<String>,
    /// At most a minute: what must be exact, and enough of the rest to see that something is wrong with it
    #[arg(long)]
    short: bool,
    /// Rounds without and with the agent: 5, or 2 with --short
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Write every measured value to FILE
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    json: Option<PathBuf>,
    /// Write plots into DIR
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    svg: Option<PathBuf>,
    /// Count instructions in a guest, in place of time: 6.1, 6.12, unstable, or a kernel image
    #[arg(long, value_name = "K")]
    kernel: Option<String>,
    /// Whether the guest's kernel runs BPF LSM programs
    #[arg(long, value_enum, default_value_t = Lsm::Full, requires = "kernel")]
    lsm: Lsm,
}

/// The verb. Its exit status is the driver's: 0; 1 where something that must be exact is not; 4 where the machine was too
/// busy to judge.
pub(crate) fn bench(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Some(kernel) = &options.kernel {
        return counted(workspace, kernel, options);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmarks load programs into this kernel; run them as root, or with --kernel");
    }
    build::build(workspace)?;
    if options.names.is_empty() || options.names.iter().any(|name| name == "peers") {
        setup::peers();
    }
    say("measuring; the machine should have nothing else to do");
    let mut driver = Command::new(workspace.tests());
    driver.arg("--bench").args(words(options));
    let files = [("--json", &options.json), ("--svg", &options.svg)];
    for (option, path) in files.iter().filter_map(|(option, path)| Some((option, path.as_ref()?))) {
        driver.arg(option).arg(path);
    }
    let status = driver.status().with_context(|| format!("cannot start {}", workspace.tests().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map(ExitCode::from).with_context(|| format!("the driver ended with {status}"))
}

/// In a guest, where time is the emulator's: it counts what the processor executes.
fn counted(workspace: &Workspace, kernel: &str, options: &Options) -> Result<ExitCode> {
    build::build(workspace)?;
    setup::guest_tools()?;
    let kernel = kernels::get(workspace, kernel, false)?;
    let mut args = vec!["--bench".to_owned(), "--instructions".to_owned()];
    args.extend(words(options));
    if options.names.is_empty() && !options.short {
        args.extend(IN_GUESTS.map(str::to_owned));
    }
    let guest = Guest { kernel: &kernel, lsm: options.lsm, args: &args, clock: Clock::Instructions, append: "" };
    guest.write_initramfs(workspace)?;
    Ok(ExitCode::from(guest.run(workspace, LIMIT, &mut Records::default())?.status))
}

/// What the driver is told.
fn words(options: &Options) -> Vec<String> {
    let mut words = options.names.clone();
    words.extend(options.short.then(|| "--short".to_owned()));
    if let Some(pairs) = options.pairs {
        words.extend(["--pairs".to_owned(), pairs.to_string()]);
    }
    words
}
