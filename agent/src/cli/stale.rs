//! `tipstaff ps --stale`: the sessions that outlived what they were started for, and why.

use std::time::Duration;

use super::print::{self, printable, short_id, span};
use crate::{api::wire::SessionRow, duration};

/// Checks the text of `--idle`.
pub(super) fn bound(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| format!("{text:?} {error}"))
}

/// Adds what the agent leaves to whoever asks: for how long is too long.
pub(super) fn judge(session: &mut SessionRow, bound: Duration) {
    if u128::from(session.idle_ms) >= bound.as_millis() {
        session.stale.push("idle".to_owned());
    }
}

pub(super) fn table(sessions: &[SessionRow], limit: Option<usize>) -> String {
    let row = |session: &SessionRow| {
        [
            short_id(&session.id),
            printable(&session.name),
            session.uid.to_string(),
            session.pid.to_string(),
            span(session.idle_ms),
            printable(&session.stale.join(",")),
            print::command(&session.command, limit),
        ]
    };
    let header = ["ID", "POLICY", "UID", "PID", "IDLE", "STALE", "COMMAND"];
    print::table(header, &[2, 3, 4], sessions.iter().map(row).collect())
}
