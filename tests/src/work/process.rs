//! Processes and programs.

use std::{
    ffi::{CStr, CString, c_char},
    fs::File,
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, ExitStatus, Stdio},
    ptr,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execv, fexecve, pause, setsid},
};

use super::{one, run, say};

/// `exec PROGRAM ARGUMENT…`: this process becomes the program. Prints only where that failed.
pub(super) fn exec(words: &[&str]) -> Result<u8> {
    let argv = c_strings(words)?;
    let program: &CStr = argv.first().context("exec needs a program")?;
    let Err(errno) = execv(program, &argv);
    Ok(say(Err(errno)))
}

/// `spawn PROGRAM ARGUMENT…`: fork, exec, wait.
pub(super) fn spawn(words: &[&str]) -> Result<u8> {
    let (program, arguments) = one(words)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // SAFETY: the closure does nothing; it makes the standard library use fork and not vfork.
    unsafe { command.pre_exec(|| Ok(())) };
    match command.status() {
        Ok(status) => tell(status),
        Err(error) => drop(say(Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))))),
    }
    Ok(0)
}

/// `vspawn PROGRAM ARGUMENT…`: the same with posix_spawn(3), which is vfork.
pub(super) fn vspawn(words: &[&str]) -> Result<u8> {
    match vfork(&c_strings(words)?) {
        Ok(child) => tell_wait(waitpid(child, None)?),
        Err(errno) => Ok(say(Err(errno))),
    }
}

/// Starts a program, with what comes after it as its arguments, as `vspawn` does.
pub(super) fn vfork(argv: &[CString]) -> Result<Pid, Errno> {
    let program = argv.first().ok_or(Errno::EINVAL)?;
    let mut pointers: Vec<*mut c_char> = argv.iter().map(|word| word.as_ptr().cast_mut()).collect();
    pointers.push(ptr::null_mut());
    let environment = [ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: both vectors end with a null pointer and outlive the call, as do the strings they point to, which
    // posix_spawn does not write to; null stands for default actions and attributes.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            ptr::null(),
            ptr::null(),
            pointers.as_ptr(),
            environment.as_ptr(),
        )
    };
    if errno == 0 { Ok(Pid::from_raw(pid)) } else { Err(Errno::from_raw(errno)) }
}

/// `spawn-by-descriptor PROGRAM ARGUMENT…`: fork, fexecve, wait.
pub(super) fn spawn_by_descriptor(words: &[&str]) -> Result<u8> {
    let (program, _) = one(words)?;
    let (file, argv) = (File::open(program)?, c_strings(words)?);
    // fexecve reports its errno through the exit status, above what programs here use
    let child = in_child(|| {
        let Err(errno) = fexecve(&file, &argv, &[] as &[&CStr]);
        100 + u8::try_from(errno as i32).unwrap_or(0)
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, status) if status > 100 => Ok(say(Err(Errno::from_raw(status - 100)))),
        other => tell_wait(other),
    }
}

/// `made memfd|deleted|copy PROGRAM FILE ARGUMENT…`: makes the program's bytes a file of its own – in memory, at FILE and
/// removed again, or at FILE – and spawns it.
pub(super) fn made(words: &[&str]) -> Result<u8> {
    let [how, program, file, arguments @ ..] = words else { bail!("made needs three words") };
    let argv = c_strings(&[&[*file], arguments].concat())?;
    let path = match *how {
        "memfd" => {
            let mut made = File::from(memfd_create("made", MFdFlags::empty())?);
            std::io::copy(&mut File::open(program)?, &mut made)?;
            reopened(made)?
        }
        "deleted" => {
            std::fs::copy(program, file)?;
            let made = File::open(file)?;
            std::fs::remove_file(file)?;
            made
        }
        _ => {
            std::fs::copy(program, file)?;
            return spawn(&[&[*file], arguments].concat());
        }
    };
    let child = in_child(|| {
        let by_path = CString::new(format!("/proc/self/fd/{}", path.as_raw_fd())).unwrap_or_default();
        let Err(errno) = execv(&by_path, &argv);
        100 + u8::try_from(errno as i32).unwrap_or(0)
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, status) if status > 100 => Ok(say(Err(Errno::from_raw(status - 100)))),
        other => tell_wait(other),
    }
}

