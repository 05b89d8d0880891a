//! An agent that is stopped at each system call with which it changes anything outside of itself, and killed at the one that
//! is asked for. The kernel asks (seccomp's user notifications): the agent needs no code for it.

use std::{
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{agent::Agent, bpf::pidfd, prelude::*};

/// The number under which the agent's process holds what the kernel asks by, for this process to take.
const LISTENER: libc::c_int = 100;
/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (`include/uapi/linux/seccomp.h`, 6.18).
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
/// Nothing is killed.
const NEVER: u64 = u64::MAX;
/// Commands of bpf(2) that change what is there without the agent (`enum bpf_cmd`, 6.18): elements of maps, pins, attachment,
/// links.
const COMMANDS: [u32; 9] = [2, 3, 6, 8, 9, 26, 27, 28, 29];
/// The other calls that do: files, folders, signals, sockets. What is stored into mapped memory is no call, and is not seen.
const CALLS: [libc::c_long; 25] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_perf_event_open,
];

/// Where the number of the call and the low halves of its first and third argument are in `struct seccomp_data`.
const NUMBER: u32 = 0;
const FIRST: u32 = 16;
const THIRD: u32 = 32;

/// How many calls there were, and at which the agent is killed.
#[derive(Debug, Default)]
struct Counts {
    made: AtomicU64,
    kill_at: AtomicU64,
    killed: AtomicU64,
}

/// A handle of one watched agent.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Counts>);

impl Watch {
    /// Starts an agent that is killed at its `at`th call; none: not yet.
    pub(super) fn start(s: &mut Sandbox, at: Option<u64>) -> Result<(Agent, Self)> {
        let mut daemon = s.daemon();
        Agent::prepare(&mut daemon, &s.part("agent"), &s.log())?;
        stop_at_calls(&mut daemon);
        let agent = Agent::spawn(daemon)?;
        s.agent_was_started();
        let watch = Self(Arc::default());
        watch.0.kill_at.store(at.unwrap_or(NEVER), Ordering::SeqCst);
        let listener = take_listener(agent.pid())?;
        let (counts, pid) = (Arc::clone(&watch.0), Pid::from_raw(agent.pid().cast_signed()));
        thread::spawn(move || {
            // over when the agent is: whatever it says then is no more of interest
            let _ = serve(&listener, &counts, pid);
        });
        Ok((agent, watch))
    }

    /// How many calls it made.
    pub(super) fn made(&self) -> u64 {
        self.0.made.load(Ordering::SeqCst)
    }

    /// From here on it is killed at the `at`th call.
    pub(super) fn kill_at(&self, at: u64) {
        self.0.kill_at.store(self.made() + at, Ordering::SeqCst);
    }

    pub(super) fn killed(&self) -> bool {
        self.0.killed.load(Ordering::SeqCst) > 0
    }
}

/// Lets each of the agent's calls go on, but for the one at which it is killed.
fn serve(listener: &OwnedFd, counts: &Counts, agent: Pid) -> Result<()> {
    loop {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if !waiting[0].any().unwrap_or(false) || waiting[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP)) {
            return Ok(());
        }
        // SAFETY: all zeros are what the kernel asks for.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: a whole `seccomp_notif`, which outlives the call.
        let got = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut asked) };
        match Errno::result(got) {
            // who asked is gone
            Err(Errno::ENOENT | Errno::EINTR) => continue,
            other => other?,
        };
        let made = counts.made.fetch_add(1, Ordering::SeqCst) + 1;
        if made >= counts.kill_at.load(Ordering::SeqCst) && counts.killed.load(Ordering::SeqCst) == 0 {
            // before it is gone: who sees that asks why
            counts.killed.store(made, Ordering::SeqCst);
            kill(agent, Signal::SIGKILL)?;
            // its children are asked for too, and hold what the kernel asks by: nobody else lets them go on
        }
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: a whole `seccomp_notif_resp`, which outlives the call.
        let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) };
        match Errno::result(sent) {
            Err(Errno::ENOENT | Errno::EINPROGRESS) => {}
            other => drop(other?),
        }
    }
}

