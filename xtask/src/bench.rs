//! `bench`: what Tipstaff costs, measured on this machine. Builds, and starts the driver; `docs/performance.md` has the
//! method.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{build, exec::say, workspace::Workspace};

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure; everything where nothing is named. A name that does not exist lists them all
    names: Vec<String>,
    /// Rounds without and with the agent
    #[arg(long, value_name = "N", default_value_t = 5)]
    pairs: usize,
    /// Write every measured value to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The verb. Its exit status is the driver's: 0; 1 where something that must be exact is not; 4 where the machine was too
/// busy to judge.
pub(crate) fn bench(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmarks load programs into this kernel; run them as root");
    }
    build::build(workspace)?;
    say("measuring; the machine should have nothing else to do");
    let mut driver = Command::new(workspace.tests());
    driver.arg("--bench").args(&options.names).arg("--pairs").arg(options.pairs.to_string());
    if let Some(path) = &options.json {
        driver.arg("--json").arg(path);
    }
    let status = driver.status().with_context(|| format!("cannot start {}", workspace.tests().display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map(ExitCode::from).with_context(|| format!("the driver ended with {status}"))
}
