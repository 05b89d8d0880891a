//! `tipstaff attach`: running processes become a new session's members.

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use super::{
    Exit, Failure, Host, Print, complain,
    credential::Credential,
    operate,
    print::{self, printable, span},
    run::{self, read_policy},
};
use crate::{
    api::wire::{self, Attached, InheritedSocket, InheritedUnix, Request},
    config::Config,
};

/// How long it may take: what grows while it is labelled is given a few seconds.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) const HELP: &str = "\
A process is attached with all that descends from it, a cgroup with all that runs in it and below it. Every thread gets \
the label and every process is moved into the session's cgroup: limits of the cgroup that it was in do not hold any more. \
What it did before is unknown, and what it holds is listed; spec.attach of the policy says what becomes of its sockets.

Never attached: the root cgroup, a cgroup that holds the agent, process 1, kernel threads, the agent, and what is in a \
session. Your own login is attached only where you name it twice: --pid 4711 --pid 4711.";

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Policy file, or the name of one in the policy directory
    #[arg(long, value_name = "FILE|NAME")]
    policy: OsString,
    /// A process, with all that descends from it
    #[arg(long, value_name = "PID", required_unless_present = "from_cgroup", conflicts_with = "from_cgroup")]
    pid: Vec<u32>,
    /// A cgroup by its path, with all that runs in it and below it
    #[arg(long, value_name = "PATH")]
    from_cgroup: Vec<String>,
    /// A shorter time to live than the policy's, such as 90s or 1h30m
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = run::time_to_live)]
    ttl: Option<String>,
    /// When the credential that it acts with expires, such as 2026-11-21T22:00:00Z
    #[arg(long, value_name = "RFC3339")]
    credential_expires: Option<String>,
    #[command(flatten)]
    credential: Credential,
    /// A label to find and revoke the session by; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = run::label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    print: Print,
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    let (pid, pid_twice) = named("--pid", &flags.pid)?;
    let (cgroup, cgroup_twice) = named("--from-cgroup", &flags.from_cgroup)?;
    let (policy_source, policy) = read_policy(&flags.policy, &config.paths.policies, host.check_policy)?;
    let attach = wire::Attach {
        pid,
        cgroup,
        twice: pid_twice || cgroup_twice,
        policy,
        policy_source,
        ttl: flags.ttl.clone(),
        credential_expires: flags.credential_expires.clone(),
        credential: flags.credential.fingerprint()?,
        labels: flags.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let attached: Attached = operate(config, LIMIT)?.call(&Request::Attach(attach)).map_err(run::refusal)?;
    for note in &attached.notes {
        complain(&format!("note: {note}"));
    }
    print::show(flags.print.output, &attached, text)?;
    Ok(Exit::Ok)
}

/// One target, and whether it was named twice.
fn named<T: Clone + PartialEq>(flag: &str, given: &[T]) -> Result<(Option<T>, bool), Failure> {
    match given {
        [] => Ok((None, false)),
        [one] => Ok((Some(one.clone()), false)),
        [one, again] if one == again => Ok((Some(one.clone()), true)),
        _ => {
            Err(Failure::new(Exit::Usage, format!("{flag} names more than one: a session is attached to one of them")))
        }
    }
}

fn text(attached: &Attached) -> String {
    let Attached { session, processes, threads, open, listening, unix, others, ttl_ms, .. } = attached;
    let mut text = format!(
        "session {} attached: {processes} processes, {threads} threads, ends after {}\n",
        printable(session),
        span(*ttl_ms)
    );
    text.push_str(&format!(
        "inherited: {} open sockets, {} listening, {} unix, {others} others; what was done before is unknown\n",
        open.len(),
        listening.len(),
        unix.len()
    ));
    let mut rows: Vec<[String; 5]> = open.iter().map(|socket| row(socket, "open")).collect();
    rows.extend(listening.iter().map(|socket| row(socket, "listening")));
    rows.extend(unix.iter().map(unix_row));
    if !rows.is_empty() {
        text.push_str(&print::table(["PID", "KIND", "STATE", "FROM", "TO"], &[0], rows));
    }
    text
}

fn row(socket: &InheritedSocket, state: &str) -> [String; 5] {
    let state = if socket.destroyed { "destroyed" } else { state };
    let to = socket.to.as_deref().map(printable).unwrap_or_default();
    [socket.pid.to_string(), printable(&socket.protocol), state.to_owned(), printable(&socket.from), to]
}

fn unix_row(socket: &InheritedUnix) -> [String; 5] {
    let kind = format!("unix {}", printable(&socket.kind));
    [socket.pid.to_string(), kind, printable(&socket.state), printable(&socket.name), String::new()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_be_named_twice_and_only_one_may_be_named() {
        let said = |given: &[u32]| named("--pid", given).map_err(|failure| failure.message);
        assert_eq!(said(&[]), Ok((None, false)));
        assert_eq!(said(&[7]), Ok((Some(7), false)));
        assert_eq!(said(&[7, 7]), Ok((Some(7), true)));
        assert!(said(&[7, 8]).unwrap_err().contains("more than one"));
        assert!(said(&[7, 7, 7]).is_err());
    }

    #[test]
    fn what_is_inherited_is_a_table() {
        let socket = InheritedSocket {
            pid: 7,
            protocol: "tcp".into(),
            from: "127.0.0.1:1".into(),
            to: Some("127.0.0.1:2".into()),
            destroyed: true,
        };
        let attached =
            Attached { session: "abc".into(), processes: 1, threads: 2, open: vec![socket], ..Default::default() };
        let text = text(&attached);
        assert!(text.starts_with("session abc attached: 1 processes, 2 threads"), "{text}");
        assert!(text.contains("destroyed  127.0.0.1:1  127.0.0.1:2"), "{text}");
    }
}
