//! The command line: one file a verb, one exit status for each way a verb can end.
//!
//! Verbs read the configuration, ask the agent over its sockets, and print. What they need of the rest of the program
//! (the agent itself, the kernel) is handed in by `main` as [`Host`].
#![forbid(unsafe_code)]

mod attach;
mod credential;
mod daemon;
mod disarm;
mod end;
mod events;
pub mod exit;
mod freeze;
mod inspect;
mod narrow;
pub mod policy;
mod print;
mod probe;
mod ps;
mod renew;
mod resolve;
mod revoke;
mod run;
mod stale;
mod status;
pub mod verify;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};

pub use self::exit::{Exit, Failure};
use self::print::Output;
use crate::{
    api::{
        self,
        client::{Client, ClientError},
        wire::{self, Problem},
    },
    config::{Config, Overrides},
};

/// How long a question may take.
const ASK: Duration = Duration::from_secs(10);

/// What the verbs need of the rest of the program.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Runs the agent until it is told to stop; the path is `--confine`'s.
    pub daemon: fn(&Config, Option<&Path>) -> Result<(), Failure>,
    /// Finds out what this host can enforce, without an agent.
    pub probe: fn(&Config) -> Result<wire::Probe, Failure>,
    /// Removes what a dead agent left in the kernel.
    pub disarm: fn(&Config) -> Result<wire::Disarmed, Failure>,
    /// Verifies an evidence file, against a head file if there is one.
    pub verify: fn(&Path, Option<&Path>) -> Result<verify::Verified, Failure>,
    /// Reads a policy from its source name and bytes.
    pub check_policy: CheckPolicy,
}

/// Reads a policy from its source name and bytes.
pub type CheckPolicy = fn(&str, &[u8]) -> Result<policy::Checked, Vec<Problem>>;

/// Enforces sessions at the kernel boundary.
#[derive(Debug, Parser)]
#[command(name = "tipstaff", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    paths: PathFlags,
    #[command(subcommand)]
    verb: Verb,
}

/// Each over its environment variable, that over the configuration file, that over the default.
#[derive(Debug, Args)]
#[command(next_help_heading = "Paths")]
struct PathFlags {
    /// Configuration file [env: TIPSTAFF_CONFIG] [default: /etc/tipstaff/tipstaff.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What survives the agent [env: TIPSTAFF_STATE_DIR] [default: /var/lib/tipstaff]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The agent's sockets [env: TIPSTAFF_RUNTIME_DIR] [default: /run/tipstaff]
    #[arg(long, global = true, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Pinned kernel programs and maps [env: TIPSTAFF_PIN_DIR] [default: /sys/fs/bpf/tipstaff]
    #[arg(long, global = true, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Cgroup above the sessions' own [env: TIPSTAFF_CGROUP] [default: tipstaff, where cgroup2 is mounted]
    #[arg(long, global = true, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Policies by name [env: TIPSTAFF_POLICY_DIR] [default: /etc/tipstaff/policies.d]
    #[arg(long, global = true, value_name = "DIR")]
    policy_dir: Option<PathBuf>,
    /// The evidence [env: TIPSTAFF_EVIDENCE_DIR] [default: evidence, in the state directory]
    #[arg(long, global = true, value_name = "DIR")]
    evidence_dir: Option<PathBuf>,
    /// The host's users [env: TIPSTAFF_USERS] [default: /etc/passwd]
    #[arg(long, global = true, value_name = "FILE")]
    users: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Print {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent in the foreground
    Daemon(daemon::Flags),
    /// Become a new session's first member and run a command
    #[command(after_help = run::HELP)]
    Run(run::Flags),
    /// Make running processes members of a new session
    #[command(after_help = attach::HELP)]
    Attach(attach::Flags),
    /// List the sessions that live
    Ps(ps::Flags),
    /// Show one session in full
    Inspect(inspect::Flags),
    /// End a session: afterwards none of its tasks is left
    End(end::Flags),
    /// Give a session more time to live
    Renew(renew::Flags),
    /// Stop a session's members; its limits hold on
    Freeze(freeze::Flags),
    /// Let the members of a frozen session go on
    Thaw(freeze::Flags),
    /// End the sessions of a principal, policy, credential or label, and keep it from starting again
    #[command(after_help = revoke::HELP)]
    Revoke(revoke::Flags),
    /// Give a live session a stricter scope
    Narrow(narrow::Flags),
    /// Print the evidence
    Events(events::Flags),
    /// Say how the agent is; exits with 4 if it is degraded
    Status(Print),
    /// Say what this host can enforce, and why not the rest
    Probe(Print),
    /// Check that evidence is complete and unchanged
    Verify(verify::Flags),
    /// Work on policies
    #[command(subcommand)]
    Policy(policy::Verb),
    /// End every session and remove Tipstaff's programs from the kernel
    Disarm(disarm::Flags),
}

/// Parses the arguments, does what they say, and tells how it went.
#[must_use]
pub fn main(host: &Host) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error, &arguments),
    };
    let under_run = matches!(cli.verb, Verb::Run(_));
    match dispatch(cli, host) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(&failure.message);
            if under_run { failure.exit.under_run().into() } else { failure.exit.into() }
        }
    }
}

