//! What a program inherits across an exec besides its environment: open files, and whether `SIGPIPE` is ignored.
//!
//! Rust's runtime sets `SIGPIPE` to be ignored before `main`, so how the caller had left it is looked at before that:
//! a service manager starts programs with it ignored, a shell does not, and a launched command must find it as it was.

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

static BROKEN_PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Called by the C library before `main`, and so before Rust's runtime.
// SAFETY: entries of this section are pointers to functions of the C ABI; further arguments go unread.
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; `found` is of the type that is written, and all zeros are a value of it too.
    let handler = unsafe {
        libc::sigaction(libc::SIGPIPE, ptr::null(), found.as_mut_ptr());
        found.assume_init().sa_sigaction
    };
    BROKEN_PIPE_IGNORED.store(handler == libc::SIG_IGN, Ordering::Relaxed);
}

/// Puts `SIGPIPE` back to what the caller had left. For just before an exec: from then on a closed pipe may kill.
///
/// # Errors
/// What sigaction(2) gives.
pub fn restore_broken_pipe() -> io::Result<()> {
    let handler = if BROKEN_PIPE_IGNORED.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: installs no function, only one of the two dispositions that an exec keeps.
    let before = unsafe { libc::signal(libc::SIGPIPE, handler) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on as closed by the next exec.
///
/// # Errors
/// What close_range(2) gives: `ENOSYS` before Linux 5.9, `EINVAL` before 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers only, and closes nothing now: every descriptor stays valid for its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts `/dev/null` in the place of these descriptors, of 0 to 2.
///
/// # Errors
/// It cannot be opened, or not be put there.
pub fn put_nothing_at(descriptors: &[i32]) -> io::Result<()> {
    if descriptors.is_empty() {
        return Ok(());
    }
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    for descriptor in descriptors {
        match descriptor {
            0 => dup2_stdin(&nothing)?,
            1 => dup2_stdout(&nothing)?,
            2 => dup2_stderr(&nothing)?,
            other => return Err(io::Error::other(format!("descriptor {other} is not the command's"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn what_was_open_across_an_exec_no_longer_is() {
        let file = File::open("/dev/null").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        close_on_exec_from(u32::try_from(file.as_raw_fd()).unwrap()).unwrap();
        assert_eq!(fcntl(&file, FcntlArg::F_GETFD).unwrap(), FdFlag::FD_CLOEXEC.bits());
    }
}
