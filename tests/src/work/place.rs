//! Cgroups and namespaces.

use std::{
    fs,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, chdir, chroot},
};

use super::{one, process, run, say};
use crate::harness::{guest::raise_loopback, mounts};

/// As `linux/sched.h` has it; libc's constant of that name is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// `cgroup DIRECTORY REST`: moves itself there first.
pub(super) fn cgroup(words: &[&str]) -> Result<u8> {
    let (directory, rest) = one(words)?;
    match fs::write(format!("{directory}/cgroup.procs"), "0") {
        Ok(()) => Ok(run(rest)),
        Err(error) => Ok(say(Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))))),
    }
}

/// `below NAME COUNT REST`: goes into the directory of that name so many times first.
pub(super) fn below(words: &[&str]) -> Result<u8> {
    let [name, count, rest @ ..] = words else { bail!("below needs a name and a count") };
    (0..count.parse::<u32>()?).try_for_each(|_| chdir(*name))?;
    Ok(run(rest))
}

fn own_cgroup() -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2 in /proc/self/cgroup")?;
    Ok(mounts::cgroup2()?.join(path))
}

/// `nest REST`: makes a cgroup below its own and moves itself there first.
pub(super) fn nest(rest: &[&str]) -> Result<u8> {
    let nested = own_cgroup()?.join("nested");
    match fs::create_dir(&nested) {
        // of an earlier one
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.with_context(|| format!("{} cannot be made", nested.display()))?,
    }
    cgroup(&[&[nested.to_str().context("not UTF-8")?], rest].concat())
}

/// `clone-into DIRECTORY REST`: a child that is born in that cgroup (`own`: in its own) does the rest and is waited for.
pub(super) fn clone_into(words: &[&str]) -> Result<u8> {
    let (directory, rest) = one(words)?;
    let place = if directory == "own" { own_cgroup()? } else { directory.into() };
    let directory = fs::File::open(&place).with_context(|| format!("{} cannot be opened", place.display()))?;
    let mut arguments = arguments(CLONE_INTO_CGROUP, libc::SIGCHLD)?;
    arguments.cgroup = u64::try_from(directory.as_raw_fd())?;
    clone3(&arguments, rest)
}

/// `cloned clone|clone3|parent REST`: a child that was made by that system call does the rest and is waited for;
/// `parent`: it is this process's sibling (`CLONE_PARENT`), and its parent waits for it or not.
pub(super) fn cloned(words: &[&str]) -> Result<u8> {
    let (how, rest) = one(words)?;
    match how {
        "clone" => {
            // SAFETY: without CLONE_VM this is a fork, and workloads have one thread; no pointer is given.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            either(pid, rest, true)
        }
        "clone3" => clone3(&arguments(0, libc::SIGCHLD)?, rest),
        "parent" => {
            let arguments = arguments(u64::try_from(libc::CLONE_PARENT)?, 0)?;
            // SAFETY: as in `clone3`.
            let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
            either(pid, rest, false)
        }
        _ => bail!("there is no way {how:?} to make a child"),
    }
}

