//! `tipstaff run` against a listener that starts every session: what the command inherits, and how the launcher ends.
//!
//! The launcher speaks to root only. Without root this asserts that refusal and nothing else.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        mpsc::{self as std_mpsc, Receiver},
    },
    thread,
    time::Duration,
};

use tipstaff::{
    api::{
        door::{Gate, Standing},
        server::{Incoming, Listeners},
        wire::{ApiError, Reply, Request, Run, Started},
    },
    evidence::Text,
};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(20);

struct Agent {
    directory: tempfile::TempDir,
    /// Every `Run` that came, with its caller's process id.
    runs: Receiver<(Run, u32)>,
}

fn answer(call: Incoming, refuse: bool) -> Option<(Run, u32)> {
    let Request::Run(run) = call.request else { return None };
    call.reply.finish(if refuse {
        Err(ApiError::Refused {
            message: "it is outside the scope".to_owned(),
            rule: Some("no-such".to_owned()),
            remedy: "allow it".to_owned(),
        })
    } else {
        Ok(Reply::Started(Started {
            session: "0".repeat(32),
            deadline_boot_ns: 1,
            ttl_ms: 1000,
            notes: vec!["the ttl was capped".to_owned()],
            close: Vec::new(),
            shed: None,
        }))
    });
    Some((run, call.peer.pid))
}

fn agent(refuse: bool) -> Agent {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("p.yaml"), "policy text").unwrap();
    let gid = nix::unistd::getegid().as_raw();
    let listeners = Listeners::bind(&directory.path().join("run"), gid, gid).unwrap();
    let (sender, runs) = std_mpsc::channel();
    thread::spawn(move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async move {
            let (calls, mut incoming) = mpsc::channel(4);
            let engine = async move {
                while let Some(call) = incoming.recv().await {
                    answer(call, refuse).into_iter().for_each(|run| sender.send(run).unwrap());
                }
            };
            let gate = Gate { ask: Arc::new(|_, _| Ok(Standing::Free)), count: Arc::new(drop) };
            tokio::join!(listeners.serve(gate, calls), engine).0
        })
    });
    Agent { directory, runs }
}

impl Agent {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn launcher(&self, command: &[&str]) -> Command {
        let mut launcher = tipstaff(&self.path("run"), &self.path(""));
        launcher.args(["run", "--policy", "p", "--"]).args(command);
        launcher
    }
}

fn tipstaff(runtime: &Path, policies: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tipstaff"));
    command.arg("--runtime-dir").arg(runtime).arg("--policy-dir").arg(policies).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Whether the launcher can be tested; otherwise asserts that it refuses to talk to somebody who is not root.
fn is_root(output: &Output) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("not to root"));
    false
}

/// The launcher, run by a shell that first does what `before` says (and execs, so that the process stays the same).
fn under_shell(before: &str, launcher: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{before}; exec \"$@\"")).arg("sh");
    shell.arg(launcher.get_program()).args(launcher.get_args());
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

#[test]
fn the_command_is_the_caller_with_its_environment_and_only_three_descriptors() {
    let agent = agent(false);
    let command = ["sh", "-c", "echo $$ $MARK; ls /proc/$$/fd; exec grep -E 'Threads|SigBlk' /proc/self/status"];
    let mut shell = under_shell("exec 7</dev/null", &agent.launcher(&command));
    let child = shell.env("MARK", "kept").spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    if !is_root(&output) {
        return;
    }
    assert_eq!(text(&output.stderr), "tipstaff: note: the ttl was capped\n");
    let stdout = text(&output.stdout);
    let words: Vec<&str> = stdout.split_whitespace().collect();
    let pid_word = pid.to_string();
    assert_eq!(words[..5], [&pid_word, "kept", "0", "1", "2"], "{stdout}");
    assert_eq!(words[5..], ["Threads:", "1", "SigBlk:", "0000000000000000"], "{stdout}");

    let (run, peer) = agent.runs.recv_timeout(DEADLINE).unwrap();
    assert_eq!(peer, pid);
    assert_eq!(run.policy, "policy text");
    assert_eq!(run.policy_source, agent.path("p.yaml").display().to_string());
    let path = run.command.path.to_string();
    assert!(path.ends_with("/sh") && path.starts_with('/'), "{path}");
    assert_eq!(run.command.argv, command.map(Text::from));
}

