//! `tipstaff run`: the launcher. It asks the agent to make *itself* a session's first member and becomes the command.
//!
//! A label sits on a thread, so this must stay single-threaded until its exec. What the command inherits is what the
//! caller gave: user, terminal, environment, working directory, signals and the descriptors 0 to 2. Everything
//! that can fail without a session is tried before there is one.

use std::{
    ffi::{CString, NulError, OsStr, OsString},
    fmt::Display,
    fs,
    io::{self, IsTerminal, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::errno::Errno;

use super::{CheckPolicy, Exit, Failure, Host, complain, credential::Credential, operate, resolve};
use crate::{
    api::{
        client::ClientError,
        error::ApiError,
        wire::{Command, Problem, Request, Run, Started},
    },
    config::Config,
    duration,
    evidence::Text,
    given, inherited, shed,
};

/// How long the agent may take to start a session.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of the largest policy: far above any real one, and a call with it still fits a frame.
const POLICY: u64 = 1024 * 1024;
/// Bytes of the arguments that are sent for the evidence.
const ARGUMENTS: usize = 32 * 1024;

pub(super) const HELP: &str = "\
Exit status: the command's own (128 + n if signal n killed it); 125 if Tipstaff refused or failed; 126 if the command \
cannot be executed; 127 if there is no such command.

Names that cannot be looked up are mostly a policy without `resolver: allow` in spec.scope.net: `tipstaff events` shows \
the query with the rule dns-denied.";

#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Policy file, or the name of one in the policy directory
    #[arg(long, value_name = "FILE|NAME")]
    policy: OsString,
    /// A shorter time to live than the policy's, such as 90s or 1h30m
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = time_to_live)]
    pub(super) ttl: Option<String>,
    /// When the credential that the command acts with expires, such as 2026-11-21T22:00:00Z
    #[arg(long, value_name = "RFC3339")]
    credential_expires: Option<String>,
    #[command(flatten)]
    credential: Credential,
    /// A label to find and revoke the session by; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

/// Checks the text, which is sent as it is.
pub(super) fn time_to_live(text: &str) -> Result<String, String> {
    duration::parse(text).map(|_| text.to_owned()).map_err(|error| format!("{text:?} {error}"))
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| format!("{text:?} is no label: write key=value"))
}

pub(super) fn execute(config: &Config, flags: &Flags, host: &Host) -> Result<Exit, Failure> {
    let Some(name) = flags.command.first() else {
        return Err(Failure::new(Exit::Usage, "run needs a command"));
    };
    let (source, policy) = read_policy(&flags.policy, &config.paths.policies, host.check_policy)?;
    let path = resolve::resolve(name, std::env::var_os("PATH").as_deref())?;
    let run = Run {
        policy,
        policy_source: source,
        ttl: flags.ttl.clone(),
        credential_expires: flags.credential_expires.clone(),
        credential: flags.credential.fingerprint()?,
        labels: flags.labels.iter().cloned().collect(),
        command: describe(&path, &flags.command)?,
        cwd: std::env::current_dir().map(text).unwrap_or_default(),
        tty: terminal(),
    };
    inherited::close_on_exec_from(3).map_err(|error| {
        Failure::new(Exit::Unable, format!("cannot close what the command must not inherit: {error}"))
    })?;
    let mut agent = operate(config, LIMIT)?;
    let started: Started = agent.call(&Request::Run(run)).map_err(refusal)?;
    for note in &started.notes {
        complain(&format!("note: {note}"));
    }
    inherited::put_nothing_at(&started.close).map_err(|error| {
        Failure::new(
            Exit::NotExecutable,
            format!("cannot close what the policy does not let the command inherit: {error}"),
        )
    })?;
    if let Some(taken) = &started.shed {
        shed::lay_down(taken).map_err(|error| {
            let message = format!("cannot give up what the policy does not allow: {error}");
            Failure::new(Exit::NotExecutable, message)
        })?;
    }
    Err(become_command(&path, &flags.command))
}

