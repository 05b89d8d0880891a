//! Child processes of a test: in a cgroup of the sandbox from their first instruction, with captured output, and waited
//! for with a deadline.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setgid, setgroups, setuid, write},
};

use super::{
    cgroup::Cgroup,
    sandbox::Sandbox,
    wait::{ended, patience, until},
};

/// Who a child is: user, group.
pub(crate) type User = (u32, u32);

/// A session's command about to be started with `tipstaff run`.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    sandbox: &'a Sandbox,
    policy: OsString,
    command: Vec<OsString>,
    ttl: Option<String>,
    flags: Vec<String>,
    user: Option<User>,
    folder: Option<PathBuf>,
    stdin: Option<PathBuf>,
    input: Option<OwnedFd>,
    variables: Vec<(String, String)>,
    extra: Option<File>,
    raised: bool,
}

impl<'a> Launch<'a> {
    pub(crate) fn new<T: Into<OsString>>(
        sandbox: &'a Sandbox,
        policy: impl Into<OsString>,
        command: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            sandbox,
            policy: policy.into(),
            command: command.into_iter().map(Into::into).collect(),
            ttl: None,
            flags: Vec::new(),
            user: None,
            folder: None,
            stdin: None,
            input: None,
            variables: Vec::new(),
            extra: None,
            raised: false,
        }
    }

    pub(crate) fn ttl(mut self, ttl: &str) -> Self {
        self.ttl = Some(ttl.to_owned());
        self
    }

    /// A flag of `run` and its value.
    pub(crate) fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    pub(crate) fn folder(mut self, path: &Path) -> Self {
        self.folder = Some(path.to_owned());
        self
    }

    pub(crate) fn stdin(mut self, path: &Path) -> Self {
        self.stdin = Some(path.to_owned());
        self
    }

    /// What `tipstaff run` has as descriptor 0.
    pub(crate) fn input(mut self, descriptor: impl Into<OwnedFd>) -> Self {
        self.input = Some(descriptor.into());
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A descriptor beside 0 to 2 that `tipstaff run` inherits.
    pub(crate) fn extra(mut self, file: File) -> Self {
        self.extra = Some(file);
        self
    }

    /// Root's capabilities are inheritable, and `CAP_NET_ADMIN` is ambient.
    pub(crate) fn raised(mut self) -> Self {
        self.raised = true;
        self
    }

    pub(crate) fn start(self) -> Result<Running> {
        let mut command = self.sandbox.tipstaff();
        command.args(["run", "--policy"]).arg(self.policy);
        command.args(self.ttl.into_iter().flat_map(|ttl| ["--ttl".to_owned(), ttl])).args(self.flags);
        command.arg("--").args(self.command).envs(self.variables);
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        if let Some(path) = self.stdin {
            command.stdin(File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?);
        }
        if let Some(input) = self.input {
            command.stdin(Stdio::from(input));
        }
        if let Some(file) = &self.extra {
            let flags = nix::fcntl::FdFlag::empty();
            nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFD(flags))
                .with_context(|| format!("descriptor {}", file.as_raw_fd()))?;
        }
        if self.raised {
            // SAFETY: between fork and exec it makes system calls alone.
            unsafe { command.pre_exec(raise) };
        }
        Running::spawn(self.sandbox, command, self.user)
    }
}

/// Makes all capabilities of this process inheritable, and `CAP_NET_ADMIN` ambient.
fn raise() -> std::io::Result<()> {
    const NET_ADMIN: libc::c_ulong = 12;
    let (header, mut sets) = ([0x2008_0522_u32, 0], [0u32; 6]);
    // SAFETY: a header of version 3 and the data of its two halves, which outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) })?;
    // effective, permitted and inheritable of each half
    (sets[2], sets[5]) = (sets[1], sets[4]);
    // SAFETY: as above.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    // SAFETY: integers only.
    let done = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, NET_ADMIN, 0, 0) };
    Errno::result(done)?;
    Ok(())
}

