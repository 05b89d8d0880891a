//! `tipstaff status`: how the agent is.

use super::{
    Exit, Failure, ask,
    print::{self, Output, printable, span},
};
use crate::{
    api::wire::{Request, Status},
    config::Config,
};

pub(super) fn execute(config: &Config, output: Output) -> Result<Exit, Failure> {
    let status: Status = ask(config)?.call(&Request::Status {})?;
    print::show(output, &status, text)?;
    Ok(if status.degraded { Exit::Degraded } else { Exit::Ok })
}

fn text(status: &Status) -> String {
    let lost: u64 = status.lost.values().sum();
    let (evidence, store) = (&status.evidence, &status.store);
    let mut text = print::fields(&[
        ("state", if status.degraded { "degraded".to_owned() } else { "ok".to_owned() }),
        ("agent", format!("pid {}, version {}, up {}", status.pid, printable(&status.version), span(status.uptime_ms))),
        ("kernel", format!("{}, tier {}", printable(&status.kernel), printable(&status.tier))),
        ("sessions", status.sessions.to_string()),
        ("records lost", lost.to_string()),
        ("runs skipped", status.skipped.values().sum::<u64>().to_string()),
        (
            "evidence",
            format!("{}, {} records, {} unwritten", printable(&evidence.path), evidence.n, evidence.unwritten),
        ),
        ("store", format!("{}, {} writes refused", printable(&store.path), store.refused)),
    ]);
    for why in &status.why {
        text.push_str(&format!("degraded: {}\n", printable(why)));
    }
    text.push('\n');
    text.push_str(&print::controls(&status.controls));
    text
}
