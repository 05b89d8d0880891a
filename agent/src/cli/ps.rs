//! `tipstaff ps`: the sessions that live.

use std::time::Duration;

use super::{
    Exit, Failure, Print, ask,
    print::{self, printable, short_id, span},
    stale,
};
use crate::{
    api::wire::{Ps, Request, SessionRow},
    config::Config,
};

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Only those that outlived what they were started for: user gone, review past, idle
    #[arg(long)]
    stale: bool,
    /// How long a session may do nothing before it is idle
    #[arg(long, value_name = "DURATION", value_parser = stale::bound, default_value = "1h")]
    idle: Duration,
    #[command(flatten)]
    pub(super) print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    let mut ps: Ps = ask(config)?.call(&Request::Ps {})?;
    ps.sessions.iter_mut().for_each(|session| stale::judge(session, flags.idle));
    if flags.stale {
        ps.sessions.retain(|session| !session.stale.is_empty());
    }
    let limit = print::command_limit();
    let show = if flags.stale { stale::table } else { table };
    print::show(flags.print.output, &ps, |ps| show(&ps.sessions, limit))?;
    Ok(Exit::Ok)
}

fn table(sessions: &[SessionRow], limit: Option<usize>) -> String {
    let row = |session: &SessionRow| {
        [
            short_id(&session.id),
            printable(&session.name),
            printable(&session.kind),
            printable(&session.mode),
            printable(&session.state),
            session.uid.to_string(),
            session.pid.to_string(),
            session.members.to_string(),
            span(session.age_ms),
            span(session.left_ms),
            session.denied.to_string(),
            session.lost.to_string(),
            verdict(session),
            print::command(&session.command, limit),
        ]
    };
    let header = [
        "ID", "POLICY", "KIND", "MODE", "STATE", "UID", "PID", "MEMBERS", "AGE", "LEFT", "DENIED", "LOST", "VERDICT",
        "COMMAND",
    ];
    print::table(header, &[5, 6, 7, 8, 9, 10, 11], sessions.iter().map(row).collect())
}

/// What is to become of a session and what led to it: `end: ttl`.
pub(super) fn verdict(session: &SessionRow) -> String {
    let why = if session.why.is_empty() { String::new() } else { format!(": {}", printable(&session.why)) };
    printable(&session.verdict) + &why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_one_line_whatever_its_command_holds() {
        let session = SessionRow {
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            name: "release".to_owned(),
            kind: "ci".to_owned(),
            mode: "enforce".to_owned(),
            state: "active".to_owned(),
            verdict: "hold".to_owned(),
            why: "frozen".to_owned(),
            uid: 1000,
            pid: 4242,
            command: vec!["sh".to_owned(), "-c".to_owned(), "a\n\u{1b}[31mb".to_owned()],
            members: 3,
            age_ms: 61_000,
            left_ms: 839_500,
            denied: 2,
            lost: 0,
            idle_ms: 61_000,
            stale: Vec::new(),
        };
        let text = table(&[session], None);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), 14);
        let expected = [
            "0123456789ab",
            "release",
            "ci",
            "enforce",
            "active",
            "1000",
            "4242",
            "3",
            "1m1s",
            "13m59s",
            "2",
            "0",
            "hold:",
            "frozen",
            "sh",
            "-c",
            r"'a\n\u{1b}[31mb'",
        ];
        assert_eq!(lines[1], expected);
    }
}