/// The file once more, to read only: what is open to write is not executed.
pub(super) fn reopened(file: File) -> Result<File> {
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

/// `many COUNT PROGRAM ARGUMENT…`: one after the other; prints how many ended with status 0.
pub(super) fn many(words: &[&str]) -> Result<u8> {
    let (count, rest) = one(words)?;
    let (program, arguments) = one(rest)?;
    let mut well = 0;
    for _ in 0..count.parse::<u32>()? {
        let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
        well += u32::from(status.is_ok_and(|status| status.success()));
    }
    println!("{well} of {count}");
    Ok(0)
}

/// `besiege BAD MARK GOOD BAD-ADDRESS BAD-PORT GOOD-ADDRESS GOOD-PORT FILE`: until FILE exists, tries the program and the
/// address that are out of scope, and those in scope. Prints how often each was tried and worked.
pub(super) fn besiege(words: &[&str]) -> Result<u8> {
    let [bad, mark, good, bad_ip, bad_port, good_ip, good_port, stop] = words else { bail!("besiege needs 8 words") };
    let (bad_place, good_place) =
        (super::network::place(bad_ip, bad_port)?, super::network::place(good_ip, good_port)?);
    let runs = |program: &str, work: &[&str]| {
        let mut command = Command::new(program);
        command.arg("--work").args(work).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let (mut rounds, mut worked) = (0, [0; 4]);
    while !std::fs::exists(stop)? {
        rounds += 1;
        worked[0] += u32::from(runs(bad, &["mark", mark]));
        worked[1] += u32::from(runs(good, &["nothing"]));
        worked[2] += u32::from(super::network::reaches(&bad_place)?);
        worked[3] += u32::from(super::network::reaches(&good_place)?);
    }
    println!("{rounds} rounds, worked {worked:?}");
    Ok(0)
}

/// `tree COUNT`: processes that idle, half of them in sessions of their own; this one ends.
pub(super) fn tree(words: &[&str]) -> Result<u8> {
    let (count, _) = one(words)?;
    let count = count.parse::<u32>()?;
    for n in 0..count {
        if n % 2 == 0 {
            background(&["idle"])?
        } else {
            daemonise(&["idle"])?
        };
    }
    println!("{count} made");
    Ok(0)
}

/// `storm FILE`: until FILE exists, makes a child that makes a child, and waits for both.
pub(super) fn storm(words: &[&str]) -> Result<u8> {
    let (stop, _) = one(words)?;
    while !std::fs::exists(stop)? {
        let child = in_child(|| match in_child(|| 0).map(|child| waitpid(child, None)) {
            Ok(Ok(WaitStatus::Exited(_, 0))) => 0,
            _ => 1,
        })?;
        waitpid(child, None)?;
    }
    Ok(0)
}

/// `throngs FILE COUNT`: until FILE exists, makes so many children that live side by side, and ends them.
pub(super) fn throngs(words: &[&str]) -> Result<u8> {
    let [stop, count] = words else { bail!("throngs needs 2 words") };
    let count = count.parse::<u32>()?;
    while !std::fs::exists(stop)? {
        let children = (0..count).map(|_| in_child(|| idle())).collect::<Result<Vec<Pid>>>()?;
        for child in children {
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
        }
    }
    Ok(0)
}

/// `crowd MOST`: makes children that idle, until one cannot be made or there are that many. What became of the last.
pub(super) fn crowd(words: &[&str]) -> Result<u8> {
    for _ in 0..one(words)?.0.parse::<u32>()? {
        if let Err(error) = in_child(|| idle()) {
            return Ok(say(Err(error.downcast()?)));
        }
    }
    Ok(say(Ok(())))
}

/// `attach-itself TIMES PROGRAM POLICY [CGROUP]`: the program is `tipstaff`, a child, and attaches this process, or the cgroup,
/// which it names so often.
pub(super) fn attach_itself(words: &[&str]) -> Result<u8> {
    let [times, program, policy, cgroup @ ..] = words else { bail!("attach-itself needs 3 words") };
    let own = std::process::id().to_string();
    let target = cgroup.first().map_or(["--pid", own.as_str()], |cgroup| ["--from-cgroup", cgroup]);
    let mut command = Command::new(program);
    command.args(["attach", "--policy", policy]);
    for _ in 0..times.parse::<u32>()? {
        command.args(target);
    }
    tell(command.stdin(Stdio::null()).stdout(Stdio::null()).status()?);
    Ok(0)
}

/// `fork REST`: a child does the rest and is waited for.
pub(super) fn fork(rest: &[&str]) -> Result<u8> {
    match in_child(|| run(rest)) {
        Ok(child) => tell_wait(waitpid(child, None)?),
        Err(error) => Ok(say(Err(error.downcast()?))),
    }
}

/// `background REST`: a child does the rest.
pub(super) fn background(rest: &[&str]) -> Result<u8> {
    in_child(|| run(rest))?;
    Ok(0)
}

/// `thread REST`: another thread does the rest and is waited for.
pub(super) fn thread(rest: &[&str]) -> Result<u8> {
    std::thread::scope(|scope| match scope.spawn(|| run(rest)).join() {
        Ok(status) => Ok(status),
        Err(_) => bail!("the thread panicked"),
    })
}

/// `daemonise REST`: fork, setsid, fork; the grandchild, without input and output, does the rest.
pub(super) fn daemonise(rest: &[&str]) -> Result<u8> {
    let child = in_child(|| if setsid().is_ok() && in_child(|| silent(rest)).is_ok() { 0 } else { super::MISUSE })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(0),
        other => bail!("the first child ended with {other:?}"),
    }
}

fn silent(rest: &[&str]) -> u8 {
    let null = File::options().read(true).write(true).open("/dev/null");
    let quiet =
        null.is_ok_and(|null| dup2_stdin(&null).is_ok() && dup2_stdout(&null).is_ok() && dup2_stderr(&null).is_ok());
    if quiet { run(rest) } else { super::MISUSE }
}

/// `spin`: uses the processor for ever.
pub(super) fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// `idle`: sleeps for ever.
pub(super) fn idle() -> ! {
    loop {
        pause();
    }
}

/// Forks; the child does `body` and ends with its status.
pub(crate) fn in_child(body: impl FnOnce() -> u8) -> Result<Pid> {
    // SAFETY: workloads have one thread when they fork, so the child may do all that this process may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = body();
            // SAFETY: ends this process and runs none of the parent's exit handlers.
            unsafe { libc::_exit(i32::from(status)) }
        }
    }
}

pub(super) fn tell_wait(status: WaitStatus) -> Result<u8> {
    match status {
        WaitStatus::Exited(_, status) => println!("exit {status}"),
        WaitStatus::Signaled(_, signal, _) => println!("signal {}", signal as i32),
        other => bail!("the child is {other:?}"),
    }
    Ok(0)
}

fn tell(status: ExitStatus) {
    match (status.code(), status.signal()) {
        (Some(code), _) => println!("exit {code}"),
        (None, signal) => println!("signal {}", signal.unwrap_or(0)),
    }
}

fn c_strings(words: &[&str]) -> Result<Vec<CString>> {
    words.iter().map(|word| CString::new(*word).context("a word with a zero byte")).collect()
}
