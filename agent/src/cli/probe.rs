//! `tipstaff probe`: what this host can enforce, asked of the agent, or tried out where none runs.

use super::{
    Exit, Failure, Host, connect_to_ask,
    print::{self, Output, printable},
    status::attached_to,
};
use crate::{
    api::{
        client::ClientError,
        wire::{Probe, Request},
    },
    config::Config,
};

pub(super) fn execute(config: &Config, output: Output, host: &Host) -> Result<Exit, Failure> {
    let probe = match connect_to_ask(config) {
        Ok(mut agent) => agent.call(&Request::Probe {})?,
        Err(ClientError::Missing { .. } | ClientError::Stale { .. }) => (host.probe)(config)?,
        Err(error) => return Err(error.into()),
    };
    print::show(output, &probe, text)?;
    Ok(Exit::Ok)
}

fn text(probe: &Probe) -> String {
    let head = print::fields(&[
        ("kernel", printable(&probe.kernel)),
        ("tier", printable(&probe.tier)),
        ("attached to", attached_to(&probe.attach)),
    ]);
    format!("{head}\n{}", print::controls(&probe.controls))
}