/// A child that was started and not yet waited for. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Starts `command` as a caller: in the cgroup whose processes the agent takes calls from.
    pub(crate) fn spawn(sandbox: &Sandbox, mut command: Command, user: Option<User>) -> Result<Self> {
        let (out, err) = (sandbox.fresh("out"), sandbox.fresh("err"));
        let (out_file, err_file) = (File::create(&out)?, File::create(&err)?);
        command.stdout(out_file).stderr(err_file);
        enter(&mut command, sandbox.callers(), user)?;
        let child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self { child, out, err })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the session that it was started as is active, and its command has taken the caller's place: from then
    /// on it does not need the agent. The session's id.
    pub(crate) fn session(&self, sandbox: &Sandbox) -> Result<String> {
        let found = sandbox.session_of(self.pid()).and_then(|session| {
            sandbox.session_active(&session)?;
            until("the command to be executed", patience(), || Ok((!self.is_a_caller(sandbox)).then_some(())))?;
            Ok(session)
        });
        found.with_context(|| format!("tipstaff run said {:?}", fs::read_to_string(&self.err).unwrap_or_default()))
    }

    /// Whether it is `tipstaff` still.
    pub(crate) fn is_a_caller(&self, sandbox: &Sandbox) -> bool {
        fs::read_link(format!("/proc/{}/exe", self.pid())).is_ok_and(|exe| exe == sandbox.binary())
    }

    /// What it has written to stdout so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub(crate) fn wait(self) -> Result<Finished> {
        self.wait_for(patience())
    }

    pub(crate) fn wait_for(mut self, limit: Duration) -> Result<Finished> {
        let status = ended(&mut self.child, limit)?;
        Ok(Finished {
            pid: self.child.id(),
            code: shell_code(status),
            stdout: fs::read_to_string(&self.out)?.trim_end().to_owned(),
            stderr: fs::read_to_string(&self.err)?.trim_end().to_owned(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // both fail where it was waited for: then there is nothing to do
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a child left.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) pid: u32,
    /// As a shell has it: the exit status, or 128 and the signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// It ended with `code`.
    pub(crate) fn ended(&self, code: i32) -> Result<&Self> {
        ensure!(
            self.code == code,
            "exit status {} where {code} was expected; stdout {:?}, stderr {:?}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Its whole stdout is `text`.
    pub(crate) fn said(&self, text: &str) -> Result<&Self> {
        ensure!(
            self.stdout == text,
            "stdout {:?} where {text:?} was expected; exit status {}, stderr {:?}",
            self.stdout,
            self.code,
            self.stderr
        );
        Ok(self)
    }

    /// Its stderr has every one of `parts`.
    pub(crate) fn complained(&self, parts: &[&str]) -> Result<&Self> {
        names("stderr", &self.stderr, parts)?;
        Ok(self)
    }

    /// Its output has every one of `parts`, for verbs whose result is what they find wrong.
    pub(crate) fn told(&self, parts: &[&str]) -> Result<&Self> {
        names("the output", &format!("{}\n{}", self.stdout, self.stderr), parts)?;
        Ok(self)
    }
}

fn names(what: &str, text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.to_lowercase().contains(&part.to_lowercase()), "{what} {text:?} does not name {part:?}");
    }
    Ok(())
}

/// Makes `command` start in `cgroup` and, where `user` is given, as that user with that group alone.
pub(crate) fn enter(command: &mut Command, cgroup: &Cgroup, user: Option<User>) -> Result<()> {
    let door = cgroup.door()?;
    let before_exec = move || {
        write(&door, b"0")?;
        if let Some((uid, gid)) = user {
            let gid = Gid::from_raw(gid);
            setgroups(&[gid])?;
            setgid(gid)?;
            setuid(Uid::from_raw(uid))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

/// A command with nothing of this process's environment and no input.
pub(crate) fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