/// Has the kernel ask at each of the calls of the process that `command` becomes.
fn stop_at_calls(command: &mut Command) {
    let filter = filter();
    let install = move || {
        let length = u16::try_from(filter.len()).unwrap_or(0);
        let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // SAFETY: the program outlives the call, which only reads it.
        let made =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        let listener = Errno::result(made)?;
        // SAFETY: integers only. The copy survives the exec, for this process to be taken by the other.
        Errno::result(unsafe { libc::dup2(listener as libc::c_int, LISTENER) })?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, none of which is among those asked for.
    unsafe { command.pre_exec(install) };
}

fn take_listener(pid: u32) -> Result<OwnedFd> {
    let process = pidfd(pid)?;
    // SAFETY: integers only.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) };
    let taken = Errno::result(taken).context("the agent's seccomp listener")?;
    // SAFETY: the kernel made it for this process just now.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(taken)?) })
}

/// The number as a filter has it.
fn number_of(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// Asks at [`CALLS`], at openat(2) where it may make a file, and, of bpf(2), at [`COMMANDS`].
fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const HAS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let code = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // where each part begins: one that opens, one of bpf, the question
    let opens = 3 + CALLS.len() + 1;
    let commands = opens + 3;
    let asks = commands + 1 + COMMANDS.len() + 1;
    // how far it is from one place to another
    let to = |at: usize, place: usize| u8::try_from(place - at - 1).unwrap_or(u8::MAX);
    let allow = || code(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    let mut program = vec![
        code(LOAD, NUMBER, 0, 0),
        code(EQUAL, number_of(libc::SYS_bpf), to(1, commands), 0),
        code(EQUAL, number_of(libc::SYS_openat), to(2, opens), 0),
    ];
    program.extend((3..).zip(CALLS).map(|(at, call)| code(EQUAL, number_of(call), to(at, asks), 0)));
    program.push(allow());
    program.push(code(LOAD, THIRD, 0, 0));
    program.push(code(HAS, libc::O_CREAT.cast_unsigned(), to(opens + 1, asks), 0));
    program.push(allow());
    program.push(code(LOAD, FIRST, 0, 0));
    program.extend((commands + 1..).zip(COMMANDS).map(|(at, command)| code(EQUAL, command, to(at, asks), 0)));
    program.push(allow());
    program.push(code(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says of a call, by doing what the kernel does.
    fn says(number: u32, argument: u32) -> u32 {
        let program = filter();
        let (mut at, mut value) = (0, 0);
        loop {
            let one = program[at];
            match u32::from(one.code) & 7 {
                libc::BPF_LD => value = if one.k == NUMBER { number } else { argument },
                libc::BPF_JMP => {
                    let has = u32::from(one.code) & 0xf0 == libc::BPF_JSET;
                    let holds = if has { value & one.k != 0 } else { value == one.k };
                    at += usize::from(if holds { one.jt } else { one.jf });
                }
                _ => return one.k,
            }
            at += 1;
        }
    }

    #[test]
    fn the_filter_asks_at_what_changes_something_and_at_nothing_else() {
        for call in CALLS {
            assert_eq!(says(number_of(call), 0), libc::SECCOMP_RET_USER_NOTIF, "{call}");
        }
        for command in 0..40 {
            let asked = says(libc::SYS_bpf as u32, command) == libc::SECCOMP_RET_USER_NOTIF;
            assert_eq!(asked, COMMANDS.contains(&command), "bpf command {command}");
        }
        assert_eq!(says(number_of(libc::SYS_read), 2), libc::SECCOMP_RET_ALLOW);
        for (flags, asked) in [(libc::O_RDWR, false), (libc::O_RDWR | libc::O_CREAT, true), (libc::O_CLOEXEC, false)] {
            let says = says(number_of(libc::SYS_openat), flags.cast_unsigned());
            assert_eq!(says == libc::SECCOMP_RET_USER_NOTIF, asked, "openat with {flags:#x}");
        }
    }
}
