//! Other processes by descriptor, and the agent's own: how it is scheduled, what memory it gives back, what time it is.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::sys::signal::Signal;

use super::sys::new_descriptor;

/// A descriptor of this process for what `number` leads to in another (`pidfd_getfd`, since 5.6).
pub fn descriptor_of(process: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

/// The network namespace that a socket lives in (`SIOCGSKNS`, since 4.10).
pub fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const OF_SOCKET: libc::Ioctl = 0x894c;
    // SAFETY: no pointers.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), OF_SOCKET) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// `IPPROTO_*` of a socket.
pub fn protocol_of(socket: BorrowedFd<'_>) -> io::Result<i32> {
    option_of(socket, libc::SO_PROTOCOL)
}

/// A socket's cookie, which the kernel makes now where it has none (`SO_COOKIE`, since 4.12).
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option_of(socket, libc::SO_COOKIE)
}

/// An option of level `SOL_SOCKET` whose value is one integer.
fn option_of<T: Integer>(socket: BorrowedFd<'_>, option: i32) -> io::Result<T> {
    let (mut value, mut length) = (T::default(), size_of::<T>() as libc::socklen_t);
    let at = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `length` bytes of one integer.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, at, &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// What every pattern of bits is one of.
trait Integer: Default {}
impl Integer for i32 {}
impl Integer for u64 {}

/// Gives back what was allocated and is free again. The allocator keeps it for later otherwise, and the kernel's type
/// information, which only the start reads, takes several times what the agent ever needs again.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; only free memory is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A descriptor of a process, which cannot come to mean another one when the number is used again.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    new_descriptor(descriptor)
}

/// Nanoseconds of `CLOCK_BOOTTIME`, which suspend does not stop and no clock step moves.
#[must_use]
pub fn boot_now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |t| t.tv_sec().cast_unsigned() * 1_000_000_000 + t.tv_nsec().cast_unsigned())
}

/// Kills the process that a pidfd names, whatever its number means by now.
pub fn kill_pidfd(process: BorrowedFd<'_>) -> io::Result<()> {
    signal_pidfd(process, Signal::SIGKILL)
}

/// Sends a signal to the process that a pidfd names.
pub fn signal_pidfd(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    let (process, signal) = (process.as_raw_fd(), signal as libc::c_int);
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, nothing, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// While it lives, this thread is scheduled before everything ordinary: what it ends may be a crowd that computes, and
/// would else be asked for its processors first. Its children are scheduled as ever.
#[derive(Debug)]
pub struct Urgent(());

impl Urgent {
    /// Begins; where the host refuses (`CAP_SYS_NICE`), everything goes on as it is.
    #[must_use]
    pub fn begin() -> Self {
        // the lowest real-time priority is above every ordinary one
        schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
        Self(())
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one sched_param, which outlives the call.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if done != 0 {
        tracing::debug!("the scheduling cannot be changed: {}", io::Error::last_os_error());
    }
}
