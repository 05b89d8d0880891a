//! `tipstaff end`: ends a session and says whether none of its tasks is left.

use std::time::Duration;

use super::{
    Exit, Failure, Print, operate,
    print::{self, printable, span},
};
use crate::{
    api::wire::{End, Ended, Request},
    config::Config,
};

/// Ending waits until the kernel has reaped every member.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// The session's id, or the beginning of it
    id: String,
    /// The end reason to record
    #[arg(long, default_value = "operator")]
    reason: String,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let request = Request::End(End { id: flags.id.clone(), reason: flags.reason.clone() });
    let ended: Ended = operate(config, LIMIT)?.call(&request)?;
    print::show(flags.print.output, &ended, text)?;
    Ok(if ended.members_left == 0 { Exit::Ok } else { Exit::Failed })
}

fn text(ended: &Ended) -> String {
    let mut text = format!(
        "session {} ended ({}): {} killed, {} left, in {}\n",
        printable(&ended.session),
        printable(&ended.reason),
        ended.killed,
        ended.members_left,
        span(ended.ms)
    );
    if let Some(took) = &ended.took {
        text.push_str(&format!("refused everything after {}", span(took.mark_ms)));
        for (what, ms) in [("last member gone", took.members_ms), ("last flow closed", took.flows_ms)] {
            text.push_str(&ms.map(|ms| format!(", {what} after {}", span(ms))).unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