fn dispatch(cli: Cli, host: &Host) -> Result<Exit, Failure> {
    let config = Config::load(&cli.paths.into_overrides(), &|name| std::env::var_os(name))?;
    match cli.verb {
        Verb::Daemon(flags) => daemon::execute(&config, &flags, host),
        Verb::Run(flags) => run::execute(&config, &flags, host),
        Verb::Attach(flags) => attach::execute(&config, &flags, host),
        Verb::Ps(flags) => ps::execute(&config, &flags),
        Verb::Inspect(flags) => inspect::execute(&config, &flags),
        Verb::End(flags) => end::execute(&config, &flags),
        Verb::Renew(flags) => renew::execute(&config, &flags),
        Verb::Freeze(flags) => freeze::freeze(&config, &flags),
        Verb::Thaw(flags) => freeze::thaw(&config, &flags),
        Verb::Revoke(flags) => revoke::execute(&config, &flags),
        Verb::Narrow(flags) => narrow::execute(&config, &flags, host),
        Verb::Events(flags) => events::execute(&config, &flags),
        Verb::Status(print) => status::execute(&config, print.output),
        Verb::Probe(print) => probe::execute(&config, print.output, host),
        Verb::Verify(flags) => verify::execute(&config, &flags, host),
        Verb::Policy(policy::Verb::Check(flags)) => policy::execute(&flags, host),
        Verb::Disarm(flags) => disarm::execute(&config, &flags, host),
    }
}

impl PathFlags {
    fn into_overrides(self) -> Overrides {
        Overrides {
            config: self.config,
            state: self.state_dir,
            runtime: self.runtime_dir,
            pins: self.pin_dir,
            cgroup: self.cgroup,
            policies: self.policy_dir,
            evidence: self.evidence_dir,
            users: self.users,
        }
    }
}

/// Help and version are answers; anything else is a mistake, which under `run` must not look like the command's own
/// status.
fn not_understood(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match print::out(&text) {
            Ok(_) => Exit::Ok.into(),
            Err(failure) => failure.exit.into(),
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // the help itself is the message
        let _ = io::stderr().write_all(text.as_bytes());
        return Exit::Usage.into();
    }
    complain(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    if is_run(arguments) { Exit::OwnFailure.into() } else { Exit::Usage.into() }
}

fn is_run(arguments: &[OsString]) -> bool {
    let parsed = Cli::command().ignore_errors(true).try_get_matches_from(arguments);
    parsed.is_ok_and(|matches| matches.subcommand_name() == Some("run"))
}

/// A message on standard error; where that is closed there is nobody to tell.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "tipstaff: {message}");
}

/// A connection for questions.
fn ask(config: &Config) -> Result<Client, Failure> {
    Ok(connect_to_ask(config)?)
}