/// `numbered PID|FILE REST`: a child with that process id, or with the one in the file, does the rest and is waited for. Tries
/// again while the number is taken.
pub(super) fn numbered(words: &[&str]) -> Result<u8> {
    let (pid, rest) = one(words)?;
    let number: libc::pid_t = match pid.parse() {
        Ok(number) => number,
        Err(_) => fs::read_to_string(pid)?.trim().parse()?,
    };
    let mut arguments = arguments(0, libc::SIGCHLD)?;
    arguments.set_tid = (&raw const number) as u64;
    arguments.set_tid_size = 1;
    for _ in 0..200 {
        // SAFETY: as in `clone3`; `number` outlives the call.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
        if pid >= 0 || Errno::last() != Errno::EEXIST {
            return either(pid, rest, true);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(say(Err(Errno::EEXIST)))
}

fn arguments(flags: u64, signal: libc::c_int) -> Result<libc::clone_args> {
    // SAFETY: an all-zero clone_args is a value of it: integers only.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = u64::try_from(signal)?;
    Ok(arguments)
}

fn clone3(arguments: &libc::clone_args, rest: &[&str]) -> Result<u8> {
    // SAFETY: without CLONE_VM this is a fork, and workloads have one thread; the structure outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(arguments), size_of::<libc::clone_args>()) };
    either(pid, rest, true)
}

/// In the child, does the rest; in the parent, waits for it.
fn either(pid: libc::c_long, rest: &[&str], waits: bool) -> Result<u8> {
    match pid {
        0 => {
            let status = run(rest);
            // SAFETY: ends this process and runs none of the parent's exit handlers.
            unsafe { libc::_exit(i32::from(status)) }
        }
        -1 => Ok(say(Err(Errno::last()))),
        _ if !waits => Ok(0),
        pid => process::tell_wait(waitpid(Pid::from_raw(i32::try_from(pid)?), None)?),
    }
}

/// `unshare user,pid,net,mount,cgroup REST`: a child in those new namespaces does the rest and is waited for.
pub(super) fn unshare(words: &[&str]) -> Result<u8> {
    let (names, rest) = one(words)?;
    let mut flags = CloneFlags::empty();
    for name in names.split(',') {
        flags |= match name {
            "user" => CloneFlags::CLONE_NEWUSER,
            "pid" => CloneFlags::CLONE_NEWPID,
            "net" => CloneFlags::CLONE_NEWNET,
            "mount" => CloneFlags::CLONE_NEWNS,
            "cgroup" => CloneFlags::CLONE_NEWCGROUP,
            _ => bail!("there is no namespace {name:?}"),
        };
    }
    match nix::sched::unshare(flags) {
        Ok(()) => process::fork(rest),
        Err(errno) => Ok(say(Err(errno))),
    }
}

/// Where a roamer keeps the network namespace that it came from.
const HOME: i32 = 77;

/// `roam REST`: does the rest in a network namespace of its own, with loopback, from which it can `return`.
pub(super) fn roam(rest: &[&str]) -> Result<u8> {
    let home = match fs::File::open("/proc/self/ns/net") {
        Ok(home) => home,
        Err(error) => return Ok(say(Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))))),
    };
    // SAFETY: integers only; nothing has this number.
    Errno::result(unsafe { libc::dup2(home.as_raw_fd(), HOME) })?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    raise_loopback()?;
    Ok(run(rest))
}

/// `return FILE REST`: goes back to where it roamed from, writes FILE, and does the rest.
pub(super) fn go_home(words: &[&str]) -> Result<u8> {
    let (file, rest) = one(words)?;
    // SAFETY: `roam` opened it, and nobody closes it.
    nix::sched::setns(unsafe { BorrowedFd::borrow_raw(HOME) }, CloneFlags::CLONE_NEWNET)?;
    fs::write(file, "")?;
    Ok(run(rest))
}

/// `apart MOUNTS ROOT REST`: a child in a mount namespace of its own, with ROOT as its root directory, does the rest and is
/// waited for. MOUNTS are `FROM=TO`, separated by commas, mounted in their order; FROM can be `tmpfs`; `-`: none.
pub(super) fn apart(words: &[&str]) -> Result<u8> {
    let [mounts, root, rest @ ..] = words else { bail!("apart needs two words and the rest") };
    let child = process::in_child(|| match set_apart(mounts, root) {
        Ok(()) => run(rest),
        Err(error) => {
            println!("{error:#}");
            super::MISUSE
        }
    })?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(0),
        other => bail!("the child ended with {other:?}"),
    }
}

fn set_apart(mounts: &str, root: &str) -> Result<()> {
    const NOTHING: Option<&str> = None;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace cannot be made")?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).context("/ cannot be made private")?;
    for one in mounts.split(',').filter(|one| *one != "-") {
        let (from, to) = one.split_once('=').with_context(|| format!("{one} says not where"))?;
        let done = match from {
            "tmpfs" => mount(Some(from), to, Some(from), MsFlags::empty(), NOTHING),
            _ => mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING),
        };
        done.with_context(|| format!("{from} cannot be mounted at {to}"))?;
    }
    chroot(root).with_context(|| format!("{root} cannot be the root directory"))?;
    Ok(chdir("/")?)
}