#[test]
fn ignored_signals_stay_ignored_and_others_do_not_become_so() {
    let agent = agent(false);
    let mask = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let ignored = |before: &str| {
        let launcher = agent.launcher(&["grep", "SigIgn", "/proc/self/status"]);
        let output = under_shell(before, &launcher).output().unwrap();
        is_root(&output).then(|| mask(&text(&output.stdout)))
    };
    let (pipe, interrupt) = (1 << 12, 1 << 1);
    if let Some(found) = ignored(":") {
        // these tests may run where a shell in the background had it ignored already
        let inherited = mask(&fs::read_to_string("/proc/self/status").unwrap()) & interrupt;
        assert_eq!(found & (pipe | interrupt), inherited);
    }
    if let Some(found) = ignored("trap '' PIPE INT") {
        assert_eq!(found & (pipe | interrupt), pipe | interrupt);
    }
}

#[test]
fn a_script_without_an_interpreter_line_is_the_shells() {
    let agent = agent(false);
    let script = agent.path("script");
    fs::write(&script, "echo $1\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = agent.launcher(&[&script.display().to_string(), "word"]).output().unwrap();
    if is_root(&output) {
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "word\n"));
    }
}

#[test]
fn the_exit_status_is_the_commands_own() {
    let agent = agent(false);
    let output = agent.launcher(&["sh", "-c", "exit 42"]).output().unwrap();
    if is_root(&output) {
        assert_eq!(output.status.code(), Some(42));
        let killed = agent.launcher(&["sh", "-c", "kill -TERM $$"]).output().unwrap();
        assert_eq!(killed.status.signal(), Some(15));
    }
}

#[test]
fn a_refusal_names_rule_and_remedy_and_is_125() {
    let agent = agent(true);
    let output = agent.launcher(&["sh", "-c", "echo ran"]).output().unwrap();
    if is_root(&output) {
        assert_eq!(output.status.code(), Some(125));
        let expected = "tipstaff: refused: it is outside the scope (rule no-such); allow it\n";
        assert_eq!((text(&output.stdout), text(&output.stderr).as_str()), (String::new(), expected));
    }
}

#[test]
fn a_command_that_is_not_there_or_not_executable_starts_no_session() {
    let agent = agent(false);
    let missing = agent.launcher(&["no-such-command"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(text(&missing.stderr), "tipstaff: no-such-command: No such file or directory\n");
    let plain = agent.path("p.yaml");
    let output = agent.launcher(&[&plain.display().to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).ends_with(": Permission denied\n"));
    assert!(agent.runs.try_recv().is_err());
}

#[test]
fn a_script_whose_interpreter_is_missing_fails_as_in_a_shell() {
    let agent = agent(false);
    let script = agent.path("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = agent.launcher(&[&script.display().to_string()]).output().unwrap();
    if is_root(&output) {
        assert_eq!(output.status.code(), Some(127));
    }
}

#[test]
fn without_an_agent_run_is_125_and_a_question_is_7() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("run");
    fs::write(directory.path().join("p.yaml"), "").unwrap();
    let output = tipstaff(&runtime, directory.path()).args(["run", "--policy", "p", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let output = tipstaff(&runtime, directory.path()).arg("ps").output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let expected = format!("tipstaff: no agent runs here: there is no socket {}/read.sock;", runtime.display());
    assert!(text(&output.stderr).starts_with(&expected), "{}", text(&output.stderr));
}

#[test]
fn a_mistake_on_the_command_line_is_2_but_125_under_run() {
    let status =
        |line: &[&str]| Command::new(env!("CARGO_BIN_EXE_tipstaff")).args(line).output().unwrap().status.code();
    assert_eq!(status(&["ps", "--bogus"]), Some(2));
    assert_eq!(status(&[]), Some(2));
    assert_eq!(status(&["run", "--bogus"]), Some(125));
    assert_eq!(status(&["--help"]), Some(0));
    assert_eq!(status(&["disarm"]), Some(2));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let help = Command::new(env!("CARGO_BIN_EXE_tipstaff")).arg("--help").stdout(writer).output().unwrap();
    assert_eq!((help.status.code(), text(&help.stderr)), (Some(0), String::new()));
}
