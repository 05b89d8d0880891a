//! `tipstaff daemon`: the agent itself.

use std::path::PathBuf;

use super::{Exit, Failure, Host};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Deny, kill and drop only for tasks first seen below this cgroup
    #[arg(long, value_name = "CGROUP")]
    confine: Option<PathBuf>,
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    (host.daemon)(config, flags.confine.as_deref()).map(|()| Exit::Ok)
}