/// Replaces this process. Returns only if that fails, and then the session, whose one member this is, ends with it.
fn become_command(path: &Path, argv: &[OsString]) -> Failure {
    let failed = |error: &dyn Display| Failure::new(Exit::NotExecutable, format!("{}: {error}", path.display()));
    let c_string = |text: &OsStr| CString::new(text.as_bytes());
    let argv: Result<Vec<CString>, NulError> = argv.iter().map(|argument| c_string(argument)).collect();
    let (file, argv) = match (c_string(path.as_os_str()), argv) {
        (Ok(file), Ok(argv)) => (file, argv),
        (Err(error), _) | (_, Err(error)) => return failed(&error),
    };
    if let Err(error) = inherited::restore_broken_pipe() {
        return failed(&error);
    }
    // the path has a slash, so nothing is searched; a script without an interpreter line goes to the shell as usual
    let Err(errno) = nix::unistd::execvp(&file, &argv);
    match errno {
        Errno::EPERM => failed(&"refused by the kernel; `tipstaff events` names the rule"),
        errno => resolve::failure(path.as_os_str(), errno),
    }
}

/// An agent's answer as a message for whoever wanted to run the command.
pub(super) fn refusal(error: ClientError) -> Failure {
    match error {
        ClientError::Api(ApiError::BadPolicy { problems }) => invalid(&problems),
        ClientError::Api(error @ ApiError::Refused { .. }) => Failure::new(Exit::Denied, format!("refused: {error}")),
        error => error.into(),
    }
}

fn invalid(problems: &[Problem]) -> Failure {
    let list: String = problems.iter().map(|problem| format!("\n{problem}")).collect();
    Failure::new(Exit::Usage, format!("the policy is not valid:{list}"))
}

/// The policy's source, absolute and in the evidence's spelling, and its text. A name without a slash that is no file
/// here is looked up in the policy directory. Bytes that are no text cannot be sent: what is wrong with them is told here,
/// as the agent would.
pub(super) fn read_policy(given: &OsStr, directory: &Path, check: CheckPolicy) -> Result<(String, String), Failure> {
    let mut path = PathBuf::from(given);
    let named = !given.as_bytes().contains(&b'/') && !path.exists();
    if named {
        let mut file = given.to_owned();
        file.push(".yaml");
        path = directory.join(file);
    }
    let bytes = policy_bytes(&path).map_err(|error| {
        let here = if named { format!("; nor is there ./{}", given.display()) } else { String::new() };
        Failure::new(Exit::Usage, format!("cannot read the policy {}: {error}{here}", path.display()))
    })?;
    let source = std::path::absolute(&path).unwrap_or(path);
    let source: String = text(source).into();
    match String::from_utf8(bytes) {
        Ok(policy) => Ok((source, policy)),
        Err(error) => Err(invalid(&check(&source, error.as_bytes()).err().unwrap_or_default())),
    }
}

/// A policy file's bytes, bounded.
pub(super) fn policy_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    given::open(path)?.take(POLICY + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= POLICY) {
        return Ok(bytes);
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {POLICY} bytes")))
}

/// The command for the agent. It judges the path, so that has to be exact; the arguments are for the evidence.
fn describe(path: &Path, argv: &[OsString]) -> Result<Command, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot tell the working directory: {error}")))?;
    let mut left = ARGUMENTS;
    let mut shown = Vec::new();
    for argument in argv {
        let Some(rest) = left.checked_sub(argument.len() + 1) else { break };
        left = rest;
        shown.push(argument.as_bytes().into());
    }
    Ok(Command { path: text(absolute), argv_cut: shown.len() < argv.len(), argv: shown })
}

