//! `tipstaff renew`: gives a session more time to live.

use std::time::Duration;

use super::{
    Exit, Failure, Print, complain, operate,
    print::{self, printable, span},
};
use crate::{
    api::wire::{Renew, Renewed, Request},
    config::Config,
};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// The session's id, or the beginning of it
    id: String,
    /// Time to live from now; without it, as long as it had at its start
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = super::run::time_to_live)]
    ttl: Option<String>,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let request = Request::Renew(Renew { id: flags.id.clone(), ttl: flags.ttl.clone() });
    let renewed: Renewed = operate(config, LIMIT)?.call(&request)?;
    for note in &renewed.notes {
        complain(&format!("note: {note}"));
    }
    print::show(flags.print.output, &renewed, text)?;
    Ok(Exit::Ok)
}

fn text(renewed: &Renewed) -> String {
    let (session, winner) = (printable(&renewed.session), printable(&renewed.winner));
    format!("session {session} renewed: {} left by {winner}\n", span(renewed.left_ms))
}
