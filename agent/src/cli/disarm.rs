//! `tipstaff disarm`: takes Tipstaff out of the kernel, through the agent where one runs, and without it otherwise.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
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
        Err(ClientError::Missing { .. } | ClientError::Stale { .. }) => {
            let pinned = is_pinned(&config.paths.pins);
            let disarmed = (host.disarm)(config)?;
            if pinned { disarmed } else { Disarmed { removed: Vec::new(), ..disarmed } }
        }
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

/// Whether an earlier agent left pins, of whatever layout. What cannot be looked at may be there.
fn is_pinned(pins: &Path) -> bool {
    let is_empty = |folder: &Path| fs::read_dir(folder).map(|mut entries| entries.next().is_none());
    match fs::read_dir(pins) {
        Ok(layouts) => !layouts.flatten().all(|layout| is_empty(&layout.path()).unwrap_or(false)),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn text(disarmed: &Disarmed) -> String {
    if disarmed.sessions == 0 && disarmed.removed.is_empty() && disarmed.left.is_empty() {
        return "disarmed: nothing was in force\n".to_owned();
    }
    let mut text = format!("disarmed: {} sessions ended\n", disarmed.sessions);
    for path in &disarmed.removed {
        text.push_str(&format!("removed {}\n", printable(path)));
    }
    for line in &disarmed.left {
        text.push_str(&format!("left {}\n", printable(line)));
    }
    text
}