/// The terminal of the first of the descriptors 0 to 2 that is one.
fn terminal() -> Option<Text> {
    let terminals = [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
    let descriptor = terminals.iter().position(|&is_one| is_one)?;
    fs::read_link(format!("/proc/self/fd/{descriptor}")).ok().map(text)
}

/// A path with its own bytes.
fn text(path: PathBuf) -> Text {
    path.into_os_string().into_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::Checked;

    /// As if no text could be read.
    fn check(file: &str, bytes: &[u8]) -> Result<Checked, Vec<Problem>> {
        let message = format!("{} bytes are no policy", bytes.len());
        Err(vec![Problem { file: file.to_owned(), line: 1, column: 3, key: "spec".to_owned(), message }])
    }

    fn read(given: &OsStr, directory: &Path) -> Result<(String, String), Failure> {
        read_policy(given, directory, check)
    }

    fn message(result: Result<(String, String), Failure>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn a_policy_is_a_file_or_a_name_in_the_policy_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("release.yaml");
        fs::write(&file, "text").unwrap();
        let expected = (file.display().to_string(), "text".to_owned());
        assert_eq!(read("release".as_ref(), directory.path()).unwrap(), expected);
        assert_eq!(read(file.as_os_str(), Path::new("/nonexistent")).unwrap(), expected);
        let missing = message(read("other".as_ref(), directory.path()));
        assert!(
            missing.contains("/other.yaml: No such file") && missing.ends_with("; nor is there ./other"),
            "{missing}"
        );
        let missing = message(read("./release".as_ref(), directory.path()));
        assert!(missing.starts_with("cannot read the policy ./release: ") && !missing.contains("nor"), "{missing}");
    }

    #[test]
    fn a_policy_that_is_not_text_or_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p");
        fs::write(&file, b"ab\xff").unwrap();
        let expected = format!("the policy is not valid:\n{}:1:3: spec: 3 bytes are no policy", file.display());
        assert_eq!(message(read(file.as_os_str(), directory.path())), expected);
        fs::write(&file, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(message(read(file.as_os_str(), directory.path())).ends_with("has more than 1048576 bytes"));
        fs::write(&file, vec![b'#'; 1024 * 1024]).unwrap();
        assert!(read(file.as_os_str(), directory.path()).is_ok());
        let folder = message(read(directory.path().as_os_str(), directory.path()));
        assert!(folder.contains("it is a directory: name a regular file"), "{folder}");
    }

    #[test]
    fn arguments_are_cut_as_a_whole_and_the_cut_is_said() {
        let argv = ["cmd".into(), "x".repeat(20_000).into(), "y".repeat(20_000).into(), "z".into()];
        let command = describe(Path::new("/bin/cmd"), &argv).unwrap();
        assert_eq!((command.argv.len(), command.argv_cut), (2, true));
        let command = describe(Path::new("/bin/cmd"), &argv[..2]).unwrap();
        assert_eq!((command.argv.len(), command.argv_cut), (2, false));
    }

    #[test]
    fn bytes_that_are_no_text_stay_what_they_are() {
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let command = describe(Path::new(&bytes(b"/bin/\xff")), &[bytes(b"\\x"), bytes(b"a\xe9")]).unwrap();
        let sent = serde_json::to_value(&command).unwrap();
        assert_eq!(sent["path"], r"/bin/\xff");
        assert_eq!(sent["argv"], serde_json::json!([r"\\x", r"a\xe9"]));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(bytes(b"p\xe9.yaml"));
        fs::write(&file, "text").unwrap();
        let (source, _) = read(file.as_os_str(), directory.path()).unwrap();
        assert_eq!(source, format!(r"{}/p\xe9.yaml", directory.path().display()));
    }

    #[test]
    fn the_largest_call_fits_a_frame() {
        let run = Run {
            policy: "\"\n".repeat(512 * 1024),
            policy_source: String::new(),
            ttl: None,
            credential_expires: None,
            credential: None,
            labels: std::collections::BTreeMap::new(),
            command: describe(Path::new("/bin/cmd"), &["\u{1}".repeat(32 * 1024 - 1).into()]).unwrap(),
            cwd: "\u{1}".repeat(4096).as_str().into(),
            tty: None,
        };
        assert!(!run.command.argv_cut);
        assert!(crate::api::frame::encode(&Request::Run(run)).is_ok());
    }
}
