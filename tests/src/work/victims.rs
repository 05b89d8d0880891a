//! What a measuring process does to be stopped: it breaks its policy, it is a crowd, it floods.

use std::{
    ffi::CStr,
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        socket::{MsgFlags, send},
        wait::{WaitStatus, waitpid},
    },
    time::{ClockId, clock_gettime},
    unistd::{Pid, execv, pipe, setsid, write},
};

use super::{
    process::{idle, in_child, spin},
    ways::in_ring,
};
use crate::{bench::place, harness::wait::boot_ns};

/// Pause between two messages of the flows.
const BEAT: Duration = Duration::from_millis(1);

const OUT_OF_SCOPE: &[u8] = b"out of scope";

/// Datagrams in a beat.
const DATAGRAMS: usize = 10;

fn now_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned())
}

/// A descriptor of a process, which a poll finds readable once it has ended.
pub(crate) fn pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    ensure!(fd >= 0, "pidfd_open of {pid}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd)?) })
}

/// How bytes are sent to who is out of scope.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Calls,
    /// io_uring: socket, connect and send.
    Ring,
}

/// A child with so many threads notes the time, then executes `program`. The answer: the nanoseconds until it was dead,
/// and the signal that killed it (0: it ended by itself). Before that it tries to send bytes to `target`.
pub(super) fn trespass(program: &CStr, threads: u32, target: SocketAddrV4, way: Way) -> Result<String> {
    let (from, to) = pipe()?;
    let child =
        in_child(|| trespasser(program, threads, (target, way), to.as_fd().try_clone_to_owned().map(File::from)))?;
    tell_death(&pidfd(child)?, child, File::from(from), to)
}

/// Waits for the death of a child that notes into the pipe when it begins.
fn tell_death(watched: &OwnedFd, child: Pid, mut from: File, to: OwnedFd) -> Result<String> {
    poll(&mut [PollFd::new(watched.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
    let dead = now_ns()?;
    let signal = match waitpid(child, None)? {
        WaitStatus::Signaled(_, signal, _) => signal as i32,
        WaitStatus::Exited(_, 0 | 1) => 0,
        other => bail!("the child is {other:?}"),
    };
    drop(to);
    let mut noted = [0; 8];
    from.read_exact(&mut noted).context("the child noted no time")?;
    Ok(format!("{} {signal}", dead.saturating_sub(u64::from_ne_bytes(noted))))
}

/// Its exit status: 1 where it went on after the exec, 2 where something else failed.
fn trespasser(program: &CStr, threads: u32, (target, way): (SocketAddrV4, Way), note: std::io::Result<File>) -> u8 {
    for _ in 1..threads {
        std::thread::spawn(|| idle());
    }
    // whoever comes through has left the scope: the server will count it
    match way {
        Way::Calls => {
            if let Ok(mut stream) = TcpStream::connect(target) {
                let _ = stream.write_all(OUT_OF_SCOPE);
            }
        }
        Way::Ring if in_ring("ring", "tcp", &target.into(), OUT_OF_SCOPE).is_err() => return 2,
        Way::Ring => {}
    }
    let (Ok(mut note), Ok(now)) = (note, now_ns()) else { return 2 };
    if note.write_all(&now.to_ne_bytes()).is_err() {
        return 2;
    }
    let Err(errno) = execv(program, &[program]);
    if errno == Errno::EPERM { 1 } else { 2 }
}

/// The same by a grandchild that left its parent, its session and its process group before.
pub(super) fn abscond(program: &CStr, target: SocketAddrV4) -> Result<String> {
    // who is left without a parent becomes this process's, which then learns how it ended
    set_child_subreaper(true)?;
    let (from, to) = pipe()?;
    let (gate, open) = pipe()?;
    let child = in_child(|| {
        let leave = || setsid().is_ok() && File::from(gate).read_exact(&mut [0]).is_ok();
        let note = to.as_fd().try_clone_to_owned().map(File::from);
        let grandchild = in_child(|| if leave() { trespasser(program, 1, (target, Way::Calls), note) } else { 2 });
        let Ok(pid) = grandchild else { return 2 };
        u8::from(write(&to, &pid.as_raw().to_ne_bytes()).is_err())
    })?;
    waitpid(child, None)?;
    let mut from = File::from(from);
    let mut pid = [0; 4];
    from.read_exact(&mut pid).context("the grandchild has no number")?;
    let grandchild = Pid::from_raw(i32::from_ne_bytes(pid));
    let watched = pidfd(grandchild)?;
    File::from(open).write_all(b"g")?;
    tell_death(&watched, grandchild, from, to)
}

/// A child that forks a thousand times a second, for ever, where the machine lets it.
pub(super) fn bomb() -> Result<Pid> {
    in_child(|| {
        if place::ordinary().is_err() {
            return 1;
        }
        let mut due = Instant::now();
        loop {
            match in_child(|| 0) {
                Ok(child) => drop(waitpid(child, None)),
                Err(_) => return 0,
            }
            due += BEAT;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    })
}

/// Ends such a child.
pub(super) fn defuse(child: Pid) -> Result<()> {
    kill(child, Signal::SIGKILL)?;
    waitpid(child, None)?;
    Ok(())
}

/// So many children that sleep and so many that compute; their process ids.
pub(super) fn crowd(sleepers: u32, spinners: u32) -> Result<String> {
    let mut pids = Vec::new();
    for n in 0..sleepers + spinners {
        let child = in_child(|| {
            // one that computed before everything ordinary would take the machine
            if place::ordinary().is_err() {
                return 1;
            }
            if n < sleepers { idle() } else { spin() }
        })?;
        pids.push(child.to_string());
    }
    Ok(pids.join(" "))
}

/// A child with so many connections to a port on loopback, which sends the time on each of them in turn, and as datagrams,
/// for ever.
pub(super) fn flows(count: u32, port: u32) -> Result<String> {
    let port = u16::try_from(port)?;
    let child = in_child(|| send_for_ever(count, port).map_or(2, |()| 0))?;
    Ok(child.to_string())
}

fn send_for_ever(count: u32, port: u16) -> Result<()> {
    place::ordinary()?;
    let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let mut flows = (0..count).map(connect).collect::<std::io::Result<Vec<_>>>()?;
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    loop {
        for flow in &mut flows {
            // one that was cut fails: the others go on
            let _ = send(flow.as_raw_fd(), &boot_ns()?.to_be_bytes(), MsgFlags::MSG_NOSIGNAL);
        }
        for _ in 0..DATAGRAMS {
            let _ = datagrams.send_to(&boot_ns()?.to_be_bytes(), (Ipv4Addr::LOCALHOST, port));
        }
        std::thread::sleep(BEAT);
    }
}
