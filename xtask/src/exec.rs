//! Running other programs: one way to name what failed, one way to tell what is going on.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};

/// Progress, on stderr.
pub(crate) fn say(message: &str) {
    eprintln!("x: {message}");
}

/// Does `work`, and says what it is before and how long it took afterwards.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("{name} …"));
    let start = Instant::now();
    let result = work().with_context(|| name.to_owned())?;
    say(&format!("{name}: {:.1} s", start.elapsed().as_secs_f64()));
    Ok(result)
}

/// Runs a program to its end, with this process's output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", name(command));
    }
    Ok(())
}

/// Runs a program and returns its standard output; its standard error is shown when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        bail!("{} ended with {}: {}", name(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} did not print text", name(command)))
}

/// A command that runs as root: by sudo where this process is not.
pub(crate) fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// The first file of that name on the PATH.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The PATH with `folder` before everything else.
pub(crate) fn path_with(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([folder.to_owned()].into_iter().chain(env::split_paths(&path)))
        .with_context(|| format!("{} cannot stand in PATH", folder.display()))
}

/// The same command, which gives way to whatever else wants the processors.
pub(crate) fn aside(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    nice
}

/// The program and its arguments, as one would type them.
fn name(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`", words.join(" "))
}

/// How a watched program came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// By itself, with that status.
    Ended(ExitStatus),
    /// Killed, because its time was up.
    Late,
}

/// Runs a program and hands over each line of its output as it comes. It is killed at the deadline, which `line`
/// moves by returning another one.
pub(crate) fn watch(
    command: &mut Command,
    mut line: impl FnMut(&str) -> Option<Instant>,
    mut deadline: Instant,
) -> Result<Watched> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", name(command)))?;
    let output = child.stdout.take().context("a piped output is missing")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || read_lines(output, &sender));
    let late = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => deadline = line(&text).unwrap_or(deadline),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if late {
        child.kill().with_context(|| format!("cannot kill {}", name(command)))?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {}", name(command)))?;
    if late {
        return Ok(Watched::Late);
    }
    reader.join().map_err(|_panic| anyhow!("the reader of {} died", name(command)))?;
    Ok(Watched::Ended(status))
}

/// Reads to the end, whatever the bytes are. A console ends its lines with a carriage return as well.
fn read_lines(output: impl Read, sender: &mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        let text = String::from_utf8_lossy(&bytes);
        if sender.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
            return;
        }
        bytes.clear();
    }
}