/// Whoever may operate may ask, and need not be in the group of those who only ask.
fn connect_to_ask(config: &Config) -> Result<Client, ClientError> {
    let runtime = &config.paths.runtime;
    match Client::connect(&api::read_socket(runtime), ASK) {
        Err(refused @ ClientError::Permission { .. }) => {
            Client::connect(&api::operate_socket(runtime), ASK).map_err(|_as_well| refused)
        }
        other => other,
    }
}

/// A connection for what changes something; `limit` is how long that may take.
fn operate(config: &Config, limit: Duration) -> Result<Client, Failure> {
    Ok(Client::connect(&api::operate_socket(&config.paths.runtime), limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn run_flags(line: &str) -> run::Flags {
        match parse(line).unwrap().verb {
            Verb::Run(flags) => flags,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_is_the_commands() {
        let words = |flags: run::Flags| flags.command;
        let expected = ["git", "--policy", "x", "-o", "json"].map(OsString::from);
        assert_eq!(words(run_flags("tipstaff run --policy p -- git --policy x -o json")), expected);
        assert_eq!(words(run_flags("tipstaff run --policy p git --policy x -o json")), expected);
        assert_eq!(words(run_flags("tipstaff run --policy p -- git -- a")), ["git", "--", "a"].map(OsString::from));
        assert!(parse("tipstaff run --polcy p -- git").is_err(), "a mistyped flag is not the command");
        assert!(parse("tipstaff run --policy p").is_err(), "a command is needed");
        assert!(parse("tipstaff run -- git").is_err(), "a policy is needed");
    }

    #[test]
    fn a_ttl_is_read_at_once() {
        assert_eq!(run_flags("tipstaff run --policy p --ttl 1h30m git").ttl.as_deref(), Some("1h30m"));
        assert!(parse("tipstaff run --policy p --ttl 90 git").is_err());
        assert!(parse("tipstaff run --policy p --ttl 0s git").is_err());
    }

    #[test]
    fn labels_are_pairs() {
        let labels = run_flags("tipstaff run --policy p --label a=b --label c= git").labels;
        assert_eq!(labels, [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())]);
        assert!(parse("tipstaff run --policy p --label a git").is_err());
    }

    #[test]
    fn a_revocation_is_about_one_thing() {
        assert!(parse("tipstaff revoke").is_err(), "it must say what");
        assert!(parse("tipstaff revoke --policy p --label a=b").is_err());
        assert!(parse("tipstaff revoke --policy p --stay 5m --no-stay").is_err());
        assert!(parse("tipstaff revoke --list --dry-run").is_err());
        assert!(parse("tipstaff revoke --principal 7 --stay 5m --dry-run").is_ok());
    }

    #[test]
    fn paths_are_taken_before_and_after_the_verb() {
        for line in ["tipstaff --runtime-dir /r ps", "tipstaff ps --runtime-dir /r"] {
            assert_eq!(parse(line).unwrap().paths.runtime_dir.as_deref(), Some(Path::new("/r")));
        }
    }

    #[test]
    fn output_forms() {
        let form = |line: &str| match parse(line).unwrap().verb {
            Verb::Ps(flags) => flags.print.output,
            other => panic!("{other:?}"),
        };
        assert_eq!(form("tipstaff ps"), Output::Table);
        assert_eq!(form("tipstaff ps -o json"), Output::Json);
        assert_eq!(form("tipstaff ps --output jsonl"), Output::Json);
        assert!(parse("tipstaff ps -o xml").is_err());
    }

    #[test]
    fn a_mistake_under_run_is_told_from_one_elsewhere() {
        let is_run = |line: &str| is_run(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is_run("tipstaff run --bogus"));
        assert!(is_run("tipstaff --runtime-dir /r run"));
        assert!(is_run("tipstaff run --policy p --ttl never git"));
        assert!(!is_run("tipstaff ps --bogus"));
        assert!(!is_run("tipstaff inspect run --bogus"));
        assert!(!is_run("tipstaff"));
    }
}
