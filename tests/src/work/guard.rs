//! `under notify|trace WORDS…` does `WORDS` as a child that this process supervises, by seccomp's user notifications or by
//! ptrace(2); and Landlock for a process that asks for it. The benchmarks compare themselves with these: each is the least that
//! such a guard does, and lets everything go on.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        ptrace::{self, Options},
        signal::{Signal, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, pipe, read, write},
};

use super::{in_child, one, run};
use crate::{bench::place, harness::bpf::pidfd};

/// The number under which the child holds what the kernel asks by, for its supervisor to take.
const LISTENER: libc::c_int = 100;
/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (`include/uapi/linux/seccomp.h`, 6.18).
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
/// `LANDLOCK_CREATE_RULESET_VERSION` and `enum landlock_rule_type` (`include/uapi/linux/landlock.h`, 6.18).
const VERSION: u32 = 1;
const PATH_BENEATH: libc::c_int = 1;
const NET_PORT: libc::c_int = 2;
/// `LANDLOCK_ACCESS_FS_*`: to execute, write and read files, to read directories.
const FILES: u64 = 0b1111;
/// `LANDLOCK_ACCESS_NET_CONNECT_TCP`, from version 4 on (6.7).
const CONNECT: u64 = 1 << 1;

pub(super) fn under(words: &[&str]) -> Result<u8> {
    let (guard, rest) = one(words)?;
    // beside what it guards, where going from one to the other costs least
    place::pin(place::WORKER)?;
    place::hurry(true);
    match guard {
        "notify" => supervised(rest),
        "trace" => traced(rest),
        _ => bail!("there is no guard {guard:?}"),
    }
}

/// The kernel asks the supervisor at each connect and exec.
fn supervised(words: &[&str]) -> Result<u8> {
    let (ready, told) = pipe()?;
    let child = in_child(|| match ask_at_calls().and_then(|()| Ok(write(&told, b"!")?)) {
        Ok(_) => run(words),
        Err(error) => {
            eprintln!("under notify: {error:#}");
            super::MISUSE
        }
    })?;
    drop(told);
    ensure!(read(&ready, &mut [0])? == 1, "the guarded process ended");
    let process = pidfd(child.as_raw().cast_unsigned())?;
    // SAFETY: integers only.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) };
    let taken = Errno::result(taken).context("the seccomp listener")?;
    // SAFETY: the kernel made it for this process just now.
    let listener = unsafe { OwnedFd::from_raw_fd(i32::try_from(taken)?) };
    answer(&listener)?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, status) => Ok(u8::try_from(status)?),
        other => bail!("the guarded process is {other:?}"),
    }
}

/// Lets every call go on that is asked for, until nobody is left who could ask.
fn answer(listener: &OwnedFd) -> Result<()> {
    loop {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, PollTimeout::NONE)?;
        if waiting[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP)) {
            return Ok(());
        }
        // SAFETY: all zeros are what the kernel asks for.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: a whole `seccomp_notif`, which outlives the call.
        let got = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut asked) };
        Errno::result(got).context("seccomp's question")?;
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        let mut go_on = libc::seccomp_notif_resp { id: asked.id, val: 0, error: 0, flags };
        // SAFETY: a whole `seccomp_notif_resp`, which outlives the call.
        let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut go_on) };
        Errno::result(sent).context("an answer to seccomp")?;
    }
}

/// From here on the kernel asks at this process's connects and execs.
fn ask_at_calls() -> Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let code = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let filter = [
        code(LOAD, 0, 0, 0),
        code(EQUAL, libc::SYS_connect as u32, 2, 0),
        code(EQUAL, libc::SYS_execve as u32, 1, 0),
        code(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        code(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
    ];
    let program = libc::sock_fprog { len: u16::try_from(filter.len())?, filter: filter.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the program outlives the call, which only reads it.
    let made = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let listener = Errno::result(made).context("seccomp refused a filter with a listener")?;
    // SAFETY: integers only.
    Errno::result(unsafe { libc::dup2(i32::try_from(listener)?, LISTENER) })?;
    // SAFETY: the kernel made it for this process just now; its copy stays.
    drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(listener)?) });
    Ok(())
}

/// The child and what it makes stop before and after each of their system calls.
fn traced(words: &[&str]) -> Result<u8> {
    let child = in_child(|| {
        if ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP)).is_err() {
            return super::MISUSE;
        }
        run(words)
    })?;
    waitpid(child, None)?;
    let follow = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(child, Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD | follow)?;
    let go_on = |pid: Pid, signal: Option<Signal>| match ptrace::syscall(pid, signal) {
        // killed meanwhile
        Err(Errno::ESRCH) => Ok(()),
        other => other,
    };
    go_on(child, None)?;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, status) if pid == child => return Ok(u8::try_from(status)?),
            WaitStatus::Signaled(pid, signal, _) if pid == child => bail!("the traced process was killed by {signal}"),
            // what the kernel stops a new child by, and what an exec brings
            WaitStatus::Stopped(pid, Signal::SIGSTOP | Signal::SIGTRAP) => go_on(pid, None)?,
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal))?,
            WaitStatus::PtraceSyscall(pid) | WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None)?,
            _ => {}
        }
    }
}

/// Keeps this process to the files below `/`, as far as they are read, written and run, and, where the kernel knows that, to TCP
/// connections to `port`.
pub(super) fn landlock(port: u16) -> Result<()> {
    // SAFETY: a null pointer of no length is how the version is asked for.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0_usize, 0_usize, VERSION) };
    let version = Errno::result(version).context("the kernel has no Landlock")?;
    let handled = [FILES, CONNECT];
    let length = if version < 4 { 8_usize } else { 16 };
    // SAFETY: the kernel reads `length` bytes of an array of that length at least.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, handled.as_ptr(), length, 0) };
    let made = Errno::result(made).context("Landlock refused the ruleset")?;
    // SAFETY: the kernel made it for this process just now.
    let ruleset = unsafe { OwnedFd::from_raw_fd(i32::try_from(made)?) };
    let root = File::open("/")?;
    // `struct landlock_path_beneath_attr` is packed: 8 bytes and 4
    let mut beneath = [0; 12];
    beneath[..8].copy_from_slice(&FILES.to_ne_bytes());
    beneath[8..].copy_from_slice(&root.as_raw_fd().to_ne_bytes());
    add_rule(&ruleset, PATH_BENEATH, &beneath)?;
    if version >= 4 {
        add_rule(&ruleset, NET_PORT, &[CONNECT.to_ne_bytes(), u64::from(port).to_ne_bytes()].concat())?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: integers only.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(done).map(drop).context("Landlock refused to hold this process")
}

fn add_rule(ruleset: &OwnedFd, kind: libc::c_int, rule: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as a rule of that kind has, which is what `rule` is.
    let done = unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), kind, rule.as_ptr(), 0) };
    Errno::result(done).map(drop).context("Landlock refused a rule")
}
