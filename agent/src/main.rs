//! The `tipstaff` binary: hands the command line what it needs of the rest of the program.

use std::{ffi::OsString, io, path::Path, process::ExitCode};

use tipstaff::{
    api::wire::Problem,
    cli::{self, Exit, Failure, Host, policy::Checked, verify::Verified},
    daemon, duration, enforce, engine, evidence, policy,
};
use tracing::warn;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|verb| verb == enforce::VERB) {
        return if enforce::child(&arguments).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    start_logging();
    cli::main(&Host { daemon: daemon::run, probe: daemon::probe, disarm: daemon::disarm, verify, check_policy })
}

/// Logs to standard error; `TIPSTAFF_LOG` chooses what, as in `debug` or `tipstaff=trace`.
fn start_logging() {
    let wanted = std::env::var_os("TIPSTAFF_LOG");
    let filter = wanted.as_ref().map(|wanted| match wanted.to_str() {
        Some(text) => EnvFilter::try_new(text).map_err(|error| error.to_string()),
        None => Err("it is not UTF-8".to_owned()),
    });
    let (filter, problem) = match filter {
        Some(Ok(filter)) => (filter, None),
        Some(Err(problem)) => (EnvFilter::new("warn"), Some(problem)),
        None => (EnvFilter::new("warn"), None),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_target(false).with_ansi(false).init();
    if let (Some(wanted), Some(problem)) = (wanted, problem) {
        warn!("TIPSTAFF_LOG {wanted:?} is ignored: {problem}; write for example info or tipstaff=debug");
    }
}

fn verify(file: &Path, head: Option<&Path>) -> Result<Verified, Failure> {
    let report = evidence::verify(file, head).map_err(unverified)?;
    let json = serde_json::to_value(&report).map_err(|e| Failure::new(Exit::Failed, e))?;
    Ok(Verified { intact: report.is_intact(), text: report.to_string(), json })
}

/// What keeps a log from being verified is no damage.
fn unverified(error: evidence::Error) -> Failure {
    let exit = match &error {
        evidence::Error::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Unable,
        evidence::Error::Open { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

fn check_policy(file: &str, bytes: &[u8]) -> Result<Checked, Vec<Problem>> {
    let policy = policy::parse(file, bytes)?;
    let mut summary = policy.summary();
    // as for an ordinary user's session on this host, as far as whoever asks may read the files
    summary.notes.extend(engine::notes_on_scripts(&policy, false).iter().map(ToString::to_string));
    let mut text = format!("  policy {} lasts {}\n", summary.name, duration::format(policy.ttl));
    summary.limits.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    for rule in &summary.rules {
        text.push_str(&format!("  {} {} {} ({})\n", rule.scope, rule.effect, rule.what, rule.id));
    }
    if summary.nested {
        text.push_str("  members may start narrower sessions within theirs\n");
    }
    summary.review_by.iter().for_each(|day| text.push_str(&format!("  to be reviewed by {day}\n")));
    for (name, rules) in &summary.phases {
        let stays: Vec<&str> = rules.iter().map(String::as_str).collect();
        text.push_str(&format!("  phase {name} keeps {}\n", stays.join(", ")));
    }
    summary.notes.iter().for_each(|note| text.push_str(&format!("  note: {note}\n")));
    text.push_str(&format!("  no rule: exec {}, net {}\n", summary.exec_default, summary.net_default));
    let json = serde_json::to_value(&summary).unwrap_or_default();
    Ok(Checked { text, json })
}
