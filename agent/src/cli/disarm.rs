//! `tipstaff disarm`: takes Tipstaff out of the kernel, through the agent where one runs, and without it otherwise.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use super::{
    Exit, Failure, Host, Print,
    print::{self, printable},
};
use crate::{
    api::{
        self,
        client::{Client, ClientError},
        wire::{Disarmed, Request},
    },
    config::Config,
};

/// Every session is ended first.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    if !flags.yes && !confirmed()? {
        return Err(Failure::new(Exit::Failed, "nothing was changed"));
    }
    let disarmed = match Client::connect(&api::operate_socket(&config.paths.runtime), LIMIT) {
        Ok(mut agent) => agent.call(&Request::Disarm {})?,
        Err(ClientError::Missing { .. } | ClientError::Stale { .. }) => (host.disarm)(config)?,
        Err(error) => return Err(error.into()),
    };
    print::show(flags.print.output, &disarmed, text)?;
    Ok(if disarmed.left.is_empty() { Exit::Ok } else { Exit::Failed })
}

fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "disarm asks before it acts and there is no terminal: give --yes"));
    }
    let question = "this ends every session and removes all enforcement from this host; type yes to go on: ";
    let failed = |error| Failure::new(Exit::Failed, format!("cannot ask on the terminal: {error}"));
    let mut stderr = io::stderr();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim() == "yes")
}

fn text(disarmed: &Disarmed) -> String {
    let mut text = format!("disarmed: {} sessions ended\n", disarmed.sessions);
    for path in &disarmed.removed {
        text.push_str(&format!("removed {}\n", printable(path)));
    }
    for line in &disarmed.left {
        text.push_str(&format!("left {}\n", printable(line)));
    }
    text
}
