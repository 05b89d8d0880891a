//! The `tipstaff` binary: hands the command line what it needs of the rest of the program.

use std::{ffi::OsString, path::Path, process::ExitCode};

use tipstaff::{
    api::wire::Problem,
    cli::{self, Exit, Failure, Host, policy::Checked, verify::Verified},
    daemon, duration, enforce, evidence, policy,
};

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
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIPSTAFF_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(false).init();
}

fn verify(file: &Path, head: Option<&Path>) -> Result<Verified, Failure> {
    let report = evidence::verify(file, head).map_err(|e| Failure::new(Exit::Failed, e))?;
    let json = serde_json::to_value(&report).map_err(|e| Failure::new(Exit::Failed, e))?;
    Ok(Verified { intact: report.is_intact(), text: report.to_string(), json })
}

fn check_policy(file: &str, bytes: &[u8]) -> Result<Checked, Vec<Problem>> {
    let policy = policy::parse(file, bytes)?;
    let summary = policy.summary();
    let mut text = format!("  policy {} lasts {}\n", summary.name, duration::format(policy.ttl));
    summary.limits.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    for rule in &summary.rules {
        text.push_str(&format!("  {} {} {} ({})\n", rule.scope, rule.effect, rule.what, rule.id));
    }
    text.push_str(&format!("  no rule: exec {}, net {}\n", summary.exec_default, summary.net_default));
    let json = serde_json::to_value(&summary).unwrap_or_default();
    Ok(Checked { text, json })
}
