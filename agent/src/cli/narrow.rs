//! `tipstaff narrow`: gives a live session a stricter scope.

use std::{ffi::OsString, time::Duration};

use super::{
    Exit, Failure, Host, Print, complain, operate,
    print::{self, printable, span},
    run::read_policy,
};
use crate::{
    api::wire::{Narrow, Narrowed, Request},
    config::Config,
};

/// The kernel takes the rules of the largest policy, on a slow host.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
#[group(id = "what", required = true, multiple = false, args = ["policy", "remove", "to"])]
pub(super) struct Flags {
    /// The session's id, or the beginning of it
    id: String,
    /// Policy file, or the name of one in the policy directory: everything that it allows must be allowed now
    #[arg(long, value_name = "FILE|NAME")]
    policy: Option<OsString>,
    /// Ids of allow rules to remove
    #[arg(long, value_name = "RULE", num_args = 1..)]
    remove: Vec<String>,
    /// A phase of the session's policy
    #[arg(long, value_name = "PHASE")]
    to: Option<String>,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    let read =
        flags.policy.as_ref().map(|name| read_policy(name, &config.paths.policies, host.check_policy)).transpose()?;
    let (policy_source, policy) = read.unzip();
    let (id, remove, to) = (flags.id.clone(), flags.remove.clone(), flags.to.clone());
    let request = Narrow { id, policy, policy_source, remove, to };
    let narrowed: Narrowed = operate(config, LIMIT)?.call(&Request::Narrow(request))?;
    for note in &narrowed.notes {
        complain(&printable(note));
    }
    print::show(flags.print.output, &narrowed, text)?;
    Ok(Exit::Ok)
}

fn text(narrowed: &Narrowed) -> String {
    let phase = narrowed.phase.as_ref().map(|phase| format!(", phase {},", printable(phase))).unwrap_or_default();
    format!(
        "session {} narrowed to revision {}{phase} in {}\npolicy before {}\npolicy now    {}\n",
        printable(&narrowed.session),
        narrowed.revision,
        span(narrowed.ms),
        printable(&narrowed.from),
        printable(&narrowed.to),
    )
}
